//! The embedded `nats-server`: one child process per data folder, on loopback, with users of its own.
//!
//! Promises: one server per data folder (a second start names the process that has it); what was
//! acknowledged is on disk when `sync_always` is set; the server does not outlive this process, not even
//! when it is killed, and if it does all the same, the next start on the folder stops it first.
//! Deliberately not here: streams, subjects and the proof of durability, which belong to the ledger.
//!
//! In the data folder: `nats.json` (addresses and passwords, while the server runs), `nats-server.log`,
//! `nats-server.pid`, `nats-server.conf`, `nats-server.lock` (held by the server itself), `nats.password`,
//! `nats.reader-password`, `nats.provisioning-password`, `jetstream/`, `lock`. Secrets have mode 0600.

pub(crate) mod accounts;
mod config;
mod error;
mod folder;
pub(crate) mod keys;
mod locate;
mod orphan_guard;
mod stale;
mod stuck;
#[cfg(test)]
mod tests;
mod users;

use std::collections::BTreeSet;
use std::fs::File;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seatbelt_bus::{Identity, NatsRole, is_ready};
use secrecy::{ExposeSecret, SecretString};
use tokio::process::{Child, Command};

pub use error::NatsServerError;
pub use locate::{find_nats_server, nats_server_at};
pub use users::LedgerOf;

use folder::DataFolder;
use orphan_guard::OrphanGuard;
use stuck::Kept;
use users::Users;

/// How long a start may take unless told otherwise; JetStream reads its stores before it listens.
pub const START_WITHIN: Duration = Duration::from_secs(60);
/// How long a server asked to stop may take before it is killed.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);
/// How often a condition is looked at while waiting for it.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often it is told that the server is waited for.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Commits are at most 64 KiB; the rest is room for headers and for what clients of other streams send.
const MAX_PAYLOAD_BYTES: u32 = 1 << 20;
/// Memory that the server keeps to unless told otherwise: without, Go lets its heap grow to twice what is in use
/// before it looks what of it is, which was 0.9 to 1.2 GB at some thousand requests a second.
pub const MEMORY_BYTES: u64 = 448 << 20;
/// Below, it would collect without end.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// The user for people's tools: it may do everything but harm to journals.
pub(crate) const USER: &str = "seatbelt";

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct NatsServerOptions {
    /// The program, for instance from [`find_nats_server`].
    pub binary: PathBuf,
    /// Holds everything the server keeps; made if missing.
    pub data_dir: PathBuf,
    /// Port for clients on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Write through to the disk before a message is acknowledged.
    pub sync_always: bool,
    /// Streams that no client of this server may delete, purge or delete messages from.
    pub protected_streams: Vec<String>,
    /// Largest message that it takes.
    pub max_payload: u32,
    /// Memory that it keeps to, as long as what it has in use fits (`GOMEMLIMIT`).
    pub memory_bytes: u64,
    /// How many bytes it keeps at most; what the disk has, where it is not said.
    pub max_file_store: Option<u64>,
    /// The ledger whose roles have users of their own; without, there is one user for everything.
    pub ledger: Option<LedgerOf>,
    /// Makes this server one node of a cluster.
    pub cluster: Option<ClusterOptions>,
    /// How long the start may take.
    pub start_within: Duration,
}

impl NatsServerOptions {
    /// A single server on a free port that writes through to the disk.
    #[must_use]
    pub fn new(binary: PathBuf, data_dir: PathBuf) -> Self {
        let protected_streams = Vec::new();
        Self {
            binary,
            data_dir,
            port: 0,
            sync_always: true,
            protected_streams,
            max_payload: MAX_PAYLOAD_BYTES,
            memory_bytes: MEMORY_BYTES,
            max_file_store: None,
            ledger: None,
            cluster: None,
            start_within: START_WITHIN,
        }
    }
}

/// One node of a cluster on loopback. All nodes share `name` and `secret`.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Name of the cluster.
    pub name: String,
    /// Name of this node, unique within the cluster.
    pub server_name: String,
    /// Port on 127.0.0.1 where the other nodes reach this one.
    pub cluster_port: u16,
    /// Cluster ports of the other nodes on 127.0.0.1.
    pub routes: Vec<u16>,
    /// Port on 127.0.0.1 that it tells other nodes of in place of `cluster_port`, where something lies between.
    pub told_port: Option<u16>,
    /// Password of clients and nodes alike, so that a client may move from node to node.
    pub secret: Password,
}

/// A password that is the same in a URL and in a configuration file.
#[derive(Debug, Clone)]
pub struct Password(SecretString);

impl Password {
    /// Takes letters and digits only.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        plain.then(|| Self(text.into()))
    }

    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// A running server; killed when dropped. Prefer [`NatsServer::stop`], which lets it end in order.
#[derive(Debug)]
pub struct NatsServer {
    options: NatsServerOptions,
    folder: DataFolder,
    users: Users,
    port: u16,
    // Dismissed before the server is reaped, whose number could then belong to another process.
    guard: OrphanGuard,
    child: Child,
}

impl NatsServer {
    /// Starts the server and returns once clients can use it: alone, JetStream answers; in a cluster, the
    /// node accepts connections (JetStream needs a majority of nodes: see [`NatsServer::jetstream_ready`]).
    ///
    /// # Errors
    /// The folder is in use or cannot be written, or the server did not come up.
    pub async fn start(options: NatsServerOptions) -> Result<Self, NatsServerError> {
        let folder = DataFolder::open(&options.data_dir)?;
        let alive = stale::stop_servers_of(&folder).await?;
        let secret = match &options.cluster {
            Some(cluster) => cluster.secret.clone(),
            None => folder.password()?,
        };
        let users = Users::new(&folder, secret, options.ledger.clone())?;
        let (child, guard) = spawn(&options, &folder, alive, &users)?;
        let port = options.port;
        let mut server = Self {
            options,
            folder,
            users,
            port,
            guard,
            child,
        };
        server.come_up().await?;
        Ok(server)
    }

    /// Starts the server again on its port and data after it has ended or was killed.
    ///
    /// # Errors
    /// As for [`NatsServer::start`]; the port may have been taken by another process meanwhile.
    pub async fn restart(&mut self) -> Result<(), NatsServerError> {
        self.kill().await;
        self.start_again().await
    }

    /// Lets the server end in order, so that it writes what it has in hand, and starts it again on its port and
    /// data.
    ///
    /// # Errors
    /// As for [`NatsServer::restart`].
    pub async fn renew(&mut self) -> Result<(), NatsServerError> {
        self.end_in_order().await;
        self.start_again().await
    }

    async fn start_again(&mut self) -> Result<(), NatsServerError> {
        self.spawn_again().await?;
        self.come_up().await
    }

    async fn spawn_again(&mut self) -> Result<(), NatsServerError> {
        let alive = stale::stop_servers_of(&self.folder).await?;
        let options = NatsServerOptions {
            port: self.port,
            ..self.options.clone()
        };
        (self.child, self.guard) = spawn(&options, &self.folder, alive, &self.users)?;
        Ok(())
    }

    /// Address with user and password, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!(
            "nats://{USER}:{}@127.0.0.1:{}",
            self.users.password.expose(),
            self.port
        )
    }

    /// Address with the user of auditors and billing, where roles have users.
    #[must_use]
    pub fn reader_url(&self) -> Option<String> {
        self.url_of(NatsRole::Reader)
    }

    fn url_of(&self, role: NatsRole) -> Option<String> {
        let password = self.users.password_of(role)?.expose();
        Some(format!("nats://{role}:{password}@127.0.0.1:{}", self.port))
    }

    /// Who a part of this process is, for [`NatsServer::host_url`]; `None` where roles have no users.
    #[must_use]
    pub fn identity(&self, role: NatsRole) -> Option<Identity> {
        self.users.identity(role)
    }

    /// Address without secrets, for logs and people.
    #[must_use]
    pub fn host_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The process id, or nothing once the server has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The file the server logs to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.folder.log_path()
    }

    /// Waits until the server ends by itself, which it does not do in good health. Safe to drop half-way.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.wait().await.ok()
    }

    /// Waits until JetStream answers, in a cluster until it has a leader.
    ///
    /// # Errors
    /// It did not within the time, or the server ended.
    pub async fn jetstream_ready(&mut self, within: Duration) -> Result<(), NatsServerError> {
        let deadline = Instant::now() + within;
        while !self.jetstream_answers().await {
            self.still_starting(deadline, within, "JetStream answers")?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Ends the server at once, as a crash would; its data stays.
    pub async fn kill(&mut self) {
        self.guard.dismiss();
        self.folder.retract_address();
        // The only failure is that it has ended already.
        let _ = self.child.kill().await;
    }

    /// Lets the server end in order; kills it after [`STOP_WITHIN`].
    pub async fn stop(mut self) {
        self.end_in_order().await;
    }

    async fn end_in_order(&mut self) {
        self.folder.retract_address();
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // The only failure is that it has ended already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            self.guard.dismiss();
            if tokio::time::timeout(STOP_WITHIN, self.child.wait())
                .await
                .is_err()
            {
                tracing::warn!(pid, "nats-server did not stop in time and is killed");
            }
        }
        self.kill().await;
    }

    async fn come_up(&mut self) -> Result<(), NatsServerError> {
        let within = self.options.start_within;
        let deadline = Instant::now() + within;
        let mut tell_at = Instant::now() + TELL_EVERY;
        let mut reading = BTreeSet::new();
        self.port = loop {
            if let Some(port) = self.folder.announced_port(self.child.id()) {
                break port;
            }
            self.still_starting(deadline, within, "it listens")?;
            if Instant::now() >= tell_at {
                tell_at += TELL_EVERY;
                let before = mem::replace(&mut reading, self.being_read());
                if self.is_stuck_on(&reading, &before) {
                    self.begin_without(&reading).await?;
                    continue;
                }
                let log = self.folder.log_path();
                tracing::warn!(log = %log.display(), "nats-server does not listen yet: its log says what it reads; a derived stream that it cannot read may be deleted as docs/recovery.md says");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        if self.options.cluster.is_none() {
            self.jetstream_ready(deadline.saturating_duration_since(Instant::now()))
                .await?;
        }
        let of_roles = users::TOOLS.map(|role| Some((role, self.url_of(role)?)));
        let of_roles: Vec<_> = of_roles.into_iter().flatten().collect();
        self.folder.announce_address(&self.url(), &of_roles)?;
        tracing::info!(url = self.host_url(), pid = self.pid(), "nats-server is up");
        Ok(())
    }

    fn being_read(&self) -> BTreeSet<Kept> {
        stuck::being_read(&self.folder.said_since_begun())
    }

    /// Whether it reads nothing but streams that it should have read in no time, for [`TELL_EVERY`] by now.
    fn is_stuck_on(&self, reading: &BTreeSet<Kept>, before: &BTreeSet<Kept>) -> bool {
        let names = self.options.ledger.as_ref().map(|ledger| &ledger.names);
        reading == before && names.is_some_and(|names| stuck::may_be_set_aside(reading, names))
    }

    /// Begins anew without these streams, of which the server cannot read what it kept.
    async fn begin_without(&mut self, streams: &BTreeSet<Kept>) -> Result<(), NatsServerError> {
        self.kill().await;
        for stream in streams {
            let aside = stuck::set_aside(&self.folder, stream)?;
            tracing::error!(stream = stream.name(), aside = %aside.display(), "nats-server does not get through what it kept of a stream that only says who is alive: set aside, and made again");
        }
        self.spawn_again().await
    }

    async fn jetstream_answers(&self) -> bool {
        let who = Identity::user(USER, self.users.password.expose());
        is_ready(&self.host_url(), &who, Duration::from_secs(1)).await
    }

    fn still_starting(
        &mut self,
        deadline: Instant,
        within: Duration,
        condition: &'static str,
    ) -> Result<(), NatsServerError> {
        let log = self.folder.log_path();
        if let Ok(Some(status)) = self.child.try_wait() {
            self.guard.dismiss();
            return Err(NatsServerError::Ended {
                status,
                tail: self.folder.last_words(),
                log,
            });
        }
        if Instant::now() < deadline {
            return Ok(());
        }
        Err(NatsServerError::NotReady {
            condition,
            within,
            tail: self.folder.last_words(),
            log,
        })
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.guard.dismiss();
        self.folder.retract_address();
        // The only failure is that it has ended already.
        let _ = self.child.start_kill();
    }
}

fn spawn(
    options: &NatsServerOptions,
    folder: &DataFolder,
    alive: File,
    users: &Users,
) -> Result<(Child, OrphanGuard), NatsServerError> {
    folder.forget_last_run()?;
    let config = config::render(options, folder, users)?;
    let config_path = folder.config_path();
    folder::write_private(&config_path, &config)?;
    let child = command(&options.binary, &config_path, alive)
        .env("GOMEMLIMIT", options.memory_bytes.to_string())
        .stderr(folder.complaints()?)
        .spawn()
        .map_err(|source| NatsServerError::Spawn {
            binary: options.binary.clone(),
            source,
        })?;
    let guard = OrphanGuard::over(child.id(), &config_path);
    Ok((child, guard))
}

/// `alive` is the locked file that tells others that this server lives.
fn command(binary: &Path, config_path: &Path, alive: File) -> Command {
    let mut command = Command::new(binary);
    command
        .args([stale::CONFIG_FLAG.as_ref(), config_path.as_os_str()])
        // It needs nothing of what we were given, and keys of upstreams are among it.
        .env_clear()
        .stdin(alive)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C in a terminal goes to the whole group; the server must outlive the drain of its clients.
        .process_group(0)
        .kill_on_drop(true);
    command
}
