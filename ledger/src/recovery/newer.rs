//! A later release may write events that this one does not know. Who only reads keeps them as they are; a
//! writer that left them out would decide by less than what is spent, so it does not start.

use seatbelt_schemas::{
    commit::Commit,
    event::{Event, EventBody},
    position::Position,
};
use thiserror::Error;

/// An event that this release cannot take into account.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the event at position {at} is of kind {kind:?}, which this release ({own}) does not know and cannot decide without: {remedy}",
    own = env!("CARGO_PKG_VERSION"),
    remedy = remedy(by.as_deref())
)]
pub struct Newer {
    /// Where it stands.
    pub at: Position,
    /// Its kind.
    pub kind: String,
    /// The release that wrote it, where the commits that were read say so.
    pub by: Option<String>,
}

fn remedy(by: Option<&str>) -> String {
    match by {
        Some(by) => format!("start release {by}, which wrote it, or a later one"),
        None => "start the release that wrote it or a later one".to_owned(),
    }
}

/// Whether this release can take an event into account.
pub(super) fn knows(event: &Event) -> Result<(), Newer> {
    let EventBody::Unknown { kind, .. } = &event.body else {
        return Ok(());
    };
    Err(Newer {
        at: event.position,
        kind: kind.clone(),
        by: None,
    })
}

/// Whether it can take a whole commit into account; `by` is the release of the writer before it.
pub(super) fn knows_all_of(commit: &Commit, by: Option<&str>) -> Result<(), Newer> {
    let mut events = commit.events.iter().map(|stored| &stored.event);
    events.try_for_each(knows).map_err(|newer| Newer {
        by: by.map(str::to_owned),
        ..newer
    })
}
