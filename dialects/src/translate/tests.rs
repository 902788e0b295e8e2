//! What is refused by name, each a line; what is translated stands in the golden files.

use super::*;
use crate::fields::Fault;

fn map(value: Value) -> Fields {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

fn body(extra: Value) -> Fields {
    let mut body = map(
        json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
    );
    body.extend(map(extra));
    body
}

#[track_caller]
fn refused(way: Translation, extra: Value, param: &str) {
    let shown = extra.to_string();
    let error = way.request(&body(extra)).expect_err(&shown);
    assert_eq!(
        (error.fault, error.param.as_str()),
        (Fault::Invalid, param),
        "{shown}"
    );
}

#[track_caller]
fn asked(way: Translation, extra: Value) -> (Fields, Ask) {
    let shown = extra.to_string();
    let (body, ask, _) = way.request(&body(extra)).expect(&shown);
    (body, ask)
}

fn user(part: &Value) -> Value {
    json!({"messages": [{"role": "user", "content": [part]}]})
}

fn assistant(part: &Value) -> Value {
    json!({"messages": [{"role": "assistant", "content": [part]}]})
}

#[test]
fn every_pair_has_one_way() {
    for api in [Api::Chat, Api::Messages, Api::Completions, Api::Embeddings] {
        assert_eq!(between(api, api).unwrap(), None);
    }
    for client in [Api::Completions, Api::Embeddings] {
        for upstream in [Api::Chat, Api::Messages] {
            let none = between(client, upstream).unwrap_err();
            assert_eq!(none.param, "model");
            assert!(none.problem.contains("/v1/"), "{}", none.problem);
        }
    }
    let way = between(Api::Messages, Api::Chat).unwrap();
    assert_eq!(way, Some(Translation::MessagesToChat));
    let way = between(Api::Chat, Api::Messages).unwrap();
    assert_eq!(way, Some(Translation::ChatToMessages));
    let way = between(Api::Responses, Api::Chat).unwrap();
    assert_eq!(way, Some(Translation::ResponsesToChat));
    let way = between(Api::Responses, Api::Messages).unwrap();
    assert_eq!(way, Some(Translation::ResponsesToMessages));
}

#[test]
fn a_field_of_messages_without_counterpart_is_refused_by_name() {
    let refused = |extra, param: &str| refused(Translation::MessagesToChat, extra, param);
    for field in [
        "top_k",
        "container",
        "mcp_servers",
        "context_management",
        "inference_geo",
        "never_heard_of",
    ] {
        refused(json!({ field: 5 }), field);
    }
    refused(json!({"speed": "fast"}), "speed");
    let clears =
        |kind: &str| json!({"context_management": {"edits": [{"type": kind, "keep": "all"}]}});
    refused(clears("clear_tool_uses_20250919"), "context_management");
    asked(
        Translation::MessagesToChat,
        clears("clear_thinking_20251015"),
    );
    refused(json!({"thinking": {"type": "sometimes"}}), "thinking");
    refused(json!({"max_tokens": null}), "max_tokens");
    refused(json!({"metadata": {"user_id": "u", "x": 1}}), "metadata.x");
    refused(
        json!({"output_config": {"effort": "max"}}),
        "output_config.effort",
    );
    refused(
        json!({"output_config": {"task_budget": 1}}),
        "output_config.task_budget",
    );
    refused(
        json!({"output_config": {"format": {"type": "text"}}}),
        "output_config.format",
    );
    refused(json!({"system": [{"type": "image"}]}), "system[0]");
    refused(
        json!({"messages": [{"role": "tool", "content": "x"}]}),
        "messages[0].role",
    );
    refused(
        json!({"messages": [{"role": "user", "content": "x", "name": "n"}]}),
        "messages[0].name",
    );
}

#[test]
fn a_tool_of_messages_without_counterpart_is_refused_by_name() {
    let refused = |extra, param: &str| refused(Translation::MessagesToChat, extra, param);
    let tool = |extra: Value| {
        let mut tool = map(json!({"name": "t", "input_schema": {"type": "object"}}));
        tool.extend(map(extra));
        json!({ "tools": [tool] })
    };
    refused(tool(json!({"type": "bash_20250124"})), "tools[0].type");
    refused(
        tool(json!({"type": "web_search_20250305"})),
        "tools[0].type",
    );
    refused(
        tool(json!({"input_examples": [{}]})),
        "tools[0].input_examples",
    );
    refused(
        tool(json!({"defer_loading": true})),
        "tools[0].defer_loading",
    );
    refused(
        tool(json!({"allowed_callers": ["code"]})),
        "tools[0].allowed_callers",
    );
    refused(tool(json!({"input_schema": null})), "tools[0].input_schema");
    refused(tool(json!({"name": ""})), "tools[0].name");
    refused(json!({"tool_choice": {"type": "any"}}), "tool_choice");
    refused(json!({"tool_choice": "auto"}), "tool_choice");
    let mut choice = tool(json!({}));
    choice["tool_choice"] = json!({"type": "tool"});
    refused(choice.clone(), "tool_choice");
    choice["tool_choice"] = json!({"type": "auto", "x": 1});
    refused(choice.clone(), "tool_choice.x");
    choice["tool_choice"] = json!({"type": "auto", "disable_parallel_tool_use": 1});
    refused(choice, "tool_choice.disable_parallel_tool_use");
    asked(
        Translation::MessagesToChat,
        tool(json!({"defer_loading": false, "allowed_callers": ["direct"]})),
    );
}

#[test]
fn a_block_of_messages_without_counterpart_is_refused_by_name() {
    let refused = |extra, param: &str| refused(Translation::MessagesToChat, extra, param);
    let first = "messages[0].content[0]";
    for kind in ["document", "search_result", "container_upload", "thinking"] {
        refused(user(&json!({ "type": kind })), first);
    }
    for kind in ["server_tool_use", "web_search_tool_result", "image"] {
        refused(assistant(&json!({ "type": kind })), first);
    }
    refused(user(&json!({"text": "x"})), first);
    refused(
        user(&json!({"type": "text", "text": 5})),
        "messages[0].content[0].text",
    );
    refused(
        user(&json!({"type": "text", "text": "a", "x": 1})),
        "messages[0].content[0].x",
    );
    let image = |source: Value| user(&json!({"type": "image", "source": source}));
    refused(
        image(json!({"type": "file", "file_id": "f"})),
        "messages[0].content[0].source",
    );
    refused(
        image(json!({"type": "base64", "data": "x"})),
        "messages[0].content[0].source",
    );
    let result = |extra: Value| {
        let mut result = map(json!({"type": "tool_result", "tool_use_id": "t"}));
        result.extend(map(extra));
        user(&Value::Object(result))
    };
    refused(
        result(json!({"tool_use_id": 5})),
        "messages[0].content[0].tool_use_id",
    );
    refused(
        result(json!({"is_error": "yes"})),
        "messages[0].content[0].is_error",
    );
    refused(
        result(json!({"content": [{"type": "document"}]})),
        "messages[0].content[0].content[0]",
    );
    let call = json!({"type": "tool_use", "id": "t", "name": "n", "input": "x"});
    refused(assistant(&call), "messages[0].content[0].input");
    let call = json!({"type": "tool_use", "id": "t", "name": "n", "input": {}, "caller": {"type": "code"}});
    refused(assistant(&call), "messages[0].content[0].caller");
}

#[test]
fn a_field_of_chat_without_counterpart_is_refused_by_name() {
    let refused = |extra, param: &str| refused(Translation::ChatToMessages, extra, param);
    for field in [
        "seed",
        "functions",
        "prediction",
        "web_search_options",
        "audio",
        "best_of",
        "never_heard_of",
    ] {
        refused(json!({ field: 5 }), field);
    }
    refused(json!({"n": 2}), "n");
    refused(json!({"temperature": 1.5}), "temperature");
    refused(json!({"presence_penalty": 0.1}), "presence_penalty");
    refused(json!({"logit_bias": {"5": 1}}), "logit_bias");
    refused(json!({"logprobs": true}), "logprobs");
    refused(json!({"store": true}), "store");
    refused(json!({"service_tier": "flex"}), "service_tier");
    refused(json!({"verbosity": "low"}), "verbosity");
    refused(json!({"modalities": ["audio"]}), "modalities");
    refused(json!({"reasoning_effort": "minimal"}), "reasoning_effort");
    refused(
        json!({"response_format": {"type": "json_object"}}),
        "response_format",
    );
    refused(json!({"stop": [5]}), "stop");
    refused(json!({"stream_options": {"x": 1}}), "stream_options.x");
    refused(json!({"parallel_tool_calls": 1}), "parallel_tool_calls");
    let harmless = json!({
        "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": false,
        "store": false, "service_tier": "auto", "verbosity": "medium", "modalities": ["text"],
        "reasoning_effort": "none", "response_format": {"type": "text"}, "metadata": {"a": "b"},
        "prompt_cache_key": "k", "seed": null, "tools": [], "tool_choice": "auto",
    });
    let (sent, _) = asked(Translation::ChatToMessages, harmless);
    let names: Vec<&str> = sent.keys().map(String::as_str).collect();
    assert_eq!(names, ["model", "messages"]);
}

#[test]
fn a_message_of_chat_without_counterpart_is_refused_by_name() {
    let refused = |extra, param: &str| refused(Translation::ChatToMessages, extra, param);
    let message = |message: Value| json!({ "messages": [message] });
    refused(
        message(json!({"role": "function", "content": "x"})),
        "messages[0].role",
    );
    refused(
        message(json!({"role": "user", "content": "x", "name": "n"})),
        "messages[0].name",
    );
    refused(
        message(json!({"role": "tool", "content": "x"})),
        "messages[0].tool_call_id",
    );
    for kind in ["input_audio", "file", "image", ""] {
        refused(user(&json!({ "type": kind })), "messages[0].content[0]");
    }
    let image = |url: &str| user(&json!({"type": "image_url", "image_url": {"url": url}}));
    for odd in ["", "file:///x", "data:image/png,x", "data:;base64,x"] {
        refused(image(odd), "messages[0].content[0].image_url.url");
    }
    let call = |call: Value| message(json!({"role": "assistant", "tool_calls": [call]}));
    refused(call(json!({"id": "c"})), "messages[0].tool_calls[0]");
    let function =
        |arguments: &str| json!({"id": "c", "function": {"name": "f", "arguments": arguments}});
    let param = "messages[0].tool_calls[0].function.arguments";
    refused(call(function("[1]")), param);
    refused(call(function("{\"a\":")), param);
    for number in ["18446744073709551617", "0.12345678901234567890123", "1e400"] {
        refused(call(function(&format!("{{\"n\":{number}}}"))), param);
    }
    let tool = |tool: Value| json!({ "tools": [tool] });
    refused(
        tool(json!({"type": "custom", "custom": {"name": "c"}})),
        "tools[0]",
    );
    refused(
        tool(json!({"type": "function", "function": {"name": "f", "x": 1}})),
        "tools[0].function.x",
    );
    refused(json!({"tool_choice": "required"}), "tool_choice");
    let mut choice = tool(json!({"type": "function", "function": {"name": "f"}}));
    choice["tool_choice"] = json!({"type": "allowed_tools"});
    refused(choice, "tool_choice");
}

#[test]
fn the_bound_is_of_what_is_sent_and_the_rest_as_the_client_asked() {
    let tools = json!({
        "stream": true, "metadata": {"user_id": "eve"},
        "tools": [{"name": "t", "description": "x".repeat(500), "input_schema": {"type": "object"}}],
    });
    let (sent, ask) = asked(Translation::MessagesToChat, tools);
    assert!(ask.text > 500 && ask.with_tools && ask.stream);
    assert_eq!((ask.max, ask.end_user.unwrap().as_str()), (Some(5), "eve"));
    assert!(!sent.contains_key("max_tokens"));
    let long = "u".repeat(200);
    let (sent, ask) = asked(
        Translation::MessagesToChat,
        json!({"metadata": {"user_id": long}}),
    );
    assert!(!sent.contains_key("user") && ask.max == Some(5));
    let chat = json!({
        "max_tokens": null, "max_completion_tokens": 7, "stream": true, "user": "eve",
        "stream_options": {"include_usage": true},
    });
    let (sent, ask) = asked(Translation::ChatToMessages, chat);
    assert_eq!(
        (ask.max, ask.choices, ask.include_usage),
        (Some(7), 1, true)
    );
    assert_eq!(sent["metadata"], json!({"user_id": "eve"}));
    let (sent, ask) = asked(Translation::ChatToMessages, json!({"max_tokens": null}));
    assert!(ask.max.is_none() && !sent.contains_key("max_tokens"));
}

fn response_body(extra: Value) -> Fields {
    let mut body = map(json!({"model": "m", "input": "hi"}));
    body.extend(map(extra));
    body
}

/// Over both APIs that responses are translated to.
#[track_caller]
#[expect(
    clippy::needless_pass_by_value,
    reason = "a case is a literal that is used once"
)]
fn refused_response(extra: Value, param: &str) {
    for way in [
        Translation::ResponsesToChat,
        Translation::ResponsesToMessages,
    ] {
        let shown = extra.to_string();
        let error = way
            .request(&response_body(extra.clone()))
            .expect_err(&shown);
        assert_eq!(
            (error.fault, error.param.as_str()),
            (Fault::Invalid, param),
            "{shown}"
        );
    }
}

#[test]
fn a_field_of_responses_without_counterpart_is_refused_by_name() {
    let refused = refused_response;
    for field in [
        "conversation",
        "previous_response_id",
        "prompt",
        "moderation",
        "never_heard_of",
    ] {
        refused(json!({ field: "x" }), field);
    }
    refused(
        json!({"context_management": [{"type": "compaction"}]}),
        "context_management",
    );
    refused(json!({"store": true}), "store");
    refused(json!({"background": true}), "background");
    refused(json!({"truncation": "auto"}), "truncation");
    refused(json!({"service_tier": "flex"}), "service_tier");
    refused(json!({"top_logprobs": 2}), "top_logprobs");
    refused(
        json!({"include": ["message.output_text.logprobs"]}),
        "include[0]",
    );
    refused(json!({"stream_options": {"x": 1}}), "stream_options.x");
    refused(json!({"max_output_tokens": 0}), "max_output_tokens");
    refused(json!({"text": {"x": 1}}), "text.x");
    refused(
        json!({"text": {"format": {"type": "grammar"}}}),
        "text.format",
    );
    refused(
        json!({"text": {"format": {"type": "json_object", "schema": {}}}}),
        "text.format.schema",
    );
    refused(
        json!({"text": {"format": {"type": "text", "x": 1}}}),
        "text.format.x",
    );
    refused(
        json!({"reasoning": {"summary": {"x": 1}}}),
        "reasoning.summary",
    );
    refused(json!({"reasoning": {"mode": "pro"}}), "reasoning.mode");
    refused(json!({"reasoning": {"effort": 5}}), "reasoning.effort");
}

#[test]
fn a_tool_of_responses_without_counterpart_is_refused_by_name() {
    let refused = refused_response;
    let tool = |tool: Value| json!({ "tools": [tool] });
    refused(tool(json!({"type": "web_search"})), "tools[0].type");
    refused(tool(json!({"type": "function"})), "tools[0].name");
    let space = |tools: Value| tool(json!({"type": "namespace", "name": "n", "tools": tools}));
    refused(space(json!({})), "tools[0].tools");
    refused(
        space(json!([{"type": "custom", "name": "c"}])),
        "tools[0].tools[0].type",
    );
    refused(
        space(json!([{"type": "function"}])),
        "tools[0].tools[0].name",
    );
    refused(
        tool(json!({"type": "function", "name": "f", "defer_loading": true})),
        "tools[0].defer_loading",
    );
    refused(
        tool(
            json!({"type": "custom", "name": "f", "format": {"type": "grammar", "syntax": "ebnf"}}),
        ),
        "tools[0].format",
    );
    refused(json!({"tool_choice": "required"}), "tool_choice");
    let choosing = |choice: Value| json!({"tools": [{"type": "function", "name": "f"}], "tool_choice": choice});
    refused(choosing(json!({"type": "allowed_tools"})), "tool_choice");
    refused(
        choosing(json!({"type": "function", "name": "f", "x": 1})),
        "tool_choice.x",
    );
    // what is harmless hides nothing
    refused(
        tool(json!({"defer_loading": false, "type": "function", "name": "f", "output_schema": {}})),
        "tools[0].output_schema",
    );
    refused(
        tool(json!({"type": "custom", "name": "c", "format": {"type": "text", "x": 1}})),
        "tools[0].format.x",
    );
}

#[test]
fn an_item_of_responses_without_counterpart_is_refused_by_name() {
    let refused = refused_response;
    refused(json!({"instructions": ["x"]}), "instructions");
    refused(json!({"input": []}), "input");
    refused(json!({"input": ["x"]}), "input[0]");
    let item = |item: Value| json!({ "input": [item] });
    refused(
        item(json!({"type": "item_reference", "id": "x"})),
        "input[0]",
    );
    refused(item(json!({"id": "x"})), "input[0]");
    refused(
        item(json!({"type": "web_search_call", "id": "x"})),
        "input[0]",
    );
    refused(
        item(json!({"role": "oracle", "content": "x"})),
        "input[0].role",
    );
    refused(
        item(json!({"role": "user", "content": "x", "y": 1})),
        "input[0].y",
    );
    refused(
        item(json!({"type": "function_call", "name": "f", "arguments": "{}"})),
        "input[0].call_id",
    );
    refused(
        item(json!({"type": "function_call_output", "call_id": "c", "output": 5})),
        "input[0].output",
    );
    let part = |part: Value| item(json!({"role": "user", "content": [part]}));
    refused(
        part(json!({"type": "input_file", "file_id": "f"})),
        "input[0].content[0]",
    );
    refused(
        part(json!({"type": "input_image", "file_id": "f"})),
        "input[0].content[0].file_id",
    );
    refused(
        part(json!({"type": "refusal", "refusal": "no"})),
        "input[0]",
    );
}

#[test]
fn what_messages_have_no_place_for_is_named_as_the_client_wrote_it() {
    let refused = |extra: Value, param: &str| {
        let way = Translation::ResponsesToMessages;
        let error = way.request(&response_body(extra)).unwrap_err();
        assert_eq!(error.param, param);
    };
    refused(
        json!({"text": {"format": {"type": "json_object"}}}),
        "text.format",
    );
    refused(
        json!({"reasoning": {"effort": "minimal"}}),
        "reasoning.effort",
    );
}

#[test]
fn a_response_asks_for_what_its_translation_does() {
    let body = response_body(json!({
        "max_output_tokens": 9, "stream": true, "user": "u", "instructions": "be kind",
        "input": [{"type": "reasoning", "id": "rs_1", "summary": []}, {"role": "user", "content": "hi"}],
    }));
    for way in [
        Translation::ResponsesToChat,
        Translation::ResponsesToMessages,
    ] {
        let (sent, ask, _) = way.request(&body).unwrap();
        assert_eq!(
            (ask.max, ask.stream, ask.choices),
            (Some(9), true, 1),
            "{way:?}"
        );
        assert_eq!(ask.end_user.unwrap().as_str(), "u");
        assert_eq!(ask.text, 9);
        assert!(!sent.contains_key("max_tokens") && !sent.contains_key("max_output_tokens"));
    }
}
