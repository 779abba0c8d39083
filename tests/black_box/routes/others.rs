//! Nothing crosses organizations, on any route: every operation of the served document is called with one organization's key
//! and another's ids, wherever it takes ids. The answer is 404, or shows nothing of the other's; and all that the other has is
//! what it was.

use std::time::Duration;

use harness::{Access, Answer, Engine, EventStream, Operation, Place, Receiver, World, on_both_engines};
use http::Method;
use serde_json::Value;

use super::{
    call::{Call, choices},
    operations,
    party::{Party, uuid},
    serving,
};

on_both_engines!(no_operation_shows_or_changes_what_is_anothers);

const SOON: Duration = Duration::from_secs(20);

/// What is another's is not there, alone or beside what is the stranger's own.
async fn is_not_there(operation: &Operation, owner: &Party, stranger: &Party, unknown: &Party) {
    let marks = owner.marks();
    let all = |prefix: &str| {
        let mut all = owner.ids[prefix].clone();
        all.push(uuid(&all[0]));
        all.extend_from_slice(&stranger.ids[prefix]);
        all
    };
    for ids in choices(operation, all) {
        let is_own = |id: &String| stranger.ids.values().any(|own| own.contains(id));
        if ids.iter().all(is_own) {
            continue;
        }
        let call = Call::of(operation, &ids).with_body(&owner.ids);
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        let what = call.what();
        if operation.id == "eraseEvent" {
            // An id that is not stored is erased when it comes. What is another's is as if it were not stored: what is told
            // of it is what is told of an id that is nobody's.
            let nobodys = Call::of(operation, &unknown.ids["evt"])
                .send(&stranger.client)
                .await;
            assert_eq!(
                (answer.status, &answer.text),
                (nobodys.status, &nobodys.text),
                "{what}"
            );
        } else {
            assert_eq!(answer.status, 404, "{what}: {answer:?}");
            answer.problem(404, "not_found");
        }
    }
    for ids in choices(operation, |prefix| stranger.ids[prefix].clone()) {
        let call = Call::of(operation, &ids).with_body(&owner.ids);
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        none_is_found(operation, &answer);
    }
}

/// Of ids in a body, none is found.
fn none_is_found(operation: &Operation, answer: &Answer) {
    if !operation.ids_in_body.is_empty() && answer.status == 200 {
        let answer = answer.json();
        let results = answer["results"].as_array().expect("a result for each id");
        assert!(!results.is_empty(), "{}: {answer}", operation.id);
        for result in results {
            assert_eq!(result["status"], "not_found", "{}: {answer}", operation.id);
            assert_eq!(result["event_id"], Value::Null, "{}: {answer}", operation.id);
        }
    }
}

/// A list has what is its reader's own alone: asked for with another's ids, or where another's list goes on.
async fn shows_its_readers_own(operation: &Operation, owner: &Party, stranger: &Party) {
    let marks = owner.marks();
    if !operation.streams {
        let call = Call::of(operation, &[]).with_body(&owner.ids);
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        assert!((200..300).contains(&answer.status), "{}: {answer:?}", call.what());
        none_is_found(operation, &answer);
    }
    let mut calls = Vec::new();
    for (parameter, prefix) in operation.ids_in(Place::Query) {
        for id in &owner.ids[prefix] {
            calls.push(Call::of(operation, &[]).asking(&parameter.name, id));
        }
    }
    for (parameter, prefix) in operation.ids_in(Place::Header) {
        for id in &owner.ids[prefix] {
            let mut call = Call::of(operation, &[]);
            call.header = Some((parameter.name.clone(), id.clone()));
            calls.push(call);
        }
    }
    if operation.streams {
        // What is stored, from the beginning on: without this, a stream shows what is yet to come.
        for more in [None, Some(("status", "pending"))] {
            let mut call = Call::of(operation, &[]).asking("since", "1970-01-01T00:00:00Z");
            if let Some((name, value)) = more {
                call = call.asking(name, value);
            }
            let (shown, owners) = tokio::join!(call.streamed(&stranger.client), call.streamed(&owner.client));
            let in_it = |text: &str| marks.iter().any(|mark| text.contains(mark));
            assert!(!in_it(&shown), "{}: {shown}", call.what());
            assert!(more.is_some() || in_it(&owners), "{}: {owners}", call.what());
        }
    }
    if operation.asks("cursor") {
        let first = Call::of(operation, &[])
            .asking("limit", "1")
            .send(&owner.client)
            .await;
        if let Some(cursor) = first.expect(200)["next_cursor"].as_str() {
            calls.push(Call::of(operation, &[]).asking("cursor", cursor));
        }
    }
    for call in calls {
        // A stream that begins would not end: the harness gives up on it, and so does the test.
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        assert!(
            matches!(answer.status, 200 | 404 | 422),
            "{}: {answer:?}",
            call.what()
        );
    }
}

/// Only the deployment's admin token may; and what may be open here is not.
async fn is_refused(operation: &Operation, stranger: &Party) {
    let ids = |_: &str| vec![uuid(&stranger.ids["evt"][0])];
    for ids in choices(operation, ids) {
        let call = Call::of(operation, &ids).with_body(&stranger.ids);
        let answer = call.send(&stranger.client).await;
        match answer.status {
            401 => answer.problem(401, "unauthorized"),
            403 => answer.problem(403, "forbidden"),
            _ => panic!("{}: {answer:?}", call.what()),
        };
    }
}

/// The control: with its owner's key, each of the operations finds something. It goes by the calls that strangers made.
async fn is_there_for_its_owner(operations: &[Operation], owner: &Party) {
    let by_ids = operations.iter().filter(|operation| {
        operation.access == Access::Key && operation.ids_in(Place::Path).next().is_some()
    });
    let (mut deletions, others): (Vec<_>, Vec<_>) =
        by_ids.partition(|operation| operation.method == Method::DELETE);
    // What is in a thing goes before the thing.
    deletions.sort_by_key(|operation| std::cmp::Reverse(operation.path.len()));
    for operation in others.into_iter().chain(deletions) {
        let mut found = false;
        for ids in choices(operation, |prefix| owner.ids[prefix].clone()) {
            let answer = Call::of(operation, &ids)
                .with_body(&owner.ids)
                .send(&owner.client)
                .await;
            assert!(answer.status < 500, "{}: {answer:?}", operation.id);
            found |= answer.status != 404;
        }
        assert!(found, "{} finds nothing of its owner's either", operation.id);
    }
}

async fn no_operation_shows_or_changes_what_is_anothers(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let operations = operations(&world).await;
    // Whoever follows events gets what is its own: the owner's come first, and are not seen.
    let mut follower = Party::new(world.organization().await);
    let mut streams = Vec::new();
    for operation in operations.iter().filter(|operation| operation.streams) {
        streams.push(EventStream::open(Call::of(operation, &[]).request(&follower.client)).await);
    }
    let owner = Party::owner(&world, &receiver).await;
    let own = follower.event("own.one", "a follower's").await;
    assert!(!streams.is_empty());
    for stream in &mut streams {
        let first = stream.next(SOON).await.expect("an event");
        assert_eq!(first.id, own);
    }

    owner.is_counted(&owner.ids["sub"][0], 1).await;
    let before = owner.everything(&operations).await;
    let pushed = receiver.count("/alpha");
    for operation in &operations {
        let stranger = Party::stranger(&world).await;
        match operation.access {
            Access::Administration => is_refused(operation, &stranger).await,
            Access::Open => {
                for node in serving(&world) {
                    let client = stranger.client.at(node);
                    let call = Call::of(operation, &[]);
                    let answer = call.shows_nothing_of(&owner.marks(), &client).await;
                    assert_eq!(answer.status, 200, "{}", call.what());
                }
            }
            Access::Key if operation.ids_in(Place::Path).next().is_some() => {
                is_not_there(operation, &owner, &stranger, &follower).await;
            }
            Access::Key => shows_its_readers_own(operation, &owner, &stranger).await,
        }
    }
    // What is counted of somebody who comes after all strangers is written down after what is counted of them.
    let last = Party::owner(&world, &receiver).await;
    last.is_counted(&last.ids["sub"][0], 1).await;
    let after = owner.everything(&operations).await;
    for (path, was) in &before {
        assert_eq!(&after[path], was, "{path} is not what it was");
    }
    assert_eq!(
        receiver.count("/alpha"),
        pushed + 1,
        "nothing more was sent, but to the last one"
    );
    is_there_for_its_owner(&operations, &owner).await;
}
