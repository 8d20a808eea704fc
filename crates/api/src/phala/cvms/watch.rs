//! Watching a CVM until it is as wanted: the stream behind `GET /cvms/{cvm_id}/state?target=`.
//!
//! The one rule: every look is at the database, none at a memory of ours, so a stream may end on one server and go on
//! on another. A look is one query per interval, and a stream ends by itself after its timeout.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use holdfast_model::error::Error;
use holdfast_model::vm::VmStatus;
use serde_json::json;
use tokio::time::Instant;

use super::state::CvmState;
use crate::App;
use crate::extract::Params;
use crate::phala::view;

/// What a reader waits for.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    target: VmStatus,
    interval: Duration,
    timeout: Duration,
}

impl Watch {
    /// Reads `target`, `interval` (5 s) and `timeout` (300 s). `None` without a target.
    pub fn read(params: &Params) -> Result<Option<Self>, Error> {
        let seconds = |name: &str, least: i64, most: i64, default: u64| {
            let number = params.integer(name, least, most)?;
            Ok::<_, Error>(Duration::from_secs(number.map_or(default, i64::unsigned_abs)))
        };
        let Some(target) = params.word("target", VmStatus::parse)? else { return Ok(None) };
        let (interval, timeout) = (seconds("interval", 5, 30, 5)?, seconds("timeout", 10, 600, 300)?);
        Ok(Some(Self { target, interval, timeout }))
    }

    /// The stream: `state` at every look, and at the end one of `complete`, `timeout` and `error`.
    pub fn stream(self, app: App, vm: i64) -> Response {
        let start = Instant::now();
        let watcher = Watcher { watch: self, app, vm, start, next: start, ready: VecDeque::new(), over: false };
        let events = futures_util::stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((Ok::<_, Infallible>(event), watcher))
        });
        Sse::new(events).into_response()
    }
}

struct Watcher {
    watch: Watch,
    app: App,
    vm: i64,
    start: Instant,
    /// When to look again.
    next: Instant,
    /// Events that nobody has read yet.
    ready: VecDeque<Event>,
    /// The last event is among `ready`, or was read.
    over: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Event> {
        if self.ready.is_empty() && !self.over {
            let end = self.start + self.watch.timeout;
            tokio::time::sleep_until(self.next.min(end)).await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "a watched CVM cannot be read");
                self.finish("error", json!({ "error": error.message, "elapsed": self.elapsed() }));
            }
            if !self.over && Instant::now() >= end {
                let word = self.watch.target.as_str();
                let error = format!("The CVM was not {word} in time.");
                self.finish("timeout", json!({ "error": error, "elapsed": self.elapsed(), "target": word }));
            }
            self.next += self.watch.interval;
        }
        self.ready.pop_front()
    }

    async fn look(&mut self) -> Result<(), Error> {
        let vm = self.app.control.store.vm(self.vm).await?;
        let vm = vm.ok_or_else(|| Error::internal("a CVM's row is gone"))?;
        let (status, settled) = (vm.status()?, !vm.in_progress());
        let cvm = view::load_one(&self.app.control, vm).await?;
        self.ready.push_back(event("state", &json!(CvmState::of(&cvm))));
        if status == self.watch.target && settled {
            let word = status.as_str();
            self.finish("complete", json!({ "status": word, "elapsed": self.elapsed(), "target": word }));
        } else if status == VmStatus::Deleted {
            self.finish("error", json!({ "error": "The CVM was deleted.", "elapsed": self.elapsed() }));
        }
        Ok(())
    }

    fn finish(&mut self, name: &str, data: serde_json::Value) {
        self.ready.push_back(event(name, &data));
        self.over = true;
    }

    /// Whole seconds since the stream began.
    fn elapsed(&self) -> u64 {
        self.start.elapsed().as_secs()
    }
}

/// JSON of ours has no line breaks, so it is one `data` line, as the clients need it.
fn event(name: &str, data: &serde_json::Value) -> Event {
    Event::default().event(name).data(data.to_string())
}
