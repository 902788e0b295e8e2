//! Calls of tools that the provider runs and charges for: held at their most, charged as reported.

use seatbelt_ledger::{
    api::{Ack, Reserve},
    writer::Request,
};
use seatbelt_schemas::{
    command::Change,
    event::{OnShort, UsageSource},
    ids::ModelId,
    price::{Price, Rates},
};

use crate::story::{Ask, Call, Story, ask};

/// A cap of so many nano-USD, and a price of 1 a token and 1,000 a call.
fn story(limit: u64) -> Story {
    let mut story = Story::new(&[&format!("money account cost balance {limit}")]);
    story.change(Change::SetPrice(Price {
        fee_per_tool_call: Some(1_000),
        ..Price::of(ModelId::new("m").unwrap(), Rates::flat(1_000, 1_000))
    }));
    story.skip();
    story
}

fn reserve(story: &mut Story, tool_calls: u64, on_short: OnShort) -> Call {
    let asked = Ask {
        model: Some("m"),
        on_short,
        ..ask(10, 90)
    };
    let command = Reserve {
        tool_calls,
        ..story.command(&asked)
    };
    story.send(command.id, Request::Reserve(command))
}

fn settle(story: &mut Story, call: &Call, tool_calls: u64, source: UsageSource) {
    let mut command = story.settle_command(call, 10, 20);
    command.report.usage.tool_calls = tool_calls;
    command.report.source = source;
    story.send(command.id, Request::Settle(command, Ack::Durable));
}

#[test]
fn calls_are_held_at_their_most_and_charged_as_they_were_reported() {
    let mut story = story(100_000);
    for (source, calls, told) in [
        (UsageSource::Upstream, 2, "settled 10+20 for 2030"),
        (UsageSource::Counted, 3, "settled 10+20 for 3030"),
        (UsageSource::Upstream, 0, "settled 10+20 for 30"),
        (UsageSource::Hold, 0, "settled 10+90 for 3100"),
    ] {
        let call = reserve(&mut story, 3, OnShort::Refuse);
        settle(&mut story, &call, calls, source);
        story.then(&["reserved 10+90 for 3100", told]);
    }
    story.proved();
}

#[test]
fn calls_above_the_most_are_charged_and_flagged() {
    let mut story = story(100_000);
    let call = reserve(&mut story, 3, OnShort::Refuse);
    settle(&mut story, &call, 5, UsageSource::Upstream);
    story.then(&[
        "reserved 10+90 for 3100",
        "settled 10+20 for 5030",
        "overrun 0+0 for 1930",
    ]);
    story.proved();
}

#[test]
fn calls_count_where_a_hold_is_clamped_or_changed() {
    let mut story = story(3_050);
    let call = reserve(&mut story, 3, OnShort::Refuse);
    story.then(&["refused spent by money"]);
    story.refusal(&call);
    let call = reserve(&mut story, 3, OnShort::Clamp);
    story.resize(&call, 10, 20);
    story.then(&["reserved 10+40 for 3050", "resized to 10+20 for 3030"]);
    assert_eq!(story.stands("money"), (0, 3_030));
    story.proved();
}

#[test]
fn more_calls_than_are_countable_are_no_command() {
    let mut story = story(100_000);
    let call = reserve(&mut story, u64::MAX, OnShort::Refuse);
    assert!(story.error(&call).to_string().contains("tool_calls"));
    let call = reserve(&mut story, 3, OnShort::Refuse);
    let mut command = story.settle_command(&call, 10, 20);
    command.report.usage.tool_calls = u64::MAX;
    let settled = story.send(command.id, Request::Settle(command, Ack::Durable));
    assert!(story.error(&settled).to_string().contains("tool_calls"));
    assert_eq!(story.account().open().len(), 1);
}
