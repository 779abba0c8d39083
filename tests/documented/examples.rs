//! The example clients and receivers do what their READMEs say, with a real deployment.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use harness::{Client, Engine, Receiver, Reply, Scratch, Subscription, World, eventually, free_port};
use serde_json::{Value, json};

use crate::program::{end_of, path, run, start};

const SOON: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    JavaScript,
}

const LANGUAGES: [Language; 2] = [Language::Python, Language::JavaScript];

impl Language {
    fn command(self, file: &str) -> Command {
        let (program, directory, extension) = match self {
            Self::Python => ("python3", "python", "py"),
            Self::JavaScript => ("node", "javascript", "mjs"),
        };
        let mut command = Command::new(program);
        command.arg(path(&format!("examples/{directory}/{file}.{extension}")));
        command
    }

    fn client(self, url: &str, key: &str) -> Command {
        let mut command = self.command("client");
        command.env("TRIGGERS_URL", url).env("TRIGGERS_KEY", key);
        command
    }

    fn post(self, url: &str, key: &str, payload: &str, dedup_id: Option<&str>) -> Command {
        let mut command = self.client(url, key);
        command.args(["post", "order.placed", payload]);
        if let Some(dedup_id) = dedup_id {
            if self == Self::Python {
                command.arg("--dedup-id");
            }
            command.arg(dedup_id);
        }
        command
    }

    fn receiver(self, port: u16, kept: &Path, secret: &str) -> Command {
        let mut command = self.command("receiver");
        match self {
            Self::Python => command.args(["--port", &port.to_string(), "--database"]),
            Self::JavaScript => command.arg(port.to_string()),
        };
        command.arg(kept).env("TRIGGERS_WEBHOOK_SECRET", secret);
        command
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text} is not JSON: {error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_post_events_and_work_off_the_inbox() {
    let world = World::start(Engine::Embedded).await;
    for language in LANGUAGES {
        let client = world.organization().await;
        let url = world.api().url();
        let post = |n: usize| {
            let payload = json!({"n": n}).to_string();
            let dedup_id = format!("order-{n}");
            parsed(&run(
                &mut language.post(&url, &client.key, &payload, Some(&dedup_id)),
                b"",
            ))
        };
        let events = [post(1), post(2)];
        let again = post(1);
        assert_eq!(again["id"], events[0]["id"], "{language:?}");
        assert_eq!(again["duplicate"], true, "{language:?}");
        let ids = events.map(|event| event["id"].as_str().expect("an id").to_owned());
        for id in &ids {
            client.look_up(id).await;
        }
        let work = || run(language.client(&url, &client.key).arg("work"), b"");
        let printed = work();
        let worked: Vec<Value> = printed.lines().map(parsed).collect();
        for (n, (event, id)) in worked.iter().zip(&ids).enumerate() {
            assert_eq!(event["id"], id.as_str(), "{language:?}");
            assert_eq!(event["payload"], json!({"n": n + 1}), "{language:?}");
            client.event_becomes(id, "acknowledged").await;
        }
        assert_eq!(worked.len(), 2, "{language:?}");
        assert_eq!(work(), "", "{language:?}: nothing is left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_try_again_where_that_helps() {
    let deployment = Receiver::start().await;
    let asks_for_time = |status| Reply::Full(status, vec![("retry-after", "2".to_owned())], "{}".to_owned());
    for language in LANGUAGES {
        let base = deployment.url(&format!("/{language:?}"));
        let at = format!("/{language:?}/v1/events");
        let accepted = Reply::Full(202, Vec::new(), r#"{"id":"evt_1"}"#.to_owned());
        deployment.script(&at, [asks_for_time(503), asks_for_time(429), accepted]);
        let answer = run(&mut language.post(&base, "a key", "1", None), b"");
        assert_eq!(parsed(&answer)["id"], "evt_1", "{language:?}");
        let posts = deployment.received(&at);
        assert_eq!(posts.len(), 3, "{language:?}");
        for pair in posts.windows(2) {
            let waited = pair[1].at - pair[0].at;
            assert!(waited >= Duration::from_secs(2), "{language:?}: {waited:?}");
            assert_eq!(pair[0].body, pair[1].body, "{language:?}");
        }
        let body: Value = serde_json::from_slice(&posts[0].body).expect("JSON");
        let dedup_id = body["dedup_id"].as_str().unwrap_or_default();
        assert!(!dedup_id.is_empty(), "{language:?}: {body}");

        let refusal = Reply::Full(422, Vec::new(), r#"{"code":"invalid_request"}"#.to_owned());
        deployment.script(&at, [refusal]);
        let output = end_of(&mut language.post(&base, "a key", "1", None), b"");
        assert_eq!(output.status.code(), Some(1), "{language:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("invalid_request"), "{language:?}: {said}");
        assert_eq!(deployment.count(&at), 4, "{language:?}");
    }
}

/// A receiver that runs. Killed when dropped.
struct Running(Child);

impl Running {
    /// Starts one, and waits until it listens. What it prints is added to a file.
    async fn start(mut command: Command, port: u16, prints_to: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(prints_to);
        command
            .stdin(Stdio::null())
            .stdout(file.expect("the file can be written"));
        let mut running = Self(start(&mut command));
        eventually("the receiver listens", SOON, async || {
            let ended = running.0.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "{command:?} has ended: {ended:?}");
            TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())
        })
        .await;
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has an event's delivery tried once more, and waits until the receiver has taken it.
async fn deliver_again(client: &Client, event: &str, subscription: &Subscription, attempts: u64) {
    let delivery = format!("/v1/events/{event}/deliveries/{}", subscription.id);
    client
        .post(&format!("{delivery}/retry"), &json!({}))
        .await
        .expect(202);
    eventually("the event is delivered again", SOON, async || {
        let delivery = client.get(&delivery).await.expect(200);
        if delivery["status"] == "delivered" && delivery["attempts"] == attempts {
            Ok(())
        } else {
            Err(delivery.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receivers_verify_and_keep_each_event_once() {
    let world = World::start(Engine::Embedded).await;
    for language in LANGUAGES {
        let client = world.organization().await;
        let scratch = Scratch::new();
        let (kept, printed) = (scratch.path().join("kept"), scratch.path().join("printed"));
        let port = free_port();
        let url = format!("http://127.0.0.1:{port}/");
        let subscription = client.subscribe_url(&url).await;
        let start = async || {
            let command = language.receiver(port, &kept, &subscription.secret);
            Running::start(command, port, &printed).await
        };
        let ids = || -> Vec<String> {
            let text = std::fs::read_to_string(&printed).expect("it was printed to");
            let id = |line: &str| parsed(line)["id"].as_str().expect("an id").to_owned();
            text.lines().map(id).collect()
        };

        let receiver = start().await;
        let first = client.event("order.placed").await;
        client
            .delivery_becomes(&first, &subscription.id, "delivered")
            .await;
        deliver_again(&client, &first, &subscription, 2).await;
        assert_eq!(
            ids(),
            [first.as_str()],
            "{language:?}: once, though it came twice"
        );
        let forged = reqwest::Client::new().post(&url).body("{}").send().await;
        assert_eq!(
            forged.expect("it is answered").status().as_u16(),
            401,
            "{language:?}"
        );

        // Killed, and while it wrote: what it has answered is kept, and what is torn is not in its way.
        drop(receiver);
        if language == Language::JavaScript {
            let file: std::io::Result<File> = OpenOptions::new().append(true).open(&kept);
            let torn = file.and_then(|mut file| file.write_all(br#"{"id":"evt_"#));
            torn.expect("the file can be written");
        }
        let receiver = start().await;
        deliver_again(&client, &first, &subscription, 3).await;
        let second = client.event("order.placed").await;
        client
            .delivery_becomes(&second, &subscription.id, "delivered")
            .await;
        drop(receiver);
        let _receiver = start().await;
        deliver_again(&client, &second, &subscription, 2).await;
        assert_eq!(ids(), [first, second], "{language:?}");
    }
}
