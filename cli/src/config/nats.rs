//! `[nats]`: where events are kept, and how durable an acknowledgement is.

use std::path::PathBuf;

use seatbelt_bus::Durability;
use seatbelt_schemas::{
    names::{Names, PREFIX_DEFAULT},
    position::{PARTITIONS_MAX, Partitions},
};
use secrecy::SecretString;

use super::{Context, Users, reader::Section};
use crate::nats_server;

/// Number of partitions where none is given.
const PARTITIONS_DEFAULT: u8 = 4;

/// `[nats]`
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// An existing server; none starts an embedded one. May hold credentials.
    pub url: Option<SecretString>,
    /// Who each role is on an existing server.
    pub users: Users,
    /// Folder of the embedded server's data and of this process's own files.
    pub data_dir: PathBuf,
    /// Port of the embedded server on loopback; 0 picks a free one.
    pub port: u16,
    /// The `nats-server` program to run; found by itself where not given.
    pub server: Option<PathBuf>,
    /// Memory that the embedded server keeps to, as long as what it has in use fits.
    pub server_memory_bytes: u64,
    /// Monitoring address of an existing server, to prove its durability by.
    pub monitor_url: Option<String>,
    /// Number of partitions, fixed when the ledger is made.
    pub partitions: Partitions,
    /// Copies of each stream.
    pub replicas: u8,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// A file that `audit checkpoint` wrote: journals that do not hold what it has seen are not served.
    pub checkpoint: Option<PathBuf>,
    /// Names of everything on the server.
    pub names: Names,
}

impl NatsConfig {
    pub(super) fn read(mut section: Section, context: &Context<'_>) -> Self {
        let url = section.text("url");
        let partitions = section
            .number("partitions", 1, PARTITIONS_MAX.into())
            .and_then(|count| u8::try_from(count).ok())
            .unwrap_or(PARTITIONS_DEFAULT);
        let durability = [
            ("fsync", Durability::Fsync),
            ("relaxed", Durability::Relaxed),
        ];
        let names = section.text_with("prefix", |prefix| {
            Names::new(prefix).map_err(|error| error.to_string())
        });
        let nats = Self {
            data_dir: context.path(section.text("data_dir").as_deref().unwrap_or("data")),
            port: read_port(&mut section),
            server: section.text("server").map(|path| context.path(&path)),
            server_memory_bytes: section
                .number(
                    "server_memory_bytes",
                    nats_server::MEMORY_BYTES_MIN,
                    1 << 40,
                )
                .unwrap_or(nats_server::MEMORY_BYTES),
            monitor_url: section.text("monitor_url"),
            partitions: Partitions::try_from(partitions).expect("checked to be within bounds"),
            replicas: read_replicas(&mut section),
            durability: section.word("durability", &durability).unwrap_or_default(),
            checkpoint: section.text("checkpoint").map(|path| context.path(&path)),
            names: names
                .unwrap_or_else(|| Names::new(PREFIX_DEFAULT).expect("the default is valid")),
            url: url.map(SecretString::from),
            users: Users::read(section.section("users"), context),
        };
        if nats.url.is_none() && !nats.users.is_empty() {
            section.mistake(
                "users",
                "is for an existing server: set nats.url; the embedded server has users of its own",
            );
        }
        if nats.url.is_none() && nats.replicas > 1 {
            section.mistake(
                "replicas",
                "cannot be above 1 with the embedded server, which is one node: set nats.url to a cluster",
            );
        }
        section.finish();
        nats
    }
}

fn read_port(section: &mut Section) -> u16 {
    let port = section.number("port", 0, u16::MAX.into()).unwrap_or(0);
    u16::try_from(port).unwrap_or(0)
}

fn read_replicas(section: &mut Section) -> u8 {
    match section.number("replicas", 1, 3) {
        Some(2) => {
            section.mistake(
                "replicas",
                "is 2, which has no majority when one fails: use 1 or 3",
            );
            1
        }
        Some(3) => 3,
        _ => 1,
    }
}
