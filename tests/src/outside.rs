//! A `nats-server` of somebody else, with users as `seatbelt nats config` prints them.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use seatbelt_bus::{Identity, Nats, NatsRole, connect_as};
use tempfile::TempDir;

use crate::{
    Stack, Stopped,
    nats::{self, PATIENCE},
    until,
};

/// The server, its folder and the keys of its users; gone when dropped.
pub struct OutsideNats {
    child: Child,
    folder: TempDir,
    /// Its address, without credentials.
    pub url: String,
}

impl OutsideNats {
    /// Starts it for a ledger of the default prefix and number of partitions.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        let told = Stack::new().write();
        let arguments = ["nats", "config", "--keys", keys.to_str().unwrap()];
        let told = told.run(&arguments).await;
        let log = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.status.success(), "{log}");
        std::fs::write(folder.path().join("accounts.conf"), told.stdout).unwrap();
        let run = folder.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let store = folder.path().join("store");
        let config = format!(
            "listen: \"127.0.0.1:-1\"\nports_file_dir: {run:?}\nlog_file: {:?}\n\
             jetstream {{ store_dir: {store:?}, sync_interval: always }}\ninclude accounts.conf\n",
            folder.path().join("log"),
        );
        let path = folder.path().join("nats.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(nats::program());
        let piped = command.arg("-c").arg(path).stdin(Stdio::null());
        let child = piped.stderr(Stdio::inherit()).spawn().unwrap();
        let url = until("the outside server listens", || async {
            let file = std::fs::read_dir(&run).ok()?.next()?.ok()?;
            let ports: serde_json::Value =
                serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
            Some(ports["nats"][0].as_str()?.to_owned())
        })
        .await;
        Self { child, folder, url }
    }

    /// Starts it with a ledger on it, made by the user that may.
    pub async fn provisioned() -> Self {
        let server = Self::start().await;
        let home = server.configured(Stack::new(), &[NatsRole::Provisioning]);
        let made = home.run(&["nats", "provision"]).await;
        let log = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{log}");
        server
    }

    /// A connection as a role.
    pub async fn connect(&self, role: NatsRole) -> Nats {
        let identity = self.identity(role);
        let connected = connect_as(&self.url, &identity, "test", PATIENCE).await;
        connected.unwrap()
    }

    /// The file with the key of a role.
    pub fn key_file(&self, role: NatsRole) -> PathBuf {
        self.folder.path().join(format!("keys/{role}.nk"))
    }

    /// The key of a role.
    pub fn seed(&self, role: NatsRole) -> String {
        let text = std::fs::read_to_string(self.key_file(role)).unwrap();
        text.trim().to_owned()
    }

    /// Who a role is.
    pub fn identity(&self, role: NatsRole) -> Identity {
        Identity::read(&self.seed(role)).unwrap().as_role(role)
    }

    /// A configuration that has the keys of some roles alone.
    pub fn configured(&self, stack: Stack, roles: &[NatsRole]) -> Stopped {
        let files = roles
            .iter()
            .map(|role| format!("{role}_file = {:?}", self.key_file(*role)));
        let files: Vec<_> = files.collect();
        let stack = stack.nats(&format!("url = {:?}", self.url));
        stack
            .nats(&format!("users = {{ {} }}", files.join(", ")))
            .write()
    }
}

impl Drop for OutsideNats {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
