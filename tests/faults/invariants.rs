//! The invariants, held against what producers were answered, what the database has, and what arrived.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use harness::{Ledger, Load, Post, eventually, is_keyed};
use serde_json::Value;
use sqlx::{PgConnection, query_as, query_scalar};
use type_safe_id::{DynamicType, TypeSafeId};
use uuid::Uuid;

use crate::{database::run, deployment::Deployment};

/// How long all may take to arrive once the last fault is over.
const SETTLING: Duration = Duration::from_mins(3);
/// How many ids, beside those of repeats, are looked up through the API; all of them are asked of the database.
const LOOKED_UP: usize = 200;

/// What came of looking at an invariant: what it was seen by, or what broke it.
pub type Outcome = Result<String, String>;

/// The UUID that a TypeID shows.
pub fn uuid_of(id: &str) -> Uuid {
    let id: TypeSafeId<DynamicType> = id.parse().expect("an id is a TypeID");
    id.uuid()
}

/// What must be none at any time, by what it breaks.
const NEVER: [(&str, &str); 8] = [
    (
        "an event without a delivery",
        "SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT FROM deliveries d WHERE d.event_id = e.id)",
    ),
    (
        "an open delivery without a next step",
        "SELECT count(*) FROM deliveries WHERE (due_at IS NULL) = (state IN ('pending', 'retrying'))",
    ),
    (
        "a delivery of another organization's event or subscription",
        "SELECT count(*) FROM deliveries d JOIN events e ON e.id = d.event_id
         JOIN subscriptions s ON s.id = d.subscription_id
         WHERE d.organization_id <> e.organization_id OR s.organization_id <> e.organization_id",
    ),
    (
        "a repeat of another organization's event",
        "SELECT count(*) FROM event_aliases a JOIN events e ON e.id = a.event_id
         WHERE a.organization_id <> e.organization_id",
    ),
    (
        "a repeat of no event",
        "SELECT count(*) FROM event_aliases a WHERE NOT EXISTS (SELECT FROM events e WHERE e.id = a.event_id)",
    ),
    (
        "a key with two events",
        "SELECT count(*) FROM (SELECT FROM events WHERE dedup_id IS NOT NULL
         GROUP BY organization_id, dedup_id HAVING count(*) > 1) AS twice",
    ),
    (
        "a key of another organization's event, or of none",
        "SELECT count(*) FROM dedup_keys k LEFT JOIN events e ON e.id = k.event_id
         WHERE e.organization_id IS DISTINCT FROM k.organization_id",
    ),
    (
        "a delivery that was closed and is not any more, or otherwise",
        "SELECT count(*) FROM faults_closed f LEFT JOIN deliveries d USING (event_id, subscription_id)
         WHERE md5(d::text) IS DISTINCT FROM f.content",
    ),
];

/// Looks at what must never be, while everything runs, and remembers which deliveries are closed.
pub async fn look(deployment: &Deployment) -> Vec<String> {
    let mut database = deployment.sql().await;
    let remember =
        "CREATE TABLE IF NOT EXISTS faults_closed (event_id uuid, subscription_id uuid, content text,
            PRIMARY KEY (event_id, subscription_id));
         INSERT INTO faults_closed SELECT event_id, subscription_id, md5(d::text) FROM deliveries d
         WHERE due_at IS NULL ON CONFLICT DO NOTHING";
    let mut broken = Vec::new();
    if let Err(error) = run(&mut database, remember).await {
        broken.push(format!("closed deliveries cannot be remembered: {error}"));
    }
    for (what, query) in NEVER {
        let count: i64 = query_scalar(query)
            .fetch_one(&mut database)
            .await
            .expect("the tables are there");
        if count > 0 {
            broken.push(format!("{what}: {count}"));
        }
    }
    broken
}

/// What one tenant's producers were answered, resolved.
struct Resolved {
    posts: Vec<Post>,
    /// The event of every id that was answered.
    events: HashMap<Uuid, Uuid>,
}

/// Ends the loads, waits until all has settled, and holds every invariant but those of producers and memory.
pub async fn settle(deployment: &mut Deployment) -> (Vec<(&'static str, Outcome)>, Vec<Post>) {
    let loads: Vec<Load> = std::mem::take(&mut deployment.loads);
    let mut ledgers = Vec::new();
    for load in loads {
        ledgers.push(load.stop().await);
    }
    if let Some(pullers) = &deployment.pullers {
        pullers.settle();
    }
    let mut spells = Err("nothing was disabled".into());
    if let Some(switch) = deployment.switch.take() {
        let fifo = deployment.tenants[0].path("fifo");
        spells = switch.stop().await.hold(&deployment.receiver, &fifo);
    }
    let mut database = deployment.sql().await;
    let settled = closed(&mut database, &deployment.second().subscriptions["pull"]).await;
    let mut resolved = Vec::new();
    for ledger in &ledgers {
        resolved.push(resolve(&mut database, ledger).await);
    }
    let mut pulled = Err("nobody pulled".into());
    if let Some(pullers) = deployment.pullers.take() {
        let events = resolved[1].events.values().copied().collect();
        pulled = pullers.stop().await.hold(&events);
    }
    let broken = look(deployment).await;
    let never = match broken.as_slice() {
        [] => Ok(format!(
            "{} questions to PostgreSQL, after every fault",
            NEVER.len()
        )),
        broken => Err(broken.join("; ")),
    };
    let outcomes = vec![
        ("1. acknowledged is stored", stored(deployment, &resolved).await),
        ("2. stored is scheduled", settled),
        ("3. at least once, to each", arrived(deployment, &resolved)),
        ("3. exactly one row", rows(deployment, &mut database).await),
        ("4. one event a key", keys(&resolved)),
        ("5. nothing crosses organizations", apart(deployment, &resolved)),
        ("2, 4, 5, 6. what must never be is not", never),
        ("fifo", in_order(deployment, &mut database).await),
        ("what is disabled is parked", spells),
        ("what is pulled is leased, and acknowledged for good", pulled),
    ];
    let posts = resolved.into_iter().flat_map(|resolved| resolved.posts).collect();
    (outcomes, posts)
}

/// Waits until every delivery to a push subscription is closed, and delivered, and every one to be pulled from that one
/// acknowledged.
async fn closed(database: &mut PgConnection, pulled: &str) -> Outcome {
    let counts = eventually("every delivery is closed", SETTLING, async || {
        let counts: Vec<(String, String, i64)> = query_as(
            "SELECT s.kind, d.state, count(*) FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id
             WHERE s.kind = 'push' OR s.id = $1 GROUP BY s.kind, d.state",
        )
        .bind(uuid_of(pulled))
        .fetch_all(&mut *database)
        .await
        .expect("the tables are there");
        let is_open = |state: &str| matches!(state, "pending" | "retrying");
        if !counts.iter().any(|(_, state, _)| is_open(state)) {
            return Ok(counts);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        Err(format!("{counts:?}"))
    })
    .await;
    let as_wanted =
        |kind: &str, state: &str| matches!((kind, state), ("push", "delivered") | ("pull", "acknowledged"));
    if counts.iter().all(|(kind, state, _)| as_wanted(kind, state)) {
        let all: i64 = counts.iter().map(|(_, _, count)| count).sum();
        Ok(format!("{all} deliveries, none open"))
    } else {
        Err(format!(
            "deliveries ended otherwise than delivered or acknowledged: {counts:?}"
        ))
    }
}

async fn resolve(database: &mut PgConnection, ledger: &Ledger) -> Resolved {
    let posts = ledger.posts().to_vec();
    let ids: Vec<Uuid> = accepted(&posts).map(|(_, id)| id).collect();
    let found: Vec<(Uuid, Uuid)> = query_as(
        "SELECT id, id FROM events WHERE id = ANY($1) UNION ALL SELECT id, event_id FROM event_aliases WHERE id = ANY($1)",
    )
    .bind(ids)
    .fetch_all(database)
    .await
    .expect("the tables are there");
    Resolved {
        posts,
        events: found.into_iter().collect(),
    }
}

/// The numbers of accepted events, with each id that was answered.
fn accepted(posts: &[Post]) -> impl Iterator<Item = (u64, Uuid)> {
    let accepted = posts.iter().filter(|post| post.status == Some(202));
    accepted.filter_map(|post| Some((post.number, uuid_of(post.id.as_deref()?))))
}

/// Every id that was answered is in the store, and the API finds it.
async fn stored(deployment: &Deployment, resolved: &[Resolved]) -> Outcome {
    let mut count = 0;
    for (tenant, resolved) in deployment.tenants.iter().zip(resolved) {
        let ids: BTreeSet<Uuid> = accepted(&resolved.posts).map(|(_, id)| id).collect();
        let lost: Vec<_> = ids
            .iter()
            .filter(|id| !resolved.events.contains_key(id))
            .collect();
        if !lost.is_empty() {
            return Err(format!(
                "{} of {} ids are lost: {:?}",
                lost.len(),
                ids.len(),
                &lost[..lost.len().min(5)]
            ));
        }
        count += ids.len();
        let step = (ids.len() / LOOKED_UP).max(1);
        let repeats = ids.iter().filter(|id| resolved.events[id] != **id);
        let sample = ids.iter().step_by(step).chain(repeats);
        let wrong: Vec<String> = stream::iter(sample)
            .map(async |id| {
                let answer = tenant.client().get(&format!("/v1/events/{id}")).await;
                let found = answer.json()["id"].as_str().map(uuid_of);
                (found != Some(resolved.events[id])).then(|| format!("{id}: {}", answer.text))
            })
            .buffer_unordered(8)
            .filter_map(async |wrong| wrong)
            .collect()
            .await;
        if !wrong.is_empty() {
            return Err(format!("the API does not find {}: {}", wrong.len(), wrong[0]));
        }
    }
    Ok(format!("{count} ids, all in the store"))
}

/// Each event has arrived at each of its subscribers.
fn arrived(deployment: &Deployment, resolved: &[Resolved]) -> Outcome {
    let (mut count, mut again) = (0, 0);
    for (tenant, resolved) in deployment.tenants.iter().zip(resolved) {
        let events: HashSet<Uuid> = resolved.events.values().copied().collect();
        for path in &tenant.paths {
            let ids = deployment.receiver.ids(path);
            let here: HashSet<Uuid> = ids.iter().map(|id| uuid_of(id)).collect();
            let missing = events.difference(&here).count();
            if missing > 0 {
                return Err(format!(
                    "{missing} of {} events have not arrived at {path}",
                    events.len()
                ));
            }
            count += here.len();
            again += ids.len() - here.len();
        }
    }
    Ok(format!("{count} arrived, and {again} attempts more than that"))
}

/// Each event of a load has a row for each of the tenant's subscriptions to it, and no other.
async fn rows(deployment: &Deployment, database: &mut PgConnection) -> Outcome {
    for tenant in &deployment.tenants {
        let wrong: i64 = query_scalar(
            "SELECT count(*) FROM (
                SELECT FROM events e LEFT JOIN deliveries d ON d.event_id = e.id
                WHERE e.organization_id = $1 AND e.type = 'load.posted'
                GROUP BY e.id HAVING count(*) <> $2) AS wrong",
        )
        .bind(uuid_of(&tenant.client().organization))
        .bind(i64::try_from(tenant.subscriptions.len()).expect("a small number"))
        .fetch_one(&mut *database)
        .await
        .expect("the tables are there");
        if wrong > 0 {
            return Err(format!(
                "{wrong} events of {} have more rows or fewer",
                tenant.name
            ));
        }
    }
    Ok("one for each event and subscription".into())
}

/// Whatever ids were answered for a key, they lead to one event.
fn keys(resolved: &[Resolved]) -> Outcome {
    let (mut count, mut repeats) = (0, 0);
    for resolved in resolved {
        let mut of_number = BTreeMap::<u64, HashSet<Uuid>>::new();
        for (number, id) in accepted(&resolved.posts).filter(|(number, _)| is_keyed(*number)) {
            repeats += 1;
            if let Some(event) = resolved.events.get(&id) {
                of_number.entry(number).or_default().insert(*event);
            }
        }
        if let Some((number, events)) = of_number.iter().find(|(_, events)| events.len() > 1) {
            return Err(format!("key {number} became {} events", events.len()));
        }
        count += of_number.len();
    }
    Ok(format!("{count} keys, accepted {repeats} times"))
}

/// What arrived at a tenant's subscribers is the tenant's own, by its payload and by the ids that its producers were
/// answered; both tenants use the same keys.
fn apart(deployment: &Deployment, resolved: &[Resolved]) -> Outcome {
    let mut count = 0;
    for (at, tenant) in deployment.tenants.iter().enumerate() {
        let foreign: HashSet<Uuid> = resolved
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != at)
            .flat_map(|(_, resolved)| resolved.events.values().copied())
            .collect();
        for path in &tenant.paths {
            for webhook in deployment.receiver.received(path) {
                let data: Value =
                    serde_json::from_str(webhook.envelope().data.get()).expect("the payload is JSON");
                let own = data["organization"] == tenant.client().organization;
                if !own || foreign.contains(&uuid_of(webhook.webhook_id())) {
                    return Err(format!("{} arrived at {path}: {data}", webhook.webhook_id()));
                }
                count += 1;
            }
        }
    }
    Ok(format!("{count} webhooks, each its organization's own"))
}

/// First arrivals at the subscriber in order are in order of `seq`.
async fn in_order(deployment: &Deployment, database: &mut PgConnection) -> Outcome {
    let tenant = &deployment.tenants[0];
    let order: Vec<Uuid> = query_scalar(
        "SELECT id FROM events WHERE organization_id = $1 AND type = 'load.posted' ORDER BY seq",
    )
    .bind(uuid_of(&tenant.client().organization))
    .fetch_all(database)
    .await
    .expect("the table is there");
    let place: HashMap<Uuid, usize> = order.into_iter().enumerate().map(|(at, id)| (id, at)).collect();
    let mut seen = HashSet::new();
    let mut last = None;
    for id in deployment.receiver.ids(&tenant.path("fifo")) {
        let id = uuid_of(&id);
        if !seen.insert(id) {
            continue;
        }
        let at = place.get(&id).copied();
        if at.is_none() || at <= last {
            return Err(format!("{id} arrived at place {at:?} after {last:?}"));
        }
        last = at;
    }
    Ok(format!("{} events in order", seen.len()))
}
