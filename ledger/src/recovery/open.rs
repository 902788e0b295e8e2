//! Which accounts have open reservations, as the journal alone tells: where the partition record does
//! not name them, because there were more than it names, somebody must watch their deadlines all the
//! same.
//!
//! All of the journal is read, in the background of a writer that serves already; what is kept is one
//! entry for each reservation that is open at the place where the reading is.

use std::collections::{BTreeSet, HashMap};

use futures::StreamExt;
use seatbelt_schemas::{
    commit::Commit,
    event::EventBody,
    ids::{AccountId, ReservationId},
};

use crate::{
    journal::{Journal, ReadError, Sequence},
    outcomes::ended_by,
};

/// The accounts that have open reservations at the end of commit `to`.
pub async fn open_accounts<J: Journal>(
    journal: &J,
    to: Sequence,
) -> Result<BTreeSet<AccountId>, ReadError> {
    let mut open: HashMap<ReservationId, AccountId> = HashMap::new();
    let mut commits = journal.replay(Sequence(0), to);
    while let Some(stored) = commits.next().await {
        // what cannot be read is the audit's to tell: it lies before what a writer starts from
        let Ok(commit) = Commit::decode(&stored?.payload) else {
            continue;
        };
        for event in commit.events.into_iter().map(|stored| stored.event) {
            if let Some(ended) = ended_by(&event.body) {
                open.remove(&ended);
            } else if let EventBody::Reserved(data) = &event.body {
                open.insert(data.reservation, event.account);
            }
        }
    }
    Ok(open.into_values().collect())
}
