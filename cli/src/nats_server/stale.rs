//! Servers left over from an earlier run on the same data folder: two on one store would destroy it.
//!
//! A process is ours if it runs with exactly our configuration file, so no file with a process id has to be
//! believed. Needs `/proc`, as on Linux. Called only while the folder's lock is held.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{LOOK_EVERY, NatsServerError, STOP_WITHIN};

/// How the server is told its configuration file.
pub(super) const CONFIG_FLAG: &str = "-c";

pub(super) async fn stop_servers_of(config_path: &Path) -> Result<(), NatsServerError> {
    for pid in servers_of(config_path) {
        tracing::warn!(pid, "stopping a nats-server left over from an earlier run");
        if !ends_after(Signal::SIGTERM, pid, config_path).await
            && !ends_after(Signal::SIGKILL, pid, config_path).await
        {
            return Err(NatsServerError::Stale { pid });
        }
    }
    Ok(())
}

fn servers_of(config_path: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| runs(*pid, config_path)).collect()
}

/// True for `<program> -c <config_path>` and nothing else; an ended process has no command line.
fn runs(pid: i32, config_path: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let mut arguments = line.split(|byte| *byte == 0).skip(1);
    arguments.next() == Some(CONFIG_FLAG.as_bytes())
        && arguments.next() == Some(config_path.as_os_str().as_bytes())
}

async fn ends_after(signal: Signal, pid: i32, config_path: &Path) -> bool {
    // The only failure that matters, not being allowed to, shows in that it does not end.
    let _ = kill(Pid::from_raw(pid), signal);
    let deadline = Instant::now() + STOP_WITHIN;
    while runs(pid, config_path) {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}
