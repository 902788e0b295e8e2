//! The usage of one request for which several answers run: one ticket, one event.
//!
//! Reading a prompt counts once, however many answers go on from it; what each of them writes counts. The ticket ends with
//! the last of them, and tells the worst that became of any.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seatbelt_schemas::{
    ids::AccountId,
    usage::{NeuronOutcome, NeuronUsage},
};

use super::{Durable, Ticket, Times};

/// One answer's part in the ticket of its request.
#[derive(Debug)]
pub(crate) struct Part {
    whole: Arc<Mutex<Whole>>,
    /// Which of the request's prompts it goes on from.
    prompt: usize,
    /// Tokens of its prompt that lie in its slot.
    read: usize,
    account: Option<AccountId>,
    ended: bool,
}

#[derive(Debug)]
struct Whole {
    /// Until the last part has ended.
    ticket: Option<Ticket>,
    open: usize,
    /// Of each prompt, what counts as read.
    read: Vec<usize>,
    outcome: Option<NeuronOutcome>,
    times: Times,
    /// What was used when the ticket ended.
    usage: NeuronUsage,
}

impl Part {
    /// The whole of a ticket.
    #[cfg(test)]
    pub(crate) fn only(ticket: Ticket) -> Self {
        let mut parts = Self::of(ticket, 1, 1);
        parts.pop().expect("there is one part")
    }

    /// Of a ticket that has begun: so many answers to each of so many prompts, those of a prompt together.
    pub(crate) fn of(ticket: Ticket, prompts: usize, choices: usize) -> Vec<Self> {
        assert!(prompts > 0 && choices > 0, "a request has an answer");
        let account = ticket.account().cloned();
        let whole = Arc::new(Mutex::new(Whole {
            ticket: Some(ticket),
            open: prompts * choices,
            read: vec![0; prompts],
            outcome: None,
            times: Times::default(),
            usage: NeuronUsage::default(),
        }));
        (0..prompts * choices)
            .map(|part| Self {
                whole: Arc::clone(&whole),
                prompt: part / choices,
                read: 0,
                account: account.clone(),
                ended: false,
            })
            .collect()
    }

    /// The ticket of its request.
    pub(crate) fn shared(&self) -> SharedTicket {
        SharedTicket(Arc::clone(&self.whole))
    }

    /// Who pays, where the caller named it.
    pub(crate) fn account(&self) -> Option<&AccountId> {
        self.account.as_ref()
    }

    /// Whether both go on from one prompt of one request.
    pub(crate) fn is_of_the_prompt_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.whole, &other.whole) && self.prompt == other.prompt
    }

    /// So many more tokens of the prompt were run.
    pub(crate) fn read(&mut self, tokens: usize) {
        self.holds(tokens, Ticket::read);
    }

    /// So many tokens of the prompt were there from before.
    pub(crate) fn reused(&mut self, tokens: usize) {
        self.holds(tokens, Ticket::reused);
    }

    fn holds(&mut self, tokens: usize, count: impl FnOnce(&mut Ticket, usize)) {
        self.read += tokens;
        let mut whole = lock(&self.whole);
        let counted = whole.read[self.prompt];
        let new = self.read.saturating_sub(counted);
        whole.read[self.prompt] = counted + new;
        if let Some(ticket) = &mut whole.ticket {
            count(ticket, new);
        }
    }

    /// One more token was generated.
    pub(crate) fn wrote(&mut self) {
        if let Some(ticket) = &mut lock(&self.whole).ticket {
            ticket.wrote();
        }
    }

    /// This answer is over. What is to wait for is with the last of them.
    pub(crate) fn end(mut self, outcome: NeuronOutcome, times: Times) -> Ended {
        self.close(outcome, times)
    }

    fn close(&mut self, outcome: NeuronOutcome, times: Times) -> Ended {
        self.ended = true;
        let mut whole = lock(&self.whole);
        whole.outcome = Some(worse(whole.outcome, outcome));
        whole.times = whole.times.longer(times);
        whole.open -= 1;
        if let Some(ticket) = &whole.ticket {
            whole.usage = ticket.used();
        }
        let last = if whole.open == 0 {
            whole.ticket.take()
        } else {
            None
        };
        let (outcome, times) = (whole.outcome.unwrap_or(outcome), whole.times);
        Ended {
            usage: whole.usage,
            durable: last.map_or_else(Durable::nothing, |ticket| ticket.end(outcome, times)),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.ended {
            // Only an engine that broke drops it.
            drop(self.close(NeuronOutcome::Failed, Times::default()));
        }
    }
}

/// The ticket of a request that runs, for whoever lets it write more.
#[derive(Debug, Clone)]
pub(crate) struct SharedTicket(Arc<Mutex<Whole>>);

impl SharedTicket {
    /// Its answers may write so much together by now: once that is on file. Nothing where it has ended.
    pub(crate) fn grows(&self, max_output: usize) -> Option<Durable> {
        lock(&self.0).ticket.as_ref()?.grows(max_output)
    }
}

/// A part that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What the whole request has used until now.
    pub(crate) usage: NeuronUsage,
    /// Of the last part, resolves when the usage event is on disk; of the others at once.
    pub(crate) durable: Durable,
}

/// Turns a request away of which nothing was run.
pub(crate) fn reject(parts: Vec<Part>) -> Durable {
    let ended = parts
        .into_iter()
        .map(|part| part.end(NeuronOutcome::Rejected, Times::default()));
    ended
        .last()
        .map_or_else(Durable::nothing, |ended| ended.durable)
}

/// What is told of a request one of whose answers ended so and the others so.
fn worse(others: Option<NeuronOutcome>, one: NeuronOutcome) -> NeuronOutcome {
    use NeuronOutcome::{Aborted, Completed, Expired, Failed, Rejected};
    let Some(others) = others else {
        return one;
    };
    match (others, one) {
        (Rejected, Rejected) => Rejected,
        (Failed, _) | (_, Failed) => Failed,
        (Expired, _) | (_, Expired) => Expired,
        (Completed, Completed) => Completed,
        _ => Aborted,
    }
}

fn lock(whole: &Mutex<Whole>) -> MutexGuard<'_, Whole> {
    whole.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::{Caller, tests::Office};
    use super::*;

    fn parts(office: &Office, prompts: usize, choices: usize) -> Vec<Part> {
        let mut ticket = office.office.open(Caller::default());
        ticket.begin(10, 100);
        Part::of(ticket, prompts, choices)
    }

    fn ended(outcomes: &[NeuronOutcome]) -> NeuronOutcome {
        let mut office = Office::new();
        let parts = parts(&office, 1, outcomes.len());
        for (part, outcome) in parts.into_iter().zip(outcomes) {
            drop(part.end(*outcome, Times::default()));
        }
        office.next().outcome
    }

    #[test]
    fn a_prompt_counts_once_and_what_is_written_each_time() {
        let mut office = Office::new();
        let mut parts = parts(&office, 2, 2);
        parts[0].reused(3);
        parts[0].read(7);
        parts[1].reused(8);
        parts[1].read(2);
        parts[2].read(5);
        for part in &mut parts {
            part.wrote();
        }
        assert!(parts[0].is_of_the_prompt_of(&parts[1]));
        assert!(!parts[1].is_of_the_prompt_of(&parts[2]));
        let mut usage = NeuronUsage::default();
        for part in parts {
            usage = part.end(NeuronOutcome::Completed, Times::default()).usage;
        }
        let event = office.next();
        assert_eq!(event.usage, usage);
        let counted = (
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.output_tokens,
        );
        assert_eq!(counted, (15, 3, 4));
    }

    #[test]
    fn the_event_tells_the_worst_that_became_of_any() {
        use NeuronOutcome::{Aborted, Completed, Expired, Failed, Rejected};
        for (outcomes, expected) in [
            (&[Completed, Completed][..], Completed),
            (&[Completed, Failed, Completed], Failed),
            (&[Expired, Aborted], Expired),
            (&[Rejected, Rejected], Rejected),
            (&[Rejected, Completed, Completed], Aborted),
            (&[Completed, Rejected], Aborted),
        ] {
            assert_eq!(ended(outcomes), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn there_is_one_event_when_the_last_has_ended_or_was_dropped() {
        let mut office = Office::new();
        let mut parts = parts(&office, 1, 3);
        parts[1].wrote();
        drop(
            parts
                .remove(0)
                .end(NeuronOutcome::Completed, Times::default()),
        );
        drop(parts);
        let event = office.next();
        assert_eq!(
            (event.outcome, event.usage.output_tokens),
            (NeuronOutcome::Failed, 1)
        );
        drop(office.office.open(Caller::default()).reject());
        assert_eq!(
            office.next().outcome,
            NeuronOutcome::Rejected,
            "no second one before"
        );
    }
}
