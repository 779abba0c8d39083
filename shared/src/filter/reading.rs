//! JSON and times, as the values that expressions work on.

use std::{collections::HashMap, fmt, sync::Arc};

use cel::{
    Value,
    objects::{Key, Map},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use crate::Timestamp;

/// A time.
pub(super) fn timestamp(at: Timestamp) -> Value {
    let at = chrono::DateTime::from_timestamp_millis(at.millis());
    at.map_or(Value::Null, |at| Value::Timestamp(at.fixed_offset()))
}

/// A payload: whole numbers are `int` (`uint` above its range), others `double`.
pub(super) fn payload(json: &str) -> serde_json::Result<Value> {
    serde_json::from_str::<Json>(json).map(|json| json.0)
}

struct Json(Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor).map(Self)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::UInt(value), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Json(item)) = items.next_element()? {
            list.push(item);
        }
        list.shrink_to_fit();
        Ok(Value::List(Arc::new(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = HashMap::new();
        while let Some((name, Json(value))) = members.next_entry::<String, Json>()? {
            map.insert(Key::String(Arc::new(name)), value);
        }
        Ok(Value::Map(Map { map: Arc::new(map) }))
    }
}
