//! Runs over HTTP with real processes: a secret outlives a restart, every gateway knows it, nobody else's key
//! sees the run, no log and no event holds the secret, and the audit proves all of it.

use seatbelt_tests::{Answer, Foreign, Key, Running, Stack};
use serde_json::{Value, json};

async fn stack(foreign: &Foreign) -> Running {
    let parent = Key::new("parent").hard_cap(1000);
    let stranger = Key::new("stranger").hard_cap(1000);
    let stack = Stack::new().upstream(foreign).key(parent).key(stranger);
    stack.start().await
}

async fn open(stack: &Running, secret: &str, body: Value) -> (String, String) {
    let answer = stack.post("/v1/runs", secret, body.to_string()).await;
    assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
    let told = answer.json();
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    (text("id"), text("secret"))
}

async fn close(stack: &Running, secret: &str, id: &str) -> Answer {
    stack
        .post(&format!("/v1/runs/{id}/close"), secret, "")
        .await
}

/// The account's cap of the key that opened it.
async fn stands(stack: &Running, spent: u64, held: u64) {
    let what = format!("{spent} are spent and {held} are held");
    stack
        .cap("sk-parent", &what, |cap| {
            cap["spent"] == spent && cap["held"] == held
        })
        .await;
}

#[tokio::test]
async fn sub_agents_get_budgets_of_their_own_without_an_operator() {
    let foreign = Foreign::start().await;
    let stack = stack(&foreign).await;
    let budget = json!({"budget": {"tokens": 200}, "ttl": 600, "label": "planner"});
    let (planner, secret) = open(&stack, "sk-parent", budget).await;
    let budget = json!({"budget": {"tokens": 100}, "label": "worker"});
    let (worker, of_worker) = open(&stack, &secret, budget).await;
    assert!(stack.chat(&of_worker, 20).await.is_ok());
    stands(&stack, 15, 185).await;
    // used up to where the next request does not fit any more
    let mut answer = stack.chat(&of_worker, 20).await;
    while answer.is_ok() {
        answer = stack.chat(&of_worker, 20).await;
    }
    let error = answer.expect_error(429, "insufficient_quota", "insufficient_quota");
    assert_eq!(error["cap"], json!(format!("run:{worker}:tokens")));
    let spent = error["spent"].as_u64().unwrap();
    assert!(spent <= 100 && spent + error["requested"].as_u64().unwrap() > 100);
    assert!(stack.chat(&secret, 20).await.is_ok(), "the planner goes on");
    let seen = stack
        .get(&format!("/v1/runs/{planner}"), "sk-stranger")
        .await;
    seen.expect_error(404, "invalid_request_error", "run_not_found");

    let stack = stack.stop().await.start().await;
    assert!(
        stack.chat(&secret, 20).await.is_ok(),
        "known after a restart"
    );
    let closed = close(&stack, "sk-parent", &planner).await;
    assert!(closed.is_ok(), "{closed:?}");
    for secret in [&secret, &of_worker] {
        let refused = stack.chat(secret, 20).await;
        let error = refused.expect_error(403, "invalid_request_error", "run_ended");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("open another run"), "{message}");
        assert_eq!(refused.header("x-should-retry"), Some("false"));
    }
    stands(&stack, spent + 30, 0).await;

    let events = stack.home().events().await;
    let opened: Vec<&Value> = events
        .iter()
        .filter(|event| event["data"]["budget"].is_object())
        .collect();
    let within: Vec<&Value> = opened
        .iter()
        .map(|event| &event["data"]["within"])
        .collect();
    assert_eq!(within, [&Value::Null, &json!(planner)]);
    let said = format!("{events:?}{}", stack.log());
    for secret in [&secret, &of_worker] {
        let code = secret.rsplit('.').next().unwrap();
        assert!(
            !said.contains(code),
            "a secret is in the log or in an event"
        );
    }
    stack.home().verify().await;
}
