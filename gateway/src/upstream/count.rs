//! How many tokens a prompt has: asked of a neuron, whose tokenizer is the model's own.

use axum::http::{StatusCode, header};
use bytes::{Bytes, BytesMut};
use seatbelt_dialects::Fields;
use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, ids::ModelId};
use serde::Deserialize;
use tokio::time::timeout;

use super::{Candidate, catalog::Catalog, choose::ChosenNeuron};
use crate::{config::TOKENIZE_TIMEOUT, error::ApiError};

/// Largest answer to a count.
const TOKENIZE_BYTES_MAX: usize = 64 * 1024;
/// Neurons that are asked to count, at most, when one after another cannot be reached.
const TOKENIZE_TRIES_MAX: usize = 3;

/// The exact number of input tokens, and the neuron that counted them: one that cannot be reached
/// makes way for another.
pub(crate) async fn count(
    client: &reqwest::Client,
    catalog: &Catalog,
    model: &ModelId,
    mut neuron: ChosenNeuron,
    body: &Fields,
) -> Result<(ChosenNeuron, u64), ApiError> {
    let mut tried = Vec::new();
    loop {
        match ask(client, &neuron, body).await {
            Ok(counted) => return Ok((neuron, counted)),
            Err(NotCounted::Refused(error)) => return Err(error),
            Err(NotCounted::Away(detail)) => {
                let log = format!("neuron {} cannot count: {detail}", neuron.neuron);
                tried.push(neuron.neuron.clone());
                neuron = match catalog.candidate(model, &tried) {
                    Ok(Candidate::Neuron(next)) if tried.len() < TOKENIZE_TRIES_MAX => next,
                    _ => return Err(ApiError::no_upstream(model, log)),
                };
            }
        }
    }
}

/// Why there is no count.
enum NotCounted {
    /// The request is at fault.
    Refused(ApiError),
    /// The neuron is.
    Away(String),
}

/// Asks one neuron.
async fn ask(
    client: &reqwest::Client,
    neuron: &ChosenNeuron,
    body: &Fields,
) -> Result<u64, NotCounted> {
    #[derive(Deserialize)]
    struct Counted {
        input_tokens: u64,
    }
    let asked = timeout(TOKENIZE_TIMEOUT, call(client, neuron, body)).await;
    let (status, bytes) = asked
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
        .map_err(NotCounted::Away)?;
    if status.is_client_error() {
        return Err(NotCounted::Refused(ApiError::passed_on(status, &bytes)));
    }
    match serde_json::from_slice::<Counted>(&bytes) {
        Ok(counted) if status.is_success() && counted.input_tokens <= TOKENS_PER_REQUEST_MAX => {
            Ok(counted.input_tokens)
        }
        _ => Err(NotCounted::Away(format!("it answered {status}"))),
    }
}

async fn call(
    client: &reqwest::Client,
    neuron: &ChosenNeuron,
    body: &Fields,
) -> Result<(StatusCode, Bytes), String> {
    let text = |error: reqwest::Error| error.to_string();
    let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
    let call = client
        .post(neuron.tokenize_url.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .body(body);
    let mut answer = call.send().await.map_err(text)?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(text)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > TOKENIZE_BYTES_MAX {
            return Err("its answer is too large".to_owned());
        }
    }
    Ok((answer.status(), bytes.freeze()))
}
