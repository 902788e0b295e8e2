//! What a partition's task fetches beside its work: accounts, older commands, what may leave memory, and
//! what the server's clock shows.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::FutureExt;
use seatbelt_schemas::chain::in_one_line;
use seatbelt_schemas::ids::AccountId;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{clock::HostClock, handle::Asker, skew::ClockLook, task::Task, timepiece::Looked};
use crate::{
    journal::{Journal, Sequence},
    lookup,
    outcomes::{HOT_MAX, ahead::Unsearched},
    recovery::{Base, RecoverySource, open::open_accounts},
    writer::{
        Next, StepDown, Writer,
        cold::{Fetch, Fetched},
    },
};

/// Accounts and older commands that are fetched at once.
pub(super) const FETCHES_MAX: usize = 64;
/// How often a fetch is tried, and the pause in between.
const FETCH_TRIES_MAX: u32 = 8;
const FETCH_PAUSE: Duration = Duration::from_millis(250);
/// How many looks in a row must find the journal shorter than it was before that is believed: a server
/// that has just become its leader may not have taken in all that was acknowledged.
const SHORT_LOOKS: u32 = 3;
/// How often it is looked whether accounts should leave memory.
const CLEAR_EVERY: Duration = Duration::from_secs(1);

impl<J: Journal> Task<J> {
    /// Begins to fetch what the writer wants, up to its bound at once, and now and then looks
    /// which accounts could leave memory.
    pub(super) fn begin_fetches(&mut self, writer: &mut Writer<Asker>) {
        while self.fetches.len() < self.fetches_max
            && let Some(fetch) = writer.take_fetch()
        {
            let (source, base) = (self.source.clone(), self.base.clone());
            self.fetches
                .push(fetched(source, base, fetch, writer.tail(), self.clock()).boxed());
        }
        if self.time.take_look() {
            self.fetches
                .push(look_around(self.source.clone(), self.clock(), writer.tail()).boxed());
        }
        let now = self.time.clock().instant();
        if now < self.clear_at {
            return;
        }
        self.clear_at = now + CLEAR_EVERY;
        let crowd = writer.crowd();
        if !crowd.is_empty() {
            let (source, base) = (self.source.clone(), self.base.clone());
            let current = async move {
                let current = source.current(crowd, &base).await;
                Brought::Current(current.unwrap_or((base, Vec::new())))
            };
            self.fetches.push(current.boxed());
        }
    }

    /// Takes in what comes back; why the writer is over, where that shows it.
    pub(super) fn bring(
        &mut self,
        writer: &mut Writer<Asker>,
        brought: Brought,
    ) -> Option<StepDown> {
        match brought {
            Brought::Fetched(fetched) => {
                let now_ms = self.now_ms(writer);
                if let Next::StepDown(reason) = writer.fetched(now_ms, fetched) {
                    return Some(reason);
                }
            }
            Brought::Looked(looked, ends) => {
                self.looked(&looked);
                if let Some(reason) = ends.and_then(|ends| self.lost_its_place(writer, ends)) {
                    writer.step_down(reason.clone());
                    return Some(reason);
                }
            }
            Brought::Open(accounts) => writer.watch(accounts),
            Brought::Current((base, _)) if writer.is_beyond(base.position()) => {
                writer.step_down(StepDown::Fenced);
                return Some(StepDown::Fenced);
            }
            Brought::Current((base, accounts)) => {
                // whatever is not in memory has no event after the new base either; looks may overlap
                self.base = self.base.clone().later(base);
                self.base.leave(&accounts);
                writer.let_go(&accounts);
                if !accounts.is_empty() {
                    self.clear_at = self.time.clock().instant();
                }
            }
        }
        None
    }

    /// Why the writer has lost its place, where the journal's end shows that.
    fn lost_its_place(
        &mut self,
        writer: &Writer<Asker>,
        Ends { least, end }: Ends,
    ) -> Option<StepDown> {
        self.short_looks = match end < least {
            true => self.short_looks + 1,
            false => 0,
        };
        if writer.is_overtaken_at(end) {
            return Some(StepDown::Fenced);
        }
        if self.short_looks > 0 {
            self.time.make_sure();
        }
        (self.short_looks >= SHORT_LOOKS).then_some(StepDown::Truncated)
    }
}

/// What comes back from the journal and the snapshots.
pub(super) enum Brought {
    Fetched(Fetched),
    /// Accounts with open reservations, which the partition record does not name.
    Open(BTreeSet<AccountId>),
    /// What the bucket vouches for by now, and the accounts whose snapshots are current.
    Current((Base, Vec<(AccountId, u32)>)),
    /// What the server's clock shows, and where the journal ends if that is known.
    Looked(Looked, Option<Ends>),
}

/// Looks at the server's clock.
pub(super) async fn look<J: Journal>(source: RecoverySource<J>, clock: HostClock) -> Looked {
    let asked = clock.read();
    let told = source.journal.server_ms().await;
    let heard = clock.read();
    match told {
        Ok(Some(server_ms)) => Looked::At(ClockLook {
            asked,
            heard,
            server_ms,
        }),
        Ok(None) => Looked::NoClock,
        Err(failure) => {
            let failure = in_one_line(&failure);
            warn!(partition = %source.partition, failure, "the server's clock cannot be looked at");
            Looked::Failed
        }
    }
}

/// Where the journal ended at least when it was looked at, and where it does.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    least: Sequence,
    end: Sequence,
}

/// The same, and where the journal ends by now: a writer that has nothing to write would not hear that it
/// was overtaken, or that the journal has lost its end.
async fn look_around<J: Journal>(
    source: RecoverySource<J>,
    clock: HostClock,
    least: Sequence,
) -> Brought {
    let looked = look(source.clone(), clock).await;
    let end = source.journal.end().await.ok();
    Brought::Looked(looked, end.map(|end| Ends { least, end }))
}

/// Fetches one thing; tries for a while, as callers wait for it.
async fn fetched<J: Journal>(
    source: RecoverySource<J>,
    base: Base,
    fetch: Fetch,
    end: Sequence,
    clock: HostClock,
) -> Brought {
    let mut detail = String::new();
    for _ in 0..FETCH_TRIES_MAX {
        let tried = match &fetch {
            Fetch::Account(account) => source
                .load(account, &base)
                .await
                .map(|loaded| Fetched::Account(account.clone(), loaded))
                .map_err(|error| in_one_line(&error)),
            Fetch::Command(id) => lookup::trace_past(&*source.journal, *id, end, base.skipped())
                .await
                .map(Fetched::Command)
                .map_err(|error| in_one_line(&error)),
            Fetch::Above(unread) => read_above(&source, &base, *unread).await,
            Fetch::End => {
                let end = source.journal.end().await;
                end.map(Fetched::End).map_err(|error| in_one_line(&error))
            }
        };
        match tried {
            Ok(fetched) => return Brought::Fetched(fetched),
            Err(failure) => detail = failure,
        }
        clock.sleep(FETCH_PAUSE).await;
    }
    warn!(partition = %source.partition, ?fetch, detail, "cannot be fetched");
    Brought::Fetched(Fetched::Failed { fetch, detail })
}

/// Finds the accounts with open reservations up to `end`, beside the task of the partition; tries for as
/// long as the writer lives, as their deadlines are watched by nobody else.
pub(super) async fn opened<J: Journal>(
    source: RecoverySource<J>,
    end: Sequence,
    clock: HostClock,
) -> Brought {
    let partition = source.partition;
    warn!(%partition, "the record names no accounts with open reservations: looking for them in the journal");
    loop {
        let journal = Arc::clone(&source.journal);
        let reading = async move { open_accounts(&*journal, end).await };
        let failure = match AbortOnDropHandle::new(tokio::spawn(reading)).await {
            Ok(Ok(accounts)) => {
                info!(%partition, accounts = accounts.len(), "deadlines are watched");
                return Brought::Open(accounts);
            }
            Ok(Err(failure)) => in_one_line(&failure),
            Err(failure) => in_one_line(&failure),
        };
        warn!(%partition, failure, "deadlines cannot all be watched yet");
        clock.sleep(FETCH_PAUSE).await;
    }
}

/// Reads a piece of the journal that may be long, beside the task of the partition.
async fn read_above<J: Journal>(
    source: &RecoverySource<J>,
    base: &Base,
    unread: Unsearched,
) -> Result<Fetched, String> {
    let (journal, base) = (Arc::clone(&source.journal), base.clone());
    let reading = async move { lookup::above(&*journal, unread, HOT_MAX, base.skipped()).await };
    match AbortOnDropHandle::new(tokio::spawn(reading)).await {
        Ok(Ok(read)) => Ok(Fetched::Above(unread, Box::new(read))),
        Ok(Err(failure)) => Err(in_one_line(&failure)),
        Err(failure) => Err(in_one_line(&failure)),
    }
}
