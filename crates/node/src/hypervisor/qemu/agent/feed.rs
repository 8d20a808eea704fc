//! One stream of a container's log, for everybody who follows it.
//!
//! The one rule: a feed waits for nobody. It keeps the newest entries within a bound and drops the oldest; whoever has not
//! read those yet goes back to the guest for them (`follow.rs`).
//!
//! ```text
//!   guest --entries--> Ring [ first .. end )  <-- each follower's own place, a number
//!                        \-- dropped at the front when it is full
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use holdfast_model::guest::LogOptions;
use holdfast_model::node::StreamError;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Line;
use crate::hypervisor::stream_error;

/// What a feed keeps, in bytes and in entries.
const BYTES: usize = if cfg!(test) { 2048 } else { 1 << 20 };
const ENTRIES: usize = 8192;
/// Bytes that are handed out at once.
const BATCH: usize = 32 * 1024;
/// Containers of one VM that are followed at the same time; each is a task of the guest's.
const FEEDS: usize = 8;
/// Followers that read what lies behind at the same time; each is a task of the guest's, which has 16.
const BEHIND: usize = 6;
/// Of two channels one may be up to this many nanoseconds ahead of the other, and never is by more than microseconds.
pub(super) const SECOND: i64 = 1_000_000_000;

/// What was written to a log at one time: a line, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Nanoseconds since 1970.
    pub at: i64,
    /// 1 for stdout, 2 for stderr.
    pub channel: u8,
    pub data: Bytes,
}

impl Entry {
    /// Was written after `other` for certain.
    pub fn is_later(&self, other: &Self) -> bool {
        let margin = if self.channel == other.channel { 0 } else { SECOND };
        self.at > other.at.saturating_add(margin)
    }
}

/// Where somebody is in a ring who has read up to some entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Here.
    At(u64),
    /// The entry is still on its way.
    Ahead,
    /// The entry has been dropped, or was written before the feed began; this one is later.
    Behind(u64),
}

/// The newest entries of a log.
#[derive(Debug, Default)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
    /// Number of the oldest one that is kept.
    first: u64,
    bytes: usize,
    ended: Option<Result<(), StreamError>>,
}

impl Ring {
    fn push(&mut self, entry: Entry) {
        self.bytes += entry.data.len();
        self.entries.push_back(entry);
        while self.bytes > BYTES || self.entries.len() > ENTRIES {
            let Some(gone) = self.entries.pop_front() else { break };
            self.bytes -= gone.data.len();
            self.first += 1;
        }
    }

    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn place(&self, read: &Entry) -> Place {
        let number = |index: usize| self.first + index as u64;
        if let Some(index) = self.entries.iter().rposition(|entry| entry == read) {
            return Place::At(number(index) + 1);
        }
        let later = self.entries.iter().position(|entry| entry.is_later(read));
        later.map_or(Place::Ahead, |index| Place::Behind(number(index)))
    }
}

/// What there is for somebody at a place.
#[derive(Debug)]
pub(super) enum Next {
    Entries(Vec<Entry>),
    /// Nothing yet.
    Nothing,
    /// What comes next has been dropped.
    Dropped,
    Ended(Result<(), StreamError>),
}

struct Shared {
    ring: Mutex<Ring>,
    bell: watch::Sender<()>,
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Ring)) {
        change(&mut self.ring());
        self.bell.send_replace(());
    }
}

/// A container's log as it grows. Ends with its last follower.
pub(super) struct Feed {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl Feed {
    fn open(line: Line, container: String) -> Self {
        let shared = Arc::new(Shared { ring: Mutex::default(), bell: watch::Sender::new(()) });
        let task = tokio::spawn(fill(line, container, shared.clone()));
        Self { shared, _task: AbortOnDropHandle::new(task) }
    }

    /// Number of the entry that comes next.
    pub fn end(&self) -> u64 {
        self.shared.ring().end()
    }

    pub fn has_ended(&self) -> bool {
        self.shared.ring().ended.is_some()
    }

    pub fn place(&self, read: &Entry) -> Place {
        self.shared.ring().place(read)
    }

    /// Entries from number `from` on, some at a time.
    pub fn next(&self, from: u64) -> Next {
        let ring = self.shared.ring();
        let Some(skip) = from.checked_sub(ring.first) else { return Next::Dropped };
        let mut room = BATCH;
        let fits = |entry: &&Entry| {
            let fits = room > 0;
            room = room.saturating_sub(entry.data.len());
            fits
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let entries: Vec<Entry> = ring.entries.iter().skip(skip).take_while(fits).cloned().collect();
        match &ring.ended {
            Some(result) if entries.is_empty() => Next::Ended(result.clone()),
            None if entries.is_empty() => Next::Nothing,
            _ => Next::Entries(entries),
        }
    }

    /// Rings with every change. Look at the feed after taking it and before waiting for it.
    pub fn bell(&self) -> watch::Receiver<()> {
        self.shared.bell.subscribe()
    }
}

async fn fill(line: Line, container: String, shared: Arc<Shared>) {
    // With the newest entry that there is, by which a follower sees that it has caught up with a log that is at rest.
    let options = LogOptions { follow: true, tail: Some(1), ..LogOptions::default() };
    let ended = async {
        let mut stream = line.entries(container, options).await?;
        while let Some(entry) = stream.next_entry().await? {
            let size = entry.data.len();
            shared.change(|ring| ring.push(entry));
            stream.passed_on(size).await;
        }
        Ok(())
    };
    let ended = ended.await;
    shared.change(|ring| ring.ended = Some(ended));
}

/// The feeds of one VM.
pub(super) struct Feeds {
    open: Mutex<HashMap<String, Weak<Feed>>>,
    /// Of those who read what lies behind.
    pub behind: Semaphore,
}

impl Default for Feeds {
    fn default() -> Self {
        Self { open: Mutex::default(), behind: Semaphore::new(BEHIND) }
    }
}

impl Feeds {
    /// The feed of a container, begun if there is none. One that has ended is not joined: the container may run again.
    pub fn feed(&self, line: &Line, container: &str) -> Result<Arc<Feed>, StreamError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, feed| feed.strong_count() > 0);
        if let Some(feed) = open.get(container).and_then(Weak::upgrade)
            && !feed.has_ended()
        {
            return Ok(feed);
        }
        if open.len() >= FEEDS {
            return Err(stream_error("internal", "the logs of too many containers of this VM are followed"));
        }
        let feed = Arc::new(Feed::open(line.clone(), container.to_owned()));
        open.insert(container.to_owned(), Arc::downgrade(&feed));
        Ok(feed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: i64, channel: u8, text: &'static str) -> Entry {
        Entry { at, channel, data: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn who_has_read_what_is_found_again() {
        let mut ring = Ring::default();
        assert_eq!(ring.place(&entry(5, 1, "a")), Place::Ahead);
        // Two parts of one line, and a line of the other channel that overtook by a little.
        for entry in [entry(5, 1, "a"), entry(5, 1, "b"), entry(4, 2, "c"), entry(9, 1, "d")] {
            ring.push(entry);
        }
        assert_eq!(ring.place(&entry(5, 1, "a")), Place::At(1));
        assert_eq!(ring.place(&entry(5, 1, "b")), Place::At(2));
        assert_eq!(ring.place(&entry(4, 2, "c")), Place::At(3));
        assert_eq!(ring.place(&entry(9, 1, "d")), Place::At(4));
        assert_eq!(ring.place(&entry(3, 1, "before")), Place::Behind(0));
        assert_eq!(ring.place(&entry(9, 1, "its rest")), Place::Ahead);
        assert_eq!(ring.place(&entry(7, 2, "on its way")), Place::Ahead);
        ring.push(entry(8 + SECOND, 1, "e"));
        assert_eq!(ring.place(&entry(7, 2, "long gone")), Place::Behind(4));
    }

    #[test]
    fn a_ring_is_bounded() {
        let mut ring = Ring::default();
        for at in 0..100_000 {
            ring.push(entry(at, 1, if at % 7 == 0 { "0123456789" } else { "" }));
        }
        assert!(ring.bytes <= BYTES && ring.entries.len() <= ENTRIES);
        assert_eq!(ring.end(), 100_000);
        ring.push(Entry { at: 1, channel: 1, data: Bytes::from(vec![0; BYTES + 1]) });
        assert_eq!((ring.bytes, ring.first), (0, 100_001));
    }
}
