//! Test pushes that no worker has taken yet.

use async_trait::async_trait;
use sqlx::query;

use super::{
    Engine, Result,
    rows::{self, Columns},
};
use crate::{
    EventId, OrganizationId, SubscriptionId,
    audit::{Action, Change},
    store::{TEST_PUSH_KEPT, TestPush, TestPushes},
};

const ASK: &str = "
    WITH forgotten AS (
        DELETE FROM test_pushes WHERE organization_id = $1 AND at <= now() - make_interval(secs => $5)
    ), asked AS (
        INSERT INTO test_pushes (id, organization_id, subscription_id) SELECT $3, $1, $2
        WHERE (SELECT count(*) FROM test_pushes
               WHERE organization_id = $1 AND at > now() - make_interval(secs => $5)) < $4
        RETURNING id
    )
    SELECT id, pg_notify('triggers_changes', 't:' || id) FROM asked";

const TAKE: &str = "
    DELETE FROM test_pushes WHERE id = ANY (ARRAY(
        SELECT id FROM test_pushes WHERE at > now() - make_interval(secs => $2)
        ORDER BY at, id LIMIT $1 FOR UPDATE SKIP LOCKED
    ))
    RETURNING id, organization_id, subscription_id, at";

#[async_trait]
impl TestPushes for Engine {
    async fn ask_test(
        &self,
        organization: OrganizationId,
        subscription: SubscriptionId,
        event: EventId,
        most: u32,
    ) -> Result<bool> {
        let statement = query(ASK)
            .bind(organization.uuid())
            .bind(subscription.uuid())
            .bind(event.uuid())
            .bind(i64::from(most))
            .bind(rows::seconds(TEST_PUSH_KEPT));
        let tested = Change::of(organization, Action::SubscriptionTested, subscription);
        Ok(self.audited_as(statement, tested).await?.is_some())
    }

    async fn take_tests(&self, limit: u32) -> Result<Vec<TestPush>> {
        let statement = query(TAKE)
            .bind(i64::from(limit))
            .bind(rows::seconds(TEST_PUSH_KEPT));
        let rows = self.rows(statement).await?;
        let read = rows.iter().map(|row| {
            Ok(TestPush {
                event: row.id("id")?,
                organization: row.id("organization_id")?,
                subscription: row.id("subscription_id")?,
                at: row.at("at")?,
            })
        });
        let mut taken = read.collect::<Result<Vec<_>>>()?;
        taken.sort_unstable_by_key(|test| (test.at, test.event));
        Ok(taken)
    }

    async fn withdraw_test(&self, event: EventId) -> Result<bool> {
        let statement = query("DELETE FROM test_pushes WHERE id = $1 RETURNING id").bind(event.uuid());
        Ok(self.row(statement).await?.is_some())
    }
}
