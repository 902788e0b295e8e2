//! The examples run as they are written.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Foreign, Key, Running, Stack, example, foreign::MODEL, python};
use serde_json::{Value, json};

/// What a request to the foreign model uses and costs, in tokens and nano-USD: see its price in the stack's
/// configuration.
const TOKENS: u64 = 15;
const PRICE: u64 = 4500;

/// A key of 1,000 tokens.
async fn stack(foreign: &Foreign) -> Running {
    let stack = Stack::new().upstream(foreign);
    stack.key(Key::new("cap").hard_cap(1000)).start().await
}

fn in_data(stack: &Running, file: &str) -> String {
    let path = stack.home().data().join(file);
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_bill_in_python_is_what_the_key_spent() {
    is_what_the_key_spent(async |nats, folder| {
        let bills = format!("{folder}/bills.sqlite");
        python::run("../../examples/billing/bill.py", &[nats, &bills, "--once"]).await
    })
    .await;
}

#[tokio::test]
async fn the_bill_in_rust_is_what_the_key_spent() {
    is_what_the_key_spent(async |nats, folder| {
        let bills = format!("{folder}/bills.jsonl");
        example::told("bill", &[nats, &bills, "--once"]).await
    })
    .await;
}

async fn is_what_the_key_spent(bill: impl AsyncFn(&str, &str) -> Value) {
    let foreign = Foreign::start().await;
    let stack = stack(&foreign).await;
    let (nats, folder) = (in_data(&stack, "nats.json"), in_data(&stack, ""));
    let mut requests = 0;
    // the second time it goes on where it was
    for more in [1, 2] {
        for _ in 0..more {
            assert!(stack.chat("sk-cap", 20).await.is_ok());
            requests += 1;
        }
        let cap = stack
            .cap("sk-cap", "everything is settled", |cap| {
                cap["spent"] == requests * TOKENS && cap["held"] == 0
            })
            .await;
        let paid = json!({
            "account": "acct-cap", "tokens": cap["spent"], "nano_usd": requests * PRICE, "requests": requests
        });
        assert_eq!(bill(&nats, &folder).await, paid);
    }
}

#[tokio::test]
async fn a_run_stops_at_its_budget_and_gives_the_rest_back() {
    let foreign = Foreign::start().await;
    let stack = stack(&foreign).await;
    let (nats, base_url) = (
        in_data(&stack, "nats.json"),
        format!("{}/v1", stack.gateway),
    );
    let run = [&nats, "acct-cap/key-cap", "sk-cap", &base_url, MODEL, "200"];
    let became = example::told("run-with-budget", &run).await;
    let steps = foreign.answered();
    assert!((1..=200 / TOKENS).contains(&steps), "{steps}");
    let spent = steps * TOKENS;
    assert_eq!(
        became,
        json!({"steps": steps, "spent": spent, "given_back": 200 - spent})
    );
    stack
        .cap("sk-cap", "the rest is the key's again", |cap| {
            cap["limit"] == 1000 && cap["spent"] == spent && cap["held"] == 0
        })
        .await;
    // more than the key has left is refused, in words
    let more = [
        &nats,
        "acct-cap/key-cap",
        "sk-cap",
        &base_url,
        MODEL,
        "1000",
    ];
    let refused = example::run("run-with-budget", &more).await;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    let left = format!("no room for 1000 tokens: {} of 1000", 1000 - spent);
    assert!(
        !refused.status.success() && words.contains(&left),
        "{words}"
    );
    stack.home().verify().await;
}
