//! What the tasks say: answers, and log data as the host has room for it.

use std::sync::{Arc, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::guest::{Container, FromGuest, SystemStats};
use holdfast_model::node::StreamError;

use super::{Agent, LOG_CHUNK, QUEUE_BYTES};
use crate::logs::Stop;

impl Agent {
    pub fn answer_containers(&self, id: u64, result: Result<Vec<Container>, String>) {
        let (containers, error) = match result {
            Ok(containers) => (containers, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut inner = self.lock();
        inner.push(FromGuest::Containers { id, containers, error });
        inner.tasks -= 1;
        drop(inner);
        self.ring();
    }

    pub fn answer_stats(&self, id: u64, stats: SystemStats) {
        let mut inner = self.lock();
        inner.push(FromGuest::Stats { id, stats: Some(Box::new(stats)), error: None });
        inner.tasks -= 1;
        drop(inner);
        self.ring();
    }

    /// Queues log data as the host has room for it. False when nobody listens any more.
    pub fn send_log(&self, id: u64, stop: &Stop, channel: u8, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            match self.queue_log(id, stop, channel, None, data, 1) {
                Some(sent) => data = &data[sent..],
                None => return false,
            }
        }
        true
    }

    /// Queues what was written to a log at one time (nanoseconds since 1970), whole: cut only where it is larger than one
    /// message, into entries of the same time. False when nobody listens any more.
    pub fn send_entry(&self, id: u64, stop: &Stop, channel: u8, at: i64, data: &[u8]) -> bool {
        data.chunks(LOG_CHUNK).all(|part| self.queue_log(id, stop, channel, Some(at), part, part.len()).is_some())
    }

    /// Waits until the host has given credit for `least` bytes and queues as many as fit into one message. Answers how many
    /// that were, or `None` when nobody listens any more.
    fn queue_log(
        &self,
        id: u64,
        stop: &Stop,
        channel: u8,
        at: Option<i64>,
        data: &[u8],
        least: usize,
    ) -> Option<usize> {
        let mut inner = self.lock();
        loop {
            if stop.stopped() {
                return None;
            }
            let full = inner.queued_bytes >= QUEUE_BYTES;
            let stream = inner.streams.get_mut(&id)?;
            let credit = usize::try_from(stream.credit).unwrap_or(usize::MAX);
            let room = data.len().min(LOG_CHUNK).min(credit);
            if room < least || full {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            stream.credit -= room as u64;
            inner.push(FromGuest::Log { id, channel, data: STANDARD.encode(&data[..room]), at });
            drop(inner);
            self.ring();
            return Some(room);
        }
    }

    /// Ends a stream; said only if the host did not close it.
    pub fn end_log(&self, id: u64, stop: &Arc<Stop>, error: Option<StreamError>) {
        let mut inner = self.lock();
        inner.tasks -= 1;
        // After a new `Hello` the same id may be somebody else's stream.
        if inner.streams.get(&id).is_some_and(|s| Arc::ptr_eq(&s.stop, stop)) {
            inner.streams.remove(&id);
            inner.push(FromGuest::LogEnd { id, error });
        }
        drop(inner);
        self.ring();
    }
}
