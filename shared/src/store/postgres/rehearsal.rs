//! Whether the store takes events in, and room for those that it is to take in.

use std::{collections::HashSet, time::Duration};

use sqlx::{Connection as _, postgres::PgConnection, query};
use time::OffsetDateTime;

use super::{
    CALL, Engine, Result, Session, classify, intake, keeper::upkeep, partitions, rows::Columns, within,
};
use crate::{
    EventId, Timestamp,
    store::{is_in_range, rehearsal},
};

/// How long making partitions may take: it waits for others who make or drop some.
const MAKE_ROOM: Duration = Duration::from_mins(1);

impl Engine {
    /// The very statement that takes events in, rolled back.
    pub(super) async fn rehearse_intake(&self) -> Result<()> {
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let done = rehearse(session.connection()).await;
            session.settle_read(done)
        }))
        .await
    }

    pub(super) async fn make_room(&self, ids: &[EventId], retention: Duration) -> Result<HashSet<EventId>> {
        within(MAKE_ROOM, async {
            let mut connection = upkeep(&self.connect).await?;
            let now = now(&mut connection).await?;
            let (within, out): (HashSet<EventId>, HashSet<EventId>) =
                ids.iter().partition(|id| is_in_range(**id, now, retention));
            let mut days: Vec<_> = within
                .iter()
                .filter_map(|id| Some(OffsetDateTime::from(id.created_at()?).date()))
                .collect();
            days.sort_unstable();
            days.dedup();
            let made = partitions::make_all(&mut connection, &days)
                .await
                .map_err(classify);
            // Closed in order or not, the lock ends with it.
            let closed = connection.close().await.map_err(classify);
            made.and(closed).map(|()| out)
        })
        .await
    }
}

async fn now(connection: &mut PgConnection) -> Result<Timestamp> {
    query("SELECT now() AS now")
        .fetch_one(connection)
        .await
        .map_err(classify)?
        .at("now")
}

async fn rehearse(connection: &mut PgConnection) -> Result<()> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let now = now(&mut transaction).await?;
    let (event, delivery) = (rehearsal::event(now), rehearsal::delivery());
    let batch = rehearsal::batch(&event, &delivery);
    intake::within_transaction(&mut transaction, &batch).await?;
    transaction.rollback().await.map_err(classify)
}
