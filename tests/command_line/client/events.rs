//! `triggers events`.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
    sync::mpsc,
    time::Duration,
};

use harness::{Client, Engine, Link, Proxy, Scratch, World, eventually, on_both_engines};
use serde_json::{Value, json};

use super::{CommandLine, text, values};

on_both_engines!(
    an_event_is_sent_and_looked_up,
    many_are_sent_from_a_file,
    what_is_over_the_limit_is_sent_later,
    an_answer_that_is_lost_sends_nothing_twice,
    a_pipe_that_stays_open_is_sent_as_it_comes,
    events_are_followed_over_a_break,
);

const SOON: Duration = Duration::from_secs(20);

/// A command that runs on, and the lines that it prints.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(line: &CommandLine, arguments: &[&str]) -> Self {
        let mut command = line.spec(arguments).command();
        let mut child = command.stdin(Stdio::piped()).spawn().expect("triggers starts");
        let out = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    fn next(&self) -> Value {
        let line = self.lines.recv_timeout(SOON).expect("a line in time");
        serde_json::from_str(&line).expect("JSON")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The payloads of all events of a type, oldest first, once there are so many.
async fn stored(client: &Client, event_type: &str, count: usize) -> Vec<Value> {
    let what = format!("{count} events of {event_type} are stored");
    eventually(&what, SOON, async || {
        let list = format!("/v1/events?type={event_type}&limit=1000");
        let page = client.get(&list).await.expect(200);
        let events = page["data"].as_array().cloned().unwrap_or_default();
        if events.len() < count {
            return Err(format!("{} are", events.len()));
        }
        Ok(events
            .iter()
            .rev()
            .map(|event| event["payload"].clone())
            .collect())
    })
    .await
}

async fn an_event_is_sent_and_looked_up(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    let payload = r#"{"large": 1.0e999, "text": "\u001b[2J"}"#;
    let sent = line
        .object(&[
            "events",
            "send",
            "user.created",
            "--payload",
            payload,
            "--dedup-id",
            "one",
            "--source",
            "here",
        ])
        .await;
    assert_eq!(
        (&sent["status"], &sent["duplicate"]),
        (&json!("accepted"), &json!(false))
    );
    let id = text(&sent, "id");
    let again = line
        .fed(
            &[
                "events",
                "send",
                "user.created",
                "--payload",
                "-",
                "--dedup-id",
                "one",
            ],
            payload,
        )
        .await;
    assert!(again.status.success(), "{again:?}");
    let again = line.ok(&["events", "get", &id, "--json"]).await;
    // The payload is as it was sent, byte for byte: no number is read.
    assert!(again.contains(payload), "{again}");
    assert_eq!(again.lines().count(), 1);

    let shown = line.ok(&["events", "get", &id]).await;
    for part in [payload, "source", "here", "SUBSCRIPTION ", "pending"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let scratch = Scratch::new();
    let file = scratch.path().join("payload.json");
    std::fs::write(&file, "[1,\n 2]\n").expect("a file can be written");
    let from_file = format!("@{}", file.display());
    let second = line
        .object(&["events", "send", "user.left", "--payload", &from_file])
        .await;
    client.event_becomes(&text(&second, "id"), "pending").await;
    // White space within a payload does not break a line.
    let listed = line
        .json(&["events", "list", "--type", "user.left", "--limit", "9"])
        .await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["payload"], json!([1, 2]));
    let table = line.ok(&["events", "list", "--type", "user.created"]).await;
    assert!(table.contains(payload), "{table}");
    let none = line.run(&["events", "list", "--type", "no.such"]).await;
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""), "{none:?}");

    for (arguments, names) in [
        (&["events", "send", "a", "--payload", "{broken"][..], "--payload"),
        (&["events", "send", "a", "--payload", "@/nowhere"], "/nowhere"),
        (&["events", "send", "a"], "--payload"),
        (&["events", "send"], "<TYPE>"),
        (&["events", "send", "a", "--from", "-"], "--from"),
        (&["events", "send", "--from", "/nowhere"], "/nowhere"),
    ] {
        let wrong = line.run(arguments).await;
        assert_eq!(wrong.code, Some(2), "{arguments:?}: {wrong:?}");
        assert!(wrong.err.contains(names), "{arguments:?}: {wrong:?}");
    }
    let refused = line
        .run(&["events", "send", "triggers.mine", "--payload", "1"])
        .await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("\n  /type "), "{refused:?}");
    let missing = line
        .run(&["events", "get", "evt_00000000000000000000000001"])
        .await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.err.contains("(not_found)"), "{missing:?}");
}

async fn many_are_sent_from_a_file(engine: Engine) {
    use std::fmt::Write;

    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    let scratch = Scratch::new();
    let file = scratch.path().join("events.ndjson");
    let mut text = String::new();
    for number in 0..2_300 {
        writeln!(text, "{{\"type\":\"import\",\"payload\":{number}}}\n").expect("a string takes it");
    }
    text.push_str(
        "{\"type\":\"import\"}\nnot JSON\n{\"type\":\"import\",\"payload\":2300,\"dedup_id\":\"mine\"}",
    );
    std::fs::write(&file, &text).expect("a file can be written");
    let file = file.display().to_string();
    let arguments = ["events", "send", "--from", &file, "--dedup-prefix", "run-1"];

    let ended = line.run(&arguments).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(ended.out, "2301 accepted, 2 refused");
    assert!(ended.err.contains("line 4601: "), "{ended:?}");
    assert!(ended.err.contains("/payload is required"), "{ended:?}");
    assert!(ended.err.contains("line 4602: "), "{ended:?}");
    let last_seen = eventually("all are stored", SOON, async || {
        let page = client.get("/v1/events?type=import&limit=1").await.expect(200);
        if page["data"][0]["payload"] == 2300 {
            Ok(page)
        } else {
            Err(page.to_string())
        }
    })
    .await;
    assert_eq!(last_seen["data"][0]["dedup_id"], "mine");

    // Once more: every one is known already, and says so.
    let again = line.run(&[&arguments[..], &["--json"]].concat()).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    let results = values(&again.out);
    assert_eq!(results.len(), 2_303);
    let of_line = |number: u64| {
        let found = results.iter().find(|result| result["line"] == number);
        found.unwrap_or_else(|| panic!("line {number} is missing"))
    };
    assert_eq!(of_line(1)["status"], "accepted");
    assert_eq!(of_line(4602)["status"], "refused");
    assert_eq!(of_line(4602)["problem"]["code"], "invalid_json");
    let all = line.json(&["events", "list", "--type", "import", "--all"]).await;
    let mut payloads: Vec<_> = all
        .iter()
        .map(|event| event["payload"].as_u64().expect("a number"))
        .collect();
    payloads.reverse();
    assert_eq!(
        payloads,
        (0..=2300).collect::<Vec<_>>(),
        "each once, in the file's order"
    );
}

/// The tier free takes a hundred at once, and then one every six tenths of a second.
async fn what_is_over_the_limit_is_sent_later(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization_of("free").await;
    let line = CommandLine::of(&world, &client);
    let lines: Vec<_> = (0..103)
        .map(|number| format!(r#"{{"type":"slow","payload":{number}}}"#))
        .collect();
    let input = lines.join("\n");
    let sent = line.fed(&["events", "send", "--from", "-"], &input).await;
    assert!(sent.status.success(), "{sent:?}");
    let out = String::from_utf8_lossy(&sent.stdout);
    assert_eq!(out, "103 accepted, 0 refused\n");
    assert!(
        String::from_utf8_lossy(&sent.stderr).contains("(rate_limited)"),
        "{sent:?}"
    );
    let payloads = stored(&client, "slow", 103).await;
    assert_eq!(payloads, (0..103).map(Value::from).collect::<Vec<_>>());

    // Patience has an end.
    let input = "{\"type\":\"slow\",\"payload\":1}\n".repeat(101);
    let given_up = line
        .fed(&["events", "send", "--from", "-", "--give-up-after", "0"], &input)
        .await;
    assert_eq!(given_up.status.code(), Some(1), "{given_up:?}");
    let err = String::from_utf8_lossy(&given_up.stderr);
    assert!(err.lines().any(|line| line.starts_with("error: ")), "{err}");
    assert!(err.contains("rate_limited"), "{err}");
}

async fn an_answer_that_is_lost_sends_nothing_twice(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let target = world.api().url().replace("http://", "");
    let proxy = Proxy::start(target.parse().expect("an address")).await;
    let line = CommandLine {
        url: format!("http://{}", proxy.address()),
        key: client.key.clone(),
    };
    let mut running = Running::start(&line, &["events", "send", "--from", "-", "--json"]);
    let mut pipe = running.child.stdin.take().expect("standard input is piped");
    writeln!(pipe, r#"{{"type":"lost","payload":0}}"#).expect("it reads");
    assert_eq!(running.next()["line"], 1);
    // The next one arrives, and nobody hears of it.
    proxy.set(Link::HalfOpen);
    writeln!(pipe, r#"{{"type":"lost","payload":1}}"#).expect("it reads");
    assert_eq!(stored(&client, "lost", 2).await, [json!(0), json!(1)]);
    proxy.set(Link::Reset);
    eventually("the connection is ended", SOON, async || {
        let ended = proxy.ended();
        if ended > 0 { Ok(()) } else { Err(String::new()) }
    })
    .await;
    proxy.set(Link::Open);
    assert_eq!(running.next()["line"], 2);
    writeln!(pipe, r#"{{"type":"lost","payload":2}}"#).expect("it reads");
    assert_eq!(running.next()["line"], 3);
    drop(pipe);
    let ended = running.child.wait().expect("it ends");
    assert!(ended.success(), "{ended}");
    let payloads = stored(&client, "lost", 3).await;
    assert_eq!(payloads, [json!(0), json!(1), json!(2)], "each once");
}

async fn a_pipe_that_stays_open_is_sent_as_it_comes(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    let mut running = Running::start(&line, &["events", "send", "--from", "-", "--json"]);
    let mut pipe = running.child.stdin.take().expect("standard input is piped");
    for number in 1..4 {
        writeln!(pipe, r#"{{"type":"piped","payload":{number}}}"#).expect("it reads");
        let result = running.next();
        assert_eq!(
            (&result["line"], &result["status"]),
            (&json!(number), &json!("accepted"))
        );
    }
    drop(pipe);
    assert!(running.child.wait().expect("it ends").success());
}

async fn events_are_followed_over_a_break(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let target = world.api().url().replace("http://", "");
    let proxy = Proxy::start(target.parse().expect("an address")).await;
    let line = CommandLine {
        url: format!("http://{}", proxy.address()),
        key: client.key.clone(),
    };
    let before = client.event("tail.0").await;
    client.event_becomes(&before, "pending").await;
    let arguments = ["events", "tail", "--type", "tail.*", "--after", &before, "--json"];
    let mut tail = Running::start(&line, &[&arguments[..], &["--count", "4"]].concat());
    client.event("other").await;
    for number in 1..3 {
        client.event(&format!("tail.{number}")).await;
        assert_eq!(tail.next()["type"], format!("tail.{number}"));
    }
    // What comes during a break is shown after it, and nothing twice.
    proxy.set(Link::Refusing);
    let missed = client.event("tail.3").await;
    client.event_becomes(&missed, "pending").await;
    proxy.set(Link::Open);
    assert_eq!(tail.next()["id"], missed.as_str());
    client.event("tail.4").await;
    assert_eq!(tail.next()["type"], "tail.4");
    assert!(tail.child.wait().expect("it ends after four").success());

    // For people a line each.
    let shown = line
        .ok(&[
            "events", "tail", "--after", &before, "--type", "tail.**", "--count", "1",
        ])
        .await;
    assert!(shown.contains("  tail.1  {\"of\":\"tail.1\"}"), "{shown}");
    let gone = line
        .run(&["events", "tail", "--after", "evt_00000000000000000000000001"])
        .await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.err.contains("(not_found)"), "{gone:?}");

    // It ends quietly once nobody reads.
    let mut quiet = line
        .spec(&["events", "tail", "--after", &before, "--json"])
        .command()
        .spawn()
        .expect("triggers starts");
    drop(quiet.stdout.take());
    let ended = tokio::task::spawn_blocking(move || quiet.wait_with_output());
    let ended = ended.await.expect("waiting does not panic").expect("it ends");
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}
