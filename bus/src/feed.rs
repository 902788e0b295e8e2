//! The stream of the public feed, appended to by compare and append.
//!
//! An append is conditional on the sequence and on the id of the message before it: the stream may
//! have lost its end and been appended to since, so that the sequence alone is another message's.
//! Messages of one call are sent without waiting for each other, each conditional on the one before, so that what lands is always a prefix, in order, once. The sequence
//! alone would not do: where somebody else appends meanwhile, a later message of a call that comes
//! late could find its sequence by chance, and land without those before it. Derived from the journal.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::{
    HeaderMap, HeaderValue,
    header::{NATS_EXPECTED_LAST_MESSAGE_ID, NATS_EXPECTED_LAST_SEQUENCE, NATS_MESSAGE_ID},
    jetstream::{
        context::{PublishAckFuture, PublishErrorKind},
        message::StreamMessage,
    },
};
use bytes::Bytes;
use futures::{
    StreamExt,
    future::try_join_all,
    stream::{self, BoxStream},
};
use seatbelt_schemas::names::Names;
use serde::Deserialize;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{
    Nats, ProvisionError,
    connect::NoAnswer,
    cursor::Cursor,
    roles::BILLING_CONSUMER,
    settings::Settings,
    stream::{JetStreamError, ask, info, message_at},
};
use crate::kept::{StoreError, WriteError};

/// Settings by which a stream drops messages by itself, where an operator gave them.
const LIMITS: [&str; 4] = ["max_msgs", "max_bytes", "max_age", "max_msgs_per_subject"];
/// How long one append may take, all its messages together.
const APPEND_MAX: Duration = Duration::from_secs(10);
/// How often it is seen to that the consumer for billing is there, while the feed is written.
const BILLING_EVERY: Duration = Duration::from_secs(2);
/// Most messages of one append: all are on their way at once.
pub const FEED_APPEND_MAX: usize = 1024;

/// A message for the feed.
#[derive(Debug, Clone)]
pub struct FeedMessage<'a> {
    /// Where it is published.
    pub subject: &'a str,
    /// Its headers, `Nats-Msg-Id` among them.
    pub headers: &'a [(&'static str, String)],
    pub payload: Bytes,
}

/// A message's place on the feed and its `Nats-Msg-Id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEntry {
    pub sequence: u64,
    /// Its id; empty where it has none, for somebody else published it.
    pub id: String,
}

/// How the stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedState {
    /// The last place; zero on an empty stream.
    pub end: u64,
    /// Places up to it that hold no message any more; zero where the stream is `trimmed`.
    pub removed: u64,
    /// Whether an operator set a limit, so that the stream drops its oldest messages by itself.
    pub trimmed: bool,
}

/// What is known of the consumer for billing.
#[derive(Debug, Default)]
struct Billing {
    looked_at: Option<Instant>,
    /// When the server says that it was made.
    made: Option<String>,
    /// Another time, said once. A server that was started again says the present at first, and the truth when it is
    /// asked again.
    said: Option<String>,
}

impl Billing {
    /// The server says when it was made; whether that makes it another one than it was.
    fn is_told(&mut self, now: Instant, created: Option<String>) -> bool {
        self.looked_at = Some(now);
        let Some(created) = created else {
            return false;
        };
        let before = self.made.get_or_insert_with(|| created.clone());
        if *before == created {
            self.said = None;
            return false;
        }
        let again = self.said.take().is_some_and(|said| said == created);
        match again {
            true => *before = created,
            false => self.said = Some(created),
        }
        again
    }
}

/// What the server says of a consumer.
#[derive(Debug, Deserialize)]
struct Made {
    /// When it was made.
    created: String,
}

/// The stream of the feed. Clones share the connection.
#[derive(Debug, Clone)]
pub struct FeedStream {
    nats: Nats,
    stream: Arc<str>,
    settings: Arc<Settings>,
    billing: Arc<Mutex<Billing>>,
}

impl FeedStream {
    /// Opens the stream, made if missing with `replicas` copies.
    pub async fn open(nats: &Nats, names: &Names, replicas: u8) -> Result<Self, ProvisionError> {
        let feed = Self {
            nats: nats.clone(),
            stream: names.feed_stream().into(),
            settings: Arc::new(Settings::feed(names, replicas)),
            billing: Arc::default(),
        };
        feed.make().await?;
        Ok(feed)
    }

    /// Makes what is missing, with the consumer that billing reads with: it may make none itself.
    async fn make(&self) -> Result<(), ProvisionError> {
        self.settings.ensure(&self.nats).await?;
        self.make_for_billing().await;
        Ok(())
    }

    /// Makes the consumer that billing reads with, where it is missing: whoever bills may make none, and
    /// would wait for ever.
    async fn make_for_billing(&self) {
        let subject = format!("CONSUMER.CREATE.{}.{BILLING_CONSUMER}", self.stream);
        let body = serde_json::json!({
            "stream_name": &*self.stream,
            "action": "create",
            "config": {
                "name": BILLING_CONSUMER,
                "durable_name": BILLING_CONSUMER,
                "description": "for whoever bills: pull, acknowledge, and drop doubles by ce-id",
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "replay_policy": "instant",
            },
        });
        // nothing here relies on it, and an operator may have made another one
        let created = match ask::<Made>(&self.nats, subject, &body).await {
            Ok(Made { created }) => Some(created),
            Err(error) => {
                debug!(%error, "the consumer for billing is not made");
                None
            }
        };
        if self.billing().is_told(Instant::now(), created) {
            warn!(
                consumer = BILLING_CONSUMER,
                "the consumer for billing was gone: made again, from the start of the feed"
            );
        }
    }

    /// The same, at most every [`BILLING_EVERY`].
    async fn look_after_billing(&self) {
        let looked = self.billing().looked_at;
        if looked.is_none_or(|at| at.elapsed() >= BILLING_EVERY) {
            self.make_for_billing().await;
        }
    }

    fn billing(&self) -> MutexGuard<'_, Billing> {
        // no code panics while it holds the lock half way through a change
        self.billing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(
        &self,
        verb: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError::of_stream(verb, &self.stream, source)
    }

    /// Sequence of the last message; zero on an empty stream.
    pub async fn end(&self) -> Result<u64, StoreError> {
        Ok(self.state().await?.end)
    }

    /// How the stream ends. It is derived, so one that is gone is made again, empty; and so is the consumer
    /// for billing.
    pub async fn state(&self) -> Result<FeedState, StoreError> {
        let failed = |error: JetStreamError| self.error("read the end of", error);
        let info = match info(&self.nats, &self.stream).await {
            Err(error) if error.is_missing() => {
                warn!(stream = &*self.stream, "the feed is gone: made again");
                let made = self.make().await;
                made.map_err(|error| self.error("make", error))?;
                info(&self.nats, &self.stream).await.map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        self.look_after_billing().await;
        let trimmed = LIMITS
            .iter()
            .any(|limit| info.config[limit].as_i64().is_some_and(|limit| limit > 0));
        let state = info.state;
        Ok(FeedState {
            end: state.last_seq,
            removed: if trimmed {
                0
            } else {
                state.last_seq.saturating_sub(state.messages)
            },
            trimmed,
        })
    }

    /// The message at one place; `None` where there is none (any more).
    pub async fn entry(&self, at: u64) -> Result<Option<FeedEntry>, StoreError> {
        let found = self.message(at).await?;
        Ok(found.map(|message| entry(at, Some(&message.headers))))
    }

    /// The payload of the message at one place; `None` where there is none (any more).
    pub async fn payload(&self, at: u64) -> Result<Option<Bytes>, StoreError> {
        let found = self.message(at).await?;
        Ok(found.map(|message| message.payload))
    }

    /// Whoever asks for one message before the end makes a stream that is gone again as well.
    async fn message(&self, at: u64) -> Result<Option<StreamMessage>, StoreError> {
        let read = async || message_at(&self.nats, &self.stream, at).await;
        let found = match read().await {
            Err(_) => {
                self.state().await?;
                read().await
            }
            found => found,
        };
        found.map_err(|source| self.error("read", source))
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

    /// As [`Self::append_after`], whatever stands at `expected`.
    pub async fn append(
        &self,
        expected: u64,
        messages: &[FeedMessage<'_>],
    ) -> Result<u64, WriteError> {
        self.append_after(expected, None, messages).await
    }

    /// Appends the messages in order if the stream ends at `expected`, with a message of id `before`,
    /// and gives the new end. What lands is always a prefix, also where this fails or the caller goes
    /// away half way through.
    pub async fn append_after(
        &self,
        expected: u64,
        before: Option<&str>,
        messages: &[FeedMessage<'_>],
    ) -> Result<u64, WriteError> {
        match self.append_in_time(expected, before, messages).await {
            Err(WriteError::Moved) if before.is_some() => {}
            other => return other,
        }
        // a server that was started again knows its last id only where the message is younger than
        // the window in which it looks for doubles
        if !self.ends_with(expected, before).await? {
            return Err(WriteError::Moved);
        }
        let end = self.append_in_time(expected, None, messages).await?;
        match self.entry(expected).await? {
            Some(entry) if Some(&*entry.id) == before => Ok(end),
            // lost and overtaken in between: the caller reads what is there
            _ => Err(WriteError::Moved),
        }
    }

    async fn ends_with(&self, expected: u64, id: Option<&str>) -> Result<bool, StoreError> {
        if self.end().await? != expected {
            return Ok(false);
        }
        let entry = self.entry(expected).await?;
        Ok(entry.is_some_and(|entry| Some(&*entry.id) == id))
    }

    async fn append_in_time(
        &self,
        expected: u64,
        before: Option<&str>,
        messages: &[FeedMessage<'_>],
    ) -> Result<u64, WriteError> {
        if messages.len() > FEED_APPEND_MAX {
            let detail = format!(
                "{} messages at once, at most {FEED_APPEND_MAX}",
                messages.len()
            );
            return Err(self.error("append to", detail).into());
        }
        let subjects: Vec<&str> = messages.iter().map(|message| message.subject).collect();
        let mut troubles = self.nats.troubles();
        let append = timeout(APPEND_MAX, self.append_all(expected, before, messages));
        tokio::select! {
            biased;
            done = append => done.map_err(|elapsed| self.error("append to", elapsed))?,
            trouble = troubles.about_any(&subjects) => Err(match trouble {
                NoAnswer::Lost => self.error("append to", "the connection was lost"),
                NoAnswer::Denied(denied) => self.error("append to", denied),
            }
            .into()),
        }
    }

    async fn append_all(
        &self,
        expected: u64,
        before: Option<&str>,
        messages: &[FeedMessage<'_>],
    ) -> Result<u64, WriteError> {
        // The last one lands where all before it did, so that its answer is theirs too. The first one's tells
        // what keeps any from landing, such as a full disk, where that of the last would only say that it came too early.
        let is_asked = |n: usize| n == 0 || n + 1 == messages.len();
        let mut acks = Vec::with_capacity(2);
        let mut before = before.map(HeaderValue::from);
        for (n, (last, message)) in (expected..).zip(messages).enumerate() {
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
            let payload = message.payload.clone();
            if is_asked(n) {
                let jetstream = self.nats.jetstream();
                let sent = jetstream.publish_with_headers(subject, headers, payload);
                let sent = sent.await.map_err(|error| self.error("append to", error))?;
                acks.push(self.landed(last + 1, sent));
            } else {
                let client = self.nats.client();
                let sent = client.publish_with_headers(subject, headers, payload);
                sent.await.map_err(|error| self.error("append to", error))?;
            }
        }
        try_join_all(acks).await?;
        Ok(expected + messages.len() as u64)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_another_one_where_the_server_says_so_twice() {
        let mut billing = Billing::default();
        let mut told = |created: &str| billing.is_told(Instant::now(), Some(created.to_owned()));
        assert!(!told("first") && !told("first"));
        // started again: the present at first, then the truth
        assert!(!told("now") && !told("first"));
        assert!(!told("now") && !told("later") && !told("first"));
        // gone and made again
        assert!(!told("second") && told("second") && !told("second"));
        assert!(!billing.is_told(Instant::now(), None));
    }
}
