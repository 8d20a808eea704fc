//! A real identity provider on this host, and a browser that goes to it and comes back.
//!
//! The one rule: the browser keeps cookies and follows redirects as browsers do, but stops where a test wants to look, or to
//! change what the provider is asked or what it answered.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_harness::client::{Answer, Client};
use holdfast_harness::until;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

pub const CLIENT: &str = "holdfast-under-test";

/// The provider of `tests/clients/oidc_provider.mjs`, in a process of its own.
pub struct Provider {
    pub issuer: String,
    pub secret: String,
    port: u16,
    redirect: String,
    accounts: Value,
    tls: Option<Tls>,
    node: Option<Child>,
    said: Arc<Mutex<Vec<Value>>>,
}

impl Provider {
    /// One that knows these people, by their subjects. It does not run yet.
    pub fn new(accounts: Value) -> Self {
        Self::on("http", accounts, None)
    }

    /// The same over https, with a certificate of an authority that nobody else knows.
    pub fn over_tls(accounts: Value) -> Self {
        Self::on("https", accounts, Some(Tls::new()))
    }

    fn on(scheme: &str, accounts: Value, tls: Option<Tls>) -> Self {
        let port = holdfast_harness::free_port().expect("a port");
        let issuer = format!("{scheme}://127.0.0.1:{port}");
        let secret = "the-secret-of-the-client-0123456789".to_owned();
        Self { issuer, secret, port, redirect: String::new(), accounts, tls, node: None, said: Arc::default() }
    }

    /// The file of the authority that signed its certificate.
    pub fn authority(&self) -> &Path {
        self.tls.as_ref().expect("it speaks TLS").authority.path()
    }

    /// A browser that believes that authority.
    pub fn browser(&self) -> Browser {
        let pem = std::fs::read(self.authority()).expect("readable");
        let roots = RootCerts::from(vec![Certificate::from_pem(&pem).expect("a certificate")]);
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(ring).build();
        Browser { cookies: HashMap::new(), client: Client::through(Client::config().tls_config(tls).build().into()) }
    }

    /// What the server is told of it.
    pub fn variables(&self) -> Vec<(String, String)> {
        [
            ("ISSUER", self.issuer.as_str()),
            ("CLIENT_ID", CLIENT),
            ("CLIENT_SECRET", &self.secret),
            ("NAME", "Corp <ID>"),
        ]
        .map(|(name, value)| (format!("HOLDFAST_OIDC_{name}"), value.to_owned()))
        .to_vec()
    }

    /// Starts it, for a server at this address, with keys that nobody has seen yet.
    pub fn start(&mut self, server: &str) {
        self.redirect = format!("{server}/auth/oidc/callback");
        self.restart();
    }

    pub fn restart(&mut self) {
        self.stop();
        let mut node = Command::new("node")
            .arg(crate::root().join("tests/clients/oidc_provider.mjs"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node runs");
        let given = json!({
            "port": self.port, "client_id": CLIENT, "client_secret": self.secret, "redirect_uri": self.redirect,
            "accounts": self.accounts, "tls": self.tls.as_ref().map(|tls| json!({ "key": tls.key, "cert": tls.certificate })),
        });
        writeln!(node.stdin.as_mut().expect("a pipe"), "{given}").expect("it reads");
        let mut lines = BufReader::new(node.stdout.take().expect("a pipe")).lines();
        let first = lines.next().expect("it says that it listens").expect("a line");
        assert!(first.contains(&self.issuer), "{first}");
        let said = self.said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                said.lock().expect("no panic").extend(serde_json::from_str::<Value>(&line));
            }
        });
        self.node = Some(node);
    }

    pub fn stop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }

    /// Every token that it gave out, once it gave out so many answers.
    pub fn tokens(&self, answers: usize) -> Vec<String> {
        let all = || self.said.lock().expect("no panic").clone();
        let told = until(Duration::from_secs(10), "the provider tells", || Ok((all().len() >= answers).then(all)));
        let tokens = told.expect("tokens").into_iter().flat_map(|line| {
            ["access_token", "id_token"].map(|name| line["issued"][name].as_str().expect("a token").to_owned())
        });
        tokens.collect()
    }
}

/// What a provider on this host shows to prove that it is there.
struct Tls {
    authority: NamedTempFile,
    certificate: String,
    key: String,
}

impl Tls {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, own).expect("a certificate");
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
        let certificate = leaf.signed_by(&key, &authority).expect("a certificate").pem();
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(authority.pem().as_bytes()).expect("written");
        Self { authority: file, certificate, key: key.serialize_pem() }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A page, or where it sends to.
pub struct Seen {
    pub url: String,
    pub answer: Answer,
}

impl Seen {
    /// Where it redirects to, as a whole URL.
    pub fn location(&self) -> Option<String> {
        let target = self.answer.headers.get("location")?.to_str().ok()?;
        Some(if target.starts_with('/') { format!("{}{target}", origin(&self.url)) } else { target.to_owned() })
    }

    /// The value of an attribute, after the first place that has `mark`.
    pub fn after(&self, mark: &str, attribute: &str) -> String {
        let rest = self.answer.text.split_once(mark).unwrap_or_else(|| panic!("no {mark} in {}", self.answer.text)).1;
        let value = rest.split_once(&format!("{attribute}=\"")).expect("the attribute").1;
        value.split('"').next().expect("its end").replace("&amp;", "&")
    }
}

fn origin(url: &str) -> String {
    url.split('/').take(3).collect::<Vec<_>>().join("/")
}

/// Somebody's browser.
pub struct Browser {
    /// By origin, then by name.
    pub cookies: HashMap<String, HashMap<String, String>>,
    client: Client,
}

impl Default for Browser {
    fn default() -> Self {
        Self { cookies: HashMap::new(), client: Client::new("", "") }
    }
}

impl Browser {
    fn send(&mut self, method: &str, url: &str, form: Option<String>, accept: &str) -> Seen {
        let jar = self.cookies.entry(origin(url)).or_default();
        let cookies = jar.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ");
        let mut headers = vec![("Accept", accept), ("Sec-Fetch-Site", "same-origin")];
        if !cookies.is_empty() {
            headers.push(("Cookie", &cookies));
        }
        if form.is_some() {
            headers.push(("Content-Type", "application/x-www-form-urlencoded"));
        }
        let answer = self.client.send(method, url, &headers, form.map(String::into_bytes)).expect("an answer");
        for cookie in answer.headers.get_all("set-cookie") {
            let cookie = cookie.to_str().expect("text");
            let (name, value) = cookie.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair");
            let over = cookie.contains("Max-Age=0") || cookie.contains("01 Jan 1970");
            if over || value.is_empty() {
                jar.remove(name);
            } else {
                jar.insert(name.to_owned(), value.to_owned());
            }
        }
        Seen { url: url.to_owned(), answer }
    }

    pub fn get(&mut self, url: &str) -> Seen {
        self.send("GET", url, None, "text/html,*/*")
    }

    /// As a client does that reads JSON.
    pub fn get_json(&mut self, url: &str) -> Answer {
        self.send("GET", url, None, "application/json").answer
    }

    /// `form` is encoded already.
    pub fn post(&mut self, url: &str, form: &str) -> Seen {
        self.send("POST", url, Some(form.to_owned()), "text/html,*/*")
    }

    /// Begins a login at the server, and answers the URL of the provider that it is sent to.
    pub fn begin(&mut self, server: &str, next: &str) -> String {
        let url = format!("{server}/auth/oidc/login?next={next}");
        let seen = self.get(&url);
        assert_eq!(seen.answer.status, 303, "{}", seen.answer.text);
        seen.location().expect("a location")
    }

    /// Goes through the provider's pages as this account, and answers the URL that it sends back to, not followed yet.
    /// With `None` they do not sign in but go back at once.
    pub fn through(&mut self, url: &str, account: Option<&str>) -> String {
        let mut seen = self.get(url);
        for _ in 0..20 {
            if let Some(target) = seen.location() {
                if target.contains("/auth/oidc/callback?") {
                    return target;
                }
                seen = self.get(&target);
                continue;
            }
            assert_eq!(seen.answer.status, 200, "{}: {}", seen.url, seen.answer.text);
            let Some(account) = account else {
                let abort = format!("{}/abort", seen.url);
                seen = self.get(&abort);
                continue;
            };
            let action = seen.after("<form", "action");
            let action = if action.starts_with('/') { format!("{}{action}", origin(&seen.url)) } else { action };
            let form = match seen.after("name=\"prompt\"", "value").as_str() {
                "login" => format!("prompt=login&login={account}&password=any"),
                prompt => format!("prompt={prompt}"),
            };
            seen = self.post(&action, &form);
        }
        panic!("the provider goes round in circles at {}", seen.url);
    }

    /// The whole way of somebody who signs in, up to the answer of the server.
    pub fn sign_in(&mut self, server: &str, account: &str) -> Seen {
        let url = self.begin(server, "/device");
        let back = self.through(&url, Some(account));
        self.get(&back)
    }

    /// Forgets who is signed in at the provider.
    pub fn leave(&mut self, issuer: &str) {
        self.cookies.remove(issuer);
    }

    /// The session at the server, if there is one.
    pub fn session(&self, server: &str) -> Option<String> {
        self.cookies.get(server)?.get("holdfast_session").cloned()
    }
}

/// A parameter of a URL, as it stands there.
pub fn parameter(url: &str, name: &str) -> String {
    let query = url.split_once('?').expect("a query").1;
    let found = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("no {name} in {url}")).to_owned()
}

/// The same URL with another value of a parameter.
pub fn altered(url: &str, name: &str, value: &str) -> String {
    url.replace(&format!("{name}={}", parameter(url, name)), &format!("{name}={value}"))
}
