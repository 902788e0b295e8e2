//! Requests without a maximum under tight caps, held slice by slice while a neuron writes. The neuron is a foreign part
//! here, that writes as many tokens as it is let, and waits for more at its limit; the real one is in `tests/`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use futures::stream;
use seatbelt_schemas::{
    neuron::{HEADER_GROWS_TO, HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION, LimitCall, LimitTold},
    usage::NeuronOutcome,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, time::timeout};

use crate::{
    neuron::{event, record, tiny},
    support::{Stack, eventually, hi, hi_stream, is_signed, status_and_body, stream_text},
};

/// What a request holds there at its start.
const INPUT: u64 = 10;

/// Writes `a` for each token.
struct Writer {
    address: SocketAddr,
    /// How long its answers would be.
    length: u64,
    all: Mutex<BTreeMap<String, Writing>>,
    changed: Notify,
    /// Nobody writes beyond this until the test says so.
    gate: Mutex<u64>,
    /// Requests as they came: their limits, and what these may grow to.
    came: Mutex<Vec<(u64, Option<u64>)>>,
    /// Every limit that was told afterwards.
    told: Mutex<Vec<u64>>,
}

#[derive(Debug, Clone, Copy)]
struct Writing {
    limit: u64,
    written: u64,
    waits: bool,
    last: bool,
}

impl Writer {
    async fn start(length: u64) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let writer = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            length,
            all: Mutex::default(),
            changed: Notify::new(),
            gate: Mutex::new(u64::MAX),
            came: Mutex::default(),
            told: Mutex::default(),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/limit", post(limit))
            .route("/tokenize", post(tokenize))
            .with_state(Arc::clone(&writer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        writer
    }

    fn came(&self) -> Vec<(u64, Option<u64>)> {
        self.came.lock().unwrap().clone()
    }

    fn told(&self) -> Vec<u64> {
        self.told.lock().unwrap().clone()
    }

    fn written(&self) -> u64 {
        let all = self.all.lock().unwrap();
        all.values()
            .map(|writing| writing.written)
            .max()
            .unwrap_or(0)
    }

    fn waiting(&self) -> usize {
        let all = self.all.lock().unwrap();
        all.values().filter(|writing| writing.waits).count()
    }

    fn gate(&self, at: u64) {
        *self.gate.lock().unwrap() = at;
        self.changed.notify_waiters();
    }

    /// The next token, or why there is none.
    async fn next(&self, id: &str) -> Option<&'static str> {
        loop {
            let changed = self.changed.notified();
            {
                let mut all = self.all.lock().unwrap();
                let writing = all.get_mut(id).unwrap();
                if writing.written == self.length {
                    return Some("stop");
                }
                let waits = writing.written == writing.limit && !writing.last;
                let news = waits && !writing.waits;
                writing.waits = waits;
                if writing.written < writing.limit.min(*self.gate.lock().unwrap()) {
                    writing.written += 1;
                    self.changed.notify_waiters();
                    return None;
                }
                if writing.written == writing.limit && writing.last {
                    return Some("length");
                }
                if news {
                    self.changed.notify_waiters();
                }
            }
            let _ = timeout(Duration::from_millis(20), changed).await;
        }
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().unwrap().parse().ok()
}

fn reservation(headers: &HeaderMap) -> String {
    headers[HEADER_RESERVATION].to_str().unwrap().to_owned()
}

async fn tokenize() -> Json<Value> {
    Json(json!({ "input_tokens": INPUT, "context": 4096, "output": 2048 }))
}

/// Ends what is written when its reader leaves.
struct Ends(Arc<Writer>, String);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.all.lock().unwrap().remove(&self.1);
        self.0.changed.notify_waiters();
    }
}

async fn chat(State(writer): State<Arc<Writer>>, headers: HeaderMap, body: Bytes) -> Response {
    assert!(is_signed("/v1/chat/completions", &headers, &body));
    let limit = number(&headers, HEADER_MAX_OUTPUT_TOKENS).unwrap();
    let grows = number(&headers, HEADER_GROWS_TO);
    writer.came.lock().unwrap().push((limit, grows));
    let id = reservation(&headers);
    let writing = Writing {
        limit,
        written: 0,
        waits: false,
        last: grows.is_none(),
    };
    writer.all.lock().unwrap().insert(id.clone(), writing);
    let ends = Ends(Arc::clone(&writer), id);
    let body: Value = serde_json::from_slice(&body).unwrap();
    if body["stream"] != json!(true) {
        let (mut text, reason) = (
            String::new(),
            loop {
                if let Some(reason) = ends.0.next(&ends.1).await {
                    break reason;
                }
            },
        );
        let written = ends.0.all.lock().unwrap()[&ends.1].written;
        (0..written).for_each(|_| text.push('a'));
        return Json(json!({
            "id": "c", "object": "chat.completion", "model": "tiny",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": INPUT, "completion_tokens": written},
        }))
        .into_response();
    }
    let events = stream::unfold(Some(ends), async |ends| {
        let ends = ends?;
        let Some(reason) = ends.0.next(&ends.1).await else {
            let chunk = json!({"id": "c", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}], "usage": null});
            return Some((
                Ok::<_, std::io::Error>(format!("data: {chunk}\n\n")),
                Some(ends),
            ));
        };
        let written = ends.0.all.lock().unwrap()[&ends.1].written;
        let finish = json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": null});
        let usage = json!({"id": "c", "choices": [], "usage": {"prompt_tokens": INPUT, "completion_tokens": written}});
        let end = format!("data: {finish}\n\ndata: {usage}\n\ndata: [DONE]\n\n");
        Some((Ok(end), None))
    });
    (
        [("content-type", "text/event-stream")],
        Body::from_stream(events),
    )
        .into_response()
}

async fn limit(State(writer): State<Arc<Writer>>, headers: HeaderMap, body: Bytes) -> Response {
    assert!(is_signed("/limit", &headers, &body));
    let call: LimitCall = serde_json::from_slice(&body).unwrap();
    let most = number(&headers, HEADER_MAX_OUTPUT_TOKENS).unwrap();
    let id = reservation(&headers);
    let until = tokio::time::Instant::now() + Duration::from_millis(call.wait_ms);
    loop {
        let changed = writer.changed.notified();
        {
            let mut all = writer.all.lock().unwrap();
            let Some(writing) = all.get_mut(&id) else {
                return StatusCode::NOT_FOUND.into_response();
            };
            if most > writing.limit {
                writing.limit = most;
                writing.waits = false;
                writer.told.lock().unwrap().push(most);
                writer.changed.notify_waiters();
            }
            if call.last && !writing.last {
                (writing.last, writing.waits) = (true, false);
                writer.changed.notify_waiters();
            }
            let late = tokio::time::Instant::now() >= until;
            if writing.written >= call.written || writing.waits || late {
                let (written, waits) = (writing.written, writing.waits);
                return Json(LimitTold { written, waits }).into_response();
            }
        }
        let _ = timeout(Duration::from_millis(20), changed).await;
    }
}

/// A stack whose neuron would answer with so many tokens.
async fn stack(limit: u64, length: u64) -> (Stack, Arc<Writer>) {
    let (stack, writer) = (Stack::balance(limit).await, Writer::start(length).await);
    serves(&stack, &writer);
    (stack, writer)
}

fn serves(stack: &Stack, writer: &Writer) {
    let mut record = record("n-1", writer.address, None);
    let model = &mut record.models[0];
    (model.context, model.output, model.slots, model.grows) = (4096, 2048, 64, true);
    stack.neurons.send(vec![record]).unwrap();
}

fn unbounded(body: Value) -> Value {
    let mut body = tiny(body);
    body.as_object_mut().unwrap().shift_remove("max_tokens");
    body
}

fn streamed() -> Value {
    unbounded(hi_stream(1))
}

async fn until(mut said: impl FnMut() -> bool) {
    eventually(async || said().then_some(())).await;
}

fn written(text: &str) -> usize {
    text.matches("\"content\":\"a\"").count()
}

#[tokio::test]
async fn what_fits_whole_is_held_whole() {
    let (stack, writer) = stack(10_000, 300).await;
    let text = stream_text(stack.chat(&streamed())).await;
    assert_eq!(written(&text), 300);
    assert_eq!(writer.came(), [(2048, None)]);
    assert_eq!(writer.told(), [0; 0]);
    assert_eq!(stack.spent_once_idle().await, INPUT + 300);
}

#[tokio::test]
async fn what_does_not_fit_whole_grows_and_costs_what_it_wrote() {
    let (stack, writer) = stack(1000, 300).await;
    for body in [streamed(), unbounded(hi(1))] {
        let text = stream_text(stack.chat(&body)).await;
        assert!(text.contains("\"finish_reason\":\"stop\""), "{text}");
    }
    assert_eq!(writer.came(), [(64, Some(2048)), (64, Some(2048))]);
    assert_eq!(writer.told(), [128, 256, 512, 128, 256, 512]);
    assert_eq!(stack.spent_once_idle().await, 2 * (INPUT + 300));
    let metrics = stack.client.get(&stack.metrics).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("seatbelt_gateway_slices_total{what=\"begun\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("seatbelt_gateway_slices_total{what=\"grown\"} 6"),
        "{metrics}"
    );
}

#[tokio::test]
async fn at_the_ceiling_an_answer_ends_with_length_and_never_above() {
    let (stack, writer) = stack(500, 5000).await;
    let text = stream_text(stack.chat(&streamed())).await;
    assert_eq!(written(&text), 490);
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    assert_eq!(writer.told().last(), Some(&490));
    assert_eq!(stack.spent_once_idle().await, 500);
    let (status, refused) = status_and_body(stack.chat(&streamed())).await;
    assert_eq!(
        (status, &refused["error"]["code"]),
        (429, &json!("insufficient_quota"))
    );
}

#[tokio::test]
async fn other_dialects_say_the_ceiling_in_their_own_words() {
    for (path, says) in [
        ("/v1/messages", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ] {
        let (stack, _writer) = stack(200, 5000).await;
        let body = match path {
            "/v1/responses" => json!({"model": "tiny", "input": "hi"}),
            _ => unbounded(hi(1)),
        };
        let (status, answer) = status_and_body(stack.post(path, &body)).await;
        if status == 400 {
            // an API in which a maximum must be named
            assert_eq!(path, "/v1/messages", "{answer}");
            continue;
        }
        assert_eq!(status, 200, "{answer}");
        assert!(answer.to_string().contains(says), "{answer}");
        assert_eq!(stack.spent_once_idle().await, 200);
    }
}

#[tokio::test]
async fn whoever_says_what_to_do_or_names_a_maximum_is_served_as_ever() {
    let (stack, writer) = stack(500, 5000).await;
    let (status, _) = status_and_body(stack.chat(&tiny(hi(1000)))).await;
    assert_eq!(status, 429, "a maximum of the client's own is not lowered");
    let refuses = stack
        .chat(&streamed())
        .header("x-seatbelt-on-short", "refuse");
    assert_eq!(status_and_body(refuses).await.0, 429);
    let mut two = unbounded(hi(1));
    two["n"] = json!(2);
    assert_eq!(status_and_body(stack.chat(&two)).await.0, 429);
    assert_eq!(writer.came(), []);
    let clamps = stack
        .chat(&tiny(hi(1000)))
        .header("x-seatbelt-on-short", "clamp");
    let clamped = clamps.send().await.unwrap();
    assert_eq!(clamped.headers()["x-seatbelt-clamped"], "490");
    assert_eq!(writer.came(), [(490, None)]);
}

#[tokio::test]
async fn an_older_neuron_is_asked_as_ever() {
    let (stack, writer) = stack(500, 5000).await;
    let mut old = record("n-1", writer.address, None);
    (old.models[0].context, old.models[0].output) = (4096, 2048);
    stack.neurons.send(vec![old]).unwrap();
    assert_eq!(status_and_body(stack.chat(&streamed())).await.0, 429);
    assert_eq!(writer.came(), []);
}

#[tokio::test]
async fn many_at_once_share_what_there_is_and_none_is_refused_for_what_another_only_might_use() {
    let (stack, writer) = stack(8 * (INPUT + 100), 100).await;
    let asked = (0..8).map(|_| {
        let asked = stack.chat(&streamed());
        tokio::spawn(stream_text(asked))
    });
    let asked: Vec<_> = asked.collect();
    while !asked.iter().all(tokio::task::JoinHandle::is_finished) {
        let cap = stack.cap().await;
        assert!(cap.spent + cap.held <= cap.limit, "{cap:?}");
    }
    for text in asked {
        let text = text.await.unwrap();
        assert_eq!(written(&text), 100, "{text}");
        assert!(text.contains("\"finish_reason\":\"stop\""), "{text}");
    }
    assert_eq!(writer.came().len(), 8);
    assert_eq!(stack.spent_once_idle().await, 8 * (INPUT + 100));
}

#[tokio::test]
async fn an_answer_at_its_limit_waits_for_what_others_give_back() {
    let (stack, writer) = stack(400, 100).await;
    writer.gate(30);
    // one holds nearly all, and will use little of it
    let first = tokio::spawn(stream_text(stack.chat(&tiny(hi_stream(350)))));
    until(|| writer.came().len() == 1).await;
    let second = stack
        .chat(&streamed())
        .header("x-seatbelt-wait-ms", "20000");
    let second = tokio::spawn(stream_text(second));
    until(|| writer.came().len() == 2).await;
    assert_eq!(writer.came()[1], (30, Some(2048)));
    until(|| writer.waiting() == 1).await;
    writer.gate(u64::MAX);
    for answer in [first, second] {
        let text = answer.await.unwrap();
        assert_eq!(written(&text), 100, "{text}");
        assert!(text.contains("\"finish_reason\":\"stop\""), "{text}");
    }
    assert_eq!(stack.spent_once_idle().await, 2 * (INPUT + 100));
}

#[tokio::test]
async fn an_answer_waits_no_longer_than_its_request_would_have() {
    let (stack, writer) = stack(400, 100).await;
    writer.gate(30);
    let first = tokio::spawn(stream_text(stack.chat(&tiny(hi_stream(350)))));
    until(|| writer.came().len() == 1).await;
    let second = stack.chat(&streamed()).header("x-seatbelt-wait-ms", "100");
    let text = stream_text(second).await;
    assert_eq!(written(&text), 30, "{text}");
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    writer.gate(u64::MAX);
    assert_eq!(written(&first.await.unwrap()), 100);
    assert_eq!(stack.spent_once_idle().await, 2 * INPUT + 130);
}

#[tokio::test]
async fn a_client_that_leaves_pays_what_was_written_and_holds_nothing() {
    let (stack, writer) = stack(500, 5000).await;
    writer.gate(200);
    let response = stack.chat(&streamed()).send().await.unwrap();
    let reservation = response.headers()["x-seatbelt-reservation"].clone();
    assert!(!response.headers().contains_key("x-seatbelt-clamped"));
    until(|| writer.written() == 200).await;
    drop(response);
    until(|| writer.all.lock().unwrap().is_empty()).await;
    let reservation = reservation.to_str().unwrap();
    let event = event(reservation, NeuronOutcome::Aborted, INPUT, 200);
    stack.usage.publish(event);
    assert_eq!(stack.spent_once_idle().await, INPUT + 200);
}

#[tokio::test]
async fn without_the_ledger_an_answer_waits_with_what_it_has_and_goes_on_once_it_is_back() {
    for lost in [false, true] {
        let (stack, writer) = stack(1000, 300).await;
        writer.gate(20);
        let answer = tokio::spawn(stream_text(stack.chat(&streamed())));
        until(|| writer.written() == 20).await;
        eventually(async || (stack.cap().await.held == INPUT + 64).then_some(())).await;
        let switch = match lost {
            true => &stack.ledger.answers_lost,
            false => &stack.ledger.away,
        };
        switch.store(true, SeqCst);
        writer.gate(u64::MAX);
        until(|| writer.waiting() == 1).await;
        assert_eq!(
            writer.told(),
            [0; 0],
            "{lost}: what may be held is not told"
        );
        let held = stack.cap().await.held;
        assert!([INPUT + 64, INPUT + 128].contains(&held), "{held}");
        switch.store(false, SeqCst);
        assert_eq!(written(&answer.await.unwrap()), 300);
        assert_eq!(writer.told(), [128, 256, 512], "each once");
        assert_eq!(stack.spent_once_idle().await, INPUT + 300);
    }
}
