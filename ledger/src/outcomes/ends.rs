//! How a reservation stands, and what it came to: what who asks later is told.

use seatbelt_schemas::{
    command::Fate,
    event::{Event, EventBody},
    ids::ReservationId,
    meter::Amounts,
    position::Position,
};

use super::{Outcome, Outcomes};

/// How a hold stands that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    Open {
        /// What is held.
        hold: Amounts,
        /// Whether it is less than asked.
        clamped: bool,
    },
    Ended(End),
}

/// The end of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Where it is recorded.
    pub position: Position,
    pub of: EndOf,
}

/// What a reservation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOf {
    /// This is charged.
    Charged(Amounts),
    /// Another attempt took its place.
    ReplacedBy(ReservationId),
}

impl End {
    /// The reservation that an event ends, and how.
    pub fn by(event: &Event) -> Option<(ReservationId, Self)> {
        let reservation = ended_by(&event.body)?;
        let of = match &event.body {
            EventBody::Settled(data) => EndOf::Charged(data.charge),
            EventBody::Expired(data) => EndOf::Charged(data.charge),
            EventBody::Released(data) => match data.replaced_by {
                Some(by) => EndOf::ReplacedBy(by),
                None => EndOf::Charged(Amounts::zero()),
            },
            _ => return None,
        };
        let position = event.position;
        Some((reservation, Self { position, of }))
    }
}

impl Outcomes {
    /// Where a reservation ended, if that is still known.
    pub fn ended(&self, reservation: ReservationId) -> Option<Position> {
        match self.fate(reservation) {
            Fate::Ended { position, .. } | Fate::Replaced { position, .. } => Some(position),
            Fate::Unknown | Fate::Refused { .. } | Fate::Open => None,
        }
    }

    /// What became of a reservation, as far as that is known here: nothing of one that is cold.
    pub fn fate(&self, reservation: ReservationId) -> Fate {
        let Some(Some((_, outcome))) = self.known(reservation.into()) else {
            return Fate::Unknown;
        };
        match outcome {
            Outcome::Reserved { stands, .. } => match stands {
                Stands::Open { .. } => Fate::Open,
                Stands::Ended(End { position, of }) => match *of {
                    EndOf::Charged(charge) => Fate::Ended {
                        position: *position,
                        charge,
                    },
                    EndOf::ReplacedBy(by) => Fate::Replaced {
                        position: *position,
                        by,
                    },
                },
            },
            Outcome::Refused(refusal) => Fate::Refused {
                position: refusal.position,
            },
            Outcome::Resolved(_) | Outcome::Changed(_) | Outcome::Unchanged(_) => Fate::Unknown,
        }
    }
}

/// The reservation that an event ends.
pub fn ended_by(body: &EventBody) -> Option<ReservationId> {
    match body {
        EventBody::Settled(data) => Some(data.reservation),
        EventBody::Released(data) => Some(data.reservation),
        EventBody::Expired(data) => Some(data.reservation),
        _ => None,
    }
}
