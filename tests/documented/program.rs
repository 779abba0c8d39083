//! Programs in other languages: started with what they need, and what is missing is named with its remedy.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
pub fn missing(program: &str, error: &std::io::Error) -> ! {
    let package = match program {
        "node" => "nodejs",
        "java" | "javac" => "default-jdk-headless",
        other => other,
    };
    panic!("{program} is needed (on Debian: apt-get install {package}): {error}")
}

/// Runs a program that must succeed, with this on its standard input, and gives what it prints.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> String {
    let started = command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = started.unwrap_or_else(|error| missing(&program, &error));
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input)
        .expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
