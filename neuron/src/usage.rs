//! What each request used, reported exactly once.
//!
//! A ticket is made for every request that reaches the neuron and ends in exactly one event,
//! whatever happens to the request: a ticket that is dropped ends itself. Events go through the
//! outbox, a file that is synced before the answer ends, and from there to a [`UsageSink`] until
//! the sink has taken them.
//!
//! What a crash leaves behind: a request under way is on file from its start, and is reported after
//! the restart as failed, with its whole ceiling as output, since what it really wrote is not known
//! and the report must not be below the truth. Between a sink's taking an event and the note of that
//! a crash sends the event twice, with the same message id.

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use seatbelt_bus::UsageReports;
use seatbelt_schemas::{
    ids::{AccountId, KeyId, ModelId, NeuronId},
    usage::{NeuronOutcome, NeuronUsage, UsageEvent},
};
use ulid::Ulid;

use crate::{clock::unix_ms, config::Device, metrics::Metrics};

mod file;
mod outbox;
pub(crate) mod parts;
mod publish;

pub(crate) use outbox::{Durable, Outbox};

/// A place that takes usage events, such as a JetStream stream.
pub trait UsageSink: Send + Sync + 'static {
    /// Hands over one event. Success means that the sink will not lose it. The same `id` may come
    /// twice after a crash or a lost answer, always with the same bytes.
    fn publish(
        &self,
        id: String,
        event: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + '_>>;
}

/// The sink did not take an event; it will be offered again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

impl UsageSink for UsageReports {
    fn publish(
        &self,
        id: String,
        event: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + '_>> {
        Box::pin(async move {
            let published = UsageReports::publish(self, &id, event).await;
            published.map_err(|error| SinkError(format!("{error}: {}", error.source)))
        })
    }
}

/// Who is asking, as the caller's headers say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) reservation: Option<String>,
    pub(crate) account: Option<AccountId>,
    pub(crate) key: Option<KeyId>,
}

/// How long the parts of a request took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) queued_ms: u64,
    pub(crate) prefill_ms: u64,
    pub(crate) decode_ms: u64,
}

impl Times {
    /// The longer of each part.
    fn longer(self, other: Self) -> Self {
        Self {
            queued_ms: self.queued_ms.max(other.queued_ms),
            prefill_ms: self.prefill_ms.max(other.prefill_ms),
            decode_ms: self.decode_ms.max(other.decode_ms),
        }
    }
}

/// Makes tickets.
#[derive(Debug, Clone)]
pub(crate) struct TicketOffice {
    pub(crate) neuron: NeuronId,
    pub(crate) outbox: Outbox,
    pub(crate) metrics: Arc<Metrics>,
}

impl TicketOffice {
    /// A ticket for a request that just reached the neuron.
    pub(crate) fn open(&self, caller: Caller) -> Ticket {
        let request = Ulid::new().to_string();
        let event = UsageEvent {
            v: UsageEvent::VERSION,
            reservation: caller
                .reservation
                .clone()
                .unwrap_or_else(|| request.clone()),
            account: caller.account,
            key: caller.key,
            model: None,
            neuron: self.neuron.clone(),
            device: Device::Cpu.as_str().to_owned(),
            usage: NeuronUsage::default(),
            outcome: NeuronOutcome::Aborted,
            queued_ms: 0,
            prefill_ms: 0,
            decode_ms: 0,
            at_ms: 0,
        };
        Ticket {
            request,
            event,
            begun: None,
            input_tokens: 0,
            ended: false,
            office: self.clone(),
        }
    }
}

/// One request's usage, from its arrival to its one event.
#[derive(Debug)]
pub(crate) struct Ticket {
    request: String,
    event: UsageEvent,
    begun: Option<u64>,
    /// Tokens of its prompts.
    input_tokens: u64,
    ended: bool,
    office: TicketOffice,
}

impl Ticket {
    /// The neuron's own id of the request.
    pub(crate) fn request(&self) -> &str {
        &self.request
    }

    /// What its caller reserved, where that was named.
    pub(crate) fn reservation(&self) -> Option<&str> {
        let named = self.event.reservation != self.request;
        named.then_some(self.event.reservation.as_str())
    }

    /// The request named a model that is served here.
    pub(crate) fn of_model(&mut self, model: &ModelId, device: Device) {
        self.event.model = Some(model.clone());
        device.as_str().clone_into(&mut self.event.device);
    }

    /// The request is about to be run: from here on a crash is answered for with these bounds.
    pub(crate) fn begin(&mut self, input_tokens: usize, max_output: usize) {
        self.input_tokens = count(input_tokens);
        let lost = self.lost(max_output);
        self.begun = Some(self.office.outbox.begin(self.message_id(), lost));
    }

    /// It may write so much by now: once that is on file.
    pub(crate) fn grows(&self, max_output: usize) -> Option<Durable> {
        let (begun, lost) = (self.begun?, self.lost(max_output));
        let outbox = &self.office.outbox;
        Some(outbox.begin_again(begun, self.message_id(), lost))
    }

    /// What is reported if nobody lives to see its end.
    fn lost(&self, max_output: usize) -> Bytes {
        let usage = NeuronUsage {
            input_tokens: self.input_tokens,
            output_tokens: count(max_output),
            cached_input_tokens: 0,
        };
        let lost = UsageEvent {
            usage,
            outcome: NeuronOutcome::Failed,
            at_ms: unix_ms(),
            ..self.event.clone()
        };
        lost.encode()
    }

    /// So many more tokens of the prompt were run.
    pub(crate) fn read(&mut self, tokens: usize) {
        self.event.usage.input_tokens += count(tokens);
    }

    /// So many tokens of the prompt were there from before.
    pub(crate) fn reused(&mut self, tokens: usize) {
        self.event.usage.input_tokens += count(tokens);
        self.event.usage.cached_input_tokens += count(tokens);
    }

    /// Who pays, where the caller named it.
    pub(crate) fn account(&self) -> Option<&AccountId> {
        self.event.account.as_ref()
    }

    /// One more token was generated.
    pub(crate) fn wrote(&mut self) {
        self.event.usage.output_tokens += 1;
    }

    /// What was used until now.
    fn used(&self) -> NeuronUsage {
        self.event.usage
    }

    /// The request is over.
    pub(crate) fn end(mut self, outcome: NeuronOutcome, times: Times) -> Durable {
        self.close(outcome, times)
    }

    /// The request is turned away: nothing was run.
    pub(crate) fn reject(self) -> Durable {
        self.end(NeuronOutcome::Rejected, Times::default())
    }

    /// The request came after its deadline: nothing was run.
    pub(crate) fn expire(self) -> Durable {
        self.end(NeuronOutcome::Expired, Times::default())
    }

    fn close(&mut self, outcome: NeuronOutcome, times: Times) -> Durable {
        self.ended = true;
        self.event.outcome = outcome;
        if outcome == NeuronOutcome::Rejected {
            // The reservation may be used elsewhere, and has its event from there. Nor is any ledger to be
            // asked of this one.
            self.event.reservation.clone_from(&self.request);
            self.event.account = None;
        }
        self.event.queued_ms = times.queued_ms;
        self.event.prefill_ms = times.prefill_ms;
        self.event.decode_ms = times.decode_ms;
        self.event.at_ms = unix_ms();
        let model = self.event.model.as_ref();
        (self.office.metrics).request(outcome, model, self.event.usage);
        self.office
            .outbox
            .end(self.begun, self.message_id(), self.event.encode())
    }

    /// The reservation, so that one event counts for it. A rejected request carries its own id
    /// instead: its caller may take the same reservation elsewhere, and that usage must not be taken
    /// for a duplicate of this.
    fn message_id(&self) -> String {
        self.event.reservation.clone()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            // Before it ran, only a caller who left drops a ticket; later, only an engine that broke.
            let outcome = if self.begun.is_some() {
                NeuronOutcome::Failed
            } else {
                NeuronOutcome::Aborted
            };
            drop(self.close(outcome, Times::default()));
        }
    }
}

fn count(tokens: usize) -> u64 {
    u64::try_from(tokens).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use tempfile::TempDir;
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::{outbox::Parcel, *};

    /// A ticket office whose reports can be read.
    pub(crate) struct Office {
        pub(crate) office: TicketOffice,
        reports: UnboundedReceiver<Parcel>,
        _folder: TempDir,
    }

    impl Office {
        pub(crate) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (outbox, reports) = Outbox::open(folder.path()).unwrap();
            let neuron = NeuronId::new("n1").unwrap();
            let office = TicketOffice {
                neuron,
                outbox,
                metrics: Arc::new(Metrics::new()),
            };
            Self {
                office,
                reports,
                _folder: folder,
            }
        }

        /// The next report, in the order of their ends.
        pub(crate) fn next(&mut self) -> UsageEvent {
            let parcel = self.reports.blocking_recv().expect("the outbox runs");
            UsageEvent::decode(&parcel.event).unwrap()
        }

        fn ids(&mut self, count: usize) -> Vec<String> {
            (0..count)
                .map(|_| self.reports.blocking_recv().expect("the outbox runs").id)
                .collect()
        }
    }

    fn caller() -> Caller {
        Caller {
            reservation: Some("r-1".to_owned()),
            ..Caller::default()
        }
    }

    #[test]
    fn a_dropped_ticket_reports_what_it_knows() {
        let mut office = Office::new();
        drop(office.office.open(caller()));
        assert_eq!(office.next().outcome, NeuronOutcome::Aborted);
        let mut ticket = office.office.open(caller());
        ticket.begin(9, 50);
        ticket.read(9);
        ticket.wrote();
        drop(ticket);
        let event = office.next();
        assert_eq!(
            (
                event.outcome,
                event.usage.input_tokens,
                event.usage.output_tokens
            ),
            (NeuronOutcome::Failed, 9, 1)
        );
    }

    #[test]
    fn the_message_id_is_the_reservation_unless_nothing_was_to_run() {
        let mut office = Office::new();
        let rejected = office.office.open(caller());
        let own = rejected.request().to_owned();
        drop(rejected.reject());
        drop(
            office
                .office
                .open(caller())
                .end(NeuronOutcome::Completed, Times::default()),
        );
        assert_eq!(office.ids(2), [own, "r-1".to_owned()]);
    }

    #[test]
    fn the_event_of_who_was_turned_away_names_no_reservation() {
        let mut office = Office::new();
        let rejected = office.office.open(caller());
        let own = rejected.request().to_owned();
        drop(rejected.reject());
        assert_eq!(office.next().reservation, own);
    }

    #[test]
    fn a_request_without_a_reservation_goes_by_its_own_id() {
        let mut office = Office::new();
        let ticket = office.office.open(Caller::default());
        let own = ticket.request().to_owned();
        drop(ticket.end(NeuronOutcome::Completed, Times::default()));
        let event = office.next();
        assert_eq!(event.reservation, own);
    }
}
