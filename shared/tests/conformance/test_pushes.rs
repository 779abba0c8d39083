//! Test pushes on their way to a worker.

use std::collections::HashSet;

use shared::{
    EventId, SubscriptionId,
    store::{Change, Store},
};

use super::world::organization;

pub(crate) async fn each_is_taken_once_oldest_first(store: &Store) {
    let (ours, to) = (organization(store).await.id, SubscriptionId::new());
    let tests = &store.tests;
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(EventId::new());
        assert!(
            tests
                .ask_test(ours, to, asked[asked.len() - 1], 10)
                .await
                .unwrap()
        );
    }
    let first = tests.take_tests(2).await.unwrap();
    let ids: Vec<_> = first.iter().map(|test| test.event).collect();
    assert_eq!(ids, asked[..2]);
    assert!(
        first
            .iter()
            .all(|test| test.organization == ours && test.subscription == to)
    );
    assert!(!tests.withdraw_test(asked[0]).await.unwrap(), "it is taken");
    assert!(tests.withdraw_test(asked[2]).await.unwrap());
    assert!(!tests.withdraw_test(asked[2]).await.unwrap());
    assert!(tests.take_tests(10).await.unwrap().is_empty());
}

pub(crate) async fn many_take_and_each_gets_its_own(store: &Store) {
    let (ours, to) = (organization(store).await.id, SubscriptionId::new());
    for _ in 0..40 {
        assert!(store.tests.ask_test(ours, to, EventId::new(), 40).await.unwrap());
    }
    let take = async |store: Store| {
        let mut taken = Vec::new();
        loop {
            let some = store.tests.take_tests(3).await.unwrap();
            if some.is_empty() {
                return taken;
            }
            taken.extend(some.into_iter().map(|test| test.event));
        }
    };
    let takers: Vec<_> = (0..4).map(|_| tokio::spawn(take(store.clone()))).collect();
    let mut all = Vec::new();
    for taker in takers {
        all.extend(taker.await.unwrap());
    }
    all.extend(take(store.clone()).await);
    let distinct: HashSet<_> = all.iter().copied().collect();
    assert_eq!((all.len(), distinct.len()), (40, 40));
}

pub(crate) async fn so_many_of_an_organization_wait(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let to = SubscriptionId::new();
    let ask = async |of| store.tests.ask_test(of, to, EventId::new(), 2).await.unwrap();
    assert!(ask(ours).await && ask(ours).await);
    assert!(!ask(ours).await, "a third has to wait outside");
    assert!(ask(theirs).await, "which is nothing to others");
    assert_eq!(store.tests.take_tests(10).await.unwrap().len(), 3);
    assert!(ask(ours).await);
}

pub(crate) async fn asking_is_announced(store: &Store) {
    let ours = organization(store).await.id;
    let mut changes = store.keeper.changes();
    loop {
        // Who listens may have to connect first: what was missed then is `Everything`.
        let (to, event) = (SubscriptionId::new(), EventId::new());
        assert!(store.tests.ask_test(ours, to, event, 1_000).await.unwrap());
        let heard = tokio::time::timeout(std::time::Duration::from_secs(1), async {
            while changes.recv().await.unwrap() != Change::TestPush {}
        });
        if heard.await.is_ok() {
            break;
        }
    }
}
