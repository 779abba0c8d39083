//! `triggers dev`, and plain `triggers`: what a newcomer gets.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Command, sync::Arc, time::Duration};

use harness::{Answer, Node, Receiver, Scratch, Spec, eventually};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

fn spec(arguments: &[&str], data: &Path) -> Spec {
    Spec {
        program: "triggers",
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        settings: vec![
            ("TRIGGERS_LISTEN".into(), "127.0.0.1:0".into()),
            ("TRIGGERS_DATA_DIR".into(), data.display().to_string()),
        ],
    }
}

/// The first command that it says to paste.
async fn pasted(node: &Node) -> String {
    eventually(
        "a command to paste is printed",
        Duration::from_secs(20),
        async || {
            let output = node.output();
            let url = node.url();
            let line = output.lines().rfind(|line| {
                line.trim_start().starts_with("curl") && line.contains("/v1/events") && line.contains(&url)
            });
            line.map(|line| line.trim().to_owned()).ok_or(output)
        },
    )
    .await
}

fn paste(command: &str) -> Value {
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .expect("a shell runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command}: {output:?}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}: {text}"))
}

async fn send(request: RequestBuilder) -> Answer {
    Answer::of(request.send().await.expect("the request is answered")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_makes_a_key_and_a_command_that_works() {
    let scratch = Scratch::new();
    // A directory that a shell would take apart.
    let data = scratch.path().join("it's $HOME here");
    let node = Node::start(spec(&["dev"], &data)).await;
    node.ready().await;
    let posted = paste(&pasted(&node).await);
    assert_eq!(posted["status"], "accepted", "{posted}");

    let keys: Vec<_> = std::fs::read_dir(&data)
        .expect("the directory is there")
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| std::fs::read_to_string(path).is_ok_and(|text| text.starts_with("trg_live_")))
        .collect();
    assert_eq!(keys.len(), 1, "one file holds the key: {keys:?}");
    let mode = std::fs::metadata(&keys[0])
        .expect("the file is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(&keys[0]).expect("the file is text");
    let key = key.trim().to_owned();
    assert!(!node.output().contains(&key), "the key is printed");
    let sealing = std::fs::metadata(data.join("secret-key")).expect("the file is there");
    assert_eq!(sealing.permissions().mode() & 0o777, 0o600);

    let http = reqwest::Client::new();
    let shown = http
        .get(format!("{}/v1/organization", node.url()))
        .bearer_auth(&key);
    assert_eq!(send(shown).await.expect(200)["name"], "dev");
    let event = format!(
        "{}/v1/events/{}",
        node.url(),
        posted["id"].as_str().expect("an id")
    );
    send(http.get(event).bearer_auth(&key)).await.expect(200);

    // The next start has the same key, and prints a command again.
    assert!(node.terminate().await.success());
    node.start_again().await;
    let posted = paste(&pasted(&node).await);
    assert_eq!(posted["status"], "accepted", "{posted}");
    assert_eq!(
        std::fs::read_to_string(&keys[0])
            .expect("the file is text")
            .trim(),
        key
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_triggers_is_dev_and_dev_is_for_this_machine() {
    let scratch = Scratch::new();
    let node = Node::start(spec(&[], &scratch.path().join("data"))).await;
    node.ready().await;
    let receiver = Receiver::start().await;
    let http = reqwest::Client::new();
    let signup = || {
        http.post(format!("{}/v1/organizations", node.url()))
            .json(&json!({"name": "mine", "tier": "unlimited"}))
    };
    let created = send(signup()).await.expect(201);
    let key = created["key"]["key"].as_str().expect("a key");
    let subscribe = || {
        http.post(format!("{}/v1/subscriptions", node.url()))
            .bearer_auth(key)
            .json(&json!({"url": receiver.url("/hook")}))
    };
    let subscription = send(subscribe()).await.expect(201);
    let event = http
        .post(format!("{}/v1/events", node.url()))
        .bearer_auth(key)
        .json(&json!({"type": "user.created", "payload": {}}));
    send(event).await.expect(202);
    let webhooks = receiver.wait_for("/hook", 1).await;
    webhooks[0]
        .verify(subscription["secret"].as_str().expect("a secret"))
        .expect("the signature is good");

    // So is this machine by its name; another name could be pointed here by anybody.
    let by_name = receiver.url("/name").replace("127.0.0.1", "localhost");
    let named = http
        .post(format!("{}/v1/subscriptions", node.url()))
        .bearer_auth(key)
        .json(&json!({"url": by_name, "event_types": ["by.name"]}));
    send(named).await.expect(201);
    let event = http
        .post(format!("{}/v1/events", node.url()))
        .bearer_auth(key)
        .json(&json!({"type": "by.name", "payload": {}}));
    send(event).await.expect(202);
    receiver.wait_for("/name", 1).await;

    // Nothing trusts a neighbour: what was forwarded, or is for another host, is not from this machine.
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1"),
        ("host", "example.com"),
        ("origin", "https://example.com"),
    ] {
        let answer = send(signup().header(name, value)).await;
        assert!(matches!(answer.status, 401 | 403), "{name}: {answer:?}");
        let answer = send(subscribe().header(name, value)).await;
        assert_eq!(answer.status, 422, "{name}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_has_none_of_devs_conveniences() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let node = Node::start(spec(&["serve"], &data)).await;
    node.ready().await;
    assert!(!node.output().contains("curl"));
    assert!(!data.join("dev-key").exists());
    let http = reqwest::Client::new();
    let signup = http
        .post(format!("{}/v1/organizations", node.url()))
        .json(&json!({"name": "mine"}));
    let answer = send(signup).await;
    assert!(matches!(answer.status, 401 | 403), "{answer:?}");

    // Open where it is set, and then not for every tier.
    assert!(node.terminate().await.success());
    node.set("TRIGGERS_OPEN_SIGNUP", "true");
    node.start_again().await;
    node.ready().await;
    let signup = |tier: &str| {
        http.post(format!("{}/v1/organizations", node.url()))
            .json(&json!({"name": "mine", "tier": tier}))
    };
    let created = send(signup("free")).await.expect(201);
    let refused = send(signup("unlimited")).await;
    assert!(matches!(refused.status, 401 | 403 | 422), "{refused:?}");
    let loopback = http
        .post(format!("{}/v1/subscriptions", node.url()))
        .bearer_auth(created["key"]["key"].as_str().expect("a key"))
        .json(&json!({"url": "http://127.0.0.1:9/hook"}));
    send(loopback).await.problem(422, "invalid_request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_is_for_one_process() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let first: Arc<Node> = Node::start(spec(&["serve"], &data)).await;
    first.ready().await;
    let second = spec(&["dev"], &data).run().await;
    assert_eq!(second.code, Some(2), "{second:?}");
    let errors: Vec<_> = second
        .err
        .lines()
        .filter(|line| line.starts_with("error"))
        .collect();
    assert_eq!(errors.len(), 1, "{second:?}");
    assert!(
        errors[0].contains("TRIGGERS_DATA_DIR") && errors[0].contains("in use"),
        "{errors:?}"
    );
    first.ready().await;
    // Once the first has ended, even by a crash, the directory is free.
    first.kill().await;
    let third = Node::start(spec(&["serve"], &data)).await;
    third.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_others_can_read_are_theirs_no_longer() {
    const FILES: [&str; 5] = ["lock", "secret-key", "dev-key", "queue.db", "store.db"];
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let node = Node::start(spec(&["dev"], &data)).await;
    pasted(&node).await;
    // Killed, so that what SQLite keeps beside its files is there too.
    node.kill().await;
    assert!(!node.output().contains("others could read"), "{}", node.output());
    let files = || {
        let entries = std::fs::read_dir(&data).expect("the directory is there");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    };
    let before = files();
    for file in FILES {
        assert!(before.contains(&data.join(file)), "{file}: {before:?}");
    }
    assert!(before.contains(&data.join("store.db-wal")), "{before:?}");
    for file in &before {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).expect("they are ours");
    }
    node.start_again().await;
    pasted(&node).await;
    for file in files() {
        let mode = std::fs::metadata(&file).map(|metadata| metadata.permissions().mode() & 0o777);
        // Some come and go.
        assert!(mode.is_err() || mode.is_ok_and(|mode| mode == 0o600), "{file:?}");
    }
    for file in FILES {
        let path = format!("{}\"", data.join(file).display());
        let warned = node
            .output()
            .lines()
            .filter(|line| line.contains("others could read") && line.contains(&path))
            .count();
        assert_eq!(warned, 1, "{file}: {}", node.output());
    }
}
