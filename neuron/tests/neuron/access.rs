//! Who is served: what a gateway of the deployment signed, once for each reservation.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seatbelt_schemas::{
    ids::NeuronId,
    neuron::{
        HEADER_DEADLINE_MS, HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
        signature::{BodyHash, Call, HEADER_SIGNATURE, NeuronSecret},
    },
    usage::NeuronOutcome,
};
use serde_json::{Value, json};

use crate::common::{Answer, Neuron, chat, secret};

pub(crate) const CHAT: &str = "/v1/chat/completions";

async fn closed() -> Neuron {
    Neuron::with(|config| config.open = false).await
}

/// A deadline so far ahead of now, in ms; behind it where negative.
fn deadline(ahead: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_millis()).unwrap();
    now.saturating_add_signed(ahead).to_string()
}

pub(crate) type Headers = Vec<(&'static str, String)>;

pub(crate) fn bounds(reservation: &str) -> Headers {
    vec![
        (HEADER_RESERVATION, reservation.to_owned()),
        (HEADER_MAX_OUTPUT_TOKENS, "3".to_owned()),
        (HEADER_DEADLINE_MS, deadline(60_000)),
    ]
}

/// Adds what a gateway with this secret would sign of a call.
pub(crate) fn signed(
    secret: &NeuronSecret,
    path: &str,
    mut headers: Headers,
    body: &Value,
) -> Headers {
    let neuron = NeuronId::new("neuron-1").unwrap();
    let told = |name| {
        let header = headers.iter().find(|(known, _)| *known == name);
        header.map(|(_, value)| value.as_bytes())
    };
    let call = Call::new(&neuron, "POST", path, told);
    let signature = secret.sign(&call, &BodyHash::of(body.to_string().as_bytes()));
    headers.push((HEADER_SIGNATURE, signature));
    headers
}

pub(crate) async fn post(neuron: &Neuron, path: &str, headers: &Headers, body: &Value) -> Answer {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    neuron.post_with(path, &headers, body).await
}

fn refusal(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn no_access() -> (u16, String) {
    (401, "invalid_signature".to_owned())
}

#[tokio::test]
async fn whoever_is_not_of_the_deployment_is_turned_away_and_nothing_is_reported() {
    let neuron = closed().await;
    let body = chat("Hi", 3);
    let unsigned = post(&neuron, CHAT, &bounds("r"), &body).await;
    assert_eq!(refusal(&unsigned), no_access());
    assert_eq!(unsigned.json()["error"]["type"], "invalid_request_error");
    let stranger = signed(&NeuronSecret::new([8; 32]), CHAT, bounds("r"), &body);
    assert_eq!(
        refusal(&post(&neuron, CHAT, &stranger, &body).await),
        no_access()
    );
    let mut wider = signed(&secret(), CHAT, bounds("r"), &body);
    wider[1].1 = "900".to_owned();
    assert_eq!(
        refusal(&post(&neuron, CHAT, &wider, &body).await),
        no_access()
    );
    let elsewhere = signed(&secret(), "/tokenize", bounds("r"), &body);
    assert_eq!(
        refusal(&post(&neuron, CHAT, &elsewhere, &body).await),
        no_access()
    );
    let page = neuron.get("/metrics").await.body;
    assert!(
        page.contains("seatbelt_neuron_turned_away_total{why=\"unsigned\"} 4"),
        "{page}"
    );
    let (reports, _folder) = neuron.stop().await;
    assert_eq!(reports.all().len(), 0);
}

#[tokio::test]
async fn everything_but_what_machines_look_at_needs_a_signature() {
    let neuron = closed().await;
    let body = json!({ "model": "tiny", "prompt": "abc", "input": "abc" });
    for path in [
        "/v1/completions",
        "/v1/embeddings",
        "/tokenize",
        "/recipe",
        "/v1/none",
        "/none",
    ] {
        let answer = neuron.post(path, &body).await;
        assert_eq!(refusal(&answer), no_access(), "{path}");
    }
    for path in ["/v1/models", "/v1/models/tiny"] {
        assert_eq!(refusal(&neuron.get(path).await), no_access(), "{path}");
    }
    for path in ["/models", "/health/live", "/health/ready", "/metrics"] {
        assert_eq!(neuron.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_reservation_is_served_once_and_reported_once() {
    let neuron = closed().await;
    let body = chat("Hi", 3);
    let headers = signed(&secret(), CHAT, bounds("r"), &body);
    assert_eq!(post(&neuron, CHAT, &headers, &body).await.status, 200);
    let again = (409, "reservation_used".to_owned());
    assert_eq!(refusal(&post(&neuron, CHAT, &headers, &body).await), again);
    // also where a gateway itself would sign for it again
    let other = chat("Another", 1);
    let anew = signed(&secret(), CHAT, bounds("r"), &other);
    assert_eq!(refusal(&post(&neuron, CHAT, &anew, &other).await), again);
    let next = signed(&secret(), CHAT, bounds("r-2"), &body);
    assert_eq!(post(&neuron, CHAT, &next, &body).await.status, 200);
    let (reports, _folder) = neuron.stop().await;
    let reports = reports.all();
    let ids: Vec<_> = reports.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["r", "r-2"], "{reports:#?}");
    assert_eq!(reports[0].1.usage.output_tokens, 3);
}

#[tokio::test]
async fn the_body_is_the_one_that_was_signed() {
    let neuron = closed().await;
    let headers = signed(&secret(), CHAT, bounds("r"), &chat("Hi", 3));
    let answer = post(&neuron, CHAT, &headers, &chat("Ho", 3)).await;
    assert_eq!(refusal(&answer), no_access());
    let count = json!({ "model": "tiny", "prompt": "abc" });
    let pass = vec![(HEADER_DEADLINE_MS, deadline(60_000))];
    let headers = signed(&secret(), "/tokenize", pass, &count);
    assert_eq!(
        post(&neuron, "/tokenize", &headers, &count).await.status,
        200
    );
    let more = json!({ "model": "tiny", "prompt": "abcd" });
    assert_eq!(
        refusal(&post(&neuron, "/tokenize", &headers, &more).await),
        no_access()
    );
}

#[tokio::test]
async fn a_call_holds_until_its_deadline_and_for_a_day_at_most() {
    let neuron = closed().await;
    let body = chat("Hi", 3);
    let day = i64::try_from(Duration::from_secs(24 * 3600).as_millis()).unwrap();
    for (reservation, ahead, status) in [
        ("late", -1000, 504),
        ("stale", -day, 504),
        ("far", day + 60_000, 400),
        ("in-time", day - 60_000, 200),
    ] {
        let mut headers = bounds(reservation);
        headers[2].1 = deadline(ahead);
        let headers = signed(&secret(), CHAT, headers, &body);
        let answer = post(&neuron, CHAT, &headers, &body).await;
        assert_eq!(answer.status, status, "{reservation}: {answer:?}");
    }
    // one that names no end is none of ours
    let headers = signed(&secret(), CHAT, Vec::new(), &body);
    assert_eq!(post(&neuron, CHAT, &headers, &body).await.status, 504);
    let (reports, _folder) = neuron.stop().await;
    let told: Vec<_> = reports
        .all()
        .into_iter()
        .map(|(id, event)| (id, event.outcome))
        .collect();
    let late = ("late".to_owned(), NeuronOutcome::Expired);
    assert_eq!(
        told,
        [late, ("in-time".to_owned(), NeuronOutcome::Completed)]
    );
}
