//! The bucket META, the stream of usage events, and what clients' requests are bound by, looked at while the ledger
//! runs: none can be derived, and without a look nobody would miss them before the next start.
//!
//! Usage events that are gone are gone; their stream is made again, so that the next ones are kept. META is
//! not made again here: with it went what it knew of the journals' ends, and only an operator may go on
//! without that (`seatbelt ledger rebuild-meta`). Nor are the buckets of threads and first uses, which gateways may not
//! make.

use std::time::Duration;

use seatbelt_schemas::chain::in_one_line;
use seatbelt_schemas::names::Names;
use tokio::time::timeout;
use tracing::error;

use super::{
    Meta, Nats,
    provision::{GenesisError, meta},
    settings::Settings,
    stream::info,
};

/// How long each question may take.
const ASK_MAX: Duration = Duration::from_secs(2);

/// Looks at them, for one ledger.
#[derive(Debug, Clone)]
pub struct Vitals {
    nats: Nats,
    names: Names,
    replicas: u8,
    meta: Meta,
}

impl Vitals {
    /// As they were when this process began.
    pub fn new(nats: &Nats, names: &Names, replicas: u8, meta: &Meta) -> Self {
        Self {
            nats: nats.clone(),
            names: names.clone(),
            replicas,
            meta: meta.clone(),
        }
    }

    /// What stands against them, each with its remedy. A server that does not answer says nothing about
    /// them, and is told of elsewhere.
    pub async fn look(&self) -> Vec<String> {
        let threads = Settings::threads(&self.names, self.replicas);
        let first_uses = Settings::first_uses(&self.names, self.replicas);
        let (meta, usage, threads, first_uses) = futures::future::join4(
            self.meta(),
            self.usage(),
            self.bound_by(&threads, "responses are bound to nobody"),
            self.bound_by(&first_uses, "requests with an Idempotency-Key are refused"),
        )
        .await;
        let found = meta.into_iter().chain(usage);
        found.chain(threads).chain(first_uses).collect()
    }

    /// A bucket without which all other requests are served; `else_what` is what becomes of those that need it.
    async fn bound_by(&self, settings: &Settings, else_what: &str) -> Option<String> {
        let bucket = settings.bucket_name()?;
        let found = timeout(ASK_MAX, info(&self.nats, settings.stream())).await;
        match found.ok()? {
            Ok(info) => {
                let (held, most) = (info.state.messages, info.config["max_msgs"].as_u64()?);
                let nearly = held.saturating_mul(10) >= most.saturating_mul(9);
                nearly.then(|| format!("bucket {bucket} holds {held} of {most} at most: where it is full, {else_what} until some grow old"))
            }
            Err(error) if error.is_missing() => Some(format!(
                "bucket {bucket} is gone, so {else_what}: run `seatbelt nats provision`, or start `seatbelt up` again"
            )),
            Err(_) => None,
        }
    }

    async fn meta(&self) -> Option<String> {
        let bucket = self.names.meta_bucket();
        let remedy = "stop all gateways and projectors, run `seatbelt ledger rebuild-meta`, and start them again: no start goes on without it";
        let found = timeout(ASK_MAX, meta(&self.nats, &self.names)).await;
        let trouble = match found {
            Ok(Ok(found)) if found == self.meta => return None,
            Ok(Ok(found)) => format!("names ledger {} and not {}", found.ledger, self.meta.ledger),
            Ok(Err(GenesisError::Missing { .. })) => "is gone".to_owned(),
            Ok(Err(GenesisError::Deleted { .. })) => "was emptied".to_owned(),
            Ok(Err(error @ GenesisError::Unreadable { .. })) => {
                format!("cannot be read ({})", in_one_line(&error))
            }
            // the server answers about the bucket and not what is in it
            Ok(Err(GenesisError::Store(error))) if self.is_there(&format!("KV_{bucket}")).await => {
                format!("cannot be read ({})", in_one_line(&error))
            }
            Ok(Err(_)) | Err(_) => return None,
        };
        Some(format!("bucket {bucket} {trouble}: {remedy}"))
    }

    async fn usage(&self) -> Option<String> {
        let stream = self.names.usage_stream();
        let found = timeout(ASK_MAX, info(&self.nats, &stream)).await;
        let gone = matches!(&found, Ok(Err(error)) if error.is_missing());
        if !gone {
            return None;
        }
        let made = timeout(
            ASK_MAX,
            Settings::usage(&self.names, self.replicas).ensure(&self.nats),
        )
        .await;
        let failure = match made {
            Ok(Ok(())) => {
                error!(
                    stream,
                    "the stream of usage events is gone: made again, empty; requests whose neuron had reported only there are charged at their hold"
                );
                return None;
            }
            Ok(Err(error)) => in_one_line(&error),
            Err(_) => "no answer in time".to_owned(),
        };
        Some(format!(
            "stream {stream} is gone and cannot be made again: {failure}"
        ))
    }

    async fn is_there(&self, stream: &str) -> bool {
        matches!(timeout(ASK_MAX, info(&self.nats, stream)).await, Ok(Ok(_)))
    }
}
