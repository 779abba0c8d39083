//! Metadata: what clients note on a subscription for themselves. Nothing here reads it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Invalid, invalid};

/// The most entries.
pub const MAX_ENTRIES: usize = 50;
/// The most characters of a key.
const MAX_KEY: usize = 40;
/// The most characters of a value.
const MAX_VALUE: usize = 500;

/// Texts by their keys: at most 50, each of at most 500 characters by a key of at most 40.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// About how many bytes its members take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.0
            .iter()
            .map(|(key, value)| 64 + key.len() + value.len())
            .sum()
    }

    /// Checks the rule of a key.
    pub fn key(text: &str) -> Result<String, Invalid> {
        invalid::text(text, 1, MAX_KEY)
            .map(str::to_owned)
            .map_err(|_| Invalid::new("must have a key of 1 to 40 characters without control characters"))
    }

    /// Checks the rule of a value.
    pub fn value(text: &str) -> Result<String, Invalid> {
        invalid::text(text, 0, MAX_VALUE).map(str::to_owned)
    }

    /// Sets those that have a value, removes those that have none, and leaves the rest. Keys and values have been checked.
    pub fn merge(
        &mut self,
        changes: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<(), Invalid> {
        for (key, value) in changes {
            match value {
                Some(value) => drop(self.0.insert(key, value)),
                None => drop(self.0.remove(&key)),
            }
        }
        if self.0.len() > MAX_ENTRIES {
            return Err(Invalid::new("must come to at most 50 entries"));
        }
        Ok(())
    }

    /// As the store keeps it: JSON; `None` if there is none.
    pub fn to_json(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| serde_json::json!(self.0).to_string())
    }

    /// From what [`Metadata::to_json`] gave.
    pub fn from_json(json: Option<&str>) -> Result<Self, serde_json::Error> {
        Ok(Self(
            json.map(serde_json::from_str).transpose()?.unwrap_or_default(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_breaks_the_rules() {
        for key in ["", "a\u{7}", &"k".repeat(41)] {
            assert!(Metadata::key(key).is_err(), "{key:?}");
        }
        assert!(Metadata::key(&"ü".repeat(40)).is_ok());
        assert!(Metadata::value(&"v".repeat(501)).is_err() && Metadata::value("a\0").is_err());
        let mut metadata = Metadata::default();
        let entries = |count: usize| (0..count).map(|at| (at.to_string(), Some(String::new())));
        assert!(metadata.merge(entries(50)).is_ok());
        assert!(metadata.merge([("more".to_owned(), None)]).is_ok());
        assert!(metadata.merge(entries(51)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read_back(entries in prop::collection::btree_map(".{1,40}", ".{0,60}", 0..10)) {
            let mut metadata = Metadata::default();
            metadata.merge(entries.clone().into_iter().map(|(key, value)| (key, Some(value)))).unwrap();
            prop_assert_eq!(&metadata.0, &entries);
            prop_assert_eq!(Metadata::from_json(metadata.to_json().as_deref()).unwrap(), metadata);
        }
    }
}
