//! What is counted of attempts goes after an hour; here time is moved in the database.

use std::time::Duration;

use shared::{
    WorkerId,
    statistics::Tally,
    store::{Minute, SubscriptionStats},
};

use super::{number, on_a_store_at, sql};
use crate::conformance::world::{organization, push};

#[tokio::test]
async fn counts_go_after_an_hour_and_the_last_times_stay() {
    on_a_store_at(|store, url| async move {
        let ours = organization(&store).await.id;
        let push = push(&store, ours).await.id;
        let mut tally = Tally::default();
        tally.add(None, Duration::from_millis(4));
        let minutes: Vec<Minute> = (0..1_500)
            .map(|number| Minute {
                subscription: push,
                number,
                tally: tally.clone(),
                success_ago: Some(Duration::from_secs(9)),
                failure_ago: None,
            })
            .collect();
        store
            .insight
            .write_minutes(WorkerId::new(), &minutes)
            .await
            .unwrap();
        sql(&url, "UPDATE attempt_minutes SET at = at - interval '59 minutes'").await;
        let stats = store.insight.subscription_stats(push).await.unwrap();
        assert_eq!(stats.tally.attempts(), 1_500);
        sql(&url, "UPDATE attempt_minutes SET at = at - interval '61 seconds'").await;
        let old = store.insight.subscription_stats(push).await.unwrap();
        assert_eq!(old.tally.attempts(), 0);
        store.keeper.keep(Duration::from_hours(24)).await.unwrap();
        assert_eq!(number(&url, "SELECT count(*) FROM attempt_minutes").await, 0);
        let left = store.insight.subscription_stats(push).await.unwrap();
        let expected = SubscriptionStats {
            last_success_at: stats.last_success_at,
            ..SubscriptionStats::default()
        };
        assert_eq!(left, expected);
        // An older one does not take its place.
        let older = Minute {
            success_ago: Some(Duration::from_hours(2)),
            ..minutes[0].clone()
        };
        store
            .insight
            .write_minutes(WorkerId::new(), &[older])
            .await
            .unwrap();
        sql(&url, "UPDATE attempt_minutes SET at = at - interval '2 hours'").await;
        store.keeper.keep(Duration::from_hours(24)).await.unwrap();
        assert_eq!(store.insight.subscription_stats(push).await.unwrap(), expected);
    })
    .await;
}
