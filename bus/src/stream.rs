//! Streams and buckets: made where missing, compared where they exist.
//!
//! A stream is never altered here: one whose settings differ from what is relied on is an error
//! that names the setting, for only an operator knows how it came to be.

use std::collections::BTreeSet;

use async_nats::jetstream::{
    self, ErrorCode,
    context::RequestErrorKind,
    message::StreamMessage,
    response::Response,
    stream::{self, RawMessageErrorKind},
};
use seatbelt_schemas::chain::in_one_line;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tracing::warn;

use super::{Nats, connect::Denied};

/// Why a stream or bucket cannot be used, by what to do next.
#[derive(Debug, Error)]
pub enum ProvisionError {
    /// It exists with another setting: restore the setting, or use another `nats.prefix`.
    #[error(
        "stream {stream} has {field} = {found}, but the ledger relies on {wanted}: restore it or use another name prefix"
    )]
    Differs {
        stream: String,
        /// The setting, as JetStream names it.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// The server refuses it: act on its reason.
    #[error("the server refuses stream {stream}: {detail}")]
    Refused {
        stream: String,
        /// The server's reason.
        detail: String,
    },
    /// It does not exist, and the caller did not ask to make it.
    #[error("stream {stream} does not exist: start the ledger once, or correct the name prefix")]
    Missing { stream: String },
    /// Nobody answered: try again.
    #[error("cannot reach jetstream about stream {stream}")]
    Unreachable {
        stream: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The part of a stream's state that is looked at here.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct StreamState {
    /// How many messages it holds.
    pub messages: u64,
    /// Place of the oldest that it holds.
    pub first_seq: u64,
    /// Its end: the last place that was ever given.
    pub last_seq: u64,
}

/// What the server says of a stream.
#[derive(Debug, Deserialize)]
pub struct StreamInfo {
    /// Its settings, as JetStream names them.
    pub config: Value,
    /// What it holds.
    pub state: StreamState,
    /// What the clock of the server that answers showed, RFC 3339; since nats-server 2.10.
    pub(crate) ts: Option<String>,
}

/// A request to the JetStream API that has no good answer.
#[derive(Debug, Error)]
pub enum JetStreamError {
    /// The request failed, or nobody answered.
    #[error("{0}")]
    Server(jetstream::context::RequestError),
    /// The server says no, and why.
    #[error("jetstream answered with an error")]
    Refused(#[source] jetstream::Error),
    /// This user may not ask.
    #[error(transparent)]
    Denied(#[from] Denied),
}

impl JetStreamError {
    /// The server's reason, where it gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Server(_) | Self::Denied(_) => None,
            Self::Refused(error) => Some(error.error_code()),
        }
    }

    /// Whether the server says that there is no such stream.
    pub fn is_missing(&self) -> bool {
        self.code() == Some(ErrorCode::STREAM_NOT_FOUND)
    }
}

impl StreamInfo {
    /// What the clock of the server that answers shows, unix ms; `None` from one that does not tell.
    pub fn server_ms(&self) -> Result<Option<u64>, Box<dyn std::error::Error + Send + Sync>> {
        let Some(told) = &self.ts else {
            return Ok(None);
        };
        let time = async_nats::datetime::parse_rfc3339(told)?;
        let ms = time.unix_timestamp_nanos().div_euclid(1_000_000);
        Ok(u64::try_from(ms).ok())
    }
}

/// Asks the JetStream API.
pub async fn ask<T: for<'de> Deserialize<'de>>(
    nats: &Nats,
    subject: String,
    body: &Value,
) -> Result<T, JetStreamError> {
    let denied = format!("$JS.API.{subject}");
    let asking = nats.jetstream().request(subject, body);
    match nats.unless_denied(&denied, asking).await? {
        Ok(Response::Ok(answer)) => Ok(answer),
        Ok(Response::Err { error }) => Err(JetStreamError::Refused(error)),
        Err(error) => Err(JetStreamError::Server(error)),
    }
}

/// Where a stream's messages are asked for one by one.
pub fn get_subject(stream: &str) -> String {
    format!("$JS.API.STREAM.MSG.GET.{stream}")
}

/// What the stream's leader knows about it.
pub async fn info(nats: &Nats, stream: &str) -> Result<StreamInfo, JetStreamError> {
    ask(
        nats,
        format!("STREAM.INFO.{stream}"),
        &serde_json::json!({}),
    )
    .await
}

/// The message at one place, from the stream's leader; `None` where there is none.
pub async fn message_at(
    nats: &Nats,
    stream: &str,
    at: u64,
) -> Result<Option<StreamMessage>, Box<dyn std::error::Error + Send + Sync>> {
    let handle = nats.jetstream().get_stream_no_info(stream).await?;
    let (asked, asking) = (get_subject(stream), handle.get_raw_message(at));
    match nats.unless_denied(&asked, asking).await? {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The first place after `last` up to and including `to` that the server says holds a message.
pub async fn kept_after(
    nats: &Nats,
    stream: &str,
    last: u64,
    to: u64,
) -> Result<Option<u64>, JetStreamError> {
    #[derive(Deserialize)]
    struct Info {
        state: State,
    }
    #[derive(Deserialize)]
    struct State {
        #[serde(flatten)]
        known: StreamState,
        #[serde(default)]
        deleted: Option<BTreeSet<u64>>,
    }
    let subject = format!("STREAM.INFO.{stream}");
    let body = serde_json::json!({ "deleted_details": true });
    let State { known, deleted } = ask::<Info>(nats, subject, &body).await?.state;
    if known.messages == 0 {
        return Ok(None);
    }
    let deleted = deleted.unwrap_or_default();
    let mut places = known.first_seq.max(last + 1)..=known.last_seq.min(to);
    Ok(places.find(|place| !deleted.contains(place)))
}

/// Behind the description of a stream that is not known yet to be on the server's disk.
const BEING_MADE: &str = " (being made)";

/// Makes the stream if it is missing, and compares `fields` of its settings if it is there. One that it made
/// is there again after the server was started again, also where a folder of that name was there already: a
/// server that died while it made the stream leaves one that it does not load, and does not write settings
/// there when it makes the stream again, but only when they change.
pub(crate) async fn ensure(
    nats: &Nats,
    wanted: &stream::Config,
    fields: &[&'static str],
) -> Result<(), ProvisionError> {
    let mut making = wanted.clone();
    let description = wanted.description.clone().unwrap_or_default();
    making.description = Some(description + BEING_MADE);
    let made = make(nats, &making, fields).await?;
    let told = made["description"].as_str().unwrap_or_default();
    if !told.ends_with(BEING_MADE) {
        return Ok(());
    }
    match keep_settings(nats, wanted, made).await {
        Err(ProvisionError::Refused { stream, detail }) => {
            // whoever may change it does so when it finds it
            warn!(
                stream,
                detail,
                "a stream was made, and is gone if the server starts again on a folder that was left"
            );
            Ok(())
        }
        other => other,
    }
}

/// Has the server write the stream's settings to its disk, by giving the stream its own description.
async fn keep_settings(
    nats: &Nats,
    wanted: &stream::Config,
    mut config: Value,
) -> Result<(), ProvisionError> {
    config["description"] = wanted.description.clone().unwrap_or_default().into();
    let subject = format!("STREAM.UPDATE.{}", wanted.name);
    let updated = ask::<StreamInfo>(nats, subject, &config).await;
    let failed = |error| provision_error(&wanted.name, error);
    updated.map(drop).map_err(failed)
}

/// The settings of the stream, made if it is missing, after `fields` of them were compared.
async fn make(
    nats: &Nats,
    wanted: &stream::Config,
    fields: &[&'static str],
) -> Result<Value, ProvisionError> {
    match inspected(nats, wanted, fields).await {
        Err(ProvisionError::Missing { .. }) => {}
        other => return other,
    }
    let subject = format!("STREAM.CREATE.{}", wanted.name);
    let body = serde_json::to_value(wanted).expect("a stream's settings encode to JSON");
    match ask::<StreamInfo>(nats, subject, &body).await {
        Ok(made) => compare(wanted, &made.config, fields).map(|()| made.config),
        // somebody else made it meanwhile
        Err(error) if error.code() == Some(ErrorCode::STREAM_NAME_EXIST) => {
            inspected(nats, wanted, fields).await
        }
        Err(error) => Err(provision_error(&wanted.name, error)),
    }
}

/// Takes a stream out, with all that it holds: for what is made again.
pub async fn delete(nats: &Nats, stream: &str) -> Result<(), JetStreamError> {
    let subject = format!("STREAM.DELETE.{stream}");
    match ask::<Value>(nats, subject, &serde_json::json!({})).await {
        Err(error) if error.code() == Some(ErrorCode::STREAM_NOT_FOUND) => Ok(()),
        other => other.map(drop),
    }
}

/// As [`ensure`], for a stream that can be rebuilt: it need not be on disk before it is acknowledged,
/// where the server knows how to and there is but one copy.
pub(crate) async fn ensure_derived(
    nats: &Nats,
    mut wanted: stream::Config,
    fields: &[&'static str],
) -> Result<(), ProvisionError> {
    let knows_how = nats.client().is_server_compatible(2, 12, 0);
    if !knows_how || wanted.num_replicas > 1 {
        wanted.persist_mode = None;
    }
    drop_offline(nats, &wanted.name).await?;
    match make(nats, &wanted, fields).await {
        // the connected server knows how, another one of its cluster may not
        Err(ProvisionError::Refused { .. }) if wanted.persist_mode.is_some() => {
            wanted.persist_mode = None;
            make(nats, &wanted, fields).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Takes a stream out that the server has and does not serve, as one of whose files it cannot read: it would
/// be so after every start.
async fn drop_offline(nats: &Nats, stream: &str) -> Result<(), ProvisionError> {
    let reason = match info(nats, stream).await {
        Err(JetStreamError::Refused(error))
            if error.error_code() == ErrorCode::STREAM_OFFLINE_REASON =>
        {
            error.to_string()
        }
        _ => return Ok(()),
    };
    warn!(
        stream,
        reason, "the server does not serve a stream that is derived: it is made again"
    );
    let refused = |error: JetStreamError| ProvisionError::Refused {
        stream: stream.to_owned(),
        detail: format!(
            "{reason}; it is derived, and made again by `seatbelt nats provision`, or where its folder is deleted (docs/recovery.md): {}",
            in_one_line(&error)
        ),
    };
    delete(nats, stream).await.map_err(refused)
}

/// Whether the stream is there, whatever its settings.
pub(crate) async fn present(nats: &Nats, stream: &str) -> Result<(), ProvisionError> {
    let found = info(nats, stream).await;
    found
        .map(drop)
        .map_err(|error| provision_error(stream, error))
}

/// Compares `fields` of the stream's settings; it must be there.
pub(crate) async fn inspect(
    nats: &Nats,
    wanted: &stream::Config,
    fields: &[&'static str],
) -> Result<(), ProvisionError> {
    inspected(nats, wanted, fields).await.map(drop)
}

async fn inspected(
    nats: &Nats,
    wanted: &stream::Config,
    fields: &[&'static str],
) -> Result<Value, ProvisionError> {
    match info(nats, &wanted.name).await {
        Ok(found) => compare(wanted, &found.config, fields).map(|()| found.config),
        Err(error) => Err(provision_error(&wanted.name, error)),
    }
}

/// What a failed request means for whoever needs the stream.
pub fn provision_error(stream: &str, error: JetStreamError) -> ProvisionError {
    let stream = stream.to_owned();
    match error {
        JetStreamError::Refused(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            ProvisionError::Missing { stream }
        }
        // 10008 and its like pass: the cluster is electing a leader
        JetStreamError::Refused(error) if is_passing(error.error_code()) => {
            ProvisionError::Unreachable {
                stream,
                source: error.into(),
            }
        }
        JetStreamError::Refused(error) => ProvisionError::Refused {
            stream,
            detail: error.to_string(),
        },
        JetStreamError::Server(error) if error.kind() == RequestErrorKind::NoResponders => {
            let detail = "nobody answers for jetstream: is it enabled, and may this user use it?";
            ProvisionError::Refused {
                stream,
                detail: detail.to_owned(),
            }
        }
        JetStreamError::Server(error) => ProvisionError::Unreachable {
            stream,
            source: error.into(),
        },
        JetStreamError::Denied(denied) => ProvisionError::Refused {
            stream,
            detail: denied.to_string(),
        },
    }
}

/// Whether the server itself expects to answer better soon: a cluster without a leader, or not all there
/// yet, a stream that is moving, a server on its way up or down.
pub fn is_passing(code: ErrorCode) -> bool {
    [
        ErrorCode::CLUSTER_NOT_AVAILABLE,
        ErrorCode::CLUSTER_NOT_LEADER,
        ErrorCode::CLUSTER_NOT_ASSIGNED,
        ErrorCode::CLUSTER_INCOMPLETE,
        ErrorCode::CLUSTER_NO_PEERS,
        ErrorCode::STREAM_OFFLINE,
        ErrorCode::RAFT_GENERAL,
        ErrorCode::JETSTREAM_NOT_ENABLED,
    ]
    .contains(&code)
}

/// A setting that is absent is the same as one at rest.
fn at_rest(value: Option<&Value>) -> Value {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => Value::Null,
        Some(Value::String(text)) if text == "default" => Value::Null,
        Some(Value::Number(number)) if number.as_i64() == Some(0) => Value::Null,
        Some(other) => other.clone(),
    }
}

fn compare(
    wanted: &stream::Config,
    found: &Value,
    fields: &[&'static str],
) -> Result<(), ProvisionError> {
    let goal = serde_json::to_value(wanted).expect("a stream's settings encode to JSON");
    for &field in fields {
        let (found, wanted_value) = (at_rest(found.get(field)), at_rest(goal.get(field)));
        if found != wanted_value {
            return Err(ProvisionError::Differs {
                stream: wanted.name.clone(),
                field,
                found: found.to_string(),
                wanted: wanted_value.to_string(),
            });
        }
    }
    Ok(())
}
