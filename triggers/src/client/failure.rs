//! How a command fails, and what is told of it.

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
    time::Duration,
};

use serde_json::Value;
use shared::config::SettingError;

use super::output::plain;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It was used wrongly.
    #[error("{0}")]
    Usage(String),
    /// The API answered with a problem.
    #[error("{}", .0.line())]
    Problem(Box<Problem>),
    /// Nothing was asked: there is no way to the API.
    #[error("{0}")]
    Unreachable(String),
    /// There was no answer, or none of the API's; whether what was asked has been done is not known.
    #[error("{0}")]
    Unanswered(String),
    /// Something on this side.
    #[error("{0}")]
    Here(String),
    /// What was to be done was done in part; the rest has been told.
    #[error("{0}")]
    Partly(String),
    /// Nobody reads the output any more.
    #[error("nobody reads")]
    Unread,
}

impl Failure {
    /// From what stops a start.
    pub fn from_start(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let text = format!("{error:#}");
        if error.is::<SettingError>() {
            Self::Usage(text)
        } else {
            Self::Here(text)
        }
    }

    /// Whether trying again may help.
    pub fn again(&self) -> Again {
        match self {
            Self::Problem(problem) if may_pass(problem.status) => {
                let said = problem.retry_after.map(Duration::from_secs);
                said.map_or(Again::Sometime, Again::After)
            }
            Self::Unreachable(_) | Self::Unanswered(_) => Again::Sometime,
            _ => Again::Never,
        }
    }

    /// Tells of it on standard error, and gives the exit code.
    pub(super) fn tell(&self, json: bool) -> ExitCode {
        let text = match self {
            Self::Unread => return ExitCode::SUCCESS,
            Self::Problem(problem) if json => problem.text.trim_end().to_owned(),
            Self::Problem(problem) => format!("error: {}", problem.lines()),
            other => format!("error: {}", plain(&other.to_string())),
        };
        // Nobody reads it, perhaps; the exit code says it, too.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
        ExitCode::from(if matches!(self, Self::Usage(_)) { 2 } else { 1 })
    }
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It does not.
    Never,
    /// Once this time is over.
    After(Duration),
    /// When, nobody said.
    Sometime,
}

/// Whether what was refused with this status may get in later.
pub const fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 503)
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Here(error.to_string()),
        }
    }
}

/// A problem as the API answers it (RFC 9457).
#[derive(Debug)]
pub struct Problem {
    /// The status.
    pub status: u16,
    /// After how many seconds to try again, if that was said.
    pub retry_after: Option<u64>,
    text: String,
    value: Value,
}

impl Problem {
    /// Reads one; `None` if it is none.
    pub fn read(status: u16, retry_after: Option<u64>, text: String) -> Option<Self> {
        let value: Value = serde_json::from_str(&text).ok()?;
        value.get("code")?.as_str()?;
        Some(Self {
            status,
            retry_after,
            text,
            value,
        })
    }

    fn member(&self, name: &str) -> String {
        plain(self.value[name].as_str().unwrap_or_default())
    }

    /// What is wrong, in a line: detail and code, and each place.
    pub fn line(&self) -> String {
        let mut line = format!("{} ({})", self.member("detail"), self.member("code"));
        for place in self.places() {
            line.push_str("; ");
            line.push_str(&place);
        }
        line
    }

    fn lines(&self) -> String {
        let mut lines = format!("{} ({})", self.member("title"), self.member("code"));
        lines.push_str("\n  ");
        lines.push_str(&self.member("detail"));
        for place in self.places() {
            lines.push_str("\n  ");
            lines.push_str(&place);
        }
        // That of an event of a batch has none: the request was answered with 202.
        let request = self.member("request_id");
        if !request.is_empty() {
            lines.push_str("\n  request ");
            lines.push_str(&request);
        }
        lines
    }

    /// Each place with what is wrong there.
    fn places(&self) -> Vec<String> {
        let errors = self.value["errors"].as_array().map_or(&[][..], Vec::as_slice);
        let places = errors.iter().map(|error| {
            let place = ["pointer", "parameter", "header"]
                .iter()
                .find_map(|kind| error[kind].as_str())
                .unwrap_or_default();
            let detail = error["detail"].as_str().unwrap_or_default();
            plain(&format!("{place} {detail}"))
        });
        places.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_whole_and_tame() {
        let text = r#"{"title":"The request breaks a rule","detail":"two","code":"invalid_request","request_id":"r-1",
            "errors":[{"pointer":"/type","detail":"is \u001b[31mred"},{"parameter":"limit","detail":"is none"}]}"#;
        let problem = Problem::read(422, None, text.to_owned()).unwrap();
        assert_eq!(
            problem.lines(),
            "The request breaks a rule (invalid_request)\n  two\n  /type is \\u{1b}[31mred\n  limit is none\n  request r-1"
        );
        assert!(Problem::read(502, None, "<html>".to_owned()).is_none());
        assert!(Problem::read(502, None, "{}".to_owned()).is_none());
    }
}
