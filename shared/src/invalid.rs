//! The one error of every parser at the edge: which rule a value breaks.

use std::{borrow::Cow, fmt};

/// A rule that a value breaks, as the end of a sentence that begins with the field's name
/// ("must be at most 256 characters").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(Cow<'static, str>);

impl Invalid {
    /// From the rule's text.
    pub fn new(rule: impl Into<Cow<'static, str>>) -> Self {
        Self(rule.into())
    }

    /// The rule's text.
    pub fn rule(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// Checks that a text has between `min` and `max` characters and no control character.
pub fn text(value: &str, min: usize, max: usize) -> Result<&str, Invalid> {
    // A character is at least a byte, so most texts need no counting.
    if value.len() < min || (value.len() > max && value.chars().count() > max) {
        return Err(Invalid::new(if min == 0 {
            format!("must be at most {max} characters")
        } else {
            format!("must be {min} to {max} characters")
        }));
    }
    if value.chars().any(char::is_control) {
        return Err(Invalid::new("must not hold control characters"));
    }
    Ok(value)
}
