//! The ways of a replay: what there is on each, and what comes next. Every statement reads a bounded number of rows: what an index
//! finds is left out by the program, never by a condition that many rows in a row may fail.

use sqlx::{postgres::PgRow, query};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Engine, Result, Statement, partitions, rows::Columns};
use crate::{
    EventId, Timestamp,
    store::{
        Candidate, Candidates, Replay, Walk, Way,
        replay_way::{self, FEW, Found, READ, SAMPLE, Sample},
    },
};

/// Whether events of `$1` were accepted under ids between `$2` and `$3` and have others by now, which may be of any day.
const STRAYS: &str = "
    SELECT EXISTS (SELECT FROM former_ids WHERE organization_id = $1 AND id > $2 AND id < $3) AS found";

/// Of the first `$4` events with ids between `$2` and `$3`: how many are of `$1`.
const SAMPLED: &str = "
    SELECT count(*) AS events, count(*) FILTER (WHERE organization_id = $1) AS ours,
        (array_agg(id ORDER BY id))[1] AS first, (SELECT id FROM events ORDER BY id LIMIT 1) AS oldest
    FROM (SELECT id, organization_id FROM events WHERE id > $2 AND id < $3 ORDER BY id LIMIT $4) AS found";

/// The first and the last seq of `$1` above `$4` and below `$5`, of ids from `$2` to before `$3`: these are of whole days, so that there is
/// nothing to leave out.
macro_rules! ends {
    ($from:literal, $id:literal) => {
        concat!(
            "SELECT (SELECT seq FROM ",
            $from,
            " AND ",
            $id,
            " >= $2 AND ",
            $id,
            " < $3 AND seq > $4 AND seq < $5
                     ORDER BY seq LIMIT 1) AS first,
                    (SELECT seq FROM ",
            $from,
            " AND ",
            $id,
            " >= $2 AND ",
            $id,
            " < $3 AND seq > $4 AND seq < $5
                     ORDER BY seq DESC LIMIT 1) AS last"
        )
    };
}
const ENDS: &str = ends!("events WHERE organization_id = $1", "id");
const DEAD_ENDS: &str = ends!(
    "deliveries WHERE organization_id = $1 AND state = 'dead_letter'",
    "event_id"
);

/// Dead letters of `$1` from seq `$2` to `$3`, counted up to `$4`.
const DEAD: &str = "
    SELECT count(*) AS dead FROM (
        SELECT FROM deliveries WHERE organization_id = $1 AND state = 'dead_letter' AND seq BETWEEN $2 AND $3
        ORDER BY seq LIMIT $4
    ) AS found";

/// `$1` organization, `$2` after which seq, `$3` the last, `$4` how many.
const IN_ORDER: &str = "
    SELECT seq AS place, id, seq, type, received_at FROM events
    WHERE organization_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4";

/// Of the same, and `$5` the subscription: what is another's has no event here.
const DEAD_LETTERS: &str = "
    SELECT d.seq AS place, e.id, e.seq, e.type, e.received_at FROM (
        SELECT seq, event_id, subscription_id FROM deliveries
        WHERE organization_id = $1 AND state = 'dead_letter' AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4
    ) d
    LEFT JOIN LATERAL (SELECT * FROM events e WHERE e.id = d.event_id AND d.subscription_id = $5 LIMIT 1) e ON true
    ORDER BY d.seq";

/// By the ids that events were accepted under, between `$2` and `$3`: by what they have still, and by what they had. Of the events of other
/// organizations than `$1`, no more than that they are there.
const IN_TIME: &str = "
    SELECT place, id, seq, type, received_at FROM (
        (SELECT own.id AS place, CASE WHEN own.organization_id = $1 THEN own.id END AS id, own.seq,
                CASE WHEN own.organization_id = $1 THEN own.type END AS type, own.received_at
         FROM events own WHERE own.id > $2 AND own.id < $3 ORDER BY own.id LIMIT $4)
        UNION ALL
        (SELECT f.id, e.id, e.seq, e.type, e.received_at FROM (
            SELECT id, event_id FROM former_ids WHERE organization_id = $1 AND id > $2 AND id < $3 ORDER BY id LIMIT $4
         ) f
         LEFT JOIN LATERAL (SELECT * FROM events e WHERE e.id = f.event_id AND e.organization_id = $1 LIMIT 1) e ON true)
    ) AS accepted
    ORDER BY place LIMIT $4";

impl Engine {
    /// By which way it is to go; of what is below `before_seq`, all of which can be seen.
    pub(super) async fn way_of_replay(&self, replay: &Replay, before_seq: i64) -> Result<Way> {
        let (after, before) = replay_way::ids(replay);
        let between = |sql| {
            query(sql)
                .bind(replay.organization.uuid())
                .bind(after)
                .bind(before)
        };
        let days = if self.one(between(STRAYS)).await?.value("found")? {
            (Uuid::nil(), Uuid::max())
        } else {
            days(after, before)
        };
        let ends = async |sql| -> Result<Option<(i64, i64)>> {
            let statement: Statement = query(sql)
                .bind(replay.organization.uuid())
                .bind(days.0)
                .bind(days.1)
                .bind(replay.after_seq)
                .bind(before_seq);
            let row = self.one(statement).await?;
            Ok(row
                .value::<Option<i64>>("first")?
                .zip(row.value::<Option<i64>>("last")?))
        };
        let (mut dead, mut dead_ends) = (None, None);
        if replay_way::is_of_dead_letters(replay) {
            dead_ends = ends(DEAD_ENDS).await?;
            let (first, last) = dead_ends.unwrap_or((1, 0));
            let statement = query(DEAD)
                .bind(replay.organization.uuid())
                .bind(first)
                .bind(last)
                .bind(i64::from(FEW));
            dead = Some(self.one(statement).await?.number("dead")?);
        }
        let sample = if replay_way::may_go_by_time(replay) {
            let row = self.one(between(SAMPLED).bind(i64::from(SAMPLE))).await?;
            Some(Sample {
                events: row.number("events")?,
                ours: row.number("ours")?,
                first: row.value("first")?,
                oldest: row.value("oldest")?,
            })
        } else {
            None
        };
        let walk = replay_way::shortest(replay, days, dead, sample.as_ref());
        Ok(match walk {
            Walk::Time => replay_way::by_time(replay, &sample.unwrap_or_default()),
            Walk::DeadLetters => replay_way::in_order(walk, dead_ends),
            Walk::Order => replay_way::in_order(walk, ends(ENDS).await?),
        })
    }

    /// What comes next on its way.
    pub(super) async fn next_of_replay(&self, replay: &Replay, way: Way, limit: u32) -> Result<Candidates> {
        let mut most = limit;
        if way.walk == Walk::Time {
            let mut found = self.found_in_time(replay, most).await?;
            if replay_way::is_thin(&found, limit) {
                most = READ;
                found = self.found_in_time(replay, most).await?;
            }
            return Ok(replay_way::next_in_time(replay, found, most, limit));
        }
        let mut found = self.found_in_order(replay, way, most).await?;
        if replay_way::is_thin(&found, limit) {
            most = READ;
            found = self.found_in_order(replay, way, most).await?;
        }
        Ok(replay_way::next_in_order(replay, found, most, limit))
    }

    async fn found_in_time(&self, replay: &Replay, most: u32) -> Result<Vec<Found<EventId>>> {
        let (after, before) = replay_way::ids_left(replay);
        let statement = query(IN_TIME)
            .bind(replay.organization.uuid())
            .bind(after)
            .bind(before)
            .bind(i64::from(most));
        let rows = self.rows(statement).await?;
        let found = rows.iter().map(|row| {
            Ok(Found {
                place: row.id("place")?,
                event: event(row)?,
            })
        });
        found.collect()
    }

    async fn found_in_order(&self, replay: &Replay, way: Way, most: u32) -> Result<Vec<Found<i64>>> {
        let sql = match way.walk {
            Walk::DeadLetters => DEAD_LETTERS,
            Walk::Order | Walk::Time => IN_ORDER,
        };
        let mut statement = query(sql)
            .bind(replay.organization.uuid())
            .bind(replay.after_seq)
            .bind(way.last)
            .bind(i64::from(most));
        if way.walk == Walk::DeadLetters {
            statement = statement.bind(replay.subscription.uuid());
        }
        let rows = self.rows(statement).await?;
        let found = rows.iter().map(|row| {
            Ok(Found {
                place: row.value("place")?,
                event: event(row)?,
            })
        });
        found.collect()
    }
}

/// The first ids of the days of these ids, and of the day after.
fn days(after: Uuid, before: Uuid) -> (Uuid, Uuid) {
    let day = |id| OffsetDateTime::from(Timestamp::from_millis(replay_way::millis(id))).date();
    let end = day(before).next_day();
    (
        partitions::first_id(day(after)),
        end.map_or(Uuid::max(), partitions::first_id),
    )
}

fn event(row: &PgRow) -> Result<Option<Candidate>> {
    let Some(event) = row.optional_id("id")? else {
        return Ok(None);
    };
    Ok(Some(Candidate {
        event,
        seq: row.value("seq")?,
        event_type: row.value("type")?,
        received_at: row.at("received_at")?,
    }))
}
