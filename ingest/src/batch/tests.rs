//! Batches over a queue that remembers what is written, and refuses what it is told to.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::body::Body;
use http::HeaderMap;
use proptest::prelude::*;
use serde_json::{Value, json};
use shared::{
    AcceptedEvent, Entry, Grant, KeyId, OrganizationId, Scope, Tier,
    auth::{AddressRules, Auth},
    config::EngineArgs,
    engine::Engine,
    http::room::Room,
    lifecycle::Lifecycle,
    queue::{
        Confirmation, Depth, FrameSink, FrameSource, MAX_FRAME_BYTES, Publisher, Queue, QueueError,
        SourceLane, frame,
    },
};
use tokio::sync::Semaphore;

use super::*;

/// What a queue was given.
#[derive(Default)]
pub(crate) struct Written {
    frames: Vec<Bytes>,
    /// How many were offered, refused ones included.
    offered: usize,
    /// Which of those offered are refused, counted from 0.
    refused: HashSet<usize>,
    /// Where set, what becomes of frames is told once it is closed.
    held: Option<Arc<Semaphore>>,
}

#[derive(Clone, Default)]
pub(crate) struct Paper(Arc<Mutex<Written>>);

#[async_trait]
impl Queue for Paper {
    async fn sink(&self) -> Result<Box<dyn FrameSink>, QueueError> {
        Ok(Box::new(self.clone()))
    }

    async fn source(&self, _: SourceLane) -> Result<Box<dyn FrameSource>, QueueError> {
        Err(QueueError::Unavailable("nothing comes out of it".into()))
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        Ok(Depth::default())
    }

    async fn close(&self) {}
}

#[async_trait]
impl FrameSink for Paper {
    async fn write(&mut self, _: usize, frame: Bytes) -> Result<Confirmation, QueueError> {
        let mut written = self.0.lock().unwrap();
        let number = written.offered;
        written.offered += 1;
        let refused = written.refused.contains(&number);
        let held = written.held.clone();
        if !refused {
            written.frames.push(frame);
        }
        Ok(Box::pin(async move {
            // Others have their turn, as they have while a queue confirms.
            tokio::task::yield_now().await;
            if let Some(held) = held {
                // It has no permits.
                let _ = held.acquire().await;
            }
            if refused {
                return Err(QueueError::Refused("it is told to".into()));
            }
            Ok(())
        }))
    }

    fn healthy(&self) -> bool {
        true
    }
}

/// A front whose queue is paper, and whose limits are its own.
pub(crate) struct Front {
    pub(crate) ingest: Arc<Ingest>,
    paper: Paper,
    pub(crate) organization: OrganizationId,
    lifecycle: Lifecycle,
    directory: PathBuf,
}

impl Front {
    pub(crate) async fn open() -> Self {
        let directory = std::env::temp_dir().join(format!("triggers-batch-{}", uuid::Uuid::new_v4()));
        let args = EngineArgs {
            database_url: None,
            amqp_url: None,
            secret_key: None,
            former_secret_keys: None,
            database_connections: 2,
            migrate: true,
            queue_prefix: String::new(),
            queues: 1,
            queue_delivery_limit: 20,
            queue_max_bytes: 1 << 30,
        };
        // For the keys alone, none of which is ever looked up.
        let engine = Engine::open(&args, Some(&directory)).await.expect("an engine");
        let (lifecycle, paper) = (Lifecycle::new(), Paper::default());
        let publisher = Publisher::start(Arc::new(paper.clone()), &lifecycle);
        while !publisher.is_open() {
            tokio::task::yield_now().await;
        }
        Self {
            ingest: Arc::new(Ingest {
                auth: Auth::start(&engine, AddressRules::default(), &lifecycle),
                publisher,
                limits: Arc::default(),
                recent: crate::Recent::default(),
                batches: Room::new(ROOM, NO_ROOM),
                bodies: Room::new(post::ROOM, body::NO_ROOM),
            }),
            paper,
            organization: OrganizationId::new(),
            lifecycle,
            directory,
        }
    }

    pub(crate) fn poster(&self, tier: Tier) -> Poster<'_> {
        let grant = Grant {
            key: KeyId::new(),
            organization: self.organization,
            tier,
            scopes: [Scope::EventsWrite].into_iter().collect(),
            expires_at: None,
        };
        Poster::known(&self.ingest, Arc::new(grant))
    }

    /// Posts a batch; the outcome's status and body.
    async fn post(&self, tier: Tier, body: String) -> (u16, HeaderMap, Value) {
        self.post_as("application/json", tier, body).await
    }

    async fn post_as(&self, content_type: &str, tier: Tier, body: String) -> (u16, HeaderMap, Value) {
        let request = http::Request::builder().header("content-type", content_type);
        let request = request.body(Body::from(body)).unwrap();
        let kind = match content_type {
            "application/cloudevents-batch+json" => Kind::CloudEvents,
            _ => Kind::Plain,
        };
        match accept_from(&self.poster(tier), request, kind).await {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let body = serde_json::from_slice(&body).unwrap();
                (parts.status.as_u16(), parts.headers, body)
            }
            Err(error) => {
                let status = error.code().status().as_u16();
                (status, HeaderMap::new(), error.to_result())
            }
        }
    }

    /// Refuses these of the frames to come, counted from 0, and forgets what was written.
    fn refuse(&self, frames: impl IntoIterator<Item = usize>) {
        *self.paper.0.lock().unwrap() = Written {
            refused: frames.into_iter().collect(),
            ..Written::default()
        };
    }

    /// Tells of no frame what became of it, until what this gives is dropped.
    pub(crate) fn hold(&self) -> Holding {
        let held = Arc::new(Semaphore::new(0));
        self.paper.0.lock().unwrap().held = Some(Arc::clone(&held));
        Holding(self.paper.clone(), held)
    }

    /// Until so many frames were offered to the queue, as far as `posting` goes, which does not end.
    pub(crate) async fn offered(&self, frames: usize, posting: impl Future) {
        let offered = async {
            while self.paper.0.lock().unwrap().offered < frames {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = offered => {}
            _ = posting => panic!("it is answered before its frame is confirmed"),
        }
    }

    /// Waits until so many of the events of this poster's organization are counted as accepted.
    pub(crate) async fn counts(&self, poster: &Poster<'_>, accepted: u64) {
        let counted = async {
            while self.ingest.limits.accepted(&poster.grant) != accepted {
                tokio::task::yield_now().await;
            }
        };
        let counted = tokio::time::timeout(Duration::from_secs(20), counted).await;
        let are = self.ingest.limits.accepted(&poster.grant);
        assert!(counted.is_ok(), "{are} are counted, not {accepted}");
    }

    fn entries(&self) -> Vec<Entry> {
        let written = self.paper.0.lock().unwrap();
        let frames = written.frames.iter();
        frames.flat_map(|frame| frame::decode(frame).unwrap()).collect()
    }

    /// The events that are in the queue, in order.
    fn events(&self) -> Vec<AcceptedEvent> {
        let event = |entry| match entry {
            Entry::Event(event) => Some(event),
            Entry::Repeat(_) => None,
        };
        self.entries().into_iter().filter_map(event).collect()
    }
}

/// What [`Front::hold`] does, for as long as there is this.
pub(crate) struct Holding(Paper, Arc<Semaphore>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().held = None;
        self.1.close();
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.lifecycle.soft.cancel();
        self.lifecycle.hard.cancel();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Events whose payloads say their place, with so many bytes beside.
pub(crate) fn numbered(count: usize, bytes: usize) -> String {
    let pad = "x".repeat(bytes);
    let events = (0..count).map(|number| format!(r#"{{"type":"a","payload":["{number}","{pad}"]}}"#));
    format!("[{}]", events.collect::<Vec<_>>().join(","))
}

/// The places that payloads of [`numbered`] say.
fn numbers(events: &[AcceptedEvent]) -> Vec<usize> {
    let number = |event: &AcceptedEvent| event.payload.as_str().split('"').nth(1).unwrap().parse().unwrap();
    events.iter().map(number).collect()
}

fn statuses(answer: &Value) -> Vec<(String, u64)> {
    let results = answer["results"].as_array().unwrap();
    let status = |result: &Value| {
        let word = result["status"].as_str().unwrap().to_owned();
        (word, result["problem"]["status"].as_u64().unwrap_or(202))
    };
    results.iter().map(status).collect()
}

/// Without what is another each time.
fn shown(mut answer: Value) -> String {
    if let Some(results) = answer.get_mut("results").and_then(Value::as_array_mut) {
        for result in results {
            for member in ["id", "received_at"] {
                if let Some(value) = result.get_mut(member) {
                    *value = json!(format!("the {member}"));
                }
            }
        }
    }
    serde_json::to_string_pretty(&answer).unwrap()
}

#[tokio::test]
async fn a_large_batch_goes_in_several_frames_in_order() {
    let front = Front::open().await;
    let (status, _, answer) = front.post(Tier::Unlimited, numbered(1_000, 2_000)).await;
    assert_eq!(
        (status, &answer["accepted"], &answer["refused"]),
        (202, &json!(1_000), &json!(0))
    );
    let events = front.events();
    assert_eq!(numbers(&events), (0..1_000).collect::<Vec<_>>());
    assert!(
        events.is_sorted_by(|one, other| one.id < other.id),
        "ids grow along the batch"
    );
    for (event, result) in events.iter().zip(answer["results"].as_array().unwrap()) {
        assert_eq!(result["id"], event.id.to_string());
    }
    let written = front.paper.0.lock().unwrap();
    assert!(written.frames.iter().all(|frame| frame.len() <= MAX_FRAME_BYTES));
    assert!(
        (8..=10).contains(&written.frames.len()),
        "{}",
        written.frames.len()
    );
}

#[tokio::test]
async fn what_fits_into_a_frame_is_in_one() {
    let front = Front::open().await;
    let (_, _, answer) = front.post(Tier::Unlimited, numbered(1_000, 10)).await;
    assert_eq!(answer["accepted"], 1_000);
    assert_eq!(front.paper.0.lock().unwrap().frames.len(), 1);
}

#[tokio::test]
async fn when_a_frame_fails_what_got_in_is_the_beginning() {
    let front = Front::open().await;
    front.refuse([2]);
    // Others post meanwhile: frames of theirs are on their way at the same time.
    let batch = front.post(Tier::Unlimited, numbered(500, 2_000));
    let other = front.post(Tier::Unlimited, numbered(3, 10));
    let ((status, _, answer), _) = tokio::join!(batch, other);
    assert_eq!(status, 202);
    let accepted = usize::try_from(answer["accepted"].as_u64().unwrap()).unwrap();
    assert!((1..500).contains(&accepted), "{accepted}");
    let expected = (0..500).map(|place| match place {
        place if place < accepted => ("accepted".to_owned(), 202),
        _ => ("refused".to_owned(), 503),
    });
    assert_eq!(statuses(&answer), expected.collect::<Vec<_>>());
    let large: Vec<_> = front
        .events()
        .into_iter()
        .filter(|event| event.payload.as_bytes().len() > 100)
        .collect();
    assert_eq!(numbers(&large), (0..accepted).collect::<Vec<_>>());
}

#[tokio::test]
async fn when_nothing_gets_in_the_answer_says_so() {
    let front = Front::open().await;
    front.refuse([0]);
    let body = r#"[{"type":"a","payload":1},{"type":"a b","payload":1}]"#;
    let (status, _, problem) = front.post(Tier::Free, body.into()).await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    assert_eq!(
        front.poster(Tier::Free).limit()["ratelimit-remaining"],
        "100",
        "it is given back"
    );
}

#[tokio::test]
async fn the_limit_takes_the_beginning() {
    let front = Front::open().await;
    let (status, headers, answer) = front.post(Tier::Free, numbered(150, 10)).await;
    assert_eq!(
        (status, &headers["ratelimit-limit"]),
        (202, &"100".parse().unwrap())
    );
    assert_eq!(headers["ratelimit-remaining"], "0");
    // The bucket refills while the batch is read, by one in 600 ms.
    let accepted = usize::try_from(answer["accepted"].as_u64().unwrap()).unwrap();
    assert!((100..105).contains(&accepted), "{accepted}");
    let expected = (0..150).map(|place| if place < accepted { 202 } else { 429 });
    let codes = statuses(&answer).into_iter().map(|(_, code)| code);
    assert_eq!(codes.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(answer["results"][149]["problem"]["retry_after_seconds"], 1);
    let (status, _, problem) = front.post(Tier::Free, numbered(3, 10)).await;
    assert_eq!((status, &problem["code"]), (429, &json!("rate_limited")));
}

#[tokio::test]
async fn repeats_within_a_batch_are_the_first_s() {
    let front = Front::open().await;
    let body = r#"[{"type":"a","payload":1,"dedup_id":"k"},{"type":"a","payload":1,"dedup_id":"k"},
                   {"type":"a","payload":2,"dedup_id":"k"},{"type":"a","payload":3}]"#;
    let (_, _, answer) = front.post(Tier::Unlimited, body.into()).await;
    let result = |place: usize| &answer["results"][place];
    assert_eq!(result(0)["duplicate"], false);
    for place in [1, 2] {
        assert_eq!(result(place)["duplicate"], true);
        assert_eq!(result(place)["id"], result(0)["id"]);
    }
    assert_eq!(
        (&result(1)["differs"], &result(2)["differs"]),
        (&Value::Null, &json!(true))
    );
    let (status, _, again) = front.post(Tier::Unlimited, body.into()).await;
    assert_eq!((status, &again["results"][0]["duplicate"]), (202, &json!(true)));
    assert_eq!(again["results"][0]["id"], result(0)["id"]);
    // The notes of the second are on their way: whatever is published later comes after them.
    front.post(Tier::Unlimited, numbered(1, 10)).await;
    let notes = front
        .entries()
        .into_iter()
        .filter(|entry| matches!(entry, Entry::Repeat(_)));
    assert_eq!(notes.count(), 5);

    front.refuse([0]);
    let body = body.replace("\"k\"", "\"another\"");
    let (status, ..) = front.post(Tier::Unlimited, body.clone()).await;
    assert_eq!(status, 503);
    let (_, _, answer) = front.post(Tier::Unlimited, body).await;
    assert_eq!(
        (&answer["accepted"], &answer["results"][0]["duplicate"]),
        (&json!(4), &json!(false))
    );
}

#[tokio::test]
async fn batches_with_the_same_keys_do_not_wait_for_each_other() {
    let front = Front::open().await;
    let keys: Vec<usize> = (0..200).collect();
    let body = |keys: Vec<usize>| {
        let events = keys
            .iter()
            .map(|key| json!({"type": "a", "payload": key, "dedup_id": key.to_string()}));
        events.collect::<Value>().to_string()
    };
    let forwards = front.post(Tier::Unlimited, body(keys.clone()));
    let backwards = front.post(Tier::Unlimited, body(keys.into_iter().rev().collect()));
    let both = async { tokio::join!(forwards, backwards) };
    let ((one, _, first), (other, _, second)) =
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    assert_eq!((one, other), (202, 202));
    assert_eq!(
        (&first["accepted"], &second["accepted"]),
        (&json!(200), &json!(200))
    );
    assert_eq!(front.events().len(), 200, "each key is one event");
}

#[tokio::test]
async fn each_event_has_its_own_problem() {
    let front = Front::open().await;
    let large = "x".repeat(300_000);
    let body = format!(
        r#"[{{"type":"a","payload":1}},2,{{"type":"a b","payload":1,"more":1}},{{"type":"a"}},{{"type":"a","payload":"{large}"}}]"#
    );
    let (status, _, answer) = front.post(Tier::Unlimited, body).await;
    assert_eq!(status, 202);
    insta::assert_snapshot!(shown(answer));
    let lines = "{\"type\":\"a\",\"payload\":1}\n\n{\"type\":\n{\"type\":\"b\",\"payload\":2}\r\n";
    let (_, _, answer) = front
        .post_as("application/x-ndjson", Tier::Unlimited, lines.into())
        .await;
    insta::assert_snapshot!(shown(answer));
    let body = r#"[{"specversion":"1.0","id":"1","source":"/","type":"a"},{"specversion":"1.0","id":"2","type":"a"}]"#;
    let cloud_events = "application/cloudevents-batch+json";
    let (_, _, answer) = front.post_as(cloud_events, Tier::Unlimited, body.into()).await;
    insta::assert_snapshot!(shown(answer));
    let (status, _, answer) = front.post_as(cloud_events, Tier::Unlimited, "[]".into()).await;
    assert_eq!((status, &answer["results"]), (202, &json!([])));
}

#[tokio::test]
async fn a_batch_that_is_none_has_one_problem() {
    let front = Front::open().await;
    for (content_type, body) in [
        ("application/json", "{}".to_owned()),
        ("application/json", "[]".to_owned()),
        ("application/x-ndjson", "\n \n".to_owned()),
        ("application/json", numbered(1_001, 0)),
        ("application/json", " ".repeat(4 * 1024 * 1024 + 1)),
        ("text/plain", "[]".to_owned()),
    ] {
        let (_, _, problem) = front.post_as(content_type, Tier::Unlimited, body).await;
        insta::assert_snapshot!(shown(problem));
    }
    assert_eq!(front.entries(), []);
}

#[tokio::test]
async fn a_body_for_which_there_is_no_room_is_refused() {
    let front = Front::open().await;
    let mut held = Held::default();
    let (room, whose) = (&front.ingest.batches, Some(front.organization));
    while room.grow(whose, &mut held, 1_024).is_ok() {}
    let (status, _, problem) = front.post(Tier::Unlimited, numbered(100, 100)).await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    assert_eq!(problem["retry_after_seconds"], 1);
    drop(held);
    assert_eq!(front.post(Tier::Unlimited, numbered(100, 100)).await.0, 202);
}

/// What a batch has in the queue counts, and what it has not is given back, though nobody waits for its answer.
#[tokio::test]
async fn a_batch_whose_client_hangs_up_is_counted_as_far_as_it_gets() {
    let front = Front::open().await;
    let poster = front.poster(Tier::Free);
    let held = front.hold();
    // Each has a frame of its own, and the second waits for the first.
    let body = numbered(2, 200_000);
    let request = http::Request::builder().header("content-type", "application/json");
    let request = request.body(Body::from(body)).unwrap();
    front
        .offered(1, Box::pin(accept_from(&poster, request, Kind::Plain)))
        .await;
    drop(held);
    front.counts(&poster, 1).await;
    assert_eq!(front.events().len(), 1);
    // More, so that what refills meanwhile does not blur it.
    for (refused, counted, remaining) in [(true, 1, 90..=100), (false, 61, 35..=50)] {
        front.refuse(refused.then_some(0));
        let held = front.hold();
        let request = http::Request::builder().header("content-type", "application/json");
        let request = request.body(Body::from(numbered(60, 10))).unwrap();
        front
            .offered(1, Box::pin(accept_from(&poster, request, Kind::Plain)))
            .await;
        let left = |poster: &Poster<'_>| -> u32 {
            poster.limit()["ratelimit-remaining"]
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(left(&poster) < 50, "it is taken");
        drop(held);
        front.counts(&poster, counted).await;
        let settled = async {
            while !remaining.contains(&left(&poster)) {
                tokio::task::yield_now().await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(5), settled).await;
        assert!(settled.is_ok(), "{} are left", left(&poster));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn payloads_stay_as_they_were_sent(
        payloads in prop::collection::vec(r#"[ \t]?(\{ ?"\\\\u00e9": ?-?[1-9][0-9]{0,20}\.[0-9]{1,3}[eE]\+?[0-9]{1,4} \}|"\PC{0,8}"|\[ *\])"#, 1..20)
    ) {
        let valid = |payload: &String| serde_json::from_str::<&serde_json::value::RawValue>(payload).is_ok();
        let payloads: Vec<String> = payloads.into_iter().filter(valid).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let front = Front::open().await;
            let plain = payloads.iter().map(|payload| format!(r#"{{"type":"a","payload":{payload}}}"#));
            let plain: Vec<String> = plain.collect();
            let cloud_events = payloads.iter().enumerate().map(|(id, payload)| {
                format!(r#"{{"specversion":"1.0","source":"/","id":"{id}","type":"a","data":{payload}}}"#)
            });
            let cloud_events: Vec<String> = cloud_events.collect();
            for (content_type, body) in [
                ("application/json", format!("[{}]", plain.join(","))),
                ("application/x-ndjson", plain.join("\n")),
                ("application/cloudevents-batch+json", format!("[{}]", cloud_events.join(","))),
            ] {
                front.refuse([]);
                front.post_as(content_type, Tier::Unlimited, body).await;
                let stored: Vec<String> = front.events().iter().map(|event| event.payload.as_str().to_owned()).collect();
                let sent: Vec<&str> = payloads.iter().map(|payload| payload.trim()).collect();
                assert_eq!(stored, sent, "{content_type}");
            }
        });
    }

    #[test]
    fn whatever_fails_the_queue_has_the_beginning(
        sizes in prop::collection::vec(0..60_000_usize, 1..40),
        keys in prop::collection::vec(prop::option::of(0..20_u8), 40),
        refused in prop::collection::hash_set(0..8_usize, 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let front = Front::open().await;
            front.refuse(refused);
            let events = sizes.iter().zip(&keys).enumerate().map(|(place, (size, key))| {
                json!({"type": "a", "payload": [place.to_string(), "x".repeat(*size)], "dedup_id": key.map(|key| key.to_string())})
            });
            let (status, _, answer) = front.post(Tier::Unlimited, events.collect::<Value>().to_string()).await;
            let stored = numbers(&front.events());
            assert!(stored.is_sorted());
            if status == 503 {
                assert_eq!(stored, [0; 0]);
                return;
            }
            let results = answer["results"].as_array().unwrap();
            assert_eq!(results.len(), sizes.len(), "a result for each");
            let fresh = |result: &Value| result["status"] == "accepted" && result["duplicate"] == false;
            let expected: Vec<usize> = (0..results.len()).filter(|place| fresh(&results[*place])).collect();
            assert_eq!(stored, expected, "what is answered is what is there");
            let first_refused = results.iter().position(|result| result["status"] == "refused");
            for (place, result) in results.iter().enumerate() {
                let later = first_refused.is_some_and(|first| place > first);
                assert!(!(later && fresh(result)), "{place} got in behind one that did not");
            }
        });
    }

    #[test]
    fn each_event_is_read_as_if_it_were_alone(
        items in prop::collection::vec(
            prop_oneof![
                r#"\{"type":"[a-z.* ]{0,4}","payload":(0|[1-9][0-9]{0,2})\}"#,
                r#"\{"(type|payload|dedup_id|more)":("[a-z]{0,3}"|1|null)\}"#,
                r#"\{"specversion":"(1\.0|2)","type":"a","source":"[/ ]{0,2}","id":"[a-z]{0,2}"\}"#,
                Just("null".to_owned()), Just("[[]]".to_owned()), Just("\"\\ud800\"".to_owned()),
            ],
            1..12,
        ),
        as_lines: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let kinds = if as_lines { vec![Kind::Plain] } else { vec![Kind::Plain, Kind::CloudEvents] };
        for kind in kinds {
            let (layout, body) = if as_lines {
                (Layout::Lines, items.join("\n"))
            } else {
                (Layout::Array, format!("[{}]", items.join(",")))
            };
            let events = runtime.block_on(read(&Bytes::from(body), layout, kind, None)).unwrap();
            prop_assert_eq!(events.len(), items.len());
            for (item, event) in items.iter().zip(events) {
                let alone = Bytes::from(item.clone());
                let shown = |event: Result<Posted, ApiError>| event
                    .map(|event| (event.event_type, event.payload.as_str().to_owned(), event.dedup_id, event.source))
                    .map_err(|error| error.to_result().to_string());
                prop_assert_eq!(shown(event), shown(read_one(&alone, &alone, kind, None)), "{}", item);
            }
        }
    }
}
