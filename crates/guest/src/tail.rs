//! The last words of a program, in memory.
//!
//! The one rule: bounded, whatever is written. The oldest lines go first, an endless line is cut, and nothing of it is ever
//! on a disk.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_model::Timestamp;

/// A line longer than this is kept in pieces.
const MAX_LINE: usize = 16 * 1024;

/// A line as it was written, newline included (a cut one has none). No two lines of a program have the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: Timestamp,
    /// 1 for stdout, 2 for stderr.
    pub channel: u8,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<Line>,
    /// Time of the newest line.
    last: Timestamp,
    bytes: usize,
    /// Number of the first kept line, counted from the start of the program.
    first: u64,
    open: [Vec<u8>; 2],
    writers: usize,
    ended: bool,
}

/// Lines of one program or of several that belong together.
pub struct Tail {
    limit: usize,
    lines: Mutex<Lines>,
    changed: Condvar,
}

/// Held by a thread that still may write.
pub struct Writer<'a>(&'a Tail);

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.0.lock().writers -= 1;
        self.0.changed.notify_all();
    }
}

impl Tail {
    pub fn new(limit: usize) -> Self {
        Self { limit, lines: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn writer(&self) -> Writer<'_> {
        self.lock().writers += 1;
        Writer(self)
    }

    pub fn push(&self, channel: u8, data: &[u8]) {
        let mut at = now();
        let mut lines = self.lock();
        let slot = usize::from(channel == 2);
        let mut rest = data;
        while !rest.is_empty() {
            let room = MAX_LINE - lines.open[slot].len();
            let end = rest.iter().take(room).position(|b| *b == b'\n').map(|i| i + 1);
            let (piece, after) = rest.split_at(end.unwrap_or(rest.len().min(room)));
            lines.open[slot].extend_from_slice(piece);
            rest = after;
            if end.is_some() || lines.open[slot].len() >= MAX_LINE {
                let bytes = std::mem::take(&mut lines.open[slot]);
                lines.bytes += bytes.len();
                // Those that were read at once follow each other by a microsecond.
                at = at.max(Timestamp(lines.last.0 + 1));
                lines.last = at;
                lines.kept.push_back(Line { at, channel, bytes });
            }
        }
        while lines.bytes > self.limit {
            let Some(gone) = lines.kept.pop_front() else { break };
            lines.bytes -= gone.bytes.len();
            lines.first += 1;
        }
        drop(lines);
        self.changed.notify_all();
    }

    /// No more will come: whoever follows is let go.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until all writers are gone, but not for ever: an orphan may hold the pipe.
    pub fn settle(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut lines = self.lock();
        while lines.writers > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            lines = self.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Kept lines from number `from` on, the number to go on with, and whether that is all there will ever be.
    pub fn read(&self, from: u64) -> (Vec<Line>, u64, bool) {
        let lines = self.lock();
        let skip = usize::try_from(from.saturating_sub(lines.first)).unwrap_or(usize::MAX);
        let found: Vec<_> = lines.kept.iter().skip(skip).cloned().collect();
        (found, lines.first + lines.kept.len() as u64, lines.ended)
    }

    /// Waits until there is a line with number `from`, an end, or `limit` is over.
    pub fn wait(&self, from: u64, limit: Duration) {
        let lines = self.lock();
        let nothing_new = |l: &mut Lines| l.first + l.kept.len() as u64 <= from && !l.ended;
        drop(self.changed.wait_timeout_while(lines, limit, nothing_new));
    }

    /// What is kept of one channel, as text.
    pub fn text(&self, channel: u8) -> String {
        let lines = self.lock();
        let open = &lines.open[usize::from(channel == 2)];
        let kept = lines.kept.iter().filter(|l| l.channel == channel).map(|l| l.bytes.as_slice());
        let bytes: Vec<u8> = kept.chain([open.as_slice()]).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last `count` lines of both channels, without control characters.
    pub fn last_lines(&self, count: usize) -> String {
        let lines = self.lock();
        let open = lines.open.iter().filter(|o| !o.is_empty());
        let all: Vec<_> = lines.kept.iter().map(|l| &l.bytes).chain(open).collect();
        let texts: Vec<String> = all[all.len().saturating_sub(count)..]
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(600).collect())
            .collect();
        texts.join("\n").trim().to_owned()
    }
}

/// The wall clock of the guest.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let tail = Tail::new(1000);
        tail.push(1, b"one\ntw");
        tail.push(2, b"err\n");
        tail.push(1, b"o\nopen");
        let (lines, next, ended) = tail.read(0);
        let texts: Vec<_> = lines.iter().map(|l| (l.channel, String::from_utf8_lossy(&l.bytes).into_owned())).collect();
        assert_eq!(texts, [(1, "one\n".into()), (2, "err\n".into()), (1, "two\n".into())]);
        assert_eq!((next, ended), (3, false));
        assert_eq!(tail.text(1), "one\ntwo\nopen");
        assert_eq!(tail.last_lines(2), "two\nopen");
        assert!(tail.read(3).0.is_empty());
    }

    #[test]
    fn a_flood_keeps_its_end_alone() {
        let tail = Tail::new(100);
        for i in 0..1000 {
            tail.push(1, format!("line {i}\n").as_bytes());
        }
        tail.push(1, &[b'x'; 3 * MAX_LINE]);
        let (lines, next, _) = tail.read(0);
        assert!(lines.iter().map(|l| l.bytes.len()).sum::<usize>() <= 100);
        assert_eq!(next, 1003);
    }
}
