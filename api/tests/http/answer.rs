//! What a test looks at in an answer.

use std::fmt::Write;

use http::{HeaderMap, StatusCode};
use serde_json::Value;
use shared::Timestamp;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Answer {
    /// What clients rely on, without what differs from run to run.
    pub fn shown(&self) -> String {
        let mut shown = format!("{}\n", self.status.as_u16());
        for name in [
            "location",
            "cache-control",
            "retry-after",
            "content-type",
            "www-authenticate",
        ] {
            if let Some(value) = self.headers.get(name) {
                let value = value
                    .to_str()
                    .unwrap()
                    .split('/')
                    .map(|part| mask(part).unwrap_or(part));
                let value = value.collect::<Vec<_>>().join("/");
                writeln!(shown, "{name}: {value}").unwrap();
            }
        }
        let mut body = self.body.clone();
        mask_all(&mut body);
        for name in ["request_id", "next_cursor"] {
            if body[name].is_string() {
                body[name] = format!("[{name}]").into();
            }
        }
        shown.push_str(&serde_json::to_string_pretty(&body).unwrap());
        shown
    }

    /// The status and the problem's sentence.
    pub fn problem(&self) -> String {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{}",
            self.text
        );
        format!(
            "{} {}",
            self.status.as_u16(),
            self.body["detail"].as_str().unwrap_or_default()
        )
    }

    /// The ids of a list.
    pub fn ids(&self) -> Vec<String> {
        let items = self.body["data"].as_array().or(self.body["events"].as_array());
        let id = |item: &Value| item["id"].as_str().unwrap().to_owned();
        items.expect("a list").iter().map(id).collect()
    }

    /// The path of the next page.
    pub fn next(&self, path: &str) -> Option<String> {
        let cursor = self.body["next_cursor"].as_str()?;
        Some(format!(
            "{path}{}cursor={cursor}",
            if path.contains('?') { '&' } else { '?' }
        ))
    }
}

fn mask_all(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(masked) = mask(text) {
                *text = masked.to_owned();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(mask_all),
        Value::Object(members) => members.values_mut().for_each(mask_all),
        _ => {}
    }
}

fn mask(text: &str) -> Option<&'static str> {
    let id = |prefix: &str| text.strip_prefix(prefix).is_some_and(|rest| rest.len() == 26);
    match text {
        _ if id("org_") => Some("[organization id]"),
        _ if id("key_") => Some("[key id]"),
        _ if id("evt_") => Some("[event id]"),
        _ if id("sub_") => Some("[subscription id]"),
        _ if id("aside_") => Some("[set-aside id]"),
        _ if text.starts_with("trg_live_") && text.len() == 47 => Some("[key]"),
        _ if text.starts_with("trg_live_") => Some("[hint]"),
        _ if text.starts_with("whsec_") => Some("[secret]"),
        _ if text.len() == 24 && text.parse::<Timestamp>().is_ok() => Some("[time]"),
        _ if text.len() == 36 && uuid::Uuid::try_parse(text).is_ok() => Some("[uuid]"),
        _ => None,
    }
}
