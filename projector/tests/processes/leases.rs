//! Where leases are kept: a store that answers late or not at all, before or after it wrote, and whose
//! changes are seen late.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use seatbelt_ledger::{
    lease::{LeaseChange, LeaseStore},
    store::{Kept, Revision, StoreError, WriteError},
};
use tokio::{sync::Notify, time::sleep};

use crate::medium::{Medium, Wire};

/// How long a write that is not answered is waited for.
const UNANSWERED: Duration = Duration::from_millis(1_500);

/// All leases.
#[derive(Default)]
pub(crate) struct Desk {
    state: Mutex<State>,
    /// Wakes in order, as a watch would not.
    changed: Notify,
}

#[derive(Default)]
struct State {
    kept: BTreeMap<String, Kept>,
    changes: Vec<LeaseChange>,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn put(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> Result<Revision, WriteError> {
        let mut state = self.state();
        let found = state
            .kept
            .get(key)
            .map_or(Revision(0), |kept| kept.revision);
        if expected.is_some_and(|expected| expected != found) {
            return Err(WriteError::Moved);
        }
        let revision = Revision(state.changes.len() as u64 + 1);
        let kept = Kept {
            value: (!value.is_empty()).then(|| value.clone()),
            revision,
        };
        state.kept.insert(key.to_owned(), kept);
        state.changes.push(LeaseChange {
            key: key.to_owned(),
            revision,
            value,
        });
        drop(state);
        self.changed.notify_waiters();
        Ok(revision)
    }

    /// Every lease is given back, whoever holds it.
    pub(crate) fn take_away(&self) {
        let keys: Vec<_> = self.state().kept.keys().cloned().collect();
        for key in keys {
            // nothing is expected there, so nothing can be in the way
            let _ = self.put(&key, None, Bytes::new());
        }
    }
}

/// What befalls a write.
enum Fate {
    Answered,
    /// Not written, and not answered.
    Lost,
    /// Written, and not answered.
    Silent,
    /// Not answered, and written later.
    Late,
}

fn fate(medium: &Medium) -> Fate {
    match medium.strikes(40) {
        false => Fate::Answered,
        true => match medium.chance.below(3) {
            0 => Fate::Lost,
            1 => Fate::Silent,
            _ => Fate::Late,
        },
    }
}

impl Wire {
    async fn reaches_leases(&self, action: &str) -> Result<(), StoreError> {
        let takes = match self.medium.strikes(60) {
            true => self.medium.chance.ms(1_500),
            false => self.medium.chance.ms(5),
        };
        sleep(takes).await;
        if self.life.is_over() {
            return std::future::pending().await;
        }
        match self.medium.strikes(80) {
            true => Err(self.store_error(action)),
            false => Ok(()),
        }
    }

    async fn put_lease(
        &self,
        key: &str,
        expected: Revision,
        value: Bytes,
    ) -> Result<Revision, WriteError> {
        self.reaches_leases("write a lease").await?;
        let desk = &self.medium.desk;
        match fate(&self.medium) {
            Fate::Answered => return desk.put(key, Some(expected), value),
            Fate::Lost => {}
            Fate::Silent => drop(desk.put(key, Some(expected), value)),
            Fate::Late => {
                let (medium, key) = (Arc::clone(&self.medium), key.to_owned());
                tokio::spawn(async move {
                    sleep(medium.chance.ms(2_000)).await;
                    drop(medium.desk.put(&key, Some(expected), value));
                });
            }
        }
        sleep(UNANSWERED).await;
        Err(self.store_error("write a lease").into())
    }

    async fn next_change(&self, at: usize) -> Result<LeaseChange, StoreError> {
        let desk = &self.medium.desk;
        loop {
            let changed = desk.changed.notified();
            let found = desk.state().changes.get(at).cloned();
            if let Some(change) = found {
                self.reaches_leases("watch leases").await?;
                return Ok(change);
            }
            changed.await;
        }
    }
}

impl LeaseStore for Wire {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>> {
        async move {
            self.reaches_leases("read a lease").await?;
            let kept = self.medium.desk.state().kept.get(key).cloned();
            Ok(kept.unwrap_or_default())
        }
        .boxed()
    }

    fn write<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>> {
        self.put_lease(key, expected, value).boxed()
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let deleted = self.put_lease(key, expected, Bytes::new());
        deleted.map(|deleted| deleted.map(drop)).boxed()
    }

    fn watch(&self) -> BoxStream<'static, Result<LeaseChange, StoreError>> {
        // there is one partition: the last change is what stands there
        let from = self.medium.desk.state().changes.len().saturating_sub(1);
        stream::unfold((self.clone(), from), |(wire, at)| async move {
            let change = wire.next_change(at).await;
            let next = at + usize::from(change.is_ok());
            Some((change, (wire, next)))
        })
        .boxed()
    }
}
