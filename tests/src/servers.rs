//! A database and queues of a test's own, on the servers that the machine has.

use lapin::{Connection, ConnectionProperties, options::QueueDeleteOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

/// Where PostgreSQL is, for tests.
pub fn database_url() -> String {
    std::env::var("TRIGGERS_TEST_DATABASE_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".into())
}

/// Where RabbitMQ is, for tests.
pub fn amqp_url() -> String {
    std::env::var("TRIGGERS_TEST_AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".into())
}

/// A database that is dropped with this.
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    /// Creates one on the server at `server`.
    pub(crate) async fn create(server: &str) -> Self {
        let name = format!("triggers_test_{}", Uuid::new_v4().simple());
        let mut connection = connect(server).await;
        // From the template that nobody connects to, so that tests can do it side by side.
        sqlx::raw_sql(AssertSqlSafe(format!(
            "CREATE DATABASE {name} TEMPLATE template0"
        )))
        .execute(&mut connection)
        .await
        .unwrap_or_else(|error| {
            panic!(
                "the user of TRIGGERS_TEST_DATABASE_URL ({server}) must be able to create databases: {error}"
            )
        });
        Self {
            server: server.to_owned(),
            name,
        }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        let mut url = reqwest::Url::parse(&self.server).expect("sqlx took the URL");
        url.set_path(&self.name);
        url.into()
    }
}

async fn connect(server: &str) -> PgConnection {
    PgConnection::connect(server).await.unwrap_or_else(|error| {
        panic!(
            "PostgreSQL cannot be reached at {server}: start it, or say where one is in TRIGGERS_TEST_DATABASE_URL ({error})"
        )
    })
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        apart(async move {
            let mut connection = PgConnection::connect(&server).await.ok()?;
            let drop = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
            sqlx::raw_sql(drop).execute(&mut connection).await.ok()
        });
    }
}

/// The most queues that a test spreads its events over.
const MOST_QUEUES: u8 = 4;

/// A prefix for queue names; the queues are deleted with this.
pub(crate) struct Queues {
    server: String,
    pub(crate) prefix: String,
}

impl Queues {
    /// On the server at `server`, which must answer.
    pub(crate) async fn prefix(server: &str) -> Self {
        let connection = Connection::connect(server, ConnectionProperties::default()).await;
        let connection = connection.unwrap_or_else(|error| {
            panic!(
                "RabbitMQ cannot be reached at {server}: start it, or say where one is in TRIGGERS_TEST_AMQP_URL ({error})"
            )
        });
        let _ = connection.close(200, "seen".into()).await;
        Self {
            server: server.to_owned(),
            prefix: format!("triggers-test-{}.", Uuid::new_v4().simple()),
        }
    }

    /// The names of the queues, where events go to one alone.
    pub(crate) fn names(&self) -> [String; 2] {
        ["events", "events.dead"].map(|name| format!("{}{name}", self.prefix))
    }

    /// The names of those that a test may have made.
    fn all_names(&self) -> Vec<String> {
        let more = (2..=MOST_QUEUES).map(|number| format!("{}events.{number}", self.prefix));
        self.names().into_iter().chain(more).collect()
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        let (server, names) = (self.server.clone(), self.all_names());
        apart(async move {
            let connection = Connection::connect(&server, ConnectionProperties::default())
                .await
                .ok()?;
            let channel = connection.create_channel().await.ok()?;
            for name in names {
                channel
                    .queue_delete(name.into(), QueueDeleteOptions::default())
                    .await
                    .ok()?;
            }
            connection.close(200, "done".into()).await.ok()
        });
    }
}

/// Runs a clean-up to its end (10 seconds at most) on a thread and a runtime of its own, since the test's may be ending.
fn apart<T>(work: impl Future<Output = Option<T>> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .ok()?;
        runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(10), work)
                .await
                .ok()?
                .map(drop)
        })
    });
    let _ = thread.join();
}
