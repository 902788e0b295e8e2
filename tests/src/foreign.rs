//! A foreign upstream in the test's own process: speaks OpenAI's chat dialect and Anthropic's messages,
//! counts who reached it, and answers 10 + 5 tokens.
//!
//! It can hold its answers until told, to keep requests in flight.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Input tokens of every answer.
pub const PROMPT_TOKENS: u64 = 10;
/// Output tokens of every answer.
pub const COMPLETION_TOKENS: u64 = 5;
pub const MODEL: &str = "test-model";

/// A running foreign upstream; gone when dropped.
pub struct Foreign {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    hits: AtomicU64,
    answered: AtomicU64,
    open: watch::Sender<bool>,
    last: Mutex<Option<Value>>,
}

impl Foreign {
    /// Starts one that answers at once.
    pub async fn start() -> Self {
        Self::start_with(true).await
    }

    /// Starts one that answers nobody until [`Foreign::let_go`].
    pub async fn start_holding() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(open: bool) -> Self {
        let shared = Arc::new(Shared {
            hits: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            open: watch::Sender::new(open),
            last: Mutex::default(),
        });
        let app = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(count_tokens))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.unwrap();
        });
        Self {
            address,
            shared,
            server,
        }
    }

    /// Its address as the OpenAI SDKs write it.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Its address as Anthropic's SDKs write it.
    pub fn anthropic_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests reached it.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::SeqCst)
    }

    /// How many it answered.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Answers everything held, and everything that comes.
    pub fn let_go(&self) {
        self.shared.open.send_replace(true);
    }

    /// Holds what comes from here on.
    pub fn hold(&self) {
        self.shared.open.send_replace(false);
    }

    /// The newest request body.
    pub fn last_body(&self) -> Value {
        self.shared.last.lock().unwrap().clone().unwrap_or_default()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    /// Takes a request in, and waits until it may be answered.
    async fn asked(&self, body: &Bytes) -> Value {
        self.hits.fetch_add(1, Ordering::SeqCst);
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        *self.last.lock().unwrap() = Some(asked.clone());
        let mut open = self.open.subscribe();
        let let_go = open.wait_for(|open| *open).await.is_ok();
        assert!(let_go, "the sender lives as long as the state");
        self.answered.fetch_add(1, Ordering::SeqCst);
        asked
    }
}

async fn chat(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let asked = shared.asked(&body).await;
    if asked["stream"] == true {
        streamed(&asked)
    } else {
        Json(completion()).into_response()
    }
}

async fn messages(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let asked = shared.asked(&body).await;
    if asked["stream"] == true {
        streamed_message()
    } else {
        let text = json!([{"type": "text", "text": "all is well"}]);
        Json(message(&text, &json!("end_turn"), COMPLETION_TOKENS)).into_response()
    }
}

async fn count_tokens(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    shared.asked(&body).await;
    Json(json!({ "input_tokens": PROMPT_TOKENS })).into_response()
}

fn message(content: &Value, stop_reason: &Value, output_tokens: u64) -> Value {
    json!({
        "id": "msg_test", "type": "message", "role": "assistant", "model": MODEL, "content": content,
        "stop_reason": stop_reason, "stop_sequence": null,
        "usage": {"input_tokens": PROMPT_TOKENS, "output_tokens": output_tokens},
    })
}

fn streamed_message() -> Response {
    let events = [
        json!({"type": "message_start", "message": message(&json!([]), &Value::Null, 1)}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "all is well"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"output_tokens": COMPLETION_TOKENS}}),
        json!({"type": "message_stop"}),
    ];
    let lines = events.map(|event| {
        let kind = event["type"].as_str().unwrap_or_default();
        format!("event: {kind}\ndata: {event}\n\n")
    });
    let body = Body::from_stream(stream::iter(lines.map(Ok::<_, Infallible>)));
    ([("content-type", "text/event-stream")], body).into_response()
}

fn usage() -> Value {
    json!({
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    })
}

fn completion() -> Value {
    json!({
        "id": "chatcmpl-test", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "all is well"}, "finish_reason": "stop"}],
        "usage": usage(),
    })
}

fn streamed(asked: &Value) -> Response {
    let chunk = |choices: Value, usage: Value| {
        json!({
            "id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": MODEL, "choices": choices, "usage": usage,
        })
    };
    let delta = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    let mut chunks = vec![
        chunk(
            delta(json!({"role": "assistant", "content": "all "}), Value::Null),
            Value::Null,
        ),
        chunk(
            delta(json!({"content": "is well"}), Value::Null),
            Value::Null,
        ),
        chunk(delta(json!({}), json!("stop")), Value::Null),
    ];
    if asked["stream_options"]["include_usage"] == true {
        chunks.push(chunk(json!([]), usage()));
    }
    let lines = chunks.into_iter().map(|chunk| format!("data: {chunk}\n\n"));
    let lines = lines.chain(["data: [DONE]\n\n".to_owned()]);
    let body = Body::from_stream(stream::iter(lines.map(Ok::<_, Infallible>)));
    ([("content-type", "text/event-stream")], body).into_response()
}
