//! Starting: many at once on a new schema, all roles in one process, with another key, and while a server is silent.

use std::{
    net::SocketAddr,
    process::Child,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use harness::{Answer, Engine, Node, Receiver, Spec, World, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::{net::TcpListener, sync::mpsc};

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

/// Roles are ready, and may be stopped, before they have come to that.
pub(crate) async fn key_is_known(database_url: &str) {
    let mut database = PgConnection::connect(database_url).await.expect("a connection");
    let what = "the deployment knows its key";
    eventually(what, Duration::from_secs(20), async || {
        let rows = sqlx::query_scalar("SELECT count(*) FROM secret_check")
            .fetch_one(&mut database)
            .await;
        match rows {
            Ok(1_i64) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_secret_key_is_noticed_at_the_start() {
    const OTHER: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    for (engine, programs) in [
        (Engine::Embedded, &[("triggers", &["serve"][..])][..]),
        (
            Engine::Servers,
            &[("worker", &[]), ("api", &[]), ("triggers", &["serve"])],
        ),
    ] {
        let world = World::start(engine).await;
        if engine == Engine::Servers {
            key_is_known(&world.database_url()).await;
        }
        for node in world.nodes() {
            assert!(node.terminate().await.success());
        }
        for (program, arguments) in programs {
            let mut settings = world.settings().to_vec();
            settings.retain(|(name, _)| name != "TRIGGERS_SECRET_KEY");
            settings.push(("TRIGGERS_SECRET_KEY".to_owned(), OTHER.to_owned()));
            let spec = Spec {
                program,
                arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
                settings,
            };
            let ended = spec.run().await;
            assert_eq!(ended.code, Some(2), "{program}: {ended:?}");
            let errors: Vec<_> = ended
                .err
                .lines()
                .filter(|line| line.starts_with("error"))
                .collect();
            assert_eq!(errors.len(), 1, "{program}: {ended:?}");
            assert!(
                errors[0].starts_with("error: TRIGGERS_SECRET_KEY is not the key"),
                "{program}: {errors:?}"
            );
        }
        // With its own it starts as ever.
        for node in world.nodes() {
            node.start_again().await;
            node.ready().await;
        }
    }
}

/// A server that takes connections and never says anything; it tells of each.
async fn silent_server() -> (SocketAddr, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (tell, told) = mpsc::channel(100);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
            let _ = tell.try_send(());
        }
    });
    (address, told)
}

fn waiting_for(server: SocketAddr, program: &'static str, arguments: &[&str]) -> Spec {
    let settings = [
        ("TRIGGERS_LISTEN", "127.0.0.1:0".to_owned()),
        (
            "TRIGGERS_DATABASE_URL",
            format!("postgres://nobody@{server}/none"),
        ),
        ("TRIGGERS_AMQP_URL", format!("amqp://guest:guest@{server}/%2f")),
        (
            "TRIGGERS_SECRET_KEY",
            "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".to_owned(),
        ),
    ];
    Spec {
        program,
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

/// A process that is killed when a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_silent_server_ends_when_told_to() {
    let programs: [(_, &[&str]); 5] = [
        ("worker", &[]),
        ("api", &[]),
        ("ingest", &[]),
        ("triggers", &["serve"]),
        ("triggers", &["migrate"]),
    ];
    for (program, arguments) in programs {
        let (server, mut connected) = silent_server().await;
        let spec = waiting_for(server, program, arguments);
        let mut running = Running(spec.command().spawn().expect("it starts"));
        connected.recv().await.expect("it connects");
        let told = Instant::now();
        let process = Pid::from_raw(i32::try_from(running.0.id()).expect("a process id fits"));
        kill(process, Signal::SIGTERM).expect("a child can be signalled");
        let what = format!("{program} {arguments:?} ends");
        let status = eventually(&what, Duration::from_secs(20), async || {
            let ended = running.0.try_wait().expect("a child can be waited for");
            ended.ok_or_else(String::new)
        })
        .await;
        let took = told.elapsed();
        assert_eq!(status.code(), Some(0), "{program} {arguments:?}");
        assert!(took < Duration::from_secs(2), "{program} {arguments:?}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_says_which_server_is_silent() {
    let (server, _connected) = silent_server().await;
    let node = Node::start(waiting_for(server, "api", &[])).await;
    let answer = reqwest::get(format!("{}/health/ready", node.url())).await;
    let answer = Answer::of(answer.expect("the request is answered")).await;
    let checks = &answer.expect(503)["checks"];
    assert_eq!(checks["store"], "the store cannot be reached");
    assert_eq!(checks["queue"], "the queue cannot be reached");
}
