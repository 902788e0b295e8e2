//! Requests that name a run spend what was set aside for it; the run of a client is a label and no
//! way to another payer.

use std::time::{SystemTime, UNIX_EPOCH};

use seatbelt_ledger::api::{Ledger, Release, Reserve, ReserveOutcome};
use seatbelt_schemas::{
    budget::Budget,
    event::{OnShort, OnUnknown},
    ids::{Actor, CommandId, ReservationId, RunId},
    meter::Meter,
};
use serde_json::json;

use crate::support::{Stack, account, hi, key, status_and_body};

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// The key opens a run with so many tokens.
async fn open(stack: &Stack, run: &str, amount: u64) -> ReservationId {
    let outcome = stack.ledger.reserve(Reserve {
        team: None,
        id: CommandId::from_parts(now_ms(), 1),
        account: account(),
        key: key(),
        model: None,
        run: Some(RunId::new(run).unwrap()),
        end_user: None,
        input_tokens: 0,
        output_tokens: 0,
        tool_calls: 0,
        deadline_ms: now_ms() + 600_000,
        wait_ms: 0,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
        budget: Some(Budget::new([(Meter::Tokens, amount)]).unwrap()),
        within: None,
    });
    match outcome.await.unwrap() {
        ReserveOutcome::Reserved(grant) => grant.reservation,
        ReserveOutcome::Refused(refusal) => panic!("{refusal:?}"),
    }
}

#[tokio::test]
async fn a_request_in_a_run_spends_the_runs_budget() {
    let stack = Stack::balance(1000).await;
    let reservation = open(&stack, "r", 100).await;
    let response = stack.chat(&hi(20)).header("x-seatbelt-run", "r");
    let response = response.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(
        response.headers()["x-ratelimit-limit-tokens"],
        "100",
        "the allowance shown is the run's"
    );
    response.text().await.unwrap();
    let (_, shown) = stack.get("/v1/key").await;
    let caps = shown["caps"].as_array().unwrap();
    let stands = |id: &str| {
        let cap = caps.iter().find(|cap| cap["id"] == id).unwrap();
        (cap["spent"].clone(), cap["held"].clone())
    };
    assert_eq!(stands("tokens"), (json!(15), json!(85)));
    assert_eq!(stands("run:r:tokens"), (json!(15), json!(0)));
    assert!(
        !stack.upstream.last().headers.contains_key("x-seatbelt-run"),
        "forwarded"
    );
    let release = Release {
        id: CommandId::from_parts(now_ms(), 2),
        account: account(),
        reservation,
        reason: "done".to_owned(),
        actor: Actor::operator("test"),
    };
    stack.ledger.release(release).await.unwrap();
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_run_at_its_end_refuses_while_the_key_goes_on() {
    let stack = Stack::balance(1000).await;
    open(&stack, "r", 30).await;
    let request = stack.chat(&hi(20)).header("x-seatbelt-run", "r");
    let (status, body) = status_and_body(request).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (429, &json!("insufficient_quota"))
    );
    let error = &body["error"];
    assert_eq!(
        (&error["cap"], &error["scope"]),
        (&json!("run:r:tokens"), &json!("run"))
    );
    assert_eq!(stack.upstream.hits(), 0);
    for run in [None, Some("another")] {
        let request = stack.chat(&hi(20));
        let request = run.into_iter().fold(request, |request, run| {
            request.header("x-seatbelt-run", run)
        });
        assert_eq!(status_and_body(request).await.0, 200);
    }
}

#[tokio::test]
async fn a_run_that_is_no_id_is_a_bad_request_in_the_dialect() {
    let stack = Stack::balance(1000).await;
    let long = "r".repeat(65);
    for bad in ["", "a b", "a.b", "run:r:tokens", long.as_str()] {
        let request = stack.chat(&hi(20)).header("x-seatbelt-run", bad);
        let (status, body) = status_and_body(request).await;
        let error = &body["error"];
        assert_eq!(
            (status, &error["code"], &error["param"]),
            (400, &json!("invalid_body"), &json!("x-seatbelt-run")),
            "{bad:?}"
        );
        let request = stack
            .post("/v1/messages", &hi(20))
            .header("x-seatbelt-run", bad);
        let (status, body) = status_and_body(request).await;
        assert_eq!((status, &body["type"]), (400, &json!("error")), "{bad:?}");
    }
    assert_eq!(stack.upstream.hits(), 0);
    assert_eq!(stack.spent_once_idle().await, 0);
}
