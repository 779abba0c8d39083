//! The commands that are clients of the API, as people and programs use them: through the real binary, against real
//! servers.

mod events;
mod failing;
mod keys;
mod subscriptions;

use std::{
    io::Write,
    process::{Output, Stdio},
    sync::Arc,
};

use harness::{Client, Ended, Node, Spec, World};
use serde_json::Value;

/// The command line, with an address and a key.
struct CommandLine {
    url: String,
    key: String,
}

impl CommandLine {
    fn of(world: &World, client: &Client) -> Self {
        Self::at(world.api(), &client.key)
    }

    fn at(node: &Arc<Node>, key: &str) -> Self {
        Self {
            url: node.url(),
            key: key.to_owned(),
        }
    }

    fn spec(&self, arguments: &[&str]) -> Spec {
        Spec {
            program: "triggers",
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            settings: vec![
                ("TRIGGERS_URL".to_owned(), self.url.clone()),
                ("TRIGGERS_API_KEY".to_owned(), self.key.clone()),
            ],
        }
    }

    /// Runs a command. Whatever it prints is for no terminal, and never holds the key.
    async fn run(&self, arguments: &[&str]) -> Ended {
        let ended = self.spec(arguments).run().await;
        for text in [&ended.out, &ended.err] {
            assert!(
                !text.contains('\u{1b}'),
                "{arguments:?} steers a terminal: {text}"
            );
            assert!(!text.contains('\r'), "{arguments:?} shows progress: {text}");
            assert!(!text.contains(&self.key), "{arguments:?} prints the key");
        }
        ended
    }

    /// What a command prints that must end well.
    async fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        ended.out
    }

    /// What a command that must end well prints with `--json`: a value a line, and nothing else anywhere.
    async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let ended = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        assert_eq!(ended.err, "", "{arguments:?}");
        values(&ended.out)
    }

    /// The one value of that.
    async fn object(&self, arguments: &[&str]) -> Value {
        let values = self.json(arguments).await;
        assert_eq!(values.len(), 1, "{arguments:?}: {values:?}");
        values.into_iter().next().expect("one value")
    }

    /// Runs a command that reads this on standard input.
    async fn fed(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.spec(arguments).command();
        let input = input.to_owned();
        let run = move || {
            let mut child = command.stdin(Stdio::piped()).spawn().expect("triggers starts");
            let mut pipe = child.stdin.take().expect("standard input is piped");
            let writing = std::thread::spawn(move || {
                // It may end before it has read everything.
                let _ = pipe.write_all(input.as_bytes());
            });
            let output = child.wait_with_output().expect("triggers ends");
            writing.join().expect("writing does not panic");
            output
        };
        tokio::task::spawn_blocking(run)
            .await
            .expect("running does not panic")
    }
}

/// The values of lines of JSON.
fn values(lines: &str) -> Vec<Value> {
    let value = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    lines.lines().map(value).collect()
}

/// A member that is a text.
fn text(value: &Value, member: &str) -> String {
    value[member]
        .as_str()
        .unwrap_or_else(|| panic!("{member} is missing: {value}"))
        .to_owned()
}
