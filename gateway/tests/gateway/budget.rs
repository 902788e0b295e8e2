//! Caps hold, refusals say why, and nothing stays held.

use std::sync::atomic::Ordering::SeqCst;

use futures::future::join_all;
use seatbelt_schemas::{event::OnUnknown, window::Window};
use serde_json::json;

use crate::support::{Script, Stack, eventually, hi, status_and_body, tokens};

#[tokio::test]
async fn a_request_is_served_settled_and_shown() {
    let stack = Stack::balance(1_000_000).await;
    let response = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    for header in [
        "x-request-id",
        "x-seatbelt-reservation",
        "x-seatbelt-position",
        "x-ratelimit-remaining-tokens",
    ] {
        assert!(
            response.headers().contains_key(header),
            "{header} is missing"
        );
    }
    assert_eq!(
        response.text().await.unwrap(),
        crate::support::chat_answer()
    );
    let (_, shown) = stack.get("/v1/key").await;
    assert_eq!(shown["account"], "acct");
    assert_eq!(shown["key"], "key");
    assert_eq!(
        shown["caps"],
        json!([{"id": "tokens", "scope": "key", "meter": "tokens", "window": {"kind": "balance"},
            "limit": 1_000_000, "spent": 15, "held": 0, "available": 999_985, "resets_at": null}])
    );
    assert_eq!(stack.upstream.hits(), 1);
}

#[tokio::test]
async fn a_balance_that_is_too_small_refuses_before_the_upstream_is_contacted() {
    let stack = Stack::balance(10).await;
    let response = stack.chat(&hi(1000)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 429);
    assert!(!response.headers().contains_key("retry-after"));
    assert_eq!(response.headers()["x-should-retry"], "false");
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "insufficient_quota");
    assert_eq!(body["error"]["limit"], 10);
    assert_eq!(body["error"]["requested"], 1018);
    assert_eq!(stack.upstream.hits(), 0);
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn a_window_that_is_too_small_says_when_to_come_back() {
    let stack = Stack::start(tokens(10, Window::Rolling { seconds: 3600 })).await;
    let response = stack.chat(&hi(1000)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 429);
    let after: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=3600).contains(&after), "{after}");
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");
    assert_eq!(stack.upstream.hits(), 0);
}

#[tokio::test]
async fn a_small_cap_serves_what_fits_one_after_another() {
    let stack = Stack::balance(100).await;
    let mut served = 0;
    for _ in 0..20 {
        let (status, body) = status_and_body(stack.chat(&hi(20))).await;
        match status {
            200 => served += 1,
            429 => assert_eq!(body["error"]["code"], "insufficient_quota", "{body}"),
            other => panic!("{other}: {body}"),
        }
    }
    assert_eq!(served, 5); // 15 spent each: the sixth would need 38 of 25
    assert_eq!(stack.upstream.hits(), served);
    assert_eq!(stack.spent_once_idle().await, 75);
}

#[tokio::test]
async fn a_small_cap_serves_what_fits_all_at_once() {
    let stack = Stack::balance(100).await;
    let answers = join_all((0..20).map(|_| status_and_body(stack.chat(&hi(20))))).await;
    let served = answers.iter().filter(|(status, _)| *status == 200).count();
    assert!((1..20).contains(&served), "{served}");
    for (status, body) in &answers {
        assert!(
            *status == 200 || body["error"]["code"] == "insufficient_quota",
            "{status}: {body}"
        );
    }
    assert_eq!(stack.upstream.hits(), served);
    assert_eq!(stack.spent_once_idle().await, 15 * served as u64);
}

#[tokio::test]
async fn a_sequential_client_never_meets_its_own_hold() {
    let cap = tokens(1000, Window::Balance);
    let stack =
        Stack::start_with(cap, |config| config.budget_wait = std::time::Duration::ZERO).await;
    for n in 0..10 {
        // 938 + 18 fit only if nothing of the request before is held
        let (status, body) = status_and_body(stack.chat(&hi(850 - 15 * n))).await;
        assert_eq!(status, 200, "{body}");
    }
}

#[tokio::test]
async fn a_request_can_ask_to_be_clamped() {
    let stack = Stack::balance(100).await;
    let response = stack
        .chat(&hi(1000))
        .header("x-seatbelt-on-short", "clamp")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()["x-seatbelt-clamped"], "82");
    assert_eq!(stack.upstream.last().body["max_tokens"], 82);
    let (status, body) =
        status_and_body(stack.chat(&hi(1)).header("x-seatbelt-on-short", "maybe")).await;
    assert_eq!(
        (status, &body["error"]["param"]),
        (400, &json!("x-seatbelt-on-short"))
    );
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_costs_nothing() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        // a port that was free a moment ago
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        config.upstreams[0].base_url = format!("http://{free}/v1");
    })
    .await;
    let response = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 502);
    assert!(response.headers().contains_key("x-seatbelt-reservation"));
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "upstream_connection_error");
    let cap = stack.cap().await;
    assert_eq!((cap.spent, cap.held), (0, 0));
}

#[tokio::test]
async fn an_upstreams_error_passes_through_and_costs_nothing() {
    let stack = Stack::balance(1000).await;
    let error = r#"{"error": {"message": "slow down",  "type": "x"}}"#;
    for status in [400, 404, 429, 501, 503] {
        stack
            .upstream
            .plays(Script::Whole(status, "application/json", error.to_owned()));
        let response = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(response.text().await.unwrap(), error);
        let cap = stack.cap().await;
        assert_eq!((cap.spent, cap.held), (0, 0));
    }
}

#[tokio::test]
async fn no_402_reaches_a_client() {
    let stack = Stack::balance(1000).await;
    for status in [401, 402, 403, 302] {
        stack
            .upstream
            .plays(Script::Whole(status, "application/json", "{}".to_owned()));
        let (status, body) = status_and_body(stack.chat(&hi(20))).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (502, &json!("upstream_connection_error"))
        );
    }
}

#[tokio::test]
async fn an_answer_without_usage_is_charged_at_its_hold() {
    let stack = Stack::balance(1000).await;
    let answer = r#"{"choices": [{"message": {"content": "hello"}}]}"#;
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.to_owned()));
    let (status, _) = status_and_body(stack.chat(&hi(20))).await;
    assert_eq!(status, 200);
    assert_eq!(stack.spent_once_idle().await, 38);
}

#[tokio::test]
async fn an_answer_without_usage_is_counted_where_all_output_is_visible() {
    let stack = Stack::start_with(tokens(10_000, Window::Balance), |config| {
        config.upstreams[0].models[0].output_is_visible = true;
    })
    .await;
    let answer = r#"{"choices": [{"message": {"content": "hello"}}]}"#;
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.to_owned()));
    let (status, _) = status_and_body(stack.chat(&hi(4000))).await;
    assert_eq!(status, 200);
    assert_eq!(
        stack.spent_once_idle().await,
        18 + r#"{"content": "hello"}"#.len() as u64 + 1
    );
}

#[tokio::test]
async fn usage_above_the_hold_is_recorded_in_full() {
    let stack = Stack::balance(1000).await;
    let answer = crate::support::chat_answer()
        .replace("\"completion_tokens\":5", "\"completion_tokens\":500");
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer));
    stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(stack.spent_once_idle().await, 510);
}

#[tokio::test]
async fn without_the_ledger_nothing_is_let_through() {
    let stack = Stack::balance(1000).await;
    stack.ledger.away.store(true, SeqCst);
    let response = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 503);
    let after: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=5).contains(&after));
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "ledger_unavailable");
    assert_eq!(stack.upstream.hits(), 0);
    stack.ledger.away.store(false, SeqCst);
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
}

#[tokio::test]
async fn a_hold_whose_answer_was_lost_is_given_back() {
    let stack = Stack::balance(1000).await;
    stack.ledger.answers_lost.store(true, SeqCst);
    let (status, body) = status_and_body(stack.chat(&hi(20))).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("ledger_unavailable"))
    );
    assert_eq!(stack.spent_once_idle().await, 0);
    assert_eq!(stack.upstream.hits(), 0);
}

#[tokio::test]
async fn an_answer_that_cannot_be_settled_is_withheld_and_settled_later() {
    let cap = tokens(1000, Window::Balance);
    let stack = Stack::start_with(cap, |config| {
        config.ledger_timeout = std::time::Duration::from_millis(100);
    })
    .await;
    stack.ledger.settles_away.store(true, SeqCst);
    let (status, body) = status_and_body(stack.chat(&hi(20))).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("ledger_unavailable"))
    );
    assert_eq!(stack.cap().await.held, 38);
    stack.ledger.settles_away.store(false, SeqCst);
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn an_answer_whose_settle_is_invalid_is_delivered_and_charged_at_its_hold() {
    let stack = Stack::balance(1000).await;
    stack.ledger.reports_invalid.store(true, SeqCst);
    let response = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(
        response.text().await.unwrap(),
        crate::support::chat_answer()
    );
    assert_eq!(stack.spent_once_idle().await, 38);
    assert_eq!(stack.upstream.hits(), 1);
}

/// Stops the gateway, which waits for what it follows up; how many settles the writer has seen.
async fn settles_seen(stack: Stack) -> usize {
    stack.shutdown.cancel();
    stack.served.await.unwrap().unwrap();
    stack.ledger.settles.load(SeqCst)
}

#[tokio::test]
async fn a_settle_is_one_command() {
    let stack = Stack::balance(1000).await;
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    assert_eq!(stack.cap().await.spent, 15);
    assert_eq!(settles_seen(stack).await, 1);
}

#[tokio::test]
async fn a_settle_is_sent_again_where_nobody_said_that_it_lasts() {
    let stack = Stack::balance(1000).await;
    stack.ledger.seconds_lost.store(true, SeqCst);
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    assert_eq!(stack.cap().await.spent, 15);
    assert_eq!(settles_seen(stack).await, 2);
}

#[tokio::test]
async fn an_answer_that_its_hold_does_not_cover_waits_until_its_settle_lasts() {
    for (max_tokens, on_unknown, status) in [
        (20, OnUnknown::ChargeHold, 200),
        // five tokens come, two are held
        (2, OnUnknown::ChargeHold, 503),
        (20, OnUnknown::Release, 503),
    ] {
        let cap = tokens(1000, Window::Balance);
        let stack = Stack::start_with(cap, |config| {
            config.ledger_timeout = std::time::Duration::from_secs(1);
            config.keys[0].on_unknown = on_unknown;
        })
        .await;
        stack.ledger.only_taken.store(true, SeqCst);
        let answer = status_and_body(stack.chat(&hi(max_tokens))).await;
        assert_eq!(answer.0, status, "{max_tokens} {on_unknown:?}: {answer:?}");
        stack.ledger.only_taken.store(false, SeqCst);
        let answer = status_and_body(stack.chat(&hi(max_tokens))).await;
        assert_eq!(answer.0, 200, "{max_tokens} {on_unknown:?}: {answer:?}");
        assert_eq!(stack.spent_once_idle().await, 30);
    }
}

#[tokio::test]
async fn a_refusal_says_whose_it_is_and_whether_a_retry_helps() {
    let stack = Stack::start(tokens(10, Window::Rolling { seconds: 3600 })).await;
    let refused = stack.chat(&hi(1000)).send().await.unwrap();
    assert_eq!(refused.headers()["x-seatbelt-refused-by"], "cap");
    assert_eq!(refused.headers()["x-should-retry"], "false");
    let stack = Stack::balance(1000).await;
    for (said, status) in [(429, 429), (402, 502), (401, 502), (404, 404)] {
        stack
            .upstream
            .plays(Script::Whole(said, "application/json", "{}".to_owned()));
        let refused = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(refused.status().as_u16(), status);
        assert_eq!(refused.headers()["x-seatbelt-refused-by"], "upstream");
        let retry = refused.headers().get("x-should-retry").cloned();
        assert_eq!(retry.is_some_and(|retry| retry == "false"), status != 429);
        let text = refused.text().await.unwrap();
        assert!(!text.contains("broke off"), "{text}");
    }
}

#[tokio::test]
async fn a_read_waits_for_what_its_caller_spent() {
    let stack = Stack::balance(1000).await;
    stack.get("/v1/key").await;
    stack.snapshots.frozen.store(true, SeqCst);
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    let thaw = async {
        stack.snapshots.looked.notified().await;
        stack.snapshots.looked.notified().await;
        stack.snapshots.frozen.store(false, SeqCst);
    };
    let ((_, shown), ()) = tokio::join!(stack.get("/v1/key"), thaw);
    assert_eq!(shown["caps"][0]["spent"], 15);
}

#[tokio::test]
async fn a_snapshot_that_does_not_come_is_shown_as_it_is() {
    let stack = Stack::balance(1000).await;
    stack.get("/v1/key").await;
    stack.snapshots.frozen.store(true, SeqCst);
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    let (status, shown) = stack.get("/v1/key").await;
    assert_eq!(
        (status, &shown["caps"][0]["spent"], &shown["age_ms"]),
        (200, &json!(0), &json!(3))
    );
}

#[tokio::test]
async fn a_request_that_waits_for_a_hold_is_served_when_it_resolves() {
    let stack = Stack::balance(60).await;
    stack
        .upstream
        .plays(Script::Held(crate::support::chat_stream()));
    let first = stack
        .chat(&crate::support::hi_stream(20))
        .send()
        .await
        .unwrap();
    let second = tokio::spawn(stack.chat(&hi(20)).send());
    // the second can only wait: 38 of 60 are held
    eventually(async || (stack.upstream.hits() == 1).then_some(())).await;
    stack.upstream.plays(Script::Whole(
        200,
        "application/json",
        crate::support::chat_answer(),
    ));
    stack.upstream.go_on.notify_one();
    assert!(first.text().await.unwrap().contains("[DONE]"));
    assert_eq!(second.await.unwrap().unwrap().status().as_u16(), 200);
    assert_eq!(stack.spent_once_idle().await, 30);
}
