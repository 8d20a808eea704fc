//! Lines from a guest. The one rule: a line costs at most [`MAX_LINE`] bytes of memory however long it is.

use std::io;

use holdfast_model::guest::MAX_LINE;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A reader of lines that throws away those that are too long.
pub struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that hold no newline.
    searched: usize,
    /// Within a line that is too long.
    skipping: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), searched: 0, skipping: false }
    }

    /// The next line without its newline; `None` at the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            while let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                if !std::mem::take(&mut self.skipping) && line.len() <= MAX_LINE {
                    line.pop();
                    return Ok(Some(line));
                }
            }
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE {
                self.skipping = true;
            }
            if self.skipping {
                self.buffer = Vec::new();
                self.searched = 0;
            }
            self.buffer.reserve(16 * 1024);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_lines_are_dropped_and_short_ones_kept() {
        let mut input = b"\none\n".to_vec();
        input.extend(vec![b'x'; MAX_LINE * 3]);
        input.extend(b"\ntwo\n");
        input.extend(vec![b'y'; MAX_LINE - 1]);
        input.extend(b"\nunfinished");
        let mut lines = Lines::new(input.as_slice());
        let mut lengths = Vec::new();
        while let Some(line) = lines.next().await.expect("read") {
            assert!(lines.buffer.capacity() < 3 * MAX_LINE);
            lengths.push(line.len());
        }
        assert_eq!(lengths, [0, 3, 3, MAX_LINE - 1]);
    }
}
