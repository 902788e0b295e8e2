//! Windows: retry times are exact to the second, for any spends under any resetting window.

use proptest::{collection::vec, prelude::*, sample::select};

use seatbelt_schemas::window::{Period, Window};

use crate::story::{START_MS, Story, ask};

/// Spends `(ms after the one before, tokens)` under one cap, then asks for `need`. A refusal must fit at
/// the second it promises and not one second before.
fn promise_is_exact(
    window: &str,
    limit: u64,
    spends: &[(u64, u64)],
    need: u64,
) -> Result<(), TestCaseError> {
    let mut story = Story::new(&[&format!("w account tokens {window} {limit}")]);
    let mut after_ms = 0;
    for (step_ms, tokens) in spends {
        after_ms += step_ms;
        story.at(after_ms);
        let call = story.reserve(&ask(*tokens, 0));
        if story.account().open().contains_key(&call.reservation()) {
            story.settle(&call, *tokens, 0);
        }
    }
    let call = story.reserve(&ask(need, 0));
    if story.account().open().contains_key(&call.reservation()) {
        return Ok(());
    }
    let refusal = story.refusal(&call);
    let resets_at_ms = refusal.resets_at_ms.expect("a window resets");
    let retry_after = (resets_at_ms - story.now_ms).div_ceil(1000);
    prop_assert!(retry_after >= 1);
    let promised_ms = story.now_ms + retry_after * 1000 - START_MS;
    if retry_after > 1 {
        story.at(promised_ms - 1000);
        let early = story.reserve(&ask(need, 0));
        prop_assert!(
            !story.account().open().contains_key(&early.reservation()),
            "fits a second earlier"
        );
    }
    story.at(promised_ms);
    let kept = story.reserve(&ask(need, 0));
    prop_assert!(
        story.account().open().contains_key(&kept.reservation()),
        "does not fit when promised"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_rolling_window_keeps_its_retry_time(
        seconds in prop_oneof![1..10u64, 30..100u64, 3000..4000u64],
        spends in vec((0..70_000u64, 1..60u64), 1..20), need in 1..=100u64,
    ) {
        promise_is_exact(&format!("rolling:{seconds}"), 100, &spends, need)?;
    }

    #[test]
    fn a_calendar_window_keeps_its_retry_time(
        window in select(vec!["hour", "day", "week", "month"]),
        spends in vec((0..40_000_000u64, 1..60u64), 1..10), need in 1..=100u64,
    ) {
        promise_is_exact(window, 100, &spends, need)?;
    }
}

#[track_caller]
fn resets(window: &str, after_ms: u64) {
    let mut story = Story::new(&[&format!("w account tokens {window} 10")]);
    story.spend(&ask(10, 0), 10, 0);
    story.skip();
    story.reserve(&ask(1, 0));
    story.then(&[&format!("refused spent by w until {after_ms}")]);
    story.at(after_ms - 1);
    story.reserve(&ask(1, 0));
    story.at(after_ms);
    story.reserve(&ask(1, 0));
    story.then(&[
        &format!("refused spent by w until {after_ms}"),
        "reserved 1+0",
    ]);
}

#[test]
fn calendar_windows_reset_at_their_borders_in_utc() {
    let hour = 3_600_000; // the story starts on Friday the 20th of November at noon
    resets("hour", hour);
    resets("day", 12 * hour);
    resets("week", (2 * 24 + 12) * hour);
    resets("month", (10 * 24 + 12) * hour);
    resets("rolling:3600", 3_660_000);
    resets("rolling:1", 1017);
}

/// What is spent in the last millisecond before a border counts until then and not after; what is spent at the
/// border counts to the other side.
#[track_caller]
fn begins_anew(window: &str, border_ms: u64) {
    let border = border_ms - START_MS;
    let mut story = Story::new(&[&format!("w account tokens {window} 10")]);
    story.at(border - 1);
    story.spend(&ask(10, 0), 10, 0);
    story.skip();
    story.reserve(&ask(1, 0));
    story.then(&[&format!("refused spent by w until {border}")]);
    story.at(border);
    assert_eq!(story.stands("w"), (0, 0), "{window} at {border_ms}");
    story.spend(&ask(10, 0), 10, 0);
    story.skip();
    story.reserve(&ask(1, 0));
    let length = Window::Calendar {
        period: period(window),
    }
    .length_ms(border_ms);
    let next = border + length.expect("it ends");
    story.then(&[&format!("refused spent by w until {next}")]);
    story.at(next - 1);
    assert_eq!(story.stands("w"), (10, 0), "{window} before {next}");
    story.at(next);
    assert_eq!(story.stands("w"), (0, 0), "{window} at {next}");
}

fn period(window: &str) -> Period {
    match window {
        "day" => Period::Day,
        "week" => Period::Week,
        "month" => Period::Month,
        other => panic!("no period {other}"),
    }
}

/// By UTC, so that nobody's summer time makes a day of 23 or 25 hours.
#[test]
fn windows_begin_anew_at_the_ends_of_months_and_years_and_when_clocks_change() {
    begins_anew("month", 1_796_083_200_000); // 2026-12-01: the end of the story's own month
    begins_anew("month", 1_798_761_600_000); // 2027-01-01: the end of a year
    begins_anew("month", 1_801_440_000_000); // 2027-02-01: 31 days
    begins_anew("month", 1_803_859_200_000); // 2027-03-01: February
    begins_anew("month", 1_835_481_600_000); // 2028-03-01: February of a leap year
    begins_anew("month", 4_107_542_400_000); // 2100-03-01: a century that is no leap year
    begins_anew("month", 13_574_649_600_000); // 2400-03-01: a century that is one
    begins_anew("week", 1_861_920_000_000); // 2029-01-01: a week that ends with a year, on a Sunday
    begins_anew("day", 1_835_395_200_000); // 2028-02-29: the 29th of February begins
    begins_anew("day", 1_835_481_600_000); // 2028-03-01: and ends
    begins_anew("day", 1_805_068_800_000); // 2027-03-15: clocks of New York went forward in it
    begins_anew("day", 1_806_278_400_000); // 2027-03-29: clocks of Berlin did in it
    begins_anew("day", 1_825_027_200_000); // 2027-11-01: and went back in it
}

#[test]
fn spend_belongs_to_the_moment_of_its_reservation() {
    let mut story = Story::new(&[
        "day account tokens day 100",
        "minute account tokens rolling:60 100",
    ]);
    let call = story.reserve(&ask(10, 20));
    story.at(12 * 3_600_000); // midnight has come
    let other = story.reserve(&ask(5, 5));
    story.settle(&call, 10, 20);
    story.settle(&other, 5, 5);
    assert_eq!(
        (story.stands("day"), story.stands("minute")),
        ((10, 0), (10, 0))
    );
}

#[test]
fn open_holds_never_age_out() {
    let mut story = Story::new(&["minute account tokens rolling:60 30"]);
    let mut patient = ask(10, 20);
    patient.life_ms = 3_600_000;
    let call = story.reserve(&patient);
    story.at(600_000);
    assert_eq!(story.stands("minute"), (0, 30));
    story.reserve(&ask(1, 0));
    story.then(&["reserved 10+20", "refused held by minute"]);
    story.settle(&call, 10, 20);
    assert_eq!(story.stands("minute"), (0, 0));
}

#[test]
fn a_clock_that_goes_back_moves_no_event_back_and_frees_nothing() {
    let mut story = Story::new(&["minute account tokens rolling:60 30"]);
    story.at(90_000);
    story.spend(&ask(10, 20), 10, 20);
    story.now_ms -= 60_000;
    story.skip();
    story.reserve(&ask(10, 20));
    story.then(&["refused spent by minute until 151000"]);
    let events = story.events();
    assert_eq!(events.last().unwrap().event.at_ms, START_MS + 90_000);
}
