//! Servers left over from an earlier run on the same data folder: two on one store would destroy it.
//!
//! A server holds a lock for as long as it lives: it inherits the locked file as its standard input, so the
//! lock is there before its first instruction and ends with it, however it ends. A process is ours to stop
//! if it runs with exactly our configuration file, so no file with a process id has to be believed; one
//! that has only just been started does not show its command line yet, which is why that alone proves
//! nothing. Needs `/proc`, as on Linux. Called only while the folder's own lock is held.

use std::fs::{self, File, TryLockError};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{LOOK_EVERY, NatsServerError, STOP_WITHIN, folder::DataFolder};

/// How the server is told its configuration file.
pub(super) const CONFIG_FLAG: &str = "-c";

/// Stops every server of the folder; gives the lock that the next one is to inherit.
pub(super) async fn stop_servers_of(folder: &DataFolder) -> Result<File, NatsServerError> {
    let (path, config_path) = (folder.server_lock_path(), folder.config_path());
    let alive = folder.open_server_lock()?;
    let deadline = Instant::now() + STOP_WITHIN;
    loop {
        stop_visible_servers_of(&config_path).await?;
        match alive.try_lock() {
            Ok(()) => return Ok(alive),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(TryLockError::WouldBlock) => return Err(NatsServerError::StaleUnseen { path }),
            Err(TryLockError::Error(source)) => {
                let action = "lock";
                return Err(NatsServerError::Folder {
                    action,
                    path,
                    source,
                });
            }
        }
    }
}

async fn stop_visible_servers_of(config_path: &Path) -> Result<(), NatsServerError> {
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
