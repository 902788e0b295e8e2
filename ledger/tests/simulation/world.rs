//! One simulated world: a model journal, writers that come and go, callers, and the faults.

use std::collections::BTreeMap;

use bytes::Bytes;
use seatbelt_ledger::{
    api::{
        Ack, Admin, CommandError, Exchange, Read, Release, Reserve, ReserveOutcome, Resize, Settle,
    },
    audit::Verifier,
    journal::{AppendError, Sequence, Stored},
    outcomes::HOT_MAX,
    partition::PartitionState,
    resume::{Resume, Resumed},
    writer::{
        Caller, Next, Reply, Request, Writer, WriterConfig,
        cold::{Fetch, Fetched},
    },
};
use seatbelt_schemas::{
    budget::Budget,
    cap::CapSpec,
    command::Change,
    event::{
        EventBody, KeyIssued, OnShort, OnUnknown, Overrun, Report, Settled, Timings, UsageSource,
    },
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ModelId, ReservationId, RunId},
    meter::{Amounts, Meter},
    position::{Partition, Partitions},
    price::{Price, Rates},
    scope::Scope,
    usage::Usage,
    window::Window,
};

use super::{
    archive::{self, Archive},
    oracle::{Books, makes_room},
};

/// A fault planted in the writer, to test the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Appends without the condition on the journal's end.
    SkipsFence,
    /// Takes over without some of the settles that the journal has, and so settles again.
    SettlesTwice,
    /// Takes an append of unknown outcome for lost and goes on from the state without it.
    ForgetsUnknown,
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

struct Token {
    call: usize,
    gone: bool,
}

impl Caller for Token {
    fn is_gone(&self) -> bool {
        self.gone
    }
}

/// A command that was sent, and every answer that came back.
struct Call {
    request: Request,
    answers: Vec<Result<Reply, CommandError>>,
}

struct Host {
    writer: Writer<Token>,
    /// It has seen that another writer has taken over.
    is_over: bool,
}

pub(crate) struct World {
    seed: u64,
    random: Random,
    mutant: Option<Mutant>,
    now_ms: u64,
    journal: Vec<Bytes>,
    archive: Archive,
    frozen: bool,
    /// Appends that their sender gave up on and that may still arrive.
    network: Vec<(Sequence, Bytes)>,
    hosts: Vec<Host>,
    calls: Vec<Call>,
    granted: Vec<(AccountId, ReservationId)>,
    ids: u64,
    /// What was acknowledged: command id and the kinds its events must have on the journal.
    acknowledged: BTreeMap<CommandId, u64>,
}

const ACCOUNTS: [&str; 3] = ["a", "b", "c"];
const RUNS: [&str; 2] = ["r1", "r2"];

impl World {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut world = Self {
            seed,
            random: Random(seed),
            mutant,
            now_ms: 1_700_000_000_000,
            journal: Vec::new(),
            archive: Archive::new(),
            frozen: false,
            network: Vec::new(),
            hosts: Vec::new(),
            calls: Vec::new(),
            granted: Vec::new(),
            ids: 0,
            acknowledged: BTreeMap::new(),
        };
        world.start_writer().expect("an empty journal chains");
        world.set_up();
        world
    }

    fn id(&mut self) -> CommandId {
        self.ids += 1;
        // in every third world one caller in five has a clock that is almost a minute ahead
        let is_ahead = self.seed.is_multiple_of(3) && self.ids.is_multiple_of(5);
        CommandId::from_parts(
            self.now_ms + if is_ahead { 55_000 } else { 0 },
            ((1 << 47) | u128::from(self.seed)) << 32 | u128::from(self.ids),
        )
    }

    /// In every second world refusals are counted from the second one of a second on.
    fn single_refusals(&self) -> u32 {
        if self.seed.is_multiple_of(2) {
            1
        } else {
            WriterConfig::SINGLE_REFUSALS_DEFAULT
        }
    }

    fn set_up(&mut self) {
        let rates = Rates::flat(1_000_000, 3_000_000);
        let price = Price::of(ModelId::new("priced").unwrap(), rates);
        self.admin(&AccountId::system(), Change::SetPrice(price));
        for name in ACCOUNTS {
            let account = AccountId::new(name).unwrap();
            self.admin(&account, Change::OpenAccount);
            for key in ["k1", "k2"] {
                let key = KeyIssued {
                    key: KeyId::new(key).unwrap(),
                    team: None,
                    secret_sha256: None,
                };
                self.admin(&account, Change::IssueKey(key));
            }
            for spec in self.specs() {
                self.admin(&account, Change::SetCap(spec));
            }
        }
        self.settle_down();
        if self.runs_much() {
            let account = self.account();
            let request = self.open_run(account);
            self.send(0, request);
            self.settle_down();
        }
    }

    fn specs(&mut self) -> Vec<CapSpec> {
        let cap = |cap: &str, scope, meter, window, limit, hard| CapSpec {
            cap: CapId::new(cap).unwrap(),
            scope,
            meter,
            window,
            limit,
            hard,
            thresholds: vec![50, 100],
        };
        let key = |key: &str| Scope::Key(KeyId::new(key).unwrap());
        let minute = Window::Rolling { seconds: 60 };
        vec![
            cap(
                "total",
                Scope::Account,
                Meter::Tokens,
                Window::Balance,
                200 + self.random.below(400),
                true,
            ),
            cap(
                "minute",
                key("k1"),
                Meter::Tokens,
                minute,
                40 + self.random.below(60),
                true,
            ),
            cap(
                "two",
                key("k2"),
                Meter::Concurrency,
                Window::Balance,
                2,
                true,
            ),
            cap(
                "count",
                key("k2"),
                Meter::Requests,
                minute,
                3 + self.random.below(5),
                true,
            ),
            cap(
                "money",
                Scope::Account,
                Meter::Cost,
                Window::Balance,
                300_000 + self.random.below(900_000),
                true,
            ),
            cap(
                "watch",
                Scope::Account,
                Meter::OutputTokens,
                Window::Balance,
                100,
                false,
            ),
        ]
    }

    fn admin(&mut self, account: &AccountId, change: Change) {
        let command = Admin {
            id: self.id(),
            account: account.clone(),
            actor: Actor::operator("sim"),
            change,
        };
        self.send(0, Request::Admin(command));
    }

    /// In every fourth world only a handful of commands stay hot.
    fn hot_max(&self) -> usize {
        if self.seed.is_multiple_of(4) {
            4
        } else {
            HOT_MAX
        }
    }

    /// The partition as a writer takes it over: from its snapshots, or from the journal alone.
    fn resumed(&mut self) -> Result<Resumed, String> {
        if self.mutant.is_none() && self.random.one_in(2) {
            let resumed = self.archive.resume(&self.journal, self.hot_max());
            if let Some(resumed) = resumed {
                return resumed;
            }
        }
        let mut resume = Resume::from_start(Partition(0), self.hot_max());
        for (payload, number) in self.journal.clone().into_iter().zip(1..) {
            let sequence = Sequence(number);
            let stored = Stored { sequence, payload };
            let mut commit = resume.check(&stored).map_err(|error| describe(&error))?;
            if self.mutant == Some(Mutant::SettlesTwice) {
                for stored in &mut commit.events {
                    if let EventBody::Settled(data) = &stored.event.body
                        && self.random.one_in(2)
                    {
                        stored.event.body = nothing(data);
                    }
                }
            }
            resume
                .take(&stored, &commit)
                .map_err(|error| error.to_string())?;
        }
        Ok(resume.finish())
    }

    fn start_writer(&mut self) -> Result<(), String> {
        let config = WriterConfig {
            partition: Partition(0),
            partitions: Partitions::try_from(1).unwrap(),
            ledger: LedgerId::new("sim").unwrap(),
            writer: "sim".to_owned(),
            expiry_grace_ms: 1_000,
            single_refusals_per_second: self.single_refusals(),
            accounts_max: 1,
            settle_linger_ms: self.seed % 3 * 1_000,
            // tiny in most runs, so that commits fill
            commit_events_max: [1, 2, 3, 5, 256][(self.seed % 5) as usize],
        };
        let writer = Writer::start(config, self.resumed()?, self.now_ms);
        self.hosts.push(Host {
            writer,
            is_over: false,
        });
        Ok(())
    }

    /// One random thing happens.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..=34 => self.command(),
            35..=39 => self.repeat(),
            40..=74 => self.append()?,
            75..=79 => self.advance(),
            80..=83 => self.jump(),
            84..=88 => self.deliver_late(),
            89..=91 => self.crash()?,
            92..=94 => self.take_over()?,
            95 => self.frozen = !self.frozen,
            96 => self.project(),
            97 => self.let_go(),
            _ => self.leave(),
        }
        for host in 0..self.hosts.len() {
            if !self.random.one_in(3) {
                self.fetch(host, true);
            }
        }
        self.end_those_that_were_overtaken()?;
        self.collect()
    }

    fn project(&mut self) {
        let (dies, recent) = (self.random.one_in(3), self.random.below(20) as usize);
        self.archive.project(&self.journal, dies, recent);
    }

    /// Accounts leave a writer's memory, if what the snapshots have of them is what it has.
    fn let_go(&mut self) {
        let host = self.host();
        let mut crowd = self.hosts[host].writer.crowd();
        crowd.retain(|(account, version)| {
            let kept = self.archive.account(account);
            kept.is_some_and(|kept| kept.state.version() == *version)
        });
        self.hosts[host].writer.let_go(&crowd);
    }

    /// One thing that a writer wants is fetched, or cannot be.
    fn fetch(&mut self, host: usize, faults: bool) -> bool {
        let fails = faults && self.random.one_in(8);
        let hot_max = self.hot_max();
        let writer = &mut self.hosts[host].writer;
        let Some(fetch) = writer.take_fetch() else {
            return false;
        };
        let detail = "cut off".to_owned();
        let fetched = match fetch {
            fetch if fails => Fetched::Failed { fetch, detail },
            Fetch::Account(account) => {
                let state = self.archive.account(&account);
                Fetched::Account(account, state)
            }
            Fetch::Command(id) => {
                Fetched::Command(archive::trace(&self.journal, writer.tail(), id))
            }
            Fetch::End => Fetched::End(Sequence(self.journal.len() as u64)),
            Fetch::Above(unread) => {
                let read = archive::above(&self.journal, unread, hot_max);
                Fetched::Above(unread, Box::new(read))
            }
        };
        let next = writer.fetched(self.now_ms, fetched);
        self.hosts[host].is_over = matches!(next, Next::StepDown(_));
        true
    }

    fn end_those_that_were_overtaken(&mut self) -> Result<(), String> {
        self.collect()?;
        self.hosts.retain(|host| !host.is_over);
        match self.hosts.is_empty() {
            true => self.start_writer(),
            false => Ok(()),
        }
    }

    fn host(&mut self) -> usize {
        self.random.below(self.hosts.len() as u64) as usize
    }

    /// In every third world one account does everything, mostly in one run.
    fn runs_much(&self) -> bool {
        self.seed % 3 == 1
    }

    fn account(&mut self) -> AccountId {
        let among = if self.runs_much() { 1 } else { ACCOUNTS.len() };
        AccountId::new(self.random.pick(&ACCOUNTS[..among])).unwrap()
    }

    fn command(&mut self) {
        let account = self.account();
        let host = self.host();
        let request = match self.random.below(10) {
            0..=4 if self.random.one_in(4) => self.open_run(account),
            0..=4 if self.random.one_in(6) => self.exchange(),
            0..=4 => self.reserve(account),
            5..=6 => self.settle(),
            7 => self.release(),
            8 => self.resize(),
            _ if self.runs_much() || self.random.one_in(3) => self.change(account),
            _ => Request::Read(Read {
                account,
                key: None,
                run: None,
                reservation: None,
            }),
        };
        self.send(host, request);
    }

    fn reserve(&mut self, account: AccountId) -> Request {
        let model = if self.random.one_in(4) {
            "free"
        } else {
            "priced"
        };
        Request::Reserve(Reserve {
            team: None,
            id: self.id(),
            account,
            key: KeyId::new(if self.random.one_in(2) { "k1" } else { "k2" }).unwrap(),
            model: Some(ModelId::new(model).unwrap()),
            run: if self.random.one_in(4) {
                None
            } else {
                Some(self.run())
            },
            end_user: None,
            input_tokens: 1 + self.random.below(20),
            output_tokens: 1 + self.random.below(40),
            tool_calls: 0,
            deadline_ms: self.now_ms + 1 + self.random.below(120_000),
            wait_ms: self.random.below(5_000),
            on_short: if self.random.one_in(4) {
                OnShort::Clamp
            } else {
                OnShort::Refuse
            },
            on_unknown: if self.random.one_in(4) {
                OnUnknown::Release
            } else {
                OnUnknown::ChargeHold
            },
            budget: None,
            within: None,
        })
    }

    /// Another attempt in the place of some hold, mostly of its own key.
    fn exchange(&mut self) -> Request {
        let (account, release) = self.some_reservation();
        let Request::Reserve(reserve) = self.reserve(account) else {
            unreachable!("a reserve");
        };
        Request::Exchange(Exchange { release, reserve })
    }

    /// Sets a budget aside for a run; mostly one that fits.
    fn open_run(&mut self, account: AccountId) -> Request {
        let mut amounts = vec![(Meter::Tokens, 20 + self.random.below(100))];
        if self.random.one_in(3) {
            amounts.push((Meter::Cost, 20_000 + self.random.below(200_000)));
        }
        if self.random.one_in(3) {
            amounts.push((Meter::Requests, 1 + self.random.below(4)));
        }
        if self.random.one_in(4) {
            amounts.push((Meter::OutputTokens, 10 + self.random.below(60)));
        }
        if self.random.one_in(4) {
            amounts.remove(0);
        }
        let Request::Reserve(request) = self.reserve(account) else {
            unreachable!("a reserve");
        };
        let run = Some(self.run());
        let Ok(budget) = Budget::new(amounts) else {
            return Request::Reserve(Reserve { run, ..request });
        };
        Request::Reserve(Reserve {
            model: None,
            run,
            input_tokens: 0,
            output_tokens: 0,
            deadline_ms: request.deadline_ms + self.random.below(600_000),
            on_short: OnShort::Refuse,
            budget: Some(budget),
            ..request
        })
    }

    fn run(&mut self) -> RunId {
        let among = if self.runs_much() { 1 } else { RUNS.len() };
        RunId::new(self.random.pick(&RUNS[..among])).unwrap()
    }

    fn some_reservation(&mut self) -> (AccountId, ReservationId) {
        if self.granted.is_empty() {
            return (AccountId::new("a").unwrap(), self.id().into());
        }
        let index = self.random.below(self.granted.len() as u64) as usize;
        self.granted[index].clone()
    }

    fn settle(&mut self) -> Request {
        let (account, reservation) = self.some_reservation();
        let usage = Usage {
            input_tokens: self.random.below(25),
            output_tokens: self.random.below(45),
            ..Usage::default()
        };
        let (upstream, timings) = ("sim".to_owned(), Timings::default());
        let report = Report {
            usage,
            upstream,
            source: UsageSource::Upstream,
            finish: None,
            timings,
        };
        let command = Settle {
            id: self.id(),
            account,
            reservation,
            report,
            actor: Actor::operator("sim"),
        };
        Request::Settle(
            command,
            if self.random.one_in(2) {
                Ack::Taken
            } else {
                Ack::Durable
            },
        )
    }

    fn release(&mut self) -> Request {
        let (account, reservation) = self.some_reservation();
        let (reason, actor) = ("sim".to_owned(), Actor::operator("sim"));
        Request::Release(Release {
            id: self.id(),
            account,
            reservation,
            reason,
            actor,
        })
    }

    fn resize(&mut self) -> Request {
        let (account, reservation) = self.some_reservation();
        Request::Resize(Resize {
            id: self.id(),
            account,
            reservation,
            input_tokens: 1 + self.random.below(20),
            output_tokens: 1 + self.random.below(50),
            actor: Actor::operator("sim"),
        })
    }

    fn change(&mut self, account: AccountId) -> Request {
        let cap = CapId::new("total").unwrap();
        let key = KeyId::new("k2").unwrap();
        let which = self.random.below(6) as usize;
        let spec = self.specs().swap_remove(which);
        let change = match self.random.below(8) {
            0 => Change::Credit {
                cap,
                amount: self.random.below(200),
                reason: None,
            },
            1 => Change::Adjust {
                cap,
                delta: self.random.below(20) as i64,
                reason: "sim".to_owned(),
            },
            2 => Change::RemoveCap { cap: spec.cap },
            3 if self.random.one_in(2) => Change::RevokeKey { key, reason: None },
            3 | 4 => Change::IssueKey(KeyIssued {
                key,
                team: None,
                secret_sha256: None,
            }),
            _ => Change::SetCap(spec),
        };
        Request::Admin(Admin {
            id: self.id(),
            account,
            actor: Actor::operator("sim"),
            change,
        })
    }

    /// The same command again, to any writer.
    fn repeat(&mut self) {
        let call = self.random.below(self.calls.len() as u64) as usize;
        let host = self.host();
        let request = self.calls[call].request.clone();
        self.submit(host, request, call);
    }

    fn send(&mut self, host: usize, request: Request) {
        self.calls.push(Call {
            request: request.clone(),
            answers: Vec::new(),
        });
        self.submit(host, request, self.calls.len() - 1);
    }

    fn submit(&mut self, host: usize, request: Request, call: usize) {
        let gone = self.random.one_in(20);
        self.hosts[host]
            .writer
            .submit(self.now_ms, request, Token { call, gone });
    }

    fn try_append(&mut self, expected: Sequence, payload: &Bytes) -> Result<Sequence, AppendError> {
        if self.frozen {
            return Err(AppendError::Refused {
                detail: "frozen".to_owned(),
            });
        }
        let skips = self.mutant == Some(Mutant::SkipsFence);
        if !skips && expected != Sequence(self.journal.len() as u64) {
            return Err(AppendError::WrongSequence { expected });
        }
        self.journal.push(payload.clone());
        Ok(if skips {
            expected.next()
        } else {
            Sequence(self.journal.len() as u64)
        })
    }

    /// One writer's append meets its fate.
    fn append(&mut self) -> Result<(), String> {
        let host = self.host();
        let writer = &mut self.hosts[host].writer;
        let Some((expected, payload)) = writer.in_flight().or_else(|| writer.take_append()) else {
            return Ok(());
        };
        let unknown = || AppendError::Unknown {
            expected,
            source: "lost".into(),
        };
        let outcome = match self.random.below(10) {
            0 => {
                self.network.push((expected, payload));
                Err(unknown())
            }
            1 => Err(unknown()),
            2 => match self.try_append(expected, &payload) {
                Ok(_) | Err(AppendError::Unknown { .. }) => Err(unknown()),
                Err(error) => Err(error),
            },
            _ => self.try_append(expected, &payload),
        };
        if self.mutant == Some(Mutant::ForgetsUnknown)
            && matches!(outcome, Err(AppendError::Unknown { .. }))
        {
            // the planted fault: as if it had landed
            let _ = self.hosts[host].writer.appended(Ok(expected.next()));
            return Ok(());
        }
        self.conclude(host, outcome)
    }

    fn conclude(
        &mut self,
        host: usize,
        outcome: Result<Sequence, AppendError>,
    ) -> Result<(), String> {
        let mut next = self.hosts[host].writer.appended(outcome);
        if let Next::ReadBack(at) = next {
            let found = self.journal.get(at.0 as usize - 1).cloned();
            next = self.hosts[host].writer.read_back(found.as_ref());
        }
        if let Next::StepDown(_) = next {
            self.collect()?;
            self.hosts.remove(host);
            if self.hosts.is_empty() {
                self.start_writer()?;
            }
        }
        Ok(())
    }

    fn deliver_late(&mut self) {
        if !self.network.is_empty() {
            let index = self.random.below(self.network.len() as u64) as usize;
            let (expected, payload) = self.network.swap_remove(index);
            let _ = self.try_append(expected, &payload);
        }
    }

    fn advance(&mut self) {
        self.now_ms += self.random.below(20_000);
        self.tick();
    }

    fn jump(&mut self) {
        let by = self.random.below(90_000);
        self.now_ms = if self.random.one_in(2) {
            self.now_ms + by
        } else {
            self.now_ms - by
        };
        self.tick();
    }

    fn tick(&mut self) {
        for host in &mut self.hosts {
            host.writer.tick(self.now_ms);
        }
    }

    fn crash(&mut self) -> Result<(), String> {
        let host = self.host();
        self.hosts.remove(host);
        self.start_writer()
    }

    /// A new writer starts while the old ones still believe in themselves.
    fn take_over(&mut self) -> Result<(), String> {
        if self.hosts.len() < 3 {
            self.start_writer()
        } else {
            Ok(())
        }
    }

    fn leave(&mut self) {
        let account = AccountId::new(self.random.pick(&ACCOUNTS)).unwrap();
        let host = self.host();
        self.hosts[host].writer.caller_left(self.now_ms, &account);
    }

    /// Takes the answers in and checks what they promise.
    fn collect(&mut self) -> Result<(), String> {
        for host in 0..self.hosts.len() {
            let answers: Vec<_> = self.hosts[host].writer.answers().collect();
            for (token, answer) in answers {
                self.answered(&token, answer)?;
            }
        }
        Ok(())
    }

    fn answered(
        &mut self,
        token: &Token,
        answer: Result<Reply, CommandError>,
    ) -> Result<(), String> {
        let counts = self.single_refusals() == 1;
        let call = &mut self.calls[token.call];
        let (id, taken) = match &call.request {
            Request::Reserve(command) => (command.id, false),
            Request::Resize(command) => (command.id, false),
            Request::Settle(command, ack) => (command.id, *ack == Ack::Taken),
            Request::Release(command) => (command.id, false),
            Request::Exchange(command) => (command.reserve.id, false),
            Request::Admin(command) => (command.id, false),
            Request::Read(_) => return Ok(()),
        };
        let position = match &answer {
            Ok(Reply::Reserve(ReserveOutcome::Reserved(grant))) => {
                let command = match &call.request {
                    Request::Reserve(command) => command,
                    Request::Exchange(command) => &command.reserve,
                    _ => return Err("grant to no reserve".to_owned()),
                };
                self.granted
                    .push((command.account.clone(), grant.reservation));
                Some(grant.position)
            }
            // a counted refusal has no event of its own, and its answer is not durable
            Ok(Reply::Reserve(ReserveOutcome::Refused(_))) if counts => None,
            Ok(Reply::Reserve(ReserveOutcome::Refused(refusal))) => Some(refusal.position),
            Ok(Reply::Resolution(resolution)) => Some(resolution.position),
            Ok(Reply::Admin(outcome)) => outcome.position,
            Ok(Reply::Standing(_)) | Err(_) => None,
        };
        if let (Some(position), false) = (position, taken)
            && *self.acknowledged.entry(id).or_insert(position.0) != position.0
        {
            return Err(format!("command {id} has two outcomes"));
        }
        call.answers.push(answer);
        Ok(())
    }

    /// Makes everything that is decided durable, without faults.
    fn settle_down(&mut self) {
        self.frozen = false;
        while !self.hosts.is_empty() {
            let fetched = self.fetch(0, false);
            let Some((expected, payload)) = self.hosts[0]
                .writer
                .in_flight()
                .or_else(|| self.hosts[0].writer.take_append())
            else {
                if fetched {
                    continue;
                }
                break;
            };
            let outcome = self.try_append(expected, &payload);
            self.conclude(0, outcome)
                .expect("no fault is injected here");
        }
    }

    /// The end of a run: what was acknowledged is there, the books are right, nothing stays held.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        self.collect()?;
        self.hosts.clear();
        self.network.clear();
        self.frozen = false;
        self.start_writer()?;
        self.now_ms += 200_000_000;
        for _ in 0..4 {
            self.tick();
            self.settle_down();
        }
        self.read_all();
        self.collect()?;
        let books = Books::read(&self.journal)?;
        self.acknowledged_is_there(&books)?;
        self.live_is_replay(&books)?;
        if books.open() > 0 {
            return Err(format!("{} reservations never end", books.open()));
        }
        self.decides_again()
    }

    fn acknowledged_is_there(&self, books: &Books) -> Result<(), String> {
        for (id, position) in &self.acknowledged {
            let Some(event) = books.events.get(*position as usize - 1) else {
                return Err(format!(
                    "command {id} was acknowledged at {position}, which does not exist"
                ));
            };
            if event.cause != *id {
                return Err(format!(
                    "position {position} was acknowledged to {id} and belongs to {}",
                    event.cause
                ));
            }
        }
        for (id, events) in &books.causes {
            let decisive = |event: &&seatbelt_schemas::event::Event| {
                !matches!(
                    event.body,
                    EventBody::Overrun(_) | EventBody::ThresholdCrossed(_)
                ) && !makes_room(&event.body)
            };
            if events.iter().filter(decisive).count() > 1 {
                return Err(format!("command {id} was carried out twice"));
            }
        }
        Ok(())
    }

    /// Every account by name, so that none stays outside the writer's memory.
    fn read_all(&mut self) {
        for name in ACCOUNTS {
            let account = AccountId::new(name).unwrap();
            self.send(
                0,
                Request::Read(Read {
                    account,
                    key: None,
                    run: None,
                    reservation: None,
                }),
            );
        }
        self.settle_down();
    }

    fn live_is_replay(&self, books: &Books) -> Result<(), String> {
        let live = self.hosts[0].writer.state();
        let mut replay = PartitionState::new(Partition(0));
        for payload in &self.journal {
            replay.accept(payload).map_err(|error| error.to_string())?;
        }
        let same = |name: &str| {
            let account = AccountId::new(name).unwrap();
            replay.account(&account) == live.account(&account)
        };
        if replay.head() != live.head() || !ACCOUNTS.iter().all(|name| same(name)) {
            return Err("replay differs from the live state".to_owned());
        }
        let caps: usize = live
            .accounts()
            .map(|(_, account)| account.caps().len())
            .sum();
        if caps != books.caps().count() {
            return Err(format!("the ledger has {caps} caps and the books others"));
        }
        for (account, cap) in books.caps() {
            let known = live
                .account(account)
                .and_then(|account| account.cap(cap))
                .ok_or("a cap is lost")?;
            let (spent, held) = books.stands(account, cap, live.at_ms(), None);
            if (i128::from(known.spent(live.at_ms())), known.held) != (spent, held)
                || known.limit() != books.limit(account, cap)
            {
                return Err(format!(
                    "cap {cap} of {account}: the books say {spent} and {held}, the ledger {known:?}"
                ));
            }
        }
        Ok(())
    }

    fn decides_again(&self) -> Result<(), String> {
        let mut verifier = Verifier::new(Partition(0));
        for (index, payload) in self.journal.iter().enumerate() {
            verifier
                .accept(Sequence(index as u64 + 1), payload)
                .map_err(|error| describe(&error))?;
        }
        verifier
            .finish()
            .map(drop)
            .map_err(|error| describe(&error))
    }
}

/// An event that changes no balance, in the place of a settle.
fn nothing(settled: &Settled) -> EventBody {
    Overrun {
        reservation: settled.reservation,
        key: settled.scopes.key.clone(),
        above: Amounts::zero(),
    }
    .into()
}

fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
