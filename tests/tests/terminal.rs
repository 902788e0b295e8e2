//! At a terminal, where people are, and where nothing that is said can be written: every other test reads through pipes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    net::TcpListener,
    process::{Command, Output},
};

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
    fs::write(&config, "[nats]\ndata_dir = \"data\"\n").unwrap();
    let arguments = ["audit", "verify", "--config", config.to_str().unwrap()];
    for environment in [&[][..], &[("NO_COLOR", "1")]] {
        let output = at_a_terminal(&arguments, environment);
        let shown = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(shown.contains("no ledger was ever kept in"), "{shown}");
        assert!(!shown.contains("tracing-subscriber"), "{shown}");
    }
}

/// A disk that is full, or a reader that went away: what cannot be logged is lost, and nothing else.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("seatbelt.toml");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let text = format!(
        "[nats]\ndata_dir = \"data\"\n[gateway]\nlisten = \"{listen}\"\nmetrics_listen = \"127.0.0.1:0\"\n"
    );
    fs::write(&config, text).unwrap();
    let ended = Command::new(seatbelt_tests::binary())
        .arg("up")
        .arg("--config")
        .arg(&config)
        .env("SEATBELT__NATS__SERVER", seatbelt_tests::nats::program())
        .env("SEATBELT_LOG", "trace")
        .stderr(File::options().write(true).open("/dev/full").unwrap())
        .status()
        .unwrap();
    assert_eq!(ended.code(), Some(1), "an error, and no panic");
}
