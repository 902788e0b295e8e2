//! Usage events as a neuron reports them.

use std::time::Duration;

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use seatbelt_schemas::{ids::NeuronId, names::Names};

use super::{
    Nats, ProvisionError,
    kept::StoreError,
    publish::{Acceptance, NOBODY, SILENCE, publish},
    settings::Settings,
};

/// How long a report waits for its acknowledgement.
const REPORT_MAX: Duration = Duration::from_secs(5);

/// The stream of usage events, for one neuron.
#[derive(Debug, Clone)]
pub struct UsageReports {
    nats: Nats,
    subject: String,
}

impl UsageReports {
    /// Makes the stream if it is not there.
    pub async fn open(
        nats: &Nats,
        names: &Names,
        replicas: u8,
        neuron: &NeuronId,
    ) -> Result<Self, ProvisionError> {
        Settings::usage(names, replicas).ensure(nats).await?;
        Ok(Self {
            nats: nats.clone(),
            subject: names.usage_subject(neuron),
        })
    }

    /// Hands over one event. Success means that it is stored, now or by an earlier try with the same `id`;
    /// after an error it may or may not be.
    pub async fn publish(&self, id: &str, event: Bytes) -> Result<(), StoreError> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id);
        let published = publish(&self.nats, &self.subject, headers, event, REPORT_MAX).await;
        let source = match published {
            Acceptance::Acknowledged(_) => return Ok(()),
            // no place is ever asked for
            Acceptance::WrongPlace => "the stream expects it elsewhere".into(),
            Acceptance::Refused(detail) => detail.into(),
            Acceptance::Silence => SILENCE.into(),
            Acceptance::Nobody => NOBODY.into(),
            Acceptance::Unknown(source) => source,
        };
        let action = format!("publish to {}", self.subject);
        Err(StoreError { action, source })
    }
}
