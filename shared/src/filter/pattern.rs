//! The patterns of `matches`. Matching takes time in the length of the text and in the pattern's states; the states are bounded
//! when it is compiled, and a text costs steps by both.

use regex::{Regex, RegexBuilder};

/// How much memory the states of a pattern may take, and how many steps a pattern of up to that much costs for each 64 bytes of
/// a text.
const SIZES: [(usize, usize); 3] = [(4 << 10, 16), (16 << 10, 64), (64 << 10, 256)];
/// How much memory looking through a text may keep beside that.
const SEARCHING: usize = 32 << 10;
/// The deepest nesting of groups.
const NESTING: u32 = 32;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    rate: usize,
    /// The memory that it takes at most.
    pub(super) size: usize,
}

impl Pattern {
    /// Compiles one; fails with its rule.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        let mut last = String::new();
        for (size, rate) in SIZES {
            let built = RegexBuilder::new(text)
                .size_limit(size)
                .dfa_size_limit(SEARCHING)
                .nest_limit(NESTING)
                .build();
            match built {
                Ok(regex) => {
                    let size = size + SEARCHING;
                    return Ok(Self { regex, rate, size });
                }
                Err(regex::Error::CompiledTooBig(_)) => {
                    "it has too many states".clone_into(&mut last);
                }
                Err(error) => {
                    let error = error.to_string();
                    // The first lines show the pattern.
                    let line = error.lines().last().unwrap_or_default();
                    return Err(line.trim_start_matches("error: ").to_owned());
                }
            }
        }
        Err(last)
    }

    /// How many steps it takes at most to look through a text.
    pub(super) fn steps(&self, text: &str) -> usize {
        (text.len() / 64 + 1) * self.rate
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}
