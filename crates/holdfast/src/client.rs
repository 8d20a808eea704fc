//! How the commands talk to a server: `HOLDFAST_URL` and `HOLDFAST_API_KEY`, by default the server of the data folder.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::Value;

use crate::{Common, load, refused};

/// A file may take this long.
const DOWNLOAD: Duration = Duration::from_secs(3600);

pub struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Client {
    pub fn new(common: &Common) -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty());
        let file = |name: &str| -> Result<String> {
            let path = load(common, Vec::new())?.data_dir()?.join(name);
            let text = std::fs::read_to_string(&path).map_err(|e| {
                refused(format!(
                    "cannot read {} ({e}); start `holdfast serve`, or set HOLDFAST_URL and HOLDFAST_API_KEY",
                    path.display()
                ))
            })?;
            Ok(text.trim().to_owned())
        };
        let url = match variable("HOLDFAST_URL") {
            Some(url) => url,
            None => file("url")?,
        };
        let key = match variable("HOLDFAST_API_KEY") {
            Some(key) => key,
            None => file("admin.key")?,
        };
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), key })
    }

    /// Reads a path of our own surface.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, None).await
    }

    /// Asks for something to be done.
    pub async fn post(&self, path: &str) -> Result<Value> {
        self.request(Method::POST, path, None).await
    }

    /// Reads a path whose answer is a file, in pieces.
    pub async fn download(&self, path: &str, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
        let url = format!("{}/holdfast/v1{path}", self.url);
        let answer = self.http.get(&url).timeout(DOWNLOAD).header("X-API-Key", &self.key).send().await;
        let mut answer = answer.with_context(|| format!("cannot reach {}", self.url))?;
        if !answer.status().is_success() {
            return Err(said(&answer.json().await.unwrap_or_default()));
        }
        while let Some(piece) = answer.chunk().await.context("the answer ended early")? {
            take(&piece).context("cannot write the file")?;
        }
        Ok(())
    }

    /// Any request to a path of our own surface. An answer without a body is null.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let url = format!("{}/holdfast/v1{path}", self.url);
        let mut request = self.http.request(method, &url).header("X-API-Key", &self.key);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.with_context(|| format!("cannot reach {}", self.url))?;
        let status = answer.status();
        if status == reqwest::StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        let body: Value =
            answer.json().await.with_context(|| format!("{} did not answer as holdfast does", self.url))?;
        if status.is_success() {
            return Ok(body);
        }
        Err(said(&body))
    }
}

/// What the server said was wrong.
fn said(body: &Value) -> anyhow::Error {
    let error = &body["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    anyhow::anyhow!("{} {} {}", text("code"), text("message"), text("hint"))
}

/// Runs a command's requests.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// A word of the command line as one segment of a path.
pub fn segment(word: &str) -> String {
    url::form_urlencoded::byte_serialize(word.as_bytes()).collect::<String>().replace('+', "%20")
}

/// A text field of an answer; empty when it is null.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// Rows as a table whose columns are as wide as they need to be.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}
