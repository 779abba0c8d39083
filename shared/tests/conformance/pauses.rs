//! Subscribers that asked to be left alone for a while.

use std::time::Duration;

use shared::{
    SubscriptionId,
    store::{Change, Pause, Store},
    subscription::Subscriber,
};
use tokio::sync::broadcast;

use super::world::{MINUTE, organization, push};

async fn listening(store: &Store) -> broadcast::Receiver<Change> {
    let mut changes = store.keeper.changes();
    while tokio::time::timeout(MINUTE, changes.recv())
        .await
        .unwrap()
        .unwrap()
        != Change::Everything
    {}
    changes
}

async fn next_pause(changes: &mut broadcast::Receiver<Change>) -> Pause {
    loop {
        let change = tokio::time::timeout(MINUTE, changes.recv()).await;
        if let Change::Pause(pause) = change.expect("word of it").expect("the store lives") {
            return pause;
        }
    }
}

fn pause(subscription: SubscriptionId, subscriber: i64, seconds: u64) -> Pause {
    Pause {
        subscription,
        subscriber: Subscriber::numbered(subscriber),
        lasts: Duration::from_secs(seconds),
    }
}

/// Whether `one` is as the other was, at most a minute ago.
fn is_left_of(one: &Pause, was: &Pause) -> bool {
    (one.subscription, one.subscriber) == (was.subscription, was.subscriber)
        && one.lasts <= was.lasts
        && one.lasts + MINUTE > was.lasts
}

pub(crate) async fn the_longest_counts_and_is_announced(store: &Store) {
    let ours = organization(store).await.id;
    let (one, other) = (push(store, ours).await.id, push(store, ours).await.id);
    let mut changes = listening(store).await;
    let (short, long, another) = (pause(one, 2, 600), pause(one, 2, 1_200), pause(one, 1, 300));
    for (noted, announced) in [
        (short, Some(short)),
        (long, Some(long)),
        (short, None),
        // It is sent to another: of the one before it says nothing more.
        (another, Some(another)),
        (pause(one, 1, 200), None),
    ] {
        store.pauses.note_pauses(&[noted]).await.unwrap();
        if let Some(announced) = announced {
            let word = next_pause(&mut changes).await;
            assert!(is_left_of(&word, &announced), "{word:?}, not {announced:?}");
        }
    }
    // The next word is of what comes next: there was none in between.
    let others = pause(other, 1, 900);
    store
        .pauses
        .note_pauses(&[pause(one, 1, 200), others])
        .await
        .unwrap();
    let word = next_pause(&mut changes).await;
    assert!(is_left_of(&word, &others), "{word:?}");
    let known = store.pauses.pauses(10).await.unwrap();
    assert_eq!(known.len(), 2, "{known:?}");
    assert!(
        is_left_of(&known[0], &others) && is_left_of(&known[1], &another),
        "{known:?}"
    );
    let longest = store.pauses.pauses(1).await.unwrap();
    assert!(
        longest.len() == 1 && is_left_of(&longest[0], &others),
        "{longest:?}"
    );
}

pub(crate) async fn a_pause_ends_by_its_time(store: &Store) {
    let ours = organization(store).await.id;
    let (one, other) = (push(store, ours).await.id, push(store, ours).await.id);
    let brief = Pause {
        lasts: Duration::from_millis(300),
        ..pause(one, 1, 0)
    };
    let (long, of_nobody) = (pause(other, 1, 600), pause(SubscriptionId::new(), 1, 600));
    store.pauses.note_pauses(&[brief, long, of_nobody]).await.unwrap();
    let until = tokio::time::Instant::now() + MINUTE;
    loop {
        let known = store.pauses.pauses(10).await.unwrap();
        if known.len() == 1 {
            assert!(is_left_of(&known[0], &long), "{known:?}");
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{known:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What is over is forgotten, and does not stand in the way.
    store.pauses.note_pauses(&[pause(one, 1, 5)]).await.unwrap();
    assert_eq!(store.pauses.pauses(10).await.unwrap().len(), 2);
}
