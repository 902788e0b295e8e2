//! The clients: they ask without pause through whatever doors are open, and keep what they were told.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt as _;
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, sync::watch, task::JoinSet};

use super::{
    ask::{Ask, How, Leave},
    random::Random,
};
use crate::{until, wait::PATIENCE};

/// How long a client that was turned away waits before it asks again.
const TURNED_AWAY: Duration = Duration::from_millis(20);
/// How long a client waits for an answer: longer than a gateway may take for one.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

/// What a client knows of its request in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The whole answer came, with this usage.
    Acknowledged(u64),
    /// The gateway refused it for want of budget.
    Refused,
    /// Another answer came, by its status.
    Answered(u16),
    /// The connection broke: nobody knows.
    Broken,
    /// The client left.
    Left,
}

/// A request that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) ask: Ask,
    pub(super) fate: Fate,
    /// The reservation that the answer named, where one came so far.
    pub(super) reservation: Option<String>,
    /// When it was sent and when it came to its end, unix milliseconds by the clients' clock.
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
}

/// What kind of requests a row sends: makes one from its number.
pub(super) type Menu = fn(&mut Random, u64) -> Ask;

struct Shared {
    seed: u64,
    menu: Menu,
    secrets: Vec<String>,
    doors: watch::Sender<Vec<String>>,
    stop: AtomicBool,
    next: AtomicU64,
    sent: Mutex<Vec<Sent>>,
    acknowledged: watch::Sender<u64>,
    pause: Mutex<Pause>,
}

/// The longest time without an answer.
#[derive(Debug, Default)]
struct Pause {
    last: Option<Instant>,
    longest: Duration,
}

/// Running clients; gone when dropped.
pub(super) struct Crowd {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

/// Everything that the clients know.
pub(super) struct Told {
    pub(super) sent: Vec<Sent>,
    pub(super) pause: Duration,
}

impl Crowd {
    /// Starts so many clients, with no door open yet.
    pub(super) fn start(clients: u64, seed: u64, secrets: Vec<String>, menu: Menu) -> Self {
        let shared = Arc::new(Shared {
            seed,
            menu,
            secrets,
            doors: watch::Sender::default(),
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            sent: Mutex::default(),
            acknowledged: watch::Sender::default(),
            pause: Mutex::default(),
        });
        let clients = (0..clients).map(|place| client(Arc::clone(&shared), place));
        Self {
            clients: clients.collect(),
            shared,
        }
    }

    /// From here on the clients ask at these addresses.
    pub(super) fn doors(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| (*address).to_owned());
        self.shared.doors.send_replace(addresses.collect());
    }

    /// Waits until so many more requests were acknowledged.
    pub(super) async fn acknowledged(&self, more: u64) {
        let mut acknowledged = self.shared.acknowledged.subscribe();
        let enough = *acknowledged.borrow() + more;
        let reached = acknowledged.wait_for(|count| *count >= enough);
        let reached = tokio::time::timeout(PATIENCE * 2, reached).await;
        assert!(reached.is_ok(), "nothing is served: {}", self.newest());
    }

    /// What the newest requests came to, for a row that does not go on.
    fn newest(&self) -> String {
        let sent = self.shared.sent.lock().unwrap();
        let newest = sent.iter().rev().take(8);
        newest.map(|sent| format!("{:?} ", sent.fate)).collect()
    }

    /// Waits until so many more requests came to an end, whatever it was.
    pub(super) async fn asked(&self, more: u64) {
        let count = || self.shared.sent.lock().unwrap().len();
        let enough = count() + usize::try_from(more).unwrap();
        until("requests come to an end", || async {
            (count() >= enough).then_some(())
        })
        .await;
    }

    /// Waits until so many requests in a row came to nothing.
    pub(super) async fn turned_away(&self, in_a_row: usize) {
        until("nothing is served any more", || async {
            let sent = self.shared.sent.lock().unwrap();
            let newest = sent.iter().rev().take(in_a_row);
            let served = newest.filter(|sent| matches!(sent.fate, Fate::Acknowledged(_)));
            (sent.len() >= in_a_row && served.count() == 0).then_some(())
        })
        .await;
    }

    /// Lets every client end its request, and tells all.
    pub(super) async fn finish(mut self) -> Told {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        let sent = std::mem::take(&mut *self.shared.sent.lock().unwrap());
        let pause = self.shared.pause.lock().unwrap().longest;
        Told { sent, pause }
    }
}

async fn client(shared: Arc<Shared>, place: u64) {
    let http = crate::http_client();
    let mut random = Random::new(shared.seed, place + 1);
    let mut doors = shared.doors.subscribe();
    while !shared.stop.load(Ordering::SeqCst) {
        let open = doors.borrow_and_update().clone();
        if open.is_empty() {
            let _ = tokio::time::timeout(TURNED_AWAY, doors.changed()).await;
            continue;
        }
        let address = open[usize::try_from(random.below(open.len() as u64)).unwrap()].clone();
        let number = shared.next.fetch_add(1, Ordering::SeqCst);
        let ask = (shared.menu)(&mut random, number);
        let sent = one(&http, &address, &shared.secrets[ask.key], ask).await;
        let again = matches!(sent.fate, Fate::Broken | Fate::Answered(503));
        shared.keep(sent);
        if again {
            // a door that is shut, or one that opens: whichever is first
            let _ = tokio::time::timeout(TURNED_AWAY, doors.changed()).await;
        }
    }
}

impl Shared {
    fn keep(&self, sent: Sent) {
        let acknowledged = matches!(sent.fate, Fate::Acknowledged(_));
        self.sent.lock().unwrap().push(sent);
        if !acknowledged {
            return;
        }
        let now = Instant::now();
        let mut pause = self.pause.lock().unwrap();
        if let Some(last) = pause.last.replace(now) {
            pause.longest = pause.longest.max(now.saturating_duration_since(last));
        }
        drop(pause);
        self.acknowledged.send_modify(|count| *count += 1);
    }
}

/// Sends one request and sees it through.
async fn one(http: &reqwest::Client, address: &str, secret: &str, ask: Ask) -> Sent {
    let mut sent = Sent {
        ask,
        fate: Fate::Left,
        reservation: None,
        from_ms: now_ms(),
        to_ms: 0,
    };
    match ask.leave {
        Leave::MidBody => half_a_body(address, secret, &ask.body()).await,
        Leave::After(ms) => {
            let talk = talk(http, address, secret, &mut sent);
            let stayed = tokio::time::timeout(Duration::from_millis(ms), talk).await;
            if stayed.is_err() {
                sent.fate = Fate::Left;
            }
        }
        Leave::Never | Leave::MidAnswer => {
            let talk = talk(http, address, secret, &mut sent);
            let answered = tokio::time::timeout(ANSWER_WITHIN, talk).await;
            if answered.is_err() {
                sent.fate = Fate::Broken;
            }
        }
    }
    sent.to_ms = now_ms();
    sent
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

async fn talk(http: &reqwest::Client, address: &str, secret: &str, sent: &mut Sent) {
    sent.fate = Fate::Broken;
    let request = http
        .post(format!("{address}/v1/chat/completions"))
        .bearer_auth(secret)
        .header("content-type", "application/json")
        .body(sent.ask.body());
    let Ok(response) = request.send().await else {
        return;
    };
    let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    sent.reservation = header("x-seatbelt-reservation");
    // an upstream refuses in its own name
    let refused = header("x-seatbelt-refused-by").is_some_and(|by| by != "upstream");
    let status = response.status().as_u16();
    if sent.ask.leave == Leave::MidAnswer {
        let _ = response.bytes_stream().next().await;
        sent.fate = Fate::Left;
        return;
    }
    let Ok(text) = response.text().await else {
        return;
    };
    sent.fate = match status {
        200 if is_whole(&sent.ask, &text) => Fate::Acknowledged(sent.ask.tokens()),
        429 if refused => Fate::Refused,
        status => Fate::Answered(status),
    };
}

/// Whether an answer came to its end, with the usage that the provider was ordered to report.
fn is_whole(ask: &Ask, text: &str) -> bool {
    match ask.how {
        How::Stream => text.trim_end().ends_with("data: [DONE]"),
        _ => serde_json::from_str(text)
            .is_ok_and(|answer: Value| answer["usage"]["total_tokens"] == ask.tokens()),
    }
}

/// Sends a head and half of its body, and leaves.
async fn half_a_body(address: &str, secret: &str, body: &str) {
    let host = address.trim_start_matches("http://");
    let Ok(mut stream) = tokio::net::TcpStream::connect(host).await else {
        return;
    };
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {secret}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let half = &body[..body.len() / 2];
    // the other side may be gone already, which is as good
    let _ = stream.write_all((head + half).as_bytes()).await;
}
