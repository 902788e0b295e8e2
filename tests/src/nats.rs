//! A real `nats-server` for a test: on a free port, in a temporary folder, gone when dropped.

use std::{path::PathBuf, time::Duration};

use seatbelt_cli::nats_server::{NatsServer, NatsServerOptions, find_nats_server};
use seatbelt_ledger::nats::{Nats, connect};
use tempfile::TempDir;

/// How long anything about the server may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A server and its folder.
#[derive(Debug)]
pub struct TestNats {
    /// The server; it may be killed and started again.
    pub server: NatsServer,
    // dropped after the server, which writes into it
    folder: TempDir,
}

impl TestNats {
    /// Starts a server that writes through to the disk.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts a server with other options.
    pub async fn start_with(adjust: impl FnOnce(&mut NatsServerOptions)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let binary = program();
        let mut options = NatsServerOptions::new(binary, folder.path().join("nats"));
        adjust(&mut options);
        let server = NatsServer::start(options)
            .await
            .expect("nats-server starts");
        Self { server, folder }
    }

    /// The temporary folder, also for what else the test keeps.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A new connection.
    pub async fn connect(&self, name: &str) -> Nats {
        let connected = connect(&self.server.url(), name, PATIENCE).await;
        connected.expect("a connection to the test server")
    }
}

/// The program as the product finds it, or where the repository's own set-up puts it.
fn program() -> PathBuf {
    find_nats_server().unwrap_or_else(|error| {
        let set_up = crate::repository().join(".deps/nats-server/nats-server");
        assert!(set_up.is_file(), "{error}");
        set_up
    })
}
