//! Cuts the bytes of the port into lines.
//!
//! The one rule: a line that is too long is dropped as a whole, and the next one is read as if nothing had been. What was
//! taken out is wiped, because keys come this way.

use holdfast_model::guest::MAX_LINE;
use zeroize::{Zeroize, Zeroizing};

#[derive(Default)]
pub struct Lines {
    open: Vec<u8>,
    /// The open line is over the limit and its rest is skipped.
    skipping: bool,
}

impl Lines {
    /// Adds what was read and gives the lines that it completes, without their newlines.
    pub fn push(&mut self, mut data: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
        let mut whole = Vec::new();
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            self.extend(&data[..end]);
            data = &data[end + 1..];
            let line = Zeroizing::new(std::mem::take(&mut self.open));
            if !std::mem::take(&mut self.skipping) && !line.is_empty() {
                whole.push(line);
            }
        }
        self.extend(data);
        whole
    }

    fn extend(&mut self, data: &[u8]) {
        if self.skipping || self.open.len() + data.len() >= MAX_LINE {
            self.skipping = true;
            self.clear();
            return;
        }
        let needed = self.open.len() + data.len();
        if needed > self.open.capacity() {
            // Growing in place could leave a copy of a key behind.
            let mut larger = Vec::with_capacity(needed.next_power_of_two().max(4096));
            larger.extend_from_slice(&self.open);
            self.clear();
            self.open = larger;
        }
        self.open.extend_from_slice(data);
    }

    fn clear(&mut self) {
        self.open.zeroize();
        self.open = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(lines: &[Zeroizing<Vec<u8>>]) -> Vec<String> {
        lines.iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect()
    }

    #[test]
    fn pieces_make_lines_and_empty_ones_do_not_count() {
        let mut lines = Lines::default();
        assert!(lines.push(b"\n\nab").is_empty());
        assert_eq!(texts(&lines.push(b"c\nd\n\ne")), ["abc", "d"]);
        assert_eq!(texts(&lines.push(b"\n")), ["e"]);
    }

    #[test]
    fn a_huge_line_is_dropped_and_the_next_one_read() {
        let mut lines = Lines::default();
        for _ in 0..300 {
            assert!(lines.push(&[b'x'; 8192]).is_empty());
            assert!(lines.open.capacity() <= MAX_LINE);
        }
        assert_eq!(texts(&lines.push(b"\nnext\n")), ["next"]);
    }

    proptest! {
        #[test]
        fn cutting_does_not_depend_on_the_pieces(data in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300), size in 1usize..50) {
            let whole = Lines::default().push(&data);
            let mut lines = Lines::default();
            let pieces: Vec<_> = data.chunks(size).flat_map(|c| lines.push(c)).collect();
            prop_assert_eq!(whole, pieces);
        }
    }
}
