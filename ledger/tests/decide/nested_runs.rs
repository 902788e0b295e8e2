//! Runs within runs: taken out of the one around them, back to it at their end, and nothing to be spent from
//! once any of those around them has ended.

use seatbelt_schemas::{
    command::{Change, CommandError},
    event::{EventBody, KeyIssued, StoredEvent},
    ids::{KeyId, RunId, TeamId},
};

use crate::{
    audit::{chained, commits},
    story::{Ask, Call, GRACE_MS, Story, ask, opens, prove, within},
};

/// The key's own cap and its account's.
const BOTH: &[&str] = &[
    "all account tokens balance 1000",
    "mine key:k tokens balance 800",
];

fn run(id: &str) -> RunId {
    RunId::new(id).unwrap()
}

/// A run that is taken out of another one.
fn inner(id: &'static str, budget: &str, outer: &'static str) -> Ask {
    Ask {
        within: Some(outer),
        ..opens(id, budget)
    }
}

/// A request that must be in an open run.
fn strictly(id: &'static str, input: u64, output: u64) -> Ask {
    Ask {
        within: Some(id),
        ..within(id, input, output)
    }
}

/// What a cap counts: spent, held, limit.
fn counts(story: &Story, cap: &str) -> (u64, u64, u64) {
    let found = story.account().caps().iter();
    let found = found.filter(|known| known.spec.cap.as_str() == cap);
    let all: Vec<_> = found
        .map(|cap| (cap.spent(story.now_ms), cap.held, cap.limit()))
        .collect();
    assert_eq!(all.len(), 1, "{cap}");
    all[0]
}

#[track_caller]
fn has_ended(story: &Story, call: &Call, id: &str) {
    let error = story.error(call);
    assert_eq!(error, CommandError::RunEnded { run: run(id) });
}

#[track_caller]
fn is_invalid(story: &Story, call: &Call, remedy: &str) {
    let error = story.error(call).to_string();
    assert!(error.contains(remedy), "{error:?} does not say {remedy:?}");
}

#[test]
fn a_run_within_another_is_taken_out_of_it_and_out_of_nothing_else() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "tokens 100"));
    story.reserve(&inner("s", "tokens 60", "r"));
    assert_eq!(counts(&story, "run:r:tokens"), (0, 0, 40));
    assert_eq!(counts(&story, "run:s:tokens"), (0, 0, 60));
    assert_eq!(
        story.stands("all"),
        (0, 100),
        "still the whole of the first"
    );
    assert_eq!(story.stands("mine"), (0, 100));
    let too_much = story.reserve(&inner("t", "tokens 41", "r"));
    let refusal = story.refusal(&too_much);
    assert_eq!(refusal.cap.cap.as_str(), "run:r:tokens");
    let used = story.reserve(&strictly("s", 10, 20));
    story.settle(&used, 10, 5);
    assert_eq!(counts(&story, "run:s:tokens"), (15, 0, 60));
    assert_eq!(counts(&story, "run:r:tokens"), (0, 0, 40));
    assert_eq!(story.stands("all"), (15, 85));
}

#[test]
fn what_is_left_goes_back_to_the_innermost_run_around_it_that_is_open() {
    let mut story = Story::new(BOTH);
    let outer = story.reserve(&opens("r", "tokens 100"));
    let middle = story.reserve(&inner("s", "tokens 60", "r"));
    let innermost = story.reserve(&inner("t", "tokens 30", "s"));
    let used = story.reserve(&strictly("t", 5, 15));
    story.settle(&used, 5, 5);
    story.release(&middle);
    assert_eq!(
        counts(&story, "run:r:tokens"),
        (0, 0, 70),
        "its 30 and no more"
    );
    assert_eq!(story.stands("all"), (10, 90));
    story.release(&innermost);
    assert_eq!(
        counts(&story, "run:r:tokens"),
        (0, 0, 90),
        "all but what was spent"
    );
    story.release(&outer);
    assert_eq!(
        (story.stands("all"), story.stands("mine")),
        ((10, 0), (10, 0))
    );
}

/// Else whoever has a run with little money could keep all tokens from everybody else, and pay nothing.
#[test]
fn a_run_takes_nothing_aside_that_the_run_around_it_does_not_limit() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "requests 10"));
    let more = story.reserve(&inner("s", "requests 1 tokens 800", "r"));
    is_invalid(&story, &more, "run r has no budget in tokens");
    assert_eq!(story.stands("all"), (0, 0));
    story.reserve(&inner("s", "requests 1", "r"));
    assert_eq!(counts(&story, "run:r:requests"), (0, 0, 9));
}

#[test]
fn a_run_gets_nothing_from_those_inside_an_earlier_one_of_its_name() {
    let mut story = Story::new(BOTH);
    let outer = story.reserve(&opens("r", "tokens 100"));
    let inside = story.reserve(&inner("s", "tokens 60", "r"));
    story.release(&outer);
    let again = story.reserve(&opens("r", "tokens 10"));
    is_invalid(&story, &again, "runs inside from before");
    story.release(&inside);
    story.reserve(&opens("r", "tokens 10"));
    assert_eq!(counts(&story, "run:r:tokens"), (0, 0, 10));
    assert_eq!(story.stands("all"), (0, 10));
}

#[test]
fn a_request_that_is_still_open_keeps_its_hold_when_its_run_closes() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "tokens 100"));
    let middle = story.reserve(&inner("s", "tokens 60", "r"));
    let open = story.reserve(&strictly("s", 10, 20));
    story.release(&middle);
    assert_eq!(counts(&story, "run:r:tokens"), (0, 0, 70));
    assert_eq!(story.stands("all"), (0, 100));
    story.settle(&open, 10, 2);
    assert_eq!(story.stands("all"), (12, 70));
}

#[test]
fn nothing_is_spent_from_a_run_once_it_or_one_around_it_has_ended() {
    let mut story = Story::new(BOTH);
    let outer = story.reserve(&opens("r", "tokens 100"));
    story.reserve(&inner("s", "tokens 60", "r"));
    story.release(&outer);
    let late = story.reserve(&strictly("s", 1, 1));
    has_ended(&story, &late, "r");
    let late = story.reserve(&strictly("r", 1, 1));
    has_ended(&story, &late, "r");
    let late = story.reserve(&inner("t", "tokens 1", "s"));
    has_ended(&story, &late, "r");
    assert_eq!(
        story.stands("all"),
        (0, 60),
        "the inner one holds until it ends too"
    );
    let label = story.reserve(&within("r", 1, 1));
    story.grant(&label); // without the word a run that has ended is a label, as it always was
}

#[test]
fn a_request_that_waits_in_a_run_is_told_when_that_ends() {
    let mut story = Story::new(BOTH);
    let outer = story.reserve(&opens("r", "tokens 30"));
    story.reserve(&strictly("r", 10, 20));
    let waits = story.reserve(&Ask {
        wait_ms: 5_000,
        ..strictly("r", 5, 5)
    });
    story.release(&outer);
    has_ended(&story, &waits, "r");
}

#[test]
fn a_run_within_another_keeps_to_its_key_its_time_and_its_meters() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "tokens 100 requests 5"));
    let narrow = story.reserve(&inner("s", "tokens 60", "r"));
    is_invalid(&story, &narrow, "give an amount of requests too");
    let longer = story.reserve(&Ask {
        life_ms: 600_001,
        ..inner("s", "tokens 60 requests 1", "r")
    });
    is_invalid(&story, &longer, "ends before");
    let other = story.reserve(&Ask {
        key: "l",
        ..inner("s", "tokens 60 requests 1", "r")
    });
    is_invalid(&story, &other, "opened by another key");
    let odd = story.reserve(&Ask {
        within: Some("r"),
        ..within("s", 1, 1)
    });
    is_invalid(&story, &odd, "the same id");
    story.reserve(&inner("s", "tokens 60 requests 5", "r"));
    assert_eq!(
        counts(&story, "run:r:requests"),
        (0, 0, 0),
        "none of its own left"
    );
    let none = story.reserve(&strictly("r", 1, 1));
    assert_eq!(story.refusal(&none).cap.cap.as_str(), "run:r:requests");
}

#[test]
fn a_run_within_another_is_paid_by_the_team_that_pays_for_that_one() {
    let mut story = Story::new(&[
        "old team:t tokens balance 100",
        "new team:u tokens balance 100",
    ]);
    let joins = |team: &str| {
        Change::IssueKey(KeyIssued {
            key: KeyId::new("k").unwrap(),
            team: Some(TeamId::new(team).unwrap()),
            secret_sha256: None,
        })
    };
    story.change(joins("t"));
    story.reserve(&opens("r", "tokens 80"));
    story.change(joins("u"));
    let inside = story.reserve(&inner("s", "tokens 50", "r"));
    assert_eq!(
        (story.stands("old"), story.stands("new")),
        ((0, 80), (0, 0))
    );
    story.release(&inside);
    assert_eq!(
        (story.stands("old"), story.stands("new")),
        ((0, 80), (0, 0))
    );
}

#[test]
fn a_budget_that_is_said_to_come_from_elsewhere_is_found() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("q", "tokens 100"));
    story.reserve(&opens("r", "tokens 100"));
    story.reserve(&inner("s", "tokens 60", "r"));
    story.reserve(&inner("t", "tokens 60", "r")); // refused
    prove(story.journal()).unwrap();
    for (kind, other) in [("s", None), ("s", Some("q")), ("t", None), ("t", Some("q"))] {
        let mut commits = commits(story.journal());
        for stored in commits.iter_mut().flat_map(|commit| &mut commit.events) {
            let mut event = stored.event.clone();
            let (scopes, within) = match &mut event.body {
                EventBody::Reserved(data) => (&data.scopes, &mut data.within),
                EventBody::Refused(data) => (&data.scopes, &mut data.within),
                _ => continue,
            };
            if scopes.run == Some(run(kind)) {
                *within = other.map(run);
                *stored = StoredEvent::new(event);
            }
        }
        prove(&chained(commits)).expect_err("it must be found");
    }
}

#[test]
fn runs_lie_no_deeper_than_they_may() {
    let mut story = Story::new(BOTH);
    let ids = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    story.reserve(&opens(ids[0], "tokens 100"));
    for pair in ids.windows(2).take(7) {
        let opened = story.reserve(&inner(pair[1], "tokens 50", pair[0]));
        story.grant(&opened);
    }
    let too_deep = story.reserve(&inner("i", "tokens 50", "h"));
    is_invalid(&story, &too_deep, "8 deep already");
    assert_eq!(story.account().runs().len(), 8);
}

#[test]
fn a_run_tells_how_it_stands_and_what_is_inside() {
    let mut story = Story::new(BOTH);
    let outer = story.reserve(&opens("r", "tokens 100"));
    story.reserve(&inner("s", "tokens 60", "r"));
    story.reserve(&inner("t", "tokens 20", "s"));
    let account = story.account();
    let caps = |id: &str| -> Vec<_> {
        let run = run(id);
        let caps = account.standings(None, Some(&run), story.now_ms);
        caps.map(|cap| (cap.cap.to_string(), cap.limit)).collect()
    };
    assert_eq!(caps("r"), [("run:r:tokens".to_owned(), 40)]);
    let found = account.run_standing(&run("r")).unwrap();
    let inside = account.runs_inside(&run("r"));
    assert_eq!(inside, [run("t"), run("s")], "the innermost first");
    assert_eq!(found.reservation, outer.reservation());
    let innermost = account.run_standing(&run("t")).unwrap();
    assert_eq!(innermost.within, [run("s"), run("r")]);
    assert_eq!((account.run_standing(&run("x")), caps("x")), (None, vec![]));
    story.release(&outer);
    let account = story.account();
    assert_eq!(account.run_standing(&run("r")), None);
    assert_eq!(account.runs_inside(&run("r")), inside, "they are open yet");
}

#[test]
fn a_run_and_those_within_it_end_by_their_time_with_nothing_held() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "tokens 100"));
    story.reserve(&inner("s", "tokens 60", "r"));
    let used = story.reserve(&strictly("s", 1, 9));
    story.settle(&used, 1, 9);
    story.at(600_000 + GRACE_MS + 1);
    assert_eq!(
        (story.stands("all"), story.stands("mine")),
        ((10, 0), (10, 0))
    );
    assert!(story.account().runs().is_empty());
}

#[test]
fn the_next_writer_knows_what_is_within_what() {
    let mut story = Story::new(BOTH);
    let outer = story.reserve(&opens("r", "tokens 100"));
    story.reserve(&inner("s", "tokens 60", "r"));
    story.restart();
    story.release(&outer);
    let late = story.reserve(&strictly("s", 1, 1));
    has_ended(&story, &late, "r");
    let free = story.reserve(&ask(1, 1));
    story.grant(&free);
}
