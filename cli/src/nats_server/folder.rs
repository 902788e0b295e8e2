//! The data folder: who has it, the password, and the files by which others find the server.
//!
//! The lock is on an open file, so it ends with the process however that ends; the process id written into
//! the file is for the error message only.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use seatbelt_bus::NatsRole;

use super::{NatsServerError, Password};

/// Random bytes in a generated password.
const PASSWORD_BYTES: usize = 32;
/// How much of the log's end an error shows.
const TAIL_BYTES_MAX: u64 = 4096;
const TAIL_LINES_MAX: usize = 12;
/// Two lines for each of a hundred streams and more.
const SAID_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct DataFolder {
    root: PathBuf,
    _lock: File,
    /// Where the log of the run that is begun last begins.
    log_from: AtomicU64,
}

impl DataFolder {
    pub(super) fn open(data_dir: &Path) -> Result<Self, NatsServerError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir);
        made.map_err(failed("make", data_dir))?;
        // Absolute, because it tells our servers from others in the process table.
        let root = data_dir
            .canonicalize()
            .map_err(failed("resolve", data_dir))?;
        let lock = lock(&root)?;
        let folder = Self {
            root,
            _lock: lock,
            log_from: AtomicU64::new(0),
        };
        folder.close_to_others()?;
        Ok(folder)
    }

    /// What lies here from before, or was put here with a wider mode, is for its owner alone. Only what is
    /// ours: the folder may be one that has other things in it.
    fn close_to_others(&self) -> Result<(), NatsServerError> {
        // the server makes its log itself, with what the umask leaves
        let log = self.log_path();
        drop(open_private(&log)?);
        let mut ours = vec![self.config_path(), self.pid_path(), self.server_lock_path()];
        ours.extend([self.address_path(), self.root.join("lock"), log]);
        for path in ours {
            match fs::set_permissions(&path, Permissions::from_mode(0o600)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("protect", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn root(&self) -> PathBuf {
        self.root.clone()
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.root.join("nats-server.conf")
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.root.join("nats-server.log")
    }

    pub(super) fn pid_path(&self) -> PathBuf {
        self.root.join("nats-server.pid")
    }

    pub(super) fn run_path(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Locked by the server for as long as it lives.
    pub(super) fn server_lock_path(&self) -> PathBuf {
        self.root.join("nats-server.lock")
    }

    /// The file that a server is to inherit, not locked yet.
    pub(super) fn open_server_lock(&self) -> Result<File, NatsServerError> {
        let path = self.server_lock_path();
        open_private(&path)
    }

    fn complaints_path(&self) -> PathBuf {
        self.run_path().join("stderr")
    }

    fn address_path(&self) -> PathBuf {
        self.root.join("nats.json")
    }

    /// The password of this folder, made at the first start and kept.
    pub(super) fn password(&self) -> Result<Password, NatsServerError> {
        self.kept_password("nats.password")
    }

    /// The one of a role that tools have, too.
    pub(super) fn password_of(&self, role: NatsRole) -> Result<Password, NatsServerError> {
        self.kept_password(&format!("nats.{role}-password"))
    }

    fn kept_password(&self, file: &str) -> Result<Password, NatsServerError> {
        let path = self.root.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => {
                fs::set_permissions(&path, Permissions::from_mode(0o600))
                    .map_err(failed("protect", &path))?;
                let damaged = || {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        "not a password: remove the file",
                    )
                };
                Password::new(text.trim_end())
                    .ok_or_else(damaged)
                    .map_err(failed("use", &path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => new_password(&path),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Removes what a crash left behind that would mislead: addresses and old port announcements.
    pub(super) fn forget_last_run(&self) -> Result<(), NatsServerError> {
        let run = self.run_path();
        match fs::remove_dir_all(&run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("clear", &run)(error));
            }
            _ => {}
        }
        fs::create_dir(&run).map_err(failed("make", &run))?;
        let log = fs::metadata(self.log_path());
        let length = log.map_or(0, |log| log.len());
        self.log_from.store(length, Ordering::Relaxed);
        self.retract_address();
        Ok(())
    }

    /// The port that the server process says it listens on, once it does.
    pub(super) fn announced_port(&self, pid: Option<u32>) -> Option<u16> {
        let suffix = format!("_{}.ports", pid?);
        let entries = fs::read_dir(self.run_path()).ok()?.filter_map(Result::ok);
        let file = entries
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().ends_with(&suffix))?;
        // A half-written file does not parse, and is looked at again.
        let ports: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        ports["nats"][0].as_str()?.rsplit_once(':')?.1.parse().ok()
    }

    /// What the server prints before it has a log: mistakes in its configuration, a crash.
    pub(super) fn complaints(&self) -> Result<File, NatsServerError> {
        let path = self.complaints_path();
        File::create(&path).map_err(failed("make", &path))
    }

    /// The last things the server said since it was begun last, for an error message.
    pub(super) fn last_words(&self) -> String {
        let from = self.log_from.load(Ordering::Relaxed);
        let said = [
            tail(&self.log_path(), from),
            tail(&self.complaints_path(), 0),
        ];
        said.join("\n").trim().to_owned()
    }

    /// What its log says since it was begun last, as far as is of use: it tells of its streams at once.
    pub(super) fn said_since_begun(&self) -> String {
        let from = self.log_from.load(Ordering::Relaxed);
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(self.log_path())?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(SAID_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// For other tools: with all rights, and with those of some roles where they have users.
    pub(super) fn announce_address(
        &self,
        url: &str,
        roles: &[(NatsRole, String)],
    ) -> Result<(), NatsServerError> {
        let mut json = serde_json::json!({ "url": url });
        for (role, url) in roles {
            json[format!("{role}_url")] = url.as_str().into();
        }
        write_private(&self.address_path(), &format!("{json}\n"))
    }

    pub(super) fn retract_address(&self) {
        // Gone is what is wanted; a file that cannot be removed is overwritten at the next start.
        let _ = fs::remove_file(self.address_path());
    }
}

fn lock(root: &Path) -> Result<File, NatsServerError> {
    let path = root.join("lock");
    let mut file = open_private(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let holder = if holder.trim().is_empty() {
                "(unknown)"
            } else {
                holder.trim()
            }
            .to_owned();
            return Err(NatsServerError::InUse {
                data_dir: root.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed("write", &path))?;
    Ok(file)
}

fn open_private(path: &Path) -> Result<File, NatsServerError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    opened.map_err(failed("open", path))
}

fn new_password(path: &Path) -> Result<Password, NatsServerError> {
    let mut bytes = [0; PASSWORD_BYTES];
    let random = getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()));
    random.map_err(failed("find random bytes for", path))?;
    let password = hex::encode(bytes);
    write_private(path, &password)?;
    Ok(Password(password.into()))
}

/// Replaces the file in one step, readable by its owner alone from the first moment.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), NatsServerError> {
    let aside = path.with_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace", &aside)(error));
        }
        _ => {}
    }
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(failed("write", path))
}

/// The last lines of a file after `from`, for an error message; all of one that is shorter by now, for the server
/// began another. The server prints no passwords.
fn tail(path: &Path, from: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = Some(from).filter(|from| *from <= length).unwrap_or(0);
        let begin = from.max(length.saturating_sub(TAIL_BYTES_MAX));
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES_MAX)..].join("\n")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NatsServerError + use<> {
    let path = path.to_owned();
    move |source| NatsServerError::Folder {
        action,
        path,
        source,
    }
}
