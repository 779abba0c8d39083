//! The commands of docs/api.md, pasted one after another as a newcomer would, answer what is shown below them.

use std::{path::Path, process::Command};

use harness::{Node, Scratch, Spec};
use serde_json::Value;

use crate::program::{path, run};

/// A block of the page that is run, and the JSON that is shown as its answer.
struct Step {
    commands: String,
    answer: Option<Value>,
}

/// The blocks of commands, in order.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    // What follows a block's first line, up to its end; before it comes what is between blocks.
    let mut parts = page.split("```");
    let mut text = parts.next();
    while let Some(between) = text {
        let Some(block) = parts.next() else { break };
        let (language, block) = block
            .split_once('\n')
            .expect("a block begins with a line of its own");
        let follows = between.trim().is_empty();
        match language {
            "sh" => steps.push(Step {
                commands: block.to_owned(),
                answer: None,
            }),
            "json" if follows => {
                let step = steps.last_mut().expect("an answer is one to a command");
                let answer = serde_json::from_str(block);
                step.answer = Some(answer.unwrap_or_else(|error| panic!("{error} in {block}")));
            }
            _ => {}
        }
        text = parts.next();
    }
    steps
}

/// Where an answer differs from what is shown: `…` in a text stands for anything, and as a member for further members.
fn difference(at: &str, shown: &Value, answer: &Value) -> Option<String> {
    match (shown, answer) {
        (Value::Object(shown), Value::Object(answer)) => {
            let open = shown.contains_key("…");
            let more = answer.keys().find(|name| !open && !shown.contains_key(*name));
            if let Some(name) = more {
                return Some(format!("{at}/{name} is not shown"));
            }
            let members = shown.iter().filter(|(name, _)| *name != "…");
            let mut differences = members.filter_map(|(name, value)| match answer.get(name) {
                Some(given) => difference(&format!("{at}/{name}"), value, given),
                None => Some(format!("{at}/{name} is not answered")),
            });
            differences.next()
        }
        (Value::Array(shown), Value::Array(answer)) if shown.len() == answer.len() => {
            let mut pairs = shown.iter().zip(answer).enumerate();
            pairs.find_map(|(place, (shown, answer))| difference(&format!("{at}/{place}"), shown, answer))
        }
        (Value::String(shown), Value::String(answer)) => {
            let fits = match shown.split_once('…') {
                Some((begins, ends)) => answer.starts_with(begins) && answer.ends_with(ends),
                None => shown == answer,
            };
            (!fits).then(|| format!("{at} is shown as {shown}, and is {answer}"))
        }
        (shown, answer) => (shown != answer).then(|| format!("{at} is shown as {shown}, and is {answer}")),
    }
}

/// `triggers dev`, as the page says that it is started.
async fn dev(directory: &Path) -> std::sync::Arc<Node> {
    let node = Node::start(Spec {
        program: "triggers",
        arguments: vec!["dev".into()],
        settings: vec![
            ("TRIGGERS_LISTEN".into(), "127.0.0.1:0".into()),
            (
                "TRIGGERS_DATA_DIR".into(),
                directory.join("triggers-data").display().to_string(),
            ),
        ],
    })
    .await;
    node.ready().await;
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_page_do_what_it_says() {
    let page = std::fs::read_to_string(path("docs/api.md")).expect("the page is there");
    let scratch = Scratch::new();
    let node = dev(scratch.path()).await;
    // Each block has what those before it have exported.
    let mut exported = String::new();
    let mut answers = 0;
    for step in steps(&page) {
        let commands = step.commands.replace("http://127.0.0.1:8080", &node.url());
        let mut shell = Command::new("bash");
        shell
            .current_dir(scratch.path())
            .args(["-euo", "pipefail", "-c", &format!("{exported}{commands}")]);
        let printed = run(&mut shell, b"");
        for line in commands.lines().filter(|line| line.starts_with("export ")) {
            exported.push_str(line);
            exported.push('\n');
        }
        if let Some(shown) = step.answer {
            let answer = serde_json::from_str(&printed)
                .unwrap_or_else(|error| panic!("{commands} answers {printed}: {error}"));
            if let Some(difference) = difference("", &shown, &answer) {
                panic!("{difference}\n{commands}answers\n{answer:#}");
            }
            answers += 1;
        }
    }
    assert!(answers >= 10, "the page shows {answers} answers");
}

#[test]
fn a_difference_is_seen() {
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let shown = json(r#"{"id": "evt_…", "n": [1, {"…": "…"}], "none": null}"#);
    let answered = |text: &str| difference("", &shown, &json(text));
    assert_eq!(
        answered(r#"{"id": "evt_1", "n": [1, {"a": 1}], "none": null}"#),
        None
    );
    for other in [
        r#"{"id": "sub_1", "n": [1, {}], "none": null}"#,
        r#"{"id": "evt_1", "n": [2, {}], "none": null}"#,
        r#"{"id": "evt_1", "n": [1], "none": null}"#,
        r#"{"id": "evt_1", "n": [1, {}], "none": 0}"#,
        r#"{"id": "evt_1", "n": [1, {}]}"#,
        r#"{"id": "evt_1", "n": [1, {}], "none": null, "more": 1}"#,
    ] {
        assert!(answered(other).is_some(), "{other}");
    }
}
