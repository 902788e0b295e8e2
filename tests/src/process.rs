//! A child process: its output is kept, and it is killed by its id when dropped.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::{PATIENCE, until};

/// Most log text kept of one process.
const LOG_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The binary under test.
pub(crate) fn seatbelt() -> PathBuf {
    built("seatbelt")
}

/// A program of the workspace, beside the running test's own.
pub(crate) fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().map(|folder| folder.join(name));
    found
        .take(4)
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no binary `{name}` above {}: run `cargo build --workspace --bins` first",
                own.display()
            )
        })
}

/// A running child.
pub(crate) struct Process {
    child: Child,
    // locked so that a process may be shared between tasks
    lines: Mutex<mpsc::Receiver<String>>,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// Starts a program and keeps what it writes.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let piped = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = piped
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let log = Arc::default();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        let kept = Arc::clone(&log);
        std::thread::spawn(move || keep(stderr, &kept));
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let read = BufReader::new(stdout).lines().map_while(Result::ok);
            read.for_each(|line| drop(sender.send(line)));
        });
        let lines = Mutex::new(lines);
        Self { child, lines, log }
    }

    /// The next line on standard output, or the log where the process ends without one.
    pub(crate) async fn line(&mut self) -> Result<String, String> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Ok(line) = self.lines.get_mut().unwrap().try_recv() {
                return Ok(line);
            }
            if self.status().is_some() {
                return Err(self.log_when_ended().await);
            }
            if std::time::Instant::now() > deadline {
                return Err(format!(
                    "no line on standard output in {PATIENCE:?}:\n{}",
                    self.log()
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Everything it wrote to standard error, once it has ended.
    async fn log_when_ended(&self) -> String {
        // the reading thread drops its share at the end of the pipe
        until("the log of an ended process is read", || async {
            (Arc::strong_count(&self.log) == 1).then_some(())
        })
        .await;
        self.log()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.ended_within(PATIENCE).await
    }

    /// As [`Process::ended`], with another patience.
    pub(crate) async fn ended_within(&mut self, within: Duration) -> ExitStatus {
        let deadline = std::time::Instant::now() + within;
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "process {} does not end:\n{}",
                self.pid(),
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- log of process {}\n{}", self.pid(), self.log());
        }
    }
}

fn keep(from: impl Read, log: &Mutex<String>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let mut log = log.lock().unwrap();
        if log.len() < LOG_BYTES_MAX {
            log.push_str(&line);
            log.push('\n');
        }
    }
}

/// The process whose id a file holds, where it is alive.
pub(crate) fn alive(pid_file: &Path) -> Option<Pid> {
    let pid = std::fs::read_to_string(pid_file)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    is_alive(pid).then(|| Pid::from_raw(pid))
}

/// Whether a process runs; a dead one that nobody has waited for does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| {
        let state = stat.rsplit(") ").next();
        state.is_some_and(|state| !state.starts_with('Z'))
    })
}
