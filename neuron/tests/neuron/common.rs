//! A neuron with the tiny model, a sink that remembers, and a client that can hang up.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use seatbelt_neuron::{
    ModelConfig, NeuronConfig, NeuronError, RunningNeuron, start_with_sink,
    usage::{SinkError, UsageSink},
};
use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::signature::NeuronSecret,
    usage::{NeuronOutcome, UsageEvent},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

/// Remembers what it was given.
#[derive(Default)]
pub(crate) struct Reports(Mutex<Vec<(String, UsageEvent)>>);

impl UsageSink for Reports {
    fn publish(
        &self,
        id: String,
        event: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + '_>> {
        let event = UsageEvent::decode(&event).unwrap();
        self.0.lock().unwrap().push((id, event));
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Reports {
    pub(crate) fn all(&self) -> Vec<(String, UsageEvent)> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until there are `count` reports. More than that is a failure.
    pub(crate) async fn exactly(&self, count: usize) -> Vec<(String, UsageEvent)> {
        loop {
            let all = self.all();
            assert!(all.len() <= count, "more than {count} reports: {all:#?}");
            if all.len() == count {
                return all;
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn count(&self, outcome: NeuronOutcome) -> usize {
        self.all()
            .iter()
            .filter(|(_, event)| event.outcome == outcome)
            .count()
    }
}

/// A neuron under test. Stopped by [`Neuron::stop`], or with its runtime.
pub(crate) struct Neuron {
    pub(crate) running: RunningNeuron,
    pub(crate) reports: Arc<Reports>,
    pub(crate) folder: TempDir,
}

impl Neuron {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut NeuronConfig)) -> Self {
        let reports = Arc::new(Reports::default());
        Self::with_sink(Some(reports), change).await
    }

    /// Without reports nobody takes the usage events.
    pub(crate) async fn with_sink(
        reports: Option<Arc<Reports>>,
        change: impl FnOnce(&mut NeuronConfig),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let sink = reports.clone().map(|reports| reports as Arc<dyn UsageSink>);
        let running = start_alone(config, sink).await.unwrap();
        Self {
            running,
            reports: reports.unwrap_or_default(),
            folder,
        }
    }

    /// A neuron on the outbox that another left.
    pub(crate) async fn in_folder(folder: TempDir) -> Self {
        let reports = Arc::new(Reports::default());
        let sink: Arc<dyn UsageSink> = Arc::clone(&reports) as _;
        let config = config(folder.path());
        let running = start_alone(config, Some(sink)).await.unwrap();
        Self {
            running,
            reports,
            folder,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.local_addr()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub(crate) async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        request(
            self.address(),
            "POST",
            path,
            headers,
            body.to_string().as_bytes(),
        )
        .await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        request(self.address(), "GET", path, &[], b"").await
    }

    /// A chat that must succeed, as text.
    pub(crate) async fn says(&self, prompt: &str, max_tokens: usize) -> String {
        let answer = self
            .post("/v1/chat/completions", &chat(prompt, max_tokens))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text()
    }

    pub(crate) async fn stop(self) -> (Arc<Reports>, TempDir) {
        self.running.stop().await;
        (self.reports, self.folder)
    }
}

/// What gateways of the deployment know.
pub(crate) fn secret() -> NeuronSecret {
    NeuronSecret::new([7; 32])
}

/// Without NATS.
pub(crate) async fn start_alone(
    config: NeuronConfig,
    sink: Option<Arc<dyn UsageSink>>,
) -> Result<RunningNeuron, NeuronError> {
    start_with_sink(config, secret(), sink, CancellationToken::new()).await
}

pub(crate) fn config(folder: &Path) -> NeuronConfig {
    NeuronConfig {
        id: NeuronId::new("neuron-1").unwrap(),
        open: true,
        models: vec![tiny(4)],
        threads: 1,
        onnxruntime: Some(ort_library()),
        ..NeuronConfig::new(folder.join("outbox"))
    }
}

pub(crate) fn tiny(slots: usize) -> ModelConfig {
    let path = workspace().join("models/tiny");
    let id = ModelId::new("tiny").unwrap();
    ModelConfig {
        slots: Some(slots),
        ..ModelConfig::new(id, path)
    }
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The library that `make setup` fetches, or the one the environment names.
pub(crate) fn ort_library() -> PathBuf {
    let path = std::env::var_os("SEATBELT_ORT_LIB").map_or_else(
        || workspace().join(".deps/onnxruntime/libonnxruntime.so"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "ONNX Runtime is not at {}: run `make setup`",
        path.display()
    );
    path
}

pub(crate) fn chat(prompt: &str, max_tokens: usize) -> Value {
    let messages = json!([{ "role": "user", "content": prompt }]);
    json!({ "model": "tiny", "messages": messages, "max_tokens": max_tokens })
}

pub(crate) fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        self.json()["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The data of its server-sent events.
    pub(crate) fn events(&self) -> Vec<String> {
        let data = |block: &str| block.strip_prefix("data: ").map(str::to_owned);
        self.body.split("\n\n").filter_map(data).collect()
    }

    /// Its server-sent events as JSON, without the closing mark, which must be there.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{self:?}");
        events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }

    /// The text of a streamed chat.
    pub(crate) fn streamed_text(&self) -> String {
        let content = |chunk: &Value| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        };
        self.chunks().iter().filter_map(content).collect()
    }
}

/// Sends a request and leaves the answer unread.
pub(crate) async fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: neuron\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server may answer and close before it has read a body it does not want.
    let _ = stream.write_all(body).await;
    stream
}

pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = BufReader::new(open(address, method, path, headers, body).await);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        dechunk(body)
    } else {
        body.to_owned()
    };
    Answer {
        status,
        head: head.to_owned(),
        body,
    }
}

fn dechunk(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    panic!("the chunked body broke off after {whole:?}")
}
