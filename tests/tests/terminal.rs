//! At a terminal, where people are: every other test reads through pipes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

/// Runs the binary with both outputs on a terminal that Python's standard library makes.
fn at_a_terminal(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    const SPAWN: &str = "import os, pty, sys\n\
        status = pty.spawn(sys.argv[1:])\n\
        sys.exit(os.waitstatus_to_exitcode(status))";
    Command::new("python3")
        .args(["-c", SPAWN])
        .arg(seatbelt_tests::binary())
        .args(arguments)
        .env_remove("NO_COLOR")
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn a_command_at_a_terminal_says_what_it_says_through_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("seatbelt.toml");
    std::fs::write(&config, "[nats]\ndata_dir = \"data\"\n").unwrap();
    let arguments = ["audit", "verify", "--config", config.to_str().unwrap()];
    for environment in [&[][..], &[("NO_COLOR", "1")]] {
        let output = at_a_terminal(&arguments, environment);
        let shown = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(shown.contains("no ledger was ever kept in"), "{shown}");
        assert!(!shown.contains("tracing-subscriber"), "{shown}");
    }
}
