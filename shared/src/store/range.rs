//! Which ids have a place in the store: retention goes by the time that an id begins with, so that one far from now, of a
//! front whose clock has gone wrong, has none.

use std::time::Duration;

use crate::{EventId, Timestamp};

/// How far ahead of now an id may be.
pub const MAX_AHEAD: Duration = Duration::from_hours(24);

/// Whether an id is of the time that is kept: not older than `retention`, and at most [`MAX_AHEAD`] ahead.
pub fn is_in_range(id: EventId, now: Timestamp, retention: Duration) -> bool {
    !is_ahead(id, now) && id.created_at().is_some_and(|at| at >= now.minus(retention))
}

/// Whether an id is too far ahead, or tells no time at all.
pub(crate) fn is_ahead(id: EventId, now: Timestamp) -> bool {
    id.created_at().is_none_or(|at| at > now.plus(MAX_AHEAD))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_id_has_a_place_from_retention_to_a_day_ahead() {
        let retention = Duration::from_hours(72);
        let id = EventId::new();
        let at = id.created_at().expect("a version 7");
        let later = Duration::from_millis(1);
        for now in [at, at.plus(retention), at.minus(MAX_AHEAD)] {
            assert!(is_in_range(id, now, retention));
        }
        for now in [at.plus(retention).plus(later), at.minus(MAX_AHEAD).minus(later)] {
            assert!(!is_in_range(id, now, retention));
        }
        assert!(!is_in_range(EventId::from_uuid(Uuid::new_v4()), at, retention));
    }
}
