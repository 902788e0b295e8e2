//! Runs over HTTP: a key sets a budget aside and hands out a secret that spends within it alone.

use std::sync::atomic::Ordering::SeqCst;

use reqwest::RequestBuilder;
use seatbelt_gateway::{KeyEntry, KeySecret};
use seatbelt_ledger::api::{Ledger, Read, Release};
use seatbelt_schemas::{
    ids::{Actor, CommandId, KeyId, RunId},
    window::Window,
};
use serde_json::{Value, json};
use ulid::Ulid;

use crate::support::{Stack, account, eventually, hi, status_and_body, tokens};

/// A run as its opener is told of it.
struct Opened {
    id: String,
    secret: String,
    told: Value,
}

fn asks(stack: &Stack, secret: Option<&str>, body: &Value) -> RequestBuilder {
    match secret {
        None => stack.post("/v1/runs", body),
        Some(secret) => by(stack, secret, "/v1/runs", body),
    }
}

/// A request with the secret of a run.
fn by(stack: &Stack, secret: &str, path: &str, body: &Value) -> RequestBuilder {
    let url = format!("{}{path}", stack.base);
    let request = stack.client.post(url).bearer_auth(secret);
    request.body(body.to_string())
}

async fn get_by(stack: &Stack, secret: &str, path: &str) -> (u16, Value) {
    let url = format!("{}{path}", stack.base);
    status_and_body(stack.client.get(url).bearer_auth(secret)).await
}

async fn open(stack: &Stack, secret: Option<&str>, body: Value) -> Opened {
    let (status, told) = status_and_body(asks(stack, secret, &body)).await;
    assert_eq!(status, 201, "{told}");
    Opened {
        id: told["id"].as_str().unwrap().to_owned(),
        secret: told["secret"].as_str().unwrap().to_owned(),
        told,
    }
}

async fn chat(stack: &Stack, run: &Opened, max: u64) -> (u16, Value) {
    status_and_body(by(stack, &run.secret, "/v1/chat/completions", &hi(max))).await
}

async fn close(stack: &Stack, run: &Opened) -> (u16, Value) {
    let path = format!("/v1/runs/{}/close", run.id);
    status_and_body(stack.post(&path, &json!({}))).await
}

#[track_caller]
fn is(found: &(u16, Value), status: u16, code: &str) {
    let (got, body) = found;
    assert_eq!(
        (*got, &body["error"]["code"]),
        (status, &json!(code)),
        "{body}"
    );
}

#[tokio::test]
async fn a_run_is_opened_used_shown_and_closed_with_the_rest_given_back() {
    let stack = Stack::balance(1000).await;
    let asked = json!({"budget": {"tokens": 100, "requests": 3}, "ttl": 60, "label": "research"});
    let run = open(&stack, None, asked).await;
    assert!(run.id.starts_with("research-"), "{}", run.id);
    assert_eq!(run.told["budget"], json!({"tokens": 100, "requests": 3}));
    assert_eq!(chat(&stack, &run, 20).await.0, 200);
    let path = format!("/v1/runs/{}", run.id);
    let (status, shown) = stack.get(&path).await;
    let tokens = json!({"limit": 100, "spent": 15, "held": 0, "available": 85});
    assert_eq!((status, &shown["meters"]["tokens"]), (200, &tokens));
    assert_eq!(shown["meters"]["requests"]["available"], 2);
    assert_eq!(
        (&shown["status"], &shown["label"], &shown["within"]),
        (&json!("open"), &json!("research"), &Value::Null)
    );
    assert!(shown.get("secret").is_none(), "it is told once");
    let cap = stack.cap().await;
    assert_eq!((cap.spent, cap.held), (15, 85));
    let (status, closed) = close(&stack, &run).await;
    assert_eq!((status, &closed["status"]), (200, &json!("closed")));
    assert_eq!(closed["meters"]["tokens"], tokens);
    assert_eq!(stack.spent_once_idle().await, 15);
    is(&chat(&stack, &run, 20).await, 403, "run_ended");
    is(&stack.get(&path).await, 404, "run_not_found");
    is(&close(&stack, &run).await, 404, "run_not_found");
}

#[tokio::test]
async fn a_run_is_stopped_at_its_budget_to_the_last_token_and_its_key_goes_on() {
    let stack = Stack::balance(10_000).await;
    let run = open(&stack, None, json!({"budget": {"tokens": 1}})).await;
    let refused = chat(&stack, &run, 20).await;
    is(&refused, 429, "insufficient_quota");
    let cap = format!("run:{}:tokens", run.id);
    assert_eq!(refused.1["error"]["cap"], json!(cap));
    let need = refused.1["error"]["requested"].as_u64().unwrap();
    let short = open(&stack, None, json!({"budget": {"tokens": need - 1}})).await;
    is(&chat(&stack, &short, 20).await, 429, "insufficient_quota");
    assert_eq!(stack.upstream.hits(), 0);
    let exact = open(&stack, None, json!({"budget": {"tokens": need}})).await;
    assert_eq!(chat(&stack, &exact, 20).await.0, 200);
    is(&chat(&stack, &exact, 20).await, 429, "insufficient_quota");
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
}

#[tokio::test]
async fn the_caps_of_the_key_bind_its_runs_too() {
    let stack = Stack::balance(1000).await;
    let too_much = asks(&stack, None, &json!({"budget": {"tokens": 1001}}));
    let too_much = status_and_body(too_much).await;
    is(&too_much, 429, "insufficient_quota");
    assert_eq!(too_much.1["error"]["cap"], "tokens");
    let first = open(&stack, None, json!({"budget": {"tokens": 600}})).await;
    let second = asks(&stack, None, &json!({"budget": {"tokens": 600}}));
    let held = status_and_body(second.header("x-seatbelt-wait-ms", "0")).await;
    is(&held, 429, "rate_limit_exceeded");
    let message = held.1["error"]["message"].as_str().unwrap();
    assert!(message.contains("open runs hold the rest"), "{message}");
    // a budget in another meter is no way around a cap in tokens
    let requests = open(&stack, None, json!({"budget": {"requests": 9}})).await;
    let request = by(&stack, &requests.secret, "/v1/chat/completions", &hi(600));
    let short = request.header("x-seatbelt-wait-ms", "0");
    is(&status_and_body(short).await, 429, "rate_limit_exceeded");
    assert_eq!(close(&stack, &first).await.0, 200);
    open(&stack, None, json!({"budget": {"tokens": 600}})).await;
}

#[tokio::test]
async fn the_secret_of_a_run_whose_time_is_up_is_turned_away_with_the_reason() {
    let stack = Stack::balance(1000).await;
    let run = open(&stack, None, json!({"budget": {"tokens": 900}, "ttl": 1})).await;
    let told = eventually(async || {
        let (status, body) = get_by(&stack, &run.secret, "/v1/models").await;
        (status != 200).then_some((status, body))
    })
    .await;
    is(&told, 403, "run_ended");
    let message = told.1["error"]["message"].as_str().unwrap();
    assert!(
        message.contains(&run.id) && message.contains("its time is up"),
        "{message}"
    );
    is(&chat(&stack, &run, 20).await, 403, "run_ended");
    assert_eq!(
        stack.spent_once_idle().await,
        0,
        "and the rest is given back"
    );
}

#[tokio::test]
async fn the_secret_of_a_run_shows_and_spends_that_run_alone() {
    let stack = Stack::balance(1000).await;
    let run = open(&stack, None, json!({"budget": {"tokens": 100}})).await;
    let other = open(&stack, None, json!({"budget": {"tokens": 100}})).await;
    let (status, shown) = get_by(&stack, &run.secret, "/v1/key").await;
    let caps = shown["caps"].as_array().unwrap();
    assert_eq!((status, caps.len()), (200, 1), "{shown}");
    assert_eq!(
        (&shown["run"], &caps[0]["limit"]),
        (&json!(run.id), &json!(100))
    );
    let path = format!("/v1/runs/{}", other.id);
    is(
        &get_by(&stack, &run.secret, &path).await,
        404,
        "run_not_found",
    );
    let path = format!("/v1/runs/{}/close", other.id);
    is(
        &status_and_body(by(&stack, &run.secret, &path, &json!({}))).await,
        404,
        "run_not_found",
    );
    let request = by(&stack, &run.secret, "/v1/chat/completions", &hi(20));
    let strange = status_and_body(request.header("x-seatbelt-run", &other.id)).await;
    assert_eq!(
        (strange.0, &strange.1["error"]["param"]),
        (400, &json!("x-seatbelt-run"))
    );
    let request = by(&stack, &run.secret, "/v1/chat/completions", &hi(20));
    let own = request.header("x-seatbelt-run", &run.id);
    assert_eq!(status_and_body(own).await.0, 200);
    assert_eq!(
        stack.get(&format!("/v1/runs/{}", run.id)).await.1["meters"]["tokens"]["spent"],
        15
    );
}

#[tokio::test]
async fn runs_open_runs_out_of_their_own_and_end_what_is_inside() {
    let stack = Stack::balance(1000).await;
    let outer = open(&stack, None, json!({"budget": {"tokens": 300}, "ttl": 60})).await;
    let asked = json!({"budget": {"tokens": 200}, "ttl": 3600, "label": "inner"});
    let inner = open(&stack, Some(&outer.secret), asked).await;
    assert_eq!(inner.told["within"], json!(outer.id));
    assert_eq!(
        inner.told["expires_at"], outer.told["expires_at"],
        "no longer than the outer one"
    );
    let innermost = open(
        &stack,
        Some(&inner.secret),
        json!({"budget": {"tokens": 100}}),
    )
    .await;
    assert_eq!(chat(&stack, &innermost, 20).await.0, 200);
    let cap = stack.cap().await;
    assert_eq!((cap.spent, cap.held), (15, 285), "all out of the first");
    let path = format!("/v1/runs/{}", inner.id);
    let (status, shown) = get_by(&stack, &outer.secret, &path).await;
    assert_eq!(
        (status, &shown["meters"]["tokens"]["limit"]),
        (200, &json!(100))
    );
    assert_eq!(shown["inside"], json!([innermost.id]));
    is(
        &get_by(&stack, &innermost.secret, &path).await,
        404,
        "run_not_found",
    );
    let too_much = asks(
        &stack,
        Some(&outer.secret),
        &json!({"budget": {"tokens": 101}}),
    );
    is(&status_and_body(too_much).await, 429, "insufficient_quota");
    let narrower = asks(
        &stack,
        Some(&outer.secret),
        &json!({"budget": {"requests": 5}}),
    );
    let (status, told) = status_and_body(narrower).await;
    let message = told["error"]["message"].as_str().unwrap();
    assert!(
        status == 400 && message.contains("has no budget in requests"),
        "{told}"
    );
    // a sub-agent gives back what it did not need, and the one that started it has it again
    let path = format!("/v1/runs/{}/close", inner.id);
    let closed = status_and_body(by(&stack, &inner.secret, &path, &json!({}))).await;
    assert_eq!(closed.0, 200, "{}", closed.1);
    for run in [&inner, &innermost] {
        is(&chat(&stack, run, 20).await, 403, "run_ended");
    }
    let (_, shown) = get_by(&stack, &outer.secret, &format!("/v1/runs/{}", outer.id)).await;
    assert_eq!(shown["meters"]["tokens"]["available"], 285);
    assert_eq!(shown["inside"], json!([]));
    let again = open(
        &stack,
        Some(&outer.secret),
        json!({"budget": {"tokens": 285}}),
    )
    .await;
    assert_eq!(close(&stack, &outer).await.0, 200);
    is(&chat(&stack, &again, 20).await, 403, "run_ended");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn all_runs_inside_end_with_the_one_around_them_however_many_there_are() {
    let stack = Stack::balance(1000).await;
    let outer = open(&stack, None, json!({"budget": {"tokens": 300}})).await;
    // more than are told of at once
    for _ in 0..260 {
        open(
            &stack,
            Some(&outer.secret),
            json!({"budget": {"tokens": 1}}),
        )
        .await;
    }
    assert_eq!(close(&stack, &outer).await.0, 200);
    let cap = stack.cap().await;
    assert_eq!((cap.spent, cap.held), (0, 0), "all of it came back");
}

/// An outer run with some inside it.
async fn nest(stack: &Stack, inside: u64) -> (Opened, Vec<Opened>) {
    let outer = open(stack, None, json!({"budget": {"tokens": inside + 1}})).await;
    let one = json!({"budget": {"tokens": 1}});
    let mut inner = Vec::new();
    for _ in 0..inside {
        inner.push(open(stack, Some(&outer.secret), one.clone()).await);
    }
    (outer, inner)
}

#[tokio::test]
async fn a_close_goes_on_where_its_client_leaves() {
    let stack = Stack::balance(1000).await;
    let (outer, _) = nest(&stack, 260).await;
    let path = format!("/v1/runs/{}/close", outer.id);
    let closing = tokio::spawn(stack.post(&path, &json!({})).send());
    eventually(async || (stack.cap().await.held < 261).then_some(())).await;
    closing.abort();
    eventually(async || (stack.cap().await.held == 0).then_some(())).await;
}

#[tokio::test]
async fn a_close_that_was_cut_off_is_ended_by_the_next() {
    let stack = Stack::balance(1000).await;
    let (outer, inner) = nest(&stack, 5).await;
    // as after a kill in between: the outer one has ended, those inside have not
    let run = RunId::new(&outer.id).unwrap();
    let query = Read {
        account: account(),
        key: None,
        run: Some(run),
        reservation: None,
    };
    let host = &stack.ledger.host;
    let found = host.read(query).await.unwrap().run.unwrap();
    let release = Release {
        id: CommandId::from_parts(Ulid::new().timestamp_ms(), 7),
        actor: Actor::operator("test"),
        account: account(),
        reservation: found.reservation,
        reason: "run closed".to_owned(),
    };
    host.release(release).await.unwrap();
    assert_eq!(stack.cap().await.held, 5);
    let path = format!("/v1/runs/{}/close", outer.id);
    let by_inner = status_and_body(by(&stack, &inner[0].secret, &path, &json!({}))).await;
    is(&by_inner, 404, "run_not_found");
    assert_eq!(stack.cap().await.held, 5, "what is refused does nothing");
    let (status, told) = close(&stack, &outer).await;
    assert_eq!((status, &told["ended_inside"]), (200, &json!(5)), "{told}");
    assert_eq!(stack.cap().await.held, 0);
    is(&close(&stack, &outer).await, 404, "run_not_found");
}

#[tokio::test]
async fn a_run_closes_no_run_around_it_and_ends_nothing_by_trying() {
    let stack = Stack::balance(1000).await;
    let (outer, inner) = nest(&stack, 2).await;
    let path = format!("/v1/runs/{}/close", outer.id);
    let tried = status_and_body(by(&stack, &inner[0].secret, &path, &json!({}))).await;
    is(&tried, 404, "run_not_found");
    assert_eq!(chat(&stack, &inner[0], 1).await.0, 429, "it is still open");
}

#[tokio::test]
async fn no_budget_takes_all_that_can_be_counted_from_others() {
    let stack = Stack::balance(1000).await;
    let huge = json!({"budget": {"requests": 1_u64 << 60}});
    let (status, told) = status_and_body(asks(&stack, None, &huge)).await;
    assert_eq!(
        (status, &told["error"]["param"]),
        (400, &json!("budget")),
        "{told}"
    );
}

#[tokio::test]
async fn no_run_that_is_opened_inside_while_the_outer_one_closes_outlives_it() {
    let stack = Stack::balance(1000).await;
    let outer = open(&stack, None, json!({"budget": {"tokens": 900}})).await;
    let first = tokio::sync::Notify::new();
    let goes_on = async || {
        let asked = json!({"budget": {"tokens": 1}});
        loop {
            let (status, told) = status_and_body(asks(&stack, Some(&outer.secret), &asked)).await;
            if status != 201 {
                return (status, told);
            }
            first.notify_one();
        }
    };
    let closes = async {
        first.notified().await;
        close(&stack, &outer).await
    };
    let (one, other, closed) = tokio::join!(goes_on(), goes_on(), closes);
    for told in [one, other] {
        is(&told, 403, "run_ended");
    }
    assert_eq!(closed.0, 200);
    let cap = stack.cap().await;
    assert_eq!((cap.spent, cap.held), (0, 0), "nothing is left behind");
}

#[tokio::test]
async fn a_run_is_taken_out_of_another_with_that_ones_secret_and_by_no_header() {
    let stack = Stack::balance(1000).await;
    let outer = open(&stack, None, json!({"budget": {"tokens": 100}, "ttl": 60})).await;
    let asked = json!({"budget": {"tokens": 10}});
    let named = asks(&stack, None, &asked).header("x-seatbelt-run", &outer.id);
    let (status, told) = status_and_body(named).await;
    assert_eq!(
        (status, &told["error"]["param"]),
        (400, &json!("x-seatbelt-run")),
        "{told}"
    );
    let own = asks(&stack, Some(&outer.secret), &asked).header("x-seatbelt-run", &outer.id);
    let (status, told) = status_and_body(own).await;
    assert_eq!((status, &told["within"]), (201, &json!(outer.id)), "{told}");
}

#[tokio::test]
async fn what_is_no_run_of_the_key_is_not_found_and_what_is_no_secret_no_key() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |told| {
        let other = KeyId::new("other").unwrap();
        let entry = KeyEntry::new(KeySecret::hash("sk-other"), account(), other);
        told.keys.push(entry);
    })
    .await;
    let run = open(&stack, None, json!({"budget": {"tokens": 100}})).await;
    let path = format!("/v1/runs/{}", run.id);
    is(
        &get_by(&stack, "sk-other", &path).await,
        404,
        "run_not_found",
    );
    for odd in ["/v1/runs/none", "/v1/runs/a.b", "/v1/runs/%20"] {
        is(&stack.get(odd).await, 404, "run_not_found");
    }
    let forged = run.secret.replace(".acct.key.", ".acct.other.");
    assert_ne!(forged, run.secret);
    let last = if run.secret.ends_with('0') { "1" } else { "0" };
    let changed = format!("{}{last}", &run.secret[..run.secret.len() - 1]);
    for secret in [forged, changed, format!("{}0", run.secret)] {
        is(
            &get_by(&stack, &secret, "/v1/key").await,
            401,
            "invalid_api_key",
        );
    }
    assert_eq!(get_by(&stack, &run.secret, "/v1/key").await.0, 200);
}

#[tokio::test]
async fn a_run_goes_with_its_key() {
    let stack = Stack::balance(1000).await;
    let run = open(&stack, None, json!({"budget": {"tokens": 100}})).await;
    let rotated = KeyEntry::new(KeySecret::hash("sk-new"), account(), crate::support::key());
    let table = seatbelt_gateway::KeyTable::new(vec![rotated]).unwrap();
    stack.keys.send_replace(table);
    is(&chat(&stack, &run, 20).await, 401, "invalid_api_key");
}

#[tokio::test]
async fn what_opens_a_run_is_checked_and_holds_nothing_where_it_is_wrong() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |told| {
        told.require_auth = false;
    })
    .await;
    let odd = asks(
        &stack,
        None,
        &json!({"budget": {"tokens": 100}, "labels": "x"}),
    );
    let told = status_and_body(odd).await;
    assert_eq!((told.0, &told.1["error"]["param"]), (400, &json!("labels")));
    let keyless = stack.client.post(format!("{}/v1/runs", stack.base));
    let keyless = keyless.body(json!({"budget": {"tokens": 100}}).to_string());
    is(&status_and_body(keyless).await, 401, "invalid_api_key");
    assert_eq!(stack.spent_once_idle().await, 0);
}

/// Whose secret it was is in no run that came after.
#[tokio::test]
async fn the_secret_of_a_run_is_none_of_the_next_under_the_same_key() {
    let stack = Stack::balance(1000).await;
    let body = json!({"budget": {"tokens": 300}});
    let ask = async || {
        let request = asks(&stack, None, &body).header("idempotency-key", "k");
        let (status, told) = status_and_body(request).await;
        assert_eq!(status, 201, "{told}");
        Opened {
            id: told["id"].as_str().unwrap().to_owned(),
            secret: told["secret"].as_str().unwrap().to_owned(),
            told,
        }
    };
    let first = ask().await;
    assert_eq!(close(&stack, &first).await.0, 200);
    let second = ask().await;
    assert_ne!(first.id, second.id);
    is(&chat(&stack, &first, 20).await, 403, "run_ended");
    assert_eq!(chat(&stack, &second, 20).await.0, 200);
}

/// Whoever asks again is told of the run that the first one opened, and nobody takes it back.
#[tokio::test]
async fn a_run_whose_opener_heard_nothing_is_kept_for_its_next_try() {
    let stack = Stack::balance(1000).await;
    let body = json!({"budget": {"tokens": 300}});
    let request = || asks(&stack, None, &body).header("idempotency-key", "k");
    stack.ledger.answers_lost.store(true, SeqCst);
    is(&status_and_body(request()).await, 503, "ledger_unavailable");
    stack.ledger.answers_lost.store(false, SeqCst);
    let (status, told) = status_and_body(request()).await;
    assert_eq!(status, 200, "{told}");
    let run = Opened {
        id: told["id"].as_str().unwrap().to_owned(),
        secret: told["secret"].as_str().unwrap().to_owned(),
        told,
    };
    for _ in 0..5 {
        assert_eq!(chat(&stack, &run, 20).await.0, 200);
    }
    assert_eq!(
        stack.ledger.releases.load(SeqCst),
        0,
        "nobody gives it back"
    );
}

/// Its answer may have been lost: sent again it is the same run, and nothing is set aside twice.
#[tokio::test]
async fn opening_under_one_idempotency_key_opens_one_run() {
    let stack = Stack::balance(1000).await;
    let ask = async |name: &str, body: Value| {
        let request = asks(&stack, None, &body).header("idempotency-key", name);
        status_and_body(request).await
    };
    let body = json!({"budget": {"tokens": 300}, "label": "night", "ttl": 600});
    let (first, again) = tokio::join!(ask("k-1", body.clone()), ask("k-1", body.clone()));
    let mut statuses = [first.0, again.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201], "{first:?} {again:?}");
    for field in ["id", "expires_at", "budget", "label"] {
        assert_eq!(first.1[field], again.1[field], "{field}");
    }
    assert_eq!(stack.cap().await.held, 300);
    let run = Opened {
        id: again.1["id"].as_str().unwrap().to_owned(),
        secret: again.1["secret"].as_str().unwrap().to_owned(),
        told: again.1.clone(),
    };
    assert_eq!(chat(&stack, &run, 20).await.0, 200, "either secret spends");
    let other = ask("k-1", json!({"budget": {"tokens": 301}, "label": "night"})).await;
    is(&other, 422, "idempotency_key_reused");
    let another = ask("k-2", body.clone()).await;
    assert_eq!(another.0, 201);
    assert_ne!(another.1["id"], run.told["id"]);
    let empty = ask("", body).await;
    assert_eq!(empty.0, 400);
}
