//! Scripts with the official SDKs, run by the Python of the test set-up.

use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use crate::example::{last_line, to_its_end};

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
    let mut command = Command::new(interpreter());
    let output = to_its_end(command.arg(path).args(arguments)).await;
    last_line(script, &output)
}
