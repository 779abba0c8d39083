//! The deployment that the faults are injected into: two ingests, two workers and an api, on servers of the suite's own,
//! with a proxy on every way between them; two organizations with a load each, and their subscribers.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{
    Client, Engine, Load, MOVING_HOST, Node, PrivatePostgres, PrivateRabbit, Proxy, Receiver, Reply,
    SmallDisk, Told, World, eventually,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::{crowd::Crowd, disabled::Switch, pulling::Pullers, resources::Beside};

/// Events that each organization posts a second, repeats not counted.
const RATE: u32 = 15;
/// The deadline that processes are given to stop, in seconds.
pub const SHUTDOWN_SECONDS: u64 = 10;
/// How long all may take to work again once a fault is over: the leases of the dead must run out, connections be made.
pub const RECOVERY: Duration = Duration::from_mins(1);
/// How long an event may take that nothing holds up: a worker that has just joined another sends nothing for six seconds.
const AT_ONCE: Duration = Duration::from_secs(8);
/// Waits of up to a minute and a half in all, so that no fault outlasts them: a second each at first.
const PATIENT: [u64; 20] = [1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 5, 5, 5, 5, 10, 10, 10, 10];

/// An organization that posts.
pub struct Tenant {
    /// What its paths begin with.
    pub name: &'static str,
    /// A client for each ingest.
    pub nodes: Vec<Client>,
    /// The paths that get every event of its load.
    pub paths: Vec<String>,
    /// The subscriptions that get every event of its load, by what they are called: those of the paths, and one that is pulled.
    pub subscriptions: BTreeMap<&'static str, String>,
}

impl Tenant {
    pub fn client(&self) -> &Client {
        &self.nodes[0]
    }

    pub fn path(&self, name: &str) -> String {
        format!("/{}/{name}", self.name)
    }
}

/// What faults chose and counted as they began.
#[derive(Default)]
pub struct Marks {
    /// Connections that the ways to the servers had ended.
    pub broker_ended: u64,
    pub database_ended: u64,
    /// What the target's fault is told by.
    pub target: u64,
    /// How many webhooks had arrived there.
    pub target_received: usize,
    /// Which of two has another time, what was open by then, and how much of all else had been sent again before.
    pub stepped: usize,
    pub open: HashSet<Uuid>,
    pub again: u64,
    /// Which worker hangs, and how often it had lost its lease, and written of what was not its own any more.
    pub stalled: usize,
    pub leases_lost: u64,
    pub superseded: u64,
    /// Which ingest has no file descriptors, and how many it and workers had.
    pub starved: usize,
    pub ingest_files: u64,
    pub worker_files: u64,
}

/// The deployment. Its parts end in the order in which they stand here.
pub struct Deployment {
    pub loads: Vec<Load>,
    /// What disables a subscription and enables it, and those who pull from one.
    pub switch: Option<Switch>,
    pub pullers: Option<Pullers>,
    pub ingests: [Arc<Node>; 2],
    pub workers: [Arc<Node>; 2],
    pub api: Arc<Node>,
    pub world: World,
    pub tenants: Vec<Tenant>,
    /// The subscription that the subscriber's faults are about; the second tenant's.
    pub target: String,
    pub told: Told,
    pub rng: StdRng,
    /// What faults have going until they are healed.
    pub taken: Vec<PgConnection>,
    /// Connections to an ingest, and to the workers, that only take their file descriptors.
    pub idle: Vec<TcpStream>,
    pub worker_idle: Vec<TcpStream>,
    pub marks: Marks,
    pub crowd: Option<Crowd>,
    pub beside: Option<Beside>,
    pub set_aside: Option<Value>,
    /// The ways between the processes and the servers, and to the target at each of its two addresses.
    pub broker_link: Proxy,
    pub database_link: Proxy,
    pub target_links: [Proxy; 2],
    pub receiver: Receiver,
    pub broker: PrivateRabbit,
    pub database: PrivatePostgres,
    pub disk: SmallDisk,
}

impl Deployment {
    /// Starts it, with its load. `seed` decides whatever its faults choose.
    pub async fn start(seed: u64) -> Self {
        let disk = SmallDisk::of_mebibytes(768);
        let (database, broker) = tokio::join!(PrivatePostgres::start_on(&disk), PrivateRabbit::start());
        let (database_link, broker_link) =
            tokio::join!(Proxy::start(database.address()), Proxy::start(broker.address()));
        let receiver = Receiver::start().await;
        let first = Proxy::start(receiver.address()).await;
        let moved = SocketAddr::from(([127, 0, 0, 2], first.address().port()));
        let target_links = [first, Proxy::start_at(moved, receiver.address()).await];
        let told = Told::compile();
        let mut world = World::with(Engine::Servers)
            .database_server(&database.url())
            .amqp_server(&broker.url())
            .through(database_link.address(), broker_link.address())
            .set("TRIGGERS_SHUTDOWN_SECONDS", SHUTDOWN_SECONDS)
            .set("TRIGGERS_QUEUE_DELIVERY_LIMIT", 2)
            .set("TRIGGERS_QUEUE_MAX_BYTES", 4 << 20);
        for (name, value) in told.settings() {
            world = world.set(name, value);
        }
        let world = world.start().await;
        let (ingest, worker) = tokio::join!(world.start_another("ingest"), world.start_another("worker"));
        tokio::join!(ingest.ready(), worker.ready());
        let ingests = [Arc::clone(world.ingest()), ingest];
        let workers = [Arc::clone(world.worker()), worker];
        let target_url = |path: &str| {
            let port = target_links[0].address().port();
            format!("http://{MOVING_HOST}:{port}{path}")
        };
        let one = tenant(&world, &ingests, &receiver, "one", &target_url).await;
        let two = tenant(&world, &ingests, &receiver, "two", &target_url).await;
        let switch = Switch::start(seed, one.client().clone(), one.subscriptions["fifo"].clone());
        let pullers = Pullers::start(two.client(), &two.subscriptions["pull"]);
        let target = two.subscriptions["target"].clone();
        let tenants = vec![one, two];
        let loads = tenants
            .iter()
            .map(|tenant| Load::start_at(tenant.nodes.clone(), RATE))
            .collect();
        Self {
            loads,
            switch: Some(switch),
            pullers: Some(pullers),
            ingests,
            workers,
            api: Arc::clone(world.api()),
            world,
            tenants,
            target,
            told,
            rng: StdRng::seed_from_u64(seed),
            taken: Vec::new(),
            idle: Vec::new(),
            worker_idle: Vec::new(),
            marks: Marks::default(),
            crowd: None,
            beside: None,
            set_aside: None,
            broker_link,
            database_link,
            target_links,
            receiver,
            broker,
            database,
            disk,
        }
    }

    /// Every process, with what it is called in the report.
    pub fn nodes(&self) -> [(&'static str, &Arc<Node>); 5] {
        [
            ("ingest 1", &self.ingests[0]),
            ("ingest 2", &self.ingests[1]),
            ("worker 1", &self.workers[0]),
            ("worker 2", &self.workers[1]),
            ("api", &self.api),
        ]
    }

    /// The tenant whose subscriber misbehaves.
    pub fn second(&self) -> &Tenant {
        &self.tenants[1]
    }

    /// A connection straight to the database.
    pub async fn sql(&self) -> PgConnection {
        let url = self.world.database_url();
        PgConnection::connect(&url).await.expect("the database answers")
    }

    /// One of two, by the seed.
    pub fn either(&mut self) -> usize {
        self.rng.random_range(0..2)
    }

    /// Waits until all of it works: every process is ready, every ingest takes an event of every tenant, and each arrives.
    pub async fn works(&self) {
        let all = async {
            for (_, node) in self.nodes() {
                node.ready().await;
            }
            eventually("the api reads", RECOVERY, async || {
                let answer = self.tenants[0].client().get("/v1/subscriptions").await;
                match answer.status {
                    200 => Ok(()),
                    _ => Err(answer.text),
                }
            })
            .await;
            for tenant in &self.tenants {
                for client in &tenant.nodes {
                    self.flows(tenant, client).await;
                }
            }
        };
        tokio::time::timeout(RECOVERY, all)
            .await
            .unwrap_or_else(|_| panic!("it does not work again within {RECOVERY:?} of the end of the fault"));
    }

    /// Whoever is not held up gets events at once, of every tenant and through every ingest.
    pub async fn flows_at_once(&self) {
        for tenant in &self.tenants {
            for client in &tenant.nodes {
                let took = self.flows(tenant, client).await;
                assert!(
                    took < AT_ONCE,
                    "an event took {took:?} to somebody whom nothing holds up"
                );
            }
        }
    }

    /// A count that a process keeps.
    pub async fn counted(&self, node: &Node, counter: &str) -> u64 {
        let metrics = self.world.get(node, "/metrics").await.text;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(counter)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("{counter} is not counted"));
        value.parse().expect("a count is a number")
    }

    /// Posts an event, until it is accepted, and waits until it arrives; gives how long both took.
    pub async fn flows(&self, tenant: &Tenant, client: &Client) -> Duration {
        let begun = Instant::now();
        let id = eventually("an event is accepted", RECOVERY, async || {
            let answer = client
                .post("/v1/events", &json!({"type": "probe", "payload": {}}))
                .await;
            match answer.status {
                202 => Ok(answer.json()["id"].as_str().expect("an id").to_owned()),
                _ => Err(answer.text),
            }
        })
        .await;
        let path = tenant.path("probe");
        eventually("the event arrives", RECOVERY, async || {
            if self.receiver.has(&path, &id) {
                Ok(())
            } else {
                Err(format!("{id} has not"))
            }
        })
        .await;
        begun.elapsed()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // The world shows the output of those that it started itself.
        if std::thread::panicking() {
            for node in [&self.ingests[1], &self.workers[1]] {
                eprintln!(
                    "--- the second {} printed:\n{}\n",
                    node.program(),
                    node.last_output()
                );
            }
        }
    }
}

/// Makes an organization with its subscriptions: the first has one in order and one that fails at times, the second one at
/// `target_url` and one that is pulled, and each one for events that faults are about.
async fn tenant(
    world: &World,
    ingests: &[Arc<Node>; 2],
    receiver: &Receiver,
    name: &'static str,
    target_url: &impl Fn(&str) -> String,
) -> Tenant {
    let client = world.organization().await;
    let mut tenant = Tenant {
        name,
        nodes: ingests.iter().map(|node| client.posting_to(node)).collect(),
        paths: Vec::new(),
        subscriptions: BTreeMap::new(),
    };
    let flaky = tenant.path("flaky");
    let fails = (0..1_000_000_u32).map(|at| match at % 3 {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    // Each holds up the rest for a second; what is parked has to be caught up with as well.
    let fails_at_times = (0..1_000_000_u32).map(|at| match at % 120 {
        20 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let content = json!({"url": receiver.url(&tenant.path("content")), "event_types": ["poison", "big"], "retry_schedule_seconds": PATIENT});
    let probe = json!({"url": receiver.url(&tenant.path("probe")), "event_types": ["probe"], "retry_schedule_seconds": PATIENT});
    for other in [content, probe] {
        client.subscribe(&other).await;
    }
    let kinds: &[_] = match name {
        "one" => &["steady", "fifo", "flaky"],
        _ => &["steady", "target"],
    };
    if name == "two" {
        let pulled = json!({"kind": "pull", "event_types": ["load.posted"]});
        let made = client.post("/v1/subscriptions", &pulled).await.expect(201);
        let id = made["id"].as_str().expect("an id");
        tenant.subscriptions.insert("pull", id.to_owned());
    }
    for kind in kinds {
        let path = tenant.path(kind);
        let mut wanted = json!({
            "url": receiver.url(&path),
            "event_types": ["load.posted"],
            "retry_schedule_seconds": PATIENT,
        });
        match *kind {
            "fifo" => {
                wanted["ordering"] = json!("fifo");
                receiver.script(&path, fails_at_times.clone());
            }
            "flaky" => receiver.script(&flaky, fails.clone()),
            "target" => {
                wanted["url"] = json!(target_url(&path));
                wanted["timeout_ms"] = json!(1_000);
            }
            _ => {}
        }
        let id = client.subscribe(&wanted).await.id;
        tenant.subscriptions.insert(kind, id);
        tenant.paths.push(path);
    }
    tenant
}
