//! Whether what keeps the ledger takes anything now, how full it is, and what it would not take: looked
//! at from time to time, so that a store that is full or frozen is known before a request needs it.
//!
//! The look writes a few bytes beside the leases, which forget them by themselves. Not here: what
//! follows from it.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use seatbelt_schemas::{commit::COMMIT_BYTES_MAX, names::Names};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::timeout;

use super::{
    Bucket, Nats, ProvisionError,
    buckets::lease_bucket,
    publish::{Acceptance, publish},
};

/// How long a write may take, and any other question.
const WRITE_MAX: Duration = Duration::from_secs(2);
const ASK_MAX: Duration = Duration::from_secs(1);
/// What a server keeps and may keep, if this account may ask.
const SERVICE: &str = "$SYS.REQ.SERVER.PING.JSZ";
/// Subjects and headers of a commit, beside its payload.
const ENVELOPE_BYTES_MAX: usize = 1024;
/// What the server must take as one message.
pub const PAYLOAD_BYTES_MIN: usize = COMMIT_BYTES_MAX + ENVELOPE_BYTES_MAX;

/// What came of the write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// It was taken.
    Taken,
    /// The server says why it was not.
    Refused(String),
    /// The server answers, and the write was not acknowledged: full, broken, or frozen.
    Silence,
    /// The server does not answer, or has no stream for it now.
    Unreached(String),
}

/// How full a store is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFill {
    /// What it keeps.
    pub used: u64,
    /// What it may keep.
    pub max: u64,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSeen {
    /// Whether it takes anything.
    pub writes: Writes,
    /// How full it is, where the server tells and has a limit.
    pub stored: Option<StoreFill>,
    /// The largest message that the server takes.
    pub payload_max: usize,
}

/// Looks at the store of one ledger.
#[derive(Debug, Clone)]
pub struct StoreLook {
    nats: Nats,
    subject: String,
}

impl StoreLook {
    /// For this process, by a name that no other has.
    pub async fn start(
        nats: &Nats,
        names: &Names,
        replicas: u8,
        process: &str,
    ) -> Result<Self, ProvisionError> {
        let bucket: Bucket = lease_bucket(nats, names, replicas).await?;
        let subject = format!("{}look-{process}", bucket.subject_prefix());
        let nats = nats.clone();
        Ok(Self { nats, subject })
    }

    /// Looks once; takes a few seconds at the most.
    pub async fn look(&self) -> StoreSeen {
        let (writes, stored) = futures::future::join(self.write(), self.stored()).await;
        StoreSeen {
            writes,
            stored,
            payload_max: payload_max(&self.nats),
        }
    }

    async fn write(&self) -> Writes {
        let (headers, payload) = (HeaderMap::new(), Bytes::from_static(b"look"));
        match publish(&self.nats, &self.subject, headers, payload, WRITE_MAX).await {
            Acceptance::Acknowledged(_) | Acceptance::WrongPlace => Writes::Taken,
            Acceptance::Refused(detail) => Writes::Refused(detail),
            Acceptance::Unknown(error) => Writes::Unreached(error.to_string()),
            Acceptance::Nobody => Writes::Unreached("it is only starting".to_owned()),
            Acceptance::Silence => match timeout(ASK_MAX, self.nats.settled()).await {
                Ok(true) => Writes::Silence,
                Ok(false) | Err(_) => Writes::Unreached("it does not answer".to_owned()),
            },
        }
    }

    /// The fuller one of what the server and what the account may keep.
    async fn stored(&self) -> Option<StoreFill> {
        let asked = self.nats.client().request(SERVICE, Bytes::new());
        let answer = timeout(ASK_MAX, asked).await.ok().and_then(Result::ok);
        let of_server = answer.and_then(|answer| server_stored(&answer.payload));
        let asked = self.nats.jetstream().query_account();
        let account = timeout(ASK_MAX, asked).await.ok().and_then(Result::ok);
        let of_account = account.and_then(|account| {
            let max = u64::try_from(account.limits.max_storage?).ok()?;
            let used = account.storage;
            (max > 0).then_some(StoreFill { used, max })
        });
        let left = |stored: &StoreFill| stored.max.saturating_sub(stored.used);
        [of_server, of_account]
            .into_iter()
            .flatten()
            .min_by_key(left)
    }
}

/// Raise the server's bound: one that takes less would stop a partition at its first commit of full size.
#[derive(Debug, Error)]
#[error(
    "{servers} takes messages of at most {found} bytes, and a commit may have {needed}: set max_payload in the server's configuration to 1MB"
)]
pub struct PayloadTooSmall {
    /// The servers, without credentials.
    pub servers: String,
    /// What they take.
    pub found: usize,
    /// What they must take.
    pub needed: usize,
}

/// Whether the server takes a commit of full size.
pub fn takes_whole_commits(nats: &Nats) -> Result<(), PayloadTooSmall> {
    let (found, needed) = (payload_max(nats), PAYLOAD_BYTES_MIN);
    if found >= needed {
        return Ok(());
    }
    let servers = nats.servers().to_owned();
    Err(PayloadTooSmall {
        servers,
        found,
        needed,
    })
}

/// The largest message that the server takes.
pub fn payload_max(nats: &Nats) -> usize {
    nats.client().server_info().max_payload
}

fn server_stored(payload: &[u8]) -> Option<StoreFill> {
    #[derive(Deserialize)]
    struct Answer {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        storage: u64,
        config: Option<Limits>,
    }
    #[derive(Deserialize)]
    struct Limits {
        max_storage: i64,
    }
    let Data { storage, config } = serde_json::from_slice::<Answer>(payload).ok()?.data;
    let max = u64::try_from(config?.max_storage).ok()?;
    let used = storage;
    (max > 0).then_some(StoreFill { used, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answer: &str, expected: Option<(u64, u64)>) {
        let found = server_stored(answer.as_bytes());
        assert_eq!(found.map(|stored| (stored.used, stored.max)), expected);
    }

    #[test]
    fn what_a_server_keeps_is_read_from_its_answer() {
        let told = r#"{"server":{"id":"A"},"data":{"storage":7,"config":{"max_storage":90}}}"#;
        check(told, Some((7, 90)));
        check(
            r#"{"data":{"storage":7,"config":{"max_storage":-1}}}"#,
            None,
        );
        check(r#"{"data":{"storage":7}}"#, None);
        check("no", None);
    }
}
