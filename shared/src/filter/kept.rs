//! Filters that are kept compiled.
//!
//! Compiling costs far more than evaluating, so each text is compiled once and kept, within a bound in memory that has room for
//! [the most costly filters](super::limits) of several organizations. What does not fit is compiled again for whoever asks: once for
//! all the events that he has, and all that is missing on one thread.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use quick_cache::{Weighter, sync::Cache};

use super::{
    Filter, NotNow, Subject, Verdict,
    compile::{Program, compile},
    evaluate::Evaluation,
    limits::{MAX_CHARACTERS, MAX_FILTERS, MAX_PATTERNS_TOGETHER},
};
use crate::weighed_cache::weighed_cache;

/// How much memory compiled filters may take.
pub(super) const KEPT_BYTES: u64 = 128 * 1024 * 1024;
/// About how many filters of the usual size that is.
const USUAL: usize = 8_192;
/// What a filter takes beside its text and its program.
const BYTES_OF_ONE: usize = 512;
/// What a character of a filter comes to, its text and its program together, if it comes to the worst.
pub(super) const BYTES_OF_A_CHARACTER: u64 = 128;
/// What a pattern comes to, if it comes to the worst.
pub(super) const BYTES_OF_A_PATTERN: u64 = 256 * 1024;
/// What all filters of one organization come to, if it comes to the worst.
pub(super) const BYTES_OF_A_SET: u64 = MAX_FILTERS * BYTES_OF_ONE as u64
    + MAX_CHARACTERS * BYTES_OF_A_CHARACTER
    + MAX_PATTERNS_TOGETHER * BYTES_OF_A_PATTERN;

const _: () = assert!(
    BYTES_OF_A_SET * 3 <= KEPT_BYTES,
    "there is room for several organizations"
);

/// Filters that are compiled, by their text.
pub struct Filters(Cache<Arc<str>, Compiled, Bytes>);

type Compiled = Arc<Result<Program, String>>;

#[derive(Clone)]
struct Bytes;

impl Weighter<Arc<str>, Compiled> for Bytes {
    fn weight(&self, text: &Arc<str>, compiled: &Compiled) -> u64 {
        let program = match &**compiled {
            Ok(program) => program.bytes,
            Err(rule) => rule.len(),
        };
        (BYTES_OF_ONE + text.len() + program) as u64
    }
}

impl Default for Filters {
    fn default() -> Self {
        Self(weighed_cache(USUAL, KEPT_BYTES, Bytes))
    }
}

impl Filters {
    /// Filters, ready to be asked. It compiles those that are not kept, where blocking is allowed, and fails if that cannot be done
    /// at the moment.
    pub fn ready(&self, filters: &[Filter]) -> Result<Ready, NotNow> {
        let mut programs: HashMap<&Arc<str>, Compiled> = HashMap::with_capacity(filters.len());
        let mut missing: HashSet<&Arc<str>> = HashSet::new();
        for Filter(text) in filters {
            if programs.contains_key(text) || missing.contains(text) {
                continue;
            }
            match self.0.get(text) {
                Some(program) => drop(programs.insert(text, program)),
                None => drop(missing.insert(text)),
            }
        }
        let missing: Vec<&Arc<str>> = missing.into_iter().collect();
        if !missing.is_empty() {
            for (text, program) in missing.iter().zip(compile(&missing)?) {
                let program = Arc::new(program);
                self.0.insert(Arc::clone(text), Arc::clone(&program));
                programs.insert(text, program);
            }
        }
        Ok(Ready {
            compiled: missing.len(),
            programs: filters
                .iter()
                .filter_map(|Filter(text)| programs.get(text).cloned())
                .collect(),
        })
    }

    #[cfg(test)]
    pub(super) fn weight(&self) -> u64 {
        self.0.weight()
    }
}

/// Filters that are compiled, for as long as this is held, whatever else is kept.
pub struct Ready {
    programs: Vec<Compiled>,
    compiled: usize,
}

impl Ready {
    /// How many of them were not kept, and had to be compiled.
    pub fn compiled(&self) -> usize {
        self.compiled
    }

    /// What the filter at this place of those that were asked for says of an event, in so many steps at most.
    pub fn judge(&self, place: usize, subject: &Subject<'_>, steps: u32) -> Verdict {
        match &*self.programs[place] {
            Ok(program) => judge(program, subject, steps),
            // One that another version of this program has saved.
            Err(rule) => Verdict::Failed(format!("the filter {rule}")),
        }
    }
}

pub(super) fn judge(program: &Program, subject: &Subject<'_>, steps: u32) -> Verdict {
    // What the library does with an odd time or number is its own; nothing of it may end the process.
    let evaluated = catch_unwind(AssertUnwindSafe(|| {
        Evaluation::new(program, subject, steps).verdict()
    }));
    evaluated.unwrap_or_else(|_| Verdict::Failed("it cannot be evaluated for this event".to_owned()))
}
