//! A static upstream: the same bytes for every request, none of them looked at.

use std::net::SocketAddr;

use axum::{Router, body::Bytes, routing::post, serve::ListenerExt as _};

const ANSWER: &str = r#"{"id":"chatcmpl-static","object":"chat.completion","created":1700000000,"model":"test-model","choices":[{"index":0,"message":{"role":"assistant","content":"all is well"},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#;

/// Starts it on a thread of its own and returns its address.
pub(crate) fn start() -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
            let answer = |_: Bytes| async { ([("content-type", "application/json")], ANSWER) };
            let app = Router::new().route("/v1/chat/completions", post(answer));
            axum::serve(listener, app).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}
