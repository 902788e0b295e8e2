//! Scripts with the official SDKs, run by the Python of the test set-up.

use std::{path::PathBuf, process::Stdio};

use serde_json::Value;

/// The Python that has the SDKs.
fn interpreter() -> PathBuf {
    let python = crate::repository().join(".deps/venv/bin/python");
    assert!(
        python.is_file(),
        "no {}: run `make setup-test` first",
        python.display()
    );
    python
}

/// Runs `tests/python/<script>` with arguments; its last line on standard output is JSON.
pub async fn run(script: &str, arguments: &[&str]) -> Value {
    let path = crate::repository().join("tests/python").join(script);
    let output = tokio::process::Command::new(interpreter())
        .arg(path)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{script} ended with {}:\n{out}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let last = out.lines().last().unwrap_or_default();
    serde_json::from_str(last)
        .unwrap_or_else(|error| panic!("{error}: the last line of {script} is not JSON: {out}"))
}
