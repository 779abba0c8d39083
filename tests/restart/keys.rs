//! A key is revoked while the database or the broker is away: it ends everywhere within five seconds and never comes back,
//! while keys that are known go on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Answer, Client, Engine, Link, Node, PrivateRabbit, Proxy, Spec, Turn, World, eventually};
use serde_json::json;

/// Within which a revoked key ends everywhere, and a second for a busy test machine.
const ENDS_WITHIN: Duration = Duration::from_secs(6);

async fn post(client: &Client) -> Answer {
    client
        .post("/v1/events", &json!({"type": "order.placed", "payload": 1}))
        .await
}

async fn make(client: &Client, name: &str) -> (String, Client) {
    let made = client.post("/v1/keys", &json!({"name": name})).await.expect(201);
    let text = |member: &str| made[member].as_str().expect("a text").to_owned();
    (text("id"), client.with_key(&text("key")))
}

async fn revoke(client: &Client, id: &str) {
    let revoked = client.delete(&format!("/v1/keys/{id}")).await;
    assert_eq!(revoked.status, 204, "{}", revoked.text);
}

/// Waits until the key is refused at these nodes, for good reason and within its time.
async fn ends(key: &Client, nodes: &[&Arc<Node>], since: Instant) {
    for node in nodes {
        eventually("the key ends", ENDS_WITHIN, async || {
            let answer = post(&key.posting_to(node)).await;
            // The key is asked for before the queue is, which may not be back yet at this node.
            if [202, 503].contains(&answer.status) {
                return Err(format!("it is still good: {}", answer.text));
            }
            answer.problem(401, "unauthorized");
            Ok(())
        })
        .await;
    }
    assert!(since.elapsed() < ENDS_WITHIN, "it took {:?}", since.elapsed());
}

/// Waits until the api answers so.
async fn store_is(client: &Client, status: u16) {
    eventually(
        "the api notices",
        Duration::from_secs(40),
        async || match client.get("/v1/keys").await {
            answer if answer.status == status => Ok(()),
            answer => Err(answer.text),
        },
    )
    .await;
}

/// Neither node has had time to ask the database again when it hangs: the notice alone can tell them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_revoked_just_before_the_database_hangs() {
    let _turn = Turn::wait().await;
    let (database, world) = World::on_its_own_postgres().await;
    let second = world.start_another("ingest").await;
    second.ready().await;
    let nodes = [world.ingest(), &second, world.api()];
    let client = world.organization().await;
    let (leaked_id, leaked) = make(&client, "leaked").await;
    let (_, good) = make(&client, "good").await;
    let (old_id, old) = make(&client, "old").await;
    for node in nodes {
        for key in [&leaked, &good, &old] {
            post(&key.posting_to(node)).await.expect(202);
        }
    }

    let rotate = format!("/v1/keys/{old_id}/rotate");
    let rotated = client
        .post(&rotate, &json!({"overlap_seconds": 4}))
        .await
        .expect(201);
    revoke(&client, &leaked_id).await;
    let begun = Instant::now();
    database.pause();
    ends(&leaked, &nodes, begun).await;
    // What was rotated ends when it was told to, though no node has read so.
    for node in nodes {
        eventually(
            "the old key ends",
            Duration::from_secs(10),
            async || match post(&old.posting_to(node)).await {
                answer if answer.status == 202 => Err("it is still good".to_owned()),
                answer => Ok(answer.problem(401, "unauthorized")),
            },
        )
        .await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    // The outage goes on: known keys are good, nobody can tell of others, and what ended stays so.
    store_is(&client, 503).await;
    for node in nodes {
        post(&good.posting_to(node)).await.expect(202);
        post(&leaked.posting_to(node)).await.problem(401, "unauthorized");
    }
    let new = client.with_key(rotated["key"].as_str().expect("a key"));
    post(&new).await.problem(503, "unavailable");
    // A node that starts meanwhile knows nobody.
    let late = world.start_another("ingest").await;
    post(&good.posting_to(&late)).await.problem(503, "unavailable");
    post(&leaked.posting_to(&late)).await.problem(503, "unavailable");

    database.resume();
    store_is(&client, 200).await;
    for node in [world.ingest(), &second, world.api(), &late] {
        eventually(
            "keys are looked up again",
            Duration::from_secs(20),
            async || match post(&new.posting_to(node)).await {
                answer if [202, 503].contains(&answer.status) => Ok(()),
                answer => Err(answer.text),
            },
        )
        .await;
        post(&good.posting_to(node)).await.expect(202);
        for ended in [&leaked, &old] {
            post(&ended.posting_to(node)).await.problem(401, "unauthorized");
        }
    }
}

/// Removing an organization ends its keys as revoking each of them would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_is_removed_just_before_the_database_hangs() {
    let _turn = Turn::wait().await;
    let (database, world) = World::on_its_own_postgres().await;
    let second = world.start_another("ingest").await;
    second.ready().await;
    let nodes = [world.ingest(), &second, world.api()];
    let (first, kept) = (world.organization().await, world.organization().await);
    let (_, other) = make(&first, "another of its keys").await;
    for node in nodes {
        for key in [&first, &other, &kept] {
            post(&key.posting_to(node)).await.expect(202);
        }
    }
    let path = format!("/v1/organizations/{}", first.organization);
    world.admin().delete(&path).await.expect(202);
    let begun = Instant::now();
    database.pause();
    for key in [&first, &other] {
        ends(key, &nodes, begun).await;
    }
    store_is(&kept, 503).await;
    for node in nodes {
        post(&kept.posting_to(node)).await.expect(202);
        for key in [&first, &other] {
            post(&key.posting_to(node)).await.problem(401, "unauthorized");
        }
    }
    database.resume();
    store_is(&kept, 200).await;
    for node in nodes {
        post(&kept.posting_to(node)).await.expect(202);
        for key in [&first, &other] {
            post(&key.posting_to(node)).await.problem(401, "unauthorized");
        }
    }
}

/// How often a node has printed this, once it is as often as that.
async fn printed(node: &Node, text: &str, times: usize) {
    eventually("the node says so", Duration::from_secs(40), async || {
        let output = node.output();
        match output.matches(text).count() {
            count if count >= times => Ok(()),
            count => Err(format!("{text:?} {count} times")),
        }
    })
    .await;
}

/// A node whose way to the broker goes through a proxy.
async fn another_behind(world: &World, program: &'static str) -> (Arc<Node>, Proxy) {
    let name = "TRIGGERS_AMQP_URL";
    let mut settings = world.settings().to_vec();
    let (_, way) = settings
        .iter_mut()
        .find(|(given, _)| given == name)
        .expect("there is a broker");
    let mut url = reqwest::Url::parse(way).expect("a broker's URL is one");
    let target = (url.host_str().expect("a host"), url.port().unwrap_or(5672));
    let target = tokio::net::lookup_host(target)
        .await
        .expect("the broker has an address")
        .next()
        .expect("the broker has an address");
    let proxy = Proxy::start(target).await;
    url.set_ip_host(proxy.address().ip()).expect("the URL has a host");
    url.set_port(Some(proxy.address().port()))
        .expect("the URL may have a port");
    *way = url.into();
    let node = Node::start(Spec {
        program,
        arguments: Vec::new(),
        settings,
    })
    .await;
    node.ready().await;
    (node, proxy)
}

/// A node is cut off from the broker for a moment, and in that moment a key is revoked that nobody uses there. When the database
/// goes away later, the key must not be good there again: broker and database were never both away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_revoked_while_a_node_that_knows_it_does_not_hear() {
    let _turn = Turn::wait().await;
    let (database, world) = World::on_its_own_postgres().await;
    let (node, broker) = another_behind(&world, "ingest").await;
    let client = world.organization().await;
    let (leaked_id, leaked) = make(&client, "leaked").await;
    let (_, good) = make(&client, "good").await;
    for key in [&leaked, &good] {
        post(&key.posting_to(&node)).await.expect(202);
    }
    // A use is written down in the round after it, which looks the key up once more. From then on both rest.
    eventually("the uses are written down", Duration::from_secs(20), async || {
        let listed = client.get("/v1/keys").await.expect(200);
        let keys = listed["data"].as_array().expect("a page").iter();
        match keys.filter(|key| !key["last_used_at"].is_null()).count() {
            // The client's own among them.
            3 => Ok(()),
            count => Err(format!("{count} were used")),
        }
    })
    .await;

    broker.set(Link::Cut);
    printed(&node, "revocations of keys are not heard", 1).await;
    post(&leaked).await.expect(202);
    revoke(&client, &leaked_id).await;
    ends(&leaked, &[world.ingest(), world.api()], Instant::now()).await;
    broker.set(Link::Open);
    printed(&node, "revocations of keys are heard", 2).await;
    printed(&node, "every known key was looked up again", 2).await;

    database.pause();
    store_is(&client, 503).await;
    eventually(
        "known keys go on",
        Duration::from_secs(40),
        async || match post(&good.posting_to(&node)).await {
            answer if answer.status == 202 => Ok(()),
            answer => Err(answer.text),
        },
    )
    .await;
    post(&leaked.posting_to(&node)).await.problem(401, "unauthorized");
    database.resume();
    store_is(&client, 200).await;
    post(&leaked.posting_to(&node)).await.problem(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_revoked_while_the_broker_is_dead() {
    let _turn = Turn::wait().await;
    let mut broker = PrivateRabbit::start().await;
    let world = World::with(Engine::Servers)
        .amqp_server(&broker.url())
        .start()
        .await;
    let client = world.organization().await;
    let (first_id, first) = make(&client, "first").await;
    let (second_id, second) = make(&client, "second").await;
    // A broker that is killed the moment it has made a queue may not have that queue any more.
    let mut last = String::new();
    for _ in 0..100 {
        for key in [&first, &second] {
            last = key.event("order.placed").await;
        }
    }
    client.event_becomes(&last, "pending").await;
    broker.kill();
    revoke(&client, &first_id).await;
    let begun = Instant::now();
    eventually("the key ends", ENDS_WITHIN, async || {
        match post(&first).await {
            // The key is asked for before the queue is.
            answer if answer.status == 503 => Err("it is still good".to_owned()),
            answer => Ok(answer.problem(401, "unauthorized")),
        }
    })
    .await;
    assert!(begun.elapsed() < ENDS_WITHIN, "it took {:?}", begun.elapsed());

    broker.start_again().await;
    eventually(
        "events are accepted again",
        Duration::from_secs(40),
        async || match post(&second).await {
            answer if [202, 503].contains(&answer.status) => Ok(()),
            answer => Err(answer.text),
        },
    )
    .await;
    post(&first).await.problem(401, "unauthorized");
    // Both ways work again by themselves.
    let warned = "revocations of keys are not heard";
    assert!(world.ingest().output().contains(warned));
    revoke(&client, &second_id).await;
    ends(&second, &[world.ingest(), world.api()], Instant::now()).await;
}
