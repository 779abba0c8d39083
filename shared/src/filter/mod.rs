//! Filters: a CEL expression that says of which events a subscription wants to hear, beyond their type.
//!
//! A filter is [compiled](compile) when it is saved, where a bad one is refused, and again, once for each text, by whoever
//! evaluates it, who [keeps](kept) it. [Evaluation](evaluate) takes a number of steps at most, whatever the expression and the
//! payload are: what takes more, or fails, does not match, and says why. It is a calculation: call it where blocking is allowed.

mod compile;
mod evaluate;
mod kept;
mod limits;
mod operate;
mod pattern;
mod reading;
#[cfg(test)]
mod tests;
mod weight;

use std::{cell::OnceCell, sync::Arc};

use cel::Value;
use serde::{Serialize, Serializer};

pub use self::{
    kept::{Filters, Ready},
    limits::{
        FiltersFull, FiltersKept, MAX_CHARACTERS, MAX_FILTER, MAX_FILTERS, MAX_PATTERNS,
        MAX_PATTERNS_TOGETHER, PATTERN_WORD,
    },
};
use crate::{AcceptedEvent, Invalid, Timestamp, invalid};

/// The steps that all filters of an organization together may take for one event, but for [`LEAST_STEPS`] each.
const STEPS_OF_AN_EVENT: usize = 50_000;
/// The steps that one filter may take.
const MOST_STEPS: usize = 10_000;
/// The steps that a filter may always take, however many there are.
const LEAST_STEPS: usize = 100;

/// Filters cannot be read at the moment, whatever they are: there is no thread to be had for it. Try again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filters cannot be read at the moment: {0}")]
pub struct NotNow(String);

/// Why a text is not taken for a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It breaks this rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Nobody can tell now.
    #[error(transparent)]
    NotNow(#[from] NotNow),
}

/// A CEL expression over `type`, `source`, `occurred_at` and `payload`, of 1 to 2,048 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Arc<str>);

impl Filter {
    /// Checks that it can be evaluated: that it is CEL, and names nothing that there is not.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        invalid::text(text, 1, MAX_FILTER)?;
        for program in compile::compile(&[text])? {
            program.map_err(Invalid::new)?;
        }
        Ok(Self(text.into()))
    }

    /// One that was checked when it was saved.
    pub fn from_trusted(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// What a filter says of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It matches.
    Matches,
    /// It is false.
    False,
    /// It cannot be evaluated for this event, and does not match; why, in a sentence without its full stop.
    Failed(String),
}

/// What filters see of an event. The payload is read when the first of them asks for it.
pub struct Subject<'e> {
    event_type: Value,
    source: Value,
    occurred_at: Value,
    json: &'e str,
    payload: OnceCell<Result<Value, String>>,
}

impl<'e> Subject<'e> {
    /// The event's parts.
    pub fn new(
        event_type: &str,
        source: Option<&str>,
        occurred_at: Option<Timestamp>,
        payload: &'e str,
    ) -> Self {
        Self {
            event_type: event_type.into(),
            source: source.into(),
            occurred_at: occurred_at.map_or(Value::Null, reading::timestamp),
            json: payload,
            payload: OnceCell::new(),
        }
    }

    /// Of an event that is to be stored.
    pub fn of(event: &'e AcceptedEvent) -> Self {
        let source = event.source.as_ref().map(crate::Source::as_str);
        Self::new(
            event.event_type.as_str(),
            source,
            event.occurred_at,
            event.payload.as_str(),
        )
    }

    fn payload(&self) -> Result<Value, String> {
        self.payload
            .get_or_init(|| {
                reading::payload(self.json).map_err(|error| format!("the payload cannot be read: {error}"))
            })
            .clone()
    }
}

/// How many steps each of so many filters may take for one event: at least [`LEAST_STEPS`], so that what one of them takes
/// never depends on what another does.
pub fn steps_each(filters: usize) -> u32 {
    let steps = (STEPS_OF_AN_EVENT / filters.max(1)).clamp(LEAST_STEPS, MOST_STEPS);
    u32::try_from(steps).unwrap_or(u32::MAX)
}
