//! The same for completions, embeddings and responses, and for tools that the provider runs and charges for.

use super::*;
use seatbelt_dialects::{Calls, Provided};

/// What the operator states of a call.
const INPUT_MAX: u64 = 700;
const CALLS_MAX: u64 = 4;

const RESPONSE_FIELDS: &[&str] = &[
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "max_tokens",
    "n",
    "tools",
    "tool_choice",
    "reasoning",
    "text",
    "include",
    "truncation",
    "metadata",
    "user",
    "background",
    "store",
    "prompt",
    "previous_response_id",
    "conversation",
    "context_management",
    "service_tier",
    "moderation",
    "stream_options",
    "speed",
    "extra_body",
];
const TEXT_FIELDS: &[&str] = &[
    "prompt",
    "input",
    "suffix",
    "echo",
    "logprobs",
    "max_tokens",
    "n",
    "best_of",
    "dimensions",
    "encoding_format",
    "truncate_prompt_tokens",
    "user",
    "stop",
    "stream",
    "prompt_embeds",
    "images",
    "n_predict",
    "max_completion_tokens",
    "use_beam_search",
    "extra_body",
];
const TOOL_TYPES: &[&str] = &[
    "web_search",
    "web_search_20250305",
    "web_search_preview",
    "web_fetch_20250910",
    "function",
    "custom",
    "mcp",
    "code_interpreter",
    "image_generation",
    "bash_20250124",
];
const OF_RESPONSES: &[&str] = &["web_search"];
const OF_MESSAGES: &[&str] = &["web_search_20250305", "web_fetch_20250910"];
const TOOL_FIELDS: &[&str] = &[
    "name",
    "max_uses",
    "allowed_domains",
    "filters",
    "search_context_size",
    "user_location",
    "server_url",
    "container",
    "input_schema",
    "parameters",
    "max_content_tokens",
];

/// What the worst provider bills: tokens of input and output together, and calls with a fee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bill {
    tokens: u64,
    calls: u64,
}

/// Each API has types of its own for them.
fn priced(api: Api) -> Vec<Provided> {
    let tool = |kind: &str, charged| Provided {
        kind: kind.to_owned(),
        calls_max: CALLS_MAX,
        input_max: INPUT_MAX,
        charged,
    };
    match api {
        Api::Messages => vec![
            tool("web_search_20250305", true),
            tool("web_fetch_20250910", false),
        ],
        _ => vec![tool("web_search", true)],
    }
}

/// What is held for a body and what is forwarded of it; `None` where it is refused.
fn let_through(api: Api, profile: Profile, mut body: Fields) -> Option<(Bill, Fields)> {
    let tools = priced(api);
    let ask = api.ask(&body).ok()?;
    let allowed = Allowed {
        api,
        profile,
        accepted: [&[], &[]],
        output_max: 4096,
        class: None,
        tools: &tools,
        media: media::LIMITS,
    };
    allowed.check(&body).ok()?;
    refuse_state(&body, allowed.accepted).ok()?;
    allowed.pin(&mut body);
    let calls: Calls = allowed.pin_calls(&mut body).ok()?;
    let limits = limits();
    let bound = by_bytes(&ask, &limits).ok()?;
    let bound = with_calls(bound, calls, limits.context).ok()?;
    api.set_max(&mut body, bound.output_tokens, MaxField::MaxTokens);
    let hold = Bill {
        tokens: bound.input_tokens + bound.output_tokens * ask.choices,
        calls: calls.charged,
    };
    Some((hold, body))
}

/// A provider that runs its tools as often as it is let has the prompt read again after each call, with what it
/// wrote and what it found.
fn with_tools(input: u64, output: u64, calls: u64, charged: u64) -> Bill {
    let readings = (0..=calls).map(|call| {
        let written = if call == 0 { 0 } else { output };
        input + written + (call + 1) * if calls == 0 { 0 } else { INPUT_MAX }
    });
    Bill {
        tokens: output.saturating_add(readings.fold(0, u64::saturating_add)),
        calls: charged,
    }
}

/// Calls of all tools of a body, and of those with a fee; as many as it likes where nothing limits them.
fn calls_of(body: &Fields, together: Option<u64>) -> (u64, u64) {
    let mut tools = Vec::new();
    each_tool(body.get("tools").unwrap_or(&Value::Null), &mut tools);
    let (mut all, mut charged) = (0u64, 0u64);
    for tool in tools {
        let kind = tool["type"].as_str().unwrap_or("");
        let charges = match kind {
            "web_search" | "web_search_20250305" => true,
            "web_fetch_20250910" => false,
            _ => continue,
        };
        let own = tool["max_uses"].as_u64().unwrap_or(RUNAWAY);
        let calls = together.unwrap_or(own).min(RUNAWAY);
        (all, charged) = match together {
            Some(all) => (all, if charges { all } else { charged }),
            None => (all + calls, charged + if charges { calls } else { 0 }),
        };
    }
    (all, charged)
}

/// All tools of a list, also those within others: the worst provider runs these as well.
fn each_tool<'a>(list: &'a Value, found: &mut Vec<&'a Value>) {
    for tool in list.as_array().into_iter().flatten() {
        found.push(tool);
        each_tool(&tool["tools"], found);
    }
}

/// A tool that is not one of those that are priced costs what it did before.
fn other_tools(list: &Value, known: fn(&Value) -> bool) -> u64 {
    let tools = list.as_array().into_iter().flatten();
    let each = tools.map(|one| match one["type"].as_str() {
        _ if known(one) => tokens(one),
        Some("namespace") => {
            let within = &one["tools"];
            let own = tokens(one).saturating_sub(tokens(within));
            own.saturating_add(other_tools(within, known))
        }
        _ => tool(one),
    });
    each.fold(0, u64::saturating_add)
}

fn is_of_messages(tool: &Value) -> bool {
    tool["type"] == "web_search_20250305" || tool["type"] == "web_fetch_20250910"
}

fn is_of_responses(tool: &Value) -> bool {
    tool["type"] == "web_search"
}

fn worst_of_messages(mut body: Fields) -> Bill {
    let output = largest(&body, MAXIMA);
    let (all, charged) = calls_of(&body, None);
    let tools = body.remove("tools").unwrap_or(Value::Null);
    let tools = other_tools(&tools, is_of_messages);
    let once = worst(&body).saturating_add(tools);
    with_tools(once - output, output, all, charged)
}

fn worst_of_responses(body: &Fields) -> Bill {
    let output = largest(body, MAXIMA);
    let together = body.get("max_tool_calls").and_then(Value::as_u64);
    let (all, charged) = calls_of(body, Some(together.unwrap_or(RUNAWAY)));
    let items = body
        .get("input")
        .and_then(Value::as_array)
        .map_or(1, Vec::len) as u64;
    let input: u64 = body
        .iter()
        .map(|(name, value)| match name.as_str() {
            _ if value.is_null() => 0,
            "input" => items_of(value),
            "instructions" => tokens(value) + 6,
            "text" | "tool_choice" if value.is_object() => value.to_string().len() as u64,
            "reasoning" | "text" | "tool_choice" | "truncation" | "include" => 0,
            "tools" => other_tools(value, is_of_responses),
            "max_tool_calls" | "max_output_tokens" => 0, // taken above
            "store" if *value == Value::Bool(false) => 0,
            "background" if *value == Value::Bool(false) => 0,
            "service_tier" if *value == "default" => 0,
            "model" | "metadata" | "user" | "temperature" | "stream" | "stream_options" => 0,
            _ => RUNAWAY,
        })
        .fold(6 * items, u64::saturating_add);
    with_tools(input, output, all, charged)
}

/// What stands for something that the provider keeps, or is no text, may be of any size.
fn items_of(input: &Value) -> u64 {
    let of = |item: &Value| match item["type"].as_str() {
        None if item.get("type").is_none_or(Value::is_null) => parts_of(item),
        Some("message" | "function_call" | "function_call_output") => parts_of(item),
        Some("custom_tool_call" | "custom_tool_call_output" | "web_search_call") => parts_of(item),
        Some("reasoning")
            if item["encrypted_content"]
                .as_str()
                .is_some_and(|one| !one.is_empty()) =>
        {
            parts_of(item)
        }
        _ => RUNAWAY,
    };
    match input {
        Value::Array(items) => items.iter().map(of).fold(0, u64::saturating_add),
        other => tokens(other),
    }
}

fn parts_of(item: &Value) -> u64 {
    let fields = item.as_object().into_iter().flatten();
    fields
        .map(|(name, value)| match (name.as_str(), value) {
            ("content" | "output", Value::Array(parts)) => parts
                .iter()
                .map(|part| match part["type"].as_str() {
                    Some("input_text" | "output_text" | "refusal") => tokens(part),
                    Some("input_image" | "input_audio") => tokens(part),
                    _ => RUNAWAY,
                })
                .sum(),
            // with a name of its own
            ("type" | "role" | "status", _) => 0,
            (_, value) => tokens(value),
        })
        .fold(0, u64::saturating_add)
}

/// Completions and embeddings: each prompt by itself, each with its choices.
fn worst_of_texts(api: Api, body: &Fields) -> Bill {
    let name = if api == Api::Embeddings {
        "input"
    } else {
        "prompt"
    };
    let prompt = body.get(name).cloned().unwrap_or(Value::Null);
    let (prompts, read): (u64, u64) = match &prompt {
        Value::Array(items) if !items.iter().all(Value::is_u64) => {
            (items.len() as u64, items.iter().map(text_or_ids).sum())
        }
        other => (1, text_or_ids(other)),
    };
    let suffix = body.get("suffix").map_or(0, tokens);
    let choices = largest(body, CHOICES).max(1);
    let output = match api {
        Api::Embeddings => 0,
        _ => largest(body, MAXIMA) * choices * prompts,
    };
    let other: u64 = body
        .iter()
        .map(|(field, value)| match field.as_str() {
            _ if value.is_null() || field == name || field == "suffix" => 0,
            "echo" | "logprobs" | "dimensions" | "encoding_format" | "truncate_prompt_tokens" => 0,
            field if MAXIMA.contains(&field) || CHOICES.contains(&field) => 0, // taken above
            field if same(field, "max_length") => 0,
            field
                if HARMLESS.contains(&field)
                    && !matches!(field, "tools" | "messages" | "system") =>
            {
                0
            }
            _ => RUNAWAY,
        })
        .fold(0, u64::saturating_add);
    Bill {
        tokens: (read + suffix * prompts + 6 * prompts)
            .saturating_add(output)
            .saturating_add(other),
        calls: 0,
    }
}

fn text_or_ids(prompt: &Value) -> u64 {
    match prompt {
        Value::String(text) => text.len() as u64,
        Value::Array(ids) if ids.iter().all(Value::is_u64) => ids.len() as u64,
        Value::Null => 1,
        _ => RUNAWAY,
    }
}

/// Mostly what the API has a price for and takes as it is: a tool that is refused makes no calls.
fn provided_tools(priced: &'static [&'static str]) -> BoxedStrategy<Value> {
    let fields = prop_oneof![
        8 => Just(Vec::new()),
        1 => vec((name(TOOL_FIELDS), scalar()), 1..2),
    ];
    let kind = prop_oneof![
        12 => select(priced).prop_map(str::to_owned),
        2 => select(TOOL_TYPES).prop_map(str::to_owned),
        1 => name(TOOL_TYPES),
    ];
    let uses = proptest::option::of(0..9u64);
    let one = (kind, fields, uses).prop_map(|(kind, fields, uses)| {
        let mut tool: Fields = fields.into_iter().collect();
        let named = kind.strip_suffix("_20250305");
        let named = named.or_else(|| kind.strip_suffix("_20250910"));
        tool.extend(named.map(|named| ("name".to_owned(), json!(named))));
        tool.insert("type".to_owned(), json!(kind));
        tool.extend(uses.map(|uses| ("max_uses".to_owned(), json!(uses))));
        Value::Object(tool)
    });
    vec(one, 0..3).prop_map(Value::Array).boxed()
}

/// The same, some of them within another tool, beside which one stands that is priced.
fn nested_tools() -> BoxedStrategy<Value> {
    let plain = || provided_tools(OF_RESPONSES);
    let within = (plain(), any::<bool>()).prop_map(|(tools, beside)| {
        let function = json!([{"type": "function", "name": "f"}]);
        let tools = if tools == json!([]) { function } else { tools };
        let space = json!({"type": "namespace", "name": "n", "tools": tools});
        match beside {
            true => json!([space, {"type": "web_search"}]),
            false => json!([space]),
        }
    });
    prop_oneof![3 => plain(), 1 => within].boxed()
}

fn item() -> BoxedStrategy<Value> {
    let part = (
        select(&["input_text", "output_text", "input_image", "refusal"][..]),
        ".{0,12}",
    )
        .prop_map(|(kind, text)| {
            let name = if kind == "refusal" { "refusal" } else { "text" };
            json!({"type": kind, name: text})
        });
    let content = prop_oneof![
        ".{0,20}".prop_map(|text| json!(text)),
        vec(prop_oneof![4 => part, 1 => media::medium()], 0..3).prop_map(Value::Array)
    ];
    let shown = vec(media::medium(), 1..3)
        .prop_map(|parts| json!({"type": "function_call_output", "call_id": "c", "output": parts}));
    let message = content.prop_map(|content| json!({"role": "user", "content": content}));
    let call = ("[a-z]{1,9}", ".{0,20}").prop_map(|(name, arguments)| {
        json!({"type": "function_call", "call_id": "c", "name": name, "arguments": arguments})
    });
    let output = ".{0,20}"
        .prop_map(|text| json!({"type": "function_call_output", "call_id": "c", "output": text}));
    let thought = ".{0,20}".prop_map(|sealed| json!({"type": "reasoning", "id": "r", "summary": [], "encrypted_content": sealed}));
    let search = ".{0,20}".prop_map(|query| json!({"type": "web_search_call", "id": "ws", "action": {"type": "search", "query": query}}));
    let odd = object(
        &["content", "role", "id", "output", "summary", "file_id"],
        scalar().boxed(),
    );
    prop_oneof![6 => message, 1 => call, 1 => output, 1 => thought, 1 => search, 1 => shown, 2 => odd].boxed()
}

fn with_others(mut body: Fields, others: Vec<(String, Value)>) -> Fields {
    body.insert("model".to_owned(), json!("m"));
    body.extend(others);
    body
}

fn others(names: &'static [&'static str]) -> impl Strategy<Value = Vec<(String, Value)>> {
    let value = prop_oneof![
        4 => scalar(),
        1 => vec(scalar(), 0..3).prop_map(Value::Array),
        1 => object(names, scalar().boxed()),
    ];
    vec((name(names), value), 0..2)
}

fn response_body() -> impl Strategy<Value = Fields> {
    let input = prop_oneof![
        ".{0,30}".prop_map(|text| json!(text)),
        vec(item(), 1..4).prop_map(Value::Array)
    ];
    let tools = prop_oneof![1 => Just(None), 2 => nested_tools().prop_map(Some)];
    let most = proptest::option::of(0..9u64);
    (input, 1..300u64, tools, most, others(RESPONSE_FIELDS)).prop_map(
        |(input, max, tools, most, others)| {
            let mut body = Map::new();
            body.insert("input".to_owned(), input);
            body.insert("max_output_tokens".to_owned(), json!(max));
            body.extend(tools.map(|tools| ("tools".to_owned(), tools)));
            body.extend(most.map(|most| ("max_tool_calls".to_owned(), json!(most))));
            with_others(body, others)
        },
    )
}

fn text_body() -> impl Strategy<Value = Fields> {
    let text = || ".{0,20}".prop_map(|text| json!(text));
    let ids = || vec(0..99u64, 0..9).prop_map(|ids| json!(ids));
    let several = vec(prop_oneof![text(), ids(), scalar()], 0..4).prop_map(Value::Array);
    let prompt = prop_oneof![3 => text(), 1 => ids(), 2 => several, 1 => scalar()];
    let max = proptest::option::of(1..300u64);
    let suffix = proptest::option::of(text());
    (prompt, max, suffix, others(TEXT_FIELDS)).prop_map(|(prompt, max, suffix, others)| {
        let mut body = Map::new();
        body.insert("prompt".to_owned(), prompt);
        body.extend(max.map(|max| ("max_tokens".to_owned(), json!(max))));
        body.extend(suffix.map(|suffix| ("suffix".to_owned(), suffix)));
        with_others(body, others)
    })
}

/// The same as embeddings take it.
fn embedded(mut body: Fields) -> Fields {
    let input = body.remove("prompt").unwrap_or_default();
    body.remove("suffix");
    body.remove("max_tokens");
    body.insert("input".to_owned(), input);
    body
}

/// Most of the odd ones are refused for something else before their tools are looked at.
fn message_body() -> impl Strategy<Value = Fields> {
    let plain = (vec(message(), 1..3), 1..300u64).prop_map(|(messages, max)| {
        let fields = json!({"model": "m", "max_tokens": max, "messages": messages});
        fields.as_object().cloned().unwrap_or_default()
    });
    let body = prop_oneof![2 => plain.boxed(), 1 => body().boxed()];
    (body, provided_tools(OF_MESSAGES)).prop_map(|(mut body, tools)| {
        body.insert("tools".to_owned(), tools);
        body
    })
}

/// Each body, in the API and the profile that it is for, with what the worst provider bills for what is forwarded.
fn billed(api: Api, profile: Profile, body: Fields) -> Option<(Bill, Bill, Fields)> {
    let (hold, forwarded) = let_through(api, profile, body)?;
    let bill = match api {
        Api::Messages => worst_of_messages(forwarded.clone()),
        Api::Responses => worst_of_responses(&forwarded),
        _ => worst_of_texts(api, &forwarded),
    };
    Some((hold, bill, forwarded))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(bodies()))]

    #[test]
    fn no_text_is_billed_above_its_hold(body in text_body()) {
        for profile in [Profile::OpenAi, Profile::Generic] {
            for (api, body) in [(Api::Completions, body.clone()), (Api::Embeddings, embedded(body.clone()))] {
                if let Some((hold, bill, forwarded)) = billed(api, profile, body) {
                    prop_assert!(bill.tokens <= hold.tokens, "{bill:?} of {hold:?}: {forwarded:?}");
                }
            }
        }
    }

    #[test]
    fn no_response_and_no_call_of_its_tools_is_billed_above_its_hold(body in response_body()) {
        for profile in [Profile::OpenAi, Profile::Generic] {
            if let Some((hold, bill, forwarded)) = billed(Api::Responses, profile, body.clone()) {
                prop_assert!(bill.tokens <= hold.tokens && bill.calls <= hold.calls,
                    "{bill:?} of {hold:?}: {forwarded:?}");
            }
        }
    }

    #[test]
    fn no_message_and_no_call_of_its_tools_is_billed_above_its_hold(body in message_body()) {
        for profile in [Profile::Anthropic, Profile::Generic] {
            if let Some((hold, bill, forwarded)) = billed(Api::Messages, profile, body.clone()) {
                prop_assert!(bill.tokens <= hold.tokens && bill.calls <= hold.calls,
                    "{bill:?} of {hold:?}: {forwarded:?}");
            }
        }
    }
}

#[test]
fn enough_of_these_are_let_through_with_calls_of_tools_among_them() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let all = 500;
    let mut through = [0usize; 4];
    let mut calling = [0usize; 4];
    for _ in 0..all {
        let responses = response_body().new_tree(&mut runner).unwrap().current();
        let messages = message_body().new_tree(&mut runner).unwrap().current();
        let texts = text_body().new_tree(&mut runner).unwrap().current();
        let made = [
            (Api::Responses, Profile::OpenAi, responses),
            (Api::Messages, Profile::Anthropic, messages),
            (Api::Completions, Profile::OpenAi, texts.clone()),
            (Api::Embeddings, Profile::OpenAi, embedded(texts)),
        ];
        for (index, (api, profile, body)) in made.into_iter().enumerate() {
            if let Some((hold, _, _)) = billed(api, profile, body) {
                through[index] += 1;
                calling[index] += usize::from(hold.calls > 0);
            }
        }
    }
    assert!(
        through.iter().all(|count| (20..480).contains(count)),
        "{through:?} of {all}"
    );
    let [responses, messages, ..] = calling;
    assert!(
        responses >= all / 10 && messages >= all / 10,
        "{calling:?} of {all} with calls that are charged for"
    );
}
