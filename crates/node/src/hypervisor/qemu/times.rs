//! When the bytes of a log were written, which QEMU does not say.
//!
//! The one rule: marks are an estimate from above, and never more than that. A mark says how long a log was at some moment,
//! so what lies before it had been written by then; marks that do not fit their log are thrown away, and without any the
//! time of the file itself stands for all of it.
//!
//! ```text
//!   serial.log  -> serial.times       16 bytes a mark: length, microseconds since 1970, both little-endian
//!   serial.log.1 -> serial.times.1    ...
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use holdfast_model::Timestamp;

use super::logs::{KEEP, old};

const MARK: usize = 16;
/// More marks than this are thinned out: a log that grows by a line a second keeps minutes apart in time.
const MOST: usize = 4096;

/// Of the newest file of a log.
fn beside(log: &Path) -> PathBuf {
    log.with_extension("times")
}

/// What is known of the times of one file of a log; `age` is 0 for the newest.
pub struct Times {
    marks: Vec<(u64, Timestamp)>,
    /// When the file was last written to.
    last: Timestamp,
}

impl Times {
    pub fn of(log: &Path, age: usize) -> Self {
        let (file, marks) = match age {
            0 => (log.to_owned(), beside(log)),
            age => (old(log, age), old(&beside(log), age)),
        };
        let written = fs::metadata(file).and_then(|m| m.modified()).ok();
        let micros = written.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_micros());
        let last = Timestamp(i64::try_from(micros).unwrap_or(i64::MAX));
        Self { marks: fs::read(marks).map(|bytes| parse(&bytes)).unwrap_or_default(), last }
    }

    /// By when the bytes before `end` had been written.
    pub fn at(&self, end: u64) -> Timestamp {
        let next = self.marks.partition_point(|(length, _)| *length < end);
        self.marks.get(next).map_or(self.last, |(_, at)| *at)
    }
}

/// Marks whose lengths rise; what does not is no mark of this log.
fn parse(bytes: &[u8]) -> Vec<(u64, Timestamp)> {
    let number = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).unwrap_or_default();
    let mut marks: Vec<(u64, Timestamp)> = Vec::new();
    for mark in bytes.chunks_exact(MARK) {
        let (length, at) = (u64::from_le_bytes(number(&mark[..8])), i64::from_le_bytes(number(&mark[8..])));
        if marks.last().is_none_or(|(before, _)| *before < length) {
            marks.push((length, Timestamp(at)));
        }
    }
    marks
}

fn bytes(marks: &[(u64, Timestamp)]) -> Vec<u8> {
    marks.iter().flat_map(|(length, at)| [length.to_le_bytes(), at.0.to_le_bytes()]).flatten().collect()
}

/// Writes down how long a log is by now, if it has grown.
pub fn mark(log: &Path, now: Timestamp) -> io::Result<()> {
    let length = fs::metadata(log)?.len();
    let path = beside(log);
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
    let size = file.metadata()?.len();
    let mut known = 0;
    if let Some(last) = size.checked_sub(MARK as u64) {
        let mut mark = [0; MARK];
        file.seek(SeekFrom::Start(last))?;
        file.read_exact(&mut mark)?;
        known = parse(&mark).first().map_or(0, |(length, _)| *length);
    }
    if known > length || !size.is_multiple_of(MARK as u64) {
        // The log was cut back without them, or a mark was.
        file.set_len(0)?;
        known = 0;
    }
    if length > known {
        file.write_all(&bytes(&[(length, now)]))?;
        if size > (MOST * MARK) as u64 {
            thin_out(&path)?;
        }
    }
    Ok(())
}

/// Leaves out every second mark, but not the last.
fn thin_out(path: &Path) -> io::Result<()> {
    let marks = parse(&fs::read(path)?);
    let last = marks.len().saturating_sub(1);
    let kept: Vec<_> = marks.iter().enumerate().filter(|(i, _)| i % 2 == 1 || *i == last).map(|(_, m)| *m).collect();
    replace(path, &kept)
}

fn replace(path: &Path, marks: &[(u64, Timestamp)]) -> io::Result<()> {
    let unfinished = path.with_extension("times-new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&bytes(marks))?;
    fs::rename(unfinished, path)
}

/// The log was rotated: what follows `cut` in it is the newest of the old files now, and the log is empty.
pub fn rotated(log: &Path, cut: u64) -> io::Result<()> {
    let path = beside(log);
    for n in (1..KEEP).rev() {
        match fs::rename(old(&path, n), old(&path, n + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let marks = fs::read(&path).map(|bytes| parse(&bytes)).unwrap_or_default();
    let moved: Vec<_> = marks.into_iter().filter(|(l, _)| *l > cut).map(|(l, at)| (l - cut, at)).collect();
    replace(&old(&path, 1), &moved)?;
    File::create(&path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).expect("open");
        file.write_all(text.as_bytes()).expect("write");
    }

    #[test]
    fn bytes_have_the_time_of_the_mark_after_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("serial.log");
        assert!(mark(&log, Timestamp(1)).is_err());
        for (n, text) in ["abc", "", "de", "f"].into_iter().enumerate() {
            append(&log, text);
            mark(&log, Timestamp(n as i64 + 1)).expect("a mark");
        }
        append(&log, "unmarked");
        let at = |end| Times::of(&log, 0).at(end).0;
        assert_eq!((at(0), at(1), at(3), at(4), at(5), at(6)), (1, 1, 1, 3, 3, 4));
        assert!(at(7) > 1_700_000_000_000_000, "as the file says");

        // Its end moves with the file, and the newest begins anew.
        rotated(&log, 2).expect("rotated");
        let times = Times::of(&log, 1);
        assert_eq!((times.at(1).0, times.at(2).0, times.at(4).0), (1, 3, 4));
        assert!(Times::of(&log, 0).marks.is_empty());
        // A log that was cut back without its marks has none.
        mark(&log, Timestamp(5)).expect("a mark");
        fs::write(&log, "x").expect("cut");
        mark(&log, Timestamp(6)).expect("a mark");
        assert_eq!(Times::of(&log, 0).marks, [(1, Timestamp(6))]);
        fs::write(beside(&log), [1; 7]).expect("rubbish");
        mark(&log, Timestamp(7)).expect("a mark");
        assert_eq!(Times::of(&log, 0).marks, [(1, Timestamp(7))]);
    }

    #[test]
    fn marks_are_few_however_long_a_log_grows() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("serial.log");
        let file = File::create(&log).expect("a file");
        for second in 1..=3 * MOST as i64 {
            file.set_len(second.unsigned_abs()).expect("longer");
            mark(&log, Timestamp(second)).expect("a mark");
        }
        let times = Times::of(&log, 0);
        assert!(times.marks.len() <= MOST + 2, "{}", times.marks.len());
        // Thinned out again and again, the oldest are the farthest apart.
        for (second, most) in [(1, 32), (2 * MOST as i64, 8), (3 * MOST as i64, 1)] {
            let off = times.at(second.unsigned_abs()).0 - second;
            assert!((0..most).contains(&off), "{second}: {off}");
        }
    }
}
