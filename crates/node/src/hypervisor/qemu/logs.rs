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

use super::argv::{SERIAL_LOG, STDERR_LOG, STDOUT_LOG};
use crate::hypervisor::{LogSink, stream_error};

pub const CAP: u64 = 4 * 1024 * 1024;
/// Old files that are kept, `.1` being the newest.
pub const KEEP: usize = 3;
/// How often a follower looks for more.
const LOOK: Duration = Duration::from_millis(200);
const BLOCK: usize = 64 * 1024;

fn old(path: &Path, n: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Rotates the logs of the VM in `folder` that have grown too large.
pub fn rotate(folder: &Path) {
    for name in [SERIAL_LOG, STDOUT_LOG, STDERR_LOG] {
        let path = folder.join(name);
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
    copied.map(drop)
}

/// Writes a log to `sink`, oldest line first. `since` and `until` do not apply: these lines carry no times.
pub async fn read(folder: &Path, name: &str, options: &LogOptions, sink: &mut dyn LogSink) -> Result<(), StreamError> {
    if !folder.is_dir() {
        return Err(stream_error("no_such_vm", "nothing of this VM is on the node"));
    }
    let path = folder.join(name);
    let channel = if name == STDERR_LOG { 2 } else { 1 };
    let internal = |e: io::Error| stream_error("internal", e.to_string());
    let mut files: Vec<PathBuf> = (1..=KEEP).rev().map(|n| old(&path, n)).filter(|p| p.exists()).collect();
    files.push(path.clone());
    let (first, mut position) = start(&files, options.tail).map_err(internal)?;
    for file in &files[first..] {
        if !copy(file, &mut position, channel, sink).await.map_err(internal)? {
            return Ok(());
        }
        if *file != path {
            position = 0;
        }
    }
    while options.follow && folder.is_dir() {
        tokio::time::sleep(LOOK).await;
        if fs::metadata(&path).map_or(0, |m| m.len()) < position {
            position = 0;
        }
        if !copy(&path, &mut position, channel, sink).await.map_err(internal)? {
            return Ok(());
        }
    }
    Ok(())
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
async fn copy(path: &Path, position: &mut u64, channel: u8, sink: &mut dyn LogSink) -> io::Result<bool> {
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
        *position += read as u64;
        if !sink.write(channel, Bytes::from(block)).await {
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
        let total: u64 =
            fs::read_dir(dir.path()).expect("list").flatten().map(|e| e.metadata().map_or(0, |m| m.len())).sum();
        assert_eq!(total, KEEP as u64 * CAP + 4);
        assert_eq!(fs::read(old(&path, 1)).expect("read")[0], 5);
    }
}
