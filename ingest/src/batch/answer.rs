//! What is answered to a batch: a result for each event, in their order.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use shared::{
    http::{ApiError, Code},
    telemetry,
};

use crate::{
    accepted::{self, Accepted},
    post,
    poster::Poster,
};

/// What became of a batch.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BatchAccepted")]
pub(crate) struct Answer<'a> {
    accepted: usize,
    refused: usize,
    /// In the order of the events.
    results: Vec<Outcome<'a>>,
}

/// What became of one event of a batch.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "BatchResult")]
enum Outcome<'a> {
    Accepted(accepted::Answer<'a>),
    Refused {
        status: &'static str,
        /// As if the event had been posted alone, with `retry_after_seconds` in place of the header, and no `request_id`.
        problem: Value,
    },
}

/// 202; but if nothing got in and trying again may help, that is the answer: whoever looks at the status alone then knows.
pub(super) fn of(outcomes: &[Result<Accepted, ApiError>], poster: &Poster<'_>) -> Result<Response, ApiError> {
    let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    if accepted == 0 {
        let refusals = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        for code in [Code::Unavailable, Code::RateLimited] {
            if let Some(error) = refusals().find(|error| error.code() == code) {
                return Err(error.clone());
            }
        }
    }
    telemetry::accepted().increment(accepted as u64);
    let results = outcomes.iter().map(|outcome| match outcome {
        Ok(accepted) => Outcome::Accepted(accepted.answer()),
        Err(error) => {
            post::count_refusal(error);
            Outcome::Refused {
                status: "refused",
                problem: error.to_result(),
            }
        }
    });
    let answer = Answer {
        accepted,
        refused: outcomes.len() - accepted,
        results: results.collect(),
    };
    Ok(post::answered(&answer, poster.limit()))
}
