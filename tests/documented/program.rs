//! Programs in other languages: started with what they need, and what is missing is named with its remedy.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// A path of the repository.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// A directory of libraries that scripts/test.sh has installed under target.
#[track_caller]
pub fn libraries(name: &str, holds: &str) -> PathBuf {
    let directory = path("target/libraries").join(name);
    assert!(
        directory.join(holds).is_dir(),
        "{} is missing in {}; this installs it: scripts/test.sh -- --test documented",
        holds,
        directory.display()
    );
    directory
}

/// What becomes of a program that cannot be started.
#[track_caller]
fn missing(program: &str, error: &std::io::Error) -> ! {
    let package = match program {
        "node" => "nodejs",
        "java" | "javac" => "default-jdk-headless",
        other => other,
    };
    panic!("{program} is needed (on Debian: apt-get install {package}): {error}")
}

/// Starts a program; no `TRIGGERS_…` variable of the test's own environment reaches it.
#[track_caller]
pub fn start(command: &mut Command) -> Child {
    for (name, _) in std::env::vars_os() {
        let given = command.get_envs().any(|(set, _)| set == name);
        if name.to_string_lossy().starts_with("TRIGGERS_") && !given {
            command.env_remove(name);
        }
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let started = command.env("PYTHONDONTWRITEBYTECODE", "1").spawn();
    started.unwrap_or_else(|error| missing(&program, &error))
}

/// Runs a program with this on its standard input, to its end.
#[track_caller]
pub fn end_of(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(command);
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input)
        .expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// Runs a program that must succeed, with this on its standard input, and gives what it prints.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> String {
    let output = end_of(command, input);
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
