//! The log files of a VM: how they stay small, and how they are read.
//!
//! The one rule: QEMU writes on while no node runs, so rotation may not need its help: a file that has grown past
//! [`CAP`] is copied aside and truncated, which is safe because QEMU appends. What is written between copy and truncation
//! is lost; on disk there are at most [`KEEP`] old files of [`CAP`] bytes, and [`CAP`] plus what a guest can write between
//! two looks (one second), of each log. While no node runs nothing bounds the file; it is cut back at the first look.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::guest::LogOptions;
use holdfast_model::node::StreamError;
use holdfast_model::{Timestamp, time};

use super::argv::{SERIAL_LOG, STDERR_LOG, STDOUT_LOG};
use super::times::{self, Times};
use crate::clock;
use crate::hypervisor::{LogSink, stream_error};

pub const CAP: u64 = 4 * 1024 * 1024;
/// Old files that are kept, `.1` being the newest.
pub const KEEP: usize = 3;
/// How often a follower looks for more.
const LOOK: Duration = Duration::from_millis(200);
const BLOCK: usize = 64 * 1024;

pub fn old(path: &Path, n: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Marks the time in the logs of the VM in `folder`, and rotates those that have grown too large.
pub fn rotate(folder: &Path) {
    for name in [SERIAL_LOG, STDOUT_LOG, STDERR_LOG] {
        let path = folder.join(name);
        match times::mark(&path, clock::now()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::debug!(path = %path.display(), %error, "cannot mark the time in a log");
            }
            _ => {}
        }
        if fs::metadata(&path).is_ok_and(|m| m.len() > CAP)
            && let Err(error) = rotate_one(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot rotate a log");
        }
    }
}

fn rotate_one(path: &Path) -> io::Result<()> {
    for n in (1..KEEP).rev() {
        match fs::rename(old(path, n), old(path, n + 1)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CAP)))?;
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(old(path, 1))?;
    let copied = io::copy(&mut (&mut file).take(CAP), &mut copy);
    // Truncated even when the copy failed: a full disk is what this is here to prevent.
    file.set_len(0)?;
    times::rotated(path, length.saturating_sub(CAP))?;
    copied.map(drop)
}

/// Writes a log to `sink`, oldest line first. Its lines carry no times; those of [`times`] stand for them.
pub async fn read(folder: &Path, name: &str, options: &LogOptions, sink: &mut dyn LogSink) -> Result<(), StreamError> {
    if !folder.is_dir() {
        return Err(stream_error("no_such_vm", "nothing of this VM is on the node"));
    }
    let path = folder.join(name);
    let channel = if name == STDERR_LOG { 2 } else { 1 };
    let internal = |e: io::Error| stream_error("internal", e.to_string());
    let mut dated = Dated::of(options)?;
    let mut files: Vec<(usize, PathBuf)> =
        (1..=KEEP).rev().map(|n| (n, old(&path, n))).filter(|(_, p)| p.exists()).collect();
    files.push((0, path.clone()));
    let paths: Vec<_> = files.iter().map(|(_, path)| path.clone()).collect();
    let (first, mut position) = start(&paths, options.tail).map_err(internal)?;
    for (age, file) in &files[first..] {
        if let Some(dated) = &mut dated {
            dated.times = Times::of(&path, *age);
        }
        if !copy(file, &mut position, channel, &mut dated, sink).await.map_err(internal)? {
            return Ok(());
        }
        if *file != path {
            position = 0;
        }
    }
    while options.follow && folder.is_dir() && !dated.as_ref().is_some_and(Dated::over) {
        tokio::time::sleep(LOOK).await;
        if fs::metadata(&path).map_or(0, |m| m.len()) < position {
            position = 0;
        }
        if let Some(dated) = &mut dated {
            dated.times = Times::of(&path, 0);
        }
        if !copy(&path, &mut position, channel, &mut dated, sink).await.map_err(internal)? {
            return Ok(());
        }
    }
    match dated.map(|mut dated| dated.end(position)) {
        Some(rest) if !rest.is_empty() => drop(sink.write(channel, rest.into()).await),
        _ => {}
    }
    Ok(())
}

/// Lines of a log that are wanted for their times, or that are to carry them.
struct Dated {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    timestamps: bool,
    /// Of the file that is being read.
    times: Times,
    /// The line that has not ended yet.
    line: Vec<u8>,
}

impl Dated {
    /// `None` when times do not matter.
    fn of(options: &LogOptions) -> Result<Option<Self>, StreamError> {
        let LogOptions { since, until, timestamps, .. } = options;
        let moment = |text: &Option<String>| match text {
            Some(text) => time::moment(text, clock::now()).map(Some).ok_or_else(|| {
                stream_error("internal", format!("{text:?} is no time: RFC 3339, unix seconds or a duration like 10m"))
            }),
            None => Ok(None),
        };
        let (since, until) = (moment(since)?, moment(until)?);
        let matters = since.is_some() || until.is_some() || *timestamps;
        let times = Times::of(Path::new(""), 0);
        Ok(matters.then_some(Self { since, until, timestamps: *timestamps, times, line: Vec::new() }))
    }

    /// Nothing that is wanted comes any more.
    fn over(&self) -> bool {
        self.until.is_some_and(|until| clock::now() > until)
    }

    /// The wanted lines that a block completes, which begins at `position` of its file.
    fn lines(&mut self, block: &[u8], position: u64) -> Vec<u8> {
        let (mut wanted, mut end) = (Vec::new(), position);
        for piece in block.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(piece);
            end += piece.len() as u64;
            if piece.ends_with(b"\n") || self.line.len() >= BLOCK {
                wanted.extend(self.end(end));
            }
        }
        wanted
    }

    /// The open line, if it is wanted.
    fn end(&mut self, end: u64) -> Vec<u8> {
        let (line, at) = (std::mem::take(&mut self.line), self.times.at(end));
        if line.is_empty() || self.since.is_some_and(|t| at < t) || self.until.is_some_and(|t| at > t) {
            return Vec::new();
        }
        match self.timestamps {
            true => [format!("{at} ").as_bytes(), &line].concat(),
            false => line,
        }
    }
}

/// Where the last `tail` lines begin: which file, and where in it.
fn start(files: &[PathBuf], tail: Option<u64>) -> io::Result<(usize, u64)> {
    let Some(mut wanted) = tail else { return Ok((0, 0)) };
    if wanted == 0 {
        let last = files.len() - 1;
        return Ok((last, fs::metadata(&files[last]).map_or(0, |m| m.len())));
    }
    let mut at_end = true;
    for (i, path) in files.iter().enumerate().rev() {
        let Ok(mut file) = File::open(path) else { continue };
        let mut end = file.metadata()?.len();
        while end > 0 {
            let begin = end.saturating_sub(BLOCK as u64);
            let mut block = vec![0; usize::try_from(end - begin).unwrap_or(BLOCK)];
            file.seek(SeekFrom::Start(begin))?;
            file.read_exact(&mut block)?;
            for (at, _) in block.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
                // The newline at the very end closes the last line and begins none.
                if std::mem::take(&mut at_end) && begin + at as u64 + 1 == end {
                    continue;
                }
                wanted -= 1;
                if wanted == 0 {
                    return Ok((i, begin + at as u64 + 1));
                }
            }
            at_end = false;
            end = begin;
        }
    }
    Ok((0, 0))
}

/// Writes a file from `position` to its end. False when nobody listens.
async fn copy(
    path: &Path,
    position: &mut u64,
    channel: u8,
    dated: &mut Option<Dated>,
    sink: &mut dyn LogSink,
) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    file.seek(SeekFrom::Start(*position))?;
    loop {
        let mut block = vec![0; BLOCK];
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(true);
        }
        block.truncate(read);
        if let Some(dated) = dated {
            block = dated.lines(&block, *position);
        }
        *position += read as u64;
        if !block.is_empty() && !sink.write(channel, Bytes::from(block)).await {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Default)]
    struct Text(Vec<u8>);

    #[async_trait::async_trait]
    impl LogSink for Text {
        async fn write(&mut self, _channel: u8, data: Bytes) -> bool {
            self.0.extend_from_slice(&data);
            true
        }
    }

    async fn tail(folder: &Path, tail: Option<u64>) -> String {
        let mut text = Text::default();
        let options = LogOptions { tail, ..LogOptions::default() };
        read(folder, SERIAL_LOG, &options, &mut text).await.expect("read");
        String::from_utf8(text.0).expect("text")
    }

    #[tokio::test]
    async fn lines_from_the_end_across_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(SERIAL_LOG);
        fs::write(old(&path, 1), "a\nb\n").expect("write");
        fs::write(&path, "c\nd\n").expect("write");
        for (n, expected) in [(None, "a\nb\nc\nd\n"), (Some(0), ""), (Some(1), "d\n"), (Some(2), "c\nd\n")] {
            assert_eq!(tail(dir.path(), n).await, expected, "{n:?}");
        }
        assert_eq!(tail(dir.path(), Some(3)).await, "b\nc\nd\n");
        assert_eq!(tail(dir.path(), Some(9)).await, "a\nb\nc\nd\n");
        fs::write(&path, "c\nunfinished").expect("write");
        assert_eq!(tail(dir.path(), Some(1)).await, "unfinished");
        assert_eq!(
            read(&dir.path().join("none"), SERIAL_LOG, &LogOptions::default(), &mut Text::default())
                .await
                .expect_err("gone")
                .code,
            "no_such_vm"
        );
    }

    #[tokio::test]
    async fn lines_by_the_time_they_were_written_by() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(SERIAL_LOG);
        let read = async |options: LogOptions| {
            let mut text = Text::default();
            read(dir.path(), SERIAL_LOG, &options, &mut text).await.expect("read");
            String::from_utf8(text.0).expect("text")
        };
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).expect("open");
        let mut write = |text: &str, second: i64| {
            writer.write_all(text.as_bytes()).expect("write");
            times::mark(&path, Timestamp(second * 1_000_000)).expect("a mark");
        };
        write("one\ntwo\n", 100);
        write("thr", 200);
        write("ee\n", 300);
        fs::copy(&path, old(&path, 1)).expect("copy");
        File::options().write(true).open(&path).and_then(|f| f.set_len(0)).expect("cut");
        times::rotated(&path, 0).expect("rotated");
        write("four\nfi", 400);
        let options = |since: &str, until: &str| {
            let moment = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
            LogOptions { since: moment(since), until: moment(until), ..LogOptions::default() }
        };
        for (since, until, lines) in [
            ("50", "", "one\ntwo\nthree\nfour\nfi"),
            ("101", "", "three\nfour\nfi"),
            ("", "300", "one\ntwo\nthree\n"),
            ("250", "350", "three\n"),
            ("1970-01-01T00:06:40Z", "", "four\nfi"),
            ("10m", "", ""),
        ] {
            assert_eq!(read(options(since, until)).await, lines, "{since} to {until}");
        }
        let stamped = LogOptions { timestamps: true, tail: Some(2), ..LogOptions::default() };
        let at = "1970-01-01T00:06:40.000000Z";
        assert_eq!(read(stamped).await, format!("{at} four\n{at} fi"));
        // What is followed until a time that is over ends.
        let follow = LogOptions { follow: true, ..options("", "300") };
        assert_eq!(read(follow).await, "one\ntwo\nthree\n");
    }

    #[test]
    fn a_flood_is_cut_back_and_the_writer_goes_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(SERIAL_LOG);
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).expect("open");
        for round in 0..6u8 {
            let size = usize::try_from(CAP).expect("fits") + 1000;
            writer.write_all(&vec![round; size]).expect("write");
            rotate(dir.path());
            assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
        }
        writer.write_all(b"more").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"more");
        let logs = fs::read_dir(dir.path()).expect("list").flatten();
        let logs = logs.filter(|e| e.file_name().to_string_lossy().starts_with(SERIAL_LOG));
        let total: u64 = logs.map(|e| e.metadata().map_or(0, |m| m.len())).sum();
        assert_eq!(total, KEEP as u64 * CAP + 4);
        assert_eq!(fs::read(old(&path, 1)).expect("read")[0], 5);
    }
}
