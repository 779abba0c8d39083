//! What is answered to a batch: a result for each event, in their order.

use axum::response::Response;
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

#[derive(Serialize)]
struct Answer<'a> {
    accepted: usize,
    refused: usize,
    results: Vec<Outcome<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Accepted(accepted::Answer<'a>),
    Refused { status: &'static str, problem: Value },
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
