//! What answers say of how they were served, as providers say it.

use super::*;

fn priced<'a>(profile: Profile, model: &'a str, accepted: &'a [String]) -> Priced<'a> {
    Priced {
        profile,
        model,
        answers_as: &[],
        accepted: [accepted, &[]],
        class: None,
        tools: &[],
    }
}

fn served(answer: &str, report: &str) -> Served {
    let mut served = Served::default();
    served.answer(&Pairs::read(answer).unwrap());
    served.report(serde_json::from_str(report).unwrap());
    served
}

#[track_caller]
fn check(profile: Profile, answer: &str, report: &str, expected: Option<Aspect>) {
    let served = served(answer, report);
    let other = priced(profile, "m", &[]).other(&served);
    assert_eq!(
        other.map(|(aspect, _)| aspect),
        expected,
        "{answer} {report}"
    );
}

#[test]
fn a_model_is_known_by_the_names_that_its_provider_gives_it_in_answers() {
    for (asked, answered) in [
        (
            "gpt-3.5-turbo-instruct",
            "gpt-3.5-turbo-instruct:20230824-v2",
        ),
        ("text-embedding-ada-002", "text-embedding-ada-002-v2"),
        ("m", "m:20230824"),
    ] {
        assert!(is_same_model(asked, answered), "{answered}");
    }
    for (asked, answered) in [
        ("gpt-4", "gpt-4-v2"),
        ("m", "m:large-v2"),
        ("m", "m:large"),
        ("m", "m-v2"),
        ("m", "n:20230824-v2"),
    ] {
        assert!(!is_same_model(asked, answered), "{answered}");
    }
}

#[test]
fn what_was_pinned_is_told_apart_from_everything_else() {
    let openai = |answer, other| check(Profile::OpenAi, answer, "{}", other);
    openai(r#"{"model": "m", "service_tier": "default"}"#, None);
    openai(r#"{"model": null, "service_tier": null}"#, None);
    openai(
        r#"{"model": "m", "service_tier": "priority"}"#,
        Some(Aspect::ServiceTier),
    );
    openai(r#"{"service_tier": 7}"#, Some(Aspect::ServiceTier));
    openai(
        r#"{"service_tier": "default", "service_tier": "flex"}"#,
        Some(Aspect::ServiceTier),
    );
    openai(r#"{"model": "m-pro"}"#, Some(Aspect::Model));
    let anthropic = |report, other| check(Profile::Anthropic, "{}", report, other);
    anthropic(
        r#"{"service_tier": "standard", "speed": "standard", "inference_geo": "global"}"#,
        None,
    );
    anthropic(
        r#"{"server_tool_use": {"web_search_requests": 0}, "inference_geo": "not_available"}"#,
        None,
    );
    anthropic(r#"{"service_tier": "priority"}"#, Some(Aspect::ServiceTier));
    anthropic(r#"{"speed": "fast"}"#, Some(Aspect::Speed));
    anthropic(r#"{"inference_geo": "us"}"#, Some(Aspect::Geography));
    anthropic(
        r#"{"server_tool_use": {"web_search_requests": 2}}"#,
        Some(Aspect::Tools),
    );
    anthropic(
        r#"{"server_tool_use": {"web_search_requests": "2"}}"#,
        Some(Aspect::Tools),
    );
    anthropic(r#"{"server_tool_use": [1]}"#, Some(Aspect::Tools));
    check(
        Profile::Generic,
        r#"{"model": "/x.gguf", "service_tier": "on_demand"}"#,
        "{}",
        None,
    );
}

#[test]
fn what_the_operator_accepts_is_not_compared() {
    let other = |field: &str| {
        let accepted = [field.to_owned()];
        let report =
            r#"{"service_tier": "priority", "server_tool_use": {"web_search_requests": 1}}"#;
        let served = served("{}", report);
        let other = priced(Profile::Anthropic, "m", &accepted).other(&served);
        other.map(|(aspect, _)| aspect)
    };
    assert_eq!(other("service_tier"), Some(Aspect::Tools));
    assert_eq!(other("tools[]"), Some(Aspect::ServiceTier));
    assert_eq!(other("speed"), Some(Aspect::ServiceTier));
}

#[test]
fn calls_of_a_priced_tool_are_counted_and_no_other_class() {
    let search = |charged| Provided {
        kind: "web_search_20250305".to_owned(),
        calls_max: 5,
        input_max: 1000,
        charged,
    };
    let served = served(
        "{}",
        r#"{"server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0}}"#,
    );
    let tools = [search(true)];
    let priced = Priced {
        tools: &tools,
        ..priced(Profile::Anthropic, "m", &[])
    };
    assert_eq!(priced.other(&served), None);
    assert_eq!(served.charged_calls(&tools).least, 2);
    assert_eq!(served.charged_calls(&[search(false)]).least, 0);
    let fetched = self::served("{}", r#"{"server_tool_use": {"web_fetch_requests": 1}}"#);
    assert_eq!(priced.other(&fetched), Some((Aspect::Tools, "web_fetch")));
    assert_eq!(fetched.charged_calls(&tools).least, 0);
    let odd = |report: &str| self::served("{}", report);
    for report in [
        r#"{"server_tool_use": {"web_search_requests": "3"}}"#,
        r#"{"server_tool_use": {"web_search_requests": {}}}"#,
        r#"{"server_tool_use": 3}"#,
        r#"{"server_tool_use": [3]}"#,
    ] {
        assert!(odd(report).charged_calls(&tools).is_odd, "{report}");
        let free = odd(report).charged_calls(&[search(false)]);
        assert!(!free.is_odd, "{report}: nothing of it is charged");
    }
    for report in [
        r#"{"server_tool_use": {"web_search_requests": null}}"#,
        r#"{"server_tool_use": null}"#,
        r#"{"server_tool_use": {}}"#,
        "{}",
    ] {
        let none = odd(report).charged_calls(&tools);
        assert_eq!(none, CallsTold::default(), "{report}");
    }
}

#[test]
fn calls_that_stand_in_a_message_are_counted_but_for_those_that_failed() {
    let tools = [Provided {
        kind: "web_search_20250305".to_owned(),
        calls_max: 5,
        input_max: 1000,
        charged: true,
    }];
    let call =
        |id: &str| format!(r#"{{"type": "server_tool_use", "id": "{id}", "name": "web_search"}}"#);
    let blocks = [
        call("a"),
        r#"{"type": "web_search_tool_result", "tool_use_id": "a", "content": []}"#.to_owned(),
        call("b"),
        r#"{"type": "web_search_tool_result", "tool_use_id": "b", "content":
            {"type": "web_search_tool_result_error", "error_code": "unavailable"}}"#
            .to_owned(),
        call("c"),
        r#"{"type": "tool_use", "id": "d", "name": "web_search"}"#.to_owned(),
    ];
    let answer = format!(r#"{{"content": [{}]}}"#, blocks.join(","));
    let served = served(&answer, "{}");
    assert_eq!(served.charged_calls(&tools).least, 2);
    let none = priced(Profile::Anthropic, "m", &[]);
    assert_eq!(none.other(&served), Some((Aspect::Tools, "web_search")));
    let unnamed = self::served(r#"{"content": [{"type": "server_tool_use"}]}"#, "{}");
    assert_eq!(
        none.other(&unnamed),
        Some((Aspect::Tools, "server_tool_use"))
    );
}

#[test]
fn searches_that_an_answer_counts_beside_its_usage_are_calls() {
    let tools = [Provided {
        kind: "web_search".to_owned(),
        calls_max: 5,
        input_max: 1000,
        charged: true,
    }];
    let answer = r#"{"output": [{"type": "web_search_call", "id": "a"}],
        "tool_usage": {"web_search": {"num_requests": 4}, "image_gen": {"input_tokens": 0}}}"#;
    assert_eq!(served(answer, "{}").charged_calls(&tools).least, 4);
    let odd = served(
        r#"{"tool_usage": {"web_search": {"num_requests": 0}}}"#,
        "{}",
    );
    assert_eq!(odd.charged_calls(&tools).least, 0);
}

#[test]
fn calls_that_stand_in_an_answer_are_counted_once_each() {
    let tools = [Provided {
        kind: "web_search".to_owned(),
        calls_max: 5,
        input_max: 1000,
        charged: true,
    }];
    let output = r#"{"output": [{"type": "web_search_call", "id": "a"}, {"type": "function_call", "id": "f"},
        {"type": "web_search_call", "id": "b"}, {"type": "web_search_call"}, {"type": 7}, 8]}"#;
    let mut all = served(output, "{}");
    assert_eq!(all.charged_calls(&tools).least, 3);
    for (item, place) in [
        (r#"{"type": "web_search_call", "id": "a"}"#, 0),
        (r#"{"type": "web_search_call"}"#, 3),
    ] {
        all.item(&Pairs::read(item).unwrap(), place);
    }
    assert_eq!(all.charged_calls(&tools).least, 3);
    all.item(
        &Pairs::read(r#"{"type": "web_search_call", "id": "c"}"#).unwrap(),
        6,
    );
    assert_eq!(all.charged_calls(&tools).least, 4);
    let none = priced(Profile::OpenAi, "m", &[]);
    assert_eq!(none.other(&all), Some((Aspect::Tools, "web_search")));
}

#[test]
fn a_class_that_was_asked_for_and_the_pinned_one_below_it_are_priced() {
    let class = Class {
        aspect: Aspect::ServiceTier,
        value: "auto".to_owned(),
        answers_as: vec!["priority".to_owned()],
    };
    let other = |answer: &str| {
        let served = served(answer, "{}");
        let priced = Priced {
            class: Some(&class),
            ..priced(Profile::Anthropic, "m", &[])
        };
        priced.other(&served).map(|(aspect, _)| aspect)
    };
    for tier in ["auto", "priority", "standard", "default"] {
        assert_eq!(
            other(&format!(r#"{{"service_tier": "{tier}"}}"#)),
            None,
            "{tier}"
        );
    }
    assert_eq!(
        other(r#"{"service_tier": "batch"}"#),
        Some(Aspect::ServiceTier)
    );
    assert_eq!(
        other(r#"{"service_tier": "priority", "speed": "fast"}"#),
        Some(Aspect::Speed)
    );
}

#[test]
fn a_model_answers_under_the_name_of_its_version() {
    for (asked, answered) in [
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
        ("claude-sonnet-4-0", "claude-sonnet-4-20250514"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-08-06"),
        ("é-2024", "é"),
    ] {
        assert!(is_same_model(asked, answered), "{asked} {answered}");
    }
    for (asked, answered) in [
        ("gpt-4o-mini", "gpt-4o"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06"),
        ("claude-sonnet-4-0", "claude-sonnet-4-5-20250929"),
        ("m", "m-12345"),
        ("m", ""),
    ] {
        assert!(!is_same_model(asked, answered), "{asked} {answered}");
    }
}

#[test]
fn what_is_kept_of_an_answer_is_bounded() {
    let mut all = Served::default();
    for n in 0..1000 {
        all.say(Aspect::Model, &format!("{n}{}", "x".repeat(1000)));
    }
    assert_eq!(all.said.len(), SAID_MAX);
    assert!(
        all.said
            .iter()
            .all(|(_, said)| said.len() <= SAID_CHARS_MAX)
    );
}
