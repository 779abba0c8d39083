//! Subscribers that asked to be left alone for a while.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::query;
use uuid::Uuid;

use super::{Engine, Result, rows, rows::Columns};
use crate::{
    store::{Pause, Pauses},
    subscription::Subscriber,
};

const FORGET: &str = "
    DELETE FROM pauses WHERE subscription_id = ANY (ARRAY(
        SELECT subscription_id FROM pauses WHERE until <= now() ORDER BY until LIMIT 100 FOR UPDATE SKIP LOCKED
    ))";

/// The column `version` holds the subscriber.
const NOTE: &str = "
    WITH longer AS (
        INSERT INTO pauses AS known (subscription_id, version, until)
        SELECT s.id, asked.version, now() + make_interval(secs => lasts)
        FROM unnest($1::uuid[], $2::bigint[], $3::double precision[]) AS asked (id, version, lasts)
        JOIN subscriptions s ON s.id = asked.id
        ORDER BY s.id
        ON CONFLICT (subscription_id) DO UPDATE SET version = excluded.version, until = excluded.until
        WHERE known.version <> excluded.version OR known.until < excluded.until
        RETURNING subscription_id, version, (extract(epoch FROM until - now()) * 1000)::bigint AS ms
    )
    SELECT count(pg_notify('triggers_changes', 'p:' || subscription_id || '/' || version || '/' || ms)) AS times
    FROM longer";

const LAST: &str = "
    SELECT subscription_id, version, (extract(epoch FROM until - now()) * 1000)::bigint AS ms
    FROM pauses WHERE until > now() ORDER BY until DESC LIMIT $1";

#[async_trait]
impl Pauses for Engine {
    async fn note_pauses(&self, pauses: &[Pause]) -> Result<()> {
        let subscriptions: Vec<Uuid> = pauses.iter().map(|pause| pause.subscription.uuid()).collect();
        let subscribers: Vec<i64> = pauses.iter().map(|pause| pause.subscriber.number()).collect();
        let lasts: Vec<f64> = pauses.iter().map(|pause| rows::seconds(pause.lasts)).collect();
        let statement = query(NOTE).bind(subscriptions).bind(subscribers).bind(lasts);
        self.rows(statement).await?;
        // By itself: with the other it would hold rows that another waits for, who holds some that it waits for.
        self.rows(query(FORGET)).await.map(drop)
    }

    async fn pauses(&self, most: u32) -> Result<Vec<Pause>> {
        let rows = self.rows(query(LAST).bind(i64::from(most))).await?;
        let read = rows.iter().map(|row| {
            Ok(Pause {
                subscription: row.id("subscription_id")?,
                subscriber: Subscriber::numbered(row.value("version")?),
                lasts: Duration::from_millis(row.number("ms")?),
            })
        });
        read.collect()
    }
}
