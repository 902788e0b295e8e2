//! What is forwarded, and what is refused before that.

use seatbelt_schemas::{cap::CapSpec, ids::TeamId, meter::Meter, scope::Scope, window::Window};
use serde_json::{Value, json};

use crate::support::{SECRET, Script, Stack, hi, hi_stream, status_and_body, stream_text, tokens};

#[tokio::test]
async fn the_body_is_forwarded_with_its_maximum_and_accepted_fields() {
    let stack = Stack::start_with(tokens(1_000_000, Window::Balance), |config| {
        config.upstreams[0].allow_fields = vec!["zeta".to_owned()];
    })
    .await;
    let body = json!({"model": "test-model", "zeta": {"b": 1, "a": 2}, "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 9, "max_tokens": null});
    assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
    let asked = stack.upstream.last();
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(
        asked.body.to_string(),
        r#"{"model":"test-model","zeta":{"b":1,"a":2},"messages":[{"role":"user","content":"hi"}],"max_completion_tokens":9}"#
    );
    let body = json!({"model": "test-model", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
    assert_eq!(stack.upstream.last().body["max_tokens"], 4096);
}

#[tokio::test]
async fn a_field_that_nobody_listed_is_refused_where_a_cap_counts_tokens() {
    let stack = Stack::balance(1_000_000).await;
    for field in ["zeta", "n_predict", "MAX_TOKENS", "search_parameters"] {
        let mut body = hi(20);
        body[field] = json!(50_000);
        let (status, answer) = status_and_body(stack.chat(&body)).await;
        assert_eq!(
            (status, &answer["error"]["code"], &answer["error"]["param"]),
            (400, &json!("cost_unbounded"), &json!(field))
        );
    }
    assert_eq!(stack.upstream.hits(), 0);
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn numbers_go_out_as_they_came() {
    let stack = Stack::balance(1_000_000).await;
    let body = r#"{"model":"test-model","max_tokens":9,"messages":[{"role":"user","content":"18446744073709551617"}],"seed":18446744073709551617,"temperature":0.1234567890123456789,"logit_bias":{"1":1e-400}}"#;
    let sent = stack.chat(&hi(20)).body(body).send().await.unwrap();
    assert_eq!(sent.status(), 200);
    assert_eq!(stack.upstream.last().bytes, body.as_bytes());
    let huge =
        r#"{"model":"test-model","max_tokens":1e400,"messages":[{"role":"user","content":"hi"}]}"#;
    let (status, answer) = status_and_body(stack.chat(&hi(20)).body(huge)).await;
    assert_eq!(
        (status, &answer["error"]["param"]),
        (400, &json!("max_tokens"))
    );
}

#[tokio::test]
async fn stored_state_is_refused_at_any_depth() {
    let free = Stack::start(CapSpec {
        meter: Meter::Requests,
        ..tokens(10, Window::Balance)
    })
    .await;
    let mut body = hi(20);
    body["messages"][0]["audio"] = json!({"id": "audio_1"});
    let (status, answer) = status_and_body(free.chat(&body)).await;
    assert_eq!(
        (status, &answer["error"]["param"]),
        (400, &json!("messages[0].audio.id"))
    );
    assert_eq!(free.upstream.hits(), 0);
}

#[tokio::test]
async fn a_key_whose_caps_count_no_tokens_sends_what_it_likes_but_for_stored_state() {
    let requests = CapSpec {
        meter: Meter::Requests,
        ..tokens(10, Window::Balance)
    };
    let stack = Stack::start(requests).await;
    let mut body = hi(20);
    body["zeta"] = json!(1);
    assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
    assert_eq!(stack.upstream.last().body, body);
    body["store"] = json!(true);
    let (status, answer) = status_and_body(stack.chat(&body)).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("store")));
    assert_eq!(stack.upstream.hits(), 1);
}

#[tokio::test]
async fn a_name_that_stands_twice_is_forwarded_once_as_it_was_bounded() {
    let stack = Stack::balance(100).await;
    let twice = r#"{"model":"test-model","max_tokens":50000,"max_tokens":20,"messages":[{"role":"user","content":"hi"}]}"#;
    let request = stack.chat(&Value::Null).body(twice);
    assert_eq!(status_and_body(request).await.0, 200);
    assert_eq!(stack.upstream.last().body, hi(20));
}

#[tokio::test]
async fn several_choices_hold_the_maximum_several_times() {
    let stack = Stack::balance(100).await;
    let mut body = hi(30);
    body["n"] = json!(4);
    let (status, refused) = status_and_body(stack.chat(&body)).await;
    assert_eq!(
        (status, &refused["error"]["requested"]),
        (429, &json!(18 + 4 * 30))
    );
}

#[tokio::test]
async fn no_header_of_the_client_reaches_the_upstream() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.upstreams[0].api_key = Some("sk-upstream".into());
    })
    .await;
    let request = stack
        .chat(&hi(20))
        .header("x-seatbelt-account", "someone-else")
        .header("x-api-key", "sk-test")
        .header("cookie", "a=b");
    assert_eq!(status_and_body(request).await.0, 200);
    let headers = stack.upstream.last().headers;
    assert_eq!(headers["authorization"], "Bearer sk-upstream");
    for name in ["x-seatbelt-account", "x-api-key", "cookie"] {
        assert!(!headers.contains_key(name), "{name} was forwarded");
    }
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn bad_bodies_get_the_enveloped_error_and_change_nothing() {
    let stack = Stack::balance(1000).await;
    let with = |name: &str, value: Value| {
        let mut body = hi(20);
        body[name] = value;
        body.to_string()
    };
    let cases = [
        ("nonsense".to_owned(), "invalid_body"),
        ("[1]".to_owned(), "invalid_body"),
        (String::new(), "invalid_body"),
        (r#"{"messages": []}"#.to_owned(), "missing_model_field"),
        (with("model", json!(null)), "missing_model_field"),
        (with("model", json!(5)), "invalid_body"),
        (with("model", json!("no-such-model")), "model_not_found"),
        (with("max_tokens", json!(-1)), "invalid_body"),
        (with("max_tokens", json!(1.5)), "invalid_body"),
        (with("max_tokens", json!("20")), "invalid_body"),
        (with("max_tokens", json!(0)), "invalid_body"),
        (
            hi(20).to_string().replace("20", "18446744073709551616"),
            "invalid_body",
        ),
        (with("messages", json!("hi")), "invalid_body"),
        (with("audio", json!({"voice": "x"})), "cost_unbounded"),
    ];
    for (body, code) in cases {
        let request = stack.chat(&Value::Null).body(body.clone());
        let (status, answer) = status_and_body(request).await;
        assert_eq!(answer["error"]["code"], code, "{body}: {answer}");
        assert_eq!(
            status,
            if code == "model_not_found" { 404 } else { 400 },
            "{body}"
        );
        assert!(answer["error"]["message"].is_string());
    }
    assert_eq!(stack.upstream.hits(), 0);
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_the_answer_can_be_read() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.body_bytes = 1000;
    })
    .await;
    let body = "x".repeat(8 * 1024 * 1024);
    let (status, answer) = status_and_body(stack.chat(&Value::Null).body(body)).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (413, &json!("request_too_large"))
    );
}

#[tokio::test]
async fn wrong_keys_are_refused_in_the_dialect_of_the_route() {
    let stack = Stack::balance(1000).await;
    for path in ["/v1/chat/completions", "/v1/messages"] {
        for key in [Some("sk-wrong"), None] {
            let mut request = stack
                .client
                .post(format!("{}{path}", stack.base))
                .body(hi(20).to_string());
            if let Some(key) = key {
                request = request.header("x-api-key", key);
            }
            let (status, body) = status_and_body(request).await;
            assert_eq!(
                (status, &body["error"]["code"]),
                (401, &json!("invalid_api_key"))
            );
            assert_eq!(body["type"] == "error", path == "/v1/messages");
        }
    }
    assert_eq!(stack.upstream.hits(), 0);
}

#[tokio::test]
async fn odd_routes_and_methods_are_enveloped_too() {
    let stack = Stack::balance(1000).await;
    let ask = |method: &str, path: &str| {
        let url = format!("{}{path}", stack.base);
        status_and_body(stack.client.request(method.parse().unwrap(), url))
    };
    let code = |body: &Value| body["error"]["code"].as_str().unwrap().to_owned();
    let (status, body) = ask("GET", "/v1/nothing").await;
    assert_eq!((status, code(&body)), (404, "route_not_found".to_owned()));
    let (status, body) = ask("GET", "/v1/messages").await;
    assert_eq!(
        (status, code(&body), &body["type"]),
        (405, "method_not_allowed".to_owned(), &json!("error"))
    );
    for path in ["/v1/responses/resp_1", "/admin/v1/keys"] {
        let (status, body) = ask("POST", path).await;
        assert_eq!(
            (status, code(&body)),
            (404, "route_not_served".to_owned()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn without_a_key_requests_are_unmetered_only_where_that_is_allowed() {
    let stack = Stack::start_with(tokens(1, Window::Balance), |config| {
        config.require_auth = false;
    })
    .await;
    let keyless = |body: &Value| {
        let url = format!("{}/v1/chat/completions", stack.base);
        stack.client.post(url).body(body.to_string())
    };
    let response = keyless(&hi(20)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert!(!response.headers().contains_key("x-seatbelt-reservation"));
    stack
        .upstream
        .plays(crate::support::Script::Stream(crate::support::chat_stream()));
    assert!(
        stream_text(keyless(&hi_stream(20)))
            .await
            .contains("[DONE]")
    );
    assert_eq!(stack.spent_once_idle().await, 0);
    // a key that is given is held to its cap
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 429);
    assert_eq!(
        status_and_body(keyless(&hi(20)).bearer_auth("sk-wrong"))
            .await
            .0,
        401
    );
}

#[tokio::test]
async fn a_wrong_base_url_is_told_in_the_dialect_that_was_meant() {
    let stack = Stack::balance(10).await;
    let ask = |path: &str| {
        let url = format!("{}{path}", stack.base);
        status_and_body(stack.client.post(url).bearer_auth(SECRET).body("{}"))
    };
    let (status, body) = ask("/v1/v1/messages").await;
    assert_eq!((status, &body["type"]), (404, &json!("error")));
    assert_eq!(body["error"]["type"], "not_found_error");
    let (status, body) = ask("/chat/completions").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (404, &json!("route_not_found"))
    );
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("with one /v1 at its end"), "{message}");
}

#[tokio::test]
async fn models_are_listed_in_the_dialect_of_whoever_asks() {
    let stack = Stack::balance(10).await;
    let (_, openai) = stack.get("/v1/models").await;
    assert_eq!(
        (&openai["object"], &openai["data"][0]["object"]),
        (&json!("list"), &json!("model"))
    );
    let ask = |path: &str| {
        let url = format!("{}{path}", stack.base);
        let sent = stack.client.get(url).header("x-api-key", SECRET);
        status_and_body(sent.header("anthropic-version", "2023-06-01"))
    };
    let (_, anthropic) = ask("/v1/models").await;
    assert_eq!(
        (&anthropic["has_more"], &anthropic["first_id"]),
        (&json!(false), &json!("test-model"))
    );
    let (_, one) = ask("/v1/models/test-model").await;
    assert_eq!(one, anthropic["data"][0]);
    assert_eq!(
        (&one["type"], &one["max_input_tokens"]),
        (&json!("model"), &json!(8192))
    );
    let (status, none) = ask("/v1/models/other").await;
    assert_eq!(
        (status, &none["error"]["type"]),
        (404, &json!("not_found_error"))
    );
}

/// The next request on the connection would be lost.
#[tokio::test]
async fn a_body_that_nobody_reads_ends_its_connection() {
    let stack = Stack::balance(1000).await;
    let body = json!({"input": "x".repeat(60_000)});
    for (path, status) in [("/v1/moderations", 404), ("/v1/models", 405)] {
        let answer = stack.post(path, &body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["connection"], "close");
        assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    }
}

/// It may be asked again, and costs nothing.
#[tokio::test]
async fn an_error_that_says_that_nothing_was_used_is_charged_nothing() {
    let stack = Stack::balance(1000).await;
    let usage = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
    let said = json!({"error": {"message": "busy"}, "usage": usage}).to_string();
    for status in [429, 500, 503] {
        let script = Script::Whole(status, "application/json", said.clone());
        stack.upstream.plays(script);
        let answer = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(
            answer.headers()["x-seatbelt-charged"],
            "nothing",
            "{status}"
        );
        let retry = answer.headers().get("x-should-retry");
        assert_ne!(retry.map(|word| word.as_bytes()), Some(&b"false"[..]));
    }
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn a_request_is_held_by_the_team_that_it_names() {
    let blue = TeamId::new("blue").unwrap();
    let cap = CapSpec {
        scope: Scope::Team(blue.clone()),
        ..tokens(90, Window::Balance)
    };
    let stack = Stack::start_with(cap, |told| told.keys[0].teams = vec![blue]).await;
    let of = |team: &str| stack.chat(&hi(20)).header("x-seatbelt-team", team).send();
    for _ in 0..4 {
        let answer = of("blue").await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        answer.text().await.unwrap();
    }
    let refused = of("blue").await.unwrap();
    assert_eq!(refused.status().as_u16(), 429, "15 each, and 38 to hold");
    assert_eq!(of("red").await.unwrap().status().as_u16(), 403);
    let other = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(other.status().as_u16(), 200, "of no team");
    let run = serde_json::json!({"budget": {"tokens": 5}});
    let run = stack
        .post("/v1/runs", &run)
        .header("x-seatbelt-team", "blue");
    assert_eq!(run.send().await.unwrap().status().as_u16(), 400);
}
