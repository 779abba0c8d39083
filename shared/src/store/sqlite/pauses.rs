//! Subscribers that asked to be left alone for a while.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    Engine,
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    Timestamp,
    store::{Change, Pause, Pauses, Result},
    subscription::Subscriber,
};

/// The column `version` holds the subscriber.
async fn note(tx: &mut Tx, pauses: Vec<Pause>) -> Result<()> {
    sqlx::query("DELETE FROM pauses WHERE until <= ?")
        .bind(tx.now.millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    for pause in pauses {
        let noted = sqlx::query(
            "INSERT INTO pauses AS known (subscription_id, version, until) \
             SELECT s.id, ?2, ?3 FROM subscriptions s WHERE s.id = ?1 \
             ON CONFLICT (subscription_id) DO UPDATE SET version = excluded.version, until = excluded.until \
             WHERE known.version <> excluded.version OR known.until < excluded.until",
        )
        .bind(pause.subscription.uuid())
        .bind(pause.subscriber.number())
        .bind(tx.now.plus(pause.lasts).millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
        if noted.rows_affected() > 0 {
            tx.announce(Change::Pause(pause));
        }
    }
    Ok(())
}

#[async_trait]
impl Pauses for Engine {
    async fn note_pauses(&self, pauses: &[Pause]) -> Result<()> {
        let pauses = pauses.to_vec();
        self.writer.run(move |tx| Box::pin(note(tx, pauses))).await
    }

    async fn pauses(&self, most: u32) -> Result<Vec<Pause>> {
        let now = Timestamp::now();
        sqlx::query(
            "SELECT subscription_id, version, until FROM pauses WHERE until > ? ORDER BY until DESC LIMIT ?",
        )
        .bind(now.millis())
        .bind(most)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?
        .iter()
        .map(|row| {
            let lasts = row.number::<i64>(2)?.saturating_sub(now.millis());
            Ok(Pause {
                subscription: row.id(0)?,
                subscriber: Subscriber::numbered(row.value(1)?),
                lasts: Duration::from_millis(u64::try_from(lasts).unwrap_or(0)),
            })
        })
        .collect()
    }
}
