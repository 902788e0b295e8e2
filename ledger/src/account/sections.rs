//! An account taken apart into lists, each in the order in which the account keeps it, and put together
//! again: what a snapshot in pieces is made of.

use std::collections::BTreeMap;

use seatbelt_schemas::ids::{ReservationId, RunId};
use serde::Deserialize;

use super::{Account, Cap, ExpiredReservation, Holdings, Key, Reservation, Run};

/// An account as it is read: what follows from the rest is not stored.
#[derive(Deserialize)]
pub(super) struct Stored {
    opened: bool,
    version: u32,
    keys: Vec<Key>,
    caps: Vec<Cap>,
    open: BTreeMap<ReservationId, Reservation>,
    expired: BTreeMap<ReservationId, ExpiredReservation>,
    #[serde(default)]
    runs: BTreeMap<RunId, Run>,
    #[serde(default)]
    multiplier_ppm: Option<u64>,
}

impl From<Stored> for Account {
    fn from(stored: Stored) -> Self {
        let Stored {
            opened,
            version,
            keys,
            caps,
            open,
            expired,
            runs,
            multiplier_ppm,
        } = stored;
        let holdings = Box::new(Holdings::of(&open, &runs, &caps));
        let live_keys = keys.iter().filter(|key| !key.revoked).count() as u64;
        Self {
            opened,
            version,
            keys,
            caps,
            open,
            expired,
            runs,
            multiplier_ppm,
            holdings,
            live_keys,
        }
    }
}

/// Everything that an account holds, by kind.
#[derive(Debug, Default)]
pub struct Sections {
    /// Whether the account exists.
    pub opened: bool,
    /// How many events have been applied.
    pub version: u32,
    /// What all costs are multiplied by, where that was ever set.
    pub multiplier_ppm: Option<u64>,
    /// Keys, by id.
    pub keys: Vec<Key>,
    /// Caps, by scope and id.
    pub caps: Vec<Cap>,
    /// Open runs, by id.
    pub runs: Vec<(RunId, Run)>,
    /// Open reservations, by id.
    pub open: Vec<(ReservationId, Reservation)>,
    /// Expired reservations, by id.
    pub expired: Vec<(ReservationId, ExpiredReservation)>,
}

impl From<Sections> for Account {
    fn from(sections: Sections) -> Self {
        Stored {
            opened: sections.opened,
            version: sections.version,
            multiplier_ppm: sections.multiplier_ppm,
            keys: sections.keys,
            caps: sections.caps,
            open: sections.open.into_iter().collect(),
            expired: sections.expired.into_iter().collect(),
            runs: sections.runs.into_iter().collect(),
        }
        .into()
    }
}

impl Account {
    /// How many keys, caps, runs and reservations there are in all.
    pub fn entries(&self) -> usize {
        self.keys.len() + self.caps.len() + self.runs.len() + self.open.len() + self.expired.len()
    }
}
