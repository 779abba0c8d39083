//! What nodes tell each other of the limits of organizations, and what organizations used. There is one node at a time, and
//! before it there were others.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Engine,
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    OrganizationId, Timestamp,
    store::{
        LIMIT_NODE_LIVES, LIMIT_WORD_COUNTS, LimitNode, LimitReport, LimitStanding, Limits, LimitsHeard,
        Result, Usage, UsageCounts, UsageReport,
        limits::{HOLDS, MOST_OWED},
    },
};

/// Rows of one transaction: others get their turn in between.
const STEP: usize = 500;

/// As the table has times.
fn nanos(at: Timestamp) -> i64 {
    at.millis().saturating_mul(1_000_000)
}

fn length(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

async fn live(tx: &mut Tx, node: LimitNode) -> Result<u32> {
    sqlx::query("INSERT INTO limit_nodes (node, seen_at) VALUES (?, ?) ON CONFLICT (node) DO UPDATE SET seen_at = excluded.seen_at")
        .bind(node.id)
        .bind(tx.now.millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    sqlx::query("SELECT count(*) FROM limit_nodes WHERE seen_at > ?")
        .bind(heard(tx, node).minus(LIMIT_NODE_LIVES).millis())
        .fetch_one(&mut tx.connection)
        .await
        .map_err(failed)?
        .number(0)
}

/// Until when words are as old as they seem.
fn heard(tx: &Tx, node: LimitNode) -> Timestamp {
    node.away_since.map_or(tx.now, |since| since.min(tx.now))
}

async fn share(tx: &mut Tx, node: LimitNode, report: LimitReport) -> Result<LimitStanding> {
    let (organization, counter) = (report.organization.uuid(), report.counter);
    let at = node.at.map_or(tx.now, |at| at.min(tx.now));
    let others = sqlx::query(
        "SELECT coalesce(sum(wanted), 0.0), cast(coalesce(sum(took * max(0, ? - at)), 0.0) * 1e6 AS INTEGER), \
         min(at) FILTER (WHERE took > 0) * 1000000 FROM limit_shares WHERE organization_id = ? AND counter <> ? AND at > ?",
    )
    .bind(tx.now.millis())
    .bind(organization)
    .bind(counter)
    .bind(heard(tx, node).minus(LIMIT_WORD_COUNTS).millis())
    .fetch_one(&mut tx.connection)
    .await
    .map_err(failed)?;
    let oldest: Option<i64> = others.value(2)?;
    let before = sqlx::query("SELECT spent, at FROM limit_shares WHERE organization_id = ? AND counter = ?")
        .bind(organization)
        .bind(counter)
        .fetch_optional(&mut tx.connection)
        .await
        .map_err(failed)?;
    let (before, told_at): (i64, i64) = match before {
        Some(row) => (row.value(0)?, row.value(1)?),
        None => (0, i64::MIN),
    };
    let is_news = told_at <= at.millis() || told_at > tx.now.millis();
    if is_news {
        sqlx::query(
            "INSERT INTO limit_shares (organization_id, counter, spent, wanted, took, at) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT (organization_id, counter) DO UPDATE SET spent = excluded.spent, wanted = excluded.wanted, \
             took = excluded.took, at = excluded.at",
        )
        .bind(organization)
        .bind(counter)
        .bind(report.spent)
        .bind(report.wanted)
        .bind(report.took)
        .bind(at.millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    }
    let now = nanos(tx.now);
    // What was taken comes off the bucket as it was when the first of it was taken: it has refilled since. And what it refilled
    // since another node's last word is not cut off at its brim before that node has told what it took meanwhile.
    let since = nanos(at).saturating_sub(report.within);
    let debit = if is_news {
        report.spent.saturating_sub(before)
    } else {
        0
    };
    let bucket = sqlx::query(
        "INSERT INTO limit_buckets (organization_id, full_at) VALUES (?1, min(?2 + ?3, ?4)) ON CONFLICT (organization_id) \
         DO UPDATE SET full_at = min(max(full_at, ?2) + ?3, ?4) RETURNING full_at",
    )
    .bind(organization)
    .bind(oldest.map_or(since, |oldest| oldest.min(since)))
    .bind(debit)
    .bind(now.saturating_add(length(HOLDS + MOST_OWED)))
    .fetch_one(&mut tx.connection)
    .await
    .map_err(failed)?;
    let full_at: i64 = bucket.value(0)?;
    Ok(LimitStanding {
        organization: report.organization,
        used: oldest
            .map_or(full_at, |oldest| oldest.max(full_at))
            .saturating_sub(now),
        others_wanted: others.value(0)?,
        others_unreported: others.value(1)?,
        others_silent: oldest.is_some_and(|oldest| oldest <= nanos(tx.now.minus(LIMIT_WORD_COUNTS))),
    })
}

async fn share_all(tx: &mut Tx, node: LimitNode, reports: Vec<LimitReport>) -> Result<LimitsHeard> {
    let mut heard = LimitsHeard {
        nodes: live(tx, node).await?,
        now: tx.now,
        standings: Vec::with_capacity(reports.len()),
    };
    for report in reports {
        heard.standings.push(share(tx, node, report).await?);
    }
    Ok(heard)
}

async fn write_usage(tx: &mut Tx, node: Uuid, reports: Vec<UsageReport>) -> Result<()> {
    for report in reports {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        sqlx::query(
            "INSERT INTO usage_hours (organization_id, hour, node, accepted, refused) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (organization_id, hour, node) DO UPDATE SET accepted = excluded.accepted, \
             refused = excluded.refused",
        )
        .bind(report.organization.uuid())
        .bind(report.hour)
        .bind(node)
        .bind(number(report.counts.accepted))
        .bind(number(report.counts.refused))
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

#[async_trait]
impl Limits for Engine {
    async fn share_limits(&self, node: LimitNode, reports: &[LimitReport]) -> Result<LimitsHeard> {
        let reports = reports.to_vec();
        self.writer
            .run(move |tx| Box::pin(share_all(tx, node, reports)))
            .await
    }

    async fn leave_limits(&self, node: Uuid) -> Result<()> {
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM limit_nodes WHERE node = ?")
                        .bind(node)
                        .execute(&mut tx.connection)
                        .await
                        .map(drop)
                        .map_err(failed)
                })
            })
            .await
    }

    async fn write_usage(&self, node: Uuid, reports: &[UsageReport]) -> Result<()> {
        for some in reports.chunks(STEP) {
            let some = some.to_vec();
            self.writer
                .run(move |tx| Box::pin(write_usage(tx, node, some)))
                .await?;
        }
        Ok(())
    }

    async fn usage(&self, organization: OrganizationId, first: i64, last: i64) -> Result<Usage> {
        let rows = sqlx::query(
            "SELECT hour, sum(accepted), sum(refused) FROM usage_hours \
             WHERE organization_id = ? AND hour BETWEEN ? AND ? GROUP BY hour ORDER BY hour",
        )
        .bind(organization.uuid())
        .bind(first)
        .bind(last)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let hours = rows.iter().map(|row| {
            let counts = UsageCounts {
                accepted: row.number(1)?,
                refused: row.number(2)?,
            };
            Ok((row.value(0)?, counts))
        });
        let hours = hours.collect::<Result<_>>()?;
        let bucket = sqlx::query("SELECT full_at FROM limit_buckets WHERE organization_id = ?")
            .bind(organization.uuid())
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?;
        let full_at: i64 = bucket.map_or(Ok(0), |row| row.value(0))?;
        let used = full_at.saturating_sub(nanos(Timestamp::now()));
        Ok(Usage {
            hours,
            used: Duration::from_nanos(u64::try_from(used).unwrap_or(0)),
        })
    }
}
