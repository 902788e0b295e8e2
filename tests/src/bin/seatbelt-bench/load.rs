//! A closed loop: so many connections, each sending its next request when the last was answered.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::histogram;

/// Where requests go, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) secret: Option<String>,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) latencies: Histogram<u64>,
    pub(crate) elapsed: Duration,
}

impl Seen {
    pub(crate) fn none() -> Self {
        Self {
            latencies: histogram(),
            elapsed: Duration::ZERO,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).unwrap();
        self.elapsed += other.elapsed;
    }

    pub(crate) fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a count of requests, for show")]
        let count = self.latencies.len() as f64;
        count / self.elapsed.as_secs_f64()
    }
}

/// Connections that stay open from one burst to the next.
pub(crate) struct Load {
    clients: Vec<reqwest::Client>,
    body: bytes::Bytes,
}

impl Load {
    pub(crate) fn new(connections: usize) -> Self {
        let clients = (0..connections).map(|_| seatbelt_tests::http_client());
        Self {
            clients: clients.collect(),
            body: body(),
        }
    }

    /// Sends for so long.
    pub(crate) async fn burst(&self, target: &Target, duration: Duration) -> Seen {
        let begun = Instant::now();
        let loops = self.clients.iter().map(|client| {
            let (client, body, target) = (client.clone(), self.body.clone(), target.clone());
            tokio::spawn(async move {
                let mut latencies = histogram();
                while begun.elapsed() < duration {
                    let nanos = once(&client, &target, body.clone()).await;
                    latencies.saturating_record(nanos);
                }
                latencies
            })
        });
        let mut seen = Seen::none();
        for ended in futures::future::join_all(loops).await {
            seen.latencies.add(ended.unwrap()).unwrap();
        }
        seen.elapsed = begun.elapsed();
        seen
    }
}

/// What every request says.
pub(crate) fn body() -> bytes::Bytes {
    let body = seatbelt_tests::stack::chat_body("test-model", 64);
    body.to_string().into()
}

/// Sends one and reads its answer; how long that took, in nanoseconds.
pub(crate) async fn once(client: &reqwest::Client, target: &Target, body: bytes::Bytes) -> u64 {
    let mut request = client
        .post(&target.url)
        .header("content-type", "application/json");
    if let Some(secret) = &target.secret {
        request = request.bearer_auth(secret);
    }
    let sent = Instant::now();
    let response = request.body(body).send().await.unwrap();
    let status = response.status();
    let answer = response.bytes().await.unwrap();
    let nanos = u64::try_from(sent.elapsed().as_nanos()).unwrap();
    assert!(status.is_success(), "{status}: {answer:?}");
    nanos
}
