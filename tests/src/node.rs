//! A process of the product under test: started, watched, signalled, stopped, and started again.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::eventually;

/// How long a process may take to start listening, or to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(40);
/// The most lines of output shown of a process when its test fails.
const SHOWN_LINES: usize = 150;

/// Where a binary of the workspace is: beside the test's own executable.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its executable");
    let directory = own
        .ancestors()
        .find(|directory| directory.file_name().is_some_and(|name| name == "deps"))
        .and_then(std::path::Path::parent)
        .unwrap_or_else(|| panic!("{} is not in cargo's target directory", own.display()));
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is missing; build it first, with: cargo build --workspace --bins",
        path.display()
    );
    path
}

/// How a process is started.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The binary's name.
    pub program: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its settings. No `TRIGGERS_…` or `OTEL_…` variable of the test's own environment reaches it.
    pub settings: Vec<(String, String)>,
}

impl Spec {
    /// The command, with its output piped.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary(self.program));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("TRIGGERS_") || text.starts_with("OTEL_") {
                command.env_remove(&name);
            }
        }
        command
            .args(&self.arguments)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// What became of a process that ends by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed on standard output.
    pub out: String,
    /// What it printed on standard error.
    pub err: String,
}

impl Spec {
    /// Runs a process that must end by itself. One that does not within 40 seconds is killed, and fails the test.
    pub async fn run(&self) -> Ended {
        let mut child = self
            .command()
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.program));
        let (out, err) = (Lines::default(), Lines::default());
        let readers = [
            keep_lines(child.stdout.take(), &out),
            keep_lines(child.stderr.take(), &err),
        ];
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{self:?} does not end:\n{}", err.lock().unwrap().join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        for reader in readers {
            reader.join().expect("reading does not panic");
        }
        let text = |lines: &Lines| lines.lock().unwrap().join("\n");
        Ended {
            code: status.code(),
            out: text(&out),
            err: text(&err),
        }
    }
}

type Lines = Arc<Mutex<Vec<String>>>;

/// A process that serves HTTP. Killed when dropped.
pub struct Node {
    spec: Mutex<Spec>,
    running: Mutex<Option<Child>>,
    address: Mutex<Option<SocketAddr>>,
    /// What every run of it has printed.
    output: Lines,
}

impl Node {
    /// Starts it and waits until it listens.
    pub async fn start(spec: Spec) -> Arc<Self> {
        let node = Arc::new(Self {
            spec: Mutex::new(spec),
            running: Mutex::new(None),
            address: Mutex::new(None),
            output: Lines::default(),
        });
        node.start_again().await;
        node
    }

    /// Starts it once more, after it ended, and waits until it listens (on another port, perhaps).
    pub async fn start_again(&self) {
        let address = self.launch().await;
        *self.address.lock().unwrap() = Some(address);
    }

    /// As [`Node::start_again`], but clients are sent there only once it is ready, as a load balancer does it.
    pub async fn start_again_behind_balancer(&self) {
        let address = self.launch().await;
        self.ready_at(address).await;
        *self.address.lock().unwrap() = Some(address);
    }

    /// Starts it and waits until it listens; gives where.
    async fn launch(&self) -> SocketAddr {
        let spec = self.spec.lock().unwrap().clone();
        let mut child = spec
            .command()
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", spec.program));
        let seen = self.output.lock().unwrap().len();
        keep_lines(child.stdout.take(), &self.output);
        keep_lines(child.stderr.take(), &self.output);
        *self.running.lock().unwrap() = Some(child);
        let what = format!("{} listens", spec.program);
        eventually(&what, PATIENCE, async || {
            if let Some(status) = self.exit_status() {
                panic!(
                    "{} ended with {status} instead of starting:\n{}",
                    spec.program,
                    self.output()
                );
            }
            let output = self.output.lock().unwrap();
            output
                .iter()
                .skip(seen)
                .find_map(|line| listening(line))
                .ok_or_else(String::new)
        })
        .await
    }

    /// Its name, for messages.
    pub fn program(&self) -> &'static str {
        self.spec.lock().unwrap().program
    }

    /// Changes a setting, for the next start.
    pub fn set(&self, name: &str, value: &str) {
        let mut spec = self.spec.lock().unwrap();
        spec.settings.retain(|(given, _)| given != name);
        spec.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Where it serves (or did last), as `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        let address = self.address.lock().unwrap().expect("the node has been started");
        format!("http://{address}")
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        let address = self.address.lock().unwrap().expect("the node has been started");
        self.ready_at(address).await;
    }

    async fn ready_at(&self, address: SocketAddr) {
        let http = reqwest::Client::new();
        let url = format!("http://{address}/health/ready");
        eventually(&format!("{} is ready", self.program()), PATIENCE, async || {
            let answer = http
                .get(&url)
                .timeout(Duration::from_secs(5))
                .send()
                .await
                .map_err(|error| format!("{error:?}"))?;
            if answer.status().as_u16() == 200 {
                return Ok(());
            }
            Err(answer.text().await.unwrap_or_default())
        })
        .await;
    }

    /// Everything that it has printed.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().join("\n")
    }

    /// The last lines that it has printed.
    pub fn last_output(&self) -> String {
        let lines = self.output.lock().unwrap();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.running.lock().unwrap().as_ref().map(Child::id)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let running = self.running.lock().unwrap();
        let child = running.as_ref().expect("the node is running");
        kill(pid(child), signal).expect("a child can be signalled");
    }

    /// Lets it hang.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it, as a crash would.
    pub async fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Asks it to stop, and waits until it has.
    pub async fn terminate(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> ExitStatus {
        let what = format!("{} ends", self.program());
        let status = eventually(&what, PATIENCE, async || {
            self.exit_status().ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        *self.running.lock().unwrap() = None;
        status
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.id().is_some() && self.exit_status().is_none()
    }

    fn exit_status(&self) -> Option<ExitStatus> {
        let mut running = self.running.lock().unwrap();
        running.as_mut()?.try_wait().expect("a child can be waited for")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(running) = self.running.get_mut()
            && let Some(mut child) = running.take()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process id fits"))
}

/// Keeps what comes out, line by line, until the other end closes.
fn keep_lines(pipe: Option<impl Read + Send + 'static>, lines: &Lines) -> JoinHandle<()> {
    let pipe = pipe.expect("the output is piped");
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            lines.lock().unwrap().push(line);
        }
    })
}

/// The address in the log line that says where a process listens.
fn listening(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line["message"] != "listening" {
        return None;
    }
    line["listen.address"].as_str()?.parse().ok()
}
