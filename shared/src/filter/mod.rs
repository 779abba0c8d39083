//! Filters: a CEL expression that says of which events a subscription wants to hear, beyond their type.
//!
//! A filter is [compiled](compile) when it is saved, where a bad one is refused, and again, once for each text, by whoever
//! evaluates it. [Evaluation](evaluate) takes a number of steps at most, whatever the expression and the payload are: what takes
//! more, or fails, does not match, and says why. It is a calculation: call it where blocking is allowed.

mod compile;
mod evaluate;
mod operate;
mod pattern;
mod reading;
#[cfg(test)]
mod tests;

use std::{
    cell::OnceCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use cel::Value;
use quick_cache::{Weighter, sync::Cache};
use serde::{Serialize, Serializer};

use self::{compile::Program, evaluate::Evaluation};
use crate::{AcceptedEvent, Invalid, Timestamp, invalid};

/// The most characters of a filter.
pub const MAX_FILTER: usize = 2_048;
/// The most filters of an organization: what is kept compiled has room for them, however costly they are.
pub const MAX_FILTERS: u64 = 1_000;
/// The most characters of all filters of an organization.
pub const MAX_CHARACTERS: u64 = 128 * 1024;
/// The steps that all filters of an organization together may take for one event, but for [`LEAST_STEPS`] each.
const STEPS_OF_AN_EVENT: usize = 50_000;
/// The steps that one filter may take.
const MOST_STEPS: usize = 10_000;
/// The steps that a filter may always take, however many there are.
const LEAST_STEPS: usize = 100;
/// How much memory compiled filters may take, by what they take if it comes to the worst.
const KEPT_BYTES: u64 = 128 * 1024 * 1024;
/// What a character of a filter comes to, compiled, if it comes to the worst.
const BYTES_OF_A_CHARACTER: usize = 128;

/// A CEL expression over `type`, `source`, `occurred_at` and `payload`, of 1 to 2,048 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Arc<str>);

impl Filter {
    /// Checks that it can be evaluated: that it is CEL, and names nothing that there is not.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        invalid::text(text, 1, MAX_FILTER)?;
        Program::compile(text).map_err(Invalid::new)?;
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

/// Filters that are compiled, by their text.
pub struct Filters(Cache<Arc<str>, Compiled, Bytes>);

type Compiled = Arc<Result<Program, String>>;

#[derive(Clone)]
struct Bytes;

impl Weighter<Arc<str>, Compiled> for Bytes {
    fn weight(&self, text: &Arc<str>, compiled: &Compiled) -> u64 {
        let patterns = compiled.as_ref().as_ref().map_or(0, Program::bytes_of_patterns);
        (512 + text.len() * BYTES_OF_A_CHARACTER + patterns) as u64
    }
}

impl Default for Filters {
    fn default() -> Self {
        Self(Cache::with_weighter(8_192, KEPT_BYTES, Bytes))
    }
}

impl Filters {
    /// What a filter says of an event, in so many steps at most.
    pub fn judge(&self, filter: &Filter, subject: &Subject<'_>, steps: u32) -> Verdict {
        let program = self.0.get(&filter.0).unwrap_or_else(|| {
            let program = Arc::new(Program::compile(&filter.0));
            self.0.insert(Arc::clone(&filter.0), Arc::clone(&program));
            program
        });
        match &*program {
            Ok(program) => judge(program, subject, steps),
            // One that another version of this program has saved.
            Err(rule) => Verdict::Failed(format!("the filter {rule}")),
        }
    }
}

fn judge(program: &Program, subject: &Subject<'_>, steps: u32) -> Verdict {
    // What the library does with an odd time or number is its own; nothing of it may end the process.
    let evaluated = catch_unwind(AssertUnwindSafe(|| {
        Evaluation::new(program, subject, steps).verdict()
    }));
    evaluated.unwrap_or_else(|_| Verdict::Failed("it cannot be evaluated for this event".to_owned()))
}
