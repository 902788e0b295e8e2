//! A request as it comes to an engine, and what its caller gets to see of it.

use std::{future::poll_fn, task::Poll, time::Instant};

use seatbelt_schemas::usage::NeuronUsage;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Allowance;
use crate::{
    sampler::{Chosen, Sampling},
    shape::Guide,
    usage::{Durable, parts::Part},
};

/// A request, ready to run.
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_output: usize,
    /// What it may have of that by now, where it may not have all.
    pub(crate) allowance: Option<Allowance>,
    pub(crate) sampling: Sampling,
    /// Tokens that end it.
    pub(crate) eos: Vec<u32>,
    pub(crate) stops: Vec<String>,
    /// What its text has to look like.
    pub(crate) guide: Option<Guide>,
    /// Its text goes on with that of the prompt.
    pub(crate) continues: bool,
    /// When it must have ended.
    pub(crate) deadline: Option<Instant>,
    pub(crate) ticket: Part,
}

/// Why a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// The model or a stop string ended it.
    Stop,
    /// It reached its ceiling.
    Length,
    /// Its deadline passed.
    Expired,
    /// Its caller left.
    Left,
    /// The neuron is stopping.
    Stopping,
    /// It never had a turn, and will have none here: it may be run elsewhere.
    NotRun,
    /// Its shape cannot be followed any further.
    Misshapen(String),
    /// A step failed.
    Failed(String),
}

/// How a request ended, and with what.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    /// By the whole request, until now.
    pub(crate) used: NeuronUsage,
    /// Resolves when the usage event is on disk, of the last answer of a request.
    pub(crate) durable: Durable,
}

/// Some of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// The tokens that came since the last piece, where it is told how likely they were.
    pub(crate) likely: Vec<Chosen>,
}

impl Piece {
    pub(crate) fn append(&mut self, mut next: Self) {
        self.text.push_str(&next.text);
        self.likely.append(&mut next.likely);
    }
}

/// What a caller gets to see of its request.
#[derive(Debug)]
pub(crate) enum Event {
    /// More of the answer; never empty.
    Text(Piece),
    /// Nothing comes after this.
    End(Ending),
}

/// The caller's end of a running request. Dropping it stops the request.
///
/// At most one event per output token waits in it, so its size is bounded by the request's ceiling.
#[derive(Debug)]
pub(crate) struct Generation(pub(super) UnboundedReceiver<Event>);

impl Generation {
    /// The next event of any of these, and whose it is: none if the engine died. Nothing where there are none.
    pub(crate) async fn next_of(all: &mut [Option<Self>]) -> Option<(usize, Option<Event>)> {
        if all.iter().all(Option::is_none) {
            return None;
        }
        let next = poll_fn(|context| {
            for (index, generation) in all.iter_mut().enumerate() {
                if let Some(generation) = generation
                    && let Poll::Ready(event) = generation.0.poll_recv(context)
                {
                    return Poll::Ready((index, event));
                }
            }
            Poll::Pending
        });
        Some(next.await)
    }
}

/// Requests that were not taken, with their parts in the ticket.
pub(crate) enum NotQueued {
    /// As many wait as may.
    QueueFull(Vec<Part>),
    /// The engine has stopped.
    Stopped(Vec<Part>),
}

/// A request in line.
pub(super) struct QueuedJob {
    pub(super) job: Job,
    pub(super) since: Instant,
    pub(super) events: UnboundedSender<Event>,
}
