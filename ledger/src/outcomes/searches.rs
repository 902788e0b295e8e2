//! What happens to a reservation while the journal is searched for the command that made it.
//!
//! A search reads up to what is durable when it begins. An end that was decided since, or that was not
//! durable yet, is in none of what it brings: it is noted here, so that nobody is told of a hold that it
//! is open after it has ended.

use std::collections::BTreeMap;

use seatbelt_schemas::{ids::CommandId, position::Position};

/// Commands that are being looked for, and where what they reserved has ended since. No more than there
/// are commands that wait.
#[derive(Debug, Default)]
pub(super) struct Searches(BTreeMap<CommandId, Option<Position>>);

impl Searches {
    pub(super) fn begin(&mut self, id: CommandId) {
        self.0.entry(id).or_default();
    }

    pub(super) fn note_end(&mut self, id: CommandId, position: Position) {
        if let Some(ended) = self.0.get_mut(&id) {
            *ended = Some(position);
        }
    }

    /// It has been found, or cannot be looked for; where it has ended meanwhile.
    pub(super) fn end(&mut self, id: CommandId) -> Option<Position> {
        self.0.remove(&id).flatten()
    }
}

impl super::Outcomes {
    /// A command is to be looked for in the journal: what becomes of it from now on is noted until
    /// [`Outcomes::recollect`](super::Outcomes::recollect).
    pub fn search_for(&mut self, id: CommandId) {
        self.searches.begin(id);
    }

    /// The journal could not be searched for it.
    pub fn give_up_search(&mut self, id: CommandId) {
        self.searches.end(id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use seatbelt_schemas::{
        event::{Asked, Event, EventBody, OnShort, OnUnknown, Released, Reserved},
        ids::{AccountId, Actor, CommandId, KeyId, ReservationId},
        meter::Amounts,
        position::Position,
        scope::Scopes,
    };

    use crate::outcomes::{Outcomes, Trace};

    fn id() -> CommandId {
        CommandId::from_parts(5, 1)
    }

    fn event(position: u64, cause: CommandId, body: EventBody) -> Event {
        Event {
            position: Position(position),
            at_ms: 9,
            account: AccountId::new("a").unwrap(),
            cause,
            actor: Actor::system("test"),
            body,
        }
    }

    fn reserved() -> Event {
        let scopes = Scopes {
            key: KeyId::new("k").unwrap(),
            team: None,
            model: None,
            run: None,
            end_user: None,
        };
        let data = Reserved {
            reservation: id().into(),
            scopes: Arc::new(scopes),
            asked: Asked {
                input_tokens: 1,
                output_tokens: 1,
                tool_calls: 0,
                deadline_ms: 99,
                on_short: OnShort::Refuse,
                on_unknown: OnUnknown::Release,
            },
            hold: Amounts::zero(),
            price: None,
            multiplier_ppm: None,
            budget: None,
            caps: Vec::new(),
        };
        event(3, id(), data.into())
    }

    fn released(position: u64) -> Event {
        let data = Released {
            reservation: id().into(),
            key: KeyId::new("k").unwrap(),
            reason: "test".to_owned(),
        };
        event(position, CommandId::from_parts(6, 1), data.into())
    }

    fn search(outcomes: &mut Outcomes, events: Vec<Event>) -> Option<Position> {
        outcomes.recollect(&Trace { id: id(), events });
        outcomes.ended(ReservationId::from(id()))
    }

    fn cold() -> Outcomes {
        Outcomes::after(Some(CommandId::from_parts(8, 1)), 4)
    }

    #[test]
    fn an_end_that_a_search_came_too_early_for_is_known() {
        let mut outcomes = cold();
        outcomes.search_for(id());
        outcomes.apply(&released(4));
        assert_eq!(search(&mut outcomes, vec![reserved()]), Some(Position(4)));
    }

    #[test]
    fn what_became_of_it_before_the_search_is_what_that_tells() {
        let mut outcomes = cold();
        outcomes.search_for(id());
        let told = vec![reserved(), released(4)];
        assert_eq!(search(&mut outcomes, told), Some(Position(4)));
    }

    #[test]
    fn nothing_is_noted_once_a_search_is_given_up() {
        let mut outcomes = cold();
        outcomes.search_for(id());
        outcomes.give_up_search(id());
        outcomes.apply(&released(4));
        assert!(outcomes.searches.0.is_empty());
    }
}
