//! How commands fail: what they say, where, and with which exit code.

use std::io::Read;

use harness::{Authority, Engine, Flaw, World, free_port, on_both_engines};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::CommandLine;

on_both_engines!(problems_are_told);

async fn problems_are_told(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);

    // A key that is none, one of the right form, and one that may not.
    let wrong = line.run(&["keys", "list", "--key", "trg_live_0000"]).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert_eq!(wrong.out, "");
    assert!(wrong.err.starts_with("error: "), "{wrong:?}");
    assert!(wrong.err.contains("(unauthorized)"), "{wrong:?}");
    assert!(wrong.err.contains("\n  request "), "{wrong:?}");
    assert!(!wrong.err.contains("trg_live_0000"), "{wrong:?}");
    let made = client
        .post(
            "/v1/keys",
            &serde_json::json!({"name": "few", "scopes": ["events:write"]}),
        )
        .await
        .expect(201);
    let few = CommandLine::at(world.api(), made["key"].as_str().expect("a key"));
    let forbidden = few.run(&["keys", "list"]).await;
    assert_eq!(forbidden.code, Some(1), "{forbidden:?}");
    assert!(forbidden.err.contains("(forbidden)"), "{forbidden:?}");

    // Programs get the problem as it is, on standard error.
    let missing = "key_00000000000000000000000001";
    let not_found = line.run(&["keys", "rotate", missing, "--json"]).await;
    assert_eq!((not_found.code, not_found.out.as_str()), (Some(1), ""));
    let problem: Value = serde_json::from_str(&not_found.err).expect("a problem, and nothing else");
    assert_eq!(problem["code"], "not_found");

    // Every place that is wrong is named.
    let invalid = line
        .run(&[
            "keys",
            "create",
            "",
            "--scopes",
            "everything",
            "--expires-at",
            "soon",
        ])
        .await;
    assert_eq!(invalid.code, Some(1), "{invalid:?}");
    for place in ["\n  /name ", "\n  /scopes", "\n  /expires_at "] {
        assert!(invalid.err.contains(place), "{place}: {invalid:?}");
    }

    // What would be another path is a part of this one.
    let elsewhere = line.run(&["keys", "revoke", "../events?x#y", "--yes"]).await;
    assert_eq!(elsewhere.code, Some(1), "{elsewhere:?}");
    assert!(elsewhere.err.contains("(not_found)"), "{elsewhere:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_use_is_told_in_a_line() {
    let line = CommandLine {
        url: "http://127.0.0.1:9".to_owned(),
        key: "trg_live_x".to_owned(),
    };
    let said = |arguments: &'static [&str]| line.run(arguments);
    for (arguments, names) in [
        (&["keys", "list", "--limit", "0"][..], "--limit"),
        (&["keys", "list", "--limit", "2", "--all"], "--all"),
        (&["keys", "list", "--colour"], "--colour"),
        (&["keys", "make"], "make"),
        (&["keys", "create"], "<NAME>"),
        (
            &["keys", "rotate", "key_1", "--overlap-seconds", "day"],
            "--overlap-seconds",
        ),
        (&["keys", "list", "--url", "127.0.0.1:8080"], "TRIGGERS_URL"),
        (
            &["keys", "list", "--url", "http://user:word@127.0.0.1"],
            "TRIGGERS_URL",
        ),
        (&["keys", "list", "--key", "not\na key"], "TRIGGERS_API_KEY"),
        (&["keys", "list", "--key", ""], "TRIGGERS_API_KEY"),
        (&["keys", "list", "--ca-file", "/nowhere"], "TRIGGERS_CA_FILE"),
    ] {
        let ended = said(arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert_eq!(ended.out, "", "{arguments:?}");
        assert!(ended.err.starts_with("error: "), "{arguments:?}: {ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{arguments:?}: {ended:?}");
        assert!(ended.err.contains(names), "{arguments:?}: {ended:?}");
    }
    let mut keyless = line.spec(&["keys", "list"]);
    keyless.settings.retain(|(name, _)| name != "TRIGGERS_API_KEY");
    let ended = keyless.run().await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("TRIGGERS_API_KEY"), "{ended:?}");
    let help = line.run(&["keys", "create", "--help"]).await;
    assert_eq!(help.code, Some(0), "{help:?}");
    assert!(help.out.contains("TRIGGERS_API_KEY") && help.out.contains("--scopes"));
    assert!(!help.out.contains("trg_live_x"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_api_is_told() {
    let nobody = CommandLine {
        url: format!("http://127.0.0.1:{}", free_port()),
        key: "trg_live_x".to_owned(),
    };
    let ended = nobody.run(&["keys", "list"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(ended.err.contains("cannot be reached"), "{ended:?}");
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");

    // A web server of another kind.
    let app = axum::Router::new().fallback(|| async { (http::StatusCode::BAD_GATEWAY, "<html>") });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let serving = tokio::spawn(async { axum::serve(listener, app).await });
    let other = CommandLine {
        url: format!("http://{address}/base/"),
        key: "trg_live_x".to_owned(),
    };
    let ended = other.run(&["keys", "list"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(
        ended.err.contains("502") && ended.err.contains("/base/"),
        "{ended:?}"
    );
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_is_quiet() {
    let mut command = CommandLine {
        url: "http://127.0.0.1:9".to_owned(),
        key: "trg_live_x".to_owned(),
    }
    .spec(&["openapi"])
    .command();
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("triggers starts");
        let mut first = [0; 1];
        let mut out = child.stdout.take().expect("standard output is piped");
        out.read_exact(&mut first).expect("something is printed");
        drop(out);
        child.wait_with_output().expect("triggers ends")
    });
    let ended = ended.await.expect("running does not panic");
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_server_is_verified() {
    let world = World::start(Engine::Embedded).await;
    let client = world.organization().await;
    let authority = Authority::new();
    let ca_file = authority.file().display().to_string();
    // The API behind a proxy with TLS, as it is deployed.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let acceptor = authority.server(Flaw::None, &["http/1.1"]);
    let behind = world.api().url().replace("http://", "");
    let proxy = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let Ok(mut outside) = acceptor.accept(connection).await else {
                    return;
                };
                let mut inside = TcpStream::connect(behind).await.expect("the API listens");
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    let line = CommandLine {
        url: format!("https://localhost:{port}"),
        key: client.key.clone(),
    };
    let listed = line.json(&["keys", "list", "--ca-file", &ca_file]).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    let stranger = line.run(&["keys", "list"]).await;
    assert_eq!(stranger.code, Some(1), "{stranger:?}");
    assert!(stranger.err.contains("certificate"), "{stranger:?}");
    proxy.abort();
}
