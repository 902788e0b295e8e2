//! Ends the server when this process ends without doing so itself, as after `kill -9`.
//!
//! A shell waits on a pipe that only we hold open. Setting a parent-death signal would need unsafe code and
//! is bound to the thread that forked. Where no shell can be started the guard is absent with a warning, and
//! the next start on the data folder stops the server (see `stale`).

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Waits for the end of the pipe; then, if the number still belongs to our server, asks it to stop.
const SCRIPT: &str = r#"
while read -r _; do :; done
case "$(tr '\0' ' ' < "/proc/$1/cmdline" 2>/dev/null)" in
  *"$2"*) kill -TERM "$1" ;;
esac
"#;

/// Where `tr` is; the rest of our environment is no business of a shell.
const SHELL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

#[derive(Debug)]
pub(super) struct OrphanGuard(Option<Child>);

impl OrphanGuard {
    pub(super) fn over(pid: Option<u32>, config_path: &Path) -> Self {
        let Some(pid) = pid else { return Self(None) };
        let spawned = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "seatbelt-orphan-guard", &pid.to_string()])
            .arg(config_path)
            .env_clear()
            .env("PATH", SHELL_PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        if let Err(error) = &spawned {
            tracing::warn!(%error, "nats-server would outlive a killed seatbelt: no shell to watch over it");
        }
        Self(spawned.ok())
    }

    /// Ends the watch; to be called before the server is reaped.
    pub(super) fn dismiss(&mut self) {
        if let Some(mut shell) = self.0.take() {
            // The only failure is that it has ended already.
            let _ = shell.kill();
            let _ = shell.wait();
        }
    }

    #[cfg(test)]
    pub(super) fn pid(&self) -> Option<u32> {
        self.0.as_ref().map(Child::id)
    }

    /// What the end of this process does to the guard.
    #[cfg(test)]
    pub(super) fn lose_owner(&mut self) {
        drop(self.0.as_mut().and_then(|shell| shell.stdin.take()));
    }
}
