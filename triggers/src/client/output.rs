//! What is printed: tables for people, what the API answered for programs.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use comfy_table::{Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{Failure, request::Answer};

/// A column or field: its heading, and the JSON pointer of what is in it.
pub type Column = (&'static str, &'static str);

/// Standard output.
pub struct Output {
    json: bool,
}

impl Output {
    /// For people, or for programs.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// A line as it is; it is out before this returns.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        clippy::unused_self,
        reason = "whoever prints holds the output"
    )]
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }

    /// A word to people, beside the output.
    pub fn note(&self, text: &str) {
        if self.json {
            return;
        }
        // Nobody reads it, perhaps.
        let _ = writeln!(std::io::stderr().lock(), "{}", plain(text));
    }

    /// A table.
    pub fn rows(&mut self, headings: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(headings.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|cell| plain(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.line(&table.trim_fmt())
    }

    /// A table of values.
    pub fn table(&mut self, columns: &[Column], values: &[Value]) -> Result<(), Failure> {
        let headings: Vec<_> = columns.iter().map(|(heading, _)| *heading).collect();
        let row = |value: &Value| columns.iter().map(|(_, pointer)| cell(value, pointer)).collect();
        self.rows(&headings, values.iter().map(row).collect())
    }

    /// A table below something else, if it has rows.
    pub fn below(&mut self, columns: &[Column], values: &[Value]) -> Result<(), Failure> {
        if values.is_empty() {
            return Ok(());
        }
        self.line("")?;
        self.table(columns, values)
    }

    /// One object, a line a member: these first, then what else it has, but for what is `shown` elsewhere.
    pub fn object(&mut self, first: &[&str], shown: &[&str], object: &Value) -> Result<(), Failure> {
        let Some(members) = object.as_object() else {
            return self.line(&plain(&object.to_string()));
        };
        let mut rows = Vec::new();
        let others = members.keys().map(String::as_str);
        let others = others.filter(|name| !first.contains(name) && !shown.contains(name));
        for name in first
            .iter()
            .copied()
            .filter(|name| members.contains_key(*name))
            .chain(others)
        {
            flatten(name, &members[name], &mut rows);
        }
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in rows {
            self.line(format!("{name:width$}  {value}").trim_end())?;
        }
        Ok(())
    }

    /// What the API answered, an object: for people its `first` members first.
    pub fn answer(&mut self, first: &[&str], answer: &Answer) -> Result<(), Failure> {
        if self.json {
            return self.json(&answer.text);
        }
        self.object(first, &[], &answer.object()?)
    }

    /// That something was done of which the API says no more: for people alone, programs have the exit code.
    pub fn done(&mut self, what: &str) -> Result<(), Failure> {
        if self.json {
            Ok(())
        } else {
            self.line(&plain(what))
        }
    }

    /// JSON of the API's in one line. Line breaks in it are white space: within a text they are escaped.
    pub fn json(&mut self, text: &str) -> Result<(), Failure> {
        self.line(&text.trim_end().replace(['\n', '\r'], " "))
    }

    /// Something that takes long: shown to people on a terminal, beside the output, and nowhere else. With a length it is
    /// a bar.
    pub fn progress(&self, length: Option<u64>) -> ProgressBar {
        if self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let (bar, template) = match length {
            Some(length) => (ProgressBar::new(length), "{bar:30} {percent:>3}% {msg} {eta}"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}

/// The lines of a member: of an object with members one each.
fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value.as_object() {
        Some(members) if !members.is_empty() => {
            for (member, value) in members {
                flatten(&format!("{name}.{member}"), value, rows);
            }
        }
        _ => rows.push((plain(name), cell(value, ""))),
    }
}

/// What a cell shows of a value.
pub fn cell(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => plain(text),
        Some(Value::Array(items)) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let items: Vec<_> = items.iter().map(|item| cell(item, "")).collect();
            if items.is_empty() {
                "-".to_owned()
            } else {
                items.join(", ")
            }
        }
        Some(other) => plain(&other.to_string()),
    }
}

/// A text that a terminal shows as it is: what would steer the terminal is spelt out. What others sent is in it.
pub fn plain(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(steers) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if steers(c) {
                c.escape_unicode().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells() {
        let value = json!({"a": null, "b": ["x", "y"], "c": {"d": 1.5}, "e": [], "f": "\u{1b}[2J\u{202e}é", "g": [{}]});
        let cells: Vec<_> = ["/a", "/b", "/c/d", "/c", "/e", "/f", "/g", "/h"]
            .iter()
            .map(|pointer| cell(&value, pointer))
            .collect();
        assert_eq!(
            cells,
            [
                "-",
                "x, y",
                "1.5",
                r#"{"d":1.5}"#,
                "-",
                r"\u{1b}[2J\u{202e}é",
                "[{}]",
                "-"
            ]
        );
    }
}
