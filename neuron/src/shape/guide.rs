//! Leads one answer through its shape, token by token.
//!
//! Which tokens may come after one is found while the next step runs, on one thread for all answers of an engine, so that
//! the engine's thread waits only where finding them takes longer than a step.

use std::{sync::mpsc, thread::JoinHandle};

use llguidance::{Matcher, toktrie::SimpleVob};
use thiserror::Error;

/// The shape cannot be followed any further.
#[derive(Debug, Error)]
#[error("the answer's shape: {0}")]
pub(crate) struct GuideError(String);

/// Which tokens may come next.
#[derive(Debug)]
pub(crate) struct Allowed(SimpleVob);

impl Allowed {
    /// Makes all other tokens impossible.
    pub(crate) fn apply(&self, row: &mut [f32]) {
        const BITS: usize = 32;
        let words = self.0.as_slice();
        for (n, logits) in row.chunks_mut(BITS).enumerate() {
            match words.get(n).copied().unwrap_or(0) {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word & (1 << bit) == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

/// One answer's guide.
pub(crate) struct Guide(State);

enum State {
    /// It waits for a token.
    Known {
        matcher: Box<Matcher>,
        next: Allowed,
    },
    /// What may come after a token is being found.
    Asked(mpsc::Receiver<Found>),
    Lost(String),
}

struct Found {
    matcher: Box<Matcher>,
    next: Result<SimpleVob, String>,
}

impl Guide {
    pub(super) fn new(matcher: Matcher, first: SimpleVob) -> Self {
        Self(State::Known {
            matcher: Box::new(matcher),
            next: Allowed(first),
        })
    }

    /// Which tokens may come next; waits until that is known.
    pub(crate) fn next(&mut self) -> Result<&Allowed, GuideError> {
        if let State::Asked(found) = &self.0 {
            self.0 = match found.recv() {
                Ok(Found {
                    matcher,
                    next: Ok(next),
                }) => State::Known {
                    matcher,
                    next: Allowed(next),
                },
                Ok(Found {
                    next: Err(words), ..
                }) => State::Lost(words),
                Err(mpsc::RecvError) => State::Lost("its thread has ended".to_owned()),
            };
        }
        match &self.0 {
            State::Known { next, .. } => Ok(next),
            State::Lost(words) => Err(GuideError(words.clone())),
            State::Asked(_) => unreachable!("what was asked was found or lost"),
        }
    }

    /// This token came: what may come after it is found from now on.
    pub(crate) fn came(&mut self, token: u32, guides: &Guides) {
        let lost = State::Lost("it was asked twice".to_owned());
        if let State::Known { matcher, .. } = std::mem::replace(&mut self.0, lost) {
            let (found, asked) = mpsc::channel();
            guides.ask(Asked {
                matcher,
                token,
                found,
            });
            self.0 = State::Asked(asked);
        }
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guide(..)")
    }
}

struct Asked {
    matcher: Box<Matcher>,
    token: u32,
    found: mpsc::Sender<Found>,
}

/// The thread that finds what may come next.
#[derive(Debug)]
pub(crate) struct Guides {
    asked: Option<mpsc::Sender<Asked>>,
    thread: Option<JoinHandle<()>>,
}

impl Guides {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (asked, all) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("guides".to_owned())
            .spawn(move || {
                for asked in all {
                    find(asked);
                }
            })?;
        Ok(Self {
            asked: Some(asked),
            thread: Some(thread),
        })
    }

    fn ask(&self, asked: Asked) {
        if let Some(sender) = &self.asked {
            // Where the thread is gone, whoever waits hears it from his own channel.
            let _ = sender.send(asked);
        }
    }
}

impl Drop for Guides {
    fn drop(&mut self) {
        self.asked = None;
        if let Some(thread) = self.thread.take() {
            // The library catches its own panics, and there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

fn find(asked: Asked) {
    let Asked {
        mut matcher,
        token,
        found,
    } = asked;
    let next = matcher
        .consume_token(token)
        .and_then(|()| matcher.compute_mask_or_eos());
    let next = next.map_err(|error| error.to_string());
    // Whoever asked may have left.
    let _ = found.send(Found { matcher, next });
}
