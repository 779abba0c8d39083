//! Logs and metrics.
//!
//! Logs are text on a terminal and JSON elsewhere; fields are stable and dotted, and never hold payloads, keys or
//! secrets. Metric names and labels are all here; label values come from enums, so that their number is bounded.

use std::{io::IsTerminal, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
pub use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    FailureKind, Invalid,
    lifecycle::Lifecycle,
    store::{BacklogAge, SuccessBand},
};

/// What is logged unless the filter says otherwise: a frame that the broker returns is looked at where it was published, and
/// the library's own warning about it tells an operator nothing.
const QUIET: &str = "lapin::returned_messages=error";

/// Reads a filter such as `info` or `info,worker=debug`.
pub fn log_filter(filter: &str) -> Result<EnvFilter, Invalid> {
    EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|error| {
        Invalid::new(format!(
            "is not a log filter ({error}); use for example info or info,worker=debug"
        ))
    })
}

/// Sets up logs by a [filter](log_filter).
pub fn init_logs(filter: &str) -> Result<(), Invalid> {
    let filter = log_filter(filter)?;
    let registry = tracing_subscriber::registry().with(filter);
    let set = if std::io::stderr().is_terminal() {
        registry
            .with(fmt::layer().with_writer(std::io::stderr).with_target(false))
            .try_init()
    } else {
        registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr),
            )
            .try_init()
    };
    set.map_err(|error| Invalid::new(error.to_string()))
}

/// Upper bounds, in seconds, of the histograms of time.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 300.0,
];
/// Upper bounds of the histograms of numbers.
const COUNTS: [f64; 11] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0,
];

/// Installs the process's metrics recorder.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_events".into()), &COUNTS)?
        .install_recorder()?;
    describe();
    for reason in Refusal::ALL {
        refused(reason).increment(0);
    }
    shed().increment(0);
    for ending in Ending::ALL {
        deliveries(ending).increment(0);
    }
    for kind in FailureKind::ALL {
        attempt_failures(kind).increment(0);
    }
    Ok(handle)
}

/// Folds recorded values into their histograms now and then, so that they do not pile up between scrapes.
pub async fn keep_metrics(handle: PrometheusHandle, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            () = lifecycle.soft.cancelled() => return Ok(()),
            _ = every.tick() => handle.run_upkeep(),
        }
    }
}

/// Why an event was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It breaks a rule.
    Invalid,
    /// No valid key, or one without the scope.
    Unauthorized,
    /// The limit is used up.
    RateLimited,
    /// The queue or the store is away.
    Unavailable,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 4] = [
        Self::Invalid,
        Self::Unauthorized,
        Self::RateLimited,
        Self::Unavailable,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
        }
    }
}

/// How an attempt or a delivery ended, as metrics count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With a 2xx.
    Delivered,
    /// Another attempt follows.
    Retrying,
    /// The last attempt failed.
    DeadLetter,
    /// The outcome did not apply: the delivery was closed, or held by another, meanwhile.
    Superseded,
}

impl Ending {
    /// Every ending.
    pub const ALL: [Self; 4] = [
        Self::Delivered,
        Self::Retrying,
        Self::DeadLetter,
        Self::Superseded,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retrying => "retrying",
            Self::DeadLetter => "dead_letter",
            Self::Superseded => "superseded",
        }
    }
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $what:ident $name:ident = $key:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub fn $name() -> metrics!(@type $what) {
                $what!($key)
            }
        )*
        fn describe() {
            // Shown from the start, so that there is a zero to compare with.
            $(metrics!(@touch $what $key);)*
            $(metrics!(@describe $what, $key, $help);)*
            describe_counter!(REFUSED, "Events refused, by reason.");
            describe_counter!(
                SHED,
                "Events, or parts of batches, refused because more came than the queue took."
            );
            describe_counter!(DELIVERIES, "Attempts whose outcome was written down, by outcome.");
            describe_counter!(FAILURES, "Failed attempts, by kind of failure.");
            describe_gauge!(BACKLOG, "Open push deliveries in the store, by state, counted up to 100,000 each.");
            describe_gauge!(SUBSCRIPTIONS, "Enabled push subscriptions, by the state of their circuit.");
            describe_gauge!(BY_SUCCESS, "Subscriptions with attempts in the last five minutes, by the share of them that succeeded: all, most (90 % or more), half (50 % or more), few, none.");
            describe_gauge!(BACKLOGGED, "Enabled push subscriptions whose next delivery is of an event older than this.");
        }
    };
    (@touch counter $key:literal) => { counter!($key).increment(0) };
    (@touch $other:ident $key:literal) => {};
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type histogram) => { Histogram };
    (@describe counter, $key:literal, $help:literal) => { describe_counter!($key, $help) };
    (@describe gauge, $key:literal, $help:literal) => { describe_gauge!($key, $help) };
    (@describe histogram, $key:literal, $help:literal) => { describe_histogram!($key, $help) };
}

metrics! {
    counter accepted = "triggers_events_accepted_total", "Events answered with 202, repeats included.";
    counter repeats = "triggers_events_repeated_total", "Events that a front recognized as repeats.";
    counter frames = "triggers_frames_published_total", "Frames that the queue confirmed.";
    histogram frame_events = "triggers_frame_events", "Events a frame.";
    histogram publish_seconds = "triggers_publish_seconds", "Time from writing a frame to its confirmation.";
    gauge queue_frames = "triggers_queue_frames", "Frames in the queue.";
    gauge queue_dead_frames = "triggers_queue_dead_frames", "Frames that were returned too often and wait to be taken in one at a time.";
    gauge queue_age = "triggers_queue_age_seconds", "How long the oldest frame has waited at most: how long ago the newest event that was taken in was accepted, while frames wait; else zero.";
    histogram intake_events = "triggers_intake_batch_events", "Events an intake batch.";
    histogram intake_seconds = "triggers_intake_seconds", "Time of an intake transaction.";
    counter filters_compiled = "triggers_filters_compiled_total", "Filters that intake had to compile: those that were not kept compiled.";
    counter filters_evaluated = "triggers_filters_evaluated_total", "Filters that were evaluated for an event at intake.";
    counter filters_failed = "triggers_filters_failed_total", "Filters that could not be evaluated for an event, and so did not match.";
    histogram filter_seconds = "triggers_filter_seconds", "Time that the filters of an intake batch took, where it had any.";
    counter stored = "triggers_events_stored_total", "Events stored by intake.";
    counter duplicates = "triggers_events_duplicate_total", "Events that intake found to be stored already, or to be repeats of another.";
    counter dropped = "triggers_events_dropped_total", "Events dropped because their organization was removed.";
    counter set_aside = "triggers_events_set_aside_total", "Frames and events set aside.";
    counter set_aside_expired = "triggers_set_aside_expired_total", "Frames and events that were still set aside when their retention ended.";
    gauge set_aside_now = "triggers_set_aside", "Frames and events that are set aside now.";
    histogram attempt_seconds = "triggers_attempt_seconds", "Time of an attempt.";
    counter sealed = "triggers_attempts_sealed_total", "Attempts that were not made because the subscription's secret or headers do not open under this process's keys.";
    histogram delivery_seconds = "triggers_delivery_seconds", "Time from accepting an event to its delivery.";
    gauge attempts_in_flight = "triggers_attempts_in_flight", "Attempts under way.";
    gauge suspect_attempts_in_flight = "triggers_suspect_attempts_in_flight", "Attempts under way in the suspect pool: of subscribers that take long or fail.";
    gauge lookups_in_flight = "triggers_lookups_in_flight", "Look-ups of hosts under way, each with a thread.";
    gauge open_circuits = "triggers_open_circuits", "Lanes whose circuit is open: nothing but probes is sent.";
    gauge lanes_busy = "triggers_lanes_busy", "Lanes with deliveries waiting or in flight.";
    gauge lane_deliveries = "triggers_lane_deliveries", "Deliveries that wait in lanes.";
    gauge backlog_oldest = "triggers_backlog_oldest_due_seconds", "How long the oldest due delivery has been due.";
    counter expired = "triggers_deliveries_expired_total", "Deliveries that were still open when their retention ended.";
    gauge oldest_undelivered = "triggers_backlog_oldest_undelivered_seconds", "How long the oldest event has waited, of those that are next in the lane of an enabled push subscription.";
    counter attempts_uncounted = "triggers_attempts_uncounted_total", "Attempts that are missing in the statistics of their subscription: too many subscriptions had some within a minute.";
    counter turned_away = "triggers_connections_turned_away_total", "Connections for which there was no place, of all or of one address: answered with 503 or 429, or closed.";
    gauge pulls_waiting = "triggers_pulls_waiting", "Pulls that wait for something to lease.";
    counter pulled = "triggers_events_pulled_total", "Events that were leased to who pulls, each time that they were.";
    counter spans_exported = "triggers_spans_exported_total", "Spans that the collector took.";
    counter spans_dropped = "triggers_spans_dropped_total", "Spans that were dropped: the collector did not take them, or more ended than it takes.";
    counter lease_lost = "triggers_worker_leases_lost_total", "Times that a worker stalled past its lease.";
}

const REFUSED: &str = "triggers_events_refused_total";
const DELIVERIES: &str = "triggers_deliveries_total";
const FAILURES: &str = "triggers_attempt_failures_total";
const BACKLOG: &str = "triggers_backlog_deliveries";
const SUBSCRIPTIONS: &str = "triggers_subscriptions";
const BY_SUCCESS: &str = "triggers_subscriptions_by_success";
const BACKLOGGED: &str = "triggers_subscriptions_backlogged";

const SHED: &str = "triggers_events_shed_total";

/// Events, or parts of batches, refused because more came than the queue took. They are among the refused, as unavailable.
pub fn shed() -> Counter {
    counter!(SHED)
}

/// Events refused for this reason.
pub fn refused(reason: Refusal) -> Counter {
    counter!(REFUSED, "reason" => reason.as_str())
}

/// Attempts that ended so.
pub fn deliveries(ending: Ending) -> Counter {
    counter!(DELIVERIES, "outcome" => ending.as_str())
}

/// Failed attempts of this kind.
pub fn attempt_failures(kind: FailureKind) -> Counter {
    counter!(FAILURES, "kind" => kind.as_str())
}

/// What an open push delivery is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// No attempt has failed.
    Pending,
    /// An attempt has failed.
    Retrying,
    /// Its subscription is disabled.
    Parked,
}

/// Open push deliveries that are so.
pub fn backlog(open: Open) -> Gauge {
    let state = match open {
        Open::Pending => "pending",
        Open::Retrying => "retrying",
        Open::Parked => "parked",
    };
    gauge!(BACKLOG, "state" => state)
}

/// How a subscription's circuit is, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    /// Everything is sent.
    Closed,
    /// Nothing is sent before the time of a probe.
    Open,
    /// A probe may be sent.
    HalfOpen,
}

/// Enabled push subscriptions whose circuit is so.
pub fn subscriptions(circuit: Circuit) -> Gauge {
    let state = match circuit {
        Circuit::Closed => "closed",
        Circuit::Open => "open",
        Circuit::HalfOpen => "half_open",
    };
    gauge!(SUBSCRIPTIONS, "circuit" => state)
}

/// Subscriptions of whose attempts this share succeeded.
pub fn subscriptions_by_success(band: SuccessBand) -> Gauge {
    gauge!(BY_SUCCESS, "succeeded" => band.as_str())
}

/// Subscriptions whose backlog is at least this old.
pub fn subscriptions_backlogged(age: BacklogAge) -> Gauge {
    gauge!(BACKLOGGED, "older_than" => age.as_str())
}
