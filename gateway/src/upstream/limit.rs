//! Tells a neuron what is held for a request that runs there, and asks how far it is.

use std::time::Duration;

use axum::http::{HeaderMap, header};
use reqwest::{StatusCode, Url};
use seatbelt_schemas::{
    ids::NeuronId,
    neuron::{LimitCall, LimitTold, PATH_LIMIT},
};
use tokio::time::timeout;

use super::neuron::Pass;

/// Largest answer.
const BYTES_MAX: usize = 4096;
/// How much longer than it may take its time an answer is awaited.
const MARGIN: Duration = Duration::from_secs(10);

/// Where a request runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunsAt {
    pub(crate) neuron: NeuronId,
    pub(crate) limit_url: Url,
}

impl RunsAt {
    /// How it stands there; nothing where it does not run, yet or any more, or the neuron does not say.
    pub(crate) async fn told(
        &self,
        client: &reqwest::Client,
        pass: &Pass<'_>,
        call: LimitCall,
    ) -> Option<LimitTold> {
        let body = serde_json::to_vec(&call).expect("three numbers are written to memory");
        let mut headers = HeaderMap::new();
        pass.write(&self.neuron, PATH_LIMIT, &body, &mut headers);
        let asked = client
            .post(self.limit_url.clone())
            .headers(headers)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let answered = async {
            let mut answer = asked.send().await.ok()?;
            let status = answer.status();
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.ok()? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > BYTES_MAX {
                    return None;
                }
            }
            if status != StatusCode::OK {
                tracing::debug!(neuron = %self.neuron, %status, "no word of how far a request is");
                return None;
            }
            serde_json::from_slice(&bytes).ok()
        };
        let patience = Duration::from_millis(call.wait_ms) + MARGIN;
        timeout(patience, answered).await.ok().flatten()
    }
}
