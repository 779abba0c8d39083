//! One attempt: a signed POST, and what came of it.
//!
//! Follows [Standard Webhooks](https://www.standardwebhooks.com): 2xx is success, anything else is not, redirects are
//! not followed. DNS, connecting, TLS, sending, and the answer with its body share one deadline.

mod traced;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use shared::{
    Builtin, FailureKind, Timestamp, TraceParent, VERSION,
    announcement::{self, Announcement},
    delivery::{AttemptOutcome, AttemptResult, Failure, Next},
    seal::OpenError,
    trace::Open,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    envelope::{self, Envelope},
    lane::{Ending, Job, LONGEST_PAUSE},
    outbound::{self, Outbound, Progress, Way},
    registry::{Route, Unusable},
    retry_after,
};

/// The most bytes of an answer's body that are read; a longer one costs its connection.
const MAX_ANSWER: usize = 64 * 1024;
/// The bytes of a failed attempt's answer that are kept.
const KEPT_ANSWER: usize = 1024;
const USER_AGENT: &str = concat!("Triggers/", env!("CARGO_PKG_VERSION"));

/// What came of an attempt: for the store, and for the lane.
#[derive(Debug)]
pub struct Attempted {
    /// For the store, which decides whether it counts.
    pub outcome: AttemptOutcome,
    /// What it says of the subscriber.
    pub ending: Ending,
}

/// What this process lacks to make an attempt, which says nothing of the subscriber.
#[derive(Debug, thiserror::Error)]
pub enum Lack {
    /// File descriptors, or threads.
    #[error("{0}")]
    Means(String),
    /// The key that the subscription's secret or headers are sealed under.
    #[error(transparent)]
    Key(OpenError),
}

impl Lack {
    /// What its lane makes of it.
    pub fn ending(&self) -> Ending {
        match self {
            Self::Means(_) => Ending::Starved,
            Self::Key(_) => Ending::Sealed,
        }
    }
}

/// Makes an attempt, and says what came of it; or what this process lacks to make one.
pub async fn attempt(client: &Outbound, way: Way, route: &Route, job: Job) -> Result<Attempted, Lack> {
    let (started_at, started) = (Timestamp::now(), Instant::now());
    let number = job.attempts + 1;
    let (delivery, organization) = (job.key, job.organization);
    let event_type = Arc::clone(&job.event.event_type);
    let of_schedule = number.saturating_sub(job.attempts_before);
    let mut span = traced::begin(route, &job, number);
    let request = request(route, &job, number, started_at, span.as_ref());
    // The envelope holds the payload: one copy is enough for as long as the subscriber takes.
    drop(job);
    let sent = match request {
        Ok(mut request) => {
            let timeout = route.push.timeout.duration();
            let progress = Progress::of(&mut request, organization);
            let deadline = Instant::now() + timeout;
            let head = timeout_at(deadline, progress.follow(client.send(way, request))).await;
            match head {
                Ok(Ok(response)) => answered(response, deadline, timeout).await,
                Ok(Err(error)) => Err(Refused::unanswered(&error)),
                Err(_) => {
                    let detail = progress.phase().overdue(timeout);
                    Err(Refused::without_answer(FailureKind::Timeout, detail))
                }
            }
        }
        Err(Unusable::Bad(detail)) => Err(Refused::without_answer(FailureKind::Unsendable, detail)),
        Err(Unusable::Sealed(error)) => {
            traced::not_made(span);
            return Err(Lack::Key(error));
        }
    };
    let (result, ending) = match sent {
        Ok(status_code) => (AttemptResult::Delivered { status_code }, Ending::Delivered),
        Err(Refused { lack: Some(lack), .. }) => {
            traced::not_made(span);
            return Err(Lack::Means(lack));
        }
        Err(Refused {
            failure,
            wait_for,
            timed_out,
            ..
        }) => {
            let ending = ending(failure.status_code, wait_for, timed_out);
            let schedule = &route.push.retry_schedule;
            // Whoever tests sees what came of it, and tests again.
            let scheduled = (&*event_type != announcement::TEST)
                .then(|| schedule.wait_after(of_schedule, rand::random()))
                .flatten();
            let next = scheduled.map_or(Next::DeadLetter, |scheduled| Next::Retry {
                after: put_off(scheduled, wait_for),
            });
            (AttemptResult::Failed { failure, next }, ending)
        }
    };
    if let Some(span) = &mut span {
        traced::ended(span, &result);
    }
    let announcement = match &result {
        AttemptResult::Failed {
            failure,
            next: Next::DeadLetter,
        } => Announcement::dead_lettered(
            delivery.event,
            &event_type,
            delivery.subscription,
            number,
            failure,
        ),
        _ => None,
    };
    let outcome = AttemptOutcome {
        announcement,
        delivery,
        organization,
        number,
        started_at,
        duration: started.elapsed(),
        result,
    };
    Ok(Attempted { outcome, ending })
}

/// What a failure says of the subscriber. One that answers 429 in time is there, and asks for a slower pace; with 503 it says
/// that it is not, for so long.
fn ending(status: Option<u16>, wait_for: Option<Duration>, timed_out: bool) -> Ending {
    let is_there = !timed_out && status == Some(StatusCode::TOO_MANY_REQUESTS.as_u16());
    match wait_for {
        Some(pause) if is_there => Ending::AskedToWait(pause),
        Some(pause) => Ending::Unavailable { timed_out, pause },
        None => Ending::Failed { timed_out },
    }
}

/// The wait before a retry: the schedule's, or as long as the subscriber asks, but at most an hour over the schedule.
fn put_off(scheduled: Duration, asked: Option<Duration>) -> Duration {
    scheduled
        .max(asked.unwrap_or_default())
        .min(scheduled + LONGEST_PAUSE)
}

/// Why an attempt did not succeed.
struct Refused {
    failure: Failure,
    /// The subscriber asks to be left alone for this long.
    wait_for: Option<Duration>,
    /// It took all the time that there was, whatever its status says.
    timed_out: bool,
    /// What this process lacked to make the attempt.
    lack: Option<String>,
}

impl Refused {
    fn without_answer(kind: FailureKind, detail: String) -> Self {
        Self {
            timed_out: kind == FailureKind::Timeout,
            failure: Failure {
                kind,
                status_code: None,
                detail,
            },
            wait_for: None,
            lack: None,
        }
    }

    fn unanswered(error: &legacy::Error) -> Self {
        let (kind, detail) = outbound::failure(error);
        Self {
            lack: outbound::is_ours(error).then(|| detail.clone()),
            ..Self::without_answer(kind, detail)
        }
    }
}

/// What an answer says, once its body is read. A status that is no success holds whatever becomes of the body.
async fn answered(
    response: Response<Incoming>,
    deadline: Instant,
    timeout: Duration,
) -> Result<u16, Refused> {
    let status = response.status();
    let wait_for = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    )
    .then(|| retry_after::asked(response.headers()))
    .flatten();
    let mut kept = Vec::new();
    let read = timeout_at(deadline, read_to_cap(response, &mut kept)).await;
    let timed_out = read.is_err();
    let unread = match read {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some((FailureKind::Body, why)),
        Err(_) => Some((FailureKind::Timeout, overdue(timeout))),
    };
    let (kind, detail) = match unread {
        None if status.is_success() => return Ok(status.as_u16()),
        Some(unread) if status.is_success() => unread,
        Some((_, why)) if kept.is_empty() => (FailureKind::Status, why),
        _ => (FailureKind::Status, shown(&kept)),
    };
    Err(Refused {
        failure: Failure {
            kind,
            status_code: Some(status.as_u16()),
            detail,
        },
        wait_for,
        timed_out,
        lack: None,
    })
}

fn overdue(timeout: Duration) -> String {
    format!("the answer's body did not end within {} ms", timeout.as_millis())
}

/// Reads the body, so that the connection can be used again, no further than the cap; keeps its beginning.
async fn read_to_cap(response: Response<Incoming>, kept: &mut Vec<u8>) -> Result<(), String> {
    let (mut body, mut read) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the answer's body broke off: {error}"))?;
        if let Some(data) = frame.data_ref() {
            let room = KEPT_ANSWER - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
            read += data.len();
            if read > MAX_ANSWER {
                break;
            }
        }
    }
    Ok(())
}

/// An answer as text that a store and a person can take.
fn shown(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).replace('\0', "\u{fffd}")
}

fn request(
    route: &Route,
    job: &Job,
    number: u32,
    at: Timestamp,
    span: Option<&Open>,
) -> Result<Request<Full<Bytes>>, Unusable> {
    let uri = route.uri.clone()?;
    let keys = route.signing.as_ref().map_err(Clone::clone)?;
    let id = job.event.id.to_string();
    let headers = route.headers.as_ref().map_err(Clone::clone)?;
    let Envelope { content_type, body } =
        envelope::seal(route.push.format, &id, job.organization, &job.event);
    let signing = keys
        .iter()
        .filter(|(_, until)| until.is_none_or(|until| at < until));
    let signatures: Vec<String> = signing.map(|(key, _)| key.sign(&id, at, &body)).collect();
    let signature = signatures.join(" ");

    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    // Those of the subscription are none of the system's own, which come after all the same.
    *request.headers_mut() = headers.clone();
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert("webhook-timestamp", HeaderValue::from(at.seconds()));
    headers.insert("webhook-attempt", HeaderValue::from(number));
    let mut text = |name: &'static str, value: &str| insert(headers, name, value);
    text("webhook-id", &id)?;
    text("webhook-signature", &signature)?;
    let context = span.map(Open::context);
    let trace = context.as_ref().map(TraceParent::as_str);
    if let Some(trace) = trace.or(job.event.trace.as_deref()) {
        text("traceparent", trace)?;
    }
    if route.subscription.builtin == Some(Builtin::Webhook) {
        text("x-event-id", &job.event.id.uuid().to_string())?;
        text("x-event-type", &job.event.event_type)?;
    }
    Ok(request)
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Unusable> {
    let value = HeaderValue::from_str(value)
        .map_err(|error| Unusable::Bad(format!("the header {name} cannot be sent: {error}")))?;
    headers.insert(name, value);
    Ok(())
}

const _: () = assert!(!VERSION.is_empty());

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::RetrySchedule;

    use super::*;

    #[test]
    fn answers_can_be_stored() {
        assert_eq!(shown(b"a\0b\xffc"), "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn a_slower_pace_is_no_failure_and_to_be_unavailable_is_one() {
        let wait = Duration::from_secs(1);
        let unavailable = |timed_out| Ending::Unavailable {
            timed_out,
            pause: wait,
        };
        assert_eq!(ending(Some(429), Some(wait), false), Ending::AskedToWait(wait));
        assert_eq!(ending(Some(503), Some(wait), false), unavailable(false));
        // Its body did not end: that costs what any does that hangs.
        for status in [429, 503] {
            assert_eq!(ending(Some(status), Some(wait), true), unavailable(true));
            assert_eq!(
                ending(Some(status), None, false),
                Ending::Failed { timed_out: false }
            );
        }
    }

    proptest! {
        #[test]
        fn no_wait_is_shorter_than_the_schedule_or_more_than_an_hour_longer(
            waits in prop::collection::vec(1..=RetrySchedule::MAX_SECONDS, 1..=20), random in 0.0..1.0f64, asked: Option<u64>
        ) {
            let schedule = RetrySchedule::new(waits.clone()).unwrap();
            for (at, wait) in waits.iter().enumerate() {
                let scheduled = schedule.wait_after(u32::try_from(at).unwrap() + 1, random).unwrap();
                let asked = asked.map(Duration::from_secs);
                let put_off = put_off(scheduled, asked);
                prop_assert!(scheduled <= put_off && put_off <= scheduled + Duration::from_hours(1));
                prop_assert!(scheduled.as_secs_f64() >= 0.799 * f64::from(*wait));
                if let Some(asked) = asked.filter(|asked| *asked <= scheduled + Duration::from_hours(1)) {
                    prop_assert!(put_off >= asked, "what is asked for within the bound is kept to");
                }
            }
        }
    }
}
