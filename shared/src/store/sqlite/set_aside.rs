//! What could not be taken in.

use sqlx::{AssertSqlSafe, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Engine,
    organizations::paged,
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    EventId, OrganizationId, SetAsideId,
    audit::{Action, Change},
    store::{Page, PageRequest, Result, SetAside, SetAsidePlace},
};

const SET_ASIDE: &str = "id, reason, detail, organization_id, event_id, at, frame, times";

fn set_aside(row: &SqliteRow) -> Result<SetAside> {
    Ok(SetAside {
        id: row.id(0)?,
        reason: row.value(1)?,
        detail: row.value(2)?,
        organization: row.value::<Option<Uuid>>(3)?.map(OrganizationId::from_uuid),
        event: row.value::<Option<Uuid>>(4)?.map(EventId::from_uuid),
        at: row.time(5)?,
        frame: row.value(6)?,
        times: row.number(7)?,
    })
}

impl Engine {
    pub(super) async fn keep_aside(&self, items: &[SetAside]) -> Result<()> {
        let items = items.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    for item in items {
                        sqlx::query(
                            "INSERT INTO set_aside (id, reason, detail, organization_id, event_id, at, frame, times) \
                             VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET \
                             reason = excluded.reason, detail = excluded.detail, at = excluded.at, \
                             times = times + excluded.times",
                        )
                        .bind(item.id.uuid())
                        .bind(item.reason)
                        .bind(item.detail)
                        .bind(item.organization.map(OrganizationId::uuid))
                        .bind(item.event.map(EventId::uuid))
                        .bind(item.at.millis())
                        .bind(item.frame)
                        .bind(times(item.times))
                        .execute(&mut tx.connection)
                        .await
                        .map_err(failed)?;
                    }
                    Ok(())
                })
            })
            .await
    }

    pub(super) async fn set_asides(
        &self,
        page: PageRequest<SetAsidePlace>,
    ) -> Result<Page<SetAside, SetAsidePlace>> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT {SET_ASIDE} FROM set_aside WHERE (at, id) > (?, ?) ORDER BY at, id LIMIT ?"
        )))
        .bind(page.after.map_or(i64::MIN, |place| place.at.millis()))
        .bind(page.after.map_or_else(Uuid::nil, |place| place.id.uuid()))
        .bind(i64::from(page.limit) + 1)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let items = rows.iter().map(set_aside).collect::<Result<Vec<_>>>()?;
        Ok(paged(items, page.limit, SetAside::place))
    }

    pub(super) async fn one_set_aside(&self, id: SetAsideId) -> Result<Option<SetAside>> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {SET_ASIDE} FROM set_aside WHERE id = ?"
        )))
        .bind(id.uuid())
        .fetch_optional(&self.readers)
        .await
        .map_err(failed)?
        .as_ref()
        .map(set_aside)
        .transpose()
    }

    pub(super) async fn forget(&self, id: SetAsideId, seen: Option<u64>) -> Result<bool> {
        self.writer.run(move |tx| Box::pin(forget(tx, id, seen))).await
    }

    pub(super) async fn how_many_set_aside(&self) -> Result<u64> {
        sqlx::query("SELECT count(*) FROM set_aside")
            .fetch_one(&self.readers)
            .await
            .map_err(failed)?
            .number(0)
    }
}

async fn forget(tx: &mut Tx, id: SetAsideId, seen: Option<u64>) -> Result<bool> {
    let forgotten = sqlx::query(
        "DELETE FROM set_aside WHERE id = ? AND times = coalesce(?, times) RETURNING organization_id",
    )
    .bind(id.uuid())
    .bind(seen.map(times))
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(row) = forgotten.first() else {
        return Ok(false);
    };
    let of = row.value::<Option<Uuid>>(0)?.map(OrganizationId::from_uuid);
    // Who says which he has seen has put it back.
    let action = match seen {
        Some(_) => Action::PutBack,
        None => Action::Discarded,
    };
    tx.audit(Change::of(of, action, id)).await?;
    Ok(true)
}

fn times(times: u64) -> i64 {
    i64::try_from(times).unwrap_or(i64::MAX)
}
