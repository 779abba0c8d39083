//! Choosing and opening the engines: PostgreSQL and RabbitMQ where two URLs name them, else SQLite in a directory.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use crate::{
    config::{EngineArgs, SettingError},
    queue::{DynQueue, embedded, rabbit},
    seal::Sealer,
    store::{Store, postgres, sqlite},
};

/// The queue and the store of a process, and the key for its secrets. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    /// Where frames go.
    pub queue: DynQueue,
    /// Where events live.
    pub store: Store,
    /// Seals and opens secrets.
    pub sealer: Arc<Sealer>,
    /// What it is, for logs.
    pub kind: EngineKind,
    /// Held for as long as the data directory is in use.
    _lock: Option<Arc<File>>,
}

/// Which engines a process runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// SQLite, in this process.
    Embedded,
    /// PostgreSQL and RabbitMQ.
    Servers,
}

fn sealer(secret_key: &str, args: &EngineArgs) -> Result<Sealer, SettingError> {
    let sealer = Sealer::from_base64(secret_key).map_err(SettingError::of("TRIGGERS_SECRET_KEY"))?;
    sealer
        .and_former(args.former_secret_keys.as_deref().unwrap_or_default())
        .map_err(SettingError::of("TRIGGERS_FORMER_SECRET_KEYS"))
}

/// The engines that the settings name.
enum Named<'a> {
    Servers {
        database_url: &'a str,
        amqp_url: &'a str,
        secret_key: &'a str,
    },
    Embedded(&'a Path),
}

impl<'a> Named<'a> {
    fn by(args: &'a EngineArgs, data_dir: Option<&'a Path>) -> Result<Self, SettingError> {
        let set = |text: &'a Option<String>| text.as_deref().filter(|text| !text.is_empty());
        match (set(&args.database_url), set(&args.amqp_url), data_dir) {
            (Some(database_url), Some(amqp_url), _) => {
                let secret_key = set(&args.secret_key).ok_or_else(|| {
                    SettingError::new(
                        "TRIGGERS_SECRET_KEY",
                        "must be set, the same for every process: it seals secrets at rest; make one with: openssl rand -base64 32",
                    )
                })?;
                Ok(Self::Servers {
                    database_url,
                    amqp_url,
                    secret_key,
                })
            }
            (None, None, Some(directory)) if args.queues == 1 => Ok(Self::Embedded(directory)),
            (None, None, Some(_)) => Err(SettingError::new(
                "TRIGGERS_QUEUES",
                "must be 1 without TRIGGERS_AMQP_URL: the embedded engine has one queue",
            )),
            (None, None, None) => Err(SettingError::new(
                "TRIGGERS_DATABASE_URL",
                "and TRIGGERS_AMQP_URL must be set; to run without servers, use: triggers serve",
            )),
            (Some(_), None, _) => Err(SettingError::new(
                "TRIGGERS_AMQP_URL",
                "must be set as well as TRIGGERS_DATABASE_URL: queue and store are both servers, or both embedded",
            )),
            (None, Some(_), _) => Err(SettingError::new(
                "TRIGGERS_DATABASE_URL",
                "must be set as well as TRIGGERS_AMQP_URL: queue and store are both servers, or both embedded",
            )),
        }
    }
}

impl Engine {
    /// Opens the engines that the settings name. `data_dir` is where an embedded one lives; a process that cannot have
    /// one gives `None`. Servers that are away do not stop it: what needs them waits.
    pub async fn open(args: &EngineArgs, data_dir: Option<&Path>) -> anyhow::Result<Self> {
        match Named::by(args, data_dir)? {
            Named::Servers {
                database_url,
                amqp_url,
                secret_key,
            } => Self::servers(args, database_url, amqp_url, secret_key),
            Named::Embedded(directory) => Self::embedded(args, directory).await,
        }
    }

    /// What [`Engine::open`] would say against the settings, as far as that can be told without opening anything.
    pub fn check(args: &EngineArgs, data_dir: Option<&Path>) -> Result<EngineKind, SettingError> {
        match Named::by(args, data_dir)? {
            Named::Servers {
                database_url,
                amqp_url,
                secret_key,
            } => {
                sealer(secret_key, args)?;
                rabbit::RabbitOptions::parse_uri(amqp_url).map_err(SettingError::of("TRIGGERS_AMQP_URL"))?;
                postgres::check_url(database_url).map_err(SettingError::of("TRIGGERS_DATABASE_URL"))?;
                Ok(EngineKind::Servers)
            }
            Named::Embedded(_) => {
                if let Some(key) = args.secret_key.as_deref().filter(|key| !key.is_empty()) {
                    sealer(key, args)?;
                }
                Ok(EngineKind::Embedded)
            }
        }
    }

    fn servers(
        args: &EngineArgs,
        database_url: &str,
        amqp_url: &str,
        secret_key: &str,
    ) -> anyhow::Result<Self> {
        let sealer = sealer(secret_key, args)?;
        let uri =
            rabbit::RabbitOptions::parse_uri(amqp_url).map_err(SettingError::of("TRIGGERS_AMQP_URL"))?;
        let options = postgres::PostgresOptions {
            url: database_url.to_owned().into(),
            max_connections: args.database_connections,
        };
        let store = postgres::connect(&options).map_err(SettingError::of("TRIGGERS_DATABASE_URL"))?;
        let queue = rabbit::RabbitQueue::new(rabbit::RabbitOptions {
            uri,
            prefix: args.queue_prefix.clone(),
            queues: args.queues,
            delivery_limit: args.queue_delivery_limit,
            max_bytes: args.queue_max_bytes,
        });
        Ok(Self {
            queue: Arc::new(queue),
            store,
            sealer: Arc::new(sealer),
            kind: EngineKind::Servers,
            _lock: None,
        })
    }

    async fn embedded(args: &EngineArgs, directory: &Path) -> anyhow::Result<Self> {
        let unusable = |error: std::io::Error| {
            SettingError::new(
                "TRIGGERS_DATA_DIR",
                format!("({}) cannot be used: {error}", directory.display()),
            )
        };
        // Payloads and secrets are in it: nobody else's business.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(unusable)?;
        let lock = private_file(&directory.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let rule = format!(
                    "({}) is in use by another process; stop it, or use another",
                    directory.display()
                );
                return Err(SettingError::new("TRIGGERS_DATA_DIR", rule).into());
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error).into()),
        }
        let secret_key = match args.secret_key.as_deref().filter(|key| !key.is_empty()) {
            Some(key) => key.to_owned(),
            None => kept_secret(&directory.join("secret-key"), Sealer::generate_base64).map_err(unusable)?,
        };
        let sealer = sealer(&secret_key, args)?;
        for database in ["queue.db", "store.db"] {
            // The engines find them there; what SQLite adds to them has the same mode.
            private_file(&directory.join(database)).map_err(unusable)?;
            for beside in ["-wal", "-shm"] {
                let left = directory.join(format!("{database}{beside}"));
                if left.try_exists().map_err(unusable)? {
                    private_file(&left).map_err(unusable)?;
                }
            }
        }
        let queue = embedded::open(directory).await?;
        let store = sqlite::open(directory).await?;
        Ok(Self {
            queue: Arc::new(queue),
            store,
            sealer: Arc::new(sealer),
            kind: EngineKind::Embedded,
            _lock: Some(Arc::new(lock)),
        })
    }

    /// Ends connections, once every role has stopped.
    pub async fn close(&self) {
        self.queue.close().await;
        self.store.keeper.close().await;
    }
}

/// Opens a file that only its owner may read, and makes it if it is missing. One that others may read, as copying and
/// unpacking leave it, is theirs no longer.
fn private_file(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let (path, mode) = (path.display(), format!("{mode:03o}"));
        match file.set_permissions(Permissions::from_mode(0o600)) {
            Ok(()) => {
                tracing::warn!(file.path = %path, file.mode = mode, "others could read this file; from now on its owner alone can");
            }
            Err(error) => {
                tracing::warn!(file.path = %path, file.mode = mode, %error, "others can read this file: chmod 600 it");
            }
        }
    }
    Ok(file)
}

/// What a private file holds; if it is empty or missing, `make` makes it. It is on disk before this returns.
pub fn kept_secret(path: &Path, make: impl FnOnce() -> String) -> std::io::Result<String> {
    let mut file = private_file(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if text.trim().is_empty() {
        text = make();
        writeln!(file, "{text}")?;
        file.sync_all()?;
    }
    Ok(text.trim().to_owned())
}
