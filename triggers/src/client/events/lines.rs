//! Lines of a file or of standard input, in parts that are posted at once.

use std::io::{self, BufRead, BufReader, Read};

/// The most events of a part: the API takes no more at once.
const EVENTS: usize = 1000;
/// How many bytes a part has, about: a quarter of what the API takes, so that there is progress to see.
const BYTES: usize = 1 << 20;
/// The longest line: an event is much shorter, and two such lines are not too large for the API at once.
const LONGEST: usize = 1 << 20;

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: u64,
    /// Its text, or what is wrong with it.
    pub text: Result<String, &'static str>,
}

/// Some lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The lines, without blank ones.
    pub lines: Vec<Line>,
    /// How many bytes of the whole have been read with them.
    pub read: u64,
}

/// Reads parts.
pub struct Parts<R> {
    reader: BufReader<R>,
    number: u64,
    read: u64,
}

impl<R: Read> Parts<R> {
    /// Of this.
    pub fn new(reader: R) -> Self {
        Self {
            reader: BufReader::with_capacity(BYTES, reader),
            number: 0,
            read: 0,
        }
    }

    /// The next one; `None` at the end. What a pipe has brought so far does not wait for more.
    pub fn next(&mut self) -> io::Result<Option<Part>> {
        let mut part = Part::default();
        let mut bytes = 0;
        while part.lines.len() < EVENTS && bytes < BYTES {
            let there = self.reader.buffer().contains(&b'\n');
            if !part.lines.is_empty() && !there {
                break;
            }
            let Some(text) = self.line()? else {
                break;
            };
            self.number += 1;
            if matches!(&text, Ok(text) if text.trim().is_empty()) {
                continue;
            }
            bytes += text.as_ref().map_or(0, String::len);
            part.lines.push(Line {
                number: self.number,
                text,
            });
        }
        part.read = self.read;
        Ok((!part.lines.is_empty()).then_some(part))
    }

    /// The next line; of one that is too long no more is kept than may be.
    fn line(&mut self) -> io::Result<Option<Result<String, &'static str>>> {
        let mut line = Vec::new();
        let (mut any, mut too_long) = (false, false);
        loop {
            let piece = self.reader.fill_buf()?;
            if piece.is_empty() {
                break;
            }
            any = true;
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(piece.len(), |end| end + 1);
            too_long |= line.len() + taken > LONGEST;
            if !too_long {
                line.extend_from_slice(&piece[..taken]);
            }
            self.reader.consume(taken);
            self.read += taken as u64;
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        if too_long {
            return Ok(Some(Err("is longer than 1 MiB")));
        }
        Ok(Some(String::from_utf8(line).map_err(|_| "is not UTF-8")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: impl AsRef<[u8]>) -> Vec<Part> {
        let mut parts = Parts::new(text.as_ref());
        std::iter::from_fn(|| parts.next().expect("memory can be read")).collect()
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_passed_over() {
        let parts = all("a\n\n \r\nb\r\nc");
        let lines: Vec<_> = parts
            .iter()
            .flat_map(|part| &part.lines)
            .map(|line| (line.number, line.text.clone().map(|text| text.trim().to_owned())))
            .collect();
        assert_eq!(
            lines,
            [
                (1, Ok("a".to_owned())),
                (4, Ok("b".to_owned())),
                (5, Ok("c".to_owned()))
            ]
        );
        assert_eq!(parts.last().map(|part| part.read), Some(10));
        assert_eq!(all(b"\xff\n")[0].lines[0].text, Err("is not UTF-8"));
    }

    #[test]
    fn parts_are_bounded() {
        let many = all("x\n".repeat(2500));
        let sizes: Vec<_> = many.iter().map(|part| part.lines.len()).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
        let large = format!("{}\n", "y".repeat(BYTES / 2));
        assert!(all(large.repeat(5)).iter().all(|part| part.lines.len() <= 2));
        let parts = all(format!("{}\nshort\n", "z".repeat(LONGEST + 1)));
        let lines: Vec<_> = parts.into_iter().flat_map(|part| part.lines).collect();
        assert_eq!(lines[0].text, Err("is longer than 1 MiB"));
        assert_eq!(lines[1].number, 2);
        assert_eq!(lines[1].text, Ok("short\n".to_owned()));
    }
}
