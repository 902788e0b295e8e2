//! The stream of the public feed, appended to by compare and append.
//!
//! Messages of one call are sent without waiting for each other, each conditional on the sequence and
//! on the id of the one before, so that what lands is always a prefix, in order, once. The sequence
//! alone would not do: where somebody else appends meanwhile, a later message of a call that comes
//! late could find its sequence by chance, and land without those before it. Derived from the journal.

use std::{sync::Arc, time::Duration};

use async_nats::{
    HeaderMap, HeaderValue,
    header::{NATS_EXPECTED_LAST_MESSAGE_ID, NATS_EXPECTED_LAST_SEQUENCE, NATS_MESSAGE_ID},
    jetstream::{
        context::{PublishAckFuture, PublishErrorKind},
        stream::{Config, PersistenceMode, RawMessageErrorKind, StorageType},
    },
};
use bytes::Bytes;
use futures::{
    StreamExt,
    future::try_join_all,
    stream::{self, BoxStream},
};
use seatbelt_schemas::names::Names;
use tokio::time::timeout;

use super::{
    Nats, ProvisionError,
    cursor::Cursor,
    stream::{ensure_derived, info},
};
use crate::store::{StoreError, WriteError};

/// How long the server remembers message ids: a second belt, nothing relies on it.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// How long one append may take, all its messages together.
const APPEND_MAX: Duration = Duration::from_secs(10);
/// Most messages of one append: all are on their way at once.
pub const FEED_APPEND_MAX: usize = 1024;

/// A message for the feed.
#[derive(Debug, Clone)]
pub struct FeedMessage<'a> {
    /// Where it is published.
    pub subject: &'a str,
    /// Its headers, `Nats-Msg-Id` among them.
    pub headers: &'a [(&'static str, String)],
    /// Its payload.
    pub payload: Bytes,
}

/// A message's place on the feed and its `Nats-Msg-Id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEntry {
    /// Its place.
    pub sequence: u64,
    /// Its id; empty where it has none, for somebody else published it.
    pub id: String,
}

/// The stream of the feed. Clones share the connection.
#[derive(Debug, Clone)]
pub struct FeedStream {
    nats: Nats,
    stream: Arc<str>,
}

impl FeedStream {
    /// Opens the stream, made if missing with `replicas` copies.
    pub async fn open(nats: &Nats, names: &Names, replicas: u8) -> Result<Self, ProvisionError> {
        let config = Config {
            name: names.feed_stream(),
            description: Some("seatbelt feed: one event per message".to_owned()),
            subjects: vec![names.feed_subjects()],
            storage: StorageType::File,
            num_replicas: usize::from(replicas),
            max_messages: -1,
            max_bytes: -1,
            max_messages_per_subject: -1,
            max_message_size: -1,
            max_consumers: -1,
            duplicate_window: DUPLICATE_WINDOW,
            persist_mode: Some(PersistenceMode::Async),
            ..Config::default()
        };
        ensure_derived(nats, config, &["subjects", "storage"]).await?;
        Ok(Self {
            nats: nats.clone(),
            stream: names.feed_stream().into(),
        })
    }

    fn error(
        &self,
        verb: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError {
            action: format!("{verb} stream {}", self.stream),
            source: source.into(),
        }
    }

    /// Sequence of the last message; zero on an empty stream.
    pub async fn end(&self) -> Result<u64, StoreError> {
        let info = info(&self.nats, &self.stream).await;
        let info = info.map_err(|error| self.error("read the end of", error))?;
        Ok(info.state.last_seq)
    }

    /// The message at one place; `None` where there is none (any more).
    pub async fn entry(&self, at: u64) -> Result<Option<FeedEntry>, StoreError> {
        let failed = |source| self.error("read", source);
        let stream = self
            .nats
            .jetstream()
            .get_stream_no_info(&*self.stream)
            .await;
        let stream = stream.map_err(|error| failed(error.into()))?;
        match stream.get_raw_message(at).await {
            Ok(message) => Ok(Some(entry(at, Some(&message.headers)))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed(Box::<dyn std::error::Error + Send + Sync>::from(
                error,
            ))),
        }
    }

    /// Messages after `after` up to and including `to`, in order; places that hold none are left
    /// out. `to` must be at most the stream's end.
    pub fn entries(&self, after: u64, to: u64) -> BoxStream<'_, Result<FeedEntry, StoreError>> {
        let cursor = Cursor::after(self.nats.clone(), self.stream.to_string(), after);
        let reader = Some((cursor.headers_only(), after));
        stream::unfold(reader, move |reader| async move {
            let (mut cursor, last) = reader.filter(|(_, last)| *last < to)?;
            match cursor.next_up_to(last, to).await {
                Ok(None) => None,
                Ok(Some(item)) => {
                    let entry = entry(item.sequence, item.message.message.headers.as_ref());
                    Some((Ok(entry), Some((cursor, item.sequence))))
                }
                Err(source) => Some((Err(self.error("read", source)), None)),
            }
        })
        .boxed()
    }

    /// Appends the messages in order if the stream ends at `expected`, and gives the new end. What
    /// lands is always a prefix, also where this fails or the caller goes away half way through.
    pub async fn append(
        &self,
        expected: u64,
        messages: &[FeedMessage<'_>],
    ) -> Result<u64, WriteError> {
        if messages.len() > FEED_APPEND_MAX {
            let detail = format!(
                "{} messages at once, at most {FEED_APPEND_MAX}",
                messages.len()
            );
            return Err(self.error("append to", detail).into());
        }
        let mut troubles = self.nats.troubles();
        let append = timeout(APPEND_MAX, self.append_all(expected, messages));
        tokio::select! {
            biased;
            done = append => done.map_err(|elapsed| self.error("append to", elapsed))?,
            () = troubles.lost() => {
                Err(self.error("append to", "the connection was lost").into())
            }
        }
    }

    async fn append_all(
        &self,
        expected: u64,
        messages: &[FeedMessage<'_>],
    ) -> Result<u64, WriteError> {
        let mut acks = Vec::with_capacity(messages.len());
        let mut before: Option<HeaderValue> = None;
        for (last, message) in (expected..).zip(messages) {
            let mut headers = HeaderMap::new();
            for (name, value) in message.headers {
                headers.insert(*name, value.as_str());
            }
            headers.insert(NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(last));
            let id = headers.get(NATS_MESSAGE_ID).cloned();
            if let Some(before) = std::mem::replace(&mut before, id) {
                headers.insert(NATS_EXPECTED_LAST_MESSAGE_ID, before);
            }
            let subject = message.subject.to_owned();
            let jetstream = self.nats.jetstream();
            let sent = jetstream.publish_with_headers(subject, headers, message.payload.clone());
            let sent = sent.await.map_err(|error| self.error("append to", error))?;
            acks.push(self.landed(last + 1, sent));
        }
        let count = acks.len() as u64;
        try_join_all(acks).await?;
        Ok(expected + count)
    }

    async fn landed(&self, at: u64, sent: PublishAckFuture) -> Result<(), WriteError> {
        match sent.await {
            Ok(ack) if ack.sequence == at && !ack.duplicate => Ok(()),
            // the server knew the id: it is on the stream already, elsewhere
            Ok(_) => Err(WriteError::Moved),
            Err(error)
                if matches!(
                    error.kind(),
                    PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId
                ) =>
            {
                Err(WriteError::Moved)
            }
            Err(error) => Err(self.error("append to", error).into()),
        }
    }
}

fn entry(sequence: u64, headers: Option<&HeaderMap>) -> FeedEntry {
    let id = headers.and_then(|headers| headers.get(NATS_MESSAGE_ID));
    FeedEntry {
        sequence,
        id: id.map_or_else(String::new, |id| id.as_str().to_owned()),
    }
}
