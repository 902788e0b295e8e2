//! The models of a neuron: which are served, which are in memory, and who makes room for whom.
//!
//! All are loaded at the start as long as the memory that the configuration allows them lasts. The others are loaded
//! when they are first asked for, each once for all who wait; where that takes it, the one goes that was asked for
//! least recently, and never one with work. Memory changes hands under one lock: one model is loaded or unloaded at a
//! time.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;

use self::room::{Held, Plan, plan};
use crate::{
    config::{FLUSH_MAX, ModelConfig, NeuronConfig},
    error::NeuronError,
    http::{Embeds, Served},
    load::{Entry, Loader},
    seat::{Cause, Lease, Look, Memory, NotOut, Resident, Runs, Seat, Status},
};

mod room;

/// How often models are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same while one waits for those that have work.
const LOOK_AT_BUSY_EVERY: Duration = Duration::from_millis(20);

/// A model that is configured and whose folder cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) config: ModelConfig,
    pub(crate) reason: String,
}

/// The models of a configuration.
#[derive(Clone, Default)]
pub(crate) struct Roster {
    pub(crate) served: Vec<Arc<Served>>,
    pub(crate) embedders: Vec<Arc<Embeds>>,
    pub(crate) failed: Vec<Failed>,
}

impl Roster {
    /// The models that are served, of either kind.
    pub(crate) fn residents(&self) -> Vec<Arc<dyn Resident>> {
        let served = self.served.iter();
        let served = served.map(|served| Arc::clone(&served.seat) as Arc<dyn Resident>);
        let embedders = self.embedders.iter();
        let embedders = embedders.map(|embeds| Arc::clone(&embeds.seat) as Arc<dyn Resident>);
        served.chain(embedders).collect()
    }

    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Writes(served) => self.served.push(served),
            Entry::Embeds(embeds) => self.embedders.push(embeds),
            Entry::Unread(failed) => self.failed.push(failed),
        }
    }

    /// What there is by this very configuration.
    fn like(&self, config: &ModelConfig) -> Option<Entry> {
        let mut served = self.served.iter();
        let served = served.find(|served| served.wanted == *config);
        let served = served.map(|served| Entry::Writes(Arc::clone(served)));
        let mut embedders = self.embedders.iter();
        let embeds = embedders.find(|embeds| embeds.wanted == *config);
        served.or(embeds.map(|embeds| Entry::Embeds(Arc::clone(embeds))))
    }
}

/// Why a request does not get its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotUp {
    Closed(&'static str),
    /// As many wait for a load as may.
    Crowded,
    /// It is not loaded in the time that the request has.
    NotInTime,
    Gone,
}

/// Why a model was not loaded or unloaded by name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotDone {
    Unknown,
    /// It has work, or is being loaded.
    Busy,
    /// Those that have its memory have work.
    NotNow(String),
    Failed(String),
}

/// All models, and the memory they share.
pub(crate) struct Shelf {
    loader: Loader,
    load_wait: Duration,
    waiting_max: usize,
    roster: RwLock<Arc<Roster>>,
    /// Taken away while they had work.
    parting: Mutex<Vec<Arc<dyn Resident>>>,
    memory: tokio::sync::Mutex<()>,
    /// Requests that asked for a model.
    turn: AtomicU64,
    /// Those that wait for a load.
    waiting: AtomicUsize,
    stopping: CancellationToken,
}

impl Shelf {
    /// Loads the models that are configured, as far as they fit.
    ///
    /// One that does not load is told and left out, and the others serve. Where none does, and where what all need is
    /// missing, there is no neuron.
    pub(crate) async fn start(
        config: &NeuronConfig,
        loader: Loader,
        stopping: CancellationToken,
    ) -> Result<Arc<Self>, NeuronError> {
        let shelf = Arc::new(Self {
            loader,
            load_wait: config.load_wait,
            waiting_max: config.queue,
            roster: RwLock::default(),
            parting: Mutex::default(),
            memory: tokio::sync::Mutex::new(()),
            turn: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            stopping,
        });
        let (filled, models) = (Arc::clone(&shelf), config.models.clone());
        let fill = tokio::task::spawn_blocking(move || filled.fill(&models));
        let broke = |error| NeuronError::Model {
            model: "all".to_owned(),
            detail: format!("loading broke off: {error}"),
        };
        fill.await.map_err(broke)??;
        Ok(shelf)
    }

    fn fill(&self, models: &[ModelConfig]) -> Result<(), NeuronError> {
        let mut roster = Roster::default();
        let mut first = None;
        for model in models {
            match self.loader.read(model) {
                Ok(entry) => {
                    let resident = entry.resident();
                    roster.add(entry);
                    let brought = resident.map(|resident| self.bring_at_start(&*resident, &roster));
                    first = first.or(brought.and_then(Result::err));
                }
                Err(error) if error.is_of_one_model() => {
                    roster.add(unread(model, &error));
                    first.get_or_insert(error);
                }
                // What all need is missing.
                Err(error) => return Err(error),
            }
        }
        let serves = |resident: &Arc<dyn Resident>| resident.status().closed().is_none();
        match first {
            Some(error) if !roster.residents().iter().any(serves) => Err(error),
            _ => {
                self.put(roster);
                Ok(())
            }
        }
    }

    /// Loads one if it fits beside those before it.
    fn bring_at_start(&self, resident: &dyn Resident, roster: &Roster) -> Result<(), NeuronError> {
        let model = resident.id();
        let brought = match self.plan(resident, &roster.residents()) {
            Plan::Fits if resident.claim(Cause::Start) => resident.bring(),
            Plan::Never => {
                let error = self.too_large(resident);
                resident.fail(error.to_string());
                Err(error)
            }
            Plan::Fits | Plan::Unload(_) | Plan::Wait => {
                tracing::info!(%model, "the model does not fit beside those before it: it is loaded when it is asked for");
                Ok(())
            }
        };
        if let Err(error) = &brought {
            tracing::error!(%model, reason = %error, "the model does not load and is not served");
        }
        brought
    }

    /// The models as they are configured now.
    pub(crate) fn roster(&self) -> Arc<Roster> {
        let roster = self.roster.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&roster)
    }

    fn put(&self, roster: Roster) {
        *self.roster.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(roster);
    }

    fn parting(&self) -> std::sync::MutexGuard<'_, Vec<Arc<dyn Resident>>> {
        self.parting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A model for a request, in memory for as long as the lease is held.
    pub(crate) async fn lease<R: Runs>(
        self: &Arc<Self>,
        seat: &Arc<Seat<R>>,
        deadline: Option<Instant>,
    ) -> Result<Lease<R>, NotUp> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) + 1;
        if let Look::Up(lease) = seat.look(turn) {
            return Ok(lease);
        }
        let until = Instant::now().checked_add(self.load_wait);
        let until = until.into_iter().chain(deadline).min();
        let _place = self.place_to_wait().ok_or(NotUp::Crowded)?;
        let brought = self.until_up(seat, turn);
        match until {
            Some(until) => tokio::time::timeout_at(until.into(), brought)
                .await
                .unwrap_or(Err(NotUp::NotInTime)),
            None => brought.await,
        }
    }

    async fn until_up<R: Runs>(
        self: &Arc<Self>,
        seat: &Arc<Seat<R>>,
        turn: u64,
    ) -> Result<Lease<R>, NotUp> {
        let mut changes = seat.follow();
        loop {
            if self.stopping.is_cancelled() {
                return Err(NotUp::Closed("the neuron is stopping"));
            }
            changes.mark_unchanged();
            match seat.look(turn) {
                Look::Up(lease) => return Ok(lease),
                Look::Closed(reason) => return Err(NotUp::Closed(reason)),
                Look::Gone => return Err(NotUp::Gone),
                Look::Out => {
                    self.begin(Arc::clone(seat) as Arc<dyn Resident>, Cause::Asked);
                }
                Look::Loading => {
                    // The seat outlives what follows it.
                    let _ = changes.changed().await;
                }
            }
        }
    }

    /// A place among those that wait; they are few, since each holds its body.
    fn place_to_wait(&self) -> Option<Waiting<'_>> {
        let room = |now: usize| (now < self.waiting_max).then_some(now + 1);
        let taken = (self.waiting).fetch_update(Ordering::AcqRel, Ordering::Acquire, room);
        // Made only where the place was taken: its end gives the place back.
        taken.is_ok().then(|| Waiting(&self.waiting))
    }

    /// Loads a model behind the back of those who wait, unless somebody does: whether it began.
    fn begin(self: &Arc<Self>, resident: Arc<dyn Resident>, cause: Cause) -> bool {
        let claimed = resident.claim(cause);
        if claimed {
            tokio::spawn(Arc::clone(self).bring(resident));
        }
        claimed
    }

    /// Makes room for a model whose load was claimed, and loads it.
    async fn bring(self: Arc<Self>, resident: Arc<dyn Resident>) {
        let alone = match self.make_room(&*resident).await {
            Ok(alone) => alone,
            Err(NoRoom::Never) => return resident.fail(self.too_large(&*resident).to_string()),
            Err(NoRoom::NotNow) => {
                return resident.give_up("there was no memory for it in time".to_owned());
            }
        };
        if self.stopping.is_cancelled() {
            return resident.give_up("the neuron is stopping".to_owned());
        }
        let (brought, id) = (Arc::clone(&resident), resident.id().clone());
        match tokio::task::spawn_blocking(move || brought.bring()).await {
            Ok(Ok(())) => tracing::info!(model = %id, "the model is loaded"),
            Ok(Err(error)) => tracing::error!(model = %id, %error, "the model cannot be loaded"),
            Err(error) => resident.fail(format!("loading broke off: {error}")),
        }
        drop(alone);
    }

    /// Unloads what has to leave for one. What is given back is the right to load.
    async fn make_room(&self, wanted: &dyn Resident) -> Result<MutexGuard<'_, ()>, NoRoom> {
        let began = Instant::now();
        loop {
            let alone = self.memory.lock().await;
            let around = self.all();
            match self.plan(wanted, &around) {
                Plan::Fits => return Ok(alone),
                Plan::Never => return Err(NoRoom::Never),
                Plan::Unload(leaving) => {
                    let others = others(wanted, &around);
                    for at in leaving {
                        // It may have got work meanwhile, and stays then.
                        let _ = unload(&*others[at]).await;
                    }
                }
                Plan::Wait => {
                    drop(alone);
                    if began.elapsed() >= self.load_wait || self.stopping.is_cancelled() {
                        return Err(NoRoom::NotNow);
                    }
                    tokio::time::sleep(LOOK_AT_BUSY_EVERY).await;
                }
            }
        }
    }

    /// Every model that may be in memory.
    fn all(&self) -> Vec<Arc<dyn Resident>> {
        let mut all = self.roster().residents();
        all.extend(self.parting().iter().cloned());
        all
    }

    fn plan(&self, wanted: &dyn Resident, around: &[Arc<dyn Resident>]) -> Plan {
        let Some(budget) = self.loader.budgets.of(wanted.place()) else {
            return Plan::Fits;
        };
        let held: Vec<Held> = others(wanted, around)
            .iter()
            .map(|other| {
                let takes = other.takes();
                Held {
                    bytes: if takes.held { takes.bytes } else { 0 },
                    idle_since: takes.idle_since,
                }
            })
            .collect();
        plan(budget, wanted.takes().bytes, &held)
    }

    fn too_large(&self, resident: &dyn Resident) -> NeuronError {
        let budget = self.loader.budgets.of(resident.place()).unwrap_or(u64::MAX);
        let setting = match resident.place() {
            Memory::Host => "neuron.memory_bytes_max",
            Memory::Gpu(_) => "neuron.gpu_memory_bytes_max",
        };
        NeuronError::Model {
            model: resident.id().to_string(),
            detail: format!(
                "it takes about {} bytes with its caches, and {setting} is {budget}: set fewer slots, a smaller context or cache_bytes_max of the model, or more memory",
                resident.takes().bytes
            ),
        }
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Resident>> {
        let mut all = self.roster().residents().into_iter();
        all.find(|resident| resident.id().as_str() == name)
    }

    /// Loads a model by name, and waits for it. Of a load that others began before, only that it worked is believed: what
    /// made it fail may have been mended since.
    pub(crate) async fn load_named(self: &Arc<Self>, name: &str) -> Result<(), NotDone> {
        let resident = self.find(name).ok_or(NotDone::Unknown)?;
        resident.ask(self.turn.fetch_add(1, Ordering::Relaxed) + 1);
        let mut changes = resident.follow();
        let mut own = self.begin(Arc::clone(&resident), Cause::Asked);
        loop {
            changes.mark_unchanged();
            let status = resident.status();
            match status {
                Status::Ready => return Ok(()),
                Status::Stuck => return Err(NotDone::Busy),
                Status::Failed { .. } | Status::Unloaded(_) if !own => {
                    own = self.begin(Arc::clone(&resident), Cause::Asked);
                }
                Status::Failed { reason, .. } => return Err(NotDone::Failed(reason)),
                Status::Unloaded(why) => return Err(NotDone::NotNow(why.unwrap_or_default())),
                Status::Loading | Status::Broken => {
                    // The seat outlives what follows it.
                    let _ = changes.changed().await;
                }
            }
            if self.find(name).is_none() {
                return Err(NotDone::Unknown);
            }
        }
    }

    /// Takes a model out of memory by name, until it is asked for again.
    pub(crate) async fn unload_named(self: &Arc<Self>, name: &str) -> Result<(), NotDone> {
        let resident = self.find(name).ok_or(NotDone::Unknown)?;
        let shelf = Arc::clone(self);
        let unloaded = tokio::spawn(async move {
            let _alone = shelf.memory.lock().await;
            unload(&*resident).await
        });
        match unloaded.await {
            Ok(Ok(()) | Err(NotOut::IsOut)) => Ok(()),
            Ok(Err(NotOut::Busy)) => Err(NotDone::Busy),
            Err(error) => Err(NotDone::Failed(error.to_string())),
        }
    }

    /// Serves other models from now on. Those that are configured as before stay as they are; others take no more
    /// requests and leave the memory once their work is done.
    pub(crate) async fn reload(self: &Arc<Self>, models: Vec<ModelConfig>) {
        let shelf = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || shelf.reread(&models));
        match read.await {
            Ok(added) => added
                .into_iter()
                .for_each(|added| self.bring_if_it_fits(added)),
            Err(error) => tracing::error!(%error, "reading models broke off"),
        }
    }

    /// The new ones.
    fn reread(&self, models: &[ModelConfig]) -> Vec<Arc<dyn Resident>> {
        let before = self.roster();
        let mut roster = Roster::default();
        let mut added = Vec::new();
        for model in models {
            if let Some(entry) = before.like(model) {
                roster.add(entry);
                continue;
            }
            let entry = self.loader.read(model);
            let entry = entry.unwrap_or_else(|error| unread(model, &error));
            added.extend(entry.resident());
            roster.add(entry);
        }
        self.change(&before, roster);
        added
    }

    fn change(&self, before: &Roster, roster: Roster) {
        let stays = roster.residents();
        let is_left = |one: &Arc<dyn Resident>| !stays.iter().any(|other| same(one, other));
        let leaves: Vec<_> = before.residents().into_iter().filter(is_left).collect();
        // Before the roster is changed: memory that is taken is always counted.
        self.parting().extend(leaves.iter().cloned());
        self.put(roster);
        for one in leaves {
            tracing::info!(model = %one.id(), "the model is taken away");
            one.retire();
        }
    }

    fn bring_if_it_fits(self: &Arc<Self>, resident: Arc<dyn Resident>) {
        match self.plan(&*resident, &self.all()) {
            Plan::Fits => {
                self.begin(resident, Cause::Asked);
            }
            Plan::Never => resident.fail(self.too_large(&*resident).to_string()),
            Plan::Unload(_) | Plan::Wait => {}
        }
    }

    /// Loads models again that broke down, ever more slowly where that does not help, and lets those go that were
    /// taken away, until the neuron stops.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.stopping.cancelled() => return,
            }
            for resident in self.roster().residents() {
                if resident.is_due() {
                    self.try_again(resident);
                }
            }
            self.let_go().await;
        }
    }

    /// What fails is not worth that others leave: where there is no room, it waits until it is asked for.
    fn try_again(self: &Arc<Self>, resident: Arc<dyn Resident>) {
        let status = resident.status();
        if self.plan(&*resident, &self.all()) == Plan::Fits {
            tracing::warn!(model = %resident.id(), "the model broke down or failed to load, and is loaded again");
            self.begin(resident, Cause::Asked);
        } else if let Status::Failed { reason, .. } = status {
            resident.give_up(reason);
        }
    }

    async fn let_go(&self) {
        let leaving = self.parting().clone();
        for one in leaving {
            let _alone = self.memory.lock().await;
            if unload(&*one).await != Err(NotOut::Busy) {
                self.parting().retain(|other| !same(&one, other));
            }
        }
    }

    /// Ends every request.
    pub(crate) fn abort_all(&self) {
        let runners = self.all().into_iter().filter_map(|one| one.runner());
        runners.for_each(|runner| runner.abort_all());
    }

    /// Ends all models. One that is just being loaded is not waited for longer than the rest.
    pub(crate) async fn stop(&self) {
        let alone = tokio::time::timeout(FLUSH_MAX, self.memory.lock()).await;
        let runners: Vec<_> = self
            .all()
            .into_iter()
            .filter_map(|one| one.runner())
            .collect();
        let stop = move || runners.iter().for_each(|runner| runner.stop(FLUSH_MAX));
        drop(tokio::task::spawn_blocking(stop).await);
        drop(alone);
    }
}

/// Why there is no room.
enum NoRoom {
    Never,
    NotNow,
}

/// A place among those that wait for a load.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn same(one: &Arc<dyn Resident>, other: &Arc<dyn Resident>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

/// Those at the same place, apart from one.
fn others(one: &dyn Resident, all: &[Arc<dyn Resident>]) -> Vec<Arc<dyn Resident>> {
    let is_other = |other: &&Arc<dyn Resident>| {
        other.place() == one.place() && !std::ptr::addr_eq(Arc::as_ptr(other), one)
    };
    all.iter().filter(is_other).cloned().collect()
}

/// Takes a model out of memory; its memory is free when this is done.
async fn unload(resident: &dyn Resident) -> Result<(), NotOut> {
    let runner = resident.take_out()?;
    tracing::info!(model = %resident.id(), "the model is unloaded");
    drop(tokio::task::spawn_blocking(move || runner.stop(FLUSH_MAX)).await);
    Ok(())
}

/// What is kept of a model that cannot be read.
fn unread(model: &ModelConfig, error: &NeuronError) -> Entry {
    let reason = error.to_string();
    tracing::error!(model = %model.id, %reason, "the model does not load and is not served");
    Entry::Unread(Failed {
        config: model.clone(),
        reason,
    })
}

#[cfg(test)]
mod tests;
