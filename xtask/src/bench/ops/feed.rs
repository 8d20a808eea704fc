//! Following the server's stream of events: how the load generator knows that an operation is over without asking.
//!
//! The one rule: an operation's end may be heard before the request that began it is answered, so an end that nobody waits
//! for yet is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::oneshot;

use super::http::{Connection, Target};

pub const STREAM: &str = "/holdfast/v1/operations/stream";
/// An operation that is not over by then is lost.
const LIMIT: Duration = Duration::from_secs(120);

/// The `data:` lines of a stream, as they arrive.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// Holds the connection open.
    _connection: Connection,
}

impl Lines {
    pub async fn open(target: &Target) -> Result<Self> {
        let mut connection = Connection::open(target).await?;
        let body = connection.stream(STREAM).await?;
        Ok(Self { body, buffer: BytesMut::new(), _connection: connection })
    }

    /// The JSON of the next event; `None` when the stream has ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                if let Some(data) = line.strip_prefix(b"data:") {
                    return Ok(Some(line.slice_ref(data.trim_ascii())));
                }
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

enum Slot {
    Awaited(oneshot::Sender<bool>),
    Over(bool),
}

/// Which resources' operations are over.
#[derive(Clone)]
pub struct Ends(Arc<Mutex<HashMap<String, Slot>>>);

impl Ends {
    /// Follows the stream from now on, until the value is dropped everywhere.
    pub async fn follow(target: &Target) -> Result<Self> {
        let mut lines = Lines::open(target).await?;
        let ends = Self(Arc::default());
        let weak = Arc::downgrade(&ends.0);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next().await {
                let Some(slots) = weak.upgrade() else { return };
                if let Some((resource, done)) = end_of(&line) {
                    Self(slots).tell(resource, done);
                }
            }
        });
        Ok(ends)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, resource: String, done: bool) {
        let mut slots = self.lock();
        match slots.remove(&resource) {
            Some(Slot::Awaited(sender)) => drop(sender.send(done)),
            _ => drop(slots.insert(resource, Slot::Over(done))),
        }
    }

    /// Waits until the operation that was asked of this resource is over. Fails when the operation did.
    pub async fn wait(&self, resource: &str) -> Result<()> {
        let receiver = {
            let mut slots = self.lock();
            match slots.remove(resource) {
                Some(Slot::Over(done)) => Err(done),
                _ => {
                    let (sender, receiver) = oneshot::channel();
                    slots.insert(resource.to_owned(), Slot::Awaited(sender));
                    Ok(receiver)
                }
            }
        };
        let done = match receiver {
            Err(done) => done,
            Ok(receiver) => {
                let told = tokio::time::timeout(LIMIT, receiver).await;
                told.with_context(|| format!("the operation on {resource} does not end"))??
            }
        };
        if !done {
            bail!("the operation on {resource} failed");
        }
        Ok(())
    }
}

/// Resource and outcome, if this is an operation's last event: it belongs to no step and is no start.
fn end_of(line: &[u8]) -> Option<(String, bool)> {
    let event: Value = serde_json::from_slice(line).ok()?;
    let name = event["event_type"].as_str()?;
    if !event["step"].is_null() || name.ends_with(".start") {
        return None;
    }
    Some((event["resource_id"].as_str()?.to_owned(), name.ends_with(".end")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_has_no_step_and_starts_nothing() {
        let end = |text: &str| end_of(text.as_bytes());
        let of =
            |kind: &str, step: &str| format!(r#"{{"event_type":"instance.{kind}","step":{step},"resource_id":"a"}}"#);
        assert_eq!(end(&of("create.end", "null")), Some(("a".to_owned(), true)));
        assert_eq!(end(&of("create.error", "null")), Some(("a".to_owned(), false)));
        assert_eq!(end(&of("create.start", "null")), None);
        assert_eq!(end(&of("create.boot.end", "\"boot\"")), None);
    }
}
