//! The integration of Zapier passes its own tests, which run it by Zapier's platform core, with a real deployment.

use std::process::Command;

use harness::{Engine, World};

use crate::program::{libraries, path, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_integration_of_zapier_passes_its_tests() {
    let libraries = libraries("zapier", "node_modules/zapier-platform-core");
    let world = World::start(Engine::Embedded).await;
    let client = world.organization().await;
    let mut command = Command::new("node");
    command
        .args(["--test", "test/integration.test.js"])
        .current_dir(path("examples/zapier"))
        .env("NODE_PATH", libraries.join("node_modules"))
        .env("TRIGGERS_URL", world.api().url())
        .env("TRIGGERS_KEY", &client.key);
    let printed = run(&mut command, b"");
    // All of them ran, and none was skipped.
    assert!(printed.contains("# tests 12"), "{printed}");
    assert!(printed.contains("# pass 12"), "{printed}");
}
