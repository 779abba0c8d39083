//! Taking the body of a batch apart: into the text of each event, without reading what is in it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use shared::http::{ApiError, Code, fields::malformed};

use super::MAX_EVENTS;

/// How the events of a batch are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// A JSON array.
    Array,
    /// One a line; blank lines are passed over.
    Lines,
}

impl Layout {
    /// The texts of the events, in order. An array must be JSON as a whole; what is in a line is that event's own matter.
    pub(super) fn split(self, body: &[u8]) -> Result<Vec<&[u8]>, ApiError> {
        let (items, count) = match self {
            Self::Array => {
                let array: Items<'_> = serde_json::from_slice(body)
                    .map_err(|error| malformed("the body", "a JSON array of events", &error))?;
                (array.items, array.count)
            }
            Self::Lines => {
                let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
                let mut lines = lines.filter(|line| !line.is_empty());
                let items: Vec<_> = lines.by_ref().take(MAX_EVENTS).collect();
                let count = items.len() + lines.count();
                (items, count)
            }
        };
        if count > MAX_EVENTS {
            let detail = format!("a batch must have at most {MAX_EVENTS} events, and this one has {count}");
            return Err(ApiError::new(Code::InvalidRequest, detail));
        }
        Ok(items)
    }
}

/// The first elements of an array, and how many it has.
struct Items<'a> {
    items: Vec<&'a [u8]>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Items<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while items.len() < MAX_EVENTS
                    && let Some(item) = array.next_element::<&'de RawValue>()?
                {
                    items.push(item.get().as_bytes());
                }
                let mut count = items.len();
                while count >= MAX_EVENTS && array.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Items { items, count })
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(layout: Layout, body: &str) -> Result<Vec<String>, ApiError> {
        let items = layout.split(body.as_bytes())?;
        Ok(items
            .into_iter()
            .map(|item| String::from_utf8_lossy(item).into_owned())
            .collect())
    }

    #[test]
    fn items_are_taken_apart_as_they_are() {
        let array = r#" [ {"a": 1.0} , 2,null,[ 1 ] ] "#;
        assert_eq!(
            texts(Layout::Array, array).unwrap(),
            [r#"{"a": 1.0}"#, "2", "null", "[ 1 ]"]
        );
        assert_eq!(texts(Layout::Array, "[]").unwrap(), [""; 0]);
        let lines = "\n {\"a\": 1.0} \r\n\r\n  \nnot JSON\n2";
        assert_eq!(
            texts(Layout::Lines, lines).unwrap(),
            [r#"{"a": 1.0}"#, "not JSON", "2"]
        );
        assert_eq!(texts(Layout::Lines, " \n").unwrap(), [""; 0]);
    }

    #[test]
    fn a_body_that_is_no_batch_is_refused_whole() {
        let refused = |body: &str| texts(Layout::Array, body).unwrap_err().to_string();
        insta::assert_snapshot!(refused("{}"));
        insta::assert_snapshot!(refused(""));
        insta::assert_snapshot!(refused("[1,"));
        insta::assert_snapshot!(refused("[1] 2"));
        insta::assert_snapshot!(refused(&format!("\"{}\"", "x".repeat(10_000))));
        insta::assert_snapshot!(refused(&format!("[{}1]", "1,".repeat(1_500))));
    }

    #[test]
    fn the_most_events_fit() {
        for (count, fits) in [(MAX_EVENTS, true), (MAX_EVENTS + 1, false)] {
            let array = format!("[{}]", vec!["1"; count].join(","));
            assert_eq!(texts(Layout::Array, &array).is_ok(), fits);
            assert_eq!(texts(Layout::Lines, &"1\n".repeat(count)).is_ok(), fits);
        }
    }

    proptest! {
        #[test]
        fn as_many_results_as_items(values in prop::collection::vec("[a-z]{0,8}|[0-9]{1,4}", 0..40), space in "[ \\t\\r]{0,3}") {
            let items: Vec<String> = values.iter().map(|value| serde_json::Value::from(value.as_str()).to_string()).collect();
            let array = format!("{space}[{space}{}{space}]{space}", items.join(&format!("{space},{space}")));
            prop_assert_eq!(&texts(Layout::Array, &array).unwrap(), &items);
            let lines = items.join(&format!("{space}\n{space}\n{space}"));
            prop_assert_eq!(&texts(Layout::Lines, &lines).unwrap(), &items);
        }

        #[test]
        fn any_body_is_taken_apart_or_refused(body: Vec<u8>, text in "[\\[\\]{}\":,a-z0-9\\\\ \n]{0,64}") {
            for layout in [Layout::Array, Layout::Lines] {
                let _ = layout.split(&body);
                let _ = layout.split(text.as_bytes());
            }
        }
    }
}
