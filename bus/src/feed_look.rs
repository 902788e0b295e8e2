//! A look at what the feed holds, for whoever only wants to know: nothing is made, and no consumer is needed.

use async_nats::{header::NATS_MESSAGE_ID, jetstream::ErrorCode};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use seatbelt_schemas::names::Names;

use super::{
    Nats,
    kept::StoreError,
    stream::{info, message_at},
};

/// How many messages are asked for at once.
const ASKED_AT_ONCE: u64 = 64;

/// A message of the feed, with what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FedMessage {
    pub sequence: u64,
    /// Its `Nats-Msg-Id`; empty where it has none.
    pub id: String,
    /// Its payload: the event's bytes as stored.
    pub payload: Bytes,
}

/// The feed, to be looked at.
#[derive(Debug, Clone)]
pub struct FeedLook {
    nats: Nats,
    stream: String,
}

impl FeedLook {
    /// That of a ledger, whether it is there or not.
    pub fn of(nats: &Nats, names: &Names) -> Self {
        Self {
            nats: nats.clone(),
            stream: names.feed_stream(),
        }
    }

    fn error(
        &self,
        verb: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError::of_stream(verb, &self.stream, source)
    }

    /// The message at one place; `None` where there is none.
    pub async fn get(&self, at: u64) -> Result<Option<FedMessage>, StoreError> {
        let found = message_at(&self.nats, &self.stream, at).await;
        let found = found.map_err(|source| self.error("read", source))?;
        Ok(found.map(|message| {
            let id = message.headers.get(NATS_MESSAGE_ID);
            FedMessage {
                sequence: at,
                id: id.map_or_else(String::new, |id| id.as_str().to_owned()),
                payload: message.payload,
            }
        }))
    }

    /// The last messages whose id begins with `source`, those of it among which nothing else was asked
    /// for: looked for from the stream's end back to `after`, in at most `reach` places. Empty where there
    /// are none, or no feed.
    pub async fn last_of(
        &self,
        source: &str,
        after: u64,
        reach: u64,
    ) -> Result<Vec<FedMessage>, StoreError> {
        let state = match info(&self.nats, &self.stream).await {
            Ok(found) => found.state,
            Err(error) if error.code() == Some(ErrorCode::STREAM_NOT_FOUND) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(self.error("look at", error)),
        };
        let before = state.first_seq.saturating_sub(1);
        let lowest = after.max(before).max(state.last_seq.saturating_sub(reach));
        let mut to = state.last_seq;
        while to > lowest {
            let from = lowest.max(to.saturating_sub(ASKED_AT_ONCE));
            let asked = stream::iter(from + 1..=to).map(|at| self.get(at));
            let at_once = usize::try_from(ASKED_AT_ONCE).unwrap_or(1);
            let found = asked.buffered(at_once);
            let ours = |message: &Option<FedMessage>| {
                let of = message.as_ref().and_then(|it| it.id.strip_prefix(source));
                of.is_some_and(|rest| rest.starts_with('/'))
            };
            let found: Vec<_> = found.try_collect().await?;
            let found: Vec<_> = found.into_iter().filter(ours).flatten().collect();
            if !found.is_empty() {
                return Ok(found);
            }
            to = from;
        }
        Ok(Vec::new())
    }
}
