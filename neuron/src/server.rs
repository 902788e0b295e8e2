//! Starts a neuron, and stops it in order.
//!
//! Start: models are loaded and checked before the address is bound, and the neuron registers only
//! once it answers. Stop: the registration is taken back, no more requests are taken, running ones
//! may end within the drain time and are then aborted, and the last usage events are published.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use seatbelt_bus::{Nats, Register, ServerTime, UsageReports};
use seatbelt_connections::Connections;
use seatbelt_schemas::{
    names::Names,
    neuron::{NeuronRecord, signature::NeuronSecret},
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{SharedTime, unix_ms},
    config::{Access, FLUSH_MAX, ModelConfig, NeuronConfig},
    engine::Engine,
    error::NeuronError,
    http::{self, App, Doubts, Growing, Shaping, Used},
    load::Loader,
    metrics::Metrics,
    shelf::Shelf,
    usage::{Outbox, TicketOffice, UsageSink},
};

mod door;

/// A neuron that serves.
#[derive(Debug)]
pub struct RunningNeuron {
    address: SocketAddr,
    models: Models,
    shutdown: CancellationToken,
    run: JoinHandle<()>,
}

impl RunningNeuron {
    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its models, to be changed while it serves.
    pub fn models(&self) -> Models {
        self.models.clone()
    }

    /// Waits until the neuron has stopped, which it does when its shutdown token is cancelled.
    pub async fn join(self) {
        if let Err(error) = self.run.await {
            tracing::error!(%error, "the neuron's task ended badly");
        }
    }

    /// Asks it to stop and waits.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.join().await;
    }
}

/// The models of a running neuron.
#[derive(Clone)]
pub struct Models {
    shelf: Arc<Shelf>,
    /// What it was started with.
    told: NeuronConfig,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Models")
    }
}

impl Models {
    /// The names of those that are served, whether they are in memory or not.
    pub fn names(&self) -> Vec<String> {
        let residents = self.shelf.roster().residents();
        residents.iter().map(|one| one.id().to_string()).collect()
    }

    /// Serves these from now on. Those that are configured as before stay as they are; one that is not there any
    /// more, or otherwise, takes no more requests and leaves the memory once its work is done. New ones are loaded if
    /// they fit beside the others, and else when they are asked for; one that cannot be read is told and left out.
    pub async fn reload(&self, models: Vec<ModelConfig>) -> Result<(), NeuronError> {
        let config = NeuronConfig {
            models,
            ..self.told.clone()
        };
        without_mistakes(&config)?;
        self.shelf.reload(config.models).await;
        Ok(())
    }
}

/// Starts a neuron that reports to NATS and registers there. Without a connection it does neither: its
/// usage events stay in the outbox for a later start, and once that is full no request is taken.
/// It serves who shows that he knows the deployment's `secret`, or whoever reaches it where it is told to.
pub async fn start(
    config: NeuronConfig,
    secret: NeuronSecret,
    nats: Option<Nats>,
    names: Names,
    shutdown: CancellationToken,
) -> Result<RunningNeuron, NeuronError> {
    let Some(nats) = nats else {
        return start_with_sink(config, secret, None, shutdown).await;
    };
    let (replicas, id) = (config.replicas, &config.id);
    let reports = UsageReports::open(&nats, &names, replicas, id).await?;
    let register = Register::open(&nats, &names, replicas, id).await?;
    let time = ServerTime::start_at_neuron(&nats, &names, unix_ms()).await;
    let (stop, followed) = (shutdown.clone(), Arc::clone(&time));
    let ties = Ties {
        sink: Some(Arc::new(reports)),
        register: Some(register),
        time: SharedTime::Server(time),
        following: Some(tokio::spawn(async move {
            followed.follow(&nats, &stop).await;
        })),
    };
    start_all(config, secret, ties, shutdown).await
}

/// Starts a neuron that reports to any sink and registers nowhere.
pub async fn start_with_sink(
    config: NeuronConfig,
    secret: NeuronSecret,
    sink: Option<Arc<dyn UsageSink>>,
    shutdown: CancellationToken,
) -> Result<RunningNeuron, NeuronError> {
    let ties = Ties {
        sink,
        register: None,
        time: SharedTime::Own,
        following: None,
    };
    start_all(config, secret, ties, shutdown).await
}

/// What ties a neuron to the rest.
struct Ties {
    sink: Option<Arc<dyn UsageSink>>,
    register: Option<Register>,
    time: SharedTime,
    /// Keeps the time; ends with the shutdown.
    following: Option<JoinHandle<()>>,
}

async fn start_all(
    config: NeuronConfig,
    secret: NeuronSecret,
    ties: Ties,
    shutdown: CancellationToken,
) -> Result<RunningNeuron, NeuronError> {
    let Ties {
        sink,
        register,
        time,
        following,
    } = ties;
    without_mistakes(&config)?;
    let metrics = Arc::new(Metrics::new());
    let loader = Loader::new(&config, &metrics)?;
    let shelf = Shelf::start(&config, loader, shutdown.clone()).await?;
    let (listener, address) = listen(config.listen).await?;
    let publishing = CancellationToken::new();
    let outbox = Outbox::start(&config.outbox_dir, sink, publishing.clone());
    let (outbox, publisher) = outbox.map_err(|source| no_outbox(&config, source))?;
    let office = TicketOffice {
        neuron: config.id.clone(),
        outbox,
        metrics,
    };
    let app = Arc::new(App {
        access: access(&config, secret),
        notices: notices_of(&config, address),
        registered: register.as_ref().map(|it| (it.twin(), it.unseen())),
        time,
        used: Used::default(),
        growing: Growing::default(),
        doubts: Doubts::default(),
        admin: config.admin_token.clone(),
        shelf: Arc::clone(&shelf),
        office,
        aside: Arc::new(Semaphore::new(cores())),
        shaping: Shaping::new(cores()),
        draining: AtomicBool::new(false),
        since_s: unix_ms() / 1000,
    });
    let routes = http::router(Arc::clone(&app));
    let server =
        tokio::spawn(Connections::new(door::bounds()).serve(listener, routes, shutdown.clone()));
    let registration = register.map(|register| {
        let (app, record) = (Arc::clone(&app), record_of(&config, address));
        let now = Arc::new(move || with_load(&app, &record));
        tokio::spawn(register.keep(now, shutdown.clone()))
    });
    tracing::info!(neuron = %config.id, %address, models = shelf.roster().residents().len(), "neuron serves");
    let told = config.clone();
    let life = Life {
        keeping: tokio::spawn(Arc::clone(&shelf).keep()),
        app,
        server,
        registration,
        following,
        publisher,
        publishing,
        config,
    };
    Ok(RunningNeuron {
        address,
        models: Models { shelf, told },
        run: tokio::spawn(life.until(shutdown.clone())),
        shutdown,
    })
}

fn without_mistakes(config: &NeuronConfig) -> Result<(), NeuronError> {
    let mistakes = config.mistakes();
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(NeuronError::Config(mistakes)),
    }
}

fn no_outbox(config: &NeuronConfig, source: std::io::Error) -> NeuronError {
    NeuronError::Outbox {
        path: config.outbox_dir.clone(),
        source,
    }
}

/// Listens there, and says where that is: port 0 is any that is free.
async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), NeuronError> {
    let failed = |source| NeuronError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Who is served; to serve anybody is told.
fn access(config: &NeuronConfig, secret: NeuronSecret) -> Access {
    if !config.open {
        return Access::Signed(secret);
    }
    tracing::warn!(neuron = %config.id, "neuron is open: whoever reaches it is served, and not metered");
    Access::Open
}

/// What an operator should look at although the neuron starts, told.
fn notices_of(config: &NeuronConfig, address: SocketAddr) -> Vec<String> {
    let nowhere = config.url.is_none() && address.ip().is_unspecified();
    let notice = || {
        format!(
            "gateways on other machines cannot reach http://{address}, under which this neuron registers: set neuron.url to the address by which they can"
        )
    };
    let notices: Vec<String> = nowhere.then(notice).into_iter().collect();
    for notice in &notices {
        tracing::warn!(neuron = %config.id, "{notice}");
    }
    notices
}

fn record_of(config: &NeuronConfig, address: SocketAddr) -> NeuronRecord {
    NeuronRecord {
        v: 1,
        neuron: config.id.clone(),
        url: config
            .url
            .clone()
            .unwrap_or_else(|| format!("http://{address}")),
        device: config
            .models
            .first()
            .map_or("cpu", |model| model.device.as_str())
            .to_owned(),
        models: Vec::new(),
        active: 0,
        queued: 0,
        at_ms: 0,
    }
}

fn with_load(app: &App, record: &NeuronRecord) -> NeuronRecord {
    let roster = app.shelf.roster();
    let engines: Vec<_> = (roster.served.iter())
        .filter_map(|served| served.seat.up())
        .collect();
    let sum = |of: fn(&Engine) -> usize| engines.iter().map(|engine| of(engine)).sum::<usize>();
    let embedders = roster.embedders.iter();
    let embedders = embedders.filter_map(|embeds| embeds.seat.up());
    let embedding = embedders.map(|embedder| embedder.waiting()).sum::<usize>();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    NeuronRecord {
        models: app.records(),
        active: count(sum(Engine::active)),
        queued: count(sum(Engine::queued) + embedding),
        at_ms: unix_ms(),
        ..record.clone()
    }
}

/// All that has to be ended in order.
struct Life {
    app: Arc<App>,
    keeping: JoinHandle<()>,
    server: JoinHandle<()>,
    registration: Option<JoinHandle<()>>,
    following: Option<JoinHandle<()>>,
    publisher: Option<JoinHandle<()>>,
    publishing: CancellationToken,
    config: NeuronConfig,
}

impl Life {
    async fn until(mut self, shutdown: CancellationToken) {
        shutdown.cancelled().await;
        self.app.draining.store(true, Ordering::Release);
        tracing::info!(neuron = %self.config.id, "neuron stops");
        if let Some(registration) = self.registration.take() {
            // It ends by itself; a dead NATS must not hold up the rest.
            drop(tokio::time::timeout(FLUSH_MAX, registration).await);
        }
        if let Some(following) = self.following.take() {
            // it ends with the shutdown, at once
            drop(following.await);
        }
        if tokio::time::timeout(self.config.drain, &mut self.server)
            .await
            .is_err()
        {
            tracing::warn!(
                "requests were still running at the end of the drain time: they are aborted"
            );
            self.app.shelf.abort_all();
            if tokio::time::timeout(FLUSH_MAX, &mut self.server)
                .await
                .is_err()
            {
                self.server.abort();
            }
        }
        // It ends with the shutdown; a model that it is just letting go may take a moment.
        drop(tokio::time::timeout(FLUSH_MAX, &mut self.keeping).await);
        self.app.shelf.stop().await;
        self.flush().await;
        let outbox = self.app.office.outbox.clone();
        drop(tokio::task::spawn_blocking(move || outbox.close()).await);
    }

    async fn flush(&mut self) {
        let Some(publisher) = self.publisher.take() else {
            return;
        };
        let outbox = &self.app.office.outbox;
        if tokio::time::timeout(FLUSH_MAX, outbox.drained())
            .await
            .is_err()
        {
            tracing::warn!(
                left = outbox.waiting(),
                "usage events are left in the outbox for the next start"
            );
        }
        self.publishing.cancel();
        drop(publisher.await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_only_this_machine_can_call_is_told() {
        let of = |listen: &str, url: Option<&str>| {
            let config = NeuronConfig {
                url: url.map(str::to_owned),
                ..NeuronConfig::new("outbox".into())
            };
            notices_of(&config, listen.parse().unwrap()).len()
        };
        assert_eq!(of("0.0.0.0:9100", None), 1);
        assert_eq!(of("[::]:9100", None), 1);
        assert_eq!(of("0.0.0.0:9100", Some("http://gpu-box:9100")), 0);
        assert_eq!(of("127.0.0.1:9100", None), 0);
    }
}
