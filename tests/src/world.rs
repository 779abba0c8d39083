//! A deployment of a test's own, on one engine or the other.

use std::{fmt::Display, net::SocketAddr, sync::Arc, time::Duration};

use base64::Engine as _;
use serde_json::json;

use crate::{
    Answer, Client, Node, PrivatePostgres, Scratch, Spec,
    servers::{Database, Queues},
};

/// The token that creates organizations in a test's world.
pub const ADMIN_TOKEN: &str = "an-admin-token-of-the-tests";

/// Which engines a world runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// `triggers serve` on SQLite, in one process.
    Embedded,
    /// `ingest`, `worker` and `api`, on RabbitMQ and PostgreSQL.
    Servers,
}

/// A world to be.
pub struct WorldBuilder {
    engine: Engine,
    settings: Vec<(String, String)>,
    database_url: Option<String>,
    amqp_url: Option<String>,
    ways: Option<[SocketAddr; 2]>,
}

impl WorldBuilder {
    /// With this setting, in every process.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Display) -> Self {
        self.settings.retain(|(given, _)| given != name);
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// On this PostgreSQL instead of the one that the tests share.
    #[must_use]
    pub fn database_server(mut self, url: &str) -> Self {
        self.database_url = Some(url.to_owned());
        self
    }

    /// On this RabbitMQ instead of the one that the tests share.
    #[must_use]
    pub fn amqp_server(mut self, url: &str) -> Self {
        self.amqp_url = Some(url.to_owned());
        self
    }

    /// Its processes reach PostgreSQL and RabbitMQ at these addresses; the test itself goes straight to the servers.
    #[must_use]
    pub fn through(mut self, database: SocketAddr, amqp: SocketAddr) -> Self {
        self.ways = Some([database, amqp]);
        self
    }

    /// Starts its processes, and waits until they are ready.
    pub async fn start(self) -> World {
        let mut world = self.prepare().await;
        let programs: &[_] = match world.engine {
            Engine::Embedded => &["triggers"],
            Engine::Servers => &["api", "ingest", "worker"],
        };
        for program in programs {
            let node = world.start_another(program).await;
            world.nodes.push(node);
        }
        for node in &world.nodes {
            node.ready().await;
        }
        world
    }

    /// Makes its database and settings, and starts nothing.
    pub async fn prepare(self) -> World {
        let engine = self.engine;
        let mut settings = vec![
            ("TRIGGERS_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("TRIGGERS_ADMIN_TOKEN".to_owned(), ADMIN_TOKEN.to_owned()),
            (
                "TRIGGERS_ALLOW_PRIVATE_TARGETS".to_owned(),
                "127.0.0.0/8".to_owned(),
            ),
        ];
        let (mut servers, mut directory) = (None, None);
        match engine {
            Engine::Embedded => {
                let scratch = Scratch::new();
                let data = scratch.path().join("data").display().to_string();
                settings.push(("TRIGGERS_DATA_DIR".to_owned(), data));
                directory = Some(scratch);
            }
            Engine::Servers => {
                let amqp_url = self.amqp_url.unwrap_or_else(crate::amqp_url);
                let queues = Queues::prefix(&amqp_url).await;
                let database = Database::create(&self.database_url.unwrap_or_else(crate::database_url)).await;
                let key: [u8; 32] = rand::random();
                let key = base64::engine::general_purpose::STANDARD.encode(key);
                let (mut database_way, mut amqp_way) = (database.url(), amqp_url.clone());
                if let Some([database, amqp]) = self.ways {
                    database_way = at(&database_way, database);
                    amqp_way = at(&amqp_way, amqp);
                }
                settings.extend([
                    ("TRIGGERS_DATABASE_URL".to_owned(), database_way),
                    ("TRIGGERS_AMQP_URL".to_owned(), amqp_way),
                    ("TRIGGERS_QUEUE_PREFIX".to_owned(), queues.prefix.clone()),
                    ("TRIGGERS_SECRET_KEY".to_owned(), key),
                    // Many worlds at once share the server's connections.
                    ("TRIGGERS_DATABASE_CONNECTIONS".to_owned(), "5".to_owned()),
                ]);
                servers = Some(Servers {
                    database,
                    queues,
                    amqp_url,
                });
            }
        }
        settings.extend(self.settings);
        World {
            engine,
            nodes: Vec::new(),
            settings,
            servers,
            directory,
        }
    }
}

/// A URL with another host and port.
fn at(url: &str, address: SocketAddr) -> String {
    let mut url = reqwest::Url::parse(url).expect("a server's URL is one");
    url.set_ip_host(address.ip()).expect("the URL has a host");
    url.set_port(Some(address.port()))
        .expect("the URL may have a port");
    url.into()
}

struct Servers {
    database: Database,
    queues: Queues,
    amqp_url: String,
}

/// A deployment. Dropping it ends its processes, then removes what it made.
pub struct World {
    /// Which engines it runs on.
    pub engine: Engine,
    // The processes come before what they use, so that they end first.
    nodes: Vec<Arc<Node>>,
    settings: Vec<(String, String)>,
    servers: Option<Servers>,
    directory: Option<Scratch>,
}

impl World {
    /// One with the usual settings.
    pub async fn start(engine: Engine) -> Self {
        Self::with(engine).start().await
    }

    /// One on servers, whose PostgreSQL nobody else has: it may be stopped.
    pub async fn on_its_own_postgres() -> (PrivatePostgres, Self) {
        let database = PrivatePostgres::start().await;
        let world = Self::with(Engine::Servers).database_server(&database.url());
        let world = world.start().await;
        (database, world)
    }

    /// One with settings of the test's own.
    pub fn with(engine: Engine) -> WorldBuilder {
        WorldBuilder {
            engine,
            settings: Vec::new(),
            database_url: None,
            amqp_url: None,
            ways: None,
        }
    }

    /// All its processes: one, or api, ingest and worker.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The process that takes events.
    pub fn ingest(&self) -> &Arc<Node> {
        self.role("ingest")
    }

    /// The process that delivers them.
    pub fn worker(&self) -> &Arc<Node> {
        self.role("worker")
    }

    /// The process that answers everything.
    pub fn api(&self) -> &Arc<Node> {
        self.role("api")
    }

    fn role(&self, program: &str) -> &Arc<Node> {
        let role = self.nodes.iter().find(|node| node.program() == program);
        role.unwrap_or(&self.nodes[0])
    }

    /// Starts a further process of this deployment. Only servers can have several.
    pub async fn start_another(&self, program: &'static str) -> Arc<Node> {
        let arguments = match program {
            "triggers" => vec!["serve".to_owned()],
            _ => Vec::new(),
        };
        Node::start(Spec {
            program,
            arguments,
            settings: self.settings.clone(),
        })
        .await
    }

    /// Its settings, for a process that the test starts itself.
    pub fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// Changes a setting of all its processes, and starts them again.
    pub async fn restart_with(&self, name: &str, value: &str) {
        for node in &self.nodes {
            node.set(name, value);
            let status = node.terminate().await;
            assert!(status.success(), "{} ended with {status}", node.program());
        }
        for node in &self.nodes {
            node.start_again().await;
        }
        for node in &self.nodes {
            node.ready().await;
        }
    }

    /// The directory of the embedded engine.
    pub fn data_directory(&self) -> std::path::PathBuf {
        let directory = self.directory.as_ref().expect("the engine is embedded");
        directory.path().join("data")
    }

    /// The URL of the world's own database.
    pub fn database_url(&self) -> String {
        self.servers
            .as_ref()
            .expect("the engines are servers")
            .database
            .url()
    }

    /// The broker, and the names of the world's own two queues on it.
    pub fn queues(&self) -> (String, [String; 2]) {
        let servers = self.servers.as_ref().expect("the engines are servers");
        (servers.amqp_url.clone(), servers.queues.names())
    }

    /// Creates an organization without a limit, and gives a client with its first key.
    pub async fn organization(&self) -> Client {
        self.organization_of("unlimited").await
    }

    /// Creates an organization of a tier, and gives a client with its first key.
    pub async fn organization_of(&self, tier: &str) -> Client {
        let nobody = self.admin();
        let created = nobody
            .post(
                "/v1/organizations",
                &json!({"name": "an organization", "tier": tier}),
            )
            .await
            .expect(201);
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let (id, key) = (text(&created["id"]), text(&created["key"]["key"]));
        let (Some(id), Some(key)) = (id, key) else {
            panic!("an organization is answered with its id and first key: {created}");
        };
        Client::new(Arc::clone(self.ingest()), Arc::clone(self.api()), id, key)
    }

    /// A client that has the deployment's admin token instead of a key.
    pub fn admin(&self) -> Client {
        let (ingest, api) = (Arc::clone(self.ingest()), Arc::clone(self.api()));
        Client::new(ingest, api, String::new(), ADMIN_TOKEN.to_owned())
    }

    /// `GET` of a path of one process, without a key.
    pub async fn get(&self, node: &Node, path: &str) -> Answer {
        let request = reqwest::Client::new().get(format!("{}{path}", node.url()));
        let response = request.timeout(Duration::from_secs(10)).send().await;
        Answer::of(response.expect("the request is answered")).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- {} printed:\n{}\n", node.program(), node.last_output());
            }
        }
    }
}
