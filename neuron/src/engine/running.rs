//! One request in a slot: what it has read and answered, and how it ends.
//!
//! No decoder and no thread is known here: the engine feeds rows of logits in.

use std::time::{Duration, Instant};

use seatbelt_schemas::{ids::AccountId, usage::NeuronOutcome};
use seatbelt_tokens::TextStream;
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Allowance, EndReason, Ending, Event, Piece, QueuedJob, Row, Voice, allowance::May, pace::cut,
};
use crate::{
    clock::{Clock, millis},
    metrics::EngineMetrics,
    sampler::{Chosen, Sampler},
    shape::{Guide, Guides},
    stop::{Passed, StopWatch},
    usage::{Times, parts::Part},
};

/// Whether a request goes on after its turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    On,
    Over(EndReason),
}

/// A request in a slot.
pub(super) struct Running {
    /// The prompt, and the answer after it.
    tokens: Vec<u32>,
    prompt: usize,
    /// Of the prompt, what the slot held before.
    reused: usize,
    /// Tokens in the slot's cache.
    pub(super) position: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) events: UnboundedSender<Event>,
    // The token chosen last, not yet in the cache; none while the prompt is being read.
    chosen: Option<u32>,
    output: usize,
    max_output: usize,
    allowance: Option<Allowance>,
    /// Since when it waits for more.
    waits_since: Option<Instant>,
    eos: Vec<u32>,
    sampler: Sampler,
    guide: Option<Guide>,
    /// Tokens whose text was not sent yet, where it is told how likely they were.
    likely: Vec<Chosen>,
    text: TextStream,
    stop: StopWatch,
    ticket: Part,
    /// When it was submitted.
    pub(super) since: Instant,
    began: Instant,
    /// When its prompt was wholly read, and its first token chosen.
    pub(super) read_at: Option<Instant>,
    /// When its last token was chosen.
    pub(super) last: Option<Instant>,
    clock: Clock,
    metrics: EngineMetrics,
}

impl Running {
    /// A request whose slot holds the first `reused` tokens of its prompt.
    pub(super) fn new(
        waiting: QueuedJob,
        reused: usize,
        voice: &Voice,
        clock: Clock,
        metrics: EngineMetrics,
    ) -> Self {
        let QueuedJob {
            mut job,
            since,
            events,
        } = waiting;
        job.ticket.reused(reused);
        let sampler = Sampler::new(job.sampling, &job.prompt, &job.eos);
        let text = match job.continues {
            true => TextStream::after(voice.tokenizer.clone(), &job.prompt),
            false => TextStream::new(voice.tokenizer.clone()),
        };
        Self {
            prompt: job.prompt.len(),
            tokens: job.prompt,
            reused,
            position: reused,
            deadline: job.deadline,
            events,
            chosen: None,
            output: 0,
            max_output: job.max_output,
            allowance: job.allowance,
            waits_since: None,
            sampler,
            guide: job.guide,
            eos: job.eos,
            likely: Vec::new(),
            text,
            stop: StopWatch::new(job.stops),
            ticket: job.ticket,
            since,
            began: clock.now(),
            read_at: None,
            last: None,
            clock,
            metrics,
        }
    }

    /// Whether its prompt is not wholly read.
    pub(super) fn reading(&self) -> bool {
        self.chosen.is_none()
    }

    /// Whether it takes part in steps.
    pub(super) fn answering(&self) -> bool {
        self.chosen.is_some() && !self.waits()
    }

    /// Whether it has all that it may for now.
    pub(super) fn waits(&self) -> bool {
        self.waits_since.is_some()
    }

    /// The next piece of the prompt, of about `most` tokens.
    pub(super) fn next_piece(&self, most: usize) -> &[u32] {
        let count = cut(self.prompt - self.position, most);
        &self.tokens[self.position..self.position + count]
    }

    /// Its prompt, where none of it was read.
    pub(super) fn whole(&self) -> Option<&[u32]> {
        (self.reading() && self.position == 0).then(|| &self.tokens[..self.prompt])
    }

    /// Tokens that its prompt had to read when it came.
    pub(super) fn unread(&self) -> usize {
        self.prompt - self.reused
    }

    /// Whether it answers the same prompt of the same request.
    pub(super) fn shares_prompt_of(&self, part: &Part) -> bool {
        self.ticket.is_of_the_prompt_of(part)
    }

    /// Whose it is.
    pub(super) fn account(&self) -> Option<&AccountId> {
        self.ticket.account()
    }

    /// What its slot holds.
    pub(super) fn held(&self) -> &[u32] {
        &self.tokens[..self.position]
    }

    /// Its part in a step. While it still reads, it writes where its next piece overwrites.
    pub(super) fn row(&self) -> Row {
        Row {
            token: self.chosen.unwrap_or(0),
            position: self.position,
        }
    }

    /// A piece of the prompt was read, and these are the logits after it.
    pub(super) fn read(&mut self, count: usize, logits: &[f32], guides: &Guides) -> Turn {
        self.position += count;
        self.ticket.read(count);
        if self.position < self.prompt {
            return Turn::On;
        }
        let now = self.clock.now();
        self.read_at = Some(now);
        self.metrics.first_token.took(now - self.since);
        self.choose(logits, guides)
    }

    /// Its step was run, and these are the logits after it.
    pub(super) fn answered(&mut self, logits: &[f32], guides: &Guides) -> Turn {
        self.position += 1;
        self.choose(logits, guides)
    }

    fn choose(&mut self, logits: &[f32], guides: &Guides) -> Turn {
        let allowed = match self.guide.as_mut().map(Guide::next).transpose() {
            Ok(allowed) => allowed,
            Err(error) => return Turn::Over(EndReason::Misshapen(error.to_string())),
        };
        let Some(chosen) = self.sampler.choose(logits, allowed) else {
            return Turn::Over(EndReason::Failed(
                "the model gave no finite logit".to_owned(),
            ));
        };
        let token = chosen.token;
        self.chosen = Some(token);
        self.tokens.push(token);
        let now = self.clock.now();
        if let Some(last) = self.last.replace(now) {
            self.metrics.between_tokens.took(now - last);
        }
        self.output += 1;
        self.ticket.wrote();
        if self.eos.contains(&token) {
            return self.finish_text(EndReason::Stop);
        }
        if let Some(guide) = &mut self.guide {
            guide.came(token, guides);
        }
        if chosen.likely.is_some() {
            self.likely.push(chosen);
        }
        let piece = self.text.push(token);
        if self.pass(&piece) {
            return Turn::Over(EndReason::Stop);
        }
        if self.output >= self.max_output {
            return self.finish_text(EndReason::Length);
        }
        match self.allowance.as_ref().map(|it| it.wrote(self.output)) {
            None | Some(May::GoOn) => Turn::On,
            Some(May::End) => self.finish_text(EndReason::Length),
            Some(May::Wait) => {
                self.waits_since = Some(now);
                // nobody's tokens are late by it
                self.last = None;
                Turn::On
            }
        }
    }

    /// It waits, and this long at most.
    pub(super) fn look(&mut self, now: Instant, patience: Duration) -> Turn {
        let (Some(since), Some(allowance)) = (self.waits_since, &self.allowance) else {
            return Turn::On;
        };
        let waited = now.duration_since(since);
        let may = match allowance.look(self.output) {
            May::Wait if waited < patience => return Turn::On,
            May::Wait => {
                allowance.gives_up(self.output);
                May::End
            }
            may => may,
        };
        self.waits_since = None;
        self.metrics.waited.took(waited);
        match may {
            May::GoOn => Turn::On,
            May::Wait | May::End => self.finish_text(EndReason::Length),
        }
    }

    /// Sends what may be sent of `piece`. True if a stop string ended the text.
    fn pass(&mut self, piece: &str) -> bool {
        let (text, stopped) = match self.stop.push(piece) {
            Passed::More(text) => (text, false),
            Passed::Stopped(text) => (text, true),
        };
        self.send(text);
        stopped
    }

    /// Sends what was held back. A stop string that completes only now still counts.
    fn finish_text(&mut self, reason: EndReason) -> Turn {
        let rest = self.text.finish();
        if self.pass(&rest) {
            return Turn::Over(EndReason::Stop);
        }
        let held = self.stop.finish();
        self.send_all(held);
        Turn::Over(reason)
    }

    fn send(&mut self, text: String) {
        if !text.is_empty() {
            self.send_all(text);
        }
    }

    /// Sends also what has no text of its own.
    fn send_all(&mut self, text: String) {
        let likely = std::mem::take(&mut self.likely);
        if !text.is_empty() || !likely.is_empty() {
            // A caller who left is found at the next sweep.
            let _ = self.events.send(Event::Text(Piece { text, likely }));
        }
    }

    /// Ends the ticket, then tells the caller. What its slot holds then, where that can be gone on with.
    pub(super) fn end(mut self, reason: EndReason) -> Option<(AccountId, Vec<u32>)> {
        self.tokens.truncate(self.position);
        if self.waits()
            && let Some(allowance) = &self.allowance
        {
            allowance.gives_up(self.output);
        }
        let kept = match reason {
            // Nobody knows what the slot holds.
            EndReason::Failed(_) => None,
            _ => (self.ticket.account().cloned()).map(|account| (account, self.tokens)),
        };
        let now = self.clock.now();
        let read_at = self.read_at.unwrap_or(now);
        let times = Times {
            queued_ms: millis(self.began - self.since),
            prefill_ms: millis(read_at - self.began),
            decode_ms: millis(now - read_at),
        };
        self.metrics.queued.took(self.began - self.since);
        if self.read_at.is_some() {
            self.metrics.prefill.took(read_at - self.began);
        }
        let ended = self.ticket.end(outcome(&reason), times);
        let _ = self.events.send(Event::End(Ending {
            reason,
            used: ended.usage,
            durable: ended.durable,
        }));
        kept
    }
}

/// Ends a request that never had a slot.
pub(super) fn end_waiting(waiting: QueuedJob, reason: EndReason) {
    let times = Times {
        queued_ms: millis(waiting.since.elapsed()),
        ..Times::default()
    };
    let ended = waiting.job.ticket.end(outcome(&reason), times);
    let _ = waiting.events.send(Event::End(Ending {
        reason,
        used: ended.usage,
        durable: ended.durable,
    }));
}

fn outcome(reason: &EndReason) -> NeuronOutcome {
    match reason {
        EndReason::Stop | EndReason::Length => NeuronOutcome::Completed,
        EndReason::Expired => NeuronOutcome::Expired,
        EndReason::Left | EndReason::Stopping => NeuronOutcome::Aborted,
        EndReason::NotRun => NeuronOutcome::Rejected,
        EndReason::Misshapen(_) | EndReason::Failed(_) => NeuronOutcome::Failed,
    }
}
