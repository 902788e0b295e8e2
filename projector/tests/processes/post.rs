//! Requests and replies between processes, on a post that loses, delays, doubles and so reorders them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use seatbelt_ledger::{
    remote::post::{Correspondence, Heard, IncomingRequest, Listens, Post, Requests, SendError},
    store::StoreError,
};
use seatbelt_schemas::ids::CommandId;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};

use crate::medium::{Life, Medium, Wire};

/// Longest that a message is on its way while all goes well otherwise, and while nothing is certain.
const STRAINED_MS_MAX: u64 = 900;
const LATE_MS_MAX: u64 = 2_500;

/// What lies between processes that send each other requests.
#[derive(Default)]
pub(crate) struct Office {
    receivers: Mutex<Vec<Receiver>>,
    inboxes: Mutex<BTreeMap<String, UnboundedSender<Heard>>>,
    /// Who has inboxes: their owner goes on listening for as long as it lives, to whatever comes.
    owners: Mutex<BTreeMap<String, Arc<Life>>>,
    number: AtomicU64,
    /// Nothing is lost, and much comes late or twice.
    strained: AtomicBool,
    /// Nothing arrives.
    down: AtomicBool,
    /// Settles that were sent.
    settles: AtomicU64,
}

struct Receiver {
    number: u64,
    /// What its subjects begin with.
    subjects: String,
    life: Arc<Life>,
    to: UnboundedSender<IncomingRequest>,
}

impl Office {
    pub(crate) fn strain(&self, strained: bool) {
        self.strained.store(strained, Ordering::Relaxed);
    }

    pub(crate) fn break_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    pub(crate) fn settles(&self) -> u64 {
        self.settles.load(Ordering::Relaxed)
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    fn open_inbox(&self, wire: &Wire) -> (String, UnboundedReceiver<Heard>) {
        let mut owners = self.owners.lock().unwrap();
        owners.insert(wire.name.clone(), Arc::clone(&wire.life));
        let name = format!("{}.{}", wire.name, self.next());
        let (to, letters) = unbounded_channel();
        self.inboxes.lock().unwrap().insert(name.clone(), to);
        (name, letters)
    }

    /// Whether the owner of an inbox is known to be dead.
    fn listens(&self, inbox: &str) -> Listens {
        let owner = inbox.split('.').next().unwrap_or_default();
        match self.owners.lock().unwrap().get(owner) {
            Some(life) if life.is_over() => Listens::Nobody,
            Some(_) | None => Listens::Perhaps,
        }
    }

    fn put_into_inbox(&self, name: &str, heard: Heard) {
        if let Some(inbox) = self.inboxes.lock().unwrap().get(name) {
            let _ = inbox.send(heard);
        }
    }

    /// Hands a request to everybody who receives there; who sent it hears if nobody does.
    fn deliver(&self, subject: &str, reply_to: &str, payload: &Bytes) {
        let mut taken = false;
        for receiver in self.receivers.lock().unwrap().iter() {
            if subject.starts_with(&receiver.subjects) && !receiver.life.is_over() {
                let asked = IncomingRequest {
                    subject: subject.to_owned(),
                    reply_to: Some(reply_to.to_owned()),
                    payload: payload.clone(),
                };
                taken |= receiver.to.send(asked).is_ok();
            }
        }
        if !taken {
            self.put_into_inbox(reply_to, Heard::Nobody);
        }
    }
}

/// When a message arrives, how often: not at all, once, or twice.
fn arrivals(medium: &Medium) -> Vec<Duration> {
    let (chance, office) = (&medium.chance, &medium.office);
    if office.down.load(Ordering::Relaxed) || medium.strikes(25) {
        return Vec::new();
    }
    let strained = office.strained.load(Ordering::Relaxed);
    let travels = || match () {
        () if medium.strikes(12) => chance.ms(LATE_MS_MAX),
        () if strained && chance.one_in(2) => chance.ms(STRAINED_MS_MAX),
        () => chance.ms(4),
    };
    let twice = medium.strikes(10) || strained && chance.one_in(3);
    (0..=u64::from(twice)).map(|_| travels()).collect()
}

impl Wire {
    fn send(&self, subject: &str, reply_to: &str, payload: &Bytes) {
        if self.life.is_over() {
            return;
        }
        let settles = u64::from(subject.ends_with(".settle"));
        self.medium
            .office
            .settles
            .fetch_add(settles, Ordering::Relaxed);
        for after in arrivals(&self.medium) {
            self.medium
                .note(|| format!("{} sends {subject}: {after:?}", self.name));
            let (medium, subject) = (Arc::clone(&self.medium), subject.to_owned());
            let (reply_to, payload) = (reply_to.to_owned(), payload.clone());
            tokio::spawn(async move {
                sleep(after).await;
                medium.office.deliver(&subject, &reply_to, &payload);
            });
        }
    }
}

impl Post for Wire {
    fn request<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'a, Heard> {
        async move {
            let mut letters = Letters::new(self, subject.to_owned());
            if let Err(SendError::TooLarge(detail)) = letters.send(payload).await {
                return Heard::TooLarge(detail);
            }
            let heard = timeout(within, letters.hear()).await;
            heard.unwrap_or(Heard::Silence)
        }
        .boxed()
    }

    fn correspond(
        &self,
        subject: String,
    ) -> BoxFuture<'_, Result<Box<dyn Correspondence>, StoreError>> {
        let letters: Box<dyn Correspondence> = Box::new(Letters::new(self, subject));
        async move { Ok(letters) }.boxed()
    }

    fn receive(&self, subject: String) -> BoxFuture<'_, Result<Box<dyn Requests>, StoreError>> {
        async move {
            sleep(self.medium.chance.ms(5)).await;
            if self.life.is_over() || self.medium.strikes(30) {
                return Err(self.store_error(&format!("subscribe to {subject}")));
            }
            let (to, asked) = unbounded_channel();
            let number = self.medium.office.next();
            let subjects = subject.trim_end_matches('*').to_owned();
            let life = Arc::clone(&self.life);
            self.medium.office.receivers.lock().unwrap().push(Receiver {
                number,
                subjects,
                life,
                to,
            });
            let received: Box<dyn Requests> = Box::new(Received {
                wire: self.clone(),
                number,
                asked,
            });
            Ok(received)
        }
        .boxed()
    }

    fn reply<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SendError>> {
        if !self.life.is_over() {
            for after in arrivals(&self.medium) {
                let (medium, to) = (Arc::clone(&self.medium), to.to_owned());
                let payload = payload.clone();
                tokio::spawn(async move {
                    sleep(after).await;
                    medium.office.put_into_inbox(&to, Heard::Reply(payload));
                });
            }
        }
        std::future::ready(Ok(())).boxed()
    }

    fn reply_to_listener<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, Listens> {
        async move {
            let listens = self.medium.office.listens(to);
            if self.reply(to, payload).await.is_err() {
                return Listens::Perhaps;
            }
            sleep(self.medium.chance.ms(5)).await;
            match self.life.is_over() || self.medium.strikes(10) {
                // what the post says is lost too
                true => Listens::Perhaps,
                false => listens,
            }
        }
        .boxed()
    }

    fn command_id(&self) -> CommandId {
        let number = u128::from(self.medium.office.next());
        CommandId::from_parts(self.medium.now_ms(), 3 << 78 | number)
    }
}

/// An inbox, until dropped.
struct Letters {
    wire: Wire,
    subject: String,
    inbox: String,
    letters: UnboundedReceiver<Heard>,
}

impl Letters {
    fn new(wire: &Wire, subject: String) -> Self {
        let (inbox, letters) = wire.medium.office.open_inbox(wire);
        Self {
            wire: wire.clone(),
            subject,
            inbox,
            letters,
        }
    }
}

impl Correspondence for Letters {
    fn send(&mut self, payload: Bytes) -> BoxFuture<'_, Result<(), SendError>> {
        self.wire.send(&self.subject, &self.inbox, &payload);
        std::future::ready(Ok(())).boxed()
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        let heard = self.letters.recv();
        heard.map(|heard| heard.unwrap_or(Heard::Silence)).boxed()
    }
}

impl Drop for Letters {
    fn drop(&mut self) {
        let mut inboxes = self.wire.medium.office.inboxes.lock().unwrap();
        inboxes.remove(&self.inbox);
    }
}

/// What one process receives, until dropped.
struct Received {
    wire: Wire,
    number: u64,
    asked: UnboundedReceiver<IncomingRequest>,
}

impl Requests for Received {
    fn next(&mut self) -> BoxFuture<'_, Option<IncomingRequest>> {
        self.asked.recv().boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            let medium = Arc::clone(&self.wire.medium);
            drop(self);
            sleep(medium.chance.ms(5)).await;
        }
        .boxed()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let mut receivers = self.wire.medium.office.receivers.lock().unwrap();
        receivers.retain(|receiver| receiver.number != self.number);
    }
}
