//! Requests of a key without a team that name one: its caps apply too, in a run as well, and no other's do.

use seatbelt_ledger::{api::Reserve, writer::Request};
use seatbelt_schemas::{command::CommandError, ids::TeamId};

use crate::story::{Ask, Call, Story, ask, opens, within};

/// Key `l` has no team, and key `k` is of team `t`.
fn story() -> Story {
    let mut story = Story::new(&[
        "all account tokens balance 1000",
        "own team:t tokens balance 100",
        "other team:u tokens balance 50",
    ]);
    story.skip();
    story
}

fn of_team(story: &mut Story, team: &str, asked: &Ask) -> Call {
    let command = Reserve {
        team: Some(TeamId::new(team).unwrap()),
        ..story.command(asked)
    };
    story.send(command.id, Request::Reserve(command))
}

fn of_l(mut asked: Ask) -> Ask {
    asked.key = "l";
    asked
}

#[test]
fn a_named_teams_caps_apply_to_a_key_without_one() {
    let mut story = story();
    let first = of_team(&mut story, "u", &of_l(ask(10, 30)));
    assert_eq!(
        (story.stands("other"), story.stands("own")),
        ((0, 40), (0, 0))
    );
    let second = of_team(&mut story, "u", &of_l(ask(10, 30)));
    assert_eq!(story.refusal(&second).cap.cap.as_str(), "other");
    of_team(&mut story, "t", &of_l(ask(10, 30)));
    assert_eq!(
        (story.stands("other"), story.stands("own")),
        ((0, 40), (0, 40))
    );
    story.reserve(&of_l(ask(10, 300)));
    story.settle(&first, 10, 20);
    assert_eq!(
        (story.stands("other"), story.stands("own")),
        ((30, 0), (0, 40))
    );
    story.restart();
    assert_eq!(
        (story.stands("other"), story.stands("own")),
        ((30, 0), (0, 40))
    );
    story.proved();
}

#[test]
fn a_key_of_a_team_is_of_no_other() {
    let mut story = story();
    of_team(&mut story, "t", &ask(10, 30));
    let other = of_team(&mut story, "u", &ask(10, 30));
    assert!(matches!(story.error(&other), CommandError::Invalid { .. }));
    assert_eq!(
        (story.stands("other"), story.stands("own")),
        ((0, 0), (0, 40))
    );
    let run = of_team(&mut story, "u", &of_l(opens("r", "tokens 50")));
    assert!(matches!(story.error(&run), CommandError::Invalid { .. }));
    story.proved();
}

/// The run holds for the account, and not for a team that it is not of.
#[test]
fn a_request_within_a_run_needs_room_of_the_team_that_it_names() {
    let mut story = story();
    story.reserve(&of_l(opens("r", "tokens 200")));
    assert_eq!(story.stands("all"), (0, 200));
    let first = of_team(&mut story, "u", &of_l(within("r", 10, 30)));
    assert_eq!(
        (story.stands("all"), story.stands("other")),
        ((0, 200), (0, 40))
    );
    let second = of_team(&mut story, "u", &of_l(within("r", 10, 30)));
    assert_eq!(story.refusal(&second).cap.cap.as_str(), "other");
    story.settle(&first, 10, 20);
    assert_eq!(
        (story.stands("all"), story.stands("other")),
        ((30, 170), (30, 0))
    );
    story.proved();
}
