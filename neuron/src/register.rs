//! NATS, as the neuron uses it: the usage stream and the bucket in which neurons register.
//!
//! The registration is written again and again and dies with its neuron by the bucket's age limit; a
//! neuron that stops in order deletes it at once.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{self, kv, stream},
};
use bytes::Bytes;
use seatbelt_schemas::{ids::NeuronId, names::Names, neuron::NeuronRecord, wire};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{HEARTBEAT, HEARTBEAT_TTL, NeuronConfig},
    error::NeuronError,
    usage::{SinkError, UsageSink},
};

/// How long the stream remembers message ids. An event offered twice comes within seconds; across a
/// restart, within minutes.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(30 * 60);

/// The stream `USAGE` as a sink.
pub(crate) struct UsageStream {
    jetstream: jetstream::Context,
    subject: String,
}

impl UsageStream {
    /// Makes the stream if it is not there.
    pub(crate) async fn open(
        client: async_nats::Client,
        names: &Names,
        config: &NeuronConfig,
    ) -> Result<Self, NeuronError> {
        let jetstream = jetstream::new(client);
        let name = names.usage_stream();
        let wanted = stream::Config {
            name: name.clone(),
            subjects: vec![names.usage_subjects()],
            storage: stream::StorageType::File,
            num_replicas: config.replicas,
            duplicate_window: DUPLICATE_WINDOW,
            ..stream::Config::default()
        };
        let made = jetstream.get_or_create_stream(wanted).await;
        made.map_err(|error| NeuronError::Bus {
            what: format!("stream {name}"),
            detail: error.to_string(),
        })?;
        Ok(Self {
            jetstream,
            subject: names.usage_subject(&config.id),
        })
    }
}

impl UsageSink for UsageStream {
    fn publish(
        &self,
        id: String,
        event: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + '_>> {
        Box::pin(async move {
            let mut headers = HeaderMap::new();
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
            let sent = self
                .jetstream
                .publish_with_headers(self.subject.clone(), headers, event)
                .await;
            let ack = sent.map_err(|error| SinkError(error.to_string()))?;
            ack.await.map_err(|error| SinkError(error.to_string()))?;
            Ok(())
        })
    }
}

/// The bucket in which this neuron registers.
pub(crate) struct Register {
    bucket: kv::Store,
    neuron: NeuronId,
}

impl Register {
    /// Makes the bucket if it is not there.
    pub(crate) async fn open(
        client: async_nats::Client,
        names: &Names,
        config: &NeuronConfig,
    ) -> Result<Self, NeuronError> {
        let jetstream = jetstream::new(client);
        let name = names.neuron_bucket();
        let bucket = match jetstream.get_key_value(&name).await {
            Ok(bucket) => bucket,
            Err(_) => {
                let wanted = kv::Config {
                    bucket: name.clone(),
                    history: 1,
                    max_age: HEARTBEAT_TTL,
                    storage: stream::StorageType::Memory,
                    num_replicas: config.replicas,
                    ..kv::Config::default()
                };
                let made = jetstream.create_key_value(wanted).await;
                made.map_err(|error| NeuronError::Bus {
                    what: format!("bucket {name}"),
                    detail: error.to_string(),
                })?
            }
        };
        Ok(Self {
            bucket,
            neuron: config.id.clone(),
        })
    }

    /// Writes what `record` gives, now and at every heartbeat, until `stop`; then takes it back.
    pub(crate) async fn keep(
        self,
        record: Arc<dyn Fn() -> NeuronRecord + Send + Sync>,
        stop: CancellationToken,
    ) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = stop.cancelled() => break,
            }
            let written = self
                .bucket
                .put(self.neuron.as_str(), wire::encode(&record()).into())
                .await;
            if let Err(error) = written {
                tracing::warn!(%error, "the neuron's registration was not written, the next heartbeat tries again");
            }
        }
        if let Err(error) = self.bucket.delete(self.neuron.as_str()).await {
            tracing::warn!(%error, "the neuron's registration was not taken back, it ends by its age");
        }
    }
}
