//! `triggers subscriptions`, and `triggers replay`.

use harness::{Engine, Receiver, Reply, Scratch, World, on_both_engines};
use serde_json::json;

use super::{CommandLine, text};

on_both_engines!(
    a_subscription_from_its_making_to_its_end,
    a_test_says_what_came_back,
    a_replay_is_waited_for,
);

async fn a_subscription_from_its_making_to_its_end(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    let receiver = Receiver::start().await;
    let made = line
        .object(&[
            "subscriptions",
            "create",
            "--target",
            &receiver.url("/hook"),
            "--event-types",
            "order.*,user.created",
            "--header",
            "x-token=a=b",
            "--metadata",
            "team=one",
            "--max-in-flight",
            "3",
            "--retry-schedule-seconds",
            "1,2",
        ])
        .await;
    let id = text(&made, "id");
    let secret = text(&made, "secret");
    assert_eq!(made["event_types"], json!(["order.*", "user.created"]));
    assert_eq!(made["headers"], json!({"x-token": "********"}));
    assert_eq!(made["retry_schedule_seconds"], json!([1, 2]));

    line.ok(&["events", "send", "order.placed", "--payload", r#"{"n":1.0}"#])
        .await;
    let webhooks = receiver.wait_for("/hook", 1).await;
    webhooks[0].verify(&secret).expect("signed by the secret");
    assert_eq!(webhooks[0].header("x-token"), "a=b");

    // What is not said stays as it is; a file says what there is no option for.
    let scratch = Scratch::new();
    let file = scratch.path().join("terms.json");
    std::fs::write(
        &file,
        r#"{"rate_limit_per_second": null, "description": "of the file"}"#,
    )
    .expect("a file can be written");
    let file = file.display().to_string();
    let updated = line
        .object(&[
            "subscriptions",
            "update",
            &id,
            "--from",
            &file,
            "--description",
            "for orders",
            "--metadata",
            "team=",
        ])
        .await;
    assert_eq!(updated["description"], "for orders");
    assert_eq!(updated["metadata"], json!({}));
    assert_eq!(updated["max_in_flight"], 3);
    assert!(updated.get("secret").is_none(), "{updated}");

    let disabled = line.object(&["subscriptions", "disable", &id]).await;
    assert_eq!(disabled["enabled"], false);
    let enabled = line.object(&["subscriptions", "enable", &id]).await;
    assert_eq!(enabled["enabled"], true);

    // For people: the new secret once, and never again.
    let rotated = line
        .run(&["subscriptions", "rotate-secret", &id, "--overlap-seconds", "0"])
        .await;
    assert_eq!(rotated.code, Some(0), "{rotated:?}");
    assert!(rotated.err.contains("this once"), "{rotated:?}");
    let new = rotated.out.lines().find_map(|line| line.strip_prefix("secret"));
    let new = new.map(str::trim).unwrap_or_default();
    assert!(new.starts_with("whsec_") && new != secret, "{rotated:?}");
    let shown = line.ok(&["subscriptions", "show", &id]).await;
    assert!(shown.contains("for orders"), "{shown}");
    assert!(!shown.contains("whsec_"), "{shown}");
    let stats = line.object(&["subscriptions", "stats", &id]).await;
    assert_eq!(stats["subscription"], made["id"]);
    let table = line.ok(&["subscriptions", "list"]).await;
    assert!(table.starts_with("ID "), "{table}");
    assert!(table.contains(&receiver.url("/hook")), "{table}");

    line.ok(&["subscriptions", "delete", &id, "--yes"]).await;
    let gone = line.run(&["subscriptions", "show", &id]).await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.err.contains("(not_found)"), "{gone:?}");
    let nothing = line.run(&["subscriptions", "update", &id]).await;
    assert_eq!(nothing.code, Some(2), "{nothing:?}");
}

async fn a_test_says_what_came_back(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    let receiver = Receiver::start().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    let passed = line.object(&["subscriptions", "test", &subscription.id]).await;
    assert_eq!(passed["status"], "delivered");
    receiver.always("/hook", Reply::Status(418));
    let failed = line.run(&["subscriptions", "test", &subscription.id]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.out.contains("418"), "{failed:?}");
    assert!(failed.err.contains("the attempt failed"), "{failed:?}");
}

async fn a_replay_is_waited_for(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    let receiver = Receiver::start().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    for number in 0..5 {
        let event = client.event(&format!("order.{number}")).await;
        client.event_becomes(&event, "delivered").await;
    }
    let of = ["replay", subscription.id.as_str(), "--statuses", "delivered"];
    let replay = line
        .object(&[&of[..], &["--event-types", "order.1,order.2"]].concat())
        .await;
    assert_eq!(replay["status"], "done", "{replay}");
    assert_eq!(replay["opened"], 2, "{replay}");
    receiver.wait_for("/hook", 7).await;

    let begun = line.object(&[&of[..], &["--no-wait"]].concat()).await;
    assert_eq!(begun["subscription"], subscription.id.as_str());
    let table = line.ok(&of).await;
    let is_done = |line: &str| line.split_whitespace().eq(["status", "done"]);
    assert!(table.lines().any(is_done), "{table}");

    let wrong = line
        .run(&[
            "replay",
            &subscription.id,
            "--statuses",
            "pending",
            "--since",
            "now",
        ])
        .await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.err.contains("\n  /statuses"), "{wrong:?}");
    assert!(wrong.err.contains("\n  /since "), "{wrong:?}");
}
