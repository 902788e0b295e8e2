//! A real `nats-server` for a test: on a free port, in a temporary folder, gone when dropped.

mod cables;

use std::{net::TcpListener, path::PathBuf, time::Duration};

use seatbelt_bus::{Nats, connect};
use seatbelt_cli::nats_server::{
    ClusterOptions, NatsServer, NatsServerOptions, Password, find_nats_server,
};
use tempfile::TempDir;

use cables::Cables;

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

/// Three servers as one cluster on loopback, and their folder.
#[derive(Debug)]
pub struct TestCluster {
    /// The servers; each may be killed and started again.
    pub nodes: Vec<NatsServer>,
    cables: Cables,
    // dropped after the servers, which write into it
    _folder: TempDir,
}

impl TestCluster {
    /// Starts three servers and waits until JetStream has a leader.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ports = free_ports();
        let cables = Cables::between(&ports).await;
        let mut nodes = Vec::new();
        for index in 0..ports.len() {
            let data_dir = folder.path().join(format!("node-{index}"));
            let mut options = NatsServerOptions::new(program(), data_dir);
            options.cluster = Some(member(&ports, index, &cables));
            let node = NatsServer::start(options).await;
            nodes.push(node.expect("nats-server starts"));
        }
        for node in &mut nodes {
            let ready = node.jetstream_ready(PATIENCE).await;
            ready.expect("jetstream has a leader");
        }
        Self {
            nodes,
            cables,
            _folder: folder,
        }
    }

    /// Cuts one node off from the others, or no longer. Its clients still reach it.
    pub fn cut_off(&self, node: usize, cut: bool) {
        self.cables.cut_off(node, cut);
    }

    /// The addresses of all three.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self.nodes.iter().map(NatsServer::url).collect();
        urls.join(",")
    }

    /// A new connection to whichever server is there.
    pub async fn connect(&self, name: &str) -> Nats {
        let connected = connect(&self.url(), name, PATIENCE).await;
        connected.expect("a connection to the test cluster")
    }
}

/// Nodes reach each other through cables only: what a node tells of its own place leads nowhere.
const NOWHERE: u16 = 1;

fn member(ports: &[u16], index: usize, cables: &Cables) -> ClusterOptions {
    ClusterOptions {
        name: "test".to_owned(),
        server_name: format!("node-{index}"),
        cluster_port: ports[index],
        routes: cables.from(index),
        told_port: Some(NOWHERE),
        secret: Password::new("onlyfortests").expect("letters"),
    }
}

/// Three ports that were free a moment ago: a cluster must know them before it starts.
fn free_ports() -> [u16; 3] {
    let listeners = [0; 3].map(|port| TcpListener::bind(("127.0.0.1", port)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}

/// The program as the product finds it, or where the repository's own set-up puts it.
pub fn program() -> PathBuf {
    let found = find_nats_server().unwrap_or_else(|error| {
        let set_up = crate::repository().join(".deps/nats-server/nats-server");
        assert!(set_up.is_file(), "{error}");
        set_up
    });
    found.canonicalize().expect("it is there")
}
