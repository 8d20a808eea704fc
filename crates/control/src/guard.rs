//! How often somebody without a credential may try.
//!
//! The one rule: an attempt is counted before anything is looked up, by what was said and not by what is there; so the limit
//! of a name that nobody has is that of any other name, and tells nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use holdfast_model::error::{Code, Error};
use sha2::{Digest, Sha256};

/// Why somebody is not let in yet, or at all.
#[derive(Debug)]
pub enum Denied {
    /// They asked too often, and may ask again after this long.
    Wait(Duration),
    Error(Error),
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Denied {
    /// The error, and the whole seconds to wait before the next try.
    pub fn parts(self) -> (Error, Option<u64>) {
        match self {
            Self::Error(error) => (error, None),
            Self::Wait(wait) => {
                let seconds = wait.as_secs() + 1;
                (
                    Error::new(Code::TooManyAttempts, format!("Too many attempts; try again in {seconds} s.")),
                    Some(seconds),
                )
            }
        }
    }
}

type Limit<K> = DefaultKeyedRateLimiter<K>;

/// Buckets of attempts. In memory: a server that starts anew forgives.
pub struct Guard {
    logins_from: Limit<IpAddr>,
    logins_as: Limit<[u8; 32]>,
    devices_from: Limit<IpAddr>,
    codes_from: Limit<IpAddr>,
    oidc_from: Limit<IpAddr>,
    clock: DefaultClock,
}

/// `burst` at once, and then `per_minute`.
fn quota(burst: u32, per_minute: u32) -> Quota {
    let least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    Quota::per_minute(least_one(per_minute)).allow_burst(least_one(burst))
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            logins_from: RateLimiter::keyed(quota(30, 20)),
            logins_as: RateLimiter::keyed(quota(10, 4)),
            devices_from: RateLimiter::keyed(quota(20, 10)),
            codes_from: RateLimiter::keyed(quota(20, 6)),
            // Two for each login: its beginning and its end.
            oidc_from: RateLimiter::keyed(quota(60, 40)),
            clock: DefaultClock::default(),
        }
    }
}

impl Guard {
    fn check<K: std::hash::Hash + Eq + Clone>(&self, limit: &Limit<K>, key: &K) -> Result<(), Denied> {
        limit.check_key(key).map_err(|not_until| Denied::Wait(not_until.wait_time_from(self.clock.now())))
    }

    /// Before a password is looked at.
    pub(crate) fn login(&self, from: Option<IpAddr>, name: &str) -> Result<(), Denied> {
        self.check(&self.logins_from, &place(from))?;
        self.check(&self.logins_as, &Sha256::digest(name.trim().to_lowercase().as_bytes()).into())
    }

    /// Before a device is given a code.
    pub(crate) fn device(&self, from: Option<IpAddr>) -> Result<(), Denied> {
        self.check(&self.devices_from, &place(from))
    }

    /// Before a user's code is looked up, or a key that was typed into a page.
    pub(crate) fn code(&self, from: Option<IpAddr>) -> Result<(), Denied> {
        self.check(&self.codes_from, &place(from))
    }

    /// Before the identity provider is asked anything.
    pub(crate) fn oidc(&self, from: Option<IpAddr>) -> Result<(), Denied> {
        self.check(&self.oidc_from, &place(from))
    }

    /// Forgets those who have not tried for so long that nothing is held against them.
    pub(crate) fn tidy(&self) {
        self.logins_from.retain_recent();
        self.logins_as.retain_recent();
        self.devices_from.retain_recent();
        self.codes_from.retain_recent();
        self.oidc_from.retain_recent();
    }
}

/// What counts as one address: whoever has an IPv6 address has 2^64 of them.
fn place(address: Option<IpAddr>) -> IpAddr {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V6(six)) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        Some(four) => four,
        None => Ipv4Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    fn tries(guard: &Guard, from: &str, name: impl Fn(u32) -> String) -> (u32, Duration) {
        for count in 0..1000 {
            match guard.login(at(from), &name(count)) {
                Ok(()) => {}
                Err(Denied::Wait(wait)) => return (count, wait),
                Err(Denied::Error(error)) => panic!("{error}"),
            }
        }
        panic!("it never ends")
    }

    #[test]
    fn an_account_and_an_address_have_a_limit_each() {
        let guard = Guard::default();
        let (count, wait) = tries(&guard, "10.0.0.1", |_| "alice".to_owned());
        assert!((10..=11).contains(&count), "{count}");
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(15), "{wait:?}");
        // From elsewhere it is the same account, however it is written; another account is not held up.
        assert!(matches!(guard.login(at("10.0.0.2"), " Alice "), Err(Denied::Wait(_))));
        assert!(guard.login(at("10.0.0.2"), "bob").is_ok());
        let (count, _) = tries(&guard, "10.0.0.3", |n| format!("user-{n}"));
        assert!((30..=32).contains(&count), "{count}");
        assert!(matches!(guard.login(at("::ffff:10.0.0.3"), "carol"), Err(Denied::Wait(_))));
    }

    #[test]
    fn a_network_of_ipv6_is_one_place() {
        assert_eq!(place(at("2001:db8::1")), place(at("2001:db8::ffff:1")));
        assert_ne!(place(at("2001:db8::1")), place(at("2001:db8:0:1::1")));
    }

    #[test]
    fn the_wait_is_told_in_whole_seconds_and_not_too_short() {
        let (error, wait) = Denied::Wait(Duration::from_millis(1500)).parts();
        assert_eq!((error.code, wait), (Code::TooManyAttempts, Some(2)));
    }
}
