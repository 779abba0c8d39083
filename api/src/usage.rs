//! `GET /v1/usage`: what an organization used of its limit, hour by hour, and how the limit stands.
//!
//! The fronts count, and write down within seconds what they counted; so this is a little behind them.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Tier, Timestamp,
    http::{
        ApiError, FieldError, Query,
        openapi::{Parameter, Parameters, Routes, doc, get},
    },
    store::Usage,
};

use crate::{
    Control,
    access::{AnyKey, Caller},
    answer::Answer,
};

/// How far back it goes unless asked to.
const DAY: Duration = Duration::from_hours(24);
const SECONDS_OF_AN_HOUR: i64 = 3_600;

pub(crate) fn routes() -> Routes<Arc<Control>> {
    Routes::of("Organizations").at(
        "/v1/usage",
        get(
            show,
            doc("getUsage", "See what was used").text(
                "By the hour, in UTC; hours without any are left out. Kept for 31 days, and a few seconds behind. Without \
                 `since`, the last 24 hours.",
            ),
        ),
    )
}

/// The parameters.
struct Range;

impl Parameters for Range {
    const ALL: &'static [Parameter] = &[
        Parameter::of::<Timestamp>("since", "From the hour on that this is in."),
        Parameter::of::<Timestamp>(
            "until",
            "To the end of the hour that this is in; now unless given.",
        ),
    ];
}

/// What an organization used.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
struct UsageView {
    tier: Tier,
    /// How the limit stands; `null` is no limit.
    limit: Option<LimitView>,
    /// When the first hour begins, and the last one ends.
    since: Timestamp,
    until: Timestamp,
    /// Over all these hours.
    accepted: u64,
    rate_limited: u64,
    hours: Vec<HourView>,
}

/// A limit, over everything that takes events.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UsageLimit")]
struct LimitView {
    /// Accepted events a minute. As many may come at once.
    events_per_minute: u32,
    /// As many may come now.
    remaining: u32,
    /// In so many seconds a minute's worth may come again, if nothing comes until then.
    reset_seconds: u64,
}

/// What was used in an hour.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UsageHour")]
struct HourView {
    /// When it begins.
    start: Timestamp,
    /// Events that were accepted, repeats included.
    accepted: u64,
    /// Events that were refused since the limit was used up.
    rate_limited: u64,
}

impl LimitView {
    /// Of a bucket that is full again in this time.
    fn of(events_per_minute: u32, used: Duration) -> Self {
        let left = Duration::from_mins(1).saturating_sub(used).as_millis();
        let remaining = u64::try_from(left).unwrap_or(0) * u64::from(events_per_minute) / 60_000;
        Self {
            events_per_minute,
            remaining: u32::try_from(remaining).unwrap_or(events_per_minute),
            reset_seconds: used.as_secs() + u64::from(used.subsec_nanos() > 0),
        }
    }
}

fn hour_of(at: Timestamp) -> i64 {
    at.seconds().div_euclid(SECONDS_OF_AN_HOUR)
}

fn start_of(hour: i64) -> Timestamp {
    Timestamp::from_millis(hour.saturating_mul(SECONDS_OF_AN_HOUR * 1_000))
}

async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<AnyKey>,
    mut query: Query<Range>,
) -> Result<Answer<UsageView>, ApiError> {
    let since = query.optional("since", str::parse::<Timestamp>);
    let until = query.optional("until", str::parse::<Timestamp>);
    query.finish()?;
    let last = hour_of(until.unwrap_or_else(Timestamp::now));
    let first = since.map_or_else(|| hour_of(start_of(last + 1).minus(DAY)), hour_of);
    if first > last {
        let wrong = FieldError::parameter("since", "must not be after until");
        return Err(ApiError::invalid(vec![wrong]));
    }
    let usage = &control.api.store.limits;
    let Usage { hours, used } = usage.usage(caller.organization(), first, last).await?;
    let tier = caller.grant.tier;
    Ok(Answer::ok(UsageView {
        tier,
        limit: tier.events_per_minute().map(|limit| LimitView::of(limit, used)),
        since: start_of(first),
        until: start_of(last + 1),
        accepted: hours.iter().map(|(_, counts)| counts.accepted).sum(),
        rate_limited: hours.iter().map(|(_, counts)| counts.refused).sum(),
        hours: hours
            .into_iter()
            .map(|(hour, counts)| HourView {
                start: start_of(hour),
                accepted: counts.accepted,
                rate_limited: counts.refused,
            })
            .collect(),
    }))
}
