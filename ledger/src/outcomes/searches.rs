//! What becomes of a command while the journal is searched for it.
//!
//! A search reads up to what is durable when it begins. What was decided since, or was not durable yet, is
//! in none of what it brings, and need not be hot any more when it comes: it is noted here. So nothing is
//! carried out again because a search came too early for it, and nobody is told of a hold that it is open
//! after it has ended.

use std::collections::BTreeMap;

use seatbelt_schemas::ids::CommandId;

use super::{End, KnownOutcome};

/// What became of a command since it is being looked for.
#[derive(Debug, Default)]
pub(super) struct Since {
    /// Its outcome, where it was carried out.
    pub(super) known: Option<KnownOutcome>,
    /// How what it reserved has ended.
    pub(super) ended: Option<End>,
}

/// Commands that are being looked for. No more than there are commands that wait.
#[derive(Debug, Default)]
pub(super) struct Searches(BTreeMap<CommandId, Since>);

impl Searches {
    pub(super) fn begin(&mut self, id: CommandId) {
        self.0.entry(id).or_default();
    }

    pub(super) fn note(&mut self, id: CommandId, known: &KnownOutcome) {
        if let Some(since) = self.0.get_mut(&id) {
            since.known = Some(known.clone());
        }
    }

    pub(super) fn note_end(&mut self, id: CommandId, end: End) {
        if let Some(since) = self.0.get_mut(&id) {
            since.ended = Some(end);
        }
    }

    /// It has been found, or cannot be looked for.
    pub(super) fn end(&mut self, id: CommandId) -> Since {
        self.0.remove(&id).unwrap_or_default()
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

    use crate::outcomes::{Fingerprint, Outcome, Outcomes, Recall, Stands, Trace};

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
        event(3, id(), reserved_as(id()))
    }

    fn reserved_as(id: CommandId) -> EventBody {
        let scopes = Scopes {
            key: KeyId::new("k").unwrap(),
            team: None,
            model: None,
            run: None,
            end_user: None,
        };
        let data = Reserved {
            uncovered: false,
            reservation: id.into(),
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
            within: None,
            caps: Vec::new(),
            attempt: None,
        };
        data.into()
    }

    fn released(position: u64) -> Event {
        let data = Released {
            reservation: id().into(),
            key: KeyId::new("k").unwrap(),
            reason: "test".to_owned(),
            replaced_by: None,
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

    /// Pushes everything out that has an older id: so small is what stays hot here.
    fn push_out(outcomes: &mut Outcomes) {
        for position in 10..20 {
            let id = CommandId::from_parts(100 + position, 1);
            outcomes.apply(&event(position, id, reserved_as(id)));
        }
    }

    #[test]
    fn what_was_decided_during_a_search_is_no_new_command_to_it() {
        let mut outcomes = cold();
        outcomes.search_for(id());
        outcomes.apply(&reserved());
        push_out(&mut outcomes);
        assert!(outcomes.is_cold(id()));
        search(&mut outcomes, Vec::new());
        let fingerprint = Fingerprint::of_event(&reserved()).unwrap();
        let known = outcomes.recall(id(), fingerprint);
        let Recall::Same(Outcome::Reserved { stands, .. }) = known else {
            panic!("{known:?}");
        };
        assert!(matches!(stands, Stands::Open { .. }), "{stands:?}");
    }

    #[test]
    fn what_was_decided_and_ended_during_a_search_has_ended() {
        let mut outcomes = cold();
        outcomes.search_for(id());
        outcomes.apply(&reserved());
        outcomes.apply(&released(4));
        push_out(&mut outcomes);
        assert_eq!(search(&mut outcomes, Vec::new()), Some(Position(4)));
    }
}
