//! A wrong setting stops the start with one line that names it and the fix; `--help` explains every one.

use harness::{Scratch, Spec};

/// Runs a program with these settings, which must stop its start, and gives the line that it prints.
async fn refused(program: &'static str, arguments: &[&str], settings: &[(&str, &str)]) -> String {
    let scratch = Scratch::new();
    let mut spec = Spec {
        program,
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        settings: vec![
            ("TRIGGERS_LISTEN".into(), "127.0.0.1:0".into()),
            (
                "TRIGGERS_DATA_DIR".into(),
                scratch.path().join("data").display().to_string(),
            ),
        ],
    };
    for (name, value) in settings {
        spec.settings.retain(|(given, _)| given != name);
        spec.settings.push(((*name).to_owned(), (*value).to_owned()));
    }
    let ended = spec.run().await;
    assert_eq!(ended.code, Some(2), "{program} {settings:?}: {ended:?}");
    let lines: Vec<_> = ended.err.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "{program} {settings:?}: {ended:?}");
    assert_eq!(ended.out, "", "{program} {settings:?}");
    lines[0].to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_is_one_line_that_names_it() {
    for (name, value) in [
        ("TRIGGERS_LISTEN", "localhost"),
        ("TRIGGERS_LISTEN", "127.0.0.1:99999"),
        ("TRIGGERS_LISTEN", "192.0.2.1:80"),
        ("TRIGGERS_RETENTION_DAYS", "0"),
        ("TRIGGERS_RETENTION_DAYS", "ten"),
        ("TRIGGERS_SHUTDOWN_SECONDS", "0"),
        ("TRIGGERS_OPEN_SIGNUP", "perhaps"),
        ("TRIGGERS_ADMIN_TOKEN", "short"),
        ("TRIGGERS_EXTRA_CA_FILE", "/nowhere/ca.pem"),
        ("TRIGGERS_EXTRA_CA_FILE", "/dev/null"),
        ("TRIGGERS_ALLOW_PRIVATE_TARGETS", "localhost"),
        ("TRIGGERS_ALLOW_TARGET_PORTS", "http"),
        ("TRIGGERS_SECRET_KEY", "not base64"),
        ("TRIGGERS_SECRET_KEY", "c2hvcnQ="),
        ("TRIGGERS_LOG", "info,=="),
        ("TRIGGERS_DATA_DIR", "/dev/null/data"),
        ("TRIGGERS_MAX_ATTEMPTS", "0"),
        ("TRIGGERS_QUEUES", "0"),
        ("TRIGGERS_QUEUES", "65"),
        ("TRIGGERS_QUEUES", "two"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:word@localhost"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        // The embedded engine has one.
        ("TRIGGERS_QUEUES", "2"),
    ] {
        let line = refused("triggers", &["serve"], &[(name, value)]).await;
        assert!(line.contains(name), "{name}={value}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_of_traces_is_named_where_there_is_a_collector() {
    let collector = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_HEADERS", "a-word"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a-word"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
    ] {
        for (program, arguments) in [("triggers", &["serve"][..]), ("ingest", &[]), ("worker", &[])] {
            let line = refused(program, arguments, &[collector, (name, value)]).await;
            assert!(line.contains(name), "{program} {name}={value}: {line}");
        }
    }
    let ratio = ("OTEL_TRACES_SAMPLER", "traceidratio");
    let share = ("OTEL_TRACES_SAMPLER_ARG", "half");
    let line = refused("api", &[], &[collector, ratio, share]).await;
    assert!(line.contains("OTEL_TRACES_SAMPLER_ARG"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_are_not_mixed() {
    let (database, amqp) = (
        ("TRIGGERS_DATABASE_URL", "postgres://127.0.0.1/none"),
        ("TRIGGERS_AMQP_URL", "amqp://127.0.0.1/%2f"),
    );
    for (program, arguments) in [
        ("triggers", &["serve"][..]),
        ("triggers", &["dev"]),
        ("ingest", &[]),
        ("worker", &[]),
        ("api", &[]),
    ] {
        let line = refused(program, arguments, &[database]).await;
        assert!(line.contains("TRIGGERS_AMQP_URL"), "{program}: {line}");
        let line = refused(program, arguments, &[amqp]).await;
        assert!(line.contains("TRIGGERS_DATABASE_URL"), "{program}: {line}");
        let line = refused(program, arguments, &[database, amqp]).await;
        assert!(line.contains("TRIGGERS_SECRET_KEY"), "{program}: {line}");
    }
    for program in ["ingest", "worker", "api"] {
        let line = refused(program, &[], &[]).await;
        assert!(line.contains("TRIGGERS_DATABASE_URL"), "{program}: {line}");
    }
    let key = (
        "TRIGGERS_SECRET_KEY",
        "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    );
    let line = refused(
        "ingest",
        &[],
        &[("TRIGGERS_DATABASE_URL", "mysql://x/y"), amqp, key],
    )
    .await;
    assert!(line.contains("TRIGGERS_DATABASE_URL"), "{line}");
    let line = refused(
        "ingest",
        &[],
        &[database, ("TRIGGERS_AMQP_URL", "http://x/"), key],
    )
    .await;
    assert!(line.contains("TRIGGERS_AMQP_URL"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn help_explains_every_setting() {
    const EVERYWHERE: [&str; 4] = [
        "TRIGGERS_LOG",
        "TRIGGERS_SHUTDOWN_SECONDS",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_TRACES_SAMPLER",
    ];
    const ENGINE: [&str; 6] = [
        "TRIGGERS_DATABASE_URL",
        "TRIGGERS_AMQP_URL",
        "TRIGGERS_SECRET_KEY",
        "TRIGGERS_QUEUE_PREFIX",
        "TRIGGERS_QUEUES",
        "TRIGGERS_MIGRATE",
    ];
    let cases: [(&str, &[&str], &[&str]); 5] = [
        ("ingest", &["--help"], &["TRIGGERS_LISTEN"]),
        (
            "worker",
            &["--help"],
            &[
                "TRIGGERS_LISTEN",
                "TRIGGERS_RETENTION_DAYS",
                "TRIGGERS_ALLOW_PRIVATE_TARGETS",
            ],
        ),
        (
            "api",
            &["--help"],
            &["TRIGGERS_LISTEN", "TRIGGERS_ADMIN_TOKEN", "TRIGGERS_OPEN_SIGNUP"],
        ),
        (
            "triggers",
            &["serve", "--help"],
            &["TRIGGERS_LISTEN", "TRIGGERS_DATA_DIR", "TRIGGERS_ADMIN_TOKEN"],
        ),
        (
            "triggers",
            &["dev", "--help"],
            &["TRIGGERS_LISTEN", "TRIGGERS_DATA_DIR"],
        ),
    ];
    for (program, arguments, own) in cases {
        let spec = Spec {
            program,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            settings: Vec::new(),
        };
        let ended = spec.run().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        for setting in EVERYWHERE.iter().chain(&ENGINE).chain(own) {
            assert!(
                ended.out.contains(setting),
                "{program}: {setting} is missing:\n{}",
                ended.out
            );
        }
    }
    let spec = Spec {
        program: "triggers",
        arguments: vec!["--help".into()],
        settings: Vec::new(),
    };
    let ended = spec.run().await;
    for command in ["dev", "serve", "migrate"] {
        assert!(ended.out.contains(command), "{}", ended.out);
    }
}
