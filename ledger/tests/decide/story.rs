//! Tells a story to a writer: one account `a` with keys `k` (team `t`) and `l`, a clock that moves when
//! told, a journal in memory whose appends land at once.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use seatbelt_ledger::{
    account::Account,
    api::{Ack, Admin, Answer, Exchange, Release, Reserve, Resize, Settle},
    audit::{PartitionSummary, Verifier},
    journal::{Sequence, Stored},
    outcomes::HOT_MAX,
    partition::PartitionState,
    resume::{Resume, Resumed},
    snapshot::agrees,
    writer::{
        Caller, Next, Reply, Request, StepDown, Writer, WriterConfig,
        cold::{Fetch, Fetched},
    },
};
use seatbelt_schemas::{
    budget::Budget,
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    command::{Change, CommandError, Grant, Refusal, ReserveOutcome},
    commit::{ChainHash, Commit},
    event::{
        Event, EventBody, KeyIssued, OnShort, OnUnknown, Report, StoredEvent, Timings, UsageSource,
    },
    ids::{
        AccountId, Actor, CapId, CommandId, EndUserId, KeyId, LedgerId, ModelId, ReservationId,
        RunId, TeamId,
    },
    meter::{Amounts, Meter},
    position::{Partition, Partitions},
    price::{Price, Rates},
    scope::Scope,
    usage::Usage,
    window::{Period, Window},
};

/// 2026-11-20T12:00:00Z, a Friday.
pub(crate) const START_MS: u64 = 1_795_176_000_000;
/// How long after its deadline a reservation is left alone.
pub(crate) const GRACE_MS: u64 = 1000;

/// A request by its numbers; the rest as callers mostly have it.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) key: &'static str,
    pub(crate) model: Option<&'static str>,
    pub(crate) run: Option<&'static str>,
    pub(crate) end_user: Option<&'static str>,
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) wait_ms: u64,
    pub(crate) life_ms: u64,
    pub(crate) on_short: OnShort,
    pub(crate) on_unknown: OnUnknown,
    pub(crate) budget: Option<Budget>,
    pub(crate) within: Option<&'static str>,
}

/// A request of key `k` that does not wait.
pub(crate) fn ask(input: u64, output: u64) -> Ask {
    Ask {
        key: "k",
        model: None,
        run: None,
        end_user: None,
        input,
        output,
        wait_ms: 0,
        life_ms: 600_000,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
        budget: None,
        within: None,
    }
}

/// Key `k` opens a run with a budget in words, such as `tokens 50` or `requests 3 tokens 50`.
pub(crate) fn opens(run: &'static str, budget: &str) -> Ask {
    let words: Vec<&str> = budget.split(' ').collect();
    let amounts = words.chunks(2).map(|pair| {
        let meter = serde_json::from_value(pair[0].into()).unwrap();
        (meter, pair[1].parse().unwrap())
    });
    Ask {
        run: Some(run),
        budget: Some(Budget::new(amounts).unwrap()),
        ..ask(0, 0)
    }
}

/// A request of key `k` in a run.
pub(crate) fn within(run: &'static str, input: u64, output: u64) -> Ask {
    Ask {
        run: Some(run),
        ..ask(input, output)
    }
}

thread_local! {
    static LOOKS: Cell<usize> = const { Cell::new(0) };
}

/// How often it was asked whether a caller is still there: whoever is looked at again is asked.
pub(crate) fn looks_during(act: impl FnOnce()) -> usize {
    let before = LOOKS.get();
    act();
    LOOKS.get() - before
}

#[derive(Debug)]
pub(crate) struct Token {
    call: usize,
    gone: Rc<Cell<bool>>,
}

impl Caller for Token {
    fn is_gone(&self) -> bool {
        LOOKS.set(LOOKS.get() + 1);
        self.gone.get()
    }
}

/// A command that was sent.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    number: usize,
    pub(crate) id: CommandId,
    gone: Rc<Cell<bool>>,
}

impl Call {
    pub(crate) fn reservation(&self) -> ReservationId {
        self.id.into()
    }

    pub(crate) fn leaves(&self) {
        self.gone.set(true);
    }
}

#[derive(Debug)]
pub(crate) struct Story {
    writer: Writer<Token>,
    pub(crate) journal: Vec<Bytes>,
    pub(crate) now_ms: u64,
    ids: u64,
    answers: BTreeMap<usize, Answer<Reply>>,
    told: usize,
    prices: u64,
    stalled: bool,
}

pub(crate) fn config() -> WriterConfig {
    WriterConfig {
        partition: Partition(0),
        partitions: Partitions::try_from(1).unwrap(),
        ledger: LedgerId::new("story").unwrap(),
        writer: "story".to_owned(),
        expiry_grace_ms: GRACE_MS,
        single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
        accounts_max: WriterConfig::ACCOUNTS_MAX_DEFAULT,
        settle_linger_ms: 0,
        commit_events_max: seatbelt_schemas::commit::COMMIT_EVENTS_MAX,
    }
}

pub(crate) fn account() -> AccountId {
    AccountId::new("a").unwrap()
}

pub(crate) fn cap_id(text: &str) -> CapId {
    CapId::new(text).unwrap()
}

/// A cap in words: `<id> <scope> <meter> <window> <limit>` and `soft` where it is, such as
/// `mine key:k tokens rolling:60 100`.
pub(crate) fn spec(text: &str) -> CapSpec {
    let words: Vec<&str> = text.split(' ').collect();
    CapSpec {
        cap: cap_id(words[0]),
        scope: scope(words[1]),
        meter: serde_json::from_value(words[2].into()).unwrap(),
        window: window(words[3]),
        limit: words[4].parse().unwrap(),
        hard: words.get(5) != Some(&"soft"),
        thresholds: THRESHOLDS_DEFAULT.to_vec(),
    }
}

fn scope(word: &str) -> Scope {
    match word.split_once(':') {
        None => Scope::Account,
        Some(("team", id)) => Scope::Team(TeamId::new(id).unwrap()),
        Some(("key", id)) => Scope::Key(KeyId::new(id).unwrap()),
        Some(("model", id)) => Scope::Model(ModelId::new(id).unwrap()),
        Some(("run", id)) => Scope::Run(RunId::new(id).unwrap()),
        Some((_, id)) => Scope::EndUser(EndUserId::new(id).unwrap()),
    }
}

pub(crate) fn window(word: &str) -> Window {
    let calendar = |period| Window::Calendar { period };
    match word.split_once(':') {
        Some((_, seconds)) => Window::Rolling {
            seconds: seconds.parse().unwrap(),
        },
        None => match word {
            "hour" => calendar(Period::Hour),
            "day" => calendar(Period::Day),
            "week" => calendar(Period::Week),
            "month" => calendar(Period::Month),
            _ => Window::Balance,
        },
    }
}

/// What happened, in one line: amounts as `input+output`, times as ms after [`START_MS`].
pub(crate) fn tell(event: &Event) -> String {
    let amounts = |amounts: &Amounts| {
        let tokens = format!("{}+{}", amounts.input_tokens, amounts.output_tokens);
        let cost = amounts.cost.map(|cost| format!(" for {cost}"));
        tokens + &cost.unwrap_or_default()
    };
    match &event.body {
        EventBody::Reserved(data) => match (&data.scopes.run, &data.budget) {
            (Some(run), Some(budget)) => {
                let amounts = budget
                    .iter()
                    .map(|(meter, amount)| format!("{meter} {amount}"));
                format!(
                    "opened {run} with {}",
                    amounts.collect::<Vec<_>>().join(" ")
                )
            }
            _ => format!("reserved {}", amounts(&data.hold)),
        },
        EventBody::Resized(data) => format!("resized to {}", amounts(&data.hold)),
        EventBody::Refused(data) => {
            let resets = data
                .resets_at_ms
                .map(|at_ms| format!(" until {}", at_ms - START_MS));
            format!(
                "refused {} by {}{}",
                data.reason.as_str(),
                data.cap,
                resets.unwrap_or_default()
            )
        }
        EventBody::Settled(data) => {
            let late = if data.late { " late" } else { "" };
            format!("settled {}{late}", amounts(&data.charge))
        }
        EventBody::Expired(data) => format!("expired charging {}", amounts(&data.charge)),
        EventBody::Overrun(data) => format!("overrun {}", amounts(&data.above)),
        EventBody::ThresholdCrossed(data) => format!("crossed {}% of {}", data.percent, data.cap),
        other => other.kind().to_owned(),
    }
}

impl Story {
    /// An account with these caps.
    pub(crate) fn new(caps: &[&str]) -> Self {
        let resumed = Resumed::empty(Partition(0), HOT_MAX);
        let writer = Writer::start(config(), resumed, START_MS);
        let mut story = Self {
            writer,
            journal: Vec::new(),
            now_ms: START_MS,
            ids: 0,
            answers: BTreeMap::new(),
            told: 0,
            prices: 0,
            stalled: false,
        };
        story.change(Change::OpenAccount);
        for (key, team) in [("k", Some("t")), ("l", None)] {
            story.change(Change::IssueKey(KeyIssued {
                key: KeyId::new(key).unwrap(),
                team: team.map(|team| TeamId::new(team).unwrap()),
                secret_sha256: None,
            }));
        }
        caps.iter().for_each(|cap| story.cap(cap));
        story.skip();
        story
    }

    fn id(&mut self) -> CommandId {
        self.ids += 1;
        CommandId::from_parts(self.now_ms, u128::from(self.ids) << 40)
    }

    /// Sends a request, lets everything land that can.
    pub(crate) fn send(&mut self, id: CommandId, request: Request) -> Call {
        let gone = Rc::new(Cell::new(false));
        self.ids += 1;
        let number = usize::try_from(self.ids).unwrap();
        let token = Token {
            call: number,
            gone: gone.clone(),
        };
        self.writer.submit(self.now_ms, request, token);
        self.pump();
        Call { number, id, gone }
    }

    fn pump(&mut self) {
        loop {
            // nobody else writes here
            while let Some(fetch) = self.writer.take_fetch() {
                assert_eq!(fetch, Fetch::End, "all is in memory");
                let end = Fetched::End(self.writer.tail());
                assert!(matches!(
                    self.writer.fetched(self.now_ms, end),
                    Next::Continue
                ));
            }
            for (token, answer) in self.writer.answers() {
                let first = self.answers.insert(token.call, answer);
                assert!(first.is_none(), "one call, one answer");
            }
            if self.stalled {
                return;
            }
            let Some((expected, payload)) = self.writer.take_append() else {
                return;
            };
            assert_eq!(expected, Sequence(self.journal.len() as u64));
            self.journal.push(payload);
            let landed = Sequence(self.journal.len() as u64);
            assert!(matches!(self.writer.appended(Ok(landed)), Next::Continue));
        }
    }

    /// From now on nothing lands.
    pub(crate) fn journal_stalls(&mut self) {
        self.stalled = true;
    }

    /// All that was decided lands.
    pub(crate) fn journal_flows(&mut self) {
        self.stalled = false;
        self.pump();
    }

    /// The writer loses its place; another one starts from what landed.
    pub(crate) fn steps_down(&mut self) {
        self.writer.step_down(StepDown::Fenced);
        self.pump();
        self.stalled = false;
        self.restart();
    }

    /// The writer dies; another one starts from the journal.
    pub(crate) fn restart(&mut self) {
        self.writer = Writer::start(config(), fold(&self.journal), self.now_ms);
        self.pump();
    }

    /// Time passes, to so many ms after the start, with every wake-up on the way.
    pub(crate) fn at(&mut self, after_ms: u64) {
        let target_ms = START_MS + after_ms;
        while let Some(wake_ms) = self.writer.next_wake_ms().filter(|at| *at < target_ms) {
            self.now_ms = self.now_ms.max(wake_ms);
            self.writer.tick(self.now_ms);
            self.pump();
        }
        self.now_ms = target_ms;
        self.writer.tick(self.now_ms);
        self.pump();
    }

    pub(crate) fn command(&mut self, ask: &Ask) -> Reserve {
        Reserve {
            team: None,
            id: self.id(),
            account: account(),
            key: KeyId::new(ask.key).unwrap(),
            model: ask.model.map(|model| ModelId::new(model).unwrap()),
            run: ask.run.map(|run| RunId::new(run).unwrap()),
            end_user: ask.end_user.map(|user| EndUserId::new(user).unwrap()),
            input_tokens: ask.input,
            output_tokens: ask.output,
            tool_calls: 0,
            deadline_ms: self.now_ms + ask.life_ms,
            wait_ms: ask.wait_ms,
            on_short: ask.on_short,
            on_unknown: ask.on_unknown,
            budget: ask.budget,
            within: ask.within.map(|run| RunId::new(run).unwrap()),
        }
    }

    pub(crate) fn reserve(&mut self, ask: &Ask) -> Call {
        let command = self.command(ask);
        self.send(command.id, Request::Reserve(command))
    }

    pub(crate) fn exchange_command(&mut self, call: &Call, ask: &Ask) -> Exchange {
        Exchange {
            release: call.reservation(),
            reserve: self.command(ask),
        }
    }

    /// Another attempt in the place of one that is held.
    pub(crate) fn exchange(&mut self, call: &Call, ask: &Ask) -> Call {
        let command = self.exchange_command(call, ask);
        self.send(command.reserve.id, Request::Exchange(command))
    }

    pub(crate) fn settle_command(&mut self, call: &Call, input: u64, output: u64) -> Settle {
        Settle {
            id: self.id(),
            account: account(),
            reservation: call.reservation(),
            report: Report {
                usage: Usage {
                    input_tokens: input,
                    output_tokens: output,
                    ..Usage::default()
                },
                upstream: "mock".to_owned(),
                source: UsageSource::Upstream,
                finish: None,
                timings: Timings::default(),
            },
            actor: Actor::operator("story"),
        }
    }

    pub(crate) fn settle(&mut self, call: &Call, input: u64, output: u64) -> Call {
        let command = self.settle_command(call, input, output);
        self.send(command.id, Request::Settle(command, Ack::Durable))
    }

    /// A request from its reserve to its settle.
    pub(crate) fn spend(&mut self, ask: &Ask, input: u64, output: u64) {
        let call = self.reserve(ask);
        self.grant(&call);
        self.settle(&call, input, output);
    }

    pub(crate) fn resize_command(&mut self, call: &Call, input: u64, output: u64) -> Resize {
        Resize {
            id: self.id(),
            account: account(),
            reservation: call.reservation(),
            input_tokens: input,
            output_tokens: output,
            actor: Actor::operator("story"),
        }
    }

    pub(crate) fn resize(&mut self, call: &Call, input: u64, output: u64) -> Call {
        let command = self.resize_command(call, input, output);
        self.send(command.id, Request::Resize(command))
    }

    pub(crate) fn release_command(&mut self, call: &Call) -> Release {
        Release {
            id: self.id(),
            account: account(),
            reservation: call.reservation(),
            reason: "not needed".to_owned(),
            actor: Actor::operator("story"),
        }
    }

    pub(crate) fn release(&mut self, call: &Call) -> Call {
        let command = self.release_command(call);
        self.send(command.id, Request::Release(command))
    }

    pub(crate) fn admin_command(&mut self, change: Change) -> Admin {
        let account = match change {
            Change::SetPrice(_) => AccountId::system(),
            _ => account(),
        };
        Admin {
            id: self.id(),
            account,
            actor: Actor::operator("story"),
            change,
        }
    }

    pub(crate) fn change(&mut self, change: Change) -> Call {
        let command = self.admin_command(change);
        self.send(command.id, Request::Admin(command))
    }

    /// Sets a cap given in words.
    pub(crate) fn cap(&mut self, text: &str) {
        let call = self.change(Change::SetCap(spec(text)));
        assert!(matches!(self.answer(&call), Some(Ok(_))), "{text}");
    }

    /// Sets a model's price, nano-USD per token.
    pub(crate) fn price(&mut self, model: &str, input: u64, output: u64) {
        self.prices += 1;
        let call = self.change(Change::SetPrice(Price::of(
            ModelId::new(model).unwrap(),
            Rates::flat(input * 1000, output * 1000),
        )));
        assert!(matches!(self.answer(&call), Some(Ok(_))));
    }

    /// Someone's waiting caller is known to have left.
    pub(crate) fn notice_leaving(&mut self) {
        self.writer.caller_left(self.now_ms, &account());
        self.pump();
    }

    /// Somebody sets the clock.
    pub(crate) fn set_clock(&mut self, step_ms: i64) {
        self.now_ms = self.now_ms.saturating_add_signed(step_ms);
        self.writer.clock_was_set(step_ms);
    }

    /// Time passes, from now on and by whatever the clock says.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.writer.tick(self.now_ms);
        self.pump();
    }

    pub(crate) fn next_wake_ms(&self) -> Option<u64> {
        self.writer.next_wake_ms()
    }

    pub(crate) fn answer(&self, call: &Call) -> Option<&Answer<Reply>> {
        self.answers.get(&call.number)
    }

    #[track_caller]
    pub(crate) fn grant(&self, call: &Call) -> Grant {
        match self.answer(call) {
            Some(Ok(Reply::Reserve(ReserveOutcome::Reserved(grant)))) => grant.clone(),
            other => panic!("no grant: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn refusal(&self, call: &Call) -> Refusal {
        match self.answer(call) {
            Some(Ok(Reply::Reserve(ReserveOutcome::Refused(refusal)))) => (**refusal).clone(),
            other => panic!("no refusal: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn error(&self, call: &Call) -> CommandError {
        match self.answer(call) {
            Some(Err(error)) => error.clone(),
            other => panic!("no error: {other:?}"),
        }
    }

    pub(crate) fn account(&self) -> &Account {
        self.writer.state().account(&account()).unwrap()
    }

    /// The time of the last event.
    pub(crate) fn last_ms(&self) -> u64 {
        self.writer.state().at_ms()
    }

    /// What is spent and held under a cap now.
    pub(crate) fn stands(&self, cap: &str) -> (u64, u64) {
        let cap = self.account().cap(&cap_id(cap)).unwrap();
        (cap.spent(self.now_ms), cap.held)
    }

    pub(crate) fn journal(&self) -> &[Bytes] {
        &self.journal
    }

    pub(crate) fn events(&self) -> Vec<StoredEvent> {
        let commits = self
            .journal
            .iter()
            .map(|payload| Commit::decode(payload).unwrap());
        commits.flat_map(|commit| commit.events).collect()
    }

    /// Leaves out what happened so far.
    pub(crate) fn skip(&mut self) {
        self.told = self.events().len();
    }

    /// Exactly this has happened since the last time.
    #[track_caller]
    pub(crate) fn then(&mut self, lines: &[&str]) {
        let events = self.events();
        let news: Vec<String> = events[self.told..]
            .iter()
            .map(|stored| tell(&stored.event))
            .collect();
        self.told = events.len();
        assert_eq!(news, lines);
    }

    pub(crate) fn proved(&self) -> PartitionSummary {
        prove(&self.journal).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.journal_flows();
            self.proved();
            each_event_agrees(&self.journal);
            let state = fold(&self.journal).state;
            assert_eq!(state, *self.writer.state(), "replay is the live state");
        }
    }
}

/// Whoever starts from a snapshot asks of each event whether the account is what the event met: it is, of
/// a true one.
fn each_event_agrees(journal: &[Bytes]) {
    let mut state = PartitionState::new(Partition(0));
    for payload in journal {
        for stored in state.check(payload).unwrap().events {
            let event = &stored.event;
            let unheard = Account::default();
            let account = state.account(&event.account).unwrap_or(&unheard);
            let good = event.account.is_system() || agrees(account, event);
            assert!(good, "does not agree: {}", tell(event));
            state.apply(event);
        }
        state.committed(state.epoch(), ChainHash::of(payload));
    }
}

/// A partition as its journal tells it.
pub(crate) fn fold(journal: &[Bytes]) -> Resumed {
    let mut resume = Resume::from_start(Partition(0), HOT_MAX);
    for (payload, number) in journal.iter().zip(1..) {
        let stored = Stored {
            sequence: Sequence(number),
            payload: payload.clone(),
        };
        let commit = resume.check(&stored).unwrap();
        resume.take(&stored, &commit).unwrap();
    }
    resume.finish()
}

/// Proves a journal; an error as people read it, causes and all.
pub(crate) fn prove(journal: &[Bytes]) -> Result<PartitionSummary, String> {
    let whole = |error: &dyn std::error::Error| {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
    };
    let mut verifier = Verifier::new(Partition(0));
    for (payload, number) in journal.iter().zip(1..) {
        verifier
            .accept(Sequence(number), payload)
            .map_err(|error| whole(&error))?;
    }
    verifier.finish().map_err(|error| whole(&error))
}

/// Every meter, for tables.
pub(crate) const METERS: [Meter; 6] = [
    Meter::Requests,
    Meter::Tokens,
    Meter::InputTokens,
    Meter::OutputTokens,
    Meter::Cost,
    Meter::Concurrency,
];
