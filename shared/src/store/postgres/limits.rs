//! What nodes tell each other of the limits of organizations, and what organizations used.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::query;
use uuid::Uuid;

use super::{
    Engine, Result,
    rows::{self, Columns},
};
use crate::{
    OrganizationId,
    store::{
        LIMIT_NODE_LIVES, LIMIT_WORD_COUNTS, LimitReport, LimitStanding, Limits, LimitsHeard, Usage,
        UsageCounts, UsageReport,
        limits::{HOLDS, MOST_OWED},
    },
};

/// Rows of buckets are locked in the order of organizations, so that two nodes never wait for each other. What was taken comes
/// off a bucket as it was when the first of it was taken: it has refilled since.
const SHARE: &str = "
    WITH given AS MATERIALIZED (
        SELECT g.*, g.spent - coalesce(s.spent, 0) AS debit
        FROM unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[], $6::double precision[], $7::double precision[])
            AS g (organization_id, counter, spent, within, wanted, took)
        LEFT JOIN limit_shares s ON s.organization_id = g.organization_id AND s.counter = g.counter
    ), lives AS (
        INSERT INTO limit_nodes (node, seen_at) VALUES ($1, now())
        ON CONFLICT (node) DO UPDATE SET seen_at = now()
    ), told AS (
        INSERT INTO limit_shares (organization_id, counter, spent, wanted, took, at)
        SELECT organization_id, counter, spent, wanted, took, now() FROM given ORDER BY organization_id, counter
        ON CONFLICT (organization_id, counter) DO UPDATE SET spent = excluded.spent, wanted = excluded.wanted,
            took = excluded.took, at = excluded.at
    ), buckets AS (
        INSERT INTO limit_buckets AS b (organization_id, full_at, since)
        SELECT organization_id, now() + make_interval(secs => least((debit - within) / 1e9, $10)),
            now() - make_interval(secs => within / 1e9)
        FROM given ORDER BY organization_id
        ON CONFLICT (organization_id) DO UPDATE SET
            full_at = least(greatest(b.full_at, excluded.since) + (excluded.full_at - excluded.since),
                now() + make_interval(secs => $10)),
            since = excluded.since
        RETURNING organization_id, full_at
    ), nodes AS (
        SELECT count(*) + 1 AS nodes FROM limit_nodes
        WHERE node <> $1 AND seen_at > now() - make_interval(secs => $9)
    )
    SELECT now() AS now, nodes.nodes, b.organization_id,
        (extract(epoch FROM b.full_at - now()) * 1e9)::bigint AS used,
        coalesce(o.wanted, 0) AS wanted, coalesce(o.unreported, 0)::bigint AS unreported
    FROM nodes LEFT JOIN (buckets b JOIN given g USING (organization_id)) ON true
    LEFT JOIN LATERAL (
        SELECT sum(s.wanted) AS wanted,
            sum(s.took * greatest(0, extract(epoch FROM now() - s.at)::double precision) * 1e9) AS unreported
        FROM limit_shares s
        WHERE s.organization_id = g.organization_id AND s.counter <> g.counter
          AND s.at > now() - make_interval(secs => $8)
    ) o ON true";

const LEAVE: &str = "DELETE FROM limit_nodes WHERE node = $1";

const WRITE_USAGE: &str = "
    INSERT INTO usage_hours (organization_id, hour, node, accepted, refused)
    SELECT organization_id, hour, $1, accepted, refused
    FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[]) AS u (organization_id, hour, accepted, refused)
    ORDER BY organization_id, hour
    ON CONFLICT (organization_id, hour, node) DO UPDATE SET accepted = excluded.accepted, refused = excluded.refused";

const USAGE: &str = "
    SELECT hour, sum(accepted)::bigint AS accepted, sum(refused)::bigint AS refused FROM usage_hours
    WHERE organization_id = $1 AND hour BETWEEN $2 AND $3 GROUP BY hour ORDER BY hour";

const USED: &str = "
    SELECT greatest(0, extract(epoch FROM full_at - now()))::double precision AS used FROM limit_buckets
    WHERE organization_id = $1";

#[async_trait]
impl Limits for Engine {
    async fn share_limits(&self, node: Uuid, reports: &[LimitReport]) -> Result<LimitsHeard> {
        let organizations: Vec<Uuid> = reports.iter().map(|report| report.organization.uuid()).collect();
        let counters: Vec<Uuid> = reports.iter().map(|report| report.counter).collect();
        let spent: Vec<i64> = reports.iter().map(|report| report.spent).collect();
        let within: Vec<i64> = reports.iter().map(|report| report.within).collect();
        let wanted: Vec<f64> = reports.iter().map(|report| report.wanted).collect();
        let took: Vec<f64> = reports.iter().map(|report| report.took).collect();
        let statement = query(SHARE)
            .bind(node)
            .bind(organizations)
            .bind(counters)
            .bind(spent)
            .bind(within)
            .bind(wanted)
            .bind(took)
            .bind(rows::seconds(LIMIT_WORD_COUNTS))
            .bind(rows::seconds(LIMIT_NODE_LIVES))
            .bind(rows::seconds(HOLDS + MOST_OWED));
        let rows = self.rows(statement).await?;
        let mut heard = LimitsHeard {
            nodes: 1,
            now: crate::Timestamp::now(),
            standings: Vec::with_capacity(rows.len()),
        };
        for row in rows {
            (heard.nodes, heard.now) = (row.number("nodes")?, row.at("now")?);
            if let Some(organization) = row.optional_id("organization_id")? {
                heard.standings.push(LimitStanding {
                    organization,
                    used: row.value("used")?,
                    others_wanted: row.value("wanted")?,
                    others_unreported: row.value("unreported")?,
                });
            }
        }
        Ok(heard)
    }

    async fn leave_limits(&self, node: Uuid) -> Result<()> {
        self.rows(query(LEAVE).bind(node)).await.map(drop)
    }

    async fn write_usage(&self, node: Uuid, reports: &[UsageReport]) -> Result<()> {
        let of = |read: fn(&UsageReport) -> i64| reports.iter().map(read).collect::<Vec<_>>();
        let organizations: Vec<Uuid> = reports.iter().map(|report| report.organization.uuid()).collect();
        let statement = query(WRITE_USAGE)
            .bind(node)
            .bind(organizations)
            .bind(of(|report| report.hour))
            .bind(of(|report| {
                i64::try_from(report.counts.accepted).unwrap_or(i64::MAX)
            }))
            .bind(of(|report| {
                i64::try_from(report.counts.refused).unwrap_or(i64::MAX)
            }));
        self.rows(statement).await.map(drop)
    }

    async fn usage(&self, organization: OrganizationId, first: i64, last: i64) -> Result<Usage> {
        let hours = query(USAGE).bind(organization.uuid()).bind(first).bind(last);
        let hours = self.rows(hours).await?;
        let hours = hours.iter().map(|row| {
            let counts = UsageCounts {
                accepted: row.number("accepted")?,
                refused: row.number("refused")?,
            };
            Ok((row.value("hour")?, counts))
        });
        let hours = hours.collect::<Result<_>>()?;
        let used = match self.row(query(USED).bind(organization.uuid())).await? {
            Some(row) => Duration::from_secs_f64(row.value("used")?),
            None => Duration::ZERO,
        };
        Ok(Usage { hours, used })
    }
}
