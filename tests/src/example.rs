//! Programs of `examples/`, and how what they and the scripts print is read.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

/// Runs a program of the workspace to its end.
pub async fn run(program: &str, arguments: &[&str]) -> Output {
    to_its_end(Command::new(crate::process::built(program)).args(arguments)).await
}

/// As [`run`]; its last line on standard output is JSON.
pub async fn told(program: &str, arguments: &[&str]) -> Value {
    last_line(program, &run(program, arguments).await)
}

pub(crate) async fn to_its_end(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.unwrap()
}

pub(crate) fn last_line(program: &str, output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{program} ended with {}:\n{out}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let last = out.lines().last().unwrap_or_default();
    serde_json::from_str(last)
        .unwrap_or_else(|error| panic!("{error}: the last line of {program} is not JSON: {out}"))
}
