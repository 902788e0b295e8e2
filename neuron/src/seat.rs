//! The place of a model: whether it is in memory, who uses it, and what came of loading it.
//!
//! A model is loaded once for all who wait for it. It leaves the memory only while nobody uses it: who asks gets it as
//! a lease under the same lock, and what is in line or under way counts as use.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seatbelt_schemas::ids::ModelId;
use tokio::sync::watch;

use self::tries::Tries;
use crate::{
    config::{Device, ModelConfig},
    embed::Embedder,
    engine::Engine,
    error::NeuronError,
    thread::Health,
};

mod tries;

/// A loaded model, at work.
pub(crate) trait Runs: Send + Sync + 'static {
    fn health(&self) -> Health;
    /// Requests in line and under way.
    fn busy(&self) -> usize;
    /// Ends every request now.
    fn abort_all(&self);
    /// Ends all and gives its memory back, waiting for that at most so long.
    fn stop(&self, patience: Duration);
}

impl Runs for Engine {
    fn health(&self) -> Health {
        Self::health(self)
    }

    fn busy(&self) -> usize {
        Self::busy(self)
    }

    fn abort_all(&self) {
        Self::abort_all(self);
    }

    fn stop(&self, patience: Duration) {
        Self::stop(self, patience);
    }
}

impl Runs for Embedder {
    fn health(&self) -> Health {
        Self::health(self)
    }

    fn busy(&self) -> usize {
        self.waiting()
    }

    /// Its runs are short: the stop that follows ends them.
    fn abort_all(&self) {}

    fn stop(&self, patience: Duration) {
        Self::stop(self, patience);
    }
}

/// Whose memory a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    Host,
    Gpu(i32),
}

impl Memory {
    pub(crate) fn of(config: &ModelConfig) -> Self {
        match config.device {
            Device::Cpu => Self::Host,
            Device::Cuda => Self::Gpu(config.cuda.device_id),
        }
    }
}

/// What came of a load.
pub(crate) struct Loaded<R> {
    pub(crate) runner: R,
    /// What it takes of its place's memory.
    pub(crate) bytes: u64,
}

/// Loads a model; called again whenever it left the memory or broke down.
pub(crate) type Load<R> = Box<dyn Fn() -> Result<Loaded<R>, NeuronError> + Send + Sync>;

/// How a model stands, for whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    Ready,
    /// It is loaded when it is asked for. Why it is not yet, if that was tried.
    Unloaded(Option<String>),
    Loading,
    /// It broke down, and is loaded again.
    Broken,
    /// A run of it does not end.
    Stuck,
    Failed {
        reason: String,
        cause: Cause,
    },
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The process begins. What fails then is for whoever looks at it.
    Start,
    /// It was asked for.
    Asked,
    /// It was at work, and broke down.
    Broken,
}

impl Status {
    /// The word for it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unloaded(_) => "unloaded",
            Self::Loading => "loading",
            Self::Broken | Self::Stuck | Self::Failed { .. } => "failed",
        }
    }

    /// Why it is as it is, where there is more to say.
    pub(crate) fn reason(&self) -> Option<String> {
        match self {
            Self::Unloaded(why) => why.clone(),
            Self::Failed { reason, .. } => Some(reason.clone()),
            _ => self.closed().map(str::to_owned),
        }
    }

    /// Why it takes no request now, if so, for whoever asked.
    pub(crate) fn closed(&self) -> Option<&'static str> {
        match self {
            Self::Ready | Self::Loading | Self::Unloaded(_) => None,
            Self::Broken => Some("the model broke down and is loaded again"),
            Self::Stuck => Some("a step of the model does not end"),
            Self::Failed { .. } => Some(
                "the model could not be loaded here: the neuron's log and /health/ready say why",
            ),
        }
    }

    /// Whether it was at work and is not: what does not heal is for whoever watches the process.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(
            self,
            Self::Broken
                | Self::Stuck
                | Self::Failed {
                    cause: Cause::Broken,
                    ..
                }
        )
    }
}

enum State<R> {
    Out {
        why: Option<String>,
    },
    Loading {
        /// What broke down, and has its memory until it is stopped.
        before: Option<Arc<R>>,
        cause: Cause,
    },
    Up(Arc<R>),
    Failed {
        reason: String,
        cause: Cause,
    },
}

struct Inside<R> {
    state: State<R>,
    /// Those who have it and may put something in its line.
    leases: usize,
    /// When it was last asked for, counted in requests.
    asked: u64,
    /// What it takes, as far as that is known.
    bytes: u64,
    tries: Tries,
    /// It was taken away: nobody gets it any more.
    gone: bool,
}

impl<R: Runs> Inside<R> {
    fn idle(&self) -> Option<&Arc<R>> {
        match &self.state {
            State::Up(runner) if self.leases == 0 && runner.busy() == 0 => Some(runner),
            _ => None,
        }
    }
}

/// The place of a model.
pub(crate) struct Seat<R> {
    id: ModelId,
    place: Memory,
    load: Load<R>,
    inside: Mutex<Inside<R>>,
    changed: watch::Sender<()>,
}

/// What a look at a seat gives who wants the model.
pub(crate) enum Look<R: Runs> {
    Up(Lease<R>),
    /// It is to be brought in.
    Out,
    Loading,
    Closed(&'static str),
    /// It was taken away.
    Gone,
}

/// A model that stays in memory while this is held.
pub(crate) struct Lease<R: Runs> {
    seat: Arc<Seat<R>>,
    runner: Arc<R>,
}

impl<R: Runs> Lease<R> {
    /// What runs it. Whoever keeps this keeps no memory.
    pub(crate) fn runner(&self) -> &Arc<R> {
        &self.runner
    }
}

impl<R: Runs> std::ops::Deref for Lease<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.runner
    }
}

impl<R: Runs> Drop for Lease<R> {
    fn drop(&mut self) {
        self.seat.inside().leases -= 1;
    }
}

impl<R: Runs> Seat<R> {
    /// A model that is not in memory, where it would take about so much.
    pub(crate) fn new(id: ModelId, place: Memory, bytes: u64, load: Load<R>) -> Self {
        Self {
            id,
            place,
            load,
            inside: Mutex::new(Inside {
                state: State::Out { why: None },
                leases: 0,
                asked: 0,
                bytes,
                tries: Tries::default(),
                gone: false,
            }),
            changed: watch::channel(()).0,
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside<R>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs it, while it is in memory.
    pub(crate) fn up(&self) -> Option<Arc<R>> {
        match &self.inside().state {
            State::Up(runner) => Some(Arc::clone(runner)),
            _ => None,
        }
    }

    /// The model for a request, which is the `turn`th.
    pub(crate) fn look(self: &Arc<Self>, turn: u64) -> Look<R> {
        let mut inside = self.inside();
        inside.asked = inside.asked.max(turn);
        if inside.gone {
            return Look::Gone;
        }
        if let Some(reason) = status(&inside.state).closed() {
            return Look::Closed(reason);
        }
        let runner = match &inside.state {
            State::Up(runner) => Arc::clone(runner),
            State::Loading { .. } => return Look::Loading,
            State::Out { .. } | State::Failed { .. } => return Look::Out,
        };
        inside.leases += 1;
        Look::Up(Lease {
            seat: Arc::clone(self),
            runner,
        })
    }

    /// Whether somebody waited for it who is just about to use it.
    fn is_awaited(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    fn set(&self, state: State<R>) {
        self.inside().state = state;
        self.changed.send_replace(());
    }
}

fn status<R: Runs>(state: &State<R>) -> Status {
    match state {
        State::Out { why } => Status::Unloaded(why.clone()),
        State::Loading {
            cause: Cause::Broken,
            ..
        } => Status::Broken,
        State::Loading { .. } => Status::Loading,
        State::Up(runner) => match runner.health() {
            Health::Well => Status::Ready,
            Health::Stuck => Status::Stuck,
            Health::Dead => Status::Broken,
        },
        State::Failed { reason, cause } => Status::Failed {
            reason: reason.clone(),
            cause: *cause,
        },
    }
}

/// What a seat takes of the memory now, or would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Takes {
    pub(crate) bytes: u64,
    /// Whether it does.
    pub(crate) held: bool,
    /// When it was last asked for; none while it has work, or is not all there.
    pub(crate) idle_since: Option<u64>,
}

/// Why a model was not unloaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotOut {
    /// It has work, or is being loaded.
    Busy,
    /// It is not in memory.
    IsOut,
}

/// A seat, whatever runs in it.
pub(crate) trait Resident: Send + Sync {
    fn id(&self) -> &ModelId;
    fn place(&self) -> Memory;
    fn status(&self) -> Status;
    /// Follows what becomes of it.
    fn follow(&self) -> watch::Receiver<()>;
    fn takes(&self) -> Takes;
    /// It is asked for, by the `turn`th request.
    fn ask(&self, turn: u64);
    /// Claims the load, which is for one alone: whoever is told yes goes on to [`Resident::bring`]. Takes one out
    /// of memory that broke down, and only such a one.
    fn claim(&self, cause: Cause) -> bool;
    /// Loads it, blocking, and tells what came of it to those who wait.
    fn bring(&self) -> Result<(), NeuronError>;
    /// The load that was claimed will not be.
    fn give_up(&self, why: String);
    /// The load that was claimed cannot be.
    fn fail(&self, reason: String);
    /// Takes it out of memory if nobody uses it: what is given has to be stopped.
    fn take_out(&self) -> Result<Arc<dyn Runs>, NotOut>;
    /// Nobody gets it any more.
    fn retire(&self);
    /// Whether it is time to load it again, one look after another.
    fn is_due(&self) -> bool;
    /// What runs it, while it is in memory.
    fn runner(&self) -> Option<Arc<dyn Runs>>;
}

/// How long what broke down may take to give its memory back.
const PARTING_MAX: Duration = Duration::from_secs(1);

impl<R: Runs> Resident for Seat<R> {
    fn id(&self) -> &ModelId {
        &self.id
    }

    fn place(&self) -> Memory {
        self.place
    }

    fn status(&self) -> Status {
        status(&self.inside().state)
    }

    fn follow(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn takes(&self) -> Takes {
        let inside = self.inside();
        // A load that is claimed takes nothing before it has the memory to itself, and nobody else looks then: two
        // that counted each other would wait for each other.
        let held = match &inside.state {
            State::Up(_) => true,
            State::Loading { before, .. } => before.is_some(),
            State::Out { .. } | State::Failed { .. } => false,
        };
        let idle = inside.idle().filter(|_| !self.is_awaited());
        Takes {
            bytes: inside.bytes,
            held,
            idle_since: idle.map(|_| inside.asked),
        }
    }

    fn ask(&self, turn: u64) {
        let mut inside = self.inside();
        inside.asked = inside.asked.max(turn);
    }

    fn claim(&self, cause: Cause) -> bool {
        let mut inside = self.inside();
        let (before, cause) = match &inside.state {
            _ if inside.gone => return false,
            State::Out { .. } => (None, cause),
            State::Failed {
                cause: Cause::Broken,
                ..
            } => (None, Cause::Broken),
            State::Failed { .. } => (None, cause),
            State::Up(runner) if runner.health() == Health::Dead => {
                (Some(Arc::clone(runner)), Cause::Broken)
            }
            State::Up(_) | State::Loading { .. } => return false,
        };
        inside.state = State::Loading { before, cause };
        drop(inside);
        self.changed.send_replace(());
        true
    }

    fn bring(&self) -> Result<(), NeuronError> {
        let (before, cause) = match &mut self.inside().state {
            State::Loading { before, cause } => (before.take(), *cause),
            _ => return Ok(()),
        };
        if let Some(before) = before {
            before.stop(PARTING_MAX);
        }
        match (self.load)() {
            Ok(Loaded { runner, bytes }) => {
                self.inside().bytes = bytes;
                self.set(State::Up(Arc::new(runner)));
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                self.set(State::Failed { reason, cause });
                Err(error)
            }
        }
    }

    fn give_up(&self, why: String) {
        self.set(State::Out { why: Some(why) });
    }

    fn fail(&self, reason: String) {
        self.set(State::Failed {
            reason,
            cause: Cause::Start,
        });
    }

    fn take_out(&self) -> Result<Arc<dyn Runs>, NotOut> {
        let mut inside = self.inside();
        let taken: Arc<dyn Runs> = match &inside.state {
            State::Out { .. } | State::Failed { .. } => return Err(NotOut::IsOut),
            State::Loading { .. } => return Err(NotOut::Busy),
            State::Up(_) => match inside.idle().filter(|_| !self.is_awaited()) {
                Some(runner) => Arc::clone(runner) as _,
                None => return Err(NotOut::Busy),
            },
        };
        inside.state = State::Out { why: None };
        drop(inside);
        self.changed.send_replace(());
        Ok(taken)
    }

    fn retire(&self) {
        self.inside().gone = true;
        self.changed.send_replace(());
    }

    fn is_due(&self) -> bool {
        let mut inside = self.inside();
        let health = match &inside.state {
            State::Up(runner) => runner.health(),
            State::Failed { cause, .. } if *cause != Cause::Start => Health::Dead,
            State::Failed { .. } | State::Out { .. } | State::Loading { .. } => return false,
        };
        inside.tries.is_due(health)
    }

    fn runner(&self) -> Option<Arc<dyn Runs>> {
        let inside = self.inside();
        match &inside.state {
            State::Up(runner) => Some(Arc::clone(runner) as _),
            State::Loading { before, .. } => before.clone().map(|runner| runner as _),
            State::Out { .. } | State::Failed { .. } => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
