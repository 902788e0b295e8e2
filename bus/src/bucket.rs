//! A key-value bucket with compare-and-swap on every write, but where a key has one writer.
//!
//! Reads go to the stream's leader: what was written and acknowledged is read. Not here: what the
//! values mean, and history.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_nats::{
    HeaderMap, HeaderValue,
    header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
    jetstream::{
        self, ErrorCode,
        stream::{LastRawMessageError, LastRawMessageErrorKind},
    },
};
use bytes::Bytes;
use seatbelt_schemas::{chain::in_one_line, ids::AccountId, names::Names};
use serde::Deserialize;
use tracing::warn;

use super::{
    Nats, ProvisionError,
    ailing::Ailing,
    publish::{Acceptance, NOBODY, SILENCE, publish},
    settings::{Settings, bucket_stream},
    stream::{JetStreamError, ask, delete, get_subject, is_passing, present, provision_error},
};
use crate::kept::{Kept, Revision, StoreError, WriteError};

/// How long a write waits for its acknowledgement.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// Header that marks a deleted key, as every NATS client knows it.
const OPERATION: &str = "KV-Operation";
const DELETED: &str = "DEL";

#[derive(Debug, Clone)]
pub struct Bucket {
    nats: Nats,
    name: Arc<str>,
    /// How it is made again where it is gone; only what is derived is.
    derived: Option<Arc<Settings>>,
    ailing: Arc<Mutex<Ailing>>,
}

impl Bucket {
    /// Opens the bucket, made if missing.
    pub async fn open(nats: &Nats, settings: Settings) -> Result<Self, ProvisionError> {
        settings.ensure(nats).await?;
        let name = settings.bucket_name();
        let name = name.expect("the settings are those of a bucket").into();
        Ok(Self {
            nats: nats.clone(),
            name,
            derived: settings.is_derived().then(|| Arc::new(settings)),
            ailing: Arc::default(),
        })
    }

    /// Opens the bucket if it is there.
    pub async fn open_existing(nats: &Nats, name: &str) -> Result<Self, ProvisionError> {
        let bucket = Self::at(nats, name);
        present(nats, &bucket.stream()).await?;
        Ok(bucket)
    }

    /// The bucket of that name, whether it is there or not.
    pub fn at(nats: &Nats, name: &str) -> Self {
        Self {
            nats: nats.clone(),
            name: name.into(),
            derived: None,
            ailing: Arc::default(),
        }
    }

    /// Whether it is there.
    pub async fn exists(&self) -> Result<bool, StoreError> {
        match present(&self.nats, &self.stream()).await {
            Ok(()) => Ok(true),
            Err(ProvisionError::Missing { .. }) => Ok(false),
            Err(error) => Err(self.error("look for", "it", error)),
        }
    }

    /// Makes the bucket again, empty, if it is derived and gone. Says whether it did; whoever keeps
    /// something in it finds that it is not there, and writes it again.
    pub async fn mend(&self) -> Result<bool, ProvisionError> {
        let Some(settings) = &self.derived else {
            return Ok(false);
        };
        match settings.inspect(&self.nats).await {
            Err(ProvisionError::Missing { .. }) => {}
            other => return other.map(|()| false),
        }
        warn!(
            bucket = &*self.name,
            "the bucket is gone: made again, to be filled from the journal"
        );
        settings.ensure(&self.nats).await?;
        Ok(true)
    }

    /// Notes how the server fared that was asked something at `begun`. A bucket that it has and keeps nothing in
    /// any more is made again, where its values are not worth keeping.
    async fn fared<T>(&self, begun: Instant, answer: Result<T, &StoreError>) {
        let Some(settings) = self.derived.as_ref().filter(|kept| kept.is_renewed()) else {
            return;
        };
        let error = {
            // no code panics while it holds the lock half way through a change
            let mut ailing = self.ailing.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(_) => return ailing.is_well(),
                Err(_) if !ailing.failed(begun, Instant::now()) => return,
                Err(error) => in_one_line(error),
            }
        };
        // a server that is away, or has it not, says nothing of what it keeps
        if settings.inspect(&self.nats).await.is_err() {
            return;
        }
        warn!(
            bucket = &*self.name,
            error, "the server keeps nothing in the bucket any more: it is made again"
        );
        if let Err(error) = Self::open_anew(&self.nats, Settings::clone(settings)).await {
            warn!(bucket = &*self.name, %error, "the bucket is not made again yet");
        }
    }

    /// Takes the bucket out and makes it again, empty: for one that the server cannot read or write any more.
    pub async fn open_anew(nats: &Nats, settings: Settings) -> Result<Self, ProvisionError> {
        let deleted = delete(nats, settings.stream()).await;
        deleted.map_err(|error| provision_error(settings.stream(), error))?;
        Self::open(nats, settings).await
    }

    /// Name of the stream behind it.
    pub fn stream(&self) -> String {
        bucket_stream(&self.name)
    }

    /// What a subject of the stream behind it begins with.
    pub fn subject_prefix(&self) -> String {
        format!("$KV.{}.", self.name)
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    fn error(
        &self,
        verb: &str,
        key: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError {
            action: format!("{verb} {key} in bucket {}", self.name),
            source: source.into(),
        }
    }

    /// The value of a key, deleted or not; revision zero where there never was one.
    pub async fn read(&self, key: &str) -> Result<Kept, StoreError> {
        let begun = Instant::now();
        let kept = self.get(key).await;
        if let Err(error) = &kept
            && is_damage(error)
        {
            self.fared(begun, Err::<(), _>(error)).await;
        }
        kept
    }

    async fn get(&self, key: &str) -> Result<Kept, StoreError> {
        let none = Kept {
            value: None,
            revision: Revision(0),
        };
        let stream = self
            .nats
            .jetstream()
            .get_stream_no_info(self.stream())
            .await;
        let stream = stream.map_err(|error| self.error("read", key, error))?;
        let (asked, subject) = (get_subject(&self.stream()), self.subject(key));
        let asking = stream.get_last_raw_message_by_subject(&subject);
        let found = self.nats.unless_denied(&asked, asking).await;
        match found.map_err(|denied| self.error("read", key, denied))? {
            Ok(message) => {
                let live = message.headers.get(OPERATION).is_none();
                Ok(Kept {
                    value: live.then_some(message.payload),
                    revision: Revision(message.sequence),
                })
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(none),
            Err(error) if is_gone(&error) && self.derived.is_some() => {
                let mended = self.mend().await;
                mended.map_err(|error| self.error("make again for", key, error))?;
                Ok(none)
            }
            Err(error) => Err(self.error("read", key, error)),
        }
    }

    /// Writes if the key still has the `expected` revision (zero: was never written), and gives the
    /// new one.
    pub async fn write(
        &self,
        key: &str,
        expected: Revision,
        value: Bytes,
    ) -> Result<Revision, WriteError> {
        self.put(key, Some(expected), HeaderMap::new(), value).await
    }

    /// Writes, whatever stands there: for a key that has one writer.
    pub async fn overwrite(&self, key: &str, value: Bytes) -> Result<Revision, WriteError> {
        self.put(key, None, HeaderMap::new(), value).await
    }

    /// Deletes if the key still has the `expected` revision.
    pub async fn delete(&self, key: &str, expected: Revision) -> Result<(), WriteError> {
        self.take_out(key, Some(expected)).await
    }

    /// Deletes, whatever stands there: for a key that has one writer.
    pub async fn remove(&self, key: &str) -> Result<(), WriteError> {
        self.take_out(key, None).await
    }

    async fn take_out(&self, key: &str, expected: Option<Revision>) -> Result<(), WriteError> {
        let mut headers = HeaderMap::new();
        headers.insert(OPERATION, DELETED);
        let deleted = self.put(key, expected, headers, Bytes::new()).await;
        deleted.map(|_| ())
    }

    /// Takes a key out with its revisions, as if it had never been written.
    pub async fn forget(&self, key: &str) -> Result<(), StoreError> {
        let subject = format!("STREAM.PURGE.{}", self.stream());
        let body = serde_json::json!({ "filter": self.subject(key) });
        let purged = ask::<serde_json::Value>(&self.nats, subject, &body).await;
        let purged = purged.map(drop);
        purged.map_err(|error| self.error("purge", key, error))
    }

    /// Takes out what was written at one revision, and leaves no mark that it was there. What a key has by now of
    /// another revision stays.
    pub async fn take_back(&self, revision: Revision) -> Result<(), StoreError> {
        let subject = format!("STREAM.MSG.DELETE.{}", self.stream());
        let body = serde_json::json!({ "seq": revision.0, "no_erase": true });
        match ask::<serde_json::Value>(&self.nats, subject, &body).await {
            Err(JetStreamError::Refused(error)) if is_gone_already(&error) => Ok(()),
            Err(error) => Err(self.error("take back", &revision.0.to_string(), error)),
            Ok(_) => Ok(()),
        }
    }

    /// Every key that begins so, at most as many as a server tells in one answer.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let page = self.page(&self.subject(&format!("{prefix}.>")), 0).await;
        let found = page.map_err(|error| self.error("list", prefix, error))?;
        let before = self.subject_prefix();
        let keys = found.state.subjects.into_keys();
        Ok(keys
            .filter_map(|subject| subject.strip_prefix(&before).map(str::to_owned))
            .collect())
    }

    /// The accounts that have something under the key of their snapshot.
    pub async fn accounts(&self) -> Result<Vec<AccountId>, StoreError> {
        let wanted = self.subject(Names::snapshot_account_keys());
        let mut accounts = Vec::new();
        let mut offset = 0;
        loop {
            let page = self.page(&wanted, offset).await;
            let page = page.map_err(|error| self.error("list", "accounts", error))?;
            let keys = page.state.subjects.keys();
            let before = self.subject_prefix();
            let keys = keys.filter_map(|subject| subject.strip_prefix(&before));
            accounts.extend(keys.filter_map(Names::snapshot_head_account));
            offset += page.state.subjects.len();
            if page.state.subjects.is_empty() || offset >= page.total {
                return Ok(accounts);
            }
        }
    }

    /// Subjects from the one numbered `offset`, as many as the server tells at once.
    async fn page(&self, filter: &str, offset: usize) -> Result<Page, JetStreamError> {
        let subject = format!("STREAM.INFO.{}", self.stream());
        let body = serde_json::json!({ "subjects_filter": filter, "offset": offset });
        ask(&self.nats, subject, &body).await
    }

    async fn put(
        &self,
        key: &str,
        expected: Option<Revision>,
        headers: HeaderMap,
        value: Bytes,
    ) -> Result<Revision, WriteError> {
        let begun = Instant::now();
        let put = self.send(key, expected, headers, value).await;
        let answer = match &put {
            Ok(_) | Err(WriteError::Moved) => Ok(()),
            Err(WriteError::Unreachable(error)) => Err(error),
        };
        self.fared(begun, answer).await;
        put
    }

    async fn send(
        &self,
        key: &str,
        expected: Option<Revision>,
        mut headers: HeaderMap,
        value: Bytes,
    ) -> Result<Revision, WriteError> {
        if let Some(Revision(expected)) = expected {
            let expected = HeaderValue::from(expected);
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected);
        }
        match publish(&self.nats, &self.subject(key), headers, value, WRITE_MAX).await {
            Acceptance::Acknowledged(ack) => Ok(Revision(ack.sequence)),
            Acceptance::WrongPlace => Err(WriteError::Moved),
            Acceptance::Refused(detail) => Err(self.error("write", key, detail).into()),
            Acceptance::Silence => Err(self.error("write", key, SILENCE).into()),
            Acceptance::Nobody => {
                let mended = self.mend().await;
                mended.map_err(|error| self.error("make again for", key, error))?;
                Err(self.error("write", key, NOBODY).into())
            }
            Acceptance::Unknown(source) => Err(self.error("write", key, source).into()),
        }
    }
}

/// Some of a stream's subjects.
#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    total: usize,
    state: PageState,
}

#[derive(Debug, Deserialize)]
struct PageState {
    #[serde(default)]
    subjects: BTreeMap<String, u64>,
}

/// Whether a message was not deleted since nothing is at its place any more.
fn is_gone_already(error: &jetstream::Error) -> bool {
    let code = error.error_code();
    code == ErrorCode::SEQUENCE_NOT_FOUND
        || (code == ErrorCode::STREAM_MESSAGE_DELETE_FAILED
            && error.to_string().contains("no message"))
}

fn is_gone(error: &LastRawMessageError) -> bool {
    matches!(error.kind(), LastRawMessageErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Whether the server answered that it cannot read what it keeps, and will not later either.
pub fn is_damage(error: &StoreError) -> bool {
    let found = error.source.downcast_ref::<LastRawMessageError>();
    found.is_some_and(|error| match error.kind() {
        LastRawMessageErrorKind::JetStream(error) => {
            let code = error.error_code();
            code != ErrorCode::STREAM_NOT_FOUND && !is_passing(code)
        }
        _ => false,
    })
}
