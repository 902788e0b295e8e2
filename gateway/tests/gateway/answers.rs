//! Answers as upstreams really give them, each a row of `answers/cases.json`: what is charged is what
//! they say was used, or the hold, and never less.

use std::collections::BTreeMap;

use seatbelt_gateway::{Dialect, MaxField, UpstreamConfig, UpstreamModel};
use seatbelt_schemas::{ids::ModelId, window::Window};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{Script, Stack, tokens};

#[derive(Deserialize)]
struct Case {
    id: String,
    path: String,
    request: Value,
    /// What the upstream answers.
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
    expect: Expect,
}

#[derive(Deserialize)]
struct Expect {
    #[serde(default = "ok")]
    status: u16,
    charge: u64,
    /// What the client reads, and what it never does.
    #[serde(default)]
    says: Vec<String>,
    #[serde(default)]
    never: Vec<String>,
    /// A field of what the upstream was asked.
    forwarded: Option<String>,
}

fn ok() -> u16 {
    200
}

async fn stack() -> Stack {
    Stack::start_with(tokens(1 << 50, Window::Balance), |config| {
        let model = |id: &str| UpstreamModel::new(ModelId::new(id).unwrap(), 8192, 4096);
        let mut newer = model("g5");
        newer.max_field = MaxField::MaxCompletionTokens;
        let openai = &mut config.upstreams[0];
        openai.models = vec![model("m"), newer];
        let anthropic = UpstreamConfig {
            name: "other".to_owned(),
            kind: Dialect::Anthropic,
            base_url: openai.base_url.trim_end_matches("/v1").to_owned(),
            models: vec![model("c")],
            ..openai.clone()
        };
        config.upstreams.push(anthropic);
    })
    .await
}

#[tokio::test]
async fn no_answer_is_charged_below_what_it_says_was_used() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("answers/cases.json")).unwrap();
    let stack = stack().await;
    let mut wrong = Vec::new();
    let mut before = 0;
    for case in &cases {
        let headers = case.headers.clone().into_iter().collect();
        stack
            .upstream
            .plays(Script::Head(case.status, headers, case.body.clone()));
        let response = stack.post(&case.path, &case.request).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let spent = stack.spent_once_idle().await;
        let charge = spent - before;
        before = spent;
        let expect = &case.expect;
        let says = expect.says.iter().all(|part| text.contains(part))
            && !expect.never.iter().any(|part| text.contains(part));
        let forwarded = expect
            .forwarded
            .as_ref()
            .is_none_or(|field| stack.upstream.last().body.get(field).is_some());
        if (status, charge) != (expect.status, expect.charge) || !says || !forwarded {
            wrong.push(format!(
                "{}: {status}, charged {charge} of {}: {text}",
                case.id, expect.charge
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn errors_after_work_are_free_where_the_operator_or_the_key_says_so() {
    use seatbelt_schemas::event::OnUnknown;
    for (free, on_unknown, charge) in [
        (false, OnUnknown::ChargeHold, 38),
        (true, OnUnknown::ChargeHold, 0),
        (false, OnUnknown::Release, 0),
    ] {
        let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
            config.upstreams[0].errors_are_free = free;
            config.keys[0].on_unknown = on_unknown;
        })
        .await;
        let error = r#"{"error":{"message":"no"}}"#.to_owned();
        stack
            .upstream
            .plays(Script::Whole(502, "application/json", error));
        let answer = stack.chat(&crate::support::hi(20)).send().await.unwrap();
        assert_eq!(stack.spent_once_idle().await, charge);
        // what was charged would be charged again
        let retry = answer.headers().get("x-should-retry").cloned();
        let expected = (charge > 0).then(|| "false".parse().unwrap());
        assert_eq!(retry, expected, "{free} {on_unknown:?}");
    }
}

/// Anthropic's servers say of errors after work that they may be tried again, and each retry costs here.
#[tokio::test]
async fn an_error_that_was_charged_is_not_to_be_tried_again_whatever_its_upstream_says() {
    let stack = Stack::balance(10_000).await;
    let error = r#"{"error":{"message":"no"}}"#;
    for (status, wait, retry) in [
        (500, "1", "false"),
        (503, "1", "true"),
        (429, "99999999999", "false"),
    ] {
        let said = [("x-should-retry", "true"), ("retry-after", wait)];
        let said = said.map(|(name, value)| (name.to_owned(), value.to_owned()));
        stack
            .upstream
            .plays(Script::Head(status, said.to_vec(), error.to_owned()));
        let answer = stack.chat(&crate::support::hi(20)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["x-should-retry"], retry, "{status}");
    }
}

#[tokio::test]
async fn an_error_whose_body_breaks_ends_by_its_status_and_by_what_it_told() {
    let stack = stack().await;
    let mut before = 0;
    let told = r#"{"usage":{"prompt_tokens":3000,"completion_tokens":1},"error":{"mess"#;
    for (status, shown, piece, charge) in [
        (429, 429, r#"{"error":{"mess"#, 0),
        (503, 503, "", 0),
        (404, 404, r#"{"error":{"mess"#, 0),
        (401, 502, r#"{"error":{"sk-a"#, 0),
        (500, 500, r#"{"error":{"mess"#, 38),
        (429, 429, told, 3020),
        (200, 502, told, 3020),
        (200, 502, r#"{"choices":[{"mess"#, 38),
    ] {
        stack.upstream.plays(Script::Half(status, piece));
        let mut body = crate::support::hi(20);
        body["model"] = "m".into();
        let response = stack.chat(&body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), shown, "{status} {piece}");
        if status == 429 {
            assert_eq!(response.headers()["x-seatbelt-refused-by"], "upstream");
            assert_eq!(response.headers()["retry-after"], "7");
        }
        let word = response.headers()["x-seatbelt-charged"].clone();
        let retry = response.headers().get("x-should-retry").cloned();
        assert!(word == "nothing" || retry.is_some_and(|retry| retry == "false"));
        let text = response.text().await.unwrap();
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(
            error["error"]["message"].is_string() && !text.contains("sk-a"),
            "{text}"
        );
        let spent = stack.spent_once_idle().await;
        assert_eq!(spent - before, charge, "{status} {piece}");
        let expected = match charge {
            0 => "nothing",
            38 => "hold",
            _ => "usage",
        };
        assert_eq!(word, expected, "{status} {piece}");
        assert!(text.contains("charged"), "{text}");
        before = spent;
    }
}

#[tokio::test]
async fn an_answer_without_usage_is_free_where_its_key_says_so() {
    use seatbelt_schemas::event::OnUnknown;
    let whole = |body: &str| Script::Whole(200, "application/json", body.to_owned());
    let stream = |usage: &str| {
        let chunk = r#"data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}"#;
        Script::Stream(vec![format!("{chunk}\n\n{usage}data: [DONE]\n\n")])
    };
    let part = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7}}\n\n";
    let cases = [
        (
            whole(r#"{"choices":[{"message":{"content":"ok"}}]}"#),
            0,
            38,
        ),
        (
            whole(r#"{"choices":[{"message":{"content":"ok"}}],"usage":{"prompt_tokens":7}}"#),
            7,
            38,
        ),
        (
            whole(
                r#"{"choices":[{"message":{"content":"ok"}}],"usage":{"prompt_tokens":7,"completion_tokens":2}}"#,
            ),
            9,
            9,
        ),
        (whole(""), 0, 38),
        (Script::Half(200, "{"), 0, 38),
        (stream(""), 0, 38),
        (stream(part), 7, 38),
    ];
    for on_unknown in [OnUnknown::Release, OnUnknown::ChargeHold] {
        let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
            config.keys[0].on_unknown = on_unknown;
        })
        .await;
        let mut before = 0;
        for (script, free, held) in &cases {
            stack.upstream.plays(script.clone());
            let mut body = crate::support::hi(20);
            body["stream"] = matches!(script, Script::Stream(_)).into();
            stack
                .chat(&body)
                .send()
                .await
                .unwrap()
                .text()
                .await
                .unwrap();
            let spent = stack.spent_once_idle().await;
            let expected = match on_unknown {
                OnUnknown::Release => free,
                OnUnknown::ChargeHold => held,
            };
            assert_eq!(spent - before, *expected, "{on_unknown:?} {script:?}");
            before = spent;
        }
    }
}
