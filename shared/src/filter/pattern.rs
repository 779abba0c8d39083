//! The patterns of `matches`. Matching takes time in the length of the text and in the pattern's states; the states are bounded
//! when it is compiled, and a text costs steps by both.
//!
//! Memory is bounded as well, and known: of the engines that the library has, those are left out whose tables may be many times as
//! large as the states, and what looking through a text needs is kept once for each pattern, however many threads ask.

use std::sync::Mutex;

use regex_automata::{
    Input,
    meta::{Cache, Config, Regex},
    nfa::thompson::WhichCaptures,
    util::syntax,
};

/// How much memory the states of a pattern may take, and how many steps a pattern of up to that much costs for each 64 bytes of
/// a text.
const SIZES: [(usize, usize); 3] = [(4 << 10, 16), (16 << 10, 64), (64 << 10, 256)];
/// How much memory looking through a text may keep beside that, in each direction.
const SEARCHING: usize = 32 << 10;
/// The deepest nesting of groups.
const NESTING: u32 = 32;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// What looking through texts has found out about it.
    cache: Mutex<Cache>,
    rate: usize,
    /// The memory that it takes at most.
    pub(super) bytes: usize,
}

impl Pattern {
    /// Compiles one; fails with its rule.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        for (size, rate) in SIZES {
            let config = Config::new()
                // It is asked whether it matches, and never where.
                .which_captures(WhichCaptures::Implicit)
                .nfa_size_limit(Some(size))
                .hybrid(true)
                .hybrid_cache_capacity(SEARCHING)
                .dfa(false)
                .onepass(false)
                .backtrack(false);
            let built = Regex::builder()
                .configure(config)
                .syntax(syntax::Config::new().nest_limit(NESTING))
                .build(text);
            match built {
                Ok(regex) => {
                    // The sets of states, where it is looked through without a cache, are smaller than the states themselves.
                    let bytes = size_of::<Self>() + regex.memory_usage() + size + 2 * SEARCHING;
                    return Ok(Self {
                        cache: Mutex::new(regex.create_cache()),
                        regex,
                        rate,
                        bytes,
                    });
                }
                Err(error) if error.size_limit().is_some() => {}
                Err(error) => {
                    let error = error
                        .syntax_error()
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    // The first lines show the pattern.
                    let line = error.lines().last().unwrap_or_default();
                    return Err(line.trim_start_matches("error: ").to_owned());
                }
            }
        }
        Err("it has too many states".to_owned())
    }

    /// How many steps it takes at most to look through a text.
    pub(super) fn steps(&self, text: &str) -> usize {
        (text.len() / 64 + 1) * self.rate
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        let input = Input::new(text);
        match self.cache.try_lock() {
            Ok(mut cache) => self.regex.is_match_with(&mut cache, &input),
            // Another thread is at it.
            Err(_) => self.regex.is_match_with(&mut self.regex.create_cache(), &input),
        }
    }
}
