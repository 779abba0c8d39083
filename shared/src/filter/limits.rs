//! What the filters of one organization may come to: so much that they are all kept compiled, however costly they are.

use super::{Filter, compile::PATTERNS};
use crate::subscription::MAX_SUBSCRIPTIONS;

/// The most characters of a filter.
pub const MAX_FILTER: usize = 2_048;
/// The most patterns of a filter.
pub const MAX_PATTERNS: usize = PATTERNS;
/// The most filters of an organization: one a subscription.
pub const MAX_FILTERS: u64 = MAX_SUBSCRIPTIONS as u64;
/// The most characters of all filters of an organization.
pub const MAX_CHARACTERS: u64 = 128 * 1024;
/// The most patterns of all filters of an organization.
pub const MAX_PATTERNS_TOGETHER: u64 = 64;
/// By which a store counts the patterns of filters: this word, wherever it stands in them. No filter has more patterns than
/// that, and one that has it elsewhere counts for a few more than it has.
pub const PATTERN_WORD: &str = "matches";

/// The filters of an organization's subscriptions, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FiltersKept {
    /// Their characters.
    pub characters: u64,
    /// Their patterns, as [`PATTERN_WORD`] counts them.
    pub patterns: u64,
}

/// Why an organization can have no such filter besides those that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FiltersFull {
    /// They would be too long.
    #[error("would be too much: an organization's filters have at most {MAX_CHARACTERS} characters together")]
    Characters,
    /// They would have too many patterns.
    #[error(
        "would be too much: in an organization's filters together, `{PATTERN_WORD}` stands at most {MAX_PATTERNS_TOGETHER} times"
    )]
    Patterns,
}

impl FiltersKept {
    /// Whether there is room for one more.
    pub fn room_for(self, filter: &Filter) -> Result<(), FiltersFull> {
        let text = filter.as_str();
        let patterns = text.matches(PATTERN_WORD).count() as u64;
        if self.characters + text.chars().count() as u64 > MAX_CHARACTERS {
            Err(FiltersFull::Characters)
        } else if patterns > 0 && self.patterns + patterns > MAX_PATTERNS_TOGETHER {
            Err(FiltersFull::Patterns)
        } else {
            Ok(())
        }
    }
}
