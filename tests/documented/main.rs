//! The code that the documentation shows does what it says: it verifies real webhooks, and refuses what is not one.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use harness::{Engine, Received, Receiver, World};
use serde_json::json;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    JavaScript,
    Java,
}

impl Language {
    fn says(self, given: &Given) -> String {
        let (program, file, input) = match self {
            Self::Python => ("python3", "verify.py", given.json()),
            Self::JavaScript => ("node", "verify.mjs", given.json()),
            Self::Java => ("java", "Verify.java", given.lines()),
        };
        let started = Command::new(program)
            .arg(root().join("examples/verify").join(file))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = started.unwrap_or_else(|error| {
            panic!("{program} is needed for the examples in {self:?} (on Debian: apt-get install python3 nodejs default-jdk-headless): {error}")
        });
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(&input)
            .expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(
            output.status.success(),
            "{self:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// What is not a webhook of ours: another secret, another body, no time, a time long ago, no signature that fits.
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
    vec![
        ("another secret", secret),
        ("another body", body),
        (
            "a time long ago",
            with("webhook-timestamp", (timestamp - 3_600).to_string()),
        ),
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
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_are_verified_in_three_languages() {
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
    let languages = [Language::Python, Language::JavaScript, Language::Java];
    for language in languages {
        assert_eq!(language.says(&given), "valid", "{language:?}");
        for (what, wrong) in wrong(&given, &rotated.secret) {
            assert_eq!(language.says(&wrong), "invalid", "{language:?}: {what}");
        }
    }
    let rotating = webhook("/rotated").await;
    for secret in [&rotated.secret, new["secret"].as_str().expect("a secret")] {
        for language in languages {
            assert_eq!(
                language.says(&Given::of(&rotating, secret)),
                "valid",
                "{language:?}"
            );
        }
    }
    let public = ed25519["public_key"].as_str().expect("a public key");
    let given = Given::of(&webhook("/ed25519").await, public);
    assert_eq!(Language::JavaScript.says(&given), "valid");
    let other = format!("whpk_{}", STANDARD.encode([7; 32]));
    for (what, wrong) in wrong(&given, &other) {
        assert_eq!(Language::JavaScript.says(&wrong), "invalid", "{what}");
    }
}

#[test]
fn the_documentation_shows_the_files_as_they_are() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("it is there");
    let documented = read("docs/delivery.md");
    for (language, file) in [
        ("python", "verify.py"),
        ("javascript", "verify.mjs"),
        ("java", "Verify.java"),
    ] {
        let shown = format!("```{language}\n{}```", read(&format!("examples/verify/{file}")));
        assert!(
            documented.contains(&shown),
            "docs/delivery.md shows another {file}"
        );
    }
}
