//! The ways of a replay: what there is on each, and what comes next. Every statement reads a bounded number of rows: what an index
//! finds is left out by the program, never by a condition that many rows in a row may fail.

use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{
    Engine,
    row::{Columns as _, failed},
};
use crate::{
    EventId,
    store::{
        Candidate, Candidates, Replay, Result, Walk, Way,
        replay_way::{self, FEW, Found, READ, SAMPLE, Sample},
    },
};

/// The first and the last of all: one above, one below.
const ENDS: &str = "
    SELECT (SELECT seq FROM events INDEXED BY events_by_organization
            WHERE organization_id = ?1 AND seq > ?2 AND seq < ?3 ORDER BY seq LIMIT 1),
           (SELECT seq FROM events INDEXED BY events_by_organization
            WHERE organization_id = ?1 AND seq > ?2 AND seq < ?3 ORDER BY seq DESC LIMIT 1)";

/// As [`ENDS`], of what the index over dead letters has; that is more than dead letters.
const ENDED: &str = "
    SELECT (SELECT seq FROM deliveries INDEXED BY deliveries_ended
            WHERE organization_id = ?1 AND seq > ?2 AND seq < ?3 AND state IN ('dead_letter', 'expired', 'acknowledged')
            ORDER BY seq LIMIT 1),
           (SELECT seq FROM deliveries INDEXED BY deliveries_ended
            WHERE organization_id = ?1 AND seq > ?2 AND seq < ?3 AND state IN ('dead_letter', 'expired', 'acknowledged')
            ORDER BY seq DESC LIMIT 1),
           (SELECT count(*) FROM (SELECT 1 FROM deliveries INDEXED BY deliveries_ended
            WHERE organization_id = ?1 AND seq > ?2 AND seq < ?3 AND state IN ('dead_letter', 'expired', 'acknowledged')
            ORDER BY seq LIMIT ?4))";

/// Of the first `?4` events with ids between `?2` and `?3`: how many are of `?1`.
const SAMPLED: &str = "
    SELECT count(*), coalesce(sum(organization_id = ?1), 0), min(id), (SELECT min(id) FROM events)
    FROM (SELECT id, organization_id FROM events INDEXED BY events_by_id WHERE id > ?2 AND id < ?3 ORDER BY id LIMIT ?4)";

/// `?1` organization, `?2` after which seq, `?3` the last, `?4` how many.
const IN_ORDER: &str = "
    SELECT seq, id, seq, type, received_at FROM events INDEXED BY events_by_organization
    WHERE organization_id = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4";

/// Of the same, and `?5` the subscription: what is another's, or ended otherwise, has no event here.
const DEAD_LETTERS: &str = "
    SELECT d.seq, e.id, e.seq, e.type, e.received_at FROM (
        SELECT seq, event_id, subscription_id, state FROM deliveries INDEXED BY deliveries_ended
        WHERE organization_id = ?1 AND state IN ('dead_letter', 'expired', 'acknowledged') AND seq > ?2 AND seq <= ?3
        ORDER BY seq LIMIT ?4
    ) d
    LEFT JOIN events e ON d.state = 'dead_letter' AND d.subscription_id = ?5 AND e.id = d.event_id
    ORDER BY d.seq";

/// By the ids that events were accepted under, between `?2` and `?3`: by what they have still, and by what they had. Of the events of other
/// organizations than `?1`, no more than that they are there.
const IN_TIME: &str = "
    SELECT * FROM (
        SELECT own.id AS place, CASE WHEN own.organization_id = ?1 THEN own.id END, own.seq, own.type, own.received_at
        FROM events own INDEXED BY events_by_id WHERE own.id > ?2 AND own.id < ?3 ORDER BY own.id LIMIT ?4
    )
    UNION ALL
    SELECT * FROM (
        SELECT f.id AS place, e.id, e.seq, e.type, e.received_at FROM (
            SELECT id, event_id FROM former_ids WHERE organization_id = ?1 AND id > ?2 AND id < ?3 ORDER BY id LIMIT ?4
        ) f
        LEFT JOIN events e ON e.id = f.event_id AND e.organization_id = ?1
    )
    ORDER BY 1 LIMIT ?4";

impl Engine {
    /// By which way it is to go. There are no days to tell apart here: in order of intake it is all that there is.
    pub(super) async fn way_of_replay(&self, replay: &Replay) -> Result<Way> {
        let before_seq = replay.before_seq.unwrap_or(i64::MAX);
        let in_seqs = |sql| {
            sqlx::query(sql)
                .bind(replay.organization.uuid())
                .bind(replay.after_seq)
                .bind(before_seq)
        };
        let ends = |row: &SqliteRow| -> Result<Option<(i64, i64)>> {
            Ok(row.value::<Option<i64>>(0)?.zip(row.value::<Option<i64>>(1)?))
        };
        let (mut dead, mut dead_ends) = (None, None);
        if replay_way::is_of_dead_letters(replay) {
            let row = in_seqs(ENDED).bind(FEW).fetch_one(&self.readers).await;
            let row = row.map_err(failed)?;
            dead_ends = ends(&row)?;
            dead = Some(row.number(2)?);
        }
        let sample = if replay_way::may_go_by_time(replay) {
            let (after, before) = replay_way::ids(replay);
            let row = sqlx::query(SAMPLED)
                .bind(replay.organization.uuid())
                .bind(after)
                .bind(before)
                .bind(SAMPLE)
                .fetch_one(&self.readers)
                .await
                .map_err(failed)?;
            Some(Sample {
                events: row.number(0)?,
                ours: row.number(1)?,
                first: row.value(2)?,
                oldest: row.value(3)?,
            })
        } else {
            None
        };
        let all = (Uuid::nil(), Uuid::max());
        let walk = replay_way::shortest(replay, all, dead, sample.as_ref());
        Ok(match walk {
            Walk::Time => replay_way::by_time(replay, &sample.unwrap_or_default()),
            Walk::DeadLetters => replay_way::in_order(walk, dead_ends),
            Walk::Order => {
                let row = in_seqs(ENDS).fetch_one(&self.readers).await.map_err(failed)?;
                replay_way::in_order(walk, ends(&row)?)
            }
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
        let rows = sqlx::query(IN_TIME)
            .bind(replay.organization.uuid())
            .bind(after)
            .bind(before)
            .bind(most)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        let found = rows.iter().map(|row| {
            Ok(Found {
                place: row.id(0)?,
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
        let mut statement = sqlx::query(sql)
            .bind(replay.organization.uuid())
            .bind(replay.after_seq)
            .bind(way.last)
            .bind(most);
        if way.walk == Walk::DeadLetters {
            statement = statement.bind(replay.subscription.uuid());
        }
        let rows = statement.fetch_all(&self.readers).await.map_err(failed)?;
        let found = rows.iter().map(|row| {
            Ok(Found {
                place: row.value(0)?,
                event: event(row)?,
            })
        });
        found.collect()
    }
}

fn event(row: &SqliteRow) -> Result<Option<Candidate>> {
    let Some(event) = row.value::<Option<Uuid>>(1)? else {
        return Ok(None);
    };
    Ok(Some(Candidate {
        event: EventId::from_uuid(event),
        seq: row.value(2)?,
        event_type: row.value(3)?,
        received_at: row.time(4)?,
    }))
}
