//! The store on PostgreSQL 14 or later: the engine of production.
//!
//! Every operation is one statement where it can be, so one round trip and no transaction held open over the network.
//! Rows of the hot tables are partitioned by the day of the event's id (see [`partitions`]). What one statement reads, it
//! reads in one snapshot: intake compares the subscriptions version in the very snapshot that it writes by.
//!
//! How it fails: no wait is without an end. A pool that has no connection says so in two seconds, a statement is given up
//! by the server and by the caller after ten (a stopped server answers nothing), and the connection of a call that
//! did not end well is closed, not handed to the next. All of that is [`StoreError::Unavailable`]; a transaction that
//! was under way may still have been committed, and every operation can be repeated after it.

mod announcements;
mod audit_log;
mod browse;
mod changes;
mod deliveries;
mod erasures;
mod events;
mod expiry;
mod feed;
mod former;
mod insight;
mod intake;
mod keeper;
mod limits;
mod lists;
mod organizations;
mod outcomes;
mod own_retention;
mod partitions;
mod pauses;
mod pulls;
mod records;
mod rehearsal;
mod removals;
mod replay_ways;
mod replays;
mod rows;
mod statistics;
mod status;
mod subscriptions;
mod test_pushes;

use std::{future::Future, io, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Postgres,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow, PgSslMode},
    query::Query,
};

use super::{Result, Store, StoreError};
use crate::Invalid;

/// How long a call waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(2);
/// How long a call takes, at most.
const CALL: Duration = Duration::from_secs(10);
/// Connections for intake without keys: a worker takes in one batch at a time, and one of dead frames.
const LEAN_CONNECTIONS: u32 = 2;
/// A connection that was idle for this long is tried before it is used.
const IDLE_UNTRIED: Duration = Duration::from_secs(1);

/// Where the server is, and how much of it to use.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:5432/database`, with the parameters that libpq knows (`sslmode` and so on).
    pub url: SecretString,
    /// The most connections this process opens, but for one that listens for changes, one for upkeep, and two for intake.
    pub max_connections: u32,
}

/// The store behind a URL. Nothing is connected yet: a role can start while its database is away.
///
/// Must be called within a tokio runtime.
pub fn connect(options: &PostgresOptions) -> Result<Store, Invalid> {
    let connect = connect_options(options.url.expose_secret())?;
    if options.max_connections == 0 {
        return Err(Invalid::new("must allow at least 1 connection"));
    }
    let pool = pool(options.max_connections, connect.clone());
    let lean = pool_of_lean_intake(connect.clone());
    let engine = Arc::new(Engine {
        changes: changes::Changes::new(connect.clone()),
        pool,
        lean,
        connect,
    });
    Ok(Store {
        organizations: engine.clone(),
        subscriptions: engine.clone(),
        events: engine.clone(),
        deliveries: engine.clone(),
        pulls: engine.clone(),
        replays: engine.clone(),
        erasures: engine.clone(),
        feed: engine.clone(),
        removals: engine.clone(),
        audit_log: engine.clone(),
        announcements: engine.clone(),
        insight: engine.clone(),
        limits: engine.clone(),
        tests: engine.clone(),
        pauses: engine.clone(),
        keeper: engine,
    })
}

/// What [`connect`] would say against a URL.
pub(crate) fn check_url(url: &str) -> Result<(), Invalid> {
    connect_options(url).map(drop)
}

fn pool(max_connections: u32, connect: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(Duration::from_mins(5))
        .max_lifetime(Duration::from_hours(1))
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for >= IDLE_UNTRIED {
                    sqlx::Connection::ping(connection).await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(connect)
}

/// Intake without keys inserts, and looks one table up by its key: there is nothing that a plan could do better for
/// knowing the values. Planned once, a lone event's statement takes 0.15 ms where it takes 0.4.
fn pool_of_lean_intake(connect: PgConnectOptions) -> PgPool {
    pool(
        LEAN_CONNECTIONS,
        connect.options([("plan_cache_mode", "force_generic_plan")]),
    )
}

fn connect_options(url: &str) -> Result<PgConnectOptions, Invalid> {
    let rule = |what: String| {
        Invalid::new(format!(
            "must be a URL as postgres://user:password@host:5432/database: {what}"
        ))
    };
    let parsed = url::Url::parse(url).map_err(|error| rule(error.to_string()))?;
    if !matches!(parsed.scheme(), "postgres" | "postgresql") {
        return Err(rule("the scheme is another".to_owned()));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(error) => rule(error.to_string()),
        error => rule(error.to_string()),
    })?;
    // Unless the URL says otherwise, nothing is encrypted that does not leave the machine: between records of TLS, which
    // are 16 KiB, sqlx 0.9.0 waits for the server's delayed acknowledgements, 40 ms a batch (it does not set TCP_NODELAY,
    // https://github.com/launchbadge/sqlx/issues/4335).
    let chosen = parsed
        .query_pairs()
        .any(|(name, _)| matches!(&*name, "sslmode" | "ssl-mode"))
        || std::env::var_os("PGSSLMODE").is_some();
    let options = if chosen || !is_loopback(options.get_host()) {
        options
    } else {
        options.ssl_mode(PgSslMode::Disable)
    };
    Ok(options
        .application_name("triggers")
        .disable_statement_logging()
        .options([
            // The server gives up before the caller does.
            ("statement_timeout", "9s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("tcp_keepalives_idle", "30"),
            // What is acknowledged is on disk, whatever the server's default.
            ("synchronous_commit", "on"),
            // Planned anew each time, with what is known then: partitions are pruned before they are opened, and no
            // plan outlives the moment when today's partition was empty.
            ("plan_cache_mode", "force_custom_plan"),
            // Statements are short, and read by index, in its order and no further than they must: not so a bitmap, which
            // reads all of a range before the first row.
            ("enable_bitmapscan", "off"),
            ("jit", "off"),
            ("max_parallel_workers_per_gather", "0"),
            ("random_page_cost", "1.1"),
            ("timezone", "UTC"),
        ]))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// The engine: all traits of the store.
struct Engine {
    pool: PgPool,
    /// For intake without keys.
    lean: PgPool,
    connect: PgConnectOptions,
    changes: changes::Changes,
}

type Statement = Query<'static, Postgres, PgArguments>;

impl Engine {
    /// Runs one statement to its end, commit included, and returns its rows.
    async fn rows(&self, statement: Statement) -> Result<Vec<PgRow>> {
        Self::rows_over(&self.pool, statement).await
    }

    async fn rows_over(pool: &PgPool, statement: Statement) -> Result<Vec<PgRow>> {
        // Boxed: it is large, and so would be all that waits for it.
        Box::pin(within(CALL, async {
            let mut session = Session::of(pool).await?;
            let rows = statement.fetch_all(session.connection()).await;
            session.settle(rows)
        }))
        .await
    }

    /// As [`Engine::rows`], for a statement of at most one row. (Stopping at the first row would not see whether the
    /// commit went well.)
    async fn row(&self, statement: Statement) -> Result<Option<PgRow>> {
        Ok(self.rows(statement).await?.pop())
    }

    /// As [`Engine::rows`], for a statement that always answers with one row.
    async fn one(&self, statement: Statement) -> Result<PgRow> {
        self.row(statement)
            .await?
            .ok_or_else(|| StoreError::Corrupt("a statement that answers one row answered none".to_owned()))
    }
}

/// A connection of the pool that goes back to it only in a known state: one that is dropped between a statement and
/// its answer is closed.
struct Session {
    connection: PoolConnection<Postgres>,
    settled: bool,
}

impl Session {
    async fn of(pool: &PgPool) -> Result<Self> {
        let connection = pool.acquire().await.map_err(classify)?;
        Ok(Self {
            connection,
            settled: true,
        })
    }

    fn connection(&mut self) -> &mut PgConnection {
        self.settled = false;
        &mut self.connection
    }

    fn settle<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T> {
        self.settled = matches!(result, Ok(_) | Err(sqlx::Error::Database(_)));
        result.map_err(classify)
    }

    /// For several statements that read, in a transaction: it is ended if all of them went well.
    fn settle_read<T>(&mut self, read: Result<T>) -> Result<T> {
        self.settled = read.is_ok();
        read
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.settled {
            self.connection.close_on_drop();
        }
    }
}

/// What a call comes to, within its time.
async fn within<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(timed_out()))
}

fn timed_out() -> StoreError {
    StoreError::Unavailable(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))
}

/// What a caller can do about an error.
///
/// Refused is only what the server says of the data itself: by its SQLSTATE, a wrong cardinality (21), a value that does
/// not fit (22), a broken constraint (23: an id that no partition takes is one, 23514), or more than the server can ever
/// take (54). Everything else, what nobody thought of included, may pass: taking it for the data's fault would set good
/// events aside, whereas a caller that waits and tries again loses nothing and shows in its metrics.
fn classify(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(ref database) => {
            let class = database.code().and_then(|code| code.get(..2).map(str::to_owned));
            match class.as_deref() {
                Some("21" | "22" | "23" | "54") => StoreError::Refused(error),
                _ => StoreError::Unavailable(error),
            }
        }
        sqlx::Error::Encode(_) => StoreError::Refused(error),
        sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::TypeNotFound { .. } => StoreError::Corrupt(error.to_string()),
        error => StoreError::Unavailable(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_told_without_its_password() {
        for bad in [
            "",
            "nonsense",
            "mysql://root:hunter2@localhost/db",
            "postgres://u:hunter2@h:99999/db",
            "postgres://u:hunter2@h/db?sslmode=sometimes",
        ] {
            let error = connect_options(bad).expect_err(bad).to_string();
            assert!(
                error.starts_with("must be a URL") && !error.contains("hunter2"),
                "{error}"
            );
        }
        assert!(connect_options("postgres://u:p@h:5433/db?sslmode=require").is_ok());
    }
}
