//! A RabbitMQ broker of the test's own, to be killed, hung and restarted.

use std::{
    fs::{File, OpenOptions},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lapin::{Connection, ConnectionProperties};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{Scratch, eventually, ports::free_port};

/// A broker on a loopback port, with its data in a directory of its own. Ended when dropped.
pub struct PrivateRabbit {
    port: u16,
    distribution_port: u16,
    names_port: u16,
    /// The daemon by which Erlang finds nodes: one of the test's own, so that none is left behind.
    names: Child,
    running: Option<Child>,
    directory: Scratch,
}

impl PrivateRabbit {
    /// Starts one.
    pub async fn start() -> Self {
        let directory = Scratch::new();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("a file can be written");
        };
        write("rabbitmq-env.conf", "");
        write("rabbitmq.conf", "log.file.level = warning\n");
        write("enabled_plugins", "[].\n");
        let names_port = free_port();
        let names = Command::new(find_program("epmd", &[]))
            .args(["-address", "127.0.0.1", "-port", &names_port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("epmd can be run");
        let mut broker = Self {
            port: free_port(),
            distribution_port: free_port(),
            names_port,
            names,
            running: None,
            directory,
        };
        broker.start_again().await;
        broker
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Starts it, after it ended, and waits until it answers.
    pub async fn start_again(&mut self) {
        self.running = Some(self.spawn());
        let url = self.url();
        let broker = self;
        eventually(
            "the private RabbitMQ answers",
            Duration::from_secs(90),
            async || {
                let ended = broker
                    .running
                    .as_mut()
                    .and_then(|child| child.try_wait().expect("a child can be waited for"));
                assert!(
                    ended.is_none(),
                    "RabbitMQ ended with {ended:?}:\n{}",
                    broker.log()
                );
                let connect = Connection::connect(&url, ConnectionProperties::default());
                match tokio::time::timeout(Duration::from_secs(5), connect).await {
                    Ok(Ok(connection)) => {
                        let _ = connection.close(200, "seen".into()).await;
                        Ok(())
                    }
                    Ok(Err(error)) => Err(format!("{error}: {}", broker.log())),
                    Err(_) => Err("it does not answer".into()),
                }
            },
        )
        .await;
    }

    fn spawn(&self) -> Child {
        let at = |name: &str| self.directory.path().join(name);
        let log = OpenOptions::new().create(true).append(true).open(at("log"));
        let log: File = log.expect("a log can be written");
        self.command("rabbitmq-server")
            // A group of its own, so that the script and the broker that it starts can be signalled as one.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("rabbitmq-server can be run")
    }

    /// One of RabbitMQ's programs, for this very broker.
    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.directory.path().join(name);
        let mut command = Command::new(find_program(program, &["/usr/lib/rabbitmq/bin"]));
        command
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path())
            .env("RABBITMQ_CONF_ENV_FILE", at("rabbitmq-env.conf"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", at("data"))
            .env("RABBITMQ_LOG_BASE", at("logs"))
            .env("RABBITMQ_PID_FILE", at("pid"))
            .env(
                "RABBITMQ_NODENAME",
                format!("triggers-test-{}@localhost", self.port),
            )
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("ERL_EPMD_PORT", self.names_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none");
        command
    }

    /// Raises the alarm of memory, or ends it: while it lasts, connections that publish are not read from.
    pub async fn alarm(&self, raised: bool) {
        let watermark = if raised { "0.000001" } else { "0.6" };
        self.control(&["set_vm_memory_high_watermark", watermark]).await;
    }

    /// Raises the alarm of the disk, or ends it: the broker wants more room than any disk has.
    pub async fn disk_alarm(&self, raised: bool) {
        let limit = if raised { "1000000GiB" } else { "50MB" };
        self.control(&["set_disk_free_limit", limit]).await;
    }

    async fn control(&self, arguments: &[&str]) {
        let mut command = self.command("rabbitmqctl");
        command.args(arguments);
        let ran = tokio::task::spawn_blocking(move || command.output());
        let output = ran.await.expect("waiting for a process does not panic");
        let output = output.expect("rabbitmqctl can be run");
        assert!(output.status.success(), "{output:?}");
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        log[log.floor_char_boundary(log.len().saturating_sub(2_000))..].to_owned()
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(mut child) = self.running.take() {
            let _ = child.wait();
        }
    }

    /// Stops it as an operator would.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        if let Some(mut child) = self.running.take() {
            let _ = child.wait();
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Lets it hang: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.running {
            let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id fits"));
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for PrivateRabbit {
    fn drop(&mut self) {
        self.kill();
        let _ = self.names.kill();
        let _ = self.names.wait();
    }
}

/// A program in one of these directories, or else in those of `PATH`. Debian's `rabbitmq-server` on the path is a wrapper
/// that insists on the package's own data; the broker's own script is elsewhere.
fn find_program(name: &str, first: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = first
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .chain([PathBuf::from("/usr/sbin")]);
    directories
        .map(|directory| directory.join(name))
        .find(|program| Path::is_file(program))
        .unwrap_or_else(|| {
            panic!("{name} is needed, for a broker of the test's own: install the package rabbitmq-server")
        })
}
