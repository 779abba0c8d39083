//! `triggers config`: the settings that are in force.

use harness::{Ended, Scratch, Spec};
use serde_json::{Value, json};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

async fn config(arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
    let spec = Spec {
        program: "triggers",
        arguments: std::iter::once("config")
            .chain(arguments.iter().copied())
            .map(str::to_owned)
            .collect(),
        settings: settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    };
    spec.run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_force_is_shown_with_where_it_is_from() {
    let ended = config(
        &["--json", "--retention-days", "7"],
        &[
            ("TRIGGERS_RETENTION_DAYS", "9"),
            ("TRIGGERS_LOG", "debug"),
            ("TRIGGERS_ADMIN_TOKEN", "a-token-that-nobody-sees"),
            ("TRIGGERS_SECRET_KEY", KEY),
            ("TRIGGERS_DATABASE_URL", "postgres://ada:the-word@db/events"),
            ("TRIGGERS_AMQP_URL", "amqp://ada:the-word@broker/%2f"),
            ("TRIGGERS_API_KEY", "trg_live_0000"),
            ("TRIGGERS_RETENTION_DAY", "9"),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "https://collector/in?token=the-word",
            ),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=the-word"),
        ],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for secret in ["the-word", "nobody-sees", KEY, "trg_live_0000"] {
        assert!(!ended.out.contains(secret), "{secret}: {ended:?}");
        assert!(!ended.err.contains(secret), "{secret}: {ended:?}");
    }
    let shown: Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!(shown["unknown"], json!(["TRIGGERS_RETENTION_DAY"]));
    let settings = shown["settings"].as_array().expect("settings");
    let setting = |name: &str| {
        let found = settings.iter().find(|setting| setting["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is missing: {shown}"))
    };
    for (name, value, from) in [
        ("TRIGGERS_RETENTION_DAYS", json!("7"), "flag"),
        ("TRIGGERS_LOG", json!("debug"), "environment"),
        ("TRIGGERS_SHUTDOWN_SECONDS", json!("30"), "default"),
        ("TRIGGERS_OPEN_SIGNUP", json!(null), "default"),
        ("TRIGGERS_EXTRA_CA_FILE", json!(null), "default"),
        ("TRIGGERS_ADMIN_TOKEN", json!("********"), "environment"),
        ("TRIGGERS_SECRET_KEY", json!("********"), "environment"),
        (
            "TRIGGERS_DATABASE_URL",
            json!("postgres://ada:********@db/events"),
            "environment",
        ),
        ("TRIGGERS_URL", json!("http://127.0.0.1:8080"), "default"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            json!("https://collector/in?********"),
            "environment",
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", json!("********"), "environment"),
        ("OTEL_TRACES_SAMPLER", json!("parentbased_always_on"), "default"),
    ] {
        let setting = setting(name);
        assert_eq!(
            (&setting["value"], &setting["from"]),
            (&value, &json!(from)),
            "{name}"
        );
    }
    assert_eq!(setting("TRIGGERS_RETENTION_DAYS")["flag"], "--retention-days");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_see_a_table_and_misspelt_settings() {
    let ended = config(&[], &[("TRIGGERS_RETENTION_DAY", "9")]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.starts_with("SETTING "), "{ended:?}");
    let row = ended.out.lines().find(|line| line.starts_with("TRIGGERS_LOG "));
    let cells: Vec<_> = row.unwrap_or_default().split_whitespace().collect();
    assert_eq!(cells, ["TRIGGERS_LOG", "info", "default"], "{ended:?}");
    assert!(!ended.out.contains('\u{1b}'), "{ended:?}");
    assert!(ended.err.contains("TRIGGERS_RETENTION_DAY is set"), "{ended:?}");
}

/// What stops a start is named here, too, and nothing is opened for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_is_named() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data").display().to_string();
    for (name, value) in [
        ("TRIGGERS_RETENTION_DAYS", "ten"),
        ("TRIGGERS_ADMIN_TOKEN", "short"),
        ("TRIGGERS_EXTRA_CA_FILE", "/nowhere/ca.pem"),
        ("TRIGGERS_ALLOW_PRIVATE_TARGETS", "localhost"),
        ("TRIGGERS_SECRET_KEY", "not base64"),
        ("TRIGGERS_LOG", "info,=="),
        ("TRIGGERS_QUEUES", "2"),
        ("TRIGGERS_DATABASE_URL", "mysql://x/y"),
        ("TRIGGERS_URL", "ftp://x"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://x"),
        ("TRIGGERS_CA_FILE", "/nowhere/ca.pem"),
    ] {
        let mut settings = vec![("TRIGGERS_DATA_DIR", data.as_str()), (name, value)];
        if name == "TRIGGERS_DATABASE_URL" {
            settings.extend([
                ("TRIGGERS_AMQP_URL", "amqp://127.0.0.1/%2f"),
                ("TRIGGERS_SECRET_KEY", KEY),
            ]);
        }
        let ended = config(&[], &settings).await;
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (Some(2), ""),
            "{name}: {ended:?}"
        );
        assert_eq!(ended.err.lines().count(), 1, "{name}: {ended:?}");
        assert!(ended.err.contains(name), "{ended:?}");
    }
    assert!(!std::path::Path::new(&data).exists());
}
