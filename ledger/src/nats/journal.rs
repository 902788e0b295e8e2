//! The journal of one partition as a JetStream stream with one subject.
//!
//! An append is one message, published on condition of the stream's last sequence; it is never
//! de-duplicated by id, so a success is always this very append. Reads that must be true go to the
//! stream's leader, never through a direct get. Reads in bulk go through a consumer and are checked
//! to be gapless. Settings that the journal relies on are verified at every opening.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use seatbelt_bus::{
    Nats, ProvisionError, Settings,
    cursor::{Cursor, CursorError, Item},
    publish::{Acceptance, NOBODY, SILENCE, publish_after},
    settings::JOURNAL_DESCRIPTION,
    stream::{JetStreamError, StreamInfo, ask, info, message_at, provision_error},
};
use seatbelt_schemas::{names::Names, position::Partition};
use tokio::time::timeout;

use crate::journal::{AppendError, Journal, ReadError, Sequence, Stored};

/// How long an append waits for its acknowledgement. Short: the same append may be sent again at
/// once, and in a cluster one sent while a leader is elected is never answered.
const APPEND_MAX: Duration = Duration::from_secs(2);

/// In the reason of every partition whose journal takes nothing although its server answers.
pub const STORES_NOTHING: &str = "answers but stores nothing";

/// How long a question about an append that got no answer may take.
const PROBE_MAX: Duration = Duration::from_secs(1);
/// How long nothing of what is there may come before it is asked for by its place.
const READ_SILENCE: Duration = Duration::from_secs(2);
/// How many messages are asked for at once where they are asked for one by one.
const ASKED_AT_ONCE: usize = 64;
/// How long a look at the server's clock may take: the longer, the less it says.
const CLOCK_MAX: Duration = Duration::from_millis(500);
/// A place where no journal ever ends: an append there is always answered, and never written.
const NOWHERE: Sequence = Sequence(i64::MAX as u64);

/// The journal of one partition on a NATS server. Clones share the connection.
#[derive(Debug, Clone)]
pub struct NatsJournal {
    nats: Nats,
    stream: Arc<str>,
    subject: Arc<str>,
    /// Zero where it was opened to be read.
    replicas: u8,
    /// Whether its reader may make no consumers.
    asks_for_each: bool,
}

impl NatsJournal {
    /// Opens the journal to append to it; its stream is made if missing, with `replicas` copies
    /// (1, or 3 on a cluster), and verified if it exists.
    pub async fn open(
        nats: &Nats,
        names: &Names,
        partition: Partition,
        replicas: u8,
    ) -> Result<Self, ProvisionError> {
        Settings::journal(names, partition, replicas)
            .ensure(nats)
            .await?;
        Ok(Self::at(nats, names, partition, replicas))
    }

    /// As [`NatsJournal::open`], for a journal that must be there: nothing is made.
    pub async fn reopen(
        nats: &Nats,
        names: &Names,
        partition: Partition,
        replicas: u8,
    ) -> Result<Self, ProvisionError> {
        Settings::journal(names, partition, replicas)
            .inspect(nats)
            .await?;
        Ok(Self::at(nats, names, partition, replicas))
    }

    /// Opens the journal to read it, as an auditor does: nothing is made, and the number of copies
    /// does not matter.
    pub async fn open_existing(
        nats: &Nats,
        names: &Names,
        partition: Partition,
    ) -> Result<Self, ProvisionError> {
        Settings::journal_to_read(names, partition)
            .inspect(nats)
            .await?;
        Ok(Self::at(nats, names, partition, 0))
    }

    fn at(nats: &Nats, names: &Names, partition: Partition, replicas: u8) -> Self {
        Self {
            nats: nats.clone(),
            stream: names.journal_stream(partition).into(),
            subject: names.journal_subject(partition).into(),
            replicas,
            asks_for_each: false,
        }
    }

    /// To be read in bulk without a consumer, which an auditor may not make: slower than with one.
    #[must_use]
    pub fn without_consumers(self) -> Self {
        Self {
            asks_for_each: true,
            ..self
        }
    }

    /// Has the server write the stream's settings to its disk, which it does only where they change: one that
    /// made the stream on a folder that was there already has not.
    pub(crate) async fn keep_settings(&self) -> Result<(), ProvisionError> {
        let failed = |error| provision_error(&self.stream, error);
        let mut config = info(&self.nats, &self.stream).await.map_err(failed)?.config;
        let ms = crate::host::now_ms();
        config["description"] = format!("{JOURNAL_DESCRIPTION}; adopted at {ms}").into();
        let subject = format!("STREAM.UPDATE.{}", self.stream);
        let updated = ask::<StreamInfo>(&self.nats, subject, &config).await;
        updated.map(drop).map_err(failed)
    }

    async fn publish(&self, expected: Sequence, payload: Bytes, patience: Duration) -> Acceptance {
        let (stream, subject) = (&self.stream, &self.subject);
        publish_after(&self.nats, stream, subject, expected.0, payload, patience).await
    }

    /// A stream whose storage broke (disk full, I/O error) is frozen by its server: it checks the
    /// place of an append as ever, but drops what it cannot store without a word. An append over the
    /// same connection is processed after the silent one; once it is answered and the journal still
    /// ends where it did, the silent one was dropped. With copies on several servers that does not
    /// follow, for another server may have taken over meanwhile.
    async fn after_silence(&self, expected: Sequence) -> AppendError {
        let unknown = AppendError::Unknown {
            expected,
            source: SILENCE.into(),
        };
        if self.replicas != 1 || !self.nats.is_connected() {
            return unknown;
        }
        let probe = self.publish(NOWHERE, Bytes::new(), PROBE_MAX).await;
        if !matches!(probe, Acceptance::WrongPlace) {
            return unknown;
        }
        match timeout(PROBE_MAX, self.end()).await {
            Ok(Ok(end)) if end == expected => AppendError::Refused {
                detail: format!(
                    "stream {} {STORES_NOTHING}: its storage is full or broken; see the log of nats-server, make room, and start it again",
                    self.stream
                ),
            },
            _ => unknown,
        }
    }

    /// Whether the server says that there is no such stream.
    async fn is_gone(&self) -> bool {
        let found = timeout(PROBE_MAX, info(&self.nats, &self.stream)).await;
        matches!(found, Ok(Err(error)) if error.is_missing())
    }

    async fn raw(&self, sequence: Sequence) -> Result<Option<Bytes>, ReadError> {
        match message_at(&self.nats, &self.stream, sequence.0).await {
            Ok(message) => Ok(message.map(|message| message.payload)),
            Err(_) if self.is_gone().await => Ok(None),
            Err(source) => Err(ReadError::Unreachable {
                at: sequence,
                source,
            }),
        }
    }

    fn cursor(&self, after: Sequence) -> Cursor {
        Cursor::after(self.nats.clone(), self.stream.to_string(), after.0)
    }
}

impl Journal for NatsJournal {
    async fn append(&self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        match self.publish(expected, payload, APPEND_MAX).await {
            Acceptance::Acknowledged(ack) => {
                let landed = Sequence(ack.sequence);
                // no id is ever sent, so a duplicate would be somebody else's message
                if landed == expected.next() && !ack.duplicate {
                    return Ok(landed);
                }
                Err(AppendError::WrongSequence { expected })
            }
            Acceptance::WrongPlace => Err(AppendError::WrongSequence { expected }),
            Acceptance::Refused(detail) => Err(AppendError::Refused { detail }),
            // nobody listens on the subject of a stream that was deleted: the fence is gone with it
            Acceptance::Nobody | Acceptance::Unknown(_)
                if expected > Sequence(0) && self.is_gone().await =>
            {
                Err(AppendError::WrongSequence { expected })
            }
            Acceptance::Unknown(source) => Err(AppendError::Unknown { expected, source }),
            Acceptance::Nobody => Err(AppendError::Unknown {
                expected,
                source: NOBODY.into(),
            }),
            Acceptance::Silence => Err(self.after_silence(expected).await),
        }
    }

    async fn end(&self) -> Result<Sequence, ReadError> {
        let unreachable = |error: JetStreamError| ReadError::Unreachable {
            at: Sequence(0),
            source: error.into(),
        };
        let state = match info(&self.nats, &self.stream).await {
            Ok(found) => found.state,
            // a stream that was deleted under its writer is a journal that ends nowhere
            Err(error) if error.is_missing() => {
                return Ok(Sequence(0));
            }
            Err(error) => return Err(unreachable(error)),
        };
        if state.last_seq > 0 && state.first_seq != 1 {
            return Err(ReadError::Gap { at: Sequence(1) });
        }
        if state.messages != state.last_seq {
            // the first message that is missing has to be looked for; the audit does
            let at = Sequence(state.messages.saturating_add(1));
            return Err(ReadError::Gap { at });
        }
        Ok(Sequence(state.last_seq))
    }

    /// The time of the stream's leader, which is the one that gives messages theirs.
    async fn server_ms(&self) -> Result<Option<u64>, ReadError> {
        let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| {
            let at = Sequence(0);
            ReadError::Unreachable { at, source }
        };
        let asked = timeout(CLOCK_MAX, info(&self.nats, &self.stream)).await;
        match asked.map_err(|late| unreachable(late.into()))? {
            Ok(found) => found.server_ms().map_err(unreachable),
            // whoever reads it next says so
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(unreachable(error.into())),
        }
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Stored>, ReadError> {
        if sequence == Sequence(0) {
            return Ok(None);
        }
        match self.raw(sequence).await? {
            Some(payload) => Ok(Some(Stored { sequence, payload })),
            None if sequence > self.end().await? => Ok(None),
            // it may have landed between the two questions
            None => match self.raw(sequence).await? {
                Some(payload) => Ok(Some(Stored { sequence, payload })),
                None => Err(ReadError::Gap { at: sequence }),
            },
        }
    }

    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        if self.asks_for_each {
            return self.ask_for_each(after, to);
        }
        let cursor = self.cursor(after);
        stream::unfold(Some((cursor, after)), move |reader| async move {
            let (cursor, last) = reader.filter(|(_, last)| *last < to)?;
            Some(self.read_there(cursor, last).await)
        })
        .boxed()
    }

    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        let cursor = self.cursor(after);
        stream::unfold(Some((cursor, after)), |reader| async move {
            let (cursor, last) = reader?;
            Some(read_next(cursor, last).await)
        })
        .boxed()
    }
}

impl NatsJournal {
    /// Messages by their places, some on their way at once; an error is the last item.
    fn ask_for_each(
        &self,
        after: Sequence,
        to: Sequence,
    ) -> BoxStream<'_, Result<Stored, ReadError>> {
        let places = stream::iter(after.next().0..=to.0).map(Sequence);
        let asked = places.map(move |at| async move {
            let stored = self.get(at).await?;
            stored.ok_or(ReadError::Gap { at })
        });
        let until_error = asked.buffered(ASKED_AT_ONCE).scan(false, |failed, stored| {
            let ended = std::mem::replace(failed, stored.is_err());
            std::future::ready((!ended).then_some(stored))
        });
        until_error.boxed()
    }

    /// Reads one on of what is known to be there. A message that the server cannot read is never
    /// delivered: where nothing comes for a while it is asked for by its sequence.
    async fn read_there(
        &self,
        mut cursor: Cursor,
        last: Sequence,
    ) -> (Result<Stored, ReadError>, Reader) {
        let at = last.next();
        loop {
            if let Ok(next) = timeout(READ_SILENCE, cursor.next()).await {
                return taken(next, cursor, at);
            }
            match self.get(at).await {
                Ok(Some(_)) | Err(ReadError::Unreachable { .. }) => {}
                Ok(None) | Err(ReadError::Gap { .. }) => {
                    return (Err(ReadError::Gap { at }), None);
                }
            }
        }
    }
}

type Reader = Option<(Cursor, Sequence)>;

/// Reads one on; an error is the last item.
async fn read_next(mut cursor: Cursor, last: Sequence) -> (Result<Stored, ReadError>, Reader) {
    let at = last.next();
    taken(cursor.next().await, cursor, at)
}

fn taken(
    next: Result<Item, CursorError>,
    cursor: Cursor,
    at: Sequence,
) -> (Result<Stored, ReadError>, Reader) {
    match next {
        Ok(item) if item.sequence == at.0 => {
            let payload = item.message.message.payload;
            let stored = Stored {
                sequence: at,
                payload,
            };
            (Ok(stored), Some((cursor, at)))
        }
        Ok(_) => (Err(ReadError::Gap { at }), None),
        Err(source) => (Err(ReadError::Unreachable { at, source }), None),
    }
}
