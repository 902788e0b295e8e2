//! How many tokens a prompt has: asked of a neuron, whose tokenizer is the model's own.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use seatbelt_dialects::Fields;
use seatbelt_schemas::{
    amount::TOKENS_PER_REQUEST_MAX,
    chain::in_one_line,
    ids::ModelId,
    neuron::{PATH_TOKENIZE, signature::NeuronSecret},
};
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    Candidate,
    catalog::Catalog,
    choose::ChosenNeuron,
    neuron::{Pass, Undone},
    standing::Fault,
};
use crate::{
    clock::{Clock, ms},
    config::TOKENIZE_TIMEOUT,
    error::ApiError,
};

/// Largest answer to a count.
const TOKENIZE_BYTES_MAX: usize = 64 * 1024;
/// Neurons that are asked to count, at most, when one after another cannot be reached.
const TOKENIZE_TRIES_MAX: usize = 3;
/// How long what a neuron is called with may be used; the clocks of two machines differ.
const TOKENIZE_PASS: Duration = Duration::from_secs(60);

const _: () = assert!(TOKENIZE_PASS.as_secs() > TOKENIZE_TIMEOUT.as_secs());

/// Has prompts counted.
pub(crate) struct Counter {
    pub(crate) client: reqwest::Client,
    pub(crate) catalog: Arc<Catalog>,
    /// Neurons serve nobody who does not know it.
    pub(crate) secret: NeuronSecret,
    pub(crate) clock: Clock,
}

/// The exact number of input tokens, and the neuron that counted them: one that cannot be reached
/// makes way for another.
pub(crate) async fn count(
    counter: &Counter,
    model: &ModelId,
    mut neuron: ChosenNeuron,
    body: &Fields,
) -> Result<(ChosenNeuron, u64), ApiError> {
    let mut tried = Vec::new();
    loop {
        match ask(counter, &neuron, body).await {
            Ok(counted) => {
                neuron.took_a_call();
                return Ok((neuron, counted));
            }
            Err(NotCounted::Refused(error)) => return Err(error),
            Err(NotCounted::Away(fault, detail)) => {
                if let Some(fault) = fault {
                    neuron.failed(fault, &detail);
                }
                let log = format!("neuron {} cannot count: {detail}", neuron.neuron);
                tried.push(neuron.neuron.clone());
                neuron = match counter.catalog.candidate(model, &tried) {
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
    /// The neuron is; it is passed over for a while where it took no call.
    Away(Option<Fault>, String),
}

impl NotCounted {
    fn broke(error: &reqwest::Error) -> Self {
        let fault = error.is_connect().then_some(Fault::Unreachable);
        Self::Away(fault, in_one_line(error))
    }
}

async fn ask(counter: &Counter, neuron: &ChosenNeuron, body: &Fields) -> Result<u64, NotCounted> {
    let asked = timeout(TOKENIZE_TIMEOUT, call(counter, neuron, body)).await;
    let (answer, bytes) =
        asked.unwrap_or_else(|_| Err(NotCounted::Away(None, "no answer in time".to_owned())))?;
    let status = answer.status();
    let says = || format!("it answered {status}");
    // one that takes no call of ours is at fault itself, or we are; the request is not
    match Undone::by(&answer) {
        Some(Undone::Fault(fault)) => return Err(NotCounted::Away(Some(fault), says())),
        Some(Undone::Busy) => return Err(NotCounted::Away(None, says())),
        None => {}
    }
    if status.is_client_error() {
        return Err(NotCounted::Refused(ApiError::passed_on(status, &bytes)));
    }
    match number_told(&bytes) {
        Some(tokens) if status.is_success() => Ok(tokens),
        _ => Err(NotCounted::Away(None, says())),
    }
}

/// How many tokens an answer to a count tells.
pub(crate) fn number_told(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Counted {
        input_tokens: u64,
    }
    let counted: Counted = serde_json::from_slice(body).ok()?;
    Some(counted.input_tokens).filter(|tokens| *tokens <= TOKENS_PER_REQUEST_MAX)
}

async fn call(
    counter: &Counter,
    neuron: &ChosenNeuron,
    body: &Fields,
) -> Result<(reqwest::Response, Bytes), NotCounted> {
    let body = serde_json::to_vec(body).expect("a JSON object is written to memory");
    let pass = Pass {
        secret: &counter.secret,
        held: None,
        deadline_ms: (counter.clock)().saturating_add(ms(TOKENIZE_PASS)),
    };
    let mut headers = HeaderMap::new();
    pass.write(&neuron.neuron, PATH_TOKENIZE, &body, &mut headers);
    let call = counter
        .client
        .post(neuron.tokenize_url.clone())
        .headers(headers)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body);
    let broke = |error: reqwest::Error| NotCounted::broke(&error);
    let mut answer = call.send().await.map_err(broke)?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(broke)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > TOKENIZE_BYTES_MAX {
            return Err(NotCounted::Away(None, "its answer is too large".to_owned()));
        }
    }
    Ok((answer, bytes.freeze()))
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use axum::{Router, http::StatusCode, routing::post};
    use seatbelt_schemas::{
        ids::NeuronId,
        neuron::{NeuronModel, NeuronRecord},
    };
    use serde_json::json;
    use tokio::{net::TcpListener, sync::watch};

    use super::*;
    use crate::upstream::client::client;

    fn record(neuron: &str, url: String) -> NeuronRecord {
        NeuronRecord {
            v: 1,
            neuron: NeuronId::new(neuron).unwrap(),
            url,
            device: "cpu".to_owned(),
            models: vec![NeuronModel {
                id: ModelId::new("m").unwrap(),
                context: 64,
                output: 32,
                slots: 1,
                recipe: None,
                ready: true,
                loaded: true,
                grows: false,
            }],
            active: 0,
            queued: 0,
            at_ms: 1,
        }
    }

    /// A neuron that answers every count so.
    async fn neuron(name: &str, status: u16, body: String) -> NeuronRecord {
        let answer = move || {
            let body = body.clone();
            async move { (StatusCode::from_u16(status).unwrap(), body) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/tokenize", post(answer));
        tokio::spawn(axum::serve(listener, router).into_future());
        record(name, url)
    }

    /// An address at which nobody listens.
    fn nobody(name: &str) -> NeuronRecord {
        record(name, "http://127.0.0.1:1".to_owned())
    }

    async fn counted(mut records: Vec<NeuronRecord>) -> Result<(String, u64), ApiError> {
        // the first is asked first
        for (n, record) in records.iter_mut().enumerate() {
            record.queued = u32::try_from(n).unwrap() * 100;
        }
        let (_sender, neurons) = watch::channel(records);
        let model = ModelId::new("m").unwrap();
        let counter = Counter {
            client: client(Duration::from_secs(1)).unwrap(),
            catalog: Arc::new(Catalog::new(&[], &[], neurons).unwrap()),
            secret: NeuronSecret::new([7; 32]),
            clock: Arc::new(|| 1),
        };
        let Candidate::Neuron(first) = counter.catalog.candidate(&model, &[]).unwrap() else {
            panic!("not a neuron")
        };
        let body = json!({"messages": []}).as_object().unwrap().clone();
        let (neuron, tokens) = count(&counter, &model, first, &body).await?;
        Ok((neuron.neuron.to_string(), tokens))
    }

    fn tokens(count: u64) -> String {
        json!({ "input_tokens": count }).to_string()
    }

    #[tokio::test]
    async fn one_that_cannot_be_reached_makes_way_for_another() {
        let second = neuron("b", 200, tokens(12)).await;
        let found = counted(vec![nobody("a"), second]).await.unwrap();
        assert_eq!(found, ("b".to_owned(), 12));
    }

    #[tokio::test]
    async fn an_odd_answer_is_no_count() {
        for (status, body) in [
            (200, "{}".to_owned()),
            (200, tokens(TOKENS_PER_REQUEST_MAX + 1)),
            (500, tokens(5)),
            (200, " ".repeat(TOKENIZE_BYTES_MAX + 1)),
        ] {
            let odd = neuron("a", status, body).await;
            let none = counted(vec![odd]).await.unwrap_err();
            assert_eq!(none.code(), "service_unavailable");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_refused_is_asked_of_nobody_else() {
        let refusal = json!({"error": {"message": "odd role"}}).to_string();
        let first = neuron("a", 422, refusal).await;
        let second = neuron("b", 200, tokens(12)).await;
        let refused = counted(vec![first, second]).await.unwrap_err();
        assert_eq!(refused.status().as_u16(), 422);
    }

    #[tokio::test]
    async fn one_that_does_not_know_us_makes_way_for_another() {
        let first = neuron("a", 401, "{}".to_owned()).await;
        let second = neuron("b", 200, tokens(12)).await;
        let found = counted(vec![first, second]).await.unwrap();
        assert_eq!(found, ("b".to_owned(), 12));
    }

    #[tokio::test]
    async fn no_more_than_some_are_tried() {
        let last = neuron("d", 200, tokens(12)).await;
        let away = counted(vec![nobody("a"), nobody("b"), nobody("c"), last]).await;
        assert_eq!(away.unwrap_err().code(), "service_unavailable");
    }
}
