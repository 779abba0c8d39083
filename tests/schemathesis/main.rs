//! Schemathesis holds a running server against the document that it serves: valid requests are accepted, others refused, and every
//! answer is one that the document has. On both engines, with all roles in one process.
//!
//! `schemathesis.toml` beside this has its exceptions. `SCHEMATHESIS_SEED` and `SCHEMATHESIS_EXAMPLES` choose another run.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use harness::{ADMIN_TOKEN, Engine, Node, World, on_both_engines};
use serde_json::json;

on_both_engines!(the_server_keeps_to_its_document);

const PROGRAM: &str = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn libraries() -> PathBuf {
    let libraries = root().join("target/libraries/schemathesis");
    assert!(
        libraries.join("schemathesis").is_dir(),
        "Schemathesis is missing in target/libraries; this installs it and runs this: scripts/schemathesis.sh"
    );
    libraries
}

/// A key of an organization of its own.
async fn key(node: &Node) -> String {
    let request = reqwest::Client::new()
        .post(format!("{}/v1/organizations", node.url()))
        .bearer_auth(ADMIN_TOKEN)
        .json(&json!({"name": "what is tried", "tier": "unlimited"}));
    let made = request.send().await.expect("the request is answered");
    let made: serde_json::Value = made.json().await.expect("the answer is JSON");
    made["key"]["key"].as_str().expect("a key").to_owned()
}

async fn the_server_keeps_to_its_document(engine: Engine) {
    let own = root().join("tests/schemathesis");
    // One process that has all roles: there is one address to ask.
    let world = World::with(engine).prepare().await;
    let node: Arc<Node> = world.start_another("triggers").await;
    node.ready().await;
    let mut command = Command::new("python3");
    command
        .current_dir(&own)
        .args(["-c", PROGRAM, "--config-file", "schemathesis.toml", "run"])
        .arg(format!("{}/openapi.json", node.url()))
        .env(
            "PYTHONPATH",
            std::env::join_paths([libraries(), own.clone()]).expect("paths"),
        )
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_URL", node.url())
        .env("SCHEMATHESIS_KEY", key(&node).await)
        .env("SCHEMATHESIS_ADMIN_TOKEN", ADMIN_TOKEN)
        .stdin(Stdio::null());
    for (variable, option) in [
        ("SCHEMATHESIS_SEED", "--seed"),
        ("SCHEMATHESIS_EXAMPLES", "--max-examples"),
    ] {
        if let Some(value) = std::env::var_os(variable) {
            command.arg(option).arg(value);
        }
    }
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = run
        .await
        .expect("it runs")
        .expect("python3 is needed (on Debian: apt-get install python3)");
    let report = String::from_utf8_lossy(&output.stdout);
    println!("{report}");
    assert!(
        output.status.success(),
        "{report}\n{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        node.last_output()
    );
    // All operations were called, and none of them passed over but the document itself, which it has read.
    let document = world.get(&node, "/openapi.json").await.expect(200);
    let operations = harness::Operation::all(&document);
    let called = operations
        .iter()
        .filter(|operation| operation.path != "/openapi.json");
    let count = called.count();
    assert!(report.contains(&format!("Tested: {count}\n")), "{report}");
}
