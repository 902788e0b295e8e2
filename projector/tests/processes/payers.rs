//! Callers: what they ask for, how they go on, leave, repeat themselves and forge; what they are told is
//! kept.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seatbelt_ledger::api::{
    Ack, Admin, Answer, CommandError, Exchange, Read, Release, Reserve, ReserveOutcome, Resize,
    Settle,
};
use seatbelt_schemas::{
    command::Change,
    event::{Report, Timings, UsageSource},
    ids::{AccountId, Actor, CommandId, ReservationId},
    position::Position,
    usage::Usage,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    hosts::{Host, Hosts},
    medium::Medium,
    told::{Failed, Told},
    vocabulary,
};

/// How long a caller goes on asking before it takes the outcome for unknown.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far the clock of a caller may be ahead: as far as its commands are taken in, and no further.
const AHEAD_MS_MAX: u64 = 50_000;

/// Everybody who asks, and what they were told.
pub(crate) struct Payers {
    pub(crate) medium: Arc<Medium>,
    pub(crate) hosts: Arc<Hosts>,
    told: Mutex<Told>,
    ids: Mutex<u64>,
}

impl Payers {
    pub(crate) fn new(medium: &Arc<Medium>, hosts: &Arc<Hosts>) -> Arc<Self> {
        Arc::new(Self {
            medium: Arc::clone(medium),
            hosts: Arc::clone(hosts),
            told: Mutex::default(),
            ids: Mutex::default(),
        })
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In every third run the clock of one caller in four is ahead.
    pub(crate) fn id(&self) -> CommandId {
        let mut ids = self.ids.lock().unwrap();
        *ids += 1;
        let ahead_ms = match self.medium.callers_are_ahead && ids.is_multiple_of(4) {
            true => self.medium.chance.below(AHEAD_MS_MAX),
            false => 0,
        };
        let made_ms = self.medium.now_ms() + ahead_ms;
        CommandId::from_parts(made_ms, 1 << 79 | u128::from(*ids))
    }

    /// Asks whichever host is up, again and again with the same id, until there is an answer that stands.
    pub(crate) async fn ask<T>(&self, call: impl AsyncFn(&Host) -> Answer<T>) -> Option<Answer<T>> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let Some(host) = self.hosts.any() else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let answer = tokio::select! {
                biased;
                // what it says when it is dead, nobody hears
                () = host.life.over() => continue,
                answer = call(&host) => answer,
            };
            match answer {
                Err(CommandError::Unavailable { .. }) => {
                    sleep(Duration::from_millis(20) + self.medium.chance.ms(200)).await;
                }
                answer => {
                    let error = answer.as_ref().err();
                    self.medium
                        .note(|| format!("{} answers, error {error:?}", host.name));
                    return Some(answer);
                }
            }
        }
        None
    }

    fn failed(&self, id: CommandId, error: CommandError, forged: bool) {
        self.told().errors.push(Failed { id, error, forged });
    }

    /// One payer's working day.
    pub(crate) async fn work(self: Arc<Self>, account: AccountId, stories: u64) {
        let chance = &self.medium.chance;
        for _ in 0..stories {
            sleep(chance.ms(500)).await;
            match chance.below(12) {
                0..=7 => {
                    let command = vocabulary::reserve(self.id(), &account, &self.medium);
                    self.story(command).await;
                }
                8 => {
                    let command = vocabulary::open_run(self.id(), &account, &self.medium);
                    self.story(command).await;
                }
                9 => {
                    let change = vocabulary::change(chance);
                    self.change(&account, change).await;
                }
                _ => self.read(&account).await,
            }
        }
    }

    pub(crate) async fn change(&self, account: &AccountId, change: Change) -> bool {
        let command = Admin {
            id: self.id(),
            account: account.clone(),
            actor: Actor::operator("sim"),
            change,
        };
        match self
            .ask(async |host| host.ledger.admin(command.clone()).await)
            .await
        {
            Some(Ok(outcome)) => {
                if let Some(position) = outcome.position {
                    self.told().outcome(command.id, position);
                }
                true
            }
            Some(Err(error)) => {
                self.failed(command.id, error, false);
                false
            }
            None => false,
        }
    }

    pub(crate) async fn read(&self, account: &AccountId) {
        let query = Read {
            account: account.clone(),
            key: None,
            run: None,
            reservation: None,
        };
        let asked = self.ask(async |host| host.ledger.read(query.clone()).await);
        match asked.await {
            Some(Ok(standing)) => self.told().reads.push(standing),
            Some(Err(error)) => self.failed(self.id(), error, false),
            None => {}
        }
    }

    /// A reserve and what becomes of it.
    async fn story(&self, command: Reserve) {
        let chance = &self.medium.chance;
        let asked = self.reserve(&command);
        let answer = match chance.one_in(8) {
            // it leaves before it is answered
            true => match timeout(chance.ms(400), asked).await {
                Ok(answer) => answer,
                Err(_) => return,
            },
            false => asked.await,
        };
        if !matches!(answer, Some(Ok(ReserveOutcome::Reserved(_)))) {
            return;
        }
        if chance.one_in(5) {
            self.reserve(&command).await;
        }
        if chance.one_in(8) {
            self.forge(&command).await;
        }
        sleep(chance.ms(1_500)).await;
        if command.budget.is_none() && chance.one_in(5) {
            let held = self.exchanged(command).await;
            return self.end(&held).await;
        }
        self.end(&command).await;
        if chance.one_in(4) {
            // it has not heard of its own end, or starts again with what it wrote down
            sleep(chance.ms(3_000)).await;
            self.reserve(&command).await;
        }
    }

    /// Another attempt in the place of this one; which of them is held then.
    async fn exchanged(&self, command: Reserve) -> Reserve {
        let reserve = Reserve {
            key: command.key.clone(),
            ..vocabulary::reserve(self.id(), &command.account, &self.medium)
        };
        let release = command.id.into();
        let exchange = Exchange { release, reserve };
        let asked = self.ask(async |host| host.ledger.exchange(exchange.clone()).await);
        let Exchange { reserve, .. } = exchange.clone();
        match asked.await {
            Some(Ok(ReserveOutcome::Reserved(grant))) => {
                let mut told = self.told();
                told.outcome(reserve.id, grant.position);
                told.grants
                    .insert(grant.reservation, reserve.account.clone());
                reserve
            }
            Some(Ok(ReserveOutcome::Refused(refusal))) => {
                self.medium
                    .fail(format!("an exchange was refused by an event: {refusal:?}"));
                command
            }
            Some(Err(error)) => {
                self.failed(reserve.id, error, false);
                command
            }
            None => command,
        }
    }

    async fn end(&self, command: &Reserve) {
        let (chance, id) = (&self.medium.chance, ReservationId::from(command.id));
        if command.budget.is_some() {
            sleep(chance.ms(4_000)).await;
            return match chance.one_in(4) {
                true => {}
                false => self.release(&command.account, id).await,
            };
        }
        if chance.one_in(6) {
            self.resize(&command.account, id).await;
        }
        match chance.below(10) {
            0 => {} // nobody ever reports
            1 | 2 => self.release(&command.account, id).await,
            3 => {
                // it is late, and its hold has ended meanwhile
                let ended_ms = command.deadline_ms + crate::hosts::GRACE_MS + 1_000;
                sleep(Duration::from_millis(
                    ended_ms.saturating_sub(self.medium.now_ms()),
                ))
                .await;
                self.settle(command).await;
            }
            _ => self.settle(command).await,
        }
    }

    pub(crate) async fn reserve(&self, command: &Reserve) -> Option<Answer<ReserveOutcome>> {
        let answer = self
            .ask(async |host| host.ledger.reserve(command.clone()).await)
            .await;
        match &answer {
            Some(Ok(ReserveOutcome::Reserved(grant))) => {
                let mut told = self.told();
                told.outcome(command.id, grant.position);
                told.grants
                    .insert(grant.reservation, command.account.clone());
            }
            Some(Ok(ReserveOutcome::Refused(refusal))) => {
                let mut told = self.told();
                told.outcome(command.id, refusal.position);
                told.refused.insert(command.id);
            }
            Some(Err(error)) => self.failed(command.id, error.clone(), false),
            None => {}
        }
        answer
    }

    /// The same id with another body.
    async fn forge(&self, command: &Reserve) {
        let forged = Reserve {
            output_tokens: command.output_tokens + 1,
            ..command.clone()
        };
        match self
            .ask(async |host| host.ledger.reserve(forged.clone()).await)
            .await
        {
            Some(Err(error)) => self.failed(command.id, error, true),
            Some(Ok(outcome)) => self
                .medium
                .fail(format!("a forged body was taken: {outcome:?}")),
            None => {}
        }
    }

    async fn resize(&self, account: &AccountId, reservation: ReservationId) {
        let chance = &self.medium.chance;
        let command = Resize {
            id: self.id(),
            account: account.clone(),
            reservation,
            input_tokens: 1 + chance.below(20),
            output_tokens: 1 + chance.below(50),
            actor: Actor::operator("sim"),
        };
        match self
            .ask(async |host| host.ledger.resize(command.clone()).await)
            .await
        {
            Some(Ok(resolution)) => self.told().outcome(command.id, resolution.position),
            Some(Err(error)) => self.failed(command.id, error, false),
            None => {}
        }
    }

    pub(crate) async fn release(&self, account: &AccountId, reservation: ReservationId) {
        let command = Release {
            id: self.id(),
            account: account.clone(),
            reservation,
            reason: "sim".to_owned(),
            actor: Actor::operator("sim"),
        };
        match self
            .ask(async |host| host.ledger.release(command.clone()).await)
            .await
        {
            Some(Ok(resolution)) => {
                let mut told = self.told();
                told.outcome(command.id, resolution.position);
                told.released.push(reservation);
            }
            Some(Err(error)) => self.failed(command.id, error, false),
            None => {}
        }
    }

    /// What a reservation used, as its caller would report it.
    pub(crate) fn settlement(&self, reserved: &Reserve) -> Settle {
        Settle {
            id: self.id(),
            account: reserved.account.clone(),
            reservation: reserved.id.into(),
            report: report(&self.medium),
            actor: Actor::operator("sim"),
        }
    }

    /// Reports what was used; now and then twice.
    async fn settle(&self, reserved: &Reserve) {
        let chance = &self.medium.chance;
        let command = self.settlement(reserved);
        for _ in 0..1 + chance.below(4) / 3 {
            // one answer when it lasts, or two: a caller that hears of the first waits for the second
            let early = chance.one_in(2);
            let durable = self.ask(async |host| match early {
                true => {
                    host.ledger
                        .settle_early(command.clone())
                        .await?
                        .lasting
                        .await
                }
                false => host.ledger.settle(command.clone(), Ack::Durable).await,
            });
            match durable.await {
                Some(Ok(resolution)) => self.settled(&command, resolution.position),
                Some(Err(error)) => self.failed(command.id, error, false),
                None => {}
            }
        }
    }

    pub(crate) fn settled(&self, command: &Settle, position: Position) {
        let mut told = self.told();
        told.outcome(command.id, position);
        let used = command.report.usage.tokens();
        told.truths.insert(command.reservation, used);
    }
}

/// What an upstream says, or what was counted in its place.
fn report(medium: &Medium) -> Report {
    let chance = &medium.chance;
    let input_tokens = chance.below(25);
    let usage = Usage {
        input_tokens,
        cached_input_tokens: chance.below(1 + input_tokens),
        output_tokens: chance.below(60),
        ..Usage::default()
    };
    Report {
        usage,
        upstream: "sim".to_owned(),
        source: *chance.pick(&[
            UsageSource::Upstream,
            UsageSource::Neuron,
            UsageSource::Counted,
        ]),
        finish: None,
        timings: Timings::default(),
    }
}
