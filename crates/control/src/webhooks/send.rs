//! One attempt to deliver a message.
//!
//! The one rule: the receiver is a stranger. It gets 10 seconds for everything, is never followed elsewhere, and what it
//! says beyond its status is not kept; what went wrong is told in words of ours, because a driver's would tell a tenant of
//! the server's network.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use reqwest::{Certificate, Client, Response, redirect};
use sha2::Sha256;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use super::guard::{Forbidden, Guard, Guarded, Lookup};
use super::message::Message;
use crate::certificates::{cause, fault};

/// For everything: look-up, connection, request and the head of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// For the body of an answer, which nobody reads: one that is short and there keeps the connection usable.
const DRAIN: Duration = Duration::from_millis(100);
const DRAIN_BYTES: usize = 64 * 1024;
/// Connections to one host that are kept while nothing is sent, and for how long.
const IDLE_CONNECTIONS: usize = 16;
const IDLE: Duration = Duration::from_secs(30);

const USER_AGENT: &str = "PhalaCloud-Webhook/1.0";
/// Answers by which a receiver says that it does not believe the signature.
const DISBELIEF: [u16; 3] = [400, 401, 403];

/// The secrets of an endpoint that are valid now.
pub struct Secrets {
    pub current: Zeroizing<String>,
    pub previous: Option<Zeroizing<String>>,
    /// The secret before is valid until then.
    pub previous_until: Timestamp,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Of the answer; 0 when there was none.
    pub status: u16,
    /// Empty when the message was taken.
    pub error: String,
    pub took: Duration,
}

impl Attempt {
    pub fn succeeded(&self) -> bool {
        self.error.is_empty()
    }
}

/// Sends messages to whoever the guard permits.
#[derive(Clone)]
pub struct Sender {
    client: Client,
    guard: Arc<Guard>,
}

impl Sender {
    /// `authorities`: who may sign a receiver's certificate, beside those that the host trusts.
    pub fn new(guard: Arc<Guard>, authorities: &[Certificate], lookup: Arc<dyn Lookup>) -> Result<Self, Error> {
        // The client takes the process's choice; where none was made (tests), this is it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .dns_resolver(Guarded { guard: guard.clone(), lookup })
            .tls_certs_merge(authorities.iter().cloned())
            // A proxy would connect in our place, past the guard.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(TIMEOUT)
            .http1_only()
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .user_agent(USER_AGENT)
            .build()
            .map_err(Error::internal)?;
        Ok(Self { client, guard })
    }

    /// Sends a message once. While two secrets are valid and the receiver does not believe the one, it is asked again with
    /// the other, so that a rotation loses nothing whenever the receiver learns of it.
    pub async fn send(&self, url: &str, message: &Message, secrets: &Secrets, now: Timestamp) -> Attempt {
        let began = Instant::now();
        let previous = secrets.previous.as_ref().filter(|_| now < secrets.previous_until);
        let sent = async {
            let (status, error) = self.post(url, message, &secrets.current, previous, now).await;
            match previous {
                Some(previous) if DISBELIEF.contains(&status) => {
                    self.post(url, message, previous, Some(&secrets.current), now).await
                }
                _ => (status, error),
            }
        };
        let (status, error) =
            tokio::time::timeout(TIMEOUT, sent).await.unwrap_or_else(|_| (0, "No answer within 10 s.".to_owned()));
        Attempt { status, error, took: began.elapsed() }
    }

    async fn post(
        &self,
        url: &str,
        message: &Message,
        secret: &str,
        other: Option<&Zeroizing<String>>,
        now: Timestamp,
    ) -> (u16, String) {
        let parsed = Url::parse(url).ok().filter(|url| self.guard.permits_host(url));
        let allowed = parsed.filter(|url| url.scheme() == "https" || self.guard.http);
        let Some(url) = allowed else { return (0, "The URL leads to an address that is not allowed.".to_owned()) };
        let timestamp = now.seconds();
        let mut request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("x-webhook-id", &message.id)
            .header("x-webhook-event", message.name)
            .header("x-webhook-timestamp", timestamp)
            .header("x-webhook-signature", signature(secret, timestamp, &message.body));
        if let Some(other) = other {
            request = request.header("x-webhook-signature-other", signature(other, timestamp, &message.body));
        }
        match request.body(message.body.clone()).send().await {
            Ok(response) => {
                let status = response.status();
                drain(response).await;
                let error = match status.as_u16() {
                    _ if status.is_success() => String::new(),
                    code @ 300..=399 => format!("Redirected with {code}; redirects are not followed."),
                    code => format!("Answered with {code}."),
                };
                (status.as_u16(), error)
            }
            Err(error) => (0, words(&error)),
        }
    }
}

/// Reads what is left of an answer if it is short and there; else its connection is closed.
async fn drain(mut response: Response) {
    let rest = async {
        let mut read = 0;
        while let Ok(Some(piece)) = response.chunk().await {
            read += piece.len();
            if read > DRAIN_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN, rest).await;
}

fn words(error: &reqwest::Error) -> String {
    let words = if cause::<Forbidden>(error).is_some() {
        "The URL's name leads to an address that is not allowed."
    } else if let Some(tls) = cause::<rustls::Error>(error) {
        match fault(tls) {
            Some(fault) => return format!("The receiver's certificate {fault}."),
            None => "No TLS connection could be made.",
        }
    } else if error.is_timeout() {
        "No answer within 10 s."
    } else if error.is_connect() {
        "No connection could be made."
    } else {
        "The connection ended before there was an answer."
    };
    words.to_owned()
}

/// `sha256=` and the HMAC-SHA256 of time and body in hex, as the contract has it.
pub fn signature(secret: &str, timestamp: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(timestamp.to_string().as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_contract() {
        // As `openssl dgst -sha256 -hmac whsec_test` says of the same bytes.
        let made = signature("whsec_test", 1_700_000_000, "{}");
        assert_eq!(made, "sha256=35495024f4ef3f94e5a93e22221544c4b75e9a42300cd965ab81cb85cd994e91");
        assert_ne!(made, signature("whsec_test", 1_700_000_001, "{}"));
        assert_ne!(made, signature("whsec_other", 1_700_000_000, "{}"));
    }
}
