//! Reads a stream in order from a sequence on, across lost connections and lost consumers.
//!
//! A consumer on the server is only a means: it is unacknowledged, in memory, and made anew at the
//! next wanted sequence whenever anything about it is in doubt. What is handed out is strictly
//! increasing; whether a gap matters is the caller's to say.

use std::time::Duration;

use async_nats::jetstream::{
    self, ErrorCode,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use super::{
    Nats, Pauses,
    connect::{NoAnswer, Troubles},
    stream::{info, kept_after},
};

/// Messages asked for at once: with commits of 64 KiB at most 16 MiB are held here.
const BATCH_MESSAGES_MAX: usize = 256;
/// How long one request for messages stays open on the server.
const PULL_EXPIRES: Duration = Duration::from_secs(20);
/// How often the server says that it is there while there is nothing to send. Two missed ones make
/// the consumer anew.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the server keeps a consumer nobody reads.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long a read tries to go on before it gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may come before the stream is asked whether anything is left.
const SILENCE: Duration = Duration::from_secs(2);
/// How many such silences, each with a new answer to that question, are waited for.
const SILENCES_MAX: u32 = 3;
/// Pauses between tries.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why a cursor stands still.
pub type CursorError = Box<dyn std::error::Error + Send + Sync>;

/// A place in a stream, and the way onwards.
pub struct Cursor {
    nats: Nats,
    stream: String,
    headers_only: bool,
    last: u64,
    open: Option<Open>,
}

struct Open {
    messages: pull::Stream,
    /// Where it asks for more.
    asks: String,
    troubles: Troubles,
}

/// A message of a stream and its place.
pub struct Item {
    pub sequence: u64,
    /// As the server gives it.
    pub message: jetstream::Message,
}

impl Cursor {
    /// Stands after sequence `last` of `stream`.
    pub fn after(nats: Nats, stream: String, last: u64) -> Self {
        Self {
            nats,
            stream,
            headers_only: false,
            last,
            open: None,
        }
    }

    /// Reads no payloads.
    pub fn headers_only(self) -> Self {
        Self {
            headers_only: true,
            ..self
        }
    }

    /// The next message; waits for one to land. Errors only after trying for `PATIENCE`, or where
    /// trying again is of no use.
    /// Nothing is lost if the caller stops waiting.
    pub async fn next(&mut self) -> Result<Item, CursorError> {
        loop {
            if self.open.is_none() {
                self.open = Some(self.open_patiently().await?);
            }
            let Some(open) = self.open.as_mut() else {
                continue;
            };
            let message = tokio::select! {
                biased;
                message = open.messages.next() => message,
                trouble = open.troubles.about(&open.asks) => match trouble {
                    NoAnswer::Lost => None,
                    NoAnswer::Denied(denied) => return Err(denied.into()),
                },
            };
            let Some(Ok(message)) = message else {
                debug!(stream = self.stream, last = self.last, "consumer lost");
                self.open = None;
                continue;
            };
            let sequence = message.info()?.stream_sequence;
            if sequence > self.last {
                self.last = sequence;
                return Ok(Item { sequence, message });
            }
        }
    }

    /// The next message up to and including `to`, from `last` on; `None` where there is none left.
    /// A stream may have places without a message, also at its end: a consumer then never gets to
    /// `to`, so silence is answered by asking which places hold none. Where one is said to hold a message
    /// that is never delivered, the server cannot read what it keeps.
    pub async fn next_up_to(&mut self, last: u64, to: u64) -> Result<Option<Item>, CursorError> {
        for _ in 0..SILENCES_MAX {
            if let Ok(next) = timeout(SILENCE, self.next()).await {
                return next.map(|item| (item.sequence <= to).then_some(item));
            }
            if kept_after(&self.nats, &self.stream, last, to)
                .await?
                .is_none()
            {
                return Ok(None);
            }
        }
        match kept_after(&self.nats, &self.stream, last, to).await? {
            None => Ok(None),
            Some(at) => Err(format!(
                "the server keeps a message at sequence {at} and does not give it: its files are damaged; delete the stream if it is derived, and it is made again"
            )
            .into()),
        }
    }

    async fn open_patiently(&mut self) -> Result<Open, CursorError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pauses = Pauses::new(PAUSE_MIN, PAUSE_MAX);
        loop {
            let error = match timeout_at(deadline, self.open()).await {
                Ok(Ok(open)) => return Ok(open),
                Ok(Err(error)) => error,
                Err(elapsed) => return Err(elapsed.into()),
            };
            let pause = pauses.draw();
            if error.hopeless || Instant::now() + pause >= deadline {
                return Err(error.source);
            }
            debug!(stream = self.stream, error = %error.source, "cannot open consumer yet");
            sleep(pause).await;
        }
    }

    /// A stream that ends before what was read of it is another one, or lost its end: a consumer of it would
    /// pass over what comes next.
    async fn still_reaches(&self) -> Result<(), OpenError> {
        if self.last == 0 {
            return Ok(());
        }
        let found = info(&self.nats, &self.stream).await;
        let found = found.map_err(|error| OpenError {
            hopeless: error.is_missing(),
            source: error.into(),
        })?;
        let (end, last) = (found.state.last_seq, self.last);
        match end < last {
            false => Ok(()),
            true => Err(OpenError {
                hopeless: true,
                source: format!("the stream ends at {end} and was read up to {last}").into(),
            }),
        }
    }

    async fn open(&self) -> Result<Open, OpenError> {
        // from before the consumer is made, so that a loss in between is not missed
        let troubles = self.nats.troubles();
        self.still_reaches().await?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.last + 1,
            },
            headers_only: self.headers_only,
            ack_policy: AckPolicy::None,
            inactive_threshold: IDLE_MAX,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let made = self
            .nats
            .jetstream()
            .create_consumer_on_stream(config, &self.stream);
        let asked = format!("$JS.API.CONSUMER.CREATE.{}", self.stream);
        let made = self.nats.unless_denied(&asked, made).await;
        let made = made.map_err(|denied| OpenError {
            hopeless: true,
            source: denied.into(),
        })?;
        let consumer = made.map_err(|error| {
            use jetstream::stream::ConsumerErrorKind::JetStream;
            let gone = matches!(error.kind(), JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND);
            OpenError { hopeless: gone, source: error.into() }
        })?;
        let name = &consumer.cached_info().name;
        let asks = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{name}", self.stream);
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH_MESSAGES_MAX)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages();
        let messages = messages.await.map_err(|error| OpenError {
            hopeless: false,
            source: error.into(),
        })?;
        Ok(Open {
            messages,
            asks,
            troubles,
        })
    }
}

struct OpenError {
    /// Whether trying again is of no use.
    hopeless: bool,
    source: CursorError,
}
