//! Verifiers, ours and those that others wrote, take real webhooks for what they are, and refuse what is not one.

use std::process::Command;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use harness::{Engine, Received, Receiver, Scratch, World};
use serde_json::json;
use standardwebhooks::Webhook;

use crate::program::{libraries, path, run};

/// The headers that a verifier needs.
const HEADERS: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

/// A webhook as a verifier is given it.
#[derive(Clone)]
struct Given {
    secret: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Given {
    fn of(webhook: &Received, secret: &str) -> Self {
        Self {
            secret: secret.to_owned(),
            headers: HEADERS
                .map(|name| (name.to_owned(), webhook.header(name).to_owned()))
                .to_vec(),
            body: webhook.body.to_vec(),
        }
    }

    fn json(&self) -> Vec<u8> {
        let headers: serde_json::Map<String, serde_json::Value> = self
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        json!({"secret": self.secret, "headers": headers, "body": STANDARD.encode(&self.body)})
            .to_string()
            .into_bytes()
    }

    fn lines(&self) -> Vec<u8> {
        let mut text = format!("{}\n", self.secret);
        for (name, value) in &self.headers {
            text.push_str(&[name, ": ", value, "\n"].concat());
        }
        text.push('\n');
        [text.as_bytes(), &self.body].concat()
    }
}

/// A program that is given a webhook, and says whether it is valid.
struct Verifier {
    name: &'static str,
    command: fn(&Scratch) -> Command,
    input: fn(&Given) -> Vec<u8>,
}

/// How many of them are ours.
const OURS: usize = 3;

/// The examples that the documentation shows, then the libraries of Standard Webhooks as `PyPI` and npm have them.
const VERIFIERS: [Verifier; 5] = [
    Verifier {
        name: "the example in Python",
        command: |_| script("python3", "examples/verify/verify.py"),
        input: Given::json,
    },
    JAVASCRIPT,
    Verifier {
        name: "the example in Java",
        command: |classes| {
            let mut command = Command::new("java");
            command.arg("-cp").arg(classes.path()).arg("Verify");
            command
        },
        input: Given::lines,
    },
    Verifier {
        name: "the library for Python",
        command: |_| {
            let mut command = script("python3", "tests/documented/standardwebhooks/verify.py");
            command.env("PYTHONPATH", libraries("python", "standardwebhooks"));
            command
        },
        input: Given::json,
    },
    Verifier {
        name: "the library for JavaScript",
        command: |_| {
            let libraries = libraries("javascript", "node_modules/standardwebhooks");
            let mut command = script("node", "tests/documented/standardwebhooks/verify.cjs");
            command.env("NODE_PATH", libraries.join("node_modules"));
            command
        },
        input: Given::json,
    },
];

/// The one that knows both schemes.
const JAVASCRIPT: Verifier = Verifier {
    name: "the example in JavaScript",
    command: |_| script("node", "examples/verify/verify.mjs"),
    input: Given::json,
};

impl Verifier {
    #[track_caller]
    fn says(&self, given: &Given, classes: &Scratch) -> String {
        run(&mut (self.command)(classes), &(self.input)(given))
    }
}

fn script(program: &str, file: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(path(file));
    command
}

/// The example in Java, compiled.
fn classes() -> Scratch {
    let scratch = Scratch::new();
    let mut command = script("javac", "examples/verify/Verify.java");
    run(command.arg("-d").arg(scratch.path()), b"");
    scratch
}

/// What is not a webhook of ours: another secret, another body, no time, no signature that fits.
fn wrong(given: &Given, other_secret: &str) -> Vec<(&'static str, Given)> {
    let with = |name: &str, value: String| {
        let mut changed = given.clone();
        for (header, old) in &mut changed.headers {
            if header == name {
                old.clone_from(&value);
            }
        }
        changed
    };
    let header = |name: &str| {
        let found = given.headers.iter().find(|(header, _)| header == name);
        found.expect("it is there").1.clone()
    };
    let timestamp: i64 = header("webhook-timestamp").parse().expect("seconds");
    let mut body = given.clone();
    body.body.push(b' ');
    let secret = Given {
        secret: other_secret.to_owned(),
        ..given.clone()
    };
    let mut wrong = vec![
        ("another secret", secret),
        ("another body", body),
        (
            "another time",
            with("webhook-timestamp", (timestamp - 1).to_string()),
        ),
        ("no time", with("webhook-timestamp", "soon".into())),
        ("another id", with("webhook-id", "evt_other".into())),
        (
            "no signature",
            with("webhook-signature", "v1,AAAA v2,BBBB nothing".into()),
        ),
    ];
    // Their signatures fit: it is the time alone that is wrong.
    if let Ok(webhook) = Webhook::new(&given.secret) {
        for (what, timestamp) in [
            ("an hour ago", timestamp - 3_600),
            ("in an hour", timestamp + 3_600),
        ] {
            let signature = webhook.sign(&header("webhook-id"), timestamp, &given.body);
            let mut signed = with("webhook-timestamp", timestamp.to_string());
            signed.headers[2].1 = signature.expect("it can be signed");
            wrong.push((what, signed));
        }
    }
    wrong
}

/// What anybody may send, and only tells whether a verifier says no rather than fail.
fn hostile(given: &Given) -> Vec<(&'static str, Given)> {
    let with = |at: usize, value: &str| {
        let mut changed = given.clone();
        value.clone_into(&mut changed.headers[at].1);
        changed
    };
    vec![
        ("an id beyond ASCII", with(0, "\u{ff}")),
        ("a time beyond all numbers", with(1, &"9".repeat(400))),
        (
            "a time before all numbers",
            with(1, &format!("-{}", "9".repeat(400))),
        ),
        ("a time with a fraction", with(1, "1700000000.5")),
        ("no time at all", with(1, "")),
        ("a signature beyond ASCII", with(2, "v1,\u{ff}")),
        ("another one beyond ASCII", with(2, "v1a,\u{ff} \u{1f980}")),
        (
            "a signature that is long",
            with(2, &format!("v1,{}", "A".repeat(100_000))),
        ),
        ("no signature at all", with(2, "")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_are_verified_by_examples_and_by_libraries() {
    let world = World::start(Engine::Embedded).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let plain = client.subscribe_url(&receiver.url("/plain")).await;
    let rotated = client.subscribe_url(&receiver.url("/rotated")).await;
    let path = format!("/v1/subscriptions/{}/rotate-secret", rotated.id);
    let new = client.post(&path, &json!({})).await.expect(200);
    let ed25519 = client
        .post(
            "/v1/subscriptions",
            &json!({"url": receiver.url("/ed25519"), "signature_scheme": "ed25519"}),
        )
        .await
        .expect(201);
    client
        .accepted(&json!({"type": "user.created", "payload": {"name": "Adä \u{1f980}", "n": 1.0}}))
        .await;
    let webhook = async |path: &str| receiver.wait_for(path, 1).await.remove(0);

    let given = Given::of(&webhook("/plain").await, &plain.secret);
    let classes = classes();
    for verifier in VERIFIERS {
        assert_eq!(verifier.says(&given, &classes), "valid", "{}", verifier.name);
        for (what, wrong) in wrong(&given, &rotated.secret) {
            assert_eq!(
                verifier.says(&wrong, &classes),
                "invalid",
                "{}: {what}",
                verifier.name
            );
        }
    }
    for (what, hostile) in hostile(&given) {
        for verifier in &VERIFIERS[..OURS] {
            assert_eq!(
                verifier.says(&hostile, &classes),
                "invalid",
                "{}: {what}",
                verifier.name
            );
        }
    }
    let rotating = webhook("/rotated").await;
    assert_eq!(rotating.header("webhook-signature").split(' ').count(), 2);
    for secret in [&rotated.secret, new["secret"].as_str().expect("a secret")] {
        for verifier in VERIFIERS {
            assert_eq!(
                verifier.says(&Given::of(&rotating, secret), &classes),
                "valid",
                "{}",
                verifier.name
            );
        }
    }
    let public = ed25519["public_key"].as_str().expect("a public key");
    let given = Given::of(&webhook("/ed25519").await, public);
    assert_eq!(JAVASCRIPT.says(&given, &classes), "valid");
    let other = format!("whpk_{}", STANDARD.encode([7; 32]));
    for (what, wrong) in wrong(&given, &other).into_iter().chain(hostile(&given)) {
        assert_eq!(JAVASCRIPT.says(&wrong, &classes), "invalid", "{what}");
    }
}
