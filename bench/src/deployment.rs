//! What is measured: the release binaries, as processes of their own, with a database and queues of their own.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lapin::{Connection, ConnectionProperties, options::QueueDeleteOptions};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::{Args, Engine, floor::Directory, throttle};

const ADMIN_TOKEN: &str = "bench-admin-token-0123456789";

/// A process, killed when it is dropped.
struct Process {
    name: String,
    child: Child,
    address: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running deployment.
pub struct Deployment {
    /// Where events are posted.
    pub ingest: SocketAddr,
    /// A key of its organization.
    pub key: String,
    api: SocketAddr,
    client: reqwest::Client,
    processes: Vec<Process>,
    servers: Option<Servers>,
    _directory: Option<Directory>,
}

struct Servers {
    database_url: String,
    database: String,
    amqp_url: String,
    prefix: String,
    queues: u8,
}

/// A process's memory.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Which process.
    pub process: String,
    /// Resident now, in MB (10^6 bytes).
    pub resident: f64,
    /// The most that was ever resident.
    pub peak: f64,
}

impl Deployment {
    /// What the arguments ask for, with so many workers.
    pub async fn of(args: &Args, workers: u8) -> anyhow::Result<Self> {
        match args.engine {
            Engine::Servers => Self::servers(args, workers, &args.amqp_url).await,
            Engine::Embedded => Self::embedded().await,
        }
    }

    /// On servers, without a worker, and with a way from ingest to the broker on which everything takes so long.
    pub async fn throttled(args: &Args, delay: Duration) -> anyhow::Result<Self> {
        let mut url: reqwest::Url = args.amqp_url.parse()?;
        let host = url.host_str().context("the URL of the broker has no host")?;
        let broker = tokio::net::lookup_host((host, url.port().unwrap_or(5672)))
            .await?
            .next()
            .context("the broker has no address")?;
        let throttle = throttle::start(broker, delay)?;
        let changed = url.set_ip_host(throttle.ip()).is_ok() && url.set_port(Some(throttle.port())).is_ok();
        anyhow::ensure!(changed, "the URL of the broker cannot be changed");
        Self::servers(args, 0, url.as_str()).await
    }

    /// `ingest`, workers and `api` on RabbitMQ and PostgreSQL; ingest reaches the broker by a URL of its own.
    async fn servers(args: &Args, workers: u8, ingest_amqp_url: &str) -> anyhow::Result<Self> {
        let Args {
            database_url,
            amqp_url,
            queues,
            ..
        } = args;
        let id = uuid::Uuid::now_v7().simple().to_string();
        let servers = Servers {
            database_url: database_url.to_owned(),
            database: format!("triggers_bench_{id}"),
            amqp_url: amqp_url.to_owned(),
            prefix: format!("bench-{id}."),
            queues: *queues,
        };
        let mut admin = PgConnection::connect(database_url)
            .await
            .context("PostgreSQL cannot be reached")?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {}", servers.database)))
            .execute(&mut admin)
            .await?;
        let mut own: reqwest::Url = database_url.parse()?;
        own.set_path(&servers.database);
        let env = vec![
            ("TRIGGERS_DATABASE_URL", own.to_string()),
            ("TRIGGERS_AMQP_URL", amqp_url.to_owned()),
            ("TRIGGERS_QUEUE_PREFIX", servers.prefix.clone()),
            ("TRIGGERS_QUEUES", queues.to_string()),
            (
                "TRIGGERS_SECRET_KEY",
                "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
            ),
        ];
        let mut ingest_env = env.clone();
        ingest_env.push(("TRIGGERS_AMQP_URL", ingest_amqp_url.to_owned()));
        let mut processes = vec![
            start("api", &[], &env).await?,
            start("ingest", &[], &ingest_env).await?,
        ];
        for _ in 0..workers {
            processes.push(start("worker", &[], &env).await?);
        }
        Self::new(processes, 0, 1, Some(servers), None).await
    }

    /// `triggers serve` on SQLite.
    async fn embedded() -> anyhow::Result<Self> {
        let directory = Directory::new("data")?;
        let env = vec![("TRIGGERS_DATA_DIR", directory.path().display().to_string())];
        let processes = vec![start("triggers", &["serve"], &env).await?];
        Self::new(processes, 0, 0, None, Some(directory)).await
    }

    async fn new(
        processes: Vec<Process>,
        api: usize,
        ingest: usize,
        servers: Option<Servers>,
        directory: Option<Directory>,
    ) -> anyhow::Result<Self> {
        let (api, ingest) = (processes[api].address, processes[ingest].address);
        let mut deployment = Self {
            ingest,
            key: String::new(),
            api,
            client: reqwest::Client::new(),
            processes,
            servers,
            _directory: directory,
        };
        deployment.key = deployment.organization().await?;
        Ok(deployment)
    }

    /// Makes an organization, and gives a key of it.
    pub async fn organization(&self) -> anyhow::Result<String> {
        let created: Value = self
            .client
            .post(format!("http://{}/v1/organizations", self.api))
            .bearer_auth(ADMIN_TOKEN)
            .json(&json!({"name": "bench", "tier": "unlimited"}))
            .send()
            .await?
            .json()
            .await?;
        let key = created
            .pointer("/key/key")
            .or_else(|| created.get("key"))
            .and_then(Value::as_str);
        Ok(key
            .with_context(|| format!("no key was answered: {created}"))?
            .to_owned())
    }

    /// Subscribes a receiver to everything.
    pub async fn subscribe(&self, receiver: SocketAddr) -> anyhow::Result<()> {
        let url = format!("http://{receiver}/hook");
        self.subscribe_as(&self.key, &json!({"url": url, "max_in_flight": 256}))
            .await
    }

    /// Makes this subscription of the key's organization.
    pub async fn subscribe_as(&self, key: &str, subscription: &Value) -> anyhow::Result<()> {
        self.call(Method::POST, "/v1/subscriptions", key, subscription, 201)
            .await
            .map(drop)
    }

    /// Calls the api, which must answer with this status; what it answered, and after how long.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        key: &str,
        body: &Value,
        expected: u16,
    ) -> anyhow::Result<(Value, Duration)> {
        let request = self.client.request(method, format!("http://{}{path}", self.api));
        let begun = Instant::now();
        let answer = request.bearer_auth(key).json(body).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        let took = begun.elapsed();
        if status != expected {
            bail!("{path} was answered with {status}: {text}");
        }
        Ok((serde_json::from_str(&text)?, took))
    }

    /// Its database, where it runs on servers.
    pub fn database_url(&self) -> anyhow::Result<String> {
        let servers = self.servers.as_ref().context("there is no PostgreSQL")?;
        let mut url: reqwest::Url = servers.database_url.parse()?;
        url.set_path(&servers.database);
        Ok(url.to_string())
    }

    /// The memory of each process.
    pub fn memory(&self) -> anyhow::Result<Vec<Memory>> {
        self.processes
            .iter()
            .map(|process| memory(&process.name, process.child.id()))
            .collect()
    }

    /// The memory of the processes that deliver.
    pub fn worker_memory(&self) -> anyhow::Result<Vec<Memory>> {
        let all = self.memory()?.into_iter();
        Ok(all
            .filter(|memory| matches!(memory.process.as_str(), "worker" | "triggers"))
            .collect())
    }

    /// What each worker says of these metrics: the sum of those that begin so.
    pub async fn worker_metrics(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        let mut values = Vec::new();
        for process in &self.processes {
            if matches!(process.name.as_str(), "worker" | "triggers") {
                let url = format!("http://{}/metrics", process.address);
                let text = self.client.get(url).send().await?.text().await?;
                let lines = text.lines().filter(|line| line.starts_with(name));
                values.push(
                    lines
                        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                        .sum(),
                );
            }
        }
        Ok(values)
    }

    /// Ends the processes, and removes what is theirs.
    pub async fn end(self) -> anyhow::Result<()> {
        let Self {
            processes, servers, ..
        } = self;
        drop(processes);
        let Some(servers) = servers else { return Ok(()) };
        let mut admin = PgConnection::connect(&servers.database_url).await?;
        let drop = format!("DROP DATABASE {} WITH (FORCE)", servers.database);
        sqlx::query(AssertSqlSafe(drop)).execute(&mut admin).await?;
        let connection = Connection::connect(&servers.amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let more = (2..=servers.queues).map(|number| format!("events.{number}"));
        for queue in ["events".to_owned(), "events.dead".to_owned()]
            .into_iter()
            .chain(more)
        {
            let name = format!("{}{queue}", servers.prefix);
            channel
                .queue_delete(name.into(), QueueDeleteOptions::default())
                .await?;
        }
        Ok(())
    }
}

fn memory(name: &str, pid: u32) -> anyhow::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> anyhow::Result<f64> {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .context("no such field")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    };
    Ok(Memory {
        process: name.to_owned(),
        resident: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

/// Starts a binary on a free port, and waits until it is ready.
async fn start(name: &str, arguments: &[&str], env: &[(&str, String)]) -> anyhow::Result<Process> {
    let mut child = Command::new(binary(name)?)
        .args(arguments)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .env("TRIGGERS_LISTEN", "127.0.0.1:0")
        .env("TRIGGERS_ALLOW_PRIVATE_TARGETS", "127.0.0.0/8")
        .env("TRIGGERS_ADMIN_TOKEN", ADMIN_TOKEN)
        // All that is measured comes from this machine.
        .env("TRIGGERS_CONNECTIONS_PER_ADDRESS", "0")
        .env("TRIGGERS_LOG", "warn,shared::process=info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} does not start"))?;
    let stderr = child.stderr.take().context("no standard error")?;
    let (sender, addresses) = mpsc::channel();
    let shown = name.to_owned();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let address = serde_json::from_str::<Value>(&line)
                .ok()
                .and_then(|line| line.get("listen.address")?.as_str()?.parse::<SocketAddr>().ok());
            match address {
                Some(address) => drop(sender.send(address)),
                None => eprintln!("{shown}: {line}"),
            }
        }
    });
    let address = addresses
        .recv_timeout(Duration::from_secs(20))
        .with_context(|| format!("{name} does not listen"))?;
    let process = Process {
        name: name.to_owned(),
        child,
        address,
    };
    let (client, begun) = (reqwest::Client::new(), Instant::now());
    loop {
        let ready = client.get(format!("http://{address}/health/ready")).send().await;
        if ready.is_ok_and(|ready| ready.status().is_success()) {
            return Ok(process);
        }
        if begun.elapsed() > Duration::from_secs(30) {
            bail!("{name} does not become ready");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The binary beside this one; where it is missing or older than the sources may be, cargo builds it.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    static BUILD: std::sync::Once = std::sync::Once::new();
    BUILD.call_once(|| {
        if let Some(cargo) = std::env::var_os("CARGO") {
            let profile: &[&str] = if cfg!(debug_assertions) {
                &[]
            } else {
                &["--release"]
            };
            let packages = [
                "-p",
                "triggers",
                "-p",
                "triggers-ingest",
                "-p",
                "triggers-worker",
                "-p",
                "triggers-api",
            ];
            eprintln!("building what is measured …");
            let _ = Command::new(cargo)
                .arg("build")
                .args(profile)
                .args(packages)
                .arg("--bins")
                .status();
        }
    });
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!(
            "{} is missing: run the bench as cargo run --release -p bench",
            path.display()
        );
    }
    Ok(path)
}
