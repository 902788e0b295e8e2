//! A cap that stands above its limit stops the runs under it: what a run holds there is set aside no more.

use bytes::Bytes;
use seatbelt_schemas::{
    command::{Change, CommandError},
    event::{Event, EventBody, OnShort, StoredEvent},
};

use crate::{
    audit::{chained, commits},
    story::{Ask, Story, ask, cap_id, opens, prove, within},
};

const ALL: &[&str] = &["all account tokens balance 100"];

#[test]
fn a_lowered_cap_stops_an_open_run_at_the_new_limit() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    story.cap("all account tokens balance 20");
    story.skip();
    story.reserve(&within("r", 0, 21));
    story.spend(&within("r", 0, 15), 0, 15);
    let open = story.reserve(&within("r", 0, 5));
    story.reserve(&within("r", 0, 1));
    story.reserve(&ask(0, 1));
    assert_eq!(story.stands("all"), (15, 35));
    story.then(&[
        "refused spent by all",
        "reserved 0+15",
        "settled 0+15",
        "crossed 50% of all",
        "reserved 0+5",
        "refused held by all",
        "refused held by all",
    ]);
    story.settle(&open, 0, 2);
    story.spend(&within("r", 0, 3), 0, 3);
    story.reserve(&within("r", 0, 1));
    assert_eq!(story.stands("all"), (20, 30), "never above the new limit");
}

#[test]
fn a_cap_of_nothing_stops_all_at_once_and_a_raised_one_lets_them_go_on() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.cap("all account tokens balance 0");
    story.skip();
    let call = story.reserve(&within("r", 0, 1));
    assert_eq!(story.refusal(&call).cap.cap.as_str(), "all");
    story.cap("all account tokens balance 100");
    story.spend(&within("r", 0, 50), 0, 50);
    story.release(&run);
    assert_eq!(story.stands("all"), (50, 0));
}

#[test]
fn what_other_runs_hold_stands_before_what_a_lowered_cap_leaves() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&opens("r", "tokens 60"));
    story.reserve(&opens("s", "tokens 40"));
    story.cap("all account tokens balance 50");
    story.skip();
    story.reserve(&within("s", 0, 1));
    story.reserve(&within("r", 0, 11));
    let fits = story.reserve(&within("r", 0, 10));
    let waits = story.reserve(&Ask {
        wait_ms: 2000,
        ..within("s", 0, 40)
    });
    story.then(&[
        "refused held by all",
        "refused held by all",
        "reserved 0+10",
    ]);
    story.settle(&fits, 0, 10);
    assert!(story.answer(&waits).is_none());
    story.release(&first);
    story.then(&["settled 0+10", "released", "reserved 0+40"]);
    assert_eq!(story.stands("all"), (10, 40));
}

#[test]
fn a_key_under_a_lowered_cap_of_its_own_is_stopped_alone() {
    let mut story = Story::new(&[
        "all account tokens balance 200",
        "mine key:k tokens balance 100",
    ]);
    story.reserve(&opens("r", "tokens 50"));
    story.reserve(&Ask {
        key: "l",
        ..opens("s", "tokens 50")
    });
    story.cap("mine key:k tokens balance 10");
    story.skip();
    story.reserve(&within("r", 0, 11));
    story.reserve(&Ask {
        key: "l",
        ..within("s", 0, 50)
    });
    story.then(&["refused spent by mine", "reserved 0+50"]);
}

/// Of what was set aside, nobody takes more than the truth left.
#[test]
fn an_overrun_beside_a_run_leaves_it_what_the_cap_has() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 90"));
    story.spend(&ask(0, 10), 0, 12);
    story.skip();
    story.reserve(&within("r", 0, 89));
    story.reserve(&within("r", 0, 88));
    story.then(&["refused spent by all", "reserved 0+88"]);
}

#[test]
fn a_soft_cap_stops_no_run() {
    let mut story = Story::new(&["all account tokens balance 100 soft"]);
    story.reserve(&opens("r", "tokens 50"));
    story.cap("all account tokens balance 10 soft");
    story.skip();
    story.reserve(&within("r", 0, 50));
    story.then(&["reserved 0+50"]);
}

#[test]
fn a_hold_grows_and_is_clamped_within_what_a_lowered_cap_leaves() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    let call = story.reserve(&within("r", 0, 5));
    story.cap("all account tokens balance 20");
    story.skip();
    let grown = story.resize(&call, 0, 21);
    let CommandError::Short {
        available,
        requested,
        ..
    } = story.error(&grown)
    else {
        panic!("it does not grow");
    };
    assert_eq!((available, requested), (15, 16));
    story.resize(&call, 0, 12);
    story.resize(&call, 0, 8);
    let clamped = story.reserve(&Ask {
        on_short: OnShort::Clamp,
        ..within("r", 2, 30)
    });
    assert!(story.grant(&clamped).clamped);
    story.then(&["resized to 0+12", "resized to 0+8", "reserved 2+10"]);
}

/// A journal in which the last event of a kind says something else.
fn told(story: &Story, kind: &str, change: impl Fn(&mut EventBody)) -> Vec<Bytes> {
    let mut commits = commits(story.journal());
    let events = commits.iter_mut().flat_map(|commit| &mut commit.events);
    let mut of_kind = events.filter(|stored| stored.event.body.kind() == kind);
    let stored = of_kind.next_back().unwrap();
    let mut event: Event = stored.event.clone();
    change(&mut event.body);
    *stored = StoredEvent::new(event);
    chained(commits)
}

fn uncovered(to: bool) -> impl Fn(&mut EventBody) {
    move |body| match body {
        EventBody::Reserved(data) => data.uncovered = to,
        EventBody::Resized(data) => data.uncovered = to,
        EventBody::Refused(data) => data.uncovered = to,
        _ => unreachable!("only these say so"),
    }
}

/// What earlier builds let pass still proves, as they wrote it; and nobody says that it counted where it did not.
#[test]
fn what_was_decided_before_is_decided_so_again() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    story.cap("all account tokens balance 20");
    let call = story.reserve(&within("r", 0, 20));
    story.resize(&call, 0, 10);
    for kind in ["reserved", "resized"] {
        prove(&told(&story, kind, uncovered(false))).unwrap();
    }
    story.reserve(&within("r", 0, 11));
    prove(&told(&story, "refused", uncovered(false))).unwrap_err();

    let mut calm = Story::new(ALL);
    calm.reserve(&opens("r", "tokens 50"));
    calm.reserve(&within("r", 0, 20));
    prove(&told(&calm, "reserved", uncovered(true))).unwrap_err();
}

#[test]
fn an_earlier_builds_run_went_on_past_a_lowered_cap() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    story.change(Change::RemoveCap {
        cap: cap_id("none"),
    });
    story.reserve(&within("r", 0, 30));
    let mut commits = commits(story.journal());
    // what the earlier build had before it is what this one has, but for the cap's new limit
    let lowered = {
        let mut other = Story::new(ALL);
        other.reserve(&opens("r", "tokens 50"));
        other.cap("all account tokens balance 20");
        crate::audit::commits(other.journal()).pop().unwrap()
    };
    let mut reserved = commits.pop().unwrap();
    commits.push(lowered);
    let at = reserved.events[0].event.position.next();
    reserved.first_position = at;
    let mut event = reserved.events[0].event.clone();
    event.position = at;
    if let EventBody::Reserved(data) = &mut event.body {
        data.caps[0].limit = 20;
    }
    reserved.events[0] = StoredEvent::new(event.clone());
    commits.push(reserved.clone());
    prove(&chained(commits.clone())).unwrap();
    uncovered(true)(&mut event.body);
    reserved.events[0] = StoredEvent::new(event);
    *commits.last_mut().unwrap() = reserved;
    prove(&chained(commits)).unwrap_err();
}
