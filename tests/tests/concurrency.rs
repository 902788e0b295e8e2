//! Many requests on one key at once: the cap holds at every position of the journal, and every
//! answer was paid for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Foreign, Key, Stack};
use serde_json::Value;

const REQUESTS: usize = 200;
const LIMIT: u64 = 600;

#[tokio::test]
async fn two_hundred_requests_at_once_on_a_cap_for_few() {
    let foreign = Foreign::start().await;
    let key = Key::new("few").hard_cap(LIMIT);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    let answers = futures::future::join_all((0..REQUESTS).map(|_| stack.chat("sk-few", 20))).await;
    let served = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(
        served > 0 && served < REQUESTS,
        "{served} of {REQUESTS} served"
    );
    for answer in answers.iter().filter(|answer| !answer.is_ok()) {
        assert_eq!(answer.status, 429, "{answer:?}");
    }
    assert_eq!(foreign.hits(), served as u64);
    let charged = served as u64 * 15;
    let what = "every answer is charged and nothing is held";
    let done = |cap: &Value| cap["held"] == 0 && cap["spent"] == charged;
    stack.cap("sk-few", what, done).await;
    stack.home().verify().await;
    let events = stack.home().events().await;
    within_the_limit_throughout(&events);
    let settled = events.iter().filter(|event| event["kind"] == "settled");
    assert_eq!(settled.count(), served);
}

/// Counts again what the events say: spent and held of the one cap, at every position.
fn within_the_limit_throughout(events: &[Value]) {
    let tokens = |amounts: &Value| amounts["tokens"].as_u64().unwrap();
    let mut open = std::collections::BTreeMap::new();
    let (mut spent, mut most) = (0, 0);
    for event in events.iter().filter(|event| event["account"] == "acct-few") {
        let data = &event["data"];
        let reservation = data["reservation"].as_str().unwrap_or_default().to_owned();
        match event["kind"].as_str().unwrap() {
            "reserved" => {
                let before = open.insert(reservation, tokens(&data["hold"]));
                assert_eq!(before, None, "reserved twice: {event}");
            }
            "settled" => {
                assert!(open.remove(&reservation).is_some(), "not open: {event}");
                spent += tokens(&data["charge"]);
            }
            "released" => assert!(open.remove(&reservation).is_some(), "not open: {event}"),
            "resized" => drop(open.insert(reservation, tokens(&data["hold"]))),
            _ => {}
        }
        let held: u64 = open.values().sum();
        most = most.max(spent + held);
        assert!(
            spent + held <= LIMIT,
            "{spent} spent and {held} held at {event}"
        );
    }
    assert!(most > 0 && open.is_empty(), "{open:?} left open");
}
