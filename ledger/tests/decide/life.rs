//! The life of a reservation: every way in which it changes and ends, and what each charges.

use seatbelt_ledger::{api::Ack, writer::Request};
use seatbelt_schemas::{
    command::{Change, CommandError},
    event::{OnUnknown, UsageSource},
    ids::ModelId,
    position::Position,
    price::{Price, Rates},
};

use crate::story::{Ask, GRACE_MS, Story, ask, cap_id};

const ALL: &[&str] = &["all account tokens balance 100"];

fn last(story: &Story) -> Position {
    story.events().last().unwrap().event.position
}

#[test]
fn a_settle_at_the_hold_charges_the_hold() {
    let mut story = Story::new(ALL);
    story.spend(&ask(10, 20), 10, 20);
    story.then(&["reserved 10+20", "settled 10+20"]);
    assert_eq!(story.stands("all"), (30, 0));
}

#[test]
fn a_settle_below_the_hold_gives_the_rest_back() {
    let mut story = Story::new(ALL);
    story.spend(&ask(10, 80), 10, 5);
    assert_eq!(story.stands("all"), (15, 0));
    story.spend(&ask(10, 75), 0, 0);
    assert_eq!(story.stands("all"), (15, 0));
}

#[test]
fn a_settle_above_the_hold_is_charged_in_full_and_flagged() {
    let mut story = Story::new(ALL);
    story.price("m", 2, 3);
    story.skip();
    story.spend(
        &Ask {
            model: Some("m"),
            ..ask(10, 20)
        },
        5,
        120,
    );
    story.then(&[
        "reserved 10+20 for 80",
        "settled 5+120 for 370",
        "overrun 0+100 for 290",
        "crossed 50% of all",
        "crossed 80% of all",
        "crossed 100% of all",
    ]);
    assert_eq!(story.stands("all"), (125, 0));
    story.reserve(&ask(0, 1));
    story.then(&["refused spent by all"]);
}

#[test]
fn a_release_gives_everything_back() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&ask(10, 20));
    story.release(&call);
    story.then(&["reserved 10+20", "released"]);
    assert_eq!(story.stands("all"), (0, 0));
}

#[test]
fn a_resize_up_takes_more_only_if_it_fits() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&ask(10, 20));
    story.reserve(&ask(10, 20));
    story.resize(&call, 10, 60);
    story.then(&["reserved 10+20", "reserved 10+20", "resized to 10+60"]);
    let short = story.resize(&call, 10, 61);
    let (cap, meter) = (cap_id("all"), seatbelt_schemas::meter::Meter::Tokens);
    assert_eq!(
        story.error(&short),
        CommandError::Short {
            cap,
            meter,
            available: 0,
            requested: 1
        }
    );
    story.then(&[]);
    assert_eq!(story.stands("all"), (0, 100));
}

/// As a stream does that has no maximum of its own.
#[test]
fn a_hold_that_grows_in_slices_ends_at_the_tightest_cap_and_settles_once() {
    let mut story = Story::new(&[
        "all account tokens balance 100",
        "mine key:k output_tokens balance 75",
    ]);
    let call = story.reserve(&ask(10, 20));
    let (mut output, mut slice) = (20, 20);
    loop {
        let grown = story.resize(&call, 10, output + slice);
        match story.answer(&grown) {
            Some(Ok(_)) => output += slice,
            Some(Err(CommandError::Short { available: 0, .. })) => break,
            Some(Err(CommandError::Short { available, .. })) => slice = *available,
            other => panic!("{other:?}"),
        }
    }
    story.then(&[
        "reserved 10+20",
        "resized to 10+40",
        "resized to 10+60",
        "resized to 10+75",
    ]);
    assert_eq!(
        (story.stands("all"), story.stands("mine")),
        ((0, 85), (0, 75))
    );
    story.settle(&call, 10, 70);
    assert_eq!(
        (story.stands("all"), story.stands("mine")),
        ((80, 0), (70, 0))
    );
}

/// Work in progress goes before work that has not begun, which keeps its place.
#[test]
fn a_hold_grows_before_those_who_wait() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&ask(10, 20));
    let waits = |story: &mut Story, output| {
        let ask = Ask {
            wait_ms: 60_000,
            ..ask(10, output)
        };
        story.reserve(&ask)
    };
    let (first, second) = (waits(&mut story, 80), waits(&mut story, 1));
    story.resize(&call, 10, 60);
    assert!(story.answer(&first).is_none() && story.answer(&second).is_none());
    story.then(&["reserved 10+20", "resized to 10+60"]);
    story.settle(&call, 0, 0);
    story.then(&["settled 0+0", "reserved 10+80"]);
    assert!(story.answer(&second).is_none());
    story.release(&first);
    story.then(&["released", "reserved 10+1"]);
}

#[test]
fn a_resize_down_always_passes_also_above_a_lowered_cap() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&ask(10, 80));
    story.cap("all account tokens balance 20");
    story.skip();
    story.resize(&call, 10, 50);
    story.then(&["resized to 10+50"]);
    assert_eq!(story.stands("all"), (0, 60));
    story.settle(&call, 10, 50);
    assert_eq!(story.stands("all"), (60, 0));
}

#[test]
fn a_hold_is_charged_when_its_deadline_and_the_grace_have_passed() {
    let mut story = Story::new(ALL);
    story.reserve(&Ask {
        life_ms: 5000,
        ..ask(10, 40)
    });
    story.at(5000 + GRACE_MS - 1);
    story.then(&["reserved 10+40"]);
    story.at(5000 + GRACE_MS);
    story.then(&["expired charging 10+40", "crossed 50% of all"]);
    assert_eq!(story.stands("all"), (50, 0));
}

#[test]
fn a_hold_is_given_back_at_its_deadline_where_that_is_the_policy() {
    let mut story = Story::new(ALL);
    story.reserve(&Ask {
        life_ms: 5000,
        on_unknown: OnUnknown::Release,
        ..ask(10, 20)
    });
    story.at(6000);
    story.then(&["reserved 10+20", "expired charging 0+0"]);
    assert_eq!(story.stands("all"), (0, 0));
}

#[test]
fn a_hold_expires_also_under_the_writer_that_comes_after() {
    let mut story = Story::new(ALL);
    story.reserve(&Ask {
        life_ms: 5000,
        ..ask(10, 20)
    });
    story.restart();
    story.at(6000);
    story.then(&["reserved 10+20", "writer_started", "expired charging 10+20"]);
}

#[test]
fn a_settle_after_expiry_corrects_the_charge_to_the_truth() {
    for (policy, charged) in [(OnUnknown::ChargeHold, 30), (OnUnknown::Release, 0)] {
        let mut story = Story::new(ALL);
        let call = story.reserve(&Ask {
            life_ms: 5000,
            on_unknown: policy,
            ..ask(10, 20)
        });
        story.at(6000);
        assert_eq!(story.stands("all"), (charged, 0));
        story.skip();
        story.settle(&call, 10, 5);
        story.then(&["settled 10+5 late"]);
        assert_eq!(story.stands("all"), (15, 0));
        let again = story.settle(&call, 10, 5);
        let position = last(&story);
        assert_eq!(
            story.error(&again),
            CommandError::AlreadyResolved {
                reservation: call.reservation(),
                position
            }
        );
    }
}

#[test]
fn a_late_settle_above_the_hold_is_an_overrun_too() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&Ask {
        life_ms: 5000,
        ..ask(10, 10)
    });
    story.at(6000);
    story.skip();
    story.settle(&call, 10, 25);
    story.then(&["settled 10+25 late", "overrun 0+15"]);
    assert_eq!(story.stands("all"), (35, 0));
}

#[test]
fn a_late_settle_takes_nothing_from_a_cap_that_was_set_after_the_expiry() {
    let mut story = Story::new(&[]);
    let call = story.reserve(&Ask {
        life_ms: 5000,
        ..ask(10, 80)
    });
    story.at(6000);
    story.cap("all account tokens balance 100");
    story.spend(&ask(10, 40), 10, 40);
    story.settle(&call, 5, 0);
    let (spent, held) = story.stands("all");
    assert!(spent >= 50, "what others spent stays spent, not {spent}");
    assert_eq!(held, 0);
}

#[test]
fn a_reservation_ends_once() {
    let mut story = Story::new(ALL);
    let (first, second) = (story.reserve(&ask(10, 20)), story.reserve(&ask(10, 20)));
    story.settle(&first, 10, 5);
    let settled = last(&story);
    story.release(&second);
    let released = last(&story);
    story.skip();
    for (call, position) in [(&first, settled), (&second, released)] {
        let reservation = call.reservation();
        let ended = CommandError::AlreadyResolved {
            reservation,
            position,
        };
        for again in [
            story.settle(call, 10, 5),
            story.release(call),
            story.resize(call, 1, 1),
        ] {
            assert_eq!(story.error(&again), ended);
        }
    }
    story.at(3_600_000);
    story.then(&[]);
    assert_eq!(story.stands("all"), (15, 0));
}

#[test]
fn what_was_never_reserved_cannot_be_ended() {
    let mut story = Story::new(ALL);
    let refused = story.reserve(&ask(10, 200));
    for call in [
        story.settle(&refused, 1, 1),
        story.release(&refused),
        story.resize(&refused, 1, 1),
    ] {
        assert!(matches!(
            story.error(&call),
            CommandError::UnknownReservation { .. }
        ));
    }
}

#[test]
fn a_command_out_of_bounds_changes_nothing() {
    let mut story = Story::new(ALL);
    story.skip();
    for odd in [
        ask(u64::MAX, 1),
        ask(1, u64::MAX),
        Ask {
            life_ms: 0,
            ..ask(1, 1)
        },
        Ask {
            life_ms: u64::MAX / 4,
            ..ask(1, 1)
        },
    ] {
        let call = story.reserve(&odd);
        assert!(matches!(story.error(&call), CommandError::Invalid { .. }));
    }
    let cap = cap_id("all");
    let call = story.change(Change::Credit {
        cap,
        amount: u64::MAX,
        reason: None,
    });
    assert!(matches!(story.error(&call), CommandError::Invalid { .. }));
    story.then(&[]);
}

#[test]
fn usage_whose_kinds_are_not_known_is_charged_at_the_dearest_rate() {
    let mut story = Story::new(&["money account cost balance 100000"]);
    let rates = Rates {
        cache_write: 5000,
        reasoning: 9000,
        ..Rates::flat(1000, 2000)
    };
    let model = ModelId::new("priced").unwrap();
    story.change(Change::SetPrice(Price::of(model, rates)));
    story.skip();
    for (source, told) in [
        (UsageSource::Upstream, "settled 4+6 for 16"),
        (UsageSource::Counted, "settled 4+6 for 74"),
        (UsageSource::Hold, "settled 10+20 for 230"),
    ] {
        let call = story.reserve(&Ask {
            model: Some("priced"),
            ..ask(10, 20)
        });
        let mut command = story.settle_command(&call, 4, 6);
        command.report.source = source;
        story.send(command.id, Request::Settle(command, Ack::Durable));
        story.then(&["reserved 10+20 for 230", told]);
    }
    story.proved();
}
