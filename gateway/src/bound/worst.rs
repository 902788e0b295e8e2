//! Random bodies against a provider that does the worst it can within what is forwarded to it: no
//! request that is let through is billed above its hold.

use proptest::{collection::vec, prelude::*, sample::select};

use seatbelt_dialects::{
    Api, Fields, MaxField,
    allow::{Allowed, Profile, refuse_state},
};
use serde_json::{Map, Value, json};

use super::*;

/// What the worst provider bills for anything that it can run up by itself.
const RUNAWAY: u64 = 1 << 30;

/// Names that some server takes for the output maximum or the number of choices.
const MAXIMA: &[&str] = &[
    "max_tokens",
    "max_completion_tokens",
    "n_predict",
    "max_new_tokens",
    "max_length",
    "max_output_tokens",
    "auto_max_new_tokens",
    "num_predict",
];
const CHOICES: &[&str] = &["n", "best_of", "num_return_sequences"];
/// Names that no server is known to bill for, whatever they hold.
const HARMLESS: &[&str] = &[
    "model",
    "messages",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "user",
    "metadata",
    "tools",
    "tool_choice",
    "response_format",
    "logit_bias",
    "parallel_tool_calls",
    "system",
    "stop_sequences",
    "thinking",
    "functions",
    "service_tier",
    "store",
];
/// Names of fields, in whatever way: known ones, and those that were seen to run up a bill.
const FIELDS: &[&str] = &[
    "max_tokens",
    "max_completion_tokens",
    "n",
    "best_of",
    "messages",
    "tools",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_k",
    "user",
    "metadata",
    "response_format",
    "functions",
    "n_predict",
    "max_new_tokens",
    "max_output_tokens",
    "num_return_sequences",
    "options",
    "extra_body",
    "search_parameters",
    "web_search",
    "chat_template",
    "prompt_embeds",
    "documents",
    "images",
    "models",
    "provider",
    "fallbacks",
    "speed",
    "container",
    "mcp_servers",
    "context_management",
    "service_tier",
    "system",
    "thinking",
    "store",
    "audio",
    "modalities",
];
const PARTS: &[&str] = &[
    "text",
    "refusal",
    "image_url",
    "uuid",
    "input_audio",
    "file",
    "images",
    "type",
    "content",
    "role",
    "name",
    "cache_control",
    "source",
    "input",
    "audio",
];
const TYPES: &[&str] = &[
    "text",
    "refusal",
    "image_url",
    "image",
    "file",
    "function",
    "custom",
    "web_search",
    "tool_use",
    "tool_result",
    "thinking",
    "bash_20250124",
    "code_execution_20250825",
    "builtin_function",
];

fn same(name: &str, other: &str) -> bool {
    name.replace(['_', '-'], "")
        .eq_ignore_ascii_case(&other.replace('_', ""))
}

/// The largest number under any of these names, wherever a careless server may look.
fn largest(body: &Fields, names: &[&str]) -> u64 {
    let of = |(name, value): (&String, &Value)| match value {
        Value::Object(inner) if ["options", "extra_body"].contains(&name.as_str()) => {
            largest(inner, names)
        }
        value if names.iter().any(|other| same(name, other)) => value.as_u64().unwrap_or(0),
        _ => 0,
    };
    body.iter().map(of).max().unwrap_or(0)
}

/// Tokens of a message, a part or a tool: one for each byte of its text.
fn tokens(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(tokens).sum(),
        Value::Object(fields) => media::billed(fields)
            .unwrap_or_else(|| fields.iter().map(|(name, value)| inner(name, value)).sum()),
        _ => 0,
    }
}

fn inner(name: &str, value: &Value) -> u64 {
    let media = [
        "image_url",
        "uuid",
        "input_audio",
        "file",
        "images",
        "source",
        "audio",
        "documents",
    ];
    match name {
        _ if value.is_null() => 0,
        "type"
            if value.as_str().is_some_and(|kind| {
                matches!(kind, "image" | "image_url" | "input_image" | "file")
            }) =>
        {
            RUNAWAY
        }
        "type" => 0,
        // a role is a token or two, of those that frame its message
        "role"
            if matches!(
                value.as_str(),
                Some("system" | "developer" | "user" | "assistant" | "tool" | "function")
            ) =>
        {
            0
        }
        _ if media.iter().any(|other| same(name, other)) => RUNAWAY,
        _ => tokens(value),
    }
}

/// A tool that the provider can run by itself.
fn tool(tool: &Value) -> u64 {
    let by_client = |kind: &str| {
        let versions = ["bash_", "text_editor_", "memory_", "computer_"];
        matches!(kind, "function" | "custom")
            || versions.iter().any(|start| kind.starts_with(start))
    };
    match tool.get("type") {
        None | Some(Value::Null) => tokens(tool),
        Some(Value::String(kind)) if by_client(kind) => tokens(tool),
        Some(_) => RUNAWAY,
    }
}

/// What the worst provider bills, in tokens of input and output together.
fn worst(body: &Fields) -> u64 {
    let output = largest(body, MAXIMA).saturating_mul(largest(body, CHOICES).max(1));
    let messages = body.get("messages").and_then(Value::as_array);
    let framing = messages.map_or(0, |messages| 6 * messages.len() as u64);
    let other: u64 = body
        .iter()
        .map(|(name, value)| match name.as_str() {
            _ if value.is_null() => 0,
            "messages" | "system" | "functions" => tokens(value),
            "reasoning_effort" | "verbosity" if matches!(value.as_str(), Some("low" | "high")) => 0,
            "reasoning_effort" | "verbosity" => tokens(value),
            "output_config" => tokens(value),
            "thinking" if thinks_beyond(value, output) => RUNAWAY,
            "context_management" if takes_out_alone(value) => 0,
            "response_format" => value.to_string().len() as u64,
            "tools" => value
                .as_array()
                .map_or(RUNAWAY, |tools| tools.iter().map(tool).sum()),
            "service_tier" if !matches!(value.as_str(), Some("default" | "standard_only")) => {
                RUNAWAY
            }
            "store" if *value != Value::Bool(false) => RUNAWAY,
            name if HARMLESS.contains(&name) => 0,
            name if MAXIMA.contains(&name) || CHOICES.contains(&name) => 0, // taken above
            name if same(name, "max_length") => 0,
            "modalities"
                if value
                    .as_array()
                    .is_some_and(|all| all.iter().all(|one| one == "text")) =>
            {
                0
            }
            _ => RUNAWAY,
        })
        .sum();
    output.saturating_add(framing).saturating_add(other)
}

/// Edits that take input out and have no model write anything in its place; compaction has one.
fn takes_out_alone(management: &Value) -> bool {
    let edits = match management.get("edits") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(edits)) => edits,
        Some(_) => return false,
    };
    let known = ["clear_thinking_20251015", "clear_tool_uses_20250919"];
    let fields = management.as_object().map_or(0, Fields::len);
    let is_known = |edit: &Value| {
        edit["type"]
            .as_str()
            .is_some_and(|kind| known.contains(&kind))
    };
    management.is_object()
        && fields == usize::from(management.get("edits").is_some())
        && edits.iter().all(is_known)
}

/// A provider may let a model think up to its budget, whatever the output maximum is.
fn thinks_beyond(thinking: &Value, output: u64) -> bool {
    let budget = thinking.get("budget_tokens").and_then(Value::as_u64);
    budget.is_some_and(|budget| budget >= output.max(1))
}

/// A name, now and then in another spelling.
fn name(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    (select(of), 0..12u8).prop_map(|(name, spelling)| match spelling {
        0 => name.to_uppercase(),
        1 => name.replace('_', ""),
        2 => name.replace('_', "-"),
        _ => name.to_owned(),
    })
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|set| json!(set)),
        (1..200u64).prop_map(|number| json!(number)),
        Just(json!(50_000)),
        ".{0,12}".prop_map(|text| json!(text)),
        select(TYPES).prop_map(|kind| json!(kind)),
    ]
}

fn object(names: &'static [&'static str], within: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    let fields = vec((name(names), within), 0..3);
    let kind = prop_oneof![
        4 => select(TYPES).prop_map(|kind| Some(json!(kind))),
        1 => scalar().prop_map(Some),
        1 => Just(None),
    ];
    (fields, kind)
        .prop_map(|(fields, kind)| {
            let mut object: Fields = fields.into_iter().collect();
            object.extend(kind.map(|kind| ("type".to_owned(), kind)));
            Value::Object(object)
        })
        .boxed()
}

fn part() -> BoxedStrategy<Value> {
    let text = ".{0,20}".prop_map(|text| json!({"type": "text", "text": text}));
    let cached = (".{0,9}", select(&["5m", "1h", "2h"][..])).prop_map(|(text, ttl)| {
        json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}})
    });
    let result = (".{0,9}", ".{0,9}").prop_map(|(id, text)| {
        let content = json!([{"type": "text", "text": text}]);
        json!({"type": "tool_result", "tool_use_id": id, "content": content})
    });
    let call = ("[a-z]{1,9}", scalar()).prop_map(
        |(name, input)| json!({"type": "tool_use", "id": "1", "name": name, "input": {"a": input}}),
    );
    let shown = media::medium()
        .prop_map(|medium| json!({"type": "tool_result", "tool_use_id": "1", "content": [medium]}));
    let odd = object(PARTS, scalar().boxed());
    let medium = prop_oneof![3 => media::medium(), 1 => shown];
    prop_oneof![6 => text, 1 => cached, 1 => result, 1 => call, 2 => odd, 6 => medium].boxed()
}

/// What only one of the APIs has, and what only some of its servers know.
fn of_an_api() -> BoxedStrategy<(String, Value)> {
    let named = |name: &'static str, value: BoxedStrategy<Value>| {
        value.prop_map(move |value| (name.to_owned(), value))
    };
    let budget = (0..400u64).prop_map(|n| json!({"type": "enabled", "budget_tokens": n}));
    let effort = prop_oneof![Just("low".to_owned()), "[a-z]{0,40}"].prop_map(|word| json!(word));
    let configured = prop_oneof![
        "[a-z]{0,40}".prop_map(|word| json!({ "effort": word })),
        ".{0,20}".prop_map(
            |text| json!({"format": {"type": "json_schema", "schema": {"description": text}}})
        ),
    ];
    let format = ".{0,20}".prop_map(|text| {
        json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"description": text}}})
    });
    prop_oneof![
        named(
            "system",
            prop_oneof![
                ".{0,20}".prop_map(|text| json!(text)),
                vec(part(), 0..3).prop_map(Value::Array)
            ]
            .boxed()
        ),
        named("thinking", budget.boxed()),
        named("reasoning_effort", effort.boxed()),
        named("output_config", configured.boxed()),
        named("response_format", format.boxed()),
        named("n", (0..5u64).prop_map(|n| json!(n)).boxed()),
        named("best_of", (0..5u64).prop_map(|n| json!(n)).boxed()),
        named(
            "max_completion_tokens",
            (0..400u64).prop_map(|n| json!(n)).boxed()
        ),
    ]
    .boxed()
}

fn message() -> BoxedStrategy<Value> {
    let content = prop_oneof![
        ".{0,30}".prop_map(|text| json!(text)),
        vec(part(), 0..3).prop_map(Value::Array)
    ];
    let more = prop_oneof![4 => Just(None), 1 => (name(PARTS), scalar()).prop_map(Some)];
    (content, more)
        .prop_map(|(content, more)| {
            let mut message = json!({"role": "user", "content": content});
            message.as_object_mut().unwrap().extend(more);
            message
        })
        .boxed()
}

fn tools() -> BoxedStrategy<Value> {
    let good =
        "[a-z]{1,9}".prop_map(|name| json!({"type": "function", "function": {"name": name}}));
    let custom =
        "[a-z]{1,9}".prop_map(|name| json!({"name": name, "input_schema": {"type": "object"}}));
    let odd = object(
        &["function", "google_search", "name", "custom", "url"],
        scalar().boxed(),
    );
    vec(prop_oneof![good, custom, odd], 0..3)
        .prop_map(Value::Array)
        .boxed()
}

fn body() -> impl Strategy<Value = Fields> {
    let value = prop_oneof![
        4 => scalar(),
        1 => vec(scalar(), 0..3).prop_map(Value::Array),
        1 => object(FIELDS, scalar().boxed()),
    ];
    let odd = (name(FIELDS), value);
    let others = vec(prop_oneof![1 => odd, 1 => of_an_api()], 0..3);
    let tools = prop_oneof![3 => Just(None), 1 => tools().prop_map(Some)];
    (vec(message(), 1..4), 1..300u64, tools, others).prop_map(|(messages, max, tools, others)| {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!("m"));
        body.insert("max_tokens".to_owned(), json!(max));
        body.insert("messages".to_owned(), json!(messages));
        body.extend(tools.map(|tools| ("tools".to_owned(), tools)));
        body.extend(others);
        body
    })
}

/// Of a model whose images and sounds have limits.
fn limits() -> Limits {
    Limits {
        media: media::LIMITS,
        ..Limits::new(1 << 20, 4096)
    }
}

/// What is held for a body and what is forwarded of it; `None` where it is refused.
fn let_through(api: Api, profile: Profile, mut body: Fields) -> Option<(u64, Fields)> {
    let ask = api.ask(&body).ok()?;
    let allowed = Allowed {
        api,
        profile,
        accepted: [&[], &[]],
        output_max: 4096,
        class: None,
        tools: &[],
        media: media::LIMITS,
    };
    allowed.check(&body).ok()?;
    refuse_state(&body, allowed.accepted).ok()?;
    allowed.pin(&mut body);
    let bound = by_bytes(&ask, &limits()).ok()?;
    api.set_max(&mut body, bound.output_tokens, MaxField::MaxTokens);
    Some((bound.input_tokens + bound.output_tokens * ask.choices, body))
}

/// How many bodies are made: a million in `make nightly`.
fn bodies() -> u32 {
    let number = std::env::var("SEATBELT_FUZZ_BODIES").ok();
    number.map_or(20_000, |number| number.parse().expect("a number of bodies"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(bodies()))]

    #[test]
    fn no_request_is_billed_above_its_hold(body in body()) {
        for (api, profile) in [
            (Api::Chat, Profile::OpenAi),
            (Api::Chat, Profile::Generic),
            (Api::Messages, Profile::Anthropic),
            (Api::Messages, Profile::Generic),
        ] {
            if let Some((hold, forwarded)) = let_through(api, profile, body.clone()) {
                let billed = worst(&forwarded);
                prop_assert!(billed <= hold, "{billed} of {hold}: {forwarded:?}");
            }
        }
    }
}

#[test]
fn enough_of_the_random_bodies_are_let_through() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let all = 500;
    let through = (0..all).filter(|_| {
        let body = body().new_tree(&mut runner).unwrap().current();
        {
            let openai = let_through(Api::Chat, Profile::OpenAi, body.clone());
            openai
                .or_else(|| let_through(Api::Messages, Profile::Anthropic, body))
                .is_some()
        }
    });
    let through = through.count();
    assert!((50..450).contains(&through), "{through} of {all}");
}

mod media;
mod newer;
