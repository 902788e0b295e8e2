//! What is read of LiteLLM's price file, and what leaves a model out.

use super::{litellm, only, price, reason};
use crate::Limits;

fn model(prices: &str) -> String {
    format!(
        r#""p/m": {{"litellm_provider": "p", "mode": "chat", "max_input_tokens": 1000, "max_output_tokens": 100, {prices}}}"#
    )
}

const FLAT: &str = r#""input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06"#;

#[track_caller]
fn check(prices: &str, expected: &str) {
    assert_eq!(
        price(litellm(&model(prices))),
        format!("price = {{ {expected} }}")
    );
}

#[track_caller]
fn check_reason(prices: &str, expected: &str) {
    let reason = reason(litellm(&model(&format!("{FLAT}, {prices}"))));
    assert!(reason.contains(expected), "{reason}");
}

#[test]
fn rates_per_token_are_read_as_text_and_rounded_up() {
    check(
        r#""input_cost_per_token": 3.0001999999999996E-7, "output_cost_per_token": 1.5e-05,
           "cache_read_input_token_cost": 2.8e-08, "input_cost_per_token_cache_hit": 0.000000028"#,
        r#"input = "0.30002", cached_input = "0.028", output = "15""#,
    );
    // numbers as text are numbers
    check(
        r#""input_cost_per_token": "1e-6", "output_cost_per_token": "2e-6""#,
        r#"input = "1", output = "2""#,
    );
}

#[test]
fn a_price_of_nothing_for_a_cache_is_one_that_is_not_known() {
    check(
        &format!(
            r#"{FLAT}, "cache_creation_input_token_cost": 0.0, "cache_read_input_token_cost": 0"#
        ),
        r#"input = "2", output = "8""#,
    );
}

#[test]
fn the_grammar_of_suffixes_is_read() {
    check(
        r#""input_cost_per_token": 3e-6, "input_cost_per_token_above_200k_tokens": 6e-6,
           "output_cost_per_token": 15e-6, "output_cost_per_token_above_200k_tokens": 22.5e-6,
           "cache_creation_input_token_cost": 3.75e-6, "cache_creation_input_token_cost_above_1hr": 6e-6,
           "cache_creation_input_token_cost_above_12hr": 7e-6,
           "cache_creation_input_token_cost_above_200k_tokens": 7.5e-6,
           "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 12e-6,
           "output_cost_per_reasoning_token": 16e-6, "output_cost_per_reasoning_token_above_200k_tokens": 23e-6,
           "input_cost_per_request": 0.005"#,
        r#"input = "3", cache_write = "3.75", cache_write_long = "7", output = "15", reasoning = "16", tiers = [{ above_input_tokens = 200000, input = "6", cache_write = "7.5", cache_write_long = "12", output = "22.5", reasoning = "23" }], per_request = "0.005""#,
    );
}

#[test]
fn classes_are_dearer_and_of_those_that_cannot_be_asked_for_it_is_told() {
    let list = litellm(&model(
        r#""input_cost_per_token": 2.5e-6, "output_cost_per_token": 15e-6, "cache_read_input_token_cost": 2.5e-7,
           "input_cost_per_token_above_272k_tokens": 6e-6, "output_cost_per_token_above_272k_tokens": 22.5e-6,
           "cache_read_input_token_cost_above_272k_tokens": 5e-7,
           "input_cost_per_token_priority": 5e-6, "output_cost_per_token_priority": 30e-6, "cache_read_input_token_cost_priority": 5e-7,
           "input_cost_per_token_flex": 1e-6, "output_cost_per_token_flex": 7e-6,
           "input_cost_per_token_batches": 1e-6, "output_cost_per_token_batches": 7e-6,
           "provider_specific_entry": {"us": 1.1, "fast": "2.0"}, "regional_processing_uplift_multiplier_eu": 1.1"#,
    ));
    let model = only(list);
    let classes: Vec<_> = model
        .classes
        .iter()
        .map(|class| (class.field, class.value.as_str()))
        .collect();
    assert_eq!(
        classes,
        [
            ("service_tier", "priority"),
            ("inference_geo", "us"),
            ("speed", "fast")
        ]
    );
    // priority says nothing of long inputs: they may be served at either price
    let (above, long) = model.classes[0].terms.tiers[0];
    assert_eq!(
        (above, long.input, long.output),
        (272_000, 6_000_000, 30_000_000)
    );
    let us = &model.classes[1].terms;
    assert_eq!(
        (us.rates.input, us.rates.cached_input, us.tiers[0].1.output),
        (2_750_000, Some(275_000), 24_750_000)
    );
    for told in [
        "service_tier = flex: costs less",
        "imported: batches",
        "uplift_multiplier_eu = 1.1",
    ] {
        assert!(
            model.notes.iter().any(|note| note.contains(told)),
            "{told}: {:?}",
            model.notes
        );
    }
}

#[test]
fn an_off_peak_price_lowers_nothing() {
    check(
        &format!(
            r#"{FLAT}, "off_peak_pricing": {{"input_cost_per_token": 1e-6, "output_cost_per_token": 9e-6, "windows": []}}"#
        ),
        r#"input = "2", output = "9""#,
    );
    check_reason(
        r#""off_peak_pricing": {"discount": 0.5}"#,
        "off_peak_pricing.discount is not understood",
    );
}

#[test]
fn what_is_not_understood_leaves_the_model_out_by_name_and_reason() {
    check_reason(
        r#""tiered_pricing": [{"range": [0, 1]}]"#,
        "tiered_pricing is not understood",
    );
    check_reason(
        r#""input_cost_per_character": 1e-7"#,
        "input_cost_per_character is not understood",
    );
    check_reason(r#""a_new_number": 3"#, "a_new_number is not understood");
    check_reason(r#""a_new_cost": "much""#, "a_new_cost is not understood");
    check_reason(
        r#""input_cost_per_token_above_200k_tokens_turbo": 1e-6"#,
        "is not understood",
    );
    check_reason(
        r#""input_cost_per_token_above_200_tokens": 1e-6"#,
        "is not understood",
    );
    check_reason(
        r#""provider_specific_entry": {"eu": 2}"#,
        "provider_specific_entry.eu is not understood",
    );
    check_reason(
        r#""output_cost_per_image_token": 30e-6"#,
        "output_cost_per_image_token costs more than text",
    );
    check_reason(
        r#""input_cost_per_token_cache_hit": 1e-7, "cache_read_input_token_cost": 2e-7"#,
        "says otherwise",
    );
    check_reason(
        r#""cache_read_input_token_cost": -1e-7"#,
        "is not understood",
    );
    check_reason(
        r#""input_cost_per_token_above_200k_tokens": 1e-6"#,
        "has no price of output above 200000",
    );
    let reason_of = |text: &str| reason(litellm(text));
    let image =
        r#""m": {"litellm_provider": "p", "mode": "image_generation", "input_cost_per_token": 1}"#;
    assert!(reason_of(image).contains("of the mode image_generation"));
    let free = r#""m": {"litellm_provider": "p", "mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0}"#;
    assert!(reason_of(free).contains("costs nothing by the list"));
}

#[test]
fn zeros_texts_and_flags_are_no_prices() {
    check(
        &format!(
            r#"{FLAT}, "input_cost_per_character": 0.0, "supports_vision": true, "source": "https://x", "deprecation_date": "2026-11-30",
               "supported_modalities": ["text"], "metadata": {{"notes": "x"}}, "search_context_cost_per_query": {{"low": 0.01}}"#
        ),
        r#"input = "2", output = "8""#,
    );
}

#[test]
fn the_context_is_never_too_low() {
    let limits = |text: &str| only(litellm(text)).limits;
    let both = limits(&model(FLAT));
    assert_eq!(
        both,
        Limits {
            context: Some(1100),
            output: Some(100)
        }
    );
    let none = format!(
        r#""m": {{"litellm_provider": "p", "mode": "chat", "max_input_tokens": 1000, {FLAT}}}"#
    );
    assert_eq!(limits(&none), Limits::default());
    let embedding = r#""m": {"litellm_provider": "p", "mode": "embedding", "max_input_tokens": 8000, "input_cost_per_token": 1e-7}"#;
    assert_eq!(
        limits(embedding),
        Limits {
            context: Some(8001),
            output: Some(1)
        }
    );
}

#[test]
fn a_model_under_two_keys_of_one_provider_is_one_where_it_costs_the_same() {
    let keyed = |key: &str, input: &str| {
        format!(
            r#""{key}": {{"litellm_provider": "p", "mode": "chat", "input_cost_per_token": {input}, "output_cost_per_token": 1e-6}}"#
        )
    };
    only(litellm(&format!(
        "{}, {}",
        keyed("m", "1e-6"),
        keyed("p/m", "0.000001")
    )));
    let other = litellm(&format!("{}, {}", keyed("m", "1e-6"), keyed("p/m", "2e-6")));
    assert!(reason(other).contains("listed twice"));
    let elsewhere = litellm(&format!("{}, {}", keyed("m", "1e-6"), keyed("q/m", "2e-6")));
    assert_eq!(
        elsewhere.models.len(),
        2,
        "a prefix that is not the provider's belongs to the name"
    );
}

#[test]
fn what_may_be_a_price_is_understood_or_the_model_is_left_out() {
    for odd in [
        r#""input_cost_per_token_above_200k_tokens": false"#,
        r#""input_cost_per_token_above_200k_tokens": ["1e-6"]"#,
        r#""surcharge": "20%""#,
        r#""off_peak_pricing": 5"#,
        r#""off_peak_pricing": []"#,
        r#""provider_specific_entry": "fast""#,
        r#""input_cost_per_token_flex": 1e-2147483648"#,
    ] {
        let model = format!(
            r#""m": {{"litellm_provider": "p", "mode": "chat", "input_cost_per_token": 1e-6,
                "output_cost_per_token": 2e-6, "max_input_tokens": 9, "max_output_tokens": 9, {odd}}}"#
        );
        let reason = reason(litellm(&model));
        assert!(reason.contains("not understood"), "{odd}: {reason}");
    }
    let dear = r#""m": {"litellm_provider": "p", "mode": "chat", "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6, "supports_vision": true, "source": "https://x/pricing",
        "provider_specific_entry": {"fast": 1e6}}"#;
    let notes = only(litellm(dear)).notes;
    assert!(notes[0].contains("more than one USD a token"), "{notes:?}");
}
