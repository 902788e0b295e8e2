//! Tools that a provider runs: a maximum of calls goes out, their fees and what they read are held, and the calls
//! that the answer tells are charged.

use seatbelt_gateway::{Dialect, Profile, Provided};
use seatbelt_ledger::api::{Admin, Ledger};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    ids::{AccountId, Actor, CommandId, ModelId},
    meter::Meter,
    price::{Price, Rates},
    window::Window,
};
use serde_json::{Value, json};

use crate::support::{Script, Stack, account, status_and_body, stream_text, tokens};

/// Nano-USD for each token, and for each call.
const TOKEN: u64 = 1_000;
const CALL: u64 = 10_000_000;

async fn stack(kind: Dialect, tools: &[(&str, bool)]) -> Stack {
    let cap = CapSpec {
        meter: Meter::Cost,
        ..tokens(1_000_000_000, Window::Balance)
    };
    let tools: Vec<_> = tools
        .iter()
        .map(|(kind, charged)| Provided {
            kind: (*kind).to_owned(),
            calls_max: 3,
            input_max: 500,
            charged: *charged,
        })
        .collect();
    let stack = Stack::start_with(cap, |config| {
        let upstream = &mut config.upstreams[0];
        upstream.kind = kind;
        upstream.responses = kind == Dialect::OpenAi;
        upstream.profile = Some(match kind {
            Dialect::OpenAi => Profile::OpenAi,
            Dialect::Anthropic => Profile::Anthropic,
        });
        if kind == Dialect::Anthropic {
            let base = upstream.base_url.trim_end_matches("/v1").to_owned();
            upstream.base_url = base;
        }
        upstream.models[0].tools = tools;
    })
    .await;
    let set = Admin {
        id: CommandId::from_parts(seatbelt_gateway::system_clock()(), 100),
        account: AccountId::system(),
        actor: Actor::system("test"),
        change: Change::SetPrice(Price {
            fee_per_tool_call: Some(CALL),
            ..Price::of(
                ModelId::new("test-model").unwrap(),
                Rates::flat(TOKEN * 1000, TOKEN * 1000),
            )
        }),
    };
    stack.ledger.admin(set).await.unwrap();
    stack
}

fn response(calls: usize) -> Value {
    let call =
        |n| json!({"type": "web_search_call", "id": format!("ws_{n}"), "status": "completed"});
    let mut output: Vec<Value> = (0..calls).map(call).collect();
    output.push(json!({"type": "message", "content": [{"type": "output_text", "text": "hi"}]}));
    json!({"id": "r", "status": "completed", "model": "test-model", "output": output,
        "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}})
}

fn asks_to_search(extra: &Value) -> Value {
    let mut body = json!({"model": "test-model", "input": "hi", "max_output_tokens": 20,
        "tools": [{"type": "web_search", "search_context_size": "low"}, {"type": "function", "name": "f"}]});
    let fields = body.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn searches_of_a_response_are_limited_held_and_charged_as_told() {
    let stack = stack(Dialect::OpenAi, &[("web_search", true)]).await;
    let mut before = 0;
    for (asked, sent, told) in [
        (json!({}), 3, 2),
        (json!({"max_tool_calls": 2}), 2, 2),
        (json!({"max_tool_calls": 50}), 3, 0),
        // a provider that goes on beyond what was asked of it
        (json!({"max_tool_calls": 1}), 1, 4),
    ] {
        let answer = response(told).to_string();
        let script = Script::Whole(200, "application/json", answer);
        stack.upstream.plays(script);
        let post = stack.post("/v1/responses", &asks_to_search(&asked));
        assert_eq!(status_and_body(post).await.0, 200);
        assert_eq!(stack.upstream.last().body["max_tool_calls"], sent);
        let spent = stack.spent_once_idle().await;
        assert_eq!(spent - before, 15 * TOKEN + told as u64 * CALL, "{asked}");
        before = spent;
    }
    // nothing is told: three fees, and the prompt read four times
    let script = Script::Whole(200, "application/json", String::new());
    stack.upstream.plays(script);
    let post = stack.post("/v1/responses", &asks_to_search(&json!({})));
    assert_eq!(status_and_body(post).await.0, 502);
    let held = stack.spent_once_idle().await - before;
    assert!(
        held > 3 * CALL + (500 + 1000 + 1500 + 2000) * TOKEN,
        "{held}"
    );
}

#[tokio::test]
async fn searches_of_a_stream_are_counted_once() {
    let stack = stack(Dialect::OpenAi, &[("web_search", true)]).await;
    let event = |data: Value| {
        format!(
            "event: {}\ndata: {data}\n\n",
            data["type"].as_str().unwrap()
        )
    };
    let item = |kind: &str| {
        event(
            json!({"type": kind, "output_index": 0, "item": {"type": "web_search_call", "id": "ws_0"}}),
        )
    };
    let ending = event(json!({"type": "response.completed", "response": response(1)}));
    let pieces = [
        item("response.output_item.added"),
        item("response.output_item.done"),
        ending,
    ];
    stack.upstream.plays(Script::Stream(pieces.to_vec()));
    let body = asks_to_search(&json!({"stream": true}));
    stream_text(stack.post("/v1/responses", &body)).await;
    assert_eq!(stack.spent_once_idle().await, 15 * TOKEN + CALL);
}

#[tokio::test]
async fn a_tool_without_a_price_is_refused_in_every_api() {
    let stack = stack(Dialect::OpenAi, &[("web_search", true)]).await;
    for kind in [
        "web_search_preview",
        "code_interpreter",
        "WEB_SEARCH",
        "mcp",
    ] {
        let body = asks_to_search(&json!({"tools": [{"type": kind}]}));
        let (status, answer) = status_and_body(stack.post("/v1/responses", &body)).await;
        assert_eq!(
            (status, &answer["error"]["param"]),
            (400, &json!("tools[0]")),
            "{kind}"
        );
    }
    let mcp = json!({"tools": [{"type": "web_search", "server_url": "http://x"}]});
    let (status, _) = status_and_body(stack.post("/v1/responses", &asks_to_search(&mcp))).await;
    assert_eq!(status, 400);
    let chat = json!({"model": "test-model", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "web_search"}]});
    assert_eq!(status_and_body(stack.chat(&chat)).await.0, 400);
    assert_eq!(stack.upstream.hits(), 0);
}

#[tokio::test]
async fn searches_of_a_message_are_limited_each_and_charged_as_told() {
    let tools = [("web_search_20250305", true), ("web_fetch_20250910", false)];
    let stack = stack(Dialect::Anthropic, &tools).await;
    let answer = json!({"id": "m", "type": "message", "role": "assistant", "model": "test-model",
        "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 5,
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1}}});
    let script = Script::Whole(200, "application/json", answer.to_string());
    stack.upstream.plays(script);
    let earlier = json!([{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "s",
            "content": [{"type": "web_search_result", "title": "t", "url": "u", "encrypted_content": "e"}]}]);
    let body = json!({"model": "test-model", "max_tokens": 20,
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
            {"type": "web_fetch_20250910", "name": "web_fetch"}],
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": earlier},
            {"role": "user", "content": "and now"}]});
    let (status, answer) = status_and_body(stack.post("/v1/messages", &body)).await;
    assert_eq!(status, 200, "{answer}");
    let sent = stack.upstream.last().body;
    assert_eq!(sent["tools"][0]["max_uses"], 2);
    assert_eq!(sent["tools"][1]["max_uses"], 3);
    assert_eq!(stack.spent_once_idle().await, 15 * TOKEN + 2 * CALL);
}

fn message(status: u16, content: &Value, usage: &Value) -> Script {
    let answer = json!({"id": "m", "type": "message", "role": "assistant", "model": "test-model",
        "content": content, "stop_reason": "end_turn", "usage": usage});
    Script::Whole(status, "application/json", answer.to_string())
}

#[tokio::test]
async fn calls_are_read_as_strictly_as_tokens_whatever_came_of_the_answer() {
    let stack = stack(Dialect::Anthropic, &[("web_search_20250305", true)]).await;
    let body = json!({"model": "test-model", "max_tokens": 20,
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "messages": [{"role": "user", "content": "hi"}]});
    let text = json!([{"type": "text", "text": "hi"}]);
    let used =
        |calls: Value| json!({"input_tokens": 10, "output_tokens": 5, "server_tool_use": calls});
    let call =
        |n: u64| json!({"type": "server_tool_use", "id": format!("s{n}"), "name": "web_search"});
    let blocks = json!([call(0), call(1), {"type": "text", "text": "hi"}]);
    let plain = json!({"input_tokens": 10, "output_tokens": 5});
    let broken = format!(
        "{{\"usage\": {}}}x",
        used(json!({"web_search_requests": 9}))
    );
    let only_calls = json!({"type": "error", "error": {"type": "invalid_request_error", "message": "no"},
        "usage": {"server_tool_use": {"web_search_requests": 5}}});
    let whole = |status, body: &str| Script::Whole(status, "application/json", body.to_owned());
    // what is not believed costs the three calls that are held, with all that is held for their tokens
    let (told, at_least) = (true, false);
    let mut before = 0;
    for (script, is_told, calls, status) in [
        (
            message(200, &text, &used(json!({"web_search_requests": "2"}))),
            at_least,
            3,
            200,
        ),
        (
            message(200, &text, &used(json!({"web_search_requests": 2.0}))),
            at_least,
            3,
            200,
        ),
        (
            message(
                200,
                &text,
                &used(json!({"web_search_requests": 1u64 << 41})),
            ),
            at_least,
            3,
            200,
        ),
        (message(200, &blocks, &plain), told, 2, 200),
        (whole(200, &broken), at_least, 9, 502),
        (whole(400, &only_calls.to_string()), at_least, 5, 400),
    ] {
        stack.upstream.plays(script);
        let (answered, answer) = status_and_body(stack.post("/v1/messages", &body)).await;
        assert_eq!(answered, status, "{answer}");
        let spent = stack.spent_once_idle().await;
        let charged = spent - before;
        match is_told {
            true => assert_eq!(charged, 15 * TOKEN + calls * CALL, "{answer}"),
            false => assert!(charged >= calls * CALL, "{charged}: {answer}"),
        }
        before = spent;
    }
}

#[tokio::test]
async fn a_call_counts_that_only_its_steps_tell_of() {
    let stack = stack(Dialect::OpenAi, &[("web_search", true)]).await;
    let step = |kind: &str, n: u64| {
        let data = json!({"type": format!("response.web_search_call.{kind}"), "output_index": n, "item_id": ""});
        format!("data: {data}\n\n")
    };
    let ended = json!({"type": "response.completed", "response": {"status": "completed", "model": "test-model",
        "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}}});
    let mut pieces = vec![step("in_progress", 0), step("searching", 0)];
    pieces.extend([step("in_progress", 1), format!("data: {ended}\n\n")]);
    stack.upstream.plays(Script::Stream(pieces));
    let body = asks_to_search(&json!({"stream": true, "max_tool_calls": 2.0}));
    stream_text(stack.post("/v1/responses", &body)).await;
    assert_eq!(stack.upstream.last().body["max_tool_calls"], 2);
    assert_eq!(stack.spent_once_idle().await, 15 * TOKEN + 2 * CALL);
}

#[tokio::test]
async fn an_account_with_a_multiplier_pays_by_it_and_is_told() {
    let stack = stack(Dialect::OpenAi, &[("web_search", true)]).await;
    let set = Admin {
        id: CommandId::from_parts(seatbelt_gateway::system_clock()(), 101),
        account: account(),
        actor: Actor::system("test"),
        change: Change::SetMultiplier { ppm: 1_500_000 },
    };
    stack.ledger.admin(set).await.unwrap();
    let script = Script::Whole(200, "application/json", response(2).to_string());
    stack.upstream.plays(script);
    let post = stack.post("/v1/responses", &asks_to_search(&json!({})));
    assert_eq!(status_and_body(post).await.0, 200);
    let plain = 15 * TOKEN + 2 * CALL;
    assert_eq!(stack.spent_once_idle().await, plain + plain / 2);
    let (status, told) = stack.get("/v1/key").await;
    assert_eq!((status, &told["multiplier_ppm"]), (200, &json!(1_500_000)));
}
