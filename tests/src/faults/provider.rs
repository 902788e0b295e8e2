//! The provider of the matrix: does with each request what its text orders, and keeps what it did.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::ask::{How, Orders};
use crate::foreign::MODEL;

/// What became of a request at the provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is still being served, or whoever sent it left.
    #[default]
    Open,
    /// Served, and this usage was reported.
    Reported(u64),
    /// Perhaps served: nothing was said of usage.
    Unsaid,
    /// Turned away without work.
    Free,
}

/// What the provider knows of one request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Served {
    /// How often it came.
    pub(super) hits: u64,
    /// What became of it, at last.
    pub(super) outcome: Outcome,
}

type Ledger = Arc<Mutex<HashMap<u64, Served>>>;

/// A running provider; gone when dropped.
pub(super) struct Provider {
    address: SocketAddr,
    served: Ledger,
    server: tokio::task::JoinHandle<()>,
}

impl Provider {
    pub(super) async fn start() -> Self {
        let served = Ledger::default();
        let app = Router::new()
            .route("/v1/chat/completions", post(chat))
            .with_state(Arc::clone(&served));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            served,
            server,
        }
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Everything it did, by the request's number.
    pub(super) fn served(&self) -> HashMap<u64, Served> {
        self.served.lock().unwrap().clone()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn note(served: &Ledger, number: u64, outcome: Outcome) {
    let mut served = served.lock().unwrap();
    served.entry(number).or_default().outcome = outcome;
}

async fn chat(State(served): State<Ledger>, body: Bytes) -> Response {
    let Some(orders) = Orders::read(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    served
        .lock()
        .unwrap()
        .entry(orders.number)
        .or_default()
        .hits += 1;
    let pace = Duration::from_millis(orders.delay_ms);
    if orders.how != How::Stream {
        tokio::time::sleep(pace).await;
    }
    let note = |outcome| note(&served, orders.number, outcome);
    match orders.how {
        How::Whole => {
            note(Outcome::Reported(orders.input + orders.output));
            Json(completion(&orders)).into_response()
        }
        How::Stream => streamed(orders, pace, served),
        How::Error(status) => {
            let free = matches!(status, 429 | 501 | 503);
            note(if free { Outcome::Free } else { Outcome::Unsaid });
            let status = StatusCode::from_u16(status).unwrap();
            let error = json!({"error": {"message": "as ordered", "type": "server_error"}});
            (status, Json(error)).into_response()
        }
        How::Reset => {
            note(Outcome::Unsaid);
            broken_off(&orders)
        }
        How::Hang | How::Dead => std::future::pending().await,
        How::Garbage => {
            note(Outcome::Unsaid);
            "<html>as ordered</html>".into_response()
        }
    }
}

fn usage(orders: &Orders) -> Value {
    json!({
        "prompt_tokens": orders.input,
        "completion_tokens": orders.output,
        "total_tokens": orders.input + orders.output,
    })
}

fn completion(orders: &Orders) -> Value {
    json!({
        "id": "chatcmpl-fault", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": usage(orders),
    })
}

fn chunk(choices: &Value, usage: &Value) -> String {
    let chunk = json!({
        "id": "chatcmpl-fault", "object": "chat.completion.chunk", "created": 1_700_000_000,
        "model": MODEL, "choices": choices, "usage": usage,
    });
    format!("data: {chunk}\n\n")
}

fn streamed(orders: Orders, pace: Duration, served: Ledger) -> Response {
    let delta = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    let begin = delta(json!({"role": "assistant", "content": "o"}), Value::Null);
    let pieces = [
        chunk(&begin, &Value::Null),
        chunk(&delta(json!({"content": "k"}), Value::Null), &Value::Null),
        chunk(&delta(json!({}), json!("stop")), &Value::Null),
        chunk(&json!([]), &usage(&orders)),
        "data: [DONE]\n\n".to_owned(),
    ];
    let body = stream::iter(pieces.into_iter().enumerate()).then(move |(place, piece)| {
        let served = Arc::clone(&served);
        async move {
            tokio::time::sleep(pace).await;
            if place == 3 {
                note(
                    &served,
                    orders.number,
                    Outcome::Reported(orders.input + orders.output),
                );
            }
            Ok::<_, Infallible>(piece)
        }
    });
    let kind = [("content-type", "text/event-stream")];
    (kind, Body::from_stream(body)).into_response()
}

/// Half of an answer, and then the connection breaks.
fn broken_off(orders: &Orders) -> Response {
    let text = completion(orders).to_string();
    let half = text[..text.len() / 2].to_owned();
    let broken = std::io::Error::other("as ordered");
    let body = Body::from_stream(stream::iter([Ok(half), Err(broken)]));
    ([("content-type", "application/json")], body).into_response()
}
