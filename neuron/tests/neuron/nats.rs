//! Usage and registration on a real `nats-server`, also while it is away.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use async_nats::jetstream;
use futures::StreamExt;
use seatbelt_bus::{Layout, connect, provision};
use seatbelt_neuron::{RunningNeuron, start};
use seatbelt_schemas::{
    names::Names,
    neuron::NeuronRecord,
    position::Partitions,
    usage::{NeuronOutcome, UsageEvent},
    wire,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::common::{chat, config, request, secret, workspace};

/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server of this test alone, killed when dropped.
struct Server {
    child: Child,
    port: u16,
    data: TempDir,
}

impl Server {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let (child, port) = spawn(data.path(), None).await;
        Self { child, port, data }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same data on the same port.
    async fn revive(&mut self) {
        (self.child, _) = spawn(self.data.path(), Some(self.port)).await;
    }

    async fn client(&self) -> async_nats::Client {
        async_nats::connect(format!("127.0.0.1:{}", self.port))
            .await
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn spawn(data: &Path, port: Option<u16>) -> (Child, u16) {
    let program = workspace().join(".deps/nats-server/nats-server");
    assert!(
        program.exists(),
        "nats-server is not at {}: run `make setup`",
        program.display()
    );
    let ports = tempfile::tempdir().unwrap();
    let child = Command::new(program)
        .args([
            "-a",
            "127.0.0.1",
            "-p",
            &port.map_or_else(|| "-1".to_owned(), |port| port.to_string()),
        ])
        .args(["-js", "-sd"])
        .arg(data)
        .arg("--ports_file_dir")
        .arg(ports.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let file = ports
        .path()
        .join(format!("nats-server_{}.ports", child.id()));
    let port = loop {
        if let Some(port) = port_in(&file) {
            break port;
        }
        tokio::task::yield_now().await;
    };
    (child, port)
}

fn port_in(file: &PathBuf) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

async fn neuron(server: &Server, folder: &TempDir) -> RunningNeuron {
    let url = format!("nats://127.0.0.1:{}", server.port);
    let nats = connect(&url, "test", PATIENCE).await.unwrap();
    start(
        config(folder.path()),
        secret(),
        Some(nats),
        Names::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap()
}

async fn ask(neuron: &RunningNeuron, reservation: &str) {
    let headers = [("x-seatbelt-reservation", reservation)];
    let body = chat("Hi", 3).to_string();
    let path = "/v1/chat/completions";
    let answer = request(neuron.local_addr(), "POST", path, &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// The first `count` messages of the usage stream: subject, message id, event.
async fn usage(server: &Server, count: usize) -> Vec<(String, String, UsageEvent)> {
    let jetstream = jetstream::new(server.client().await);
    let stream = jetstream.get_stream("SEATBELT_USAGE").await.unwrap();
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let messages = stream
        .create_consumer(config)
        .await
        .unwrap()
        .messages()
        .await
        .unwrap();
    let read = messages.take(count).map(|message| {
        let message = message.unwrap();
        let id = message
            .headers
            .as_ref()
            .unwrap()
            .get("Nats-Msg-Id")
            .unwrap()
            .to_string();
        (
            message.subject.to_string(),
            id,
            UsageEvent::decode(&message.payload).unwrap(),
        )
    });
    read.collect().await
}

#[tokio::test]
async fn usage_is_on_the_stream_under_its_reservation() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    let neuron = neuron(&server, &folder).await;
    ask(&neuron, "r-1").await;
    let (subject, id, event) = usage(&server, 1).await.remove(0);
    assert_eq!(
        (subject.as_str(), id.as_str()),
        ("seatbelt.usage.v1.neuron-1", "r-1")
    );
    assert_eq!(
        (event.outcome, event.usage.output_tokens),
        (NeuronOutcome::Completed, 3)
    );
    neuron.stop().await;
}

#[tokio::test]
async fn a_neuron_is_registered_while_it_serves() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    let running = neuron(&server, &folder).await;
    let jetstream = jetstream::new(server.client().await);
    let bucket = jetstream.get_key_value("SEATBELT_NEURONS").await.unwrap();
    let bytes = loop {
        if let Some(bytes) = bucket.get("neuron-1").await.unwrap() {
            break bytes;
        }
    };
    let record: NeuronRecord = wire::decode("neuron", &bytes).unwrap();
    assert_eq!(record.url, format!("http://{}", running.local_addr()));
    let model = &record.models[0];
    assert_eq!(
        (model.id.as_str(), model.context, model.output, model.slots),
        ("tiny", 1024, 1023, 4)
    );
    running.stop().await;
    assert_eq!(bucket.get("neuron-1").await.unwrap(), None);
}

/// What keeps registrations must not depend on who came first, a gateway or a neuron.
#[tokio::test]
async fn a_neuron_that_comes_first_makes_what_a_gateway_would() {
    let (first, second) = (Server::start().await, Server::start().await);
    let folder = tempfile::tempdir().unwrap();
    let running = neuron(&first, &folder).await;
    let url = format!("nats://127.0.0.1:{}", second.port);
    let nats = connect(&url, "test", PATIENCE).await.unwrap();
    let layout = Layout {
        partitions: Partitions::try_from(1).unwrap(),
        replicas: 1,
    };
    provision(&nats, &Names::default(), layout).await.unwrap();
    for stream in ["KV_SEATBELT_NEURONS", "SEATBELT_USAGE"] {
        let mut made = Vec::new();
        for server in [&first, &second] {
            let jetstream = jetstream::new(server.client().await);
            let mut stream = jetstream.get_stream(stream).await.unwrap();
            made.push(stream.info().await.unwrap().config.clone());
        }
        assert_eq!(made[0], made[1], "{stream}");
    }
    running.stop().await;
}

#[tokio::test]
async fn usage_waits_for_a_server_that_is_away_and_arrives_once() {
    let (mut server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    let running = neuron(&server, &folder).await;
    ask(&running, "before").await;
    usage(&server, 1).await;
    server.kill();
    ask(&running, "while").await;
    server.revive().await;
    ask(&running, "after").await;
    let mut ids: Vec<_> = usage(&server, 3)
        .await
        .into_iter()
        .map(|(_, id, _)| id)
        .collect();
    ids.sort();
    assert_eq!(ids, ["after", "before", "while"]);
    running.stop().await;
    let jetstream = jetstream::new(server.client().await);
    let mut stream = jetstream.get_stream("SEATBELT_USAGE").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 3);
}
