//! Where a webhook may go: the whole internet, and nothing beside the server.
//!
//! The one rule: the address that is connected to decides, not the name. Names are looked up by [`Guarded`], which hands
//! out only what [`Guard::permits`], so what a second look-up says is checked like the first; an address that stands in
//! the URL itself is never looked up, and is checked before each request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Characters of a URL at most.
pub const LONGEST_URL: usize = 2048;

/// IPv4 ranges that are not the internet: those of the IANA's special-purpose registry that are not globally reachable,
/// multicast, and the address at which one provider's hosts reach their host.
const NOT_PUBLIC: [&str; 17] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Ranges within the global unicast addresses of IPv6 that are not the internet: protocols (Teredo among them) and
/// documentation.
const NOT_PUBLIC_V6: [&str; 3] = ["2001::/23", "2001:db8::/32", "3fff::/20"];
const GLOBAL_V6: &str = "2000::/3";

struct Ranges {
    not_public: Vec<Ipv4Net>,
    not_public_v6: Vec<Ipv6Net>,
    global_v6: Ipv6Net,
}

static RANGES: LazyLock<Ranges> = LazyLock::new(|| Ranges {
    not_public: NOT_PUBLIC.iter().map(|text| text.parse().expect("a constant range")).collect(),
    not_public_v6: NOT_PUBLIC_V6.iter().map(|text| text.parse().expect("a constant range")).collect(),
    global_v6: GLOBAL_V6.parse().expect("a constant range"),
});

/// What the operator allows beyond public addresses over TLS.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Ranges that are not public and allowed all the same.
    pub networks: Vec<IpNet>,
    /// URLs of plain HTTP are allowed.
    pub http: bool,
}

impl Guard {
    /// Whether a connection to this address is allowed.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = unmapped(address);
        is_public(address) || self.networks.iter().any(|network| network.contains(&address))
    }

    /// A URL that deliveries can go to, or why none ever could.
    pub fn url(&self, text: &str) -> Result<Url, String> {
        if text.len() > LONGEST_URL {
            return Err(format!("must have at most {LONGEST_URL} characters"));
        }
        let url = Url::parse(text).map_err(|e| format!("must be a URL: {e}"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.http => {}
            "http" => return Err("must begin with https://; this server sends nothing over plain HTTP".to_owned()),
            _ => return Err("must begin with https://".to_owned()),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user name or password".to_owned());
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment".to_owned());
        }
        if url.port() == Some(0) {
            return Err("must not name port 0".to_owned());
        }
        let of_loopback = match url.host() {
            None => return Err("must name a host".to_owned()),
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                (name == "localhost" || name.ends_with(".localhost")) && !self.permits(Ipv4Addr::LOCALHOST.into())
            }
            Some(_) => false,
        };
        if of_loopback || !self.permits_host(&url) {
            return Err("must lead to a public address; this one is not".to_owned());
        }
        Ok(url)
    }

    /// False when the URL itself holds an address that is not allowed. Of a name nothing is known yet.
    pub fn permits_host(&self, url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(address)) => self.permits(address.into()),
            Some(Host::Ipv6(address)) => self.permits(address.into()),
            Some(Host::Domain(_)) => true,
            None => false,
        }
    }
}

/// An IPv4 address in the clothes of an IPv6 one is what it is.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        v4 => v4,
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !RANGES.not_public.iter().any(|range| range.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match [a, b, c, d, e, f] {
        // NAT64: a gateway makes the embedded address of it.
        [0x64, 0xff9b, 0, 0, 0, 0] => embedded(g, h),
        // 6to4: the embedded address is the router's.
        [0x2002, high, low, ..] => embedded(high, low),
        _ => RANGES.global_v6.contains(&address) && !RANGES.not_public_v6.iter().any(|range| range.contains(&address)),
    }
}

/// Addresses that a name stands for, as they come.
pub type Looking = Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;

/// How names are looked up.
pub trait Lookup: Send + Sync {
    fn lookup(&self, name: String) -> Looking;
}

/// The host's own resolver.
#[derive(Debug, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: String) -> Looking {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|found| found.ip()).collect()) })
    }
}

/// A name stands for no address that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forbidden;

impl std::fmt::Display for Forbidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name leads to no address that is allowed")
    }
}

impl std::error::Error for Forbidden {}

/// Looks names up and passes on what is allowed. The client connects to nothing else.
pub struct Guarded {
    pub guard: Arc<Guard>,
    pub lookup: Arc<dyn Lookup>,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, looking) = (self.guard.clone(), self.lookup.lookup(name.as_str().to_owned()));
        Box::pin(async move {
            let mut found = looking.await?;
            found.retain(|address| guard.permits(*address));
            if found.is_empty() {
                return Err(Forbidden.into());
            }
            // Port 0 stands for the one of the URL.
            Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(guard: &Guard, text: &str) -> bool {
        guard.permits(text.parse().expect("an address"))
    }

    #[test]
    fn only_the_internet() {
        let guard = Guard::default();
        for text in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8"] {
            assert!(permits(&guard, text), "{text}");
        }
        assert!(permits(&guard, "2002:808:808::1"), "6to4 of 8.8.8.8");
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.255.254",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "168.63.129.16",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2002:c0a8:101::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!permits(&guard, text), "{text}");
        }
    }

    #[test]
    fn what_the_operator_allows() {
        let guard = Guard { networks: vec!["10.1.0.0/16".parse().expect("a range")], http: false };
        assert!(permits(&guard, "10.1.2.3") && permits(&guard, "::ffff:10.1.2.3"));
        assert!(!permits(&guard, "10.2.0.1") && !permits(&guard, "127.0.0.1"));
    }

    #[test]
    fn urls_that_can_never_work() {
        let guard = Guard::default();
        assert!(guard.url("https://example.com/hook?token=1").is_ok());
        assert!(guard.url("https://8.8.8.8:8443/").is_ok());
        for text in [
            "",
            "example.com",
            "http://example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "https://user@example.com/",
            "https://:secret@example.com/",
            "https://example.com:0/",
            "https://example.com/#part",
            "https://localhost/",
            "https://LOCALHOST./",
            "https://a.localhost:8443/",
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.0.0.1/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[fe80::1]/",
            "https://169.254.169.254/latest/meta-data/",
        ] {
            assert!(guard.url(text).is_err(), "{text}");
        }
        assert!(guard.url(&format!("https://example.com/{}", "a".repeat(LONGEST_URL))).is_err());
        let open = Guard { networks: vec!["127.0.0.0/8".parse().expect("a range")], http: true };
        assert!(open.url("http://localhost:1234/").is_ok() && open.url("http://127.0.0.1:1/").is_ok());
        assert!(open.url("http://[::1]:1/").is_err());
    }
}
