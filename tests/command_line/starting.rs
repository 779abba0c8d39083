//! Starting: many at once on a new schema, and all roles in one process.

use futures_util::future::join_all;
use harness::{Engine, Receiver, Spec, World};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_start_at_once_on_a_new_schema() {
    let world = World::with(Engine::Servers).prepare().await;
    let programs = ["ingest", "worker", "api", "ingest", "worker", "api"];
    let nodes = join_all(programs.map(|program| world.start_another(program))).await;
    for node in &nodes {
        node.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_runs_every_role_on_servers() {
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    for node in world.nodes() {
        assert!(node.terminate().await.success());
    }
    let all = world.start_another("triggers").await;
    all.ready().await;
    let client = client.at(&all);
    let id = client
        .accepted(&json!({"type": "order.placed", "payload": {}}))
        .await;
    client.event_becomes(&id, "delivered").await;
    assert_eq!(receiver.count("/hook"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrate_brings_the_schema_up_to_date_and_ends() {
    for engine in [Engine::Embedded, Engine::Servers] {
        let world = World::start(engine).await;
        for node in world.nodes() {
            assert!(node.terminate().await.success());
        }
        for _ in 0..2 {
            let spec = Spec {
                program: "triggers",
                arguments: vec!["migrate".into()],
                settings: world.settings().to_vec(),
            };
            let ended = spec.run().await;
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
    }
}
