//! An event's status in statements: the least of its deliveries', in the order of [`EventStatus`](crate::EventStatus).

/// The status of the event of deliveries `d`, each with its subscription `s` while that is not deleted.
macro_rules! least {
    () => {
        "coalesce(min(CASE
            WHEN d.due_at IS NOT NULL THEN CASE WHEN s.id IS NULL THEN 5 ELSE 0 END
            WHEN d.state = 'dead_letter' THEN 1
            WHEN d.state = 'expired' THEN 2
            WHEN d.state = 'delivered' THEN 3
            WHEN d.state = 'acknowledged' THEN 4
            ELSE 5 END), 0)::bigint"
    };
}

/// The deliveries `d` of an event, each with its subscription `s` while that is not deleted.
macro_rules! deliveries_of {
    ($event:literal) => {
        concat!(
            "deliveries d
            LEFT JOIN LATERAL (
                SELECT s.id FROM subscriptions s WHERE s.id = d.subscription_id AND s.deleted_at IS NULL LIMIT 1
            ) s ON true
            WHERE d.event_id = ",
            $event
        )
    };
}

/// The status of an event `e`, as `rank`, if the parameter says that it is asked for.
macro_rules! rank {
    ($asked:literal) => {
        concat!(
            "CASE WHEN ",
            $asked,
            " THEN (SELECT ",
            $crate::store::postgres::status::least!(),
            " FROM ",
            $crate::store::postgres::status::deliveries_of!("e.id"),
            ") END AS rank"
        )
    };
}

pub(super) use {deliveries_of, least, rank};
