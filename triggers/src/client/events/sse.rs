//! Server-sent events (the WHATWG HTML standard, section 9.2), as far as the API sends them.

/// The longest block: an event with the largest payload is a quarter as long.
const LONGEST: usize = 4 << 20;

/// What came up to an empty line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// The event's id.
    pub id: Option<String>,
    /// Its data; `None` if it was only a comment.
    pub data: Option<String>,
}

/// Reads blocks from what comes.
#[derive(Debug, Default)]
pub struct Blocks {
    bytes: Vec<u8>,
    /// Up to where no end of a line is.
    searched: usize,
    block: Block,
}

impl Blocks {
    /// More has come. `false` if it cannot be what the API sends.
    #[must_use]
    pub fn push(&mut self, piece: &[u8]) -> bool {
        self.bytes.extend_from_slice(piece);
        let held = self.block.data.as_ref().map_or(0, String::len);
        self.bytes.len() + held <= LONGEST
    }

    /// The next whole block.
    pub fn next(&mut self) -> Option<Block> {
        loop {
            let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| self.searched + end) else {
                self.searched = self.bytes.len();
                return None;
            };
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            self.searched = 0;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                return Some(std::mem::take(&mut self.block));
            }
            self.field(line);
        }
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.block.id = Some(value.to_owned()),
            "data" => match &mut self.block.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                none => *none = Some(value.to_owned()),
            },
            // A comment, the type, which the data has too, or how soon to come again.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_in_any_pieces() {
        let text = ": hello\nretry: 2000\n\nid: e1\nevent: a\ndata: {\"é\":1,\r\ndata: 2}\n\n:\n\nid: e2\n";
        let whole = |pieces: usize| {
            let mut blocks = Blocks::default();
            let mut got = Vec::new();
            for piece in text.as_bytes().chunks(pieces) {
                assert!(blocks.push(piece));
                got.extend(std::iter::from_fn(|| blocks.next()));
            }
            got
        };
        let got = whole(text.len());
        assert_eq!(got.len(), 3);
        assert_eq!(got[1].id.as_deref(), Some("e1"));
        assert_eq!(got[1].data.as_deref(), Some("{\"é\":1,\n2}"));
        assert_eq!(got[2], Block::default());
        for pieces in 1..10 {
            assert_eq!(whole(pieces), got);
        }
    }

    #[test]
    fn what_never_ends_is_not_kept() {
        let mut blocks = Blocks::default();
        assert!(blocks.push(b"data: x"));
        assert!(!blocks.push(&vec![b'x'; LONGEST]));
    }
}
