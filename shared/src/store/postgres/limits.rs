//! What nodes tell each other of the limits of organizations, and what organizations used.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::query;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Engine, Result,
    rows::{self, Columns},
};
use crate::{
    OrganizationId,
    store::{
        LIMIT_NODE_LIVES, LIMIT_WORD_COUNTS, LimitNode, LimitReport, LimitStanding, Limits, LimitsHeard,
        Usage, UsageCounts, UsageReport,
        limits::{HOLDS, MOST_OWED},
    },
};

/// Rows are locked in the order of organizations, so that two nodes never wait for each other. How much more was taken is worked
/// out in the node's own row, under its lock: a statement that the node has given up may still run, beside the next one.
///
/// What was taken comes off a bucket as it was when the first of it was taken: it has refilled since. And what it refilled since
/// another node's last word is not cut off at its brim before that node has told what it took meanwhile.
const SHARE: &str = "
    WITH clock AS (
        SELECT least($11, now()) AS at, least($12, now()) AS heard
    ), given AS MATERIALIZED (
        SELECT * FROM unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[], $6::double precision[],
            $7::double precision[]) AS g (organization_id, counter, spent, within, wanted, took)
    ), lives AS (
        INSERT INTO limit_nodes AS n (node, seen_at) SELECT $1, at FROM clock
        ON CONFLICT (node) DO UPDATE SET seen_at = least(greatest(n.seen_at, excluded.seen_at), now())
    ), others AS MATERIALIZED (
        SELECT g.organization_id, sum(s.wanted) AS wanted, min(s.at) FILTER (WHERE s.took > 0) AS oldest,
            sum(s.took * greatest(0, extract(epoch FROM now() - s.at)::double precision) * 1e9) AS unreported,
            bool_or(s.took > 0 AND s.at <= now() - make_interval(secs => $8)) AS silent
        FROM clock, given g JOIN limit_shares s ON s.organization_id = g.organization_id AND s.counter <> g.counter
        WHERE s.at > clock.heard - make_interval(secs => $8)
        GROUP BY g.organization_id
    ), told AS (
        INSERT INTO limit_shares AS s (organization_id, counter, spent, wanted, took, at, debit)
        SELECT organization_id, counter, spent, wanted, took, clock.at, spent FROM given, clock
        ORDER BY organization_id, counter
        ON CONFLICT (organization_id, counter) DO UPDATE SET spent = excluded.spent, wanted = excluded.wanted,
            took = excluded.took, at = excluded.at, debit = excluded.spent - s.spent
            WHERE s.at <= excluded.at OR s.at > now()
        RETURNING organization_id, debit
    ), debits AS MATERIALIZED (
        SELECT g.organization_id, coalesce(t.debit, 0) AS debit, o.oldest,
            least(clock.at - make_interval(secs => g.within / 1e9), o.oldest) AS since
        FROM clock, given g LEFT JOIN told t USING (organization_id) LEFT JOIN others o USING (organization_id)
    ), buckets AS (
        INSERT INTO limit_buckets AS b (organization_id, full_at, since)
        SELECT organization_id,
            least(since + make_interval(secs => debit / 1e9), now() + make_interval(secs => $10)), since
        FROM debits ORDER BY organization_id
        ON CONFLICT (organization_id) DO UPDATE SET
            full_at = least(greatest(b.full_at, excluded.since) + (excluded.full_at - excluded.since),
                now() + make_interval(secs => $10)),
            since = excluded.since
        RETURNING organization_id, full_at
    ), nodes AS (
        SELECT count(*) + 1 AS nodes FROM limit_nodes, clock
        WHERE node <> $1 AND seen_at > clock.heard - make_interval(secs => $9)
    )
    SELECT now() AS now, nodes.nodes, b.organization_id,
        (extract(epoch FROM greatest(b.full_at, o.oldest) - now()) * 1e9)::bigint AS used,
        coalesce(o.wanted, 0) AS wanted, coalesce(o.unreported, 0)::bigint AS unreported,
        coalesce(o.silent, false) AS silent
    FROM nodes LEFT JOIN (buckets b LEFT JOIN others o USING (organization_id)) ON true";

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
    async fn share_limits(&self, node: LimitNode, reports: &[LimitReport]) -> Result<LimitsHeard> {
        let organizations: Vec<Uuid> = reports.iter().map(|report| report.organization.uuid()).collect();
        let counters: Vec<Uuid> = reports.iter().map(|report| report.counter).collect();
        let spent: Vec<i64> = reports.iter().map(|report| report.spent).collect();
        let within: Vec<i64> = reports.iter().map(|report| report.within).collect();
        let wanted: Vec<f64> = reports.iter().map(|report| report.wanted).collect();
        let took: Vec<f64> = reports.iter().map(|report| report.took).collect();
        let statement = query(SHARE)
            .bind(node.id)
            .bind(organizations)
            .bind(counters)
            .bind(spent)
            .bind(within)
            .bind(wanted)
            .bind(took)
            .bind(rows::seconds(LIMIT_WORD_COUNTS))
            .bind(rows::seconds(LIMIT_NODE_LIVES))
            .bind(rows::seconds(HOLDS + MOST_OWED))
            .bind(node.at.map(OffsetDateTime::from))
            .bind(node.away_since.map(OffsetDateTime::from));
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
                    others_silent: row.value("silent")?,
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
