//! A PostgreSQL server of the test's own, to be killed, hung and restarted.

use std::{
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use sqlx::{Connection, PgConnection};

use crate::{Scratch, SmallDisk, eventually, ports::free_port};

/// A server on a loopback port, with its data in a directory of its own. Ended when dropped.
pub struct PrivatePostgres {
    binaries: PathBuf,
    port: u16,
    running: Option<Child>,
    directory: PathBuf,
    /// Removes the directory, where it is the server's own.
    _scratch: Option<Scratch>,
}

impl PrivatePostgres {
    /// Makes a cluster, and starts it. PostgreSQL refuses to run as root, so that root runs it as `postgres`.
    pub async fn start() -> Self {
        let scratch = Scratch::new();
        let directory = scratch.path().to_owned();
        Self::start_with(directory, Some(scratch)).await
    }

    /// As [`PrivatePostgres::start`], with its data on a disk of the test's own.
    pub async fn start_on(disk: &SmallDisk) -> Self {
        Self::start_with(disk.path().to_owned(), None).await
    }

    async fn start_with(directory: PathBuf, scratch: Option<Scratch>) -> Self {
        let binaries = find_binaries();
        if let Some(user) = other_user() {
            chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .expect("root can give a directory away");
        }
        let made = as_other(Command::new(binaries.join("initdb")))
            .args([
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--no-sync",
                "-D",
            ])
            .arg(directory.join("data"))
            .output()
            .expect("initdb can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self {
            binaries,
            port: free_port(),
            running: None,
            directory,
            _scratch: scratch,
        };
        server.start_again().await;
        server
    }

    /// Its URL, as its superuser.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// How often its log has this text.
    pub fn logged(&self, text: &str) -> usize {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log).matches(text).count()
    }

    /// Starts it, after it ended, and waits until it answers.
    pub async fn start_again(&mut self) {
        let what = "the private PostgreSQL answers";
        let url = self.url();
        let (mut last_start, server) = (None::<std::time::Instant>, self);
        eventually(what, Duration::from_secs(40), async || {
            // What a killed server left of its memory is in the way for a moment, and the start fails.
            let gone = match server.running.as_mut() {
                Some(child) => child.try_wait().expect("a child can be waited for").is_some(),
                None => true,
            };
            if gone && last_start.is_none_or(|at| at.elapsed() > Duration::from_millis(300)) {
                last_start = Some(std::time::Instant::now());
                server.running = Some(server.spawn());
            }
            let connect = tokio::time::timeout(Duration::from_secs(2), PgConnection::connect(&url));
            match connect.await {
                Ok(Ok(connection)) => {
                    let _ = connection.close().await;
                    Ok(())
                }
                Ok(Err(error)) => Err(format!("{error}: {}", server.log())),
                Err(_) => Err("it does not answer".into()),
            }
        })
        .await;
    }

    fn spawn(&self) -> Child {
        as_other(Command::new(self.binaries.join("postgres")))
            .arg("-D")
            .arg(self.directory.join("data"))
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1"])
            .args(["-c", "max_wal_size=128MB", "-c"])
            .arg(format!("unix_socket_directories={}", self.directory.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(self.log_path())
                    .expect("a log can be written"),
            )
            .spawn()
            .expect("postgres can be run")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        log[log.floor_char_boundary(log.len().saturating_sub(2_000))..].to_owned()
    }

    /// Kills it with all its processes, as a crash of the machine would.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(mut child) = self.running.take() {
            let _ = child.wait();
        }
    }

    /// Stops it as an operator would who does not wait for clients.
    pub fn stop_fast(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = kill(pid(&child), Signal::SIGINT);
            let _ = child.wait();
        }
    }

    /// Lets it hang, with all its processes: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let Some(child) = &self.running else { return };
        // Its processes are each in a session of their own: they are found by their parent, which is signalled first, so
        // that it makes no more of them.
        let parent = pid(child);
        let _ = kill(parent, signal);
        let children = Command::new("pgrep")
            .args(["-P", &parent.to_string()])
            .output()
            .expect("pgrep can be run");
        for line in String::from_utf8_lossy(&children.stdout).lines() {
            if let Ok(child) = line.trim().parse() {
                let _ = kill(Pid::from_raw(child), signal);
            }
        }
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // A killed parent takes its processes along only if they are not stopped.
        self.resume();
        self.kill();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process id fits"))
}

/// Whom to run it as, where the test runs as root.
fn other_user() -> Option<User> {
    geteuid().is_root().then(|| {
        User::from_name("postgres")
            .ok()
            .flatten()
            .expect("PostgreSQL cannot run as root, and there is no user postgres to run it as: install PostgreSQL's package")
    })
}

fn as_other(mut command: Command) -> Command {
    if let Some(user) = other_user() {
        command
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .current_dir("/");
    }
    command
}

/// Where PostgreSQL's server programs are: `pg_config` knows, or else Debian's place for the newest.
fn find_binaries() -> PathBuf {
    let told = Command::new("pg_config").arg("--bindir").output();
    let told = told
        .ok()
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut debian: Vec<PathBuf> = debian
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    debian.sort();
    let complete = |directory: &PathBuf| {
        is_program(&directory.join("initdb")) && is_program(&directory.join("postgres"))
    };
    told.into_iter().chain(debian.into_iter().rev()).find(complete).expect(
        "PostgreSQL's server programs (initdb, postgres) are needed, for a server of the test's own: install the package postgresql",
    )
}

fn is_program(path: &Path) -> bool {
    path.is_file()
}
