//! The server's configuration file. Everything listens on loopback.
//!
//! The ledger's account imports two read-only services of the system account, so that a client proves over its own
//! connection that `sync_always` is on: `$SYS.REQ.SERVER.PING.JSZ` and `$SYS.REQ.SERVER.PING.VARZ`.
//! Nobody can log in to the system account itself, and there is no HTTP monitoring port.

use std::path::Path;

use super::folder::DataFolder;
use super::{ClusterOptions, NatsServerError, NatsServerOptions, USER, accounts, users::Users};

/// The log is cut at this size, and this many old pieces are kept.
const LOG_BYTES_MAX: u32 = 16 << 20;
const LOG_PIECES_MAX: u32 = 3;

/// What may not be asked of a protected stream, besides what the stream's own settings deny.
const DENIED_VERBS: [&str; 4] = [
    "STREAM.UPDATE",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.MSG.DELETE",
];

pub(super) fn render(
    options: &NatsServerOptions,
    folder: &DataFolder,
    users: &Users,
) -> Result<String, NatsServerError> {
    // nats-server takes -1 for "any free port".
    let port = match options.port {
        0 => "-1".to_owned(),
        port => port.to_string(),
    };
    let sync = if options.sync_always { "always" } else { "2m" };
    let max_file_store = match options.max_file_store {
        Some(bytes) => format!(", max_file_store: {bytes}"),
        None => String::new(),
    };
    let mut text = format!(
        "# Written at every start; changes are lost.\n\
         listen: \"127.0.0.1:{port}\"\n\
         max_payload: {max_payload}\n\
         ports_file_dir: {run}\n\
         pid_file: {pid}\n\
         log_file: {log}\n\
         logfile_size_limit: {LOG_BYTES_MAX}\n\
         logfile_max_num: {LOG_PIECES_MAX}\n\
         jetstream {{ store_dir: {store}, sync_interval: {sync}{max_file_store} }}\n",
        max_payload = options.max_payload,
        run = quoted(&folder.run_path())?,
        pid = quoted(&folder.pid_path())?,
        log = quoted(&folder.log_path())?,
        store = quoted(&folder.root())?,
    );
    let full = users.full(denied_subjects(&options.protected_streams)?);
    text.push_str(&accounts::render(Some(&full), users.roles().as_ref()));
    if let Some(cluster) = &options.cluster {
        text.push_str(&cluster_section(cluster)?);
    }
    Ok(text)
}

fn denied_subjects(streams: &[String]) -> Result<Vec<String>, NatsServerError> {
    let mut subjects = Vec::new();
    for stream in streams {
        let stream = plain("stream", stream)?;
        subjects.extend(DENIED_VERBS.map(|verb| format!("$JS.API.{verb}.{stream}")));
    }
    Ok(subjects)
}

fn cluster_section(cluster: &ClusterOptions) -> Result<String, NatsServerError> {
    let secret = cluster.secret.expose();
    let route = |port: &u16| format!("\"nats-route://{USER}:{secret}@127.0.0.1:{port}\"");
    let routes: Vec<String> = cluster.routes.iter().map(route).collect();
    let told = |port| format!("  advertise: \"127.0.0.1:{port}\"\n");
    Ok(format!(
        "server_name: \"{server_name}\"\n\
         cluster {{\n\
         \x20 name: \"{name}\"\n\
         \x20 listen: \"127.0.0.1:{port}\"\n{told}\
         \x20 authorization {{ user: {USER}, password: \"{secret}\" }}\n\
         \x20 routes: [ {routes} ]\n\
         }}\n",
        server_name = plain("server", &cluster.server_name)?,
        name = plain("cluster", &cluster.name)?,
        port = cluster.cluster_port,
        told = cluster.told_port.map(told).unwrap_or_default(),
        routes = routes.join(", "),
    ))
}

fn quoted(path: &Path) -> Result<String, NatsServerError> {
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(format!(
            "\"{}\"",
            text.replace('\\', "\\\\").replace('"', "\\\"")
        )),
        _ => Err(NatsServerError::UnusablePath {
            path: path.to_owned(),
        }),
    }
}

fn plain<'a>(what: &'static str, name: &'a str) -> Result<&'a str, NatsServerError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(fits) {
        return Ok(name);
    }
    Err(NatsServerError::UnusableName {
        what,
        name: name.to_owned(),
    })
}
