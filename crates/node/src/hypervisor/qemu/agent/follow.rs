//! Following a container's log beside others who do.
//!
//! The one rule: each follower gets every entry from its start on, once and in order. It knows where it is by the last entry
//! it has read, never by counting, so it may go from a stream of its own to the shared feed and back at any time.
//!
//! ```text
//!   Behind --a stream of its own, up to the log's end--> is the last entry in the feed?
//!      ^                                                     |yes        |not yet
//!      |                                                     v           v
//!      +--- the feed dropped what comes next ----------- Feed(place) <- Ahead
//! ```
//!
//! A reader that takes nothing for a while gives its stream back to those who wait for one, and gets another when it goes on.
//! So a slow reader misses nothing that the guest still has, and holds up nobody.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_model::guest::LogOptions;
use holdfast_model::node::StreamError;
use holdfast_model::time::{moment, nanos_text};

use super::Line;
use super::feed::{Entry, Feed, Next, Place, SECOND};
use crate::clock;
use crate::hypervisor::LogSink;

/// A reader that takes nothing for so long gives its stream back.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// What is on its way through the feed is waited for this long at first, twice that the next time.
const ON_ITS_WAY: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

/// What became of reading what lies behind.
enum Read {
    /// Up to the log's end, or as far as the reader took it; true when something was new.
    Up(bool),
    /// Nobody listens any more.
    Left,
}

/// True when the log with these options can be followed beside others.
pub(super) fn is_shared(options: &LogOptions) -> bool {
    options.follow && options.until.is_none()
}

/// Follows a log until it ends or nobody listens.
pub(super) async fn follow(
    line: &Line,
    container: &str,
    options: &LogOptions,
    sink: &mut dyn LogSink,
) -> Result<(), StreamError> {
    let feed = line.feeds.feed(line, container)?;
    let since = options.since.as_deref().and_then(|text| moment(text, clock::now()));
    let since = since.map(|time| time.micros().saturating_mul(1000));
    Follower { line, container, options, sink, since, feed, last: None }.run().await
}

struct Follower<'a> {
    line: &'a Line,
    container: &'a str,
    options: &'a LogOptions,
    sink: &'a mut dyn LogSink,
    /// Nanoseconds since 1970.
    since: Option<i64>,
    feed: Arc<Feed>,
    /// What was read last, or passed over because only what comes after it is wanted.
    last: Option<Entry>,
}

impl Follower<'_> {
    async fn run(&mut self) -> Result<(), StreamError> {
        // What the feed gets from here on is new to a follower that finds nothing behind.
        let begin = self.feed.end();
        let mut place = None;
        let (mut patience, mut over) = (ON_ITS_WAY, false);
        loop {
            if let Some(from) = place
                && self.feed(from).await?
            {
                return Ok(());
            }
            // Asked before reading: what is behind by then is all there is.
            over |= self.feed.has_ended();
            let Read::Up(news) = self.behind().await? else { return Ok(()) };
            let Some(last) = &self.last else {
                place = Some(begin);
                continue;
            };
            let mut bell = self.feed.bell();
            place = match self.feed.place(last) {
                Place::At(number) => Some(number),
                // It should have been there: the guest's clock was set back. What is later goes on.
                Place::Behind(number) if !news => Some(number),
                Place::Behind(_) => None,
                Place::Ahead if over => return self.end(),
                Place::Ahead => {
                    let arrives = async {
                        while matches!(self.feed.place(last), Place::Ahead) && !self.feed.has_ended() {
                            let _ = bell.changed().await;
                        }
                    };
                    if tokio::time::timeout(patience, arrives).await.is_err() {
                        patience = (patience * 2).min(LONGEST);
                    }
                    match self.feed.place(last) {
                        Place::At(number) => Some(number),
                        _ => None,
                    }
                }
            };
        }
    }

    /// How the feed ended.
    fn end(&self) -> Result<(), StreamError> {
        match self.feed.next(self.feed.end()) {
            Next::Ended(result) => result,
            _ => Ok(()),
        }
    }

    /// Passes on what the feed has from `from` on. False when it does not have that any more, true at the end.
    async fn feed(&mut self, mut from: u64) -> Result<bool, StreamError> {
        let mut bell = self.feed.bell();
        loop {
            match self.feed.next(from) {
                Next::Entries(entries) => {
                    from += entries.len() as u64;
                    self.last = entries.last().cloned();
                    if !write(self.sink, self.options.timestamps, self.since, &entries).await {
                        return Ok(true);
                    }
                }
                Next::Nothing => drop(bell.changed().await),
                Next::Dropped => return Ok(false),
                Next::Ended(result) => return result.map(|()| true),
            }
        }
    }

    /// Reads what lies behind, by a stream of its own: from the start that was asked for, or from the last entry on.
    async fn behind(&mut self) -> Result<Read, StreamError> {
        let only_new = self.last.is_none() && self.options.tail == Some(0);
        let options = match &self.last {
            // What the other channel wrote after it may carry an earlier time.
            Some(last) => {
                LogOptions { since: Some(nanos_text(last.at.saturating_sub(SECOND))), ..LogOptions::default() }
            }
            None if only_new => LogOptions { tail: Some(1), ..LogOptions::default() },
            None => LogOptions { follow: false, timestamps: false, ..self.options.clone() },
        };
        // The semaphore is never closed.
        let slot = self.line.feeds.behind.acquire().await.ok();
        let mut stream = self.line.entries(self.container.to_owned(), options).await?;
        // It begins with what was read already, at the latest at the last entry.
        let (mut known, mut news) = (self.last.clone(), false);
        while let Some(entry) = stream.next_entry().await? {
            let size = entry.data.len();
            if let Some(last) = &known {
                let later = entry.is_later(last);
                if later || entry == *last {
                    known = None;
                }
                if !later {
                    stream.passed_on(size).await;
                    continue;
                }
            }
            self.last = Some(entry.clone());
            news = true;
            if !only_new {
                let entries = [entry];
                let mut writing = pin!(write(self.sink, self.options.timestamps, self.since, &entries));
                match tokio::time::timeout(STALL, &mut writing).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(Read::Left),
                    Err(_) => {
                        drop((stream, slot));
                        return Ok(if writing.await { Read::Up(true) } else { Read::Left });
                    }
                }
            }
            stream.passed_on(size).await;
        }
        Ok(Read::Up(news))
    }
}

/// Passes entries on, those of one channel together. False when nobody listens any more.
async fn write(sink: &mut dyn LogSink, timestamps: bool, since: Option<i64>, entries: &[Entry]) -> bool {
    let wanted: Vec<&Entry> = entries.iter().filter(|entry| since.is_none_or(|since| entry.at >= since)).collect();
    for group in wanted.chunk_by(|one, next| one.channel == next.channel) {
        let data = match group {
            [entry] if !timestamps => entry.data.clone(),
            _ => together(group, timestamps),
        };
        if !sink.write(group[0].channel, data).await {
            return false;
        }
    }
    true
}

fn together(entries: &[&Entry], timestamps: bool) -> Bytes {
    let mut data = BytesMut::new();
    for entry in entries {
        if timestamps {
            data.extend_from_slice(nanos_text(entry.at).as_bytes());
            data.extend_from_slice(b" ");
        }
        data.extend_from_slice(&entry.data);
    }
    data.freeze()
}
