//! Accounts that pay more: held and charged by the multiplier that a reservation was taken with.

use seatbelt_ledger::{
    api::{Ack, Reserve},
    writer::Request,
};
use seatbelt_schemas::{
    command::Change,
    ids::ModelId,
    price::{Price, Rates},
};

use crate::story::{Ask, Call, Story, ask};

fn story() -> Story {
    let mut story = Story::new(&["money account cost balance 100000"]);
    story.change(Change::SetPrice(Price {
        fee_per_request: Some(7),
        fee_per_tool_call: Some(100),
        ..Price::of(ModelId::new("m").unwrap(), Rates::flat(1_000, 1_000))
    }));
    story.skip();
    story
}

fn multiplied(story: &mut Story, ppm: u64) -> Call {
    story.change(Change::SetMultiplier { ppm })
}

fn priced() -> Ask {
    Ask {
        model: Some("m"),
        ..ask(10, 90)
    }
}

#[test]
fn an_account_is_held_and_charged_by_its_multiplier() {
    let mut story = story();
    multiplied(&mut story, 1_500_000);
    let command = Reserve {
        tool_calls: 2,
        ..story.command(&priced())
    };
    let call = story.send(command.id, Request::Reserve(command));
    let mut settle = story.settle_command(&call, 10, 20);
    settle.report.usage.tool_calls = 1;
    story.send(settle.id, Request::Settle(settle, Ack::Durable));
    story.then(&[
        "account_opened",
        // 1.5 x (100 + 7 + 200), and 1.5 x (30 + 7 + 100), each rounded up once
        "reserved 10+90 for 461",
        "settled 10+20 for 206",
    ]);
    story.proved();
}

#[test]
fn a_hold_keeps_the_multiplier_that_it_was_taken_with() {
    let mut story = story();
    let plain = story.reserve(&priced());
    multiplied(&mut story, 2_000_000);
    let dear = story.reserve(&priced());
    story.resize(&dear, 10, 40);
    story.restart();
    multiplied(&mut story, 1_000_000);
    story.settle(&plain, 10, 20);
    story.settle(&dear, 10, 20);
    let again = story.reserve(&priced());
    story.grant(&again);
    story.then(&[
        "reserved 10+90 for 107",
        "account_opened",
        "reserved 10+90 for 214",
        "resized to 10+40 for 114",
        "writer_started",
        "account_opened",
        "settled 10+20 for 37",
        "settled 10+20 for 74",
        "reserved 10+90 for 107",
    ]);
    story.proved();
}

#[test]
fn a_multiplier_that_is_none_or_is_there_already_changes_nothing() {
    let mut story = story();
    multiplied(&mut story, 1_000_000);
    for ppm in [0, 100_000_001] {
        let call = multiplied(&mut story, ppm);
        assert!(story.error(&call).to_string().contains("multiplier"));
    }
    story.then(&[]);
    multiplied(&mut story, 1_100_000);
    multiplied(&mut story, 1_100_000);
    story.then(&["account_opened"]);
    assert_eq!(story.account().multiplier_ppm(), Some(1_100_000));
    story.change(Change::OpenAccount);
    story.then(&[]);
    story.proved();
}
