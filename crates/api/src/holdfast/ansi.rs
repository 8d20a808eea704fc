//! Takes colours and other orders to a terminal out of a log.
//!
//! The one rule: a line is never lost. An order that is cut off, or that was none, ends at the latest with its line, and an
//! order may come in two pieces of the stream.

/// Where in an order the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    Text,
    /// After the escape character.
    Escape,
    /// `ESC [`: parameters, then one letter.
    Order,
    /// `ESC ]` and its kind: a text of its own, up to a bell or `ESC \`.
    Words,
    /// An escape character within those.
    WordsEscape,
}

const ESC: u8 = 0x1b;
const BELL: u8 = 0x07;

/// Of one channel of a log.
#[derive(Debug, Default)]
pub struct Plain {
    at: At,
}

impl Plain {
    /// The piece without its orders.
    pub fn strip(&mut self, piece: &[u8]) -> Vec<u8> {
        piece.iter().copied().filter(|byte| self.is_text(*byte)).collect()
    }

    fn is_text(&mut self, byte: u8) -> bool {
        let (next, text) = match (self.at, byte) {
            (_, b'\n') => (At::Text, true),
            (At::Words, ESC) => (At::WordsEscape, false),
            (_, ESC) => (At::Escape, false),
            (At::Text, _) => (At::Text, true),
            (At::Escape, b'[') => (At::Order, false),
            (At::Escape, b']' | b'P' | b'X' | b'^' | b'_') => (At::Words, false),
            // `ESC ( B`: what comes between may be several.
            (At::Escape, b' '..=b'/') => (At::Escape, false),
            (At::Escape, b'0'..=b'~') => (At::Text, false),
            (At::Order, b' '..=b'?') => (At::Order, false),
            (At::Order, b'@'..=b'~') => (At::Text, false),
            // No order after all.
            (At::Escape | At::Order, _) => (At::Text, true),
            (At::Words, BELL) | (At::WordsEscape, b'\\') => (At::Text, false),
            (At::Words | At::WordsEscape, _) => (At::Words, false),
        };
        self.at = next;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_go_and_text_stays_however_it_is_cut() {
        let cases = [
            ("plain\ttext\r\n", "plain\ttext\r\n"),
            ("\x1b[1;32mgreen\x1b[0m é\n", "green é\n"),
            ("\x1b]0;a title\x07after", "after"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b(Bset\x1b=mode\x1b[?25lhidden", "setmodehidden"),
            ("cut off \x1b[1\nnext line\n", "cut off \nnext line\n"),
            ("a title without end \x1b]0;abc\nnext\n", "a title without end \nnext\n"),
            ("\x1b\x1b[31mtwice", "twice"),
            ("none: \x1bé", "none: é"),
        ];
        for (log, text) in cases {
            for size in 1..=log.len() {
                let mut plain = Plain::default();
                let found: Vec<u8> = log.as_bytes().chunks(size).flat_map(|piece| plain.strip(piece)).collect();
                assert_eq!(String::from_utf8_lossy(&found), text, "{log:?} in pieces of {size}");
            }
        }
    }
}
