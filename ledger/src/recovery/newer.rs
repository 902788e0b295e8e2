//! A later release may write what this one does not know: events of another kind, or known ones with another
//! field. Who only passes on keeps them as they are; whoever left them out of a state would decide by other
//! numbers than the release that wrote them, so nothing is folded past one.

use seatbelt_schemas::{
    commit::Commit,
    event::{EventBody, StoredEvent},
    position::Position,
    wire::UnknownField,
};
use thiserror::Error;

/// An event that this release cannot take into account.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the event at position {at} is of kind {kind:?}{with}, which this release ({own}) does not know and cannot decide without: {remedy}",
    own = env!("CARGO_PKG_VERSION"),
    with = with(field.as_ref()),
    remedy = remedy(by.as_deref())
)]
pub struct Newer {
    /// Where it stands.
    pub at: Position,
    /// Its kind.
    pub kind: String,
    /// What of it is not known, where the kind is.
    pub field: Option<UnknownField>,
    /// The release that wrote it, where the commits that were read say so.
    pub by: Option<String>,
}

fn with(field: Option<&UnknownField>) -> String {
    field.map_or_else(String::new, |field| format!(" with the field `{field}`"))
}

fn remedy(by: Option<&str>) -> String {
    match by {
        Some(by) => format!("start release {by}, which wrote it, or a later one (docs/upgrade.md)"),
        None => "start the release that wrote it or a later one (docs/upgrade.md)".to_owned(),
    }
}

/// Whether this release can take an event into account.
pub fn knows(stored: &StoredEvent) -> Result<(), Newer> {
    let field = match (&stored.event.body, &stored.unknown) {
        (EventBody::Unknown { .. }, _) => None,
        (_, None) => return Ok(()),
        (_, Some(field)) => Some(field.clone()),
    };
    Err(Newer {
        at: stored.event.position,
        kind: stored.event.body.kind().to_owned(),
        field,
        by: None,
    })
}

/// Whether it can take a commit's own fields into account.
pub fn knows_frame_of(commit: &Commit) -> Result<(), Newer> {
    let Some(field) = &commit.unknown else {
        return Ok(());
    };
    Err(Newer {
        at: commit.first_position,
        kind: "commit".to_owned(),
        field: Some(field.clone()),
        by: None,
    })
}

/// Whether it can take a whole commit into account; `by` is the release of the writer before it.
pub fn knows_all_of(commit: &Commit, by: Option<&str>) -> Result<(), Newer> {
    let known = knows_frame_of(commit).and_then(|()| commit.events.iter().try_for_each(knows));
    known.map_err(|newer| Newer {
        by: by.map(str::to_owned),
        ..newer
    })
}
