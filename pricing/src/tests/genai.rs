//! What is read of lists in the format of genai-prices, and what leaves a model out.

use super::{book, day, genai, only, price, read, reason};
use crate::StatedRates;

fn model(prices: &str) -> String {
    format!(r#"{{"id": "m", "match": {{"equals": "m"}}, "prices": {prices}}}"#)
}

#[track_caller]
fn check(prices: &str, expected: &str) {
    assert_eq!(
        price(genai(&model(prices))),
        format!("price = {{ {expected} }}")
    );
}

#[track_caller]
fn check_reason(prices: &str, expected: &str) {
    let reason = reason(genai(&model(prices)));
    assert!(reason.contains(expected), "{reason}");
}

#[test]
fn rates_are_read_to_the_last_digit_and_rounded_up() {
    check(
        r#"{"input_mtok": 0.15, "cache_read_mtok": 0.003625, "output_mtok": 6e-1}"#,
        r#"input = "0.15", cached_input = "0.003625", output = "0.6""#,
    );
    check(
        r#"{"input_mtok": 0.30001999999999996, "output_mtok": 0.0000001}"#,
        r#"input = "0.30002", output = "0.000001""#,
    );
}

#[test]
fn writes_to_the_cache_keep_their_two_prices() {
    check(
        r#"{"input_mtok": 3, "cache_write_mtok": 3.75, "cache_write_1h_mtok": 6, "output_mtok": 15}"#,
        r#"input = "3", cache_write = "3.75", cache_write_long = "6", output = "15""#,
    );
    // one that the list does not tell costs the dearest known, where writes cost more than input at all
    check(
        r#"{"input_mtok": 4, "cache_write_mtok": 5, "output_mtok": 20}"#,
        r#"input = "4", cache_write = "5", cache_write_long = "10", output = "20""#,
    );
    check(
        r#"{"input_mtok": 4, "cache_write_mtok": 5, "cache_write_5m_mtok": 5.5, "cache_write_1h_mtok": 9, "output_mtok": 20}"#,
        r#"input = "4", cache_write = "5.5", cache_write_long = "9", output = "20""#,
    );
}

#[test]
fn tiers_and_fees_are_read() {
    check(
        r#"{"input_mtok": {"base": 1.25, "tiers": [{"start": 200000, "price": 2.5}]},
            "output_mtok": {"base": 10, "tiers": [{"start": 200000, "price": 15}, {"start": 400000, "price": 20}]},
            "output_reasoning_mtok": 12, "requests_kcount": 12}"#,
        r#"input = "1.25", output = "10", reasoning = "12", tiers = [{ above_input_tokens = 200000, input = "2.5", output = "15", reasoning = "12" }, { above_input_tokens = 400000, input = "2.5", output = "20", reasoning = "12" }], per_request = "0.012""#,
    );
}

#[test]
fn of_prices_by_the_hour_the_dearest_is_taken() {
    let hours = r#"{"constraint": {"start_time": "01:00:00Z", "end_time": "04:00:00Z"}, "prices": {"input_mtok": 0.3, "output_mtok": 0.5}}"#;
    let flat = r#"{"prices": {"input_mtok": 0.15, "output_mtok": 0.6}}"#;
    check(
        &format!("[{flat}, {hours}]"),
        r#"input = "0.3", output = "0.6""#,
    );
    // prices of some hours that a later price took the place of apply no more
    let later = r#"{"constraint": {"start_date": "2026-09-10"}, "prices": {"input_mtok": 0.1, "output_mtok": 0.2}}"#;
    check(
        &format!("[{flat}, {hours}, {later}]"),
        r#"input = "0.1", output = "0.2""#,
    );
    check(
        &format!("[{later}, {hours}]"),
        r#"input = "0.3", output = "0.5""#,
    );
}

#[test]
fn a_price_that_is_announced_counts_where_it_is_dearer_and_one_that_is_past_does_not() {
    let from = |day: &str, input: &str| {
        format!(
            r#"{{"constraint": {{"start_date": "{day}"}}, "prices": {{"input_mtok": {input}, "output_mtok": 9}}}}"#
        )
    };
    let first = r#"{"prices": {"input_mtok": 10, "output_mtok": 9}}"#;
    check(
        &format!("[{first}, {}]", from("2026-11-26", "2")),
        r#"input = "2", output = "9""#,
    );
    check(
        &format!(
            "[{first}, {}, {}]",
            from("2026-01-01", "2"),
            from("2026-12-01", "4")
        ),
        r#"input = "4", output = "9""#,
    );
    check(
        &format!(
            "[{first}, {}, {}]",
            from("2026-01-01", "2"),
            from("2026-12-01", "1")
        ),
        r#"input = "2", output = "9""#,
    );
    let book = book(genai(&model(&format!(
        "[{first}, {}]",
        from("2027-01-01", "20")
    ))));
    assert!(book.contains("each rate is the dearest"), "{book}");
}

#[test]
fn classes_keep_their_fields_and_cheaper_ones_are_told() {
    let list = genai(
        r#"{"id": "m", "prices": {"input_mtok": 2, "cache_read_mtok": 0.2, "output_mtok": 8}, "price_variants": [
            {"when": {"service_tier": "priority"}, "prices": {"input_mtok": 3}, "constraint": {"start_date": "2026-10-12"}},
            {"when": {"service_tier": "priority"}, "prices": {"input_mtok": 99, "output_mtok": 14}},
            {"when": {"service_tier": "flex"}, "prices": {"input_mtok": 1, "output_mtok": 4}},
            {"when": {"service_tier": "default"}, "prices": {}},
            {"when": {"speed": "fast"}, "prices": {"audio_hours": 3}},
            {"when": {"processing": "batch"}, "prices": {"input_mtok": 1}}]}"#,
    );
    let model = only(list);
    let [class] = &model.classes[..] else {
        panic!("{:?}", model.classes)
    };
    assert_eq!((class.field, &*class.value), ("service_tier", "priority"));
    // of each price the first variant that has it
    let rates = StatedRates {
        input: 3_000_000,
        cached_input: Some(200_000),
        output: 14_000_000,
        ..StatedRates::default()
    };
    assert_eq!(class.terms.rates, rates);
    for told in [
        "service_tier = flex: costs less",
        "speed = fast: audio_hours",
        "processing = batch",
    ] {
        assert!(
            model.notes.iter().any(|note| note.contains(told)),
            "{told}: {:?}",
            model.notes
        );
    }
}

#[test]
fn what_is_not_understood_leaves_the_model_out_by_name_and_reason() {
    let priced = |more: &str| format!(r#"{{"input_mtok": 2, "output_mtok": 8, {more}}}"#);
    check_reason(
        &priced(r#""output_image_mtok": 30"#),
        "output_image_mtok = 30 costs more than text",
    );
    check_reason(
        &priced(r#""input_image_mtok": 3"#),
        "input_image_mtok = 3 costs more than text",
    );
    check_reason(
        &priced(r#""audio_hours": 0.1"#),
        "audio_hours = 0.1 is a price that is not understood",
    );
    check_reason(
        &priced(r#""cache_read_mtok": {"base": 1, "steps": []}"#),
        "parts that are not understood",
    );
    check_reason(
        &priced(r#""cache_read_mtok": -1"#),
        "cache_read_mtok is no price",
    );
    check_reason(
        &priced(r#""cache_read_mtok": "free""#),
        "cache_read_mtok is no price",
    );
    check_reason(
        &priced(r#""cache_read_mtok": 1000001"#),
        "cache_read_mtok is no price",
    );
    check_reason(
        &priced(r#""cache_read_mtok": {"base": 1, "tiers": [{"start": 0, "price": 2}]}"#),
        "a tier above 0",
    );
    check_reason(r#"{"output_mtok": 1}"#, "no price of input");
    check_reason(r#"{"input_mtok": 1}"#, "no price of output");
    check_reason(
        r#"{"input_mtok": 0, "output_mtok": 0}"#,
        "costs nothing by the list",
    );
    check_reason(
        r#"{"input_mtok": 1, "output_mtok": 0}"#,
        "costs nothing by the list",
    );
    check_reason("[]", "has no prices");
    let weekday =
        r#"[{"constraint": {"weekday": 1}, "prices": {"input_mtok": 1, "output_mtok": 1}}]"#;
    check_reason(weekday, "a condition that is not understood");
    let no_day = r#"[{"constraint": {"start_date": "soon"}, "prices": {"input_mtok": 1, "output_mtok": 1}}]"#;
    check_reason(no_day, "begins at what is no day");
}

#[test]
fn prices_of_what_no_cap_lets_through_are_told() {
    let list = genai(&model(
        r#"{"input_mtok": 2, "output_mtok": 8, "web_searches_kcount": 10, "input_audio_mtok": 4, "output_text_mtok": 8}"#,
    ));
    let notes = only(list).notes;
    assert!(
        notes
            .iter()
            .any(|note| note.starts_with("web_searches_kcount = 10")),
        "{notes:?}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.starts_with("input_audio_mtok = 4")),
        "{notes:?}"
    );
}

#[test]
fn a_model_listed_twice_at_different_prices_has_none() {
    let one = r#"{"id": "m", "prices": {"input_mtok": 2, "output_mtok": 8}}"#;
    let other = r#"{"id": "m", "prices": {"input_mtok": 3, "output_mtok": 8}}"#;
    let odd = r#"{"id": "m", "prices": {"audio_hours": 3}}"#;
    only(genai(&format!("{one}, {one}")));
    assert!(reason(genai(&format!("{one}, {other}"))).contains("listed twice"));
    assert!(reason(genai(&format!("{one}, {other}, {one}"))).contains("listed twice"));
    assert!(reason(genai(&format!("{odd}, {one}"))).contains("no price of input"));
}

#[test]
fn a_model_that_searches_by_itself_needs_a_price_for_each_request() {
    let named = |name: &str, more: &str| {
        genai(&format!(
            r#"{{"id": "{name}", "prices": {{"input_mtok": 2, "output_mtok": 8{more}}}}}"#
        ))
    };
    for name in ["sonar-pro", "gpt-4o-search-preview", "o3-deep-research"] {
        assert!(
            reason(named(name, "")).contains("searches with every request"),
            "{name}"
        );
        assert_eq!(
            only(named(name, r#", "requests_kcount": 12"#))
                .terms
                .per_request,
            12_000_000
        );
    }
}

#[test]
fn what_stands_in_the_place_of_a_list_is_not_understood() {
    let model = |rest: &str| format!(r#"{{"id": "m", {rest}}}"#);
    for (rest, expected) in [
        (
            r#""prices": {"input_mtok": {"base": 1, "tiers": {}}, "output_mtok": 2}"#,
            "tiers is no list",
        ),
        (
            r#""prices": {"input_mtok": {"base": 1, "tiers": 5}, "output_mtok": 2}"#,
            "tiers is no list",
        ),
        (
            r#""prices": {"input_mtok": {"base": 1, "tiers": [{"start": 9, "price": 5}, {"start": 9, "price": 2}]},
                "output_mtok": 2}"#,
            "two tiers with one start",
        ),
        (
            r#""price_variants": 5, "prices": {"input_mtok": 1, "output_mtok": 2}"#,
            "price_variants is no list",
        ),
    ] {
        let reason = reason(genai(&model(rest)));
        assert!(reason.contains(expected), "{rest}: {reason}");
    }
    let none = genai(&model(
        r#""price_variants": null, "prices": {"input_mtok": {"base": 1, "tiers": null}, "output_mtok": 2}"#,
    ));
    assert_eq!(only(none).terms.tiers, []);
}

#[test]
fn what_has_no_name_is_told_as_left_out() {
    let priced = r#""prices": {"input_mtok": 1, "output_mtok": 2}"#;
    let nameless = genai(&format!("{{{priced}}}"));
    assert_eq!(reason(nameless), "has no id");
    for (provider, expected) in [
        (
            format!(r#"{{"models": [{{"id": "m", {priced}}}]}}"#),
            "an id",
        ),
        (
            format!(r#"{{"id": "p", "models": {{"id": "m", {priced}}}}}"#),
            "a list of models",
        ),
        (r#"{"id": "p"}"#.to_owned(), "a list of models"),
    ] {
        let list = read(format!("[{provider}]").as_bytes(), None, day()).unwrap();
        let reason = reason(list);
        assert!(reason.contains(expected), "{provider}: {reason}");
    }
}
