//! The server as the node sees it: one HTTP client for the few calls of the node protocol.
//!
//! The one rule: 409 means that this session is not known any more, and nothing else; everything that is neither that
//! nor success is tried again by the caller.

use std::time::Duration;

use async_trait::async_trait;
use holdfast_model::guest::Keys;
use holdfast_model::node::{DesiredPage, Register, Registered, Report, ReportAck};
use reqwest::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use reqwest::{Client, RequestBuilder, StatusCode};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use uuid::Uuid;

use crate::Error;
use crate::hypervisor::{KeyError, KeySource};

/// How long the server may hold a request for desired state.
const POLL: Duration = Duration::from_secs(25);
/// How long everything else may take.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the server does not know this session any more")]
    Stale,
    #[error("the server refuses the node token")]
    Unauthorized,
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("{0}")]
    Unreachable(String),
}

impl From<reqwest::Error> for CallError {
    fn from(error: reqwest::Error) -> Self {
        // The message without the URL, and with what lies beneath it.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Self::Unreachable(text)
    }
}

pub(crate) type Socket = WebSocketStream<reqwest::Upgraded>;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    http: Client,
    base: String,
}

impl Server {
    pub fn new(url: &str, token: &str) -> Result<Self, Error> {
        let base = url.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&base).map_err(|_| Error::BadServerUrl(url.to_owned()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(Error::BadServerUrl(url.to_owned()));
        }
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Error::Config("the node token holds characters that no token has".to_owned()))?;
        bearer.set_sensitive(true);
        // A proxy of the environment is for the world outside, not for a server on this host.
        let loopback = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let builder = if loopback { Client::builder().no_proxy() } else { Client::builder() };
        // Without TLS nobody need be trusted, and to read everybody who is takes as long as the rest of a start.
        let builder = if parsed.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
        let http = builder
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, bearer)]))
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Duration::from_secs(20))
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .build()
            .map_err(|e| Error::Http(e.to_string()))?;
        Ok(Self { http, base })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/node/v1/{path}", self.base)
    }

    async fn call<T: serde::de::DeserializeOwned>(request: RequestBuilder) -> Result<T, CallError> {
        let answer = request.send().await?;
        match answer.status() {
            status if status.is_success() => Ok(answer.json().await?),
            StatusCode::CONFLICT => Err(CallError::Stale),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CallError::Unauthorized),
            status => Err(CallError::Status(status)),
        }
    }

    pub async fn register(&self, register: &Register) -> Result<Registered, CallError> {
        Self::call(self.http.post(self.url("register")).timeout(PATIENCE).json(register)).await
    }

    /// Waits for something newer than `since`.
    pub async fn desired(&self, session: Uuid, since: u64) -> Result<DesiredPage, CallError> {
        let query =
            [("session", session.to_string()), ("since", since.to_string()), ("wait_s", POLL.as_secs().to_string())];
        Self::call(self.http.get(self.url("desired")).query(&query).timeout(POLL + PATIENCE)).await
    }

    pub async fn report(&self, report: &Report) -> Result<ReportAck, CallError> {
        Self::call(self.http.post(self.url("report")).timeout(PATIENCE).json(report)).await
    }

    /// Opens the stream socket. The upgrade goes through the same client, so TLS and its trust are the same.
    pub async fn stream(&self, session: Uuid) -> Result<Socket, CallError> {
        let key = generate_key();
        let request = self
            .http
            .get(self.url("stream"))
            .query(&[("session", session.to_string())])
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", &key);
        let answer = tokio::time::timeout(PATIENCE, request.send())
            .await
            .map_err(|_| CallError::Unreachable("no answer to the upgrade".to_owned()))??;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => {}
            StatusCode::CONFLICT => return Err(CallError::Stale),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(CallError::Unauthorized),
            status => return Err(CallError::Status(status)),
        }
        let accept = answer.headers().get("Sec-WebSocket-Accept").and_then(|v| v.to_str().ok());
        if accept != Some(derive_accept_key(key.as_bytes()).as_str()) {
            return Err(CallError::Unreachable("the server does not speak WebSocket".to_owned()));
        }
        Ok(WebSocketStream::from_raw_socket(answer.upgrade().await?, Role::Client, None).await)
    }
}

#[async_trait]
impl KeySource for Server {
    async fn keys(&self, uuid: Uuid) -> Result<Keys, KeyError> {
        let request = self.http.post(self.url(&format!("vms/{uuid}/keys"))).timeout(PATIENCE);
        Self::call(request).await.map_err(|error| match error {
            CallError::Status(status) if status.is_client_error() => KeyError::Refused,
            _ => KeyError::Unreachable,
        })
    }
}
