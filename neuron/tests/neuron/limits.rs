//! Requests for which more output is held while they run.

use std::sync::Arc;

use seatbelt_schemas::neuron::{
    HEADER_GROWS_TO, HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION, LimitCall, LimitTold, PATH_LIMIT,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    access::{CHAT, bounds, post, signed},
    common::{Answer, Neuron, chat, secret, with},
};

/// Runs a request of which so much is held, and may come to be.
fn growing(neuron: &Arc<Neuron>, body: &Value, held: usize, most: usize) -> JoinHandle<Answer> {
    let (neuron, body) = (Arc::clone(neuron), body.clone());
    tokio::spawn(async move {
        let (held, most) = (held.to_string(), most.to_string());
        let headers = [
            (HEADER_RESERVATION, "r"),
            (HEADER_MAX_OUTPUT_TOKENS, held.as_str()),
            (HEADER_GROWS_TO, most.as_str()),
        ];
        neuron.post_with(CHAT, &headers, &body).await
    })
}

async fn call(neuron: &Neuron, most: u64, call: LimitCall) -> Answer {
    let most = most.to_string();
    let headers = [
        (HEADER_RESERVATION, "r"),
        (HEADER_MAX_OUTPUT_TOKENS, most.as_str()),
    ];
    let body = serde_json::to_value(call).unwrap();
    neuron.post_with(PATH_LIMIT, &headers, &body).await
}

/// Lets it have so much, and waits until it has written so much or waits.
async fn limit(neuron: &Neuron, most: u64, written: u64, last: bool) -> LimitTold {
    let asked = LimitCall {
        written,
        wait_ms: 20_000,
        last,
    };
    loop {
        let answer = call(neuron, most, asked).await;
        // until it runs, and not any more
        if answer.status == 200 {
            return serde_json::from_str(&answer.body).unwrap();
        }
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "reservation_not_running")
        );
    }
}

const AT_ONCE: LimitCall = LimitCall {
    written: 0,
    wait_ms: 0,
    last: false,
};

#[tokio::test]
async fn an_answer_waits_at_its_limit_goes_on_and_is_the_one_that_it_was() {
    let neuron = Arc::new(Neuron::start().await);
    let whole = neuron.says("Hi", 9).await;
    for stream in [false, true] {
        let body = with(chat("Hi", 9), "stream", json!(stream));
        let answer = growing(&neuron, &body, 2, 9);
        let told = limit(&neuron, 2, 9, false).await;
        assert_eq!((told.written, told.waits), (2, true));
        // sent again, late or odd: it is never lowered
        for less in [2, 1, 0] {
            assert_eq!(call(&neuron, less, AT_ONCE).await.status, 200);
        }
        assert_eq!(limit(&neuron, 5, 5, false).await.written, 5);
        let told = call(&neuron, 1 << 50, AT_ONCE).await;
        assert!([200, 404].contains(&told.status), "{told:?}");
        let answer = answer.await.unwrap();
        let text = match stream {
            true => answer.streamed_text(),
            false => answer.text(),
        };
        assert_eq!(text, whole);
        assert_eq!(call(&neuron, 9, AT_ONCE).await.status, 404, "it is over");
    }
    let reports = neuron.reports.exactly(3).await;
    assert!(
        reports
            .iter()
            .all(|(_, event)| event.usage.output_tokens == 9)
    );
}

#[tokio::test]
async fn an_answer_that_gets_no_more_is_the_beginning_of_the_whole_one() {
    let neuron = Arc::new(Neuron::start().await);
    let whole = neuron.says("Hi", 9).await;
    let answer = growing(&neuron, &chat("Hi", 9), 2, 9);
    assert!(limit(&neuron, 6, 9, false).await.waits);
    let over = LimitCall {
        last: true,
        written: 9,
        wait_ms: 20_000,
    };
    assert_eq!(
        call(&neuron, 6, over).await.status,
        404,
        "told once it is over"
    );
    let answer = answer.await.unwrap();
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    assert_eq!(answer.json()["usage"]["completion_tokens"], 6);
    assert!(whole.starts_with(&answer.text()), "{answer:?}");
}

#[tokio::test]
async fn several_answers_grow_together_and_a_shape_is_followed_across_limits() {
    let neuron = Arc::new(Neuron::start().await);
    let schema = json!({ "type": "array", "items": { "type": "integer" }, "minItems": 9 });
    let shape = json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": schema } });
    for body in [
        with(chat("Hi", 8), "n", json!(3)),
        with(chat("Hi", 8), "response_format", shape),
    ] {
        let choices = body["n"].as_u64().unwrap_or(1);
        let body = with(body, "temperature", json!(0));
        let whole = neuron.post(CHAT, &body).await.json();
        let held = usize::try_from(choices).unwrap();
        let answer = growing(&neuron, &body, held * 3, held * 8);
        let told = limit(&neuron, choices * 3, choices * 8, false).await;
        assert_eq!((told.written, told.waits), (choices * 3, true));
        // less than one more for each is none
        call(&neuron, choices * 4 - 1, AT_ONCE).await;
        assert!(choices == 1 || limit(&neuron, 0, 0, false).await.written == choices * 3);
        call(&neuron, choices * 8, AT_ONCE).await;
        let answer = answer.await.unwrap().json();
        assert_eq!(answer["choices"], whole["choices"]);
        assert_eq!(
            answer["usage"]["completion_tokens"],
            whole["usage"]["completion_tokens"]
        );
    }
}

#[tokio::test]
async fn what_a_crash_is_answered_for_is_what_may_be_written_by_then() {
    let neuron = Arc::new(Neuron::start().await);
    let answer = growing(&neuron, &chat("Hi", 1000), 2, 1000);
    assert!(limit(&neuron, 2, 3, false).await.waits);
    let told = limit(&neuron, 7, 8, false).await;
    assert_eq!((told.written, told.waits), (7, true));
    // A copy of the file in the middle of things is what a kill would leave.
    let after = tempfile::tempdir().unwrap();
    std::fs::create_dir(after.path().join("outbox")).unwrap();
    let file = "outbox/usage.outbox";
    std::fs::copy(neuron.folder.path().join(file), after.path().join(file)).unwrap();
    answer.abort();
    let restarted = Neuron::in_folder(after).await;
    let left = restarted.reports.exactly(1).await;
    assert_eq!(
        (left[0].0.as_str(), left[0].1.usage.output_tokens),
        ("r", 7)
    );
}

#[tokio::test]
async fn only_a_gateway_of_the_deployment_raises_a_limit() {
    let neuron = Arc::new(Neuron::with(|config| config.open = false).await);
    let body = chat("Hi", 9);
    let mut headers = bounds("r");
    headers.push((HEADER_GROWS_TO, "9".to_owned()));
    let request = signed(&secret(), CHAT, headers, &body);
    let mut wider = request.clone();
    wider[3].1 = "99".to_owned();
    assert_eq!(post(&neuron, CHAT, &wider, &body).await.status, 401);
    let running = {
        let neuron = Arc::clone(&neuron);
        let body = body.clone();
        tokio::spawn(async move { post(&neuron, CHAT, &request, &body).await })
    };
    let asked = |last| {
        serde_json::to_value(LimitCall {
            written: 9,
            wait_ms: 20_000,
            last,
        })
    };
    let waits = asked(false).unwrap();
    let as_held = signed(&secret(), PATH_LIMIT, bounds("r"), &waits);
    let told = loop {
        let told = post(&neuron, PATH_LIMIT, &as_held, &waits).await;
        if told.status == 200 {
            break told.json();
        }
    };
    assert_eq!(told, json!({ "written": 3, "waits": true }));
    let last = asked(true).unwrap();
    let unsigned = bounds("r");
    let mut raised = as_held.clone();
    raised[1].1 = "9".to_owned();
    for (headers, body) in [(&unsigned, &waits), (&raised, &waits), (&as_held, &last)] {
        assert_eq!(post(&neuron, PATH_LIMIT, headers, body).await.status, 401);
    }
    let again = post(&neuron, PATH_LIMIT, &as_held, &waits).await.json();
    assert_eq!(again, told, "nothing came of them");
    let ends = signed(&secret(), PATH_LIMIT, bounds("r"), &last);
    post(&neuron, PATH_LIMIT, &ends, &last).await;
    let answer = running.await.unwrap().json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let page = neuron.get("/metrics").await.body;
    assert!(page.contains("seatbelt_neuron_turned_away_total{why=\"repeated\"} 0"));
}
