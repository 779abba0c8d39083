//! Test pushes that the worker has not taken yet.

use async_trait::async_trait;

use super::{
    Engine,
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    EventId, OrganizationId, SubscriptionId,
    audit::{self, Action},
    store::{Change, Result, TEST_PUSH_KEPT, TestPush, TestPushes},
};

async fn ask(
    tx: &mut Tx,
    organization: OrganizationId,
    subscription: SubscriptionId,
    event: EventId,
    most: u32,
) -> Result<bool> {
    sqlx::query("DELETE FROM test_pushes WHERE at <= ?")
        .bind(tx.now.minus(TEST_PUSH_KEPT).millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    let asked = sqlx::query(
        "INSERT INTO test_pushes (id, organization_id, subscription_id, at) SELECT ?1, ?2, ?3, ?4 \
         WHERE (SELECT count(*) FROM test_pushes WHERE organization_id = ?2) < ?5",
    )
    .bind(event.uuid())
    .bind(organization.uuid())
    .bind(subscription.uuid())
    .bind(tx.now.millis())
    .bind(most)
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    let asked = asked.rows_affected() > 0;
    if asked {
        tx.announce(Change::TestPush);
        let tested = audit::Change::of(organization, Action::SubscriptionTested, subscription);
        tx.audit(tested).await?;
    }
    Ok(asked)
}

async fn take(tx: &mut Tx, limit: u32) -> Result<Vec<TestPush>> {
    let rows = sqlx::query(
        "SELECT id, organization_id, subscription_id, at FROM test_pushes WHERE at > ? ORDER BY at, id LIMIT ?",
    )
    .bind(tx.now.minus(TEST_PUSH_KEPT).millis())
    .bind(limit)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let mut taken = Vec::with_capacity(rows.len());
    for row in &rows {
        let test = TestPush {
            event: row.id(0)?,
            organization: row.id(1)?,
            subscription: row.id(2)?,
            at: row.time(3)?,
        };
        withdraw(tx, test.event).await?;
        taken.push(test);
    }
    Ok(taken)
}

async fn withdraw(tx: &mut Tx, event: EventId) -> Result<bool> {
    let withdrawn = sqlx::query("DELETE FROM test_pushes WHERE id = ?")
        .bind(event.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    Ok(withdrawn.rows_affected() > 0)
}

#[async_trait]
impl TestPushes for Engine {
    async fn ask_test(
        &self,
        organization: OrganizationId,
        subscription: SubscriptionId,
        event: EventId,
        most: u32,
    ) -> Result<bool> {
        self.writer
            .run(move |tx| Box::pin(ask(tx, organization, subscription, event, most)))
            .await
    }

    async fn take_tests(&self, limit: u32) -> Result<Vec<TestPush>> {
        // Asked every second: the one writer is troubled only where there is something to take.
        let waiting = sqlx::query("SELECT 1 FROM test_pushes LIMIT 1")
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?;
        if waiting.is_none() {
            return Ok(Vec::new());
        }
        self.writer.run(move |tx| Box::pin(take(tx, limit))).await
    }

    async fn withdraw_test(&self, event: EventId) -> Result<bool> {
        self.writer.run(move |tx| Box::pin(withdraw(tx, event))).await
    }
}
