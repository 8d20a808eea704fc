//! HTTP requests with an API key, in the versions that the official clients ask for.
//!
//! The one rule: an answer is returned whatever its status is; only a request without any answer is an error here.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::http::{HeaderMap, Request};
use ureq::typestate::AgentScope;

/// What the official command line sends while it deploys.
pub const VERSION_DEPLOY: &str = "2025-10-28";
/// What it sends for everything else.
pub const VERSION: &str = "2026-01-21";

#[derive(Clone)]
pub struct Client {
    agent: Agent,
    /// `http://127.0.0.1:8440`, without a slash at its end.
    pub base: String,
    /// Sent as `X-API-Key` unless empty.
    pub key: String,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// The body as JSON, or an error that quotes the answer when the status is not 2xx.
    pub fn ok(self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("the server answered {}: {}", self.status, self.text.chars().take(600).collect::<String>());
        }
        Ok(self.json())
    }
}

impl Client {
    pub fn new(base: impl Into<String>, key: impl Into<String>) -> Self {
        Self { base: base.into(), key: key.into(), ..Self::through(Self::config().build().into()) }
    }

    /// One that asks anybody, without a key, in this way.
    pub fn through(agent: Agent) -> Self {
        Self { agent, base: String::new(), key: String::new() }
    }

    /// How every client here asks: no redirect is followed.
    pub fn config() -> ConfigBuilder<AgentScope> {
        let patience = Some(Duration::from_secs(180));
        Agent::config_builder().http_status_as_error(false).timeout_global(patience).max_redirects(0)
    }

    /// Any request. `path` is either absolute on this server or a whole URL.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Result<Answer> {
        let url = if path.starts_with('/') { format!("{}{path}", self.base) } else { path.to_owned() };
        let mut request = Request::builder().method(method).uri(&url);
        if !self.key.is_empty() && url.starts_with(&self.base) {
            request = request.header("X-API-Key", &self.key);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match body {
            Some(bytes) => self.agent.run(request.body(bytes)?),
            None => self.agent.run(request.body(())?),
        };
        let mut answer = answer.with_context(|| format!("{method} {url}"))?;
        let text = answer.body_mut().with_config().limit(64 * 1024 * 1024).read_to_string();
        Ok(Answer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            text: text.with_context(|| format!("{method} {url}: body"))?,
        })
    }

    /// The body of a 200 while it comes, for as long as it does. The URL is signed: no key is sent.
    pub fn stream(&self, url: &str) -> Result<impl BufRead + use<>> {
        let config = Agent::config_builder().timeout_connect(Some(Duration::from_secs(60))).max_redirects(0).build();
        let answer = Agent::from(config).get(url).call().context("open a stream")?;
        Ok(BufReader::new(answer.into_body().into_reader()))
    }

    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, &[("X-Phala-Version", VERSION)], None)
    }

    pub fn post(&self, path: &str, body: Option<&Value>) -> Result<Answer> {
        let headers = [("X-Phala-Version", VERSION), ("Content-Type", "application/json")];
        self.send("POST", path, &headers, Some(body.map(|b| b.to_string().into_bytes()).unwrap_or_default()))
    }

    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.send("DELETE", path, &[("X-Phala-Version", VERSION)], None)
    }

    /// The first half of a deployment: `compose` is the text of a docker-compose file; `extra` overrides or adds fields.
    pub fn provision(&self, name: &str, compose: &str, extra: &Value) -> Result<Answer> {
        self.deploy_request("/api/v1/cvms/provision", &provision_body(name, compose, extra))
    }

    /// The second half: what [`Self::provision`] answered becomes a CVM.
    pub fn commit(&self, provisioned: &Value, encrypted_env: Option<&str>) -> Result<Answer> {
        let mut body = serde_json::json!({
            "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"],
        });
        if let Some(env) = encrypted_env {
            body["encrypted_env"] = env.into();
        }
        self.deploy_request("/api/v1/cvms", &body)
    }

    /// Both halves, without env; answers the CVM's uuid.
    pub fn deploy(&self, name: &str, compose: &str, extra: &Value) -> Result<String> {
        let provisioned = self.provision(name, compose, extra)?.ok().context("provision")?;
        let cvm = self.commit(&provisioned, None)?.ok().context("commit")?;
        cvm["vm_uuid"].as_str().map(str::to_owned).context("the commit answer has no vm_uuid")
    }

    fn deploy_request(&self, path: &str, body: &Value) -> Result<Answer> {
        let headers = [("X-Phala-Version", VERSION_DEPLOY), ("Content-Type", "application/json")];
        self.send("POST", path, &headers, Some(body.to_string().into_bytes()))
    }

    /// The URLs on which a CVM's published ports answer.
    pub fn app_urls(&self, cvm: &str) -> Result<Vec<String>> {
        let detail = self.get(&format!("/api/v1/cvms/{cvm}"))?.ok()?;
        let lists = ["endpoints", "public_urls"].into_iter().filter_map(|key| detail[key].as_array());
        let urls = lists.flatten().filter_map(|entry| entry["app"].as_str());
        let mut urls: Vec<_> = urls.filter(|url| url.starts_with("http")).map(str::to_owned).collect();
        urls.dedup();
        Ok(urls)
    }
}

/// What [`Client::provision`] sends.
pub fn provision_body(name: &str, compose: &str, extra: &Value) -> Value {
    let mut body = serde_json::json!({
        "name": name,
        "compose_file": {
            "allowed_envs": [], "docker_compose_file": compose, "name": "", "public_logs": true, "public_sysinfo": true,
        },
        "instance_type": "tdx.small",
        "kms": "PHALA",
        "listed": false,
    });
    if let (Some(body), Some(extra)) = (body.as_object_mut(), extra.as_object()) {
        body.extend(extra.clone());
    }
    body
}
