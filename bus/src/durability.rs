//! Whether an acknowledged append survives a power failure: proved at start, never assumed.
//!
//! A plain client cannot see how the server syncs. It can where its account may ask the system
//! service `$SYS.REQ.SERVER.PING.JSZ` (the embedded server allows it), or where somebody hands in
//! what the monitoring port says. Nothing is measured or guessed: what is not seen is not proved.

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use seatbelt_schemas::{names::Names, position::Partitions};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::{Nats, stream::info};

/// System service that every server answers for itself.
const SERVICE: &str = "$SYS.REQ.SERVER.PING.JSZ";
/// How long the servers of a cluster may take to answer.
const ANSWERS_MAX: Duration = Duration::from_secs(2);
/// Most servers asked.
const SERVERS_MAX: usize = 64;
/// Copies that count as durable without a sync.
const REPLICAS_DURABLE: u8 = 3;

/// What an acknowledgement must mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// On disk on the server, or on three servers.
    #[default]
    Fsync,
    /// Whatever the server does: an explicit choice.
    Relaxed,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fsync => "fsync",
            Self::Relaxed => "relaxed",
        })
    }
}

/// What was proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Every server syncs before it acknowledges.
    Synced,
    /// Every commit is on this many servers before it is acknowledged.
    Replicated(u8),
    /// Nothing; nobody asked.
    Relaxed,
}

/// Why the ledger must not start, by what to change.
#[derive(Debug, Error)]
pub enum DurabilityError {
    /// A server does not sync.
    #[error(
        "nats server {server} acknowledges before it syncs: set `sync_interval: always` in the jetstream section of its configuration, or nats.replicas = 3 on a cluster, or choose nats.durability = \"relaxed\""
    )]
    NotSynced { server: String },
    /// It cannot be seen whether every server syncs.
    #[error(
        "cannot see whether nats at {servers} syncs before it acknowledges ({detail}): let this user's account ask {SERVICE}, or set nats.monitor_url to the server's monitoring port, after `sync_interval: always` is in its jetstream section; or set nats.replicas = 3 on a cluster, or choose nats.durability = \"relaxed\""
    )]
    Unproven {
        servers: String,
        /// What is missing.
        detail: String,
    },
    /// A journal has fewer copies than would make it durable without a sync.
    #[error(
        "stream {stream} has {found} of the {wanted} copies that nats.replicas asks for: set nats.replicas = {found}, as for the other processes of this ledger, or give every stream of the ledger {wanted} copies"
    )]
    Copies {
        /// The journal's stream.
        stream: String,
        /// How many it has.
        found: u64,
        /// How many are configured.
        wanted: u8,
    },
}

/// What one server says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    server: String,
    sync_always: bool,
    cluster_size: usize,
}

/// Proves what `durability` asks for, for streams with `replicas` copies. `monitor` holds what
/// monitoring ports answered to `/varz` or `/jsz`, one JSON text each; it may be empty.
pub async fn prove(
    nats: &Nats,
    durability: Durability,
    replicas: u8,
    monitor: &[String],
) -> Result<Proof, DurabilityError> {
    if durability == Durability::Relaxed {
        return Ok(Proof::Relaxed);
    }
    if replicas >= REPLICAS_DURABLE {
        return Ok(Proof::Replicated(replicas));
    }
    let connected = nats.client().server_info().server_id;
    let mut reports = BTreeMap::new();
    for text in monitor {
        if let Some((id, report)) = read_monitor(text) {
            reports.insert(id, report);
        }
    }
    if reports.is_empty() {
        reports = ask_servers(nats).await;
    }
    judge(nats.servers(), &connected, &reports)
}

/// Whether the journals that there are have as many copies as configured: what the configuration says of them
/// proves nothing, and another process may have made them. One that cannot be asked about is told elsewhere.
pub async fn check_copies(
    nats: &Nats,
    names: &Names,
    partitions: Partitions,
    replicas: u8,
) -> Result<(), DurabilityError> {
    for partition in partitions.iter() {
        let stream = names.journal_stream(partition);
        let Ok(found) = info(nats, &stream).await else {
            continue;
        };
        let found = found.config["num_replicas"].as_u64().unwrap_or_default();
        if found < u64::from(replicas) {
            let wanted = replicas;
            return Err(DurabilityError::Copies {
                stream,
                found,
                wanted,
            });
        }
    }
    Ok(())
}

fn judge(
    servers: &str,
    connected: &str,
    reports: &BTreeMap<String, Report>,
) -> Result<Proof, DurabilityError> {
    let unproven = |detail: &str| DurabilityError::Unproven {
        servers: servers.to_owned(),
        detail: detail.to_owned(),
    };
    if let Some(report) = reports.values().find(|report| !report.sync_always) {
        let server = report.server.clone();
        return Err(DurabilityError::NotSynced { server });
    }
    if reports.is_empty() {
        return Err(unproven("no server told"));
    }
    if !reports.contains_key(connected) {
        return Err(unproven("what was told is about another server"));
    }
    let size = reports.values().map(|report| report.cluster_size).max();
    match size {
        Some(size) if size > reports.len() => Err(unproven(&format!(
            "{} of {size} servers of the cluster told",
            reports.len()
        ))),
        _ => Ok(Proof::Synced),
    }
}

#[derive(Deserialize)]
struct Answer {
    server: AnsweringServer,
    data: Value,
}

#[derive(Deserialize)]
struct AnsweringServer {
    id: String,
    name: String,
}

async fn ask_servers(nats: &Nats) -> BTreeMap<String, Report> {
    let mut reports = BTreeMap::new();
    let inbox = nats.client().new_inbox();
    let Ok(mut answers) = nats.client().subscribe(inbox.clone()).await else {
        return reports;
    };
    let asked = nats
        .client()
        .publish_with_reply(SERVICE, inbox, Bytes::new());
    if asked.await.is_err() {
        return reports;
    }
    let deadline = Instant::now() + ANSWERS_MAX;
    while let Ok(Some(message)) = timeout_at(deadline, answers.next()).await {
        // nobody may be asked: the server says so at once
        let Ok(answer) = serde_json::from_slice::<Answer>(&message.payload) else {
            break;
        };
        let report = report(&answer.data, answer.server.name);
        reports.extend(report.map(|report| (answer.server.id, report)));
        let size = reports.values().map(|report| report.cluster_size).max();
        if reports.len() >= size.unwrap_or(0).clamp(1, SERVERS_MAX) {
            break;
        }
    }
    reports
}

/// Reads what `/varz` or `/jsz` answered: the server's id, and its report.
fn read_monitor(text: &str) -> Option<(String, Report)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let id = value.get("server_id")?.as_str()?.to_owned();
    let name = value.get("server_name").and_then(Value::as_str);
    let name = name.unwrap_or(&id).to_owned();
    // varz nests what jsz has at its top
    let data = value.get("jetstream").unwrap_or(&value);
    Some((id, report(data, name)?))
}

/// `None` from a server without JetStream: it keeps nothing of ours.
fn report(data: &Value, server: String) -> Option<Report> {
    let config = data.get("config").filter(|config| !config.is_null())?;
    let sync = config.get("sync_always").and_then(Value::as_bool);
    let meta = data.get("meta_cluster").or_else(|| data.get("meta"));
    let size = meta
        .and_then(|meta| meta.get("cluster_size"))
        .and_then(Value::as_u64);
    Some(Report {
        server,
        sync_always: sync.unwrap_or(false),
        cluster_size: size
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varz(id: &str, sync: &str, cluster: &str) -> String {
        format!(
            r#"{{"server_id":"{id}","server_name":"name-{id}","jetstream":{{"config":{{"store_dir":"/d"{sync}}}{cluster}}}}}"#
        )
    }

    const SYNC: &str = r#","sync_always":true"#;
    const OF_THREE: &str = r#","meta":{"cluster_size":3}"#;

    fn verdict(texts: &[String]) -> Result<Proof, String> {
        let reports = texts.iter().filter_map(|text| read_monitor(text)).collect();
        judge("there:4222", "A", &reports).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_error(texts: &[String], expected: &[&str]) {
        let error = verdict(texts).unwrap_err();
        for words in expected {
            assert!(error.contains(words), "{error:?} names {words}");
        }
    }

    #[test]
    fn a_server_that_syncs_always_is_proved() {
        assert_eq!(verdict(&[varz("A", SYNC, "")]), Ok(Proof::Synced));
    }

    #[test]
    fn one_that_does_not_is_named_with_the_setting_to_change() {
        let error = ["name-A", "sync_interval: always", "nats.durability"];
        check_error(&[varz("A", "", "")], &error);
        check_error(&[varz("A", r#","sync_always":false"#, "")], &error);
    }

    #[test]
    fn what_is_not_seen_is_not_proved() {
        let error = ["there:4222", "sync_interval: always", "nats.monitor_url"];
        check_error(&[], &error);
        check_error(&["{}".to_owned(), "no".to_owned()], &error);
        check_error(&[varz("B", SYNC, "")], &["another server"]);
    }

    #[test]
    fn a_cluster_is_proved_by_all_of_its_servers() {
        let all = ["A", "B", "C"].map(|id| varz(id, SYNC, OF_THREE));
        check_error(&all[..2], &["2 of 3"]);
        assert_eq!(verdict(&all), Ok(Proof::Synced));
    }
}
