//! HTTP as a fast client speaks it: one kept connection, one request after the other.
//!
//! The one rule: the client shares its cores with the server, so it does no more than send, receive and look at a clock.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use holdfast_harness::client::VERSION_DEPLOY;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Where requests go, and the API key that they carry.
#[derive(Debug, Clone)]
pub struct Target {
    /// `127.0.0.1:8440`.
    pub address: String,
    pub key: String,
}

/// A connection that is kept.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    target: Target,
}

impl Connection {
    pub async fn open(target: &Target) -> Result<Self> {
        let stream =
            TcpStream::connect(&target.address).await.with_context(|| format!("connect {}", target.address))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what went wrong before that is what the request fails with.
        tokio::spawn(connection);
        Ok(Self { sender, target: target.clone() })
    }

    /// The body of a 2xx answer; any other one is an error.
    pub async fn send(&mut self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Bytes> {
        self::body(self.request(method, path, headers, body).await?, path).await
    }

    pub async fn get(&mut self, path: &str) -> Result<Bytes> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// The same with another API key and schema version.
    pub async fn get_as(&mut self, key: &str, version: &str, path: &str) -> Result<Bytes> {
        body(self.ask_as(key, version, path).await?, path).await
    }

    /// The length of a 2xx answer's body, of which nothing is kept.
    pub async fn length(&mut self, path: &str) -> Result<usize> {
        length(self.request(Method::GET, path, &[], Bytes::new()).await?, path).await
    }

    /// The same with another API key and schema version.
    pub async fn length_as(&mut self, key: &str, version: &str, path: &str) -> Result<usize> {
        length(self.ask_as(key, version, path).await?, path).await
    }

    async fn ask_as(&mut self, key: &str, version: &str, path: &str) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .uri(path)
            .header("host", &self.target.address)
            .header("x-api-key", key)
            .header("x-phala-version", version)
            .body(Full::default())?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }

    /// The status of whatever is answered with this key; none when it is empty.
    pub async fn status_as(&mut self, key: &str, path: &str) -> Result<StatusCode> {
        let mut request = Request::builder().uri(path).header("host", &self.target.address);
        if !key.is_empty() {
            request = request.header("x-api-key", key);
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::default())?).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let answer = self.send(Method::POST, path, &[("content-type", "application/json")], body).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// An answer whose body goes on.
    pub async fn stream(&mut self, path: &str) -> Result<Incoming> {
        let response = self.request(Method::GET, path, &[], Bytes::new()).await?;
        if !response.status().is_success() {
            bail!("{path} was answered with {}", response.status());
        }
        Ok(response.into_body())
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.target.address)
            .header("x-api-key", &self.target.key)
            .header("x-phala-version", VERSION_DEPLOY);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }
}

/// The body of a 2xx answer.
async fn body(response: Response<Incoming>, path: &str) -> Result<Bytes> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{path} was answered with {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

async fn length(response: Response<Incoming>, path: &str) -> Result<usize> {
    if !response.status().is_success() {
        return body(response, path).await.map(|body| body.len());
    }
    let (mut body, mut length) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(length)
}
