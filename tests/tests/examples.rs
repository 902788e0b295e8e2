//! The examples run as they are written.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Foreign, Key, Stack, python};
use serde_json::json;

/// What a request to the foreign model costs, in nano-USD: see its price in the stack's configuration.
const PRICE: u64 = 4500;

#[tokio::test]
async fn the_bill_from_the_feed_is_what_the_key_spent() {
    let foreign = Foreign::start().await;
    let stack = Stack::new()
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(1000))
        .start()
        .await;
    let home = stack.home();
    let nats = home.data().join("nats.json");
    let bills = home.data().join("bills.sqlite");
    let arguments = [nats.to_str().unwrap(), bills.to_str().unwrap(), "--once"];
    let mut requests = 0;
    // the second time it goes on where it was
    for more in [1, 2] {
        for _ in 0..more {
            assert!(stack.chat("sk-cap", 20).await.is_ok());
            requests += 1;
        }
        let cap = stack
            .cap("sk-cap", "everything is settled", |cap| {
                cap["spent"] == requests * 15 && cap["held"] == 0
            })
            .await;
        let bill = python::run("../../examples/billing/bill.py", &arguments).await;
        let paid = json!({
            "account": "acct-cap", "tokens": cap["spent"], "nano_usd": requests * PRICE, "requests": requests
        });
        assert_eq!(bill, paid);
    }
}
