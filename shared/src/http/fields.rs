//! Reading a JSON object field by field, so that every broken rule is named, not just the first.
//!
//! Values are borrowed from the body as raw JSON: a payload is validated and never parsed into a tree.

use std::{
    any::TypeId,
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{LazyLock, Mutex},
};

use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{ApiError, Code, FieldError};
use crate::Invalid;

/// The most fields of one object: none of the API's has half as many.
const MAX_FIELDS: usize = 64;

/// What becomes of fields that the route does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// They are refused, with their pointer (`/v1`).
    Refuse,
    /// They are taken and ignored (`/api`).
    Ignore,
}

/// The fields of a request body that are not taken yet, and the rules broken so far.
#[derive(Debug)]
pub struct Fields<'a> {
    values: Vec<(Cow<'a, str>, &'a RawValue)>,
    errors: Vec<FieldError>,
    too_large: Option<FieldError>,
    unknown: Unknown,
    /// Those that the API's description has, in builds that check it.
    documented: Option<&'static BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// Reads the object that `body` must be; an empty body is an empty object.
    pub fn parse(body: &'a [u8], unknown: Unknown) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Ok(Self::of(Vec::new(), unknown));
        }
        Self::parse_part("the body", body, unknown)
    }

    /// Reads an object that is `what` of a body.
    pub fn parse_part(what: &'static str, text: &'a [u8], unknown: Unknown) -> Result<Self, ApiError> {
        match serde_json::from_slice::<Object<'a>>(text) {
            Ok(object) => Ok(Self::of(object.0, unknown)),
            Err(error) => Err(malformed(what, "a JSON object", &error)),
        }
    }

    fn of(values: Vec<(Cow<'a, str>, &'a RawValue)>, unknown: Unknown) -> Self {
        let mut fields = Self {
            values,
            errors: Vec::new(),
            too_large: None,
            unknown,
            documented: None,
        };
        fields.refuse_repeated();
        fields
    }

    /// The fields are those of `B`, as the API's description has them. In debug builds, which tests are, reading one that is not
    /// in it panics.
    #[must_use]
    pub fn documented<B: JsonSchema + 'static>(mut self) -> Self {
        if cfg!(debug_assertions) {
            self.documented = Some(names_of::<B>());
        }
        self
    }

    fn refuse_repeated(&mut self) {
        let mut names: Vec<&str> = self.values.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        let repeated: Vec<FieldError> = names
            .chunk_by(|one, other| one == other)
            .filter(|same| same.len() > 1)
            .map(|same| FieldError::at(&[same[0]], "is given more than once"))
            .collect();
        if !repeated.is_empty() {
            let mut seen = std::collections::HashSet::new();
            self.values.retain(|(name, _)| seen.insert(name.clone()));
            self.errors.extend(repeated);
        }
    }

    /// Takes a field as raw JSON.
    pub fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        debug_assert!(
            self.documented.is_none_or(|documented| documented.contains(name)),
            "the field {name} is not documented"
        );
        let at = self.values.iter().position(|(given, _)| given == name)?;
        Some(self.values.swap_remove(at).1)
    }

    /// Takes a field that must be there. `parse` reads its value; what it breaks is noted.
    pub fn required<T, E: Into<Broken>>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&'a RawValue) -> Result<T, E>,
    ) -> Option<T> {
        if let Some(value) = self.take(name) {
            self.read(name, value, parse)
        } else {
            self.errors.push(FieldError::at(&[name], "is required"));
            None
        }
    }

    /// Takes a field that may be missing or `null`.
    pub fn optional<T, E: Into<Broken>>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&'a RawValue) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.take(name).filter(|value| value.get() != "null")?;
        self.read(name, value, parse)
    }

    /// Takes a field that may be missing, and for which `null` means something: `Some(None)`.
    pub fn nullable<T, E: Into<Broken>>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&'a RawValue) -> Result<T, E>,
    ) -> Option<Option<T>> {
        match self.take(name)? {
            value if value.get() == "null" => Some(None),
            value => self.read(name, value, parse).map(Some),
        }
    }

    fn read<T, E: Into<Broken>>(
        &mut self,
        name: &str,
        value: &'a RawValue,
        parse: impl FnOnce(&'a RawValue) -> Result<T, E>,
    ) -> Option<T> {
        match parse(value).map_err(Into::into) {
            Ok(value) => Some(value),
            Err(Broken {
                path,
                rule,
                too_large,
            }) => {
                let mut pointer = vec![name];
                pointer.extend(path.iter().map(String::as_str));
                let error = FieldError::at(&pointer, rule);
                if too_large {
                    self.too_large.get_or_insert(error);
                } else {
                    self.errors.push(error);
                }
                None
            }
        }
    }

    /// Notes a broken rule that reading the fields one by one does not find.
    pub fn refuse(&mut self, error: FieldError) {
        self.errors.push(error);
    }

    /// `value` if no rule was broken and no field is left over; else the problem that names them all.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, ApiError> {
        if self.unknown == Unknown::Refuse {
            let left = self
                .values
                .iter()
                .map(|(name, _)| FieldError::at(&[name], "is not a field of this request"));
            self.errors.extend(left);
        }
        match value {
            _ if !self.errors.is_empty() => Err(ApiError::invalid(self.errors)),
            _ if self.too_large.is_some() => Err(self.too_large.map_or_else(
                || ApiError::new(Code::PayloadTooLarge, "a field is too large"),
                ApiError::field_too_large,
            )),
            Some(value) => Ok(value),
            None => Err(ApiError::new(Code::InvalidRequest, "a required field is missing")),
        }
    }
}

/// The names of the fields of `B`.
fn names_of<B: JsonSchema + 'static>() -> &'static BTreeSet<String> {
    static KNOWN: LazyLock<Mutex<HashMap<TypeId, &'static BTreeSet<String>>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    known.entry(TypeId::of::<B>()).or_insert_with(|| {
        let schema = B::json_schema(&mut schemars::SchemaGenerator::default());
        let properties = schema.get("properties").and_then(serde_json::Value::as_object);
        let names = properties.map(|properties| properties.keys().cloned().collect());
        Box::leak(Box::new(names.unwrap_or_default()))
    })
}

/// A rule that a field's value breaks, perhaps deeper inside it.
#[derive(Debug)]
pub struct Broken {
    path: Vec<String>,
    rule: String,
    too_large: bool,
}

impl From<Invalid> for Broken {
    fn from(invalid: Invalid) -> Self {
        Self {
            path: Vec::new(),
            rule: invalid.rule().to_owned(),
            too_large: false,
        }
    }
}

impl From<crate::event::PayloadError> for Broken {
    fn from(error: crate::event::PayloadError) -> Self {
        let too_large = error == crate::event::PayloadError::TooLarge;
        Self {
            path: Vec::new(),
            rule: error.to_string(),
            too_large,
        }
    }
}

/// Reads a JSON string by a rule of its own.
pub fn string<T>(
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> impl FnOnce(&RawValue) -> Result<T, Broken> {
    move |value| {
        let text: Cow<'_, str> = borrowed(value, "must be a string")?;
        Ok(parse(&text)?)
    }
}

/// A whole number, which may be written with a fraction of nothing: `5.0`, as JSON Schema has it, and languages that know
/// one kind of number alone.
fn whole(value: &RawValue) -> Option<u64> {
    /// Up to here every whole number is one of theirs.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Ok(number) = serde_json::from_str(value.get()) {
        return Some(number);
    }
    let number: f64 = serde_json::from_str(value.get()).ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is whole, and within the range"
    )]
    (number.fract() == 0.0 && (0.0..=EXACT).contains(&number)).then_some(number as u64)
}

/// Reads a JSON whole number by a rule of its own.
pub fn number<T>(
    parse: impl FnOnce(u64) -> Result<T, Invalid>,
) -> impl FnOnce(&RawValue) -> Result<T, Broken> {
    move |value| {
        let number = whole(value).ok_or_else(|| Invalid::new("must be a whole number"))?;
        Ok(parse(number)?)
    }
}

/// Reads `true` or `false`.
pub fn boolean(value: &RawValue) -> Result<bool, Broken> {
    Ok(serde_json::from_str(value.get()).map_err(|_| Invalid::new("must be true or false"))?)
}

/// Reads an array of at most `most` strings, each by a rule of its own; what is broken is named by its index.
pub fn strings<T>(
    most: usize,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> impl FnOnce(&RawValue) -> Result<Vec<T>, Broken> {
    move |value| {
        let texts: Vec<&RawValue> =
            serde_json::from_str(value.get()).map_err(|_| Invalid::new("must be an array of strings"))?;
        if texts.len() > most {
            return Err(Invalid::new(format!("must have at most {most} entries")).into());
        }
        let parse = &parse;
        let read = |(at, text)| {
            string(parse)(text).map_err(|broken| Broken {
                path: vec![usize::to_string(&at)],
                ..broken
            })
        };
        texts.into_iter().enumerate().map(read).collect()
    }
}

/// Reads an array of whole numbers by a rule of its own.
pub fn numbers<T>(
    parse: impl FnOnce(Vec<u32>) -> Result<T, Invalid>,
) -> impl FnOnce(&RawValue) -> Result<T, Broken> {
    move |value| {
        let rule = || Invalid::new("must be an array of whole numbers");
        let values: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(|_| rule())?;
        let numbers = values.into_iter().map(|value| u32::try_from(whole(value)?).ok());
        Ok(parse(numbers.collect::<Option<_>>().ok_or_else(rule)?)?)
    }
}

/// Reads an object of at most `most` members, each a string or `null`, by rules of its own for names and for strings; what
/// is broken is named by its member. Names that the rule makes the same are one given twice.
pub fn members<K: PartialEq, V>(
    most: usize,
    name: impl Fn(&str) -> Result<K, Invalid>,
    text: impl Fn(&str) -> Result<V, Invalid>,
) -> impl FnOnce(&RawValue) -> Result<Vec<(K, Option<V>)>, Broken> {
    move |value| {
        let rule = || Invalid::new(format!("must be an object of at most {most} members"));
        let object: Object<'_> = serde_json::from_str(value.get()).map_err(|_| rule())?;
        if object.0.len() > most {
            return Err(rule().into());
        }
        let mut read: Vec<(K, Option<V>)> = Vec::with_capacity(object.0.len());
        for (given, value) in object.0 {
            let at = |broken: Broken| Broken {
                path: vec![given.clone().into_owned()],
                ..broken
            };
            let key = name(&given).map_err(|invalid| at(invalid.into()))?;
            if read.iter().any(|(known, _)| *known == key) {
                return Err(at(Invalid::new("is given more than once").into()));
            }
            let value = match value.get() {
                "null" => None,
                _ => Some(
                    borrowed(value, "must be a string, or null to remove it")
                        .and_then(|value| text(&value))
                        .map_err(|invalid| at(invalid.into()))?,
                ),
            };
            read.push((key, value));
        }
        Ok(read)
    }
}

fn borrowed<'a>(value: &'a RawValue, rule: &'static str) -> Result<Cow<'a, str>, Invalid> {
    // `Cow` alone would own every text: only this borrows what has no escapes.
    struct Text<'a>(Cow<'a, str>);
    impl<'de> Deserialize<'de> for Text<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Borrow;
            impl<'de> Visitor<'de> for Borrow {
                type Value = Text<'de>;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a string")
                }
                fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                    Ok(Text(Cow::Borrowed(text)))
                }
                fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                    Ok(Text(Cow::Owned(text.to_owned())))
                }
            }
            deserializer.deserialize_str(Borrow)
        }
    }
    serde_json::from_str::<Text<'a>>(value.get())
        .map(|text| text.0)
        .map_err(|_| Invalid::new(rule))
}

/// 400, in serde's own words, with the place: a text is not JSON, or not `shape`.
pub fn malformed(what: &'static str, shape: &'static str, error: &serde_json::Error) -> ApiError {
    /// Serde repeats a value that it does not expect, however long.
    const SHOWN: usize = 200;
    let mut why = error.to_string();
    if let Some((end, _)) = why.char_indices().nth(SHOWN) {
        why.truncate(end);
        why.push('…');
    }
    let detail = if error.is_data() {
        format!("{what} must be {shape}: {why}")
    } else {
        format!("{what} is not JSON: {why}")
    };
    ApiError::new(Code::InvalidJson, detail)
}

/// An object whose names are borrowed where they can be, and whose values stay raw.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(4);
                while let Some(name) = map.next_key::<&'de RawValue>()? {
                    if members.len() == MAX_FIELDS {
                        return Err(serde::de::Error::custom("it has more than 64 fields"));
                    }
                    let name = borrowed(name, "a field's name must be a string")
                        .map_err(serde::de::Error::custom)?;
                    members.push((name, map.next_value::<&'de RawValue>()?));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{EventType, Payload};

    fn event(body: &[u8], unknown: Unknown) -> Result<(EventType, Payload), ApiError> {
        let mut fields = Fields::parse(body, unknown)?;
        let event_type = fields.required("type", string(EventType::parse));
        let payload = fields.required("payload", Payload::parse);
        fields.finish(event_type.zip(payload))
    }

    #[test]
    fn payloads_stay_as_they_were_sent() {
        let body = br#" {"payload": {"b":1.0,  "a":[1e400,"\u00e9\ud800"]} , "type":"a.b"} "#;
        let (event_type, payload) = event(body, Unknown::Refuse).unwrap();
        assert_eq!(event_type.as_str(), "a.b");
        assert_eq!(payload.as_str(), r#"{"b":1.0,  "a":[1e400,"\u00e9\ud800"]}"#);
        assert_eq!(
            event(br#"{"type":"a","payload":null}"#, Unknown::Refuse)
                .unwrap()
                .1
                .as_str(),
            "null"
        );
    }

    #[test]
    fn every_broken_rule_is_named() {
        let broken = |body: &str| event(body.as_bytes(), Unknown::Refuse).unwrap_err().to_string();
        insta::assert_snapshot!(broken(r#"{"type":"a b","extra":1,"pay~/load":2}"#));
        insta::assert_snapshot!(broken(r#"{"type":1,"payload":1,"payload":2}"#));
        insta::assert_snapshot!(broken("[1]"));
        insta::assert_snapshot!(broken(r#"{"type":"a","payload":}"#));
        insta::assert_snapshot!(broken(""));
        let large = format!(r#"{{"type":"a","payload":"{}"}}"#, "x".repeat(300_000));
        insta::assert_snapshot!(broken(&large));
    }

    #[test]
    fn names_with_escapes_are_read() {
        let body = br#"{"t\u0079pe":"a","payload":1,"x":2}"#;
        assert!(event(body, Unknown::Ignore).is_ok());
        assert!(event(body, Unknown::Refuse).is_err());
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body: Vec<u8>) {
            let _ = event(&body, Unknown::Refuse);
        }

        #[test]
        fn any_text_is_read_or_refused(body in "[\\[\\]{}\":,a-z0-9\\\\ ]{0,64}") {
            let _ = event(body.as_bytes(), Unknown::Refuse);
        }
    }
}
