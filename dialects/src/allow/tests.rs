//! What was seen through, and what the official clients send, each a line.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a case is a literal that is used once"
)]

use super::*;
use crate::{
    fields::Fault,
    media::{AudioLimit, ImageLimit, ImageRule},
};

/// What the model writes at most.
const OUTPUT_MAX: u64 = 4096;

fn map(value: Value) -> Fields {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

fn hi(extra: Value) -> Fields {
    let mut body = map(json!({
        "model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}],
    }));
    body.extend(map(extra));
    body
}

fn with_content(part: Value) -> Value {
    json!({"messages": [{"role": "user", "content": [part]}]})
}

/// The field that is named, if any.
#[track_caller]
fn named(api: Api, profile: Profile, accepted: &[&str], extra: Value) -> Option<String> {
    let accepted: Vec<String> = accepted.iter().map(ToString::to_string).collect();
    let allowed = Allowed {
        api,
        profile,
        accepted: [&accepted, &[]],
        output_max: OUTPUT_MAX,
        class: None,
        tools: &[],
        media: MediaLimits::default(),
    };
    let error = allowed.check(&hi(extra)).err()?;
    assert_eq!(error.fault, Fault::Unbounded);
    Some(error.param)
}

#[test]
fn a_priced_tool_of_the_provider_is_let_through_where_its_calls_are_bounded_and_nowhere_else() {
    let priced = [Provided {
        kind: "web_search".to_owned(),
        calls_max: 2,
        input_max: 10,
        charged: true,
    }];
    let allowed = Allowed {
        api: Api::Responses,
        profile: Profile::OpenAi,
        accepted: [&[], &[]],
        output_max: OUTPUT_MAX,
        class: None,
        tools: &priced,
        media: MediaLimits::default(),
    };
    let check = |tools: Value| {
        let body = json!({"model": "m", "max_output_tokens": 9, "input": "hi", "tools": tools});
        allowed.check(&map(body)).err().map(|error| error.param)
    };
    let search = json!({"type": "web_search"});
    assert_eq!(check(json!([search])), None);
    let within = json!([{"type": "namespace", "name": "n", "tools": [search]}]);
    assert_eq!(check(within).as_deref(), Some("tools[0].tools[0]"));
}

#[track_caller]
fn refused(api: Api, extra: Value, param: &str) {
    let profiles = match api {
        Api::Chat => [Profile::OpenAi, Profile::Generic],
        Api::Messages => [Profile::Anthropic, Profile::Generic],
        Api::Completions | Api::Embeddings | Api::Responses => [Profile::OpenAi, Profile::Generic],
    };
    for profile in profiles {
        let found = named(api, profile, &[], extra.clone());
        assert_eq!(found.as_deref(), Some(param), "{profile:?} {extra}");
    }
}

#[track_caller]
fn passes(api: Api, profile: Profile, extra: Value) {
    assert_eq!(named(api, profile, &[], extra.clone()), None, "{extra}");
}

#[test]
fn a_chat_field_that_is_not_listed_is_named() {
    for field in [
        "n_predict",
        "max_new_tokens",
        "max_length",
        "auto_max_new_tokens",
        "max_output_tokens",
        "options",
        "search_parameters",
        "enable_search",
        "web_search",
        "web_search_options",
        "fallbacks",
        "provider",
        "route",
        "preset",
        "cached_content",
        "extra_body",
        "prompt_embeds",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "prediction",
        "audio",
        "plugins",
        "models",
        "transforms",
        "echo",
        "previous_response_id",
        "conversation",
        "thread",
        "container",
        "mcp_servers",
        "never_heard_of",
    ] {
        refused(Api::Chat, json!({ field: {"a": 1} }), field);
    }
    refused(
        Api::Chat,
        json!({"options": {"num_predict": 90_000}}),
        "options",
    );
    refused(Api::Chat, json!({"store": true}), "store");
    refused(
        Api::Chat,
        json!({"modalities": ["text", "audio"]}),
        "modalities",
    );
    refused(
        Api::Chat,
        json!({"service_tier": "priority"}),
        "service_tier",
    );
    refused(
        Api::Chat,
        json!({"stream_options": {"x": 1}}),
        "stream_options.x",
    );
}

#[test]
fn a_messages_field_that_is_not_listed_is_named() {
    for field in [
        "speed",
        "inference_geo",
        "context_management",
        "compaction",
        "thread",
        "fallbacks",
        "container",
        "mcp_servers",
        "betas",
        "never_heard_of",
    ] {
        refused(Api::Messages, json!({ field: "fast" }), field);
    }
    refused(
        Api::Messages,
        json!({"service_tier": "priority"}),
        "service_tier",
    );
    let day = json!([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "24h"}}]);
    refused(
        Api::Messages,
        json!({ "system": day }),
        "system[0].cache_control",
    );
    for tool in ["bash_code_execution_20260101", "bash_", "computer_2025"] {
        let tools = json!([{"type": tool, "name": "x"}]);
        refused(Api::Messages, json!({ "tools": tools }), "tools[0]");
    }
    // settings are not counted: they must not hold text
    let text = "x ".repeat(5_000);
    refused(
        Api::Chat,
        json!({ "reasoning_effort": text }),
        "reasoning_effort",
    );
    refused(Api::Chat, json!({ "verbosity": text }), "verbosity");
    let failed = with_content(
        json!({"type": "tool_result", "tool_use_id": "a", "content": "", "is_error": text}),
    );
    refused(Api::Messages, failed, "messages[0].content[0].is_error");
    // a floor above the maximum: not every server takes the lower of the two
    refused(Api::Chat, json!({"min_tokens": 9000}), "min_tokens");
    refused(
        Api::Messages,
        json!({"thinking": {"type": "enabled", "budget_tokens": 9}}),
        "thinking.budget_tokens",
    );
    let image = with_content(json!({"type": "image", "source": {"type": "url"}}));
    refused(Api::Messages, image, "messages[0].content[0]");
    let nested = with_content(
        json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "document"}]}),
    );
    refused(Api::Messages, nested, "messages[0].content[0].content[0]");
}

#[test]
fn a_variant_of_a_name_that_bounds_is_refused_even_where_it_is_accepted() {
    for name in [
        "MAX_TOKENS",
        "Max_Tokens",
        "maxTokens",
        "max-tokens",
        "N",
        "BEST_OF",
        "bestOf",
        "Messages",
        "TOOLS",
        "Stream",
        "MAX_COMPLETION_TOKENS",
        "StreamOptions",
        "meſsages",
        "max_toKens",
    ] {
        let found = named(Api::Chat, Profile::Generic, &[name], json!({ name: 5 }));
        assert_eq!(found.as_deref(), Some(name));
    }
}

/// With a beta that lets thinking pass the maximum, what counts is the maximum that goes out.
#[test]
fn a_thinking_budget_stays_below_the_models_own_maximum() {
    let thinking = |budget: u64| json!({"max_tokens": 1_000_000, "thinking": {"type": "enabled", "budget_tokens": budget}});
    let found = |budget| named(Api::Messages, Profile::Anthropic, &[], thinking(budget));
    assert_eq!(found(OUTPUT_MAX - 1), None);
    assert_eq!(found(OUTPUT_MAX).as_deref(), Some("thinking.budget_tokens"));
}

#[test]
fn tools_that_the_provider_runs_are_refused() {
    for (tool, param) in [
        (json!({"type": "web_search"}), "tools[0]"),
        (json!({"type": ["web_search"]}), "tools[0]"),
        (json!({"type": "", "function": {"name": "f"}}), "tools[0]"),
        (json!(["web_search"]), "tools[0]"),
        (json!({"google_search": {}}), "tools[0].google_search"),
        (
            json!({"type": "function", "function": {"name": "f"}, "google_search": {}}),
            "tools[0].google_search",
        ),
        (
            json!({"type": "builtin_function", "function": {"name": "$web_search"}}),
            "tools[0]",
        ),
    ] {
        refused(Api::Chat, json!({ "tools": [tool] }), param);
    }
    for kind in [
        "web_search_20250305",
        "web_fetch_20250910",
        "code_execution_20250825",
        "mcp_toolset",
    ] {
        refused(
            Api::Messages,
            json!({"tools": [{"type": kind, "name": "x"}]}),
            "tools[0]",
        );
    }
}

#[test]
fn tools_that_the_client_runs_pass() {
    for kind in [
        "bash_20250124",
        "text_editor_20250728",
        "memory_20250818",
        "computer_20250124",
        "custom",
    ] {
        passes(
            Api::Messages,
            Profile::Anthropic,
            json!({"tools": [{"type": kind, "name": "x"}]}),
        );
    }
    let custom = json!({"name": "x", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}});
    passes(
        Api::Messages,
        Profile::Generic,
        json!({ "tools": [custom] }),
    );
    let tools = json!([
        {"type": "function", "function": {"name": "f", "parameters": {"enum": [1]}, "strict": true}},
        {"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}},
    ]);
    passes(Api::Chat, Profile::OpenAi, json!({ "tools": tools }));
}

#[test]
fn parts_and_messages_are_listed_too() {
    for (part, param) in [
        (
            json!({"type": "text", "text": "a", "uuid": "x", "image_url": "y"}),
            "messages[0].content[0].uuid",
        ),
        (
            json!({"type": "text", "text": "a", "image_url": {"url": "y"}}),
            "messages[0].content[0].image_url",
        ),
        (
            json!({"type": "text", "text": {"a": 1}}),
            "messages[0].content[0].text",
        ),
        (
            json!({"type": "image_url", "image_url": {"url": "y"}}),
            "messages[0].content[0]",
        ),
        (
            json!({"type": "file", "file": {"file_id": "y"}}),
            "messages[0].content[0]",
        ),
        (json!({"image_url": {"url": "y"}}), "messages[0].content[0]"),
        (json!("text"), "messages[0].content[0]"),
    ] {
        refused(Api::Chat, with_content(part), param);
    }
    for field in ["images", "audio", "Content", "documents"] {
        let message = json!({"role": "user", "content": "a", field: ["x"]});
        refused(
            Api::Chat,
            json!({ "messages": [message] }),
            &format!("messages[0].{field}"),
        );
    }
}

#[test]
fn what_the_official_clients_send_passes() {
    let chat = json!({
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "r"},
        ],
        "max_tokens": 5, "n": 1, "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5,
        "response_format": {"type": "json_object"}, "user": "u", "seed": 1, "stop": ["x"], "store": false,
        "modalities": ["text"], "audio": null,
    });
    passes(Api::Chat, Profile::OpenAi, chat.clone());
    passes(Api::Chat, Profile::Generic, chat);
    passes(
        Api::Chat,
        Profile::OpenAi,
        json!({"service_tier": "auto", "verbosity": "low"}),
    );
    passes(
        Api::Chat,
        Profile::Generic,
        json!({"top_k": 5, "best_of": 2}),
    );
    let messages = json!({
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "text", "text": "a", "citations": null},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"file_id": "mine"}, "caller": {"type": "direct"}},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}]}]},
        ],
        "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 5}, "top_k": 3,
    });
    passes(Api::Messages, Profile::Anthropic, messages.clone());
    assert!(refuse_state(&hi(messages), [&[], &[]]).is_ok());
    let schema = json!({"type": "object", "properties": {"file_id": {"type": "string"}}});
    let format = json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}});
    passes(Api::Messages, Profile::Anthropic, format.clone());
    assert!(refuse_state(&hi(format), [&[], &[]]).is_ok());
}

#[test]
fn what_coding_agents_send_passes() {
    // Codex: tools of its own under one name, calls of them, and what it says of itself
    let function =
        json!({"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": false});
    let codex = json!({
        "messages": null, "max_tokens": null,
        "tools": [function, {"type": "namespace", "name": "agents", "description": "d", "tools": [function]}],
        "input": [{"type": "function_call", "id": "1", "call_id": "c", "namespace": "agents", "name": "f", "arguments": "{}"}],
        "client_metadata": {"session_id": "s", "thread_id": "t"}, "store": false, "prompt_cache_key": "k",
        "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}, "parallel_tool_calls": true,
    });
    passes(Api::Responses, Profile::OpenAi, codex.clone());
    assert!(refuse_state(&hi(codex), [&[], &[]]).is_ok());
    let search = json!({"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]});
    refused(
        Api::Responses,
        json!({"messages": null, "max_tokens": null, "tools": [search]}),
        "tools[0].tools[0]",
    );
    // Claude Code
    let claude = json!({
        "messages": [
            {"role": "user", "content": "a"}, {"role": "system", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [
                {"type": "tool_reference", "tool_name": "f"},
            ]}]},
        ],
        "tools": [{"name": "f", "input_schema": {}, "defer_loading": true}],
        "thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    });
    passes(Api::Messages, Profile::Anthropic, claude);
}

#[test]
fn the_operator_may_accept_more() {
    let accepted = ["chat_template_kwargs", "messages[].prefix"];
    let body = json!({"chat_template_kwargs": {"a": {"b": 1}}, "messages": [{"role": "assistant", "content": "a", "prefix": true}]});
    assert_eq!(
        named(Api::Chat, Profile::Generic, &accepted, body.clone()),
        None
    );
    let found = named(Api::Chat, Profile::Generic, &accepted[1..], body);
    assert_eq!(found.as_deref(), Some("chat_template_kwargs"));
}

#[test]
fn the_class_of_the_price_is_written_where_the_provider_has_several() {
    let pinned = |profile, accepted: &[String], extra: Value| {
        let mut body = hi(extra);
        let allowed = Allowed {
            api: Api::Chat,
            profile,
            accepted: [accepted, &[]],
            output_max: OUTPUT_MAX,
            class: None,
            tools: &[],
            media: MediaLimits::default(),
        };
        allowed.pin(&mut body);
        body.get("service_tier").cloned()
    };
    assert_eq!(
        pinned(Profile::OpenAi, &[], json!({})),
        Some(json!("default"))
    );
    assert_eq!(
        pinned(Profile::OpenAi, &[], json!({"service_tier": "auto"})),
        Some(json!("default"))
    );
    assert_eq!(
        pinned(Profile::Anthropic, &[], json!({})),
        Some(json!("standard_only"))
    );
    assert_eq!(pinned(Profile::Generic, &[], json!({})), None);
    let accepted = ["service_tier".to_owned()];
    assert_eq!(
        pinned(Profile::OpenAi, &accepted, json!({"service_tier": "flex"})),
        Some(json!("flex"))
    );
}

#[test]
fn a_beta_that_is_not_listed_is_refused() {
    let accepted = ["anthropic-beta=mine".to_owned()];
    let allowed = Allowed {
        api: Api::Messages,
        profile: Profile::Anthropic,
        accepted: [&accepted, &[]],
        output_max: OUTPUT_MAX,
        class: None,
        tools: &[],
        media: MediaLimits::default(),
    };
    let check = |value: &str| allowed.check_betas([value].into_iter()).is_ok();
    assert!(check(
        "claude-code-20250219, prompt-caching-2024-07-31,mine"
    ));
    // those of Claude Code and of the AI SDK
    assert!(check(
        "interleaved-thinking-2025-05-14,context-management-2025-06-27,mid-conversation-tool-changes-2026-07-01,thinking-token-count-2026-05-13,advanced-tool-use-2025-11-20,effort-2025-11-24,structured-outputs-2025-11-13"
    ));
    assert!(!check("claude-code-20250219,context-1m-2025-08-07"));
    assert!(!check("fast-mode-2026-02-01"));
}

#[test]
fn a_version_that_is_not_listed_is_refused() {
    let accepted = ["anthropic-version=2030-01-01".to_owned()];
    let check = |api, version: &str| {
        let allowed = Allowed {
            api,
            profile: Profile::Generic,
            accepted: [&accepted, &[]],
            output_max: OUTPUT_MAX,
            class: None,
            tools: &[],
            media: MediaLimits::default(),
        };
        allowed.check_versions([version].into_iter()).is_ok()
    };
    for known in ["2026-10-21", "2023-06-01", " 2023-06-01", "2030-01-01"] {
        assert!(check(Api::Messages, known), "{known}");
    }
    for unknown in ["2099-01-01", "", "?", "2023-06-01, 2099-01-01"] {
        assert!(!check(Api::Messages, unknown), "{unknown}");
    }
    assert!(check(Api::Chat, "2099-01-01"), "it is not sent on");
}

#[test]
fn texts_and_embeddings_have_lists_of_their_own() {
    for (api, field) in [
        (Api::Completions, "messages"),
        (Api::Completions, "tools"),
        (Api::Completions, "prompt_embeds"),
        (Api::Completions, "never_heard_of"),
        (Api::Embeddings, "messages"),
        (Api::Embeddings, "stream"),
        (Api::Embeddings, "never_heard_of"),
    ] {
        let body = map(json!({ "model": "m", field: ["a"] }));
        for profile in [Profile::OpenAi, Profile::Generic] {
            let allowed = Allowed {
                api,
                profile,
                accepted: [&[], &[]],
                output_max: OUTPUT_MAX,
                class: None,
                tools: &[],
                media: MediaLimits::default(),
            };
            assert_eq!(allowed.check(&body).unwrap_err().param, field);
        }
    }
    let allowed = Allowed {
        api: Api::Completions,
        profile: Profile::OpenAi,
        accepted: [&[], &[]],
        output_max: OUTPUT_MAX,
        class: None,
        tools: &[],
        media: MediaLimits::default(),
    };
    let body = json!({
        "model": "m", "prompt": ["a"], "suffix": "b", "echo": true, "best_of": 2, "n": 1, "logprobs": 5,
        "stream": true, "stream_options": {"include_usage": true}, "stop": ["x"], "user": "u",
    });
    allowed.check(&map(body)).unwrap();
    let mut top_k = map(json!({"model": "m", "prompt": "a", "top_k": 5}));
    assert_eq!(allowed.check(&top_k).unwrap_err().param, "top_k");
    top_k.shift_remove("top_k");
    let embeddings = Allowed {
        api: Api::Embeddings,
        ..allowed
    };
    let body = json!({"model": "m", "input": [1, 2], "encoding_format": "base64", "dimensions": 8, "user": "u"});
    embeddings.check(&map(body)).unwrap();
    for one_class in [allowed, embeddings] {
        let mut body = map(json!({"model": "m"}));
        one_class.pin(&mut body);
        assert!(!body.contains_key("service_tier"));
    }
    let odd = map(json!({"model": "m", "input": "a", "dimensions": "x"}));
    assert_eq!(embeddings.check(&odd).unwrap_err().param, "dimensions");
}

#[test]
fn a_response_may_say_what_cannot_cost_more() {
    let check = |extra: Value| {
        let mut body = map(json!({"model": "m", "input": "hi"}));
        body.extend(map(extra));
        let allowed = Allowed {
            api: Api::Responses,
            profile: Profile::OpenAi,
            accepted: [&[], &[]],
            output_max: OUTPUT_MAX,
            class: None,
            tools: &[],
            media: MediaLimits::default(),
        };
        allowed.check(&body).err().map(|error| error.param)
    };
    for (extra, param) in [
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (
            json!({"tools": [{"type": "mcp", "server_url": "x"}]}),
            "tools[0]",
        ),
        (
            json!({"input": [{"type": "web_search_call", "id": "x"}]}),
            "input[0]",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0]",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}]}),
            "input[0].output[0]",
        ),
        (json!({"include": ["web_search_call.results"]}), "include"),
        (json!({"reasoning": {"mode": "pro"}}), "reasoning.mode"),
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"context_management": []}), "context_management"),
        (json!({"moderation": {"a": 1}}), "moderation"),
        (json!({"messages": []}), "messages"),
    ] {
        assert_eq!(check(extra.clone()).as_deref(), Some(param), "{extra}");
    }
    let agent = json!({
        "instructions": "be kind", "store": false, "stream": true, "parallel_tool_calls": true, "tool_choice": "auto",
        "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "high", "summary": "auto"},
        "prompt_cache_key": "k", "text": {"verbosity": "low"}, "truncation": "disabled", "service_tier": "auto",
        "tools": [
            {"type": "function", "name": "f", "parameters": {}, "strict": false},
            {"type": "custom", "name": "c", "format": {"type": "grammar"}},
        ],
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": null, "encrypted_content": "x"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
            {"type": "custom_tool_call", "call_id": "d", "name": "c", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        ],
    });
    assert_eq!(check(agent), None);
}

#[test]
fn what_clears_input_passes_and_what_compacts_it_does_not() {
    let edits = |kind: &str| json!({"context_management": {"edits": [{"type": kind}]}});
    for kind in ["clear_thinking_20251015", "clear_tool_uses_20250919"] {
        passes(Api::Messages, Profile::Anthropic, edits(kind));
    }
    refused(
        Api::Messages,
        edits("compact_20260112"),
        "context_management",
    );
    let mut both = edits("clear_thinking_20251015");
    both["context_management"]["more"] = json!(1);
    refused(Api::Messages, both, "context_management");
}

#[test]
fn a_class_that_has_a_price_may_be_asked_for_and_only_that() {
    let class = crate::Class {
        aspect: crate::Aspect::ServiceTier,
        value: "priority".to_owned(),
        answers_as: Vec::new(),
    };
    let allowed = |class| Allowed {
        api: Api::Chat,
        profile: Profile::OpenAi,
        accepted: [&[], &[]],
        output_max: OUTPUT_MAX,
        class,
        tools: &[],
        media: MediaLimits::default(),
    };
    let mut body = hi(json!({"service_tier": "priority"}));
    assert!(class.is_asked(&body));
    assert!(allowed(None).check(&body).is_err());
    assert!(allowed(Some(&class)).check(&body).is_ok());
    allowed(Some(&class)).pin(&mut body);
    assert_eq!(body["service_tier"], "priority");
    assert!(!class.is_asked(&hi(json!({"service_tier": "flex"}))));
    let faster = hi(json!({"service_tier": "priority", "speed": "fast"}));
    assert!(allowed(Some(&class)).check(&faster).is_err());
}

/// What a model with limits for images and sounds may be sent.
fn with_media(api: Api, body: &Value) -> Result<(), String> {
    let image = ImageLimit {
        rule: ImageRule::Grid,
        max_tokens: 1000,
        pins_detail: true,
    };
    let audio = AudioLimit {
        tokens_per_second: 32,
    };
    let allowed = |media| Allowed {
        api,
        profile: Profile::of(api.dialect(), None),
        accepted: [&[], &[]],
        output_max: OUTPUT_MAX,
        class: None,
        tools: &[],
        media,
    };
    let body = body.as_object().unwrap();
    let without = allowed(MediaLimits::default()).check(body);
    assert!(without.is_err(), "nothing is known of its cost: {body:?}");
    let with = allowed(MediaLimits {
        image: Some(image),
        audio: Some(audio),
    });
    with.check(body).map_err(|error| error.param)
}

#[test]
fn images_and_sounds_pass_where_their_model_has_a_limit_for_them() {
    let user = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let input = |part: Value| json!({"input": [{"role": "user", "content": [part]}]});
    let image =
        json!({"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "auto"}});
    assert_eq!(with_media(Api::Chat, &user(image.clone())), Ok(()));
    let source = json!({"type": "base64", "media_type": "image/png", "data": "iVBO"});
    let block = json!({"type": "image", "source": source, "cache_control": {"type": "ephemeral"}});
    assert_eq!(with_media(Api::Messages, &user(block.clone())), Ok(()));
    let result = json!({"type": "tool_result", "tool_use_id": "t", "content": [block]});
    assert_eq!(with_media(Api::Messages, &user(result)), Ok(()));
    let shown = json!({"type": "input_image", "image_url": "https://x/y.png"});
    assert_eq!(with_media(Api::Responses, &input(shown.clone())), Ok(()));
    let gave =
        json!({"input": [{"type": "function_call_output", "call_id": "c", "output": [shown]}]});
    assert_eq!(with_media(Api::Responses, &gave), Ok(()));
    let sound =
        |data: &str| json!({"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}});
    assert_eq!(with_media(Api::Chat, &user(sound("//uQAA=="))), Ok(()));
    let at = "messages[0].content[0]";
    let url = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    for image in ["png", "jpeg", "WEBP", "gif"] {
        let inline = url(&format!("data:image/{image};base64,iVBO"));
        assert_eq!(with_media(Api::Chat, &user(inline)), Ok(()), "{image}");
    }
    let others = [
        "video/mp4",
        "application/pdf",
        "image/svg+xml",
        "image/pdf",
        "",
        "text/html",
    ];
    for other in others {
        for scheme in ["data:", "DATA:", " data:"] {
            let address = format!("{scheme}{other};base64,iVBO");
            let param = Err(format!("{at}.image_url.url"));
            assert_eq!(
                with_media(Api::Chat, &user(url(&address))),
                param,
                "{address}"
            );
            let shown = json!({"type": "input_image", "image_url": address});
            let param = Err("input[0].content[0].image_url".to_owned());
            assert_eq!(
                with_media(Api::Responses, &input(shown)),
                param,
                "{address}"
            );
        }
        let source = json!({"type": "base64", "media_type": other, "data": "iVBO"});
        let block = json!({"type": "image", "source": source});
        let param = Err(format!("{at}.source.media_type"));
        assert_eq!(with_media(Api::Messages, &user(block)), param, "{other}");
    }
    let refused = |api, body: Value, param: &str| {
        assert_eq!(with_media(api, &body), Err(param.to_owned()), "{body}");
    };
    refused(Api::Chat, user(sound("AAAA")), &format!("{at}.input_audio"));
    refused(Api::Messages, user(image), at);
    refused(Api::Messages, json!({"system": [block]}), "system[0]");
    refused(Api::Messages, user(sound("//uQAA==")), at);
    let more = json!({"type": "image_url", "image_url": {"url": "u"}, "uuid": "u"});
    refused(Api::Chat, user(more), &format!("{at}.uuid"));
    let file = json!({"type": "input_image", "file_id": "f"});
    refused(Api::Responses, input(file), "input[0].content[0].file_id");
    let document = json!({"type": "document", "source": source});
    refused(Api::Messages, user(document), at);
}

#[test]
fn an_image_is_looked_at_as_its_most_was_stated_for() {
    let url =
        |detail: Value| json!({"type": "image_url", "image_url": {"url": "u", "detail": detail}});
    let part = |detail: Value| json!({"type": "input_image", "image_url": "u", "detail": detail});
    let pinned = |body: &Value| {
        let mut body = body.as_object().unwrap().clone();
        let image = ImageLimit {
            rule: ImageRule::Fixed,
            max_tokens: 9,
            pins_detail: true,
        };
        let allowed = Allowed {
            api: Api::Chat,
            profile: Profile::Generic,
            accepted: [&[], &[]],
            output_max: OUTPUT_MAX,
            class: None,
            tools: &[],
            media: MediaLimits {
                image: Some(image),
                audio: None,
            },
        };
        allowed.pin(&mut body);
        Value::Object(body)
    };
    for (asked, sent) in [("auto", "high"), ("original", "high"), ("low", "low")] {
        let chat =
            |detail: &str| json!({"messages": [{"role": "user", "content": [url(json!(detail))]}]});
        assert_eq!(pinned(&chat(asked)), chat(sent));
        let given =
            |detail: &str| json!({"input": [{"output": [part(json!(detail))]}, {"content": "x"}]});
        assert_eq!(pinned(&given(asked)), given(sent));
    }
    let none =
        json!({"messages": [{"content": [url(Value::Null), {"type": "text", "text": "t"}]}]});
    assert_eq!(
        pinned(&none)["messages"][0]["content"][0]["image_url"]["detail"],
        "high"
    );
}

#[test]
fn what_has_no_maximum_names_the_setting_that_would_give_it_one() {
    let why = |api: Api, body: Value| {
        let allowed = Allowed {
            api,
            profile: Profile::of(api.dialect(), None),
            accepted: [&[], &[]],
            output_max: OUTPUT_MAX,
            class: None,
            tools: &[],
            media: MediaLimits::default(),
        };
        allowed
            .check(body.as_object().unwrap())
            .unwrap_err()
            .problem
    };
    let user = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let image = why(
        Api::Chat,
        user(json!({"type": "image_url", "image_url": {"url": "u"}})),
    );
    assert!(
        image.contains("have the operator set `image` for the model"),
        "{image}"
    );
    let image = why(Api::Messages, user(json!({"type": "image", "source": {}})));
    assert!(image.contains("`image`"), "{image}");
    let sound = why(
        Api::Chat,
        user(json!({"type": "input_audio", "input_audio": {}})),
    );
    assert!(sound.contains("`audio`"), "{sound}");
    let search =
        json!({"messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]});
    let search = why(Api::Messages, search);
    assert!(search.contains("a price for it under `tools`"), "{search}");
}
