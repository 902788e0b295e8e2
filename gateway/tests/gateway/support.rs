//! A gateway over the real ledger (journal in memory) and an upstream that counts its hits, all in
//! this process on free ports. The upstream and the neuron are foreign parts: they answer as told.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use seatbelt_gateway::{
    Dialect, FirstUseFailure, FirstUseStore, Gateway, GatewayConfig, GatewayError, KeyEntry,
    KeySecret, KeyTable, Parts, Prices, Readiness, ThreadFailure, ThreadStore, UpstreamConfig,
    UpstreamModel, system_clock,
};
use seatbelt_ledger::{
    api::{
        Ack, Admin, AdminOutcome, Answer, CommandError, Exchange, Ledger, Read, Release, Reserve,
        ReserveOutcome, Resize, Resolution, Settle, SnapshotError, SnapshotStanding, Snapshots,
        Standing, Taken, UsageEvents,
    },
    host::{HostConfig, LedgerHost},
    journal::memory::MemoryJournal,
};
use seatbelt_schemas::{
    cap::{CapSpec, CapStanding},
    command::Change,
    event::{KeyIssued, UsageSource},
    first_use::FirstUse,
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ModelId, NeuronId, ReservationId},
    meter::Meter,
    neuron::{
        NeuronRecord,
        signature::{BodyHash, Call, HEADER_SIGNATURE, NeuronSecret},
    },
    position::Partitions,
    scope::Scope,
    thread::Thread,
    usage::UsageEvent,
    window::Window,
};
use seatbelt_tokens::{Recipe, template_source};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) const SECRET: &str = "sk-test";
/// Longest that any condition is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the upstream answers.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// A status, a content type and a body.
    Whole(u16, &'static str, String),
    /// A status, headers and a body.
    Head(u16, Vec<(String, String)>, String),
    /// A status, and the first part of a JSON body, which then breaks.
    Half(u16, &'static str),
    /// Pieces of an event stream; the body ends cleanly after them.
    Stream(Vec<String>),
    /// The same, but once the test says so the connection breaks after them.
    Broken(Vec<String>),
    /// The first piece of a stream, the rest once the test says so.
    Held(Vec<String>),
    /// Pieces of an event stream, each so long after the one before.
    Slow(Vec<String>, Duration),
}

/// What the upstream was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    pub(crate) bytes: Bytes,
}

/// The foreign upstream.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) hits: Arc<AtomicUsize>,
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
    pub(crate) go_on: Notify,
    /// Streams that this upstream is still writing.
    pub(crate) open: Arc<AtomicUsize>,
    /// How many input tokens it counts in any prompt.
    pub(crate) counts: AtomicUsize,
    /// What it hands out as its tokenizer, as a neuron.
    pub(crate) recipe: Vec<u8>,
    /// Every path that was called.
    paths: Mutex<Vec<String>>,
}

pub(crate) fn chat_answer() -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "test-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    })
    .to_string()
}

pub(crate) fn chunk(content: &str) -> String {
    let data = json!({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}], "usage": null});
    format!("data: {data}\n\n")
}

pub(crate) fn chat_stream() -> Vec<String> {
    let finish = json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": null});
    let usage =
        json!({"id": "c", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}});
    vec![
        chunk("hel"),
        chunk("lo"),
        format!("data: {finish}\n\n"),
        format!("data: {usage}\n\n"),
        "data: [DONE]\n\n".to_owned(),
    ]
}

impl Upstream {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            hits: Arc::default(),
            script: Mutex::new(Script::Whole(200, "application/json", chat_answer())),
            asked: Mutex::default(),
            go_on: Notify::new(),
            open: Arc::default(),
            counts: AtomicUsize::new(10),
            recipe: tiny_recipe(),
            paths: Mutex::default(),
        });
        let router = Router::new()
            .fallback(any(answer))
            .with_state(Arc::clone(&upstream));
        tokio::spawn(async move { axum::serve(listener, router).await });
        upstream
    }

    pub(crate) fn plays(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(SeqCst)
    }

    pub(crate) fn last(&self) -> Asked {
        self.asked
            .lock()
            .unwrap()
            .last()
            .expect("the upstream was never asked")
            .clone()
    }
}

/// What a neuron with the tiny model hands out.
fn tiny_recipe() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let recipe = Recipe {
        tokenizer: std::fs::read_to_string(folder.join("tokenizer.json")).unwrap(),
        template: template_source(&folder).unwrap(),
        bos: "<|bos|>".to_owned(),
        eos: "<|end|>".to_owned(),
    };
    recipe.encode()
}

/// As a neuron `n-1` would look at it.
pub(crate) fn is_signed(path: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    let neuron = NeuronId::new("n-1").unwrap();
    let told = |name| headers.get(name).map(|value| value.as_bytes());
    let call = Call::new(&neuron, "POST", path, told);
    let signed = told(HEADER_SIGNATURE);
    let hash = signed.and_then(|signature| neuron_secret().verify(&call, signature));
    hash == Some(BodyHash::of(body))
}

async fn answer(
    State(upstream): State<Arc<Upstream>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (bytes, body) = (
        body.clone(),
        serde_json::from_slice(&body).unwrap_or(Value::Null),
    );
    if uri.path() == "/health/live" {
        return "live".into_response();
    }
    upstream.paths.lock().unwrap().push(uri.path().to_owned());
    if matches!(uri.path(), "/recipe" | "/tokenize") {
        return match is_signed(uri.path(), &headers, &bytes) {
            true => counting(&upstream, &body),
            false => StatusCode::UNAUTHORIZED.into_response(),
        };
    }
    upstream.hits.fetch_add(1, SeqCst);
    let path = uri.path().to_owned();
    upstream.asked.lock().unwrap().push(Asked {
        path,
        headers,
        body,
        bytes,
    });
    let script = upstream.script.lock().unwrap().clone();
    follow(upstream, script)
}

/// What a neuron says of how it counts: its recipe, where that is asked for by name, or a count.
fn counting(upstream: &Upstream, asked: &Value) -> Response {
    let name = Recipe::name_of(&upstream.recipe);
    match asked.get("name") {
        None => axum::Json(json!({"input_tokens": upstream.counts.load(SeqCst)})).into_response(),
        Some(known) if *known == name => upstream.recipe.clone().into_response(),
        Some(_) => StatusCode::UNAUTHORIZED.into_response(),
    }
}

fn follow(upstream: Arc<Upstream>, script: Script) -> Response {
    match script {
        Script::Whole(status, kind, body) => {
            let status = StatusCode::from_u16(status).unwrap();
            (status, [("content-type", kind), ("retry-after", "7")], body).into_response()
        }
        Script::Head(status, headers, body) => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                let name: axum::http::HeaderName = name.parse().unwrap();
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Script::Half(status, piece) => {
            let broken = async {
                tokio::task::yield_now().await; // what was written goes out then
                Err(std::io::Error::other("broken on purpose"))
            };
            let piece = stream::iter([Ok(piece)]);
            let body = Body::from_stream(piece.chain(stream::once(broken)));
            let headers = [("content-type", "application/json"), ("retry-after", "7")];
            (StatusCode::from_u16(status).unwrap(), headers, body).into_response()
        }
        Script::Stream(pieces) => streamed(stream::iter(pieces.into_iter().map(Ok))),
        Script::Broken(pieces) => {
            let pieces = pieces.into_iter().map(Ok);
            let broken = Err(std::io::Error::other("broken on purpose"));
            streamed(held(upstream, pieces.chain([broken])))
        }
        Script::Held(pieces) => streamed(held(upstream, pieces.into_iter().map(Ok))),
        Script::Slow(pieces, apart) => {
            let pieces = stream::iter(pieces);
            streamed(pieces.then(move |piece| async move {
                tokio::time::sleep(apart).await;
                Ok(piece)
            }))
        }
    }
}

/// A stream that stops after its first piece until it may go on; counted while it is alive.
fn held(
    upstream: Arc<Upstream>,
    pieces: impl Iterator<Item = Result<String, std::io::Error>> + Send + 'static,
) -> impl futures::Stream<Item = Result<String, std::io::Error>> + Send + 'static {
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    upstream.open.fetch_add(1, SeqCst);
    let alive = Alive(Arc::clone(&upstream.open));
    stream::unfold(
        (upstream, pieces, 0, alive),
        |(upstream, mut rest, sent, alive)| async move {
            if sent == 1 {
                upstream.go_on.notified().await;
            }
            let piece = rest.next()?;
            Some((piece, (upstream, rest, sent + 1, alive)))
        },
    )
}

fn streamed(
    pieces: impl futures::Stream<Item = Result<String, std::io::Error>> + Send + 'static,
) -> Response {
    (
        [("content-type", "text/event-stream")],
        Body::from_stream(pieces),
    )
        .into_response()
}

/// The ledger, which the test may cut off.
pub(crate) struct Switched {
    pub(crate) host: Arc<LedgerHost>,
    pub(crate) away: AtomicBool,
    pub(crate) settles_away: AtomicBool,
    /// What an upstream reported is found invalid.
    pub(crate) reports_invalid: AtomicBool,
    /// Reserves and resizes are decided, and their answers lost.
    pub(crate) answers_lost: AtomicBool,
    /// That a settle lasts is told to nobody.
    pub(crate) seconds_lost: AtomicBool,
    /// Settles are taken, and nobody ever hears that they last.
    pub(crate) only_taken: AtomicBool,
    /// Settles that reached the writer.
    pub(crate) settles: AtomicUsize,
    /// Releases that were asked for.
    pub(crate) releases: AtomicUsize,
}

impl Switched {
    fn check(&self) -> Result<(), CommandError> {
        match self.away.load(SeqCst) {
            true => Err(CommandError::unavailable("cut off by the test")),
            false => Ok(()),
        }
    }

    fn check_settle(&self, command: &Settle) -> Result<(), CommandError> {
        self.check()?;
        if self.settles_away.load(SeqCst) {
            return Err(CommandError::unavailable("cut off by the test"));
        }
        let reported = command.report.source == UsageSource::Upstream;
        if reported && self.reports_invalid.load(SeqCst) {
            return Err(CommandError::invalid("found so by the test"));
        }
        self.settles.fetch_add(1, SeqCst);
        Ok(())
    }
}

impl Ledger for Switched {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        async move {
            self.check()?;
            let answer = self.host.reserve(command).await;
            if self.answers_lost.load(SeqCst) {
                return Err(CommandError::unavailable("lost by the test"));
            }
            answer
        }
        .boxed()
    }

    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        async move {
            self.check()?;
            self.host.exchange(command).await
        }
        .boxed()
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        async move {
            self.check()?;
            let answer = self.host.resize(command).await;
            match self.answers_lost.load(SeqCst) {
                true => Err(CommandError::unavailable("lost by the test")),
                false => answer,
            }
        }
        .boxed()
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        async move {
            self.check_settle(&command)?;
            if self.only_taken.load(SeqCst) {
                return Err(CommandError::unavailable("lost by the test"));
            }
            self.host.settle(command, ack).await
        }
        .boxed()
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        async move {
            self.check_settle(&command)?;
            let mut taken = self.host.settle_early(command).await?;
            if self.seconds_lost.load(SeqCst) || self.only_taken.load(SeqCst) {
                taken.lasting =
                    async { Err(CommandError::unavailable("lost by the test")) }.boxed();
            }
            Ok(taken)
        }
        .boxed()
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        async move {
            self.check()?;
            self.releases.fetch_add(1, SeqCst);
            self.host.release(command).await
        }
        .boxed()
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        self.host.read(query)
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        self.host.admin(command)
    }
}

/// Bindings in memory.
#[derive(Default)]
pub(crate) struct TestThreads {
    pub(crate) bound: Arc<Mutex<HashMap<String, Thread>>>,
    /// Nothing is read or written.
    pub(crate) away: AtomicBool,
    /// While this is set, what is to be bound waits.
    pub(crate) held: Arc<watch::Sender<bool>>,
    /// Told when something is to be bound.
    pub(crate) asked: Arc<Notify>,
}

fn unless_away(away: bool) -> Result<(), ThreadFailure> {
    match away {
        true => Err("made so by the test".into()),
        false => Ok(()),
    }
}

impl ThreadStore for TestThreads {
    fn find(&self, id: String) -> BoxFuture<'static, Result<Option<Thread>, ThreadFailure>> {
        let found = self.bound.lock().unwrap().get(&id).cloned();
        let away = self.away.load(SeqCst);
        async move { unless_away(away).map(|()| found) }.boxed()
    }

    fn bind(&self, id: String, thread: Thread) -> BoxFuture<'static, Result<(), ThreadFailure>> {
        let (bound, away) = (Arc::clone(&self.bound), self.away.load(SeqCst));
        let (held, asked) = (self.held.subscribe(), Arc::clone(&self.asked));
        async move {
            asked.notify_one();
            let mut held = held;
            let _ = held.wait_for(|held| !held).await;
            unless_away(away)?;
            bound.lock().unwrap().insert(id, thread);
            Ok(())
        }
        .boxed()
    }
}

/// First uses in memory, each with its revision.
#[derive(Default)]
pub(crate) struct TestFirstUses {
    pub(crate) kept: Arc<Mutex<HashMap<String, (FirstUse, u64)>>>,
    written: Arc<AtomicU64>,
    /// Nothing is read or written.
    pub(crate) away: AtomicBool,
    /// Each key that is looked up or written.
    pub(crate) asked: AtomicUsize,
}

impl FirstUseStore for TestFirstUses {
    fn find(
        &self,
        name: String,
    ) -> BoxFuture<'static, Result<(Option<FirstUse>, u64), FirstUseFailure>> {
        self.asked.fetch_add(1, SeqCst);
        let found = self.kept.lock().unwrap().get(&name).cloned();
        let found = found.map_or((None, 0), |(first, revision)| (Some(first), revision));
        let away = self.away.load(SeqCst);
        async move { unless_away(away).map(|()| found) }.boxed()
    }

    fn write(
        &self,
        name: String,
        revision: u64,
        first: FirstUse,
    ) -> BoxFuture<'static, Result<Option<u64>, FirstUseFailure>> {
        self.asked.fetch_add(1, SeqCst);
        let (kept, away) = (Arc::clone(&self.kept), self.away.load(SeqCst));
        let written = Arc::clone(&self.written);
        async move {
            unless_away(away)?;
            let mut kept = kept.lock().unwrap();
            let now = kept.get(&name).map_or(0, |(_, revision)| *revision);
            if now != revision {
                return Ok(None);
            }
            let next = written.fetch_add(1, SeqCst) + 1;
            kept.insert(name, (first, next));
            Ok(Some(next))
        }
        .boxed()
    }

    fn take_back(&self, revision: u64) -> BoxFuture<'static, Result<(), FirstUseFailure>> {
        let (kept, away) = (Arc::clone(&self.kept), self.away.load(SeqCst));
        async move {
            unless_away(away)?;
            kept.lock()
                .unwrap()
                .retain(|_, (_, kept)| *kept != revision);
            Ok(())
        }
        .boxed()
    }
}

/// Snapshots taken from the ledger; frozen ones show what was last seen.
pub(crate) struct TestSnapshots {
    host: Arc<LedgerHost>,
    pub(crate) frozen: AtomicBool,
    /// As of an account whose snapshot would be too large.
    pub(crate) unreadable: AtomicBool,
    last: Mutex<Option<Standing>>,
    pub(crate) looked: Notify,
}

impl Snapshots for TestSnapshots {
    fn standing(
        &self,
        account: AccountId,
        key: Option<KeyId>,
        _at_ms: u64,
    ) -> BoxFuture<'_, Result<Option<SnapshotStanding>, SnapshotError>> {
        async move {
            if self.unreadable.load(SeqCst) {
                let source = "made so by the test".into();
                return Err(SnapshotError { account, source });
            }
            if !self.frozen.load(SeqCst) {
                let standing = self
                    .host
                    .read(Read {
                        account,
                        key,
                        run: None,
                        reservation: None,
                    })
                    .await
                    .unwrap();
                *self.last.lock().unwrap() = Some(standing);
            }
            self.looked.notify_one();
            let standing = self.last.lock().unwrap().clone();
            Ok(standing.map(|standing| SnapshotStanding {
                standing,
                age_ms: 3,
            }))
        }
        .boxed()
    }
}

/// Usage events that the test publishes.
#[derive(Default)]
pub(crate) struct TestUsage {
    waiting: Arc<Mutex<HashMap<ReservationId, mpsc::Sender<UsageEvent>>>>,
}

impl TestUsage {
    pub(crate) fn publish(&self, event: UsageEvent) {
        let id = event.reservation.parse().unwrap();
        if let Some(waiting) = self.waiting.lock().unwrap().get(&id) {
            let _ = waiting.try_send(event);
        }
    }
}

impl UsageEvents for TestUsage {
    fn usage(
        &self,
        reservation: ReservationId,
        patience: Duration,
    ) -> BoxFuture<'static, Option<UsageEvent>> {
        let (sender, mut events) = mpsc::channel(1);
        self.waiting.lock().unwrap().insert(reservation, sender);
        async move { timeout(patience, events.recv()).await.ok().flatten() }.boxed()
    }
}

/// A gateway and all around it.
pub(crate) struct Stack {
    pub(crate) base: String,
    pub(crate) metrics: String,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) ledger: Arc<Switched>,
    pub(crate) snapshots: Arc<TestSnapshots>,
    pub(crate) usage: Arc<TestUsage>,
    pub(crate) threads: Arc<TestThreads>,
    pub(crate) first_uses: Arc<TestFirstUses>,
    pub(crate) neurons: watch::Sender<Vec<NeuronRecord>>,
    pub(crate) keys: watch::Sender<KeyTable>,
    pub(crate) prices: watch::Sender<Prices>,
    pub(crate) ready: watch::Sender<Readiness>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<Result<(), GatewayError>>,
    pub(crate) client: reqwest::Client,
}

pub(crate) fn account() -> AccountId {
    AccountId::new("acct").unwrap()
}

pub(crate) fn key() -> KeyId {
    KeyId::new("key").unwrap()
}

pub(crate) fn tokens(limit: u64, window: Window) -> CapSpec {
    CapSpec {
        cap: CapId::new("tokens").unwrap(),
        scope: Scope::Key(key()),
        meter: Meter::Tokens,
        window,
        limit,
        hard: true,
        thresholds: vec![100],
    }
}

pub(crate) fn neuron_secret() -> NeuronSecret {
    NeuronSecret::new([7; 32])
}

impl Stack {
    /// A gateway over an upstream with one model, and a key with one cap.
    pub(crate) async fn start(cap: CapSpec) -> Self {
        Self::start_with(cap, |_| ()).await
    }

    pub(crate) async fn balance(limit: u64) -> Self {
        Self::start(tokens(limit, Window::Balance)).await
    }

    pub(crate) async fn start_with(cap: CapSpec, change: impl FnOnce(&mut Told)) -> Self {
        let upstream = Upstream::start().await;
        let host = ledger(cap).await;
        let ledger = Arc::new(Switched {
            host: Arc::clone(&host),
            away: AtomicBool::new(false),
            settles_away: AtomicBool::new(false),
            reports_invalid: AtomicBool::new(false),
            answers_lost: AtomicBool::new(false),
            seconds_lost: AtomicBool::new(false),
            only_taken: AtomicBool::new(false),
            settles: AtomicUsize::new(0),
            releases: AtomicUsize::new(0),
        });
        let snapshots = Arc::new(TestSnapshots {
            host,
            frozen: AtomicBool::new(false),
            unreadable: AtomicBool::new(false),
            last: Mutex::default(),
            looked: Notify::new(),
        });
        let usage = Arc::new(TestUsage::default());
        let threads = Arc::new(TestThreads::default());
        let first_uses = Arc::new(TestFirstUses::default());
        let (neurons, alive) = watch::channel(Vec::new());
        let (ready, is_ready) = watch::channel(Readiness::default());
        let mut told = told(&upstream);
        change(&mut told);
        let (keys, known) = watch::channel(KeyTable::new(told.keys).unwrap());
        let (prices, shown) = watch::channel(Prices::new());
        let parts = Parts {
            keys: known,
            prices: shown,
            ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
            snapshots: Arc::clone(&snapshots) as Arc<dyn Snapshots>,
            usage: Arc::clone(&usage) as Arc<dyn UsageEvents>,
            threads: Some(Arc::clone(&threads) as Arc<dyn ThreadStore>),
            first_uses: Some(Arc::clone(&first_uses) as Arc<dyn FirstUseStore>),
            neurons: alive,
            neuron_secret: neuron_secret(),
            clock: system_clock(),
            ready: is_ready,
        };
        let gateway = Gateway::new(told.config, parts).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        Self {
            base: format!("http://{}", listener.local_addr().unwrap()),
            metrics: format!("http://{}/metrics", metrics.local_addr().unwrap()),
            served: tokio::spawn(gateway.serve(listener, metrics, shutdown.clone())),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            upstream,
            ledger,
            snapshots,
            usage,
            threads,
            first_uses,
            neurons,
            keys,
            prices,
            ready,
            shutdown,
        }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client
            .post(format!("{}{path}", self.base))
            .bearer_auth(SECRET)
            .body(body.to_string())
    }

    pub(crate) fn chat(&self, body: &Value) -> reqwest::RequestBuilder {
        self.post("/v1/chat/completions", body)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let request = self
            .client
            .get(format!("{}{path}", self.base))
            .bearer_auth(SECRET);
        status_and_body(request).await
    }

    /// The only cap, in the writer's own state.
    pub(crate) async fn cap(&self) -> CapStanding {
        let read = Read {
            account: account(),
            key: Some(key()),
            run: None,
            reservation: None,
        };
        self.ledger.host.read(read).await.unwrap().caps.remove(0)
    }

    /// Waits until nothing is held any more; what is spent then.
    pub(crate) async fn spent_once_idle(&self) -> u64 {
        eventually(async || {
            let cap = self.cap().await;
            (cap.held == 0).then_some(cap.spent)
        })
        .await
    }
}

/// Waits for a condition, at most [`PATIENCE`].
pub(crate) async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, looking)
        .await
        .expect("the condition never came true")
}

pub(crate) async fn status_and_body(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}

/// The whole text of a stream.
pub(crate) async fn stream_text(request: reqwest::RequestBuilder) -> String {
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response.text().await.unwrap()
}

/// The whole text of a stream that breaks once its first piece has come.
pub(crate) async fn broken_text(stack: &Stack, request: reqwest::RequestBuilder) -> String {
    let mut response = request.send().await.unwrap();
    let first = read_until(&mut response, "\n\n").await;
    stack.upstream.go_on.notify_one();
    first + &response.text().await.unwrap()
}

/// Reads a stream until `text` has come.
pub(crate) async fn read_until(response: &mut reqwest::Response, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let chunk = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
        all.push_str(std::str::from_utf8(&chunk.expect("the stream ended early")).unwrap());
    }
    all
}

pub(crate) fn hi(max_tokens: u64) -> Value {
    json!({"model": "test-model", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]})
}

pub(crate) fn hi_stream(max_tokens: u64) -> Value {
    let mut body = hi(max_tokens);
    body["stream"] = json!(true);
    body
}

/// What a gateway under test is told.
pub(crate) struct Told {
    pub(crate) config: GatewayConfig,
    pub(crate) keys: Vec<KeyEntry>,
}

/// Most tests change the configuration alone.
impl Deref for Told {
    type Target = GatewayConfig;

    fn deref(&self) -> &GatewayConfig {
        &self.config
    }
}

impl DerefMut for Told {
    fn deref_mut(&mut self) -> &mut GatewayConfig {
        &mut self.config
    }
}

fn told(upstream: &Upstream) -> Told {
    Told {
        config: config(upstream),
        keys: vec![KeyEntry::new(KeySecret::hash(SECRET), account(), key())],
    }
}

fn config(upstream: &Upstream) -> GatewayConfig {
    GatewayConfig {
        upstreams: vec![UpstreamConfig {
            name: "mock".to_owned(),
            kind: Dialect::OpenAi,
            profile: None,
            base_url: format!("http://{}/v1", upstream.address),
            allow_fields: Vec::new(),
            errors_are_free: false,
            responses: false,
            threads: false,
            api_key: None,
            deployments: Vec::new(),
            weight: 1,
            priority: 0,
            attempts: None,
            retry_unknown: false,
            models: vec![UpstreamModel::new(
                ModelId::new("test-model").unwrap(),
                8192,
                4096,
            )],
        }],
        ..GatewayConfig::default()
    }
}

async fn ledger(cap: CapSpec) -> Arc<LedgerHost> {
    let config = HostConfig {
        partitions: Partitions::try_from(1).unwrap(),
        ledger: LedgerId::new("test").unwrap(),
        writer: "test".to_owned(),
        expiry_grace_ms: 1000,
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
        clock: seatbelt_ledger::host::clock::HostClock::machine(),
    };
    let host = LedgerHost::start(&config, vec![MemoryJournal::new()]);
    host.ready().await.unwrap();
    let key = KeyIssued {
        key: key(),
        team: None,
        secret_sha256: None,
    };
    let changes = [
        Change::OpenAccount,
        Change::IssueKey(key),
        Change::SetCap(cap),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let admin = Admin {
            id: CommandId::from_parts(system_clock()(), n as u128),
            account: account(),
            actor: Actor::system("test"),
            change,
        };
        host.admin(admin).await.unwrap();
    }
    host
}
