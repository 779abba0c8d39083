//! File descriptors and disks that run out.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use harness::{Engine, Link, Load, Node, Receiver, SmallDisk, World, eventually};
use http::Method;
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{deployment::Deployment, run::ANSWER};

/// The numbers of the files that a process has open.
fn open_files(id: u32) -> BTreeSet<u64> {
    std::fs::read_dir(format!("/proc/{id}/fd"))
        .expect("the process is ours")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Lets a process open no further file: the limit is lowered to what it has, and idle clients take what is free below it.
/// Gives the limit that it had.
async fn take_descriptors(node: &Node, idle: &mut Vec<TcpStream>) -> u64 {
    let id = node.id().expect("the node runs");
    let before = Command::new("prlimit")
        .args([
            "--pid",
            &id.to_string(),
            "--nofile",
            "--output",
            "SOFT",
            "--noheadings",
        ])
        .output()
        .expect("prlimit is needed, to take file descriptors from a process: install util-linux");
    let limit = open_files(id).last().map_or(0, |last| last + 1);
    limit_descriptors(node, limit);
    let address = node.url().replace("http://", "");
    eventually(
        "no file descriptor is left",
        Duration::from_secs(15),
        async || {
            let mut stream = TcpStream::connect(&address)
                .await
                .map_err(|error| error.to_string())?;
            let open = open_files(id).range(..limit).count() as u64;
            // Who is turned away is so at once.
            let nearly = open + 4 > limit;
            let turned_away = nearly
                && tokio::time::timeout(Duration::from_millis(300), stream.read_u8())
                    .await
                    .is_ok();
            idle.push(stream);
            if turned_away {
                return Ok(());
            }
            Err(format!("{open} of {limit} are taken"))
        },
    )
    .await;
    String::from_utf8_lossy(&before.stdout)
        .trim()
        .parse()
        .expect("a process has a limit of files")
}

fn limit_descriptors(node: &Node, soft: u64) {
    let id = node.id().expect("the node runs");
    let limited = Command::new("prlimit")
        .args(["--pid", &id.to_string(), &format!("--nofile={soft}:")])
        .status()
        .expect("prlimit can be run");
    assert!(limited.success(), "the limit of process {id} cannot be set");
}

/// Takes the file descriptors of an ingest, and posts to it on connections of its own: each is answered or closed in time.
pub async fn take_ingests(deployment: &mut Deployment) {
    deployment.marks.starved = deployment.either();
    let node = &deployment.ingests[deployment.marks.starved];
    deployment.marks.ingest_files = take_descriptors(node, &mut deployment.idle).await;
    let client = &deployment.tenants[0].nodes[deployment.marks.starved];
    for number in 0..8 {
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client can be built");
        let begun = Instant::now();
        let answer = http
            .request(Method::POST, format!("{}/v1/events", node.url()))
            .bearer_auth(&client.key)
            .timeout(Duration::from_secs(5))
            .json(&json!({"type": "probe", "payload": number}))
            .send()
            .await;
        let took = begun.elapsed();
        match answer {
            Ok(answer) => assert!(matches!(answer.status().as_u16(), 202 | 503), "{answer:?}"),
            Err(error) => assert!(
                !error.is_timeout(),
                "a connection was left without an answer: {error:?}"
            ),
        }
        assert!(took <= ANSWER, "an answer or its refusal took {took:?}");
    }
}

pub fn give_ingests_back(deployment: &mut Deployment) {
    deployment.idle.clear();
    limit_descriptors(
        &deployment.ingests[deployment.marks.starved],
        deployment.marks.ingest_files,
    );
}

/// Takes the file descriptors of both workers, and ends the connections that they have to the target.
pub async fn take_workers(deployment: &mut Deployment) {
    for worker in &deployment.workers {
        deployment.marks.worker_files = take_descriptors(worker, &mut deployment.worker_idle).await;
    }
    deployment.target_links[0].set(Link::Reset);
}

/// The target listens again; that no connection to it can be made is the worker's own.
pub fn open_target(deployment: &Deployment) {
    deployment.target_links[0].set(Link::Open);
}

pub fn give_workers_back(deployment: &mut Deployment) {
    deployment.worker_idle.clear();
    for worker in &deployment.workers {
        limit_descriptors(worker, deployment.marks.worker_files);
    }
}

/// A deployment on the embedded engine, with its data on a disk that is full.
pub struct Beside {
    load: Load,
    receiver: Receiver,
    client: harness::Client,
    world: World,
    disk: SmallDisk,
}

impl Beside {
    /// Starts it, and fills its disk once events flow.
    pub async fn start_and_fill() -> Self {
        let disk = SmallDisk::of_mebibytes(48);
        let world = World::with(Engine::Embedded)
            .set("TRIGGERS_DATA_DIR", disk.path().join("data").display())
            .start()
            .await;
        let receiver = Receiver::start().await;
        let client = world.organization().await;
        client.subscribe_url(&receiver.url("/hook")).await;
        let load = Load::start(&client, 20);
        load.accepts(20, Duration::from_secs(20)).await;
        disk.fill();
        eventually("posts are refused", Duration::from_secs(20), async || {
            let posts = load.posts();
            if posts.iter().any(|post| post.status == Some(503)) {
                Ok(())
            } else {
                Err(format!("{} were accepted", posts.len()))
            }
        })
        .await;
        Self {
            load,
            receiver,
            client,
            world,
            disk,
        }
    }

    /// Frees the disk; all goes on, and all that was accepted arrives.
    pub async fn free_and_settle(self) {
        self.disk.free();
        self.load.accepts(20, Duration::from_secs(40)).await;
        self.world.ingest().ready().await;
        let ledger = self.load.stop().await;
        ledger.allows(&[202, 503]);
        ledger.answers_within(ANSWER);
        ledger.settle(&self.client, &self.receiver, "/hook").await;
    }
}
