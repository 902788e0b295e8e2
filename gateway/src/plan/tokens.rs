//! `POST /v1/messages/count_tokens` and `/v1/responses/input_tokens`: how many tokens a request would have, without making it.
//!
//! Nothing is reserved, since nothing is charged: providers count for free, a neuron counts exactly, and for
//! any other upstream the answer is the bound that a hold would have.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use seatbelt_dialects::{
    Api, Exact, Fields,
    allow::refuse_state,
    translate::{between, without_our_thoughts},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{Planner, Read, allowed, counted, foreign_bound, model_id, read};
use crate::{
    bound::exactly,
    clock::ms,
    error::ApiError,
    receive::Received,
    upstream::{
        Attempt, Candidate,
        answer::{is_of_no_api, not_there, passed_headers, unreadable},
        count::{count, number_told},
        deployments::Chosen,
        model::Model,
        neuron::Pass,
    },
};

/// Largest answer to a count.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Deployments that are asked for one count, at most.
const TRIES_MAX: usize = 3;
/// How long an upstream may count.
const COUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// How many tokens, and on whose word.
#[derive(Debug)]
pub(crate) struct TokenCount {
    /// `upstream`, `exact` (the model's own tokenizer) or `bound` (no more than these).
    pub(crate) by: &'static str,
    pub(crate) status: StatusCode,
    /// What an upstream's answer says besides that is for the client.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl TokenCount {
    fn here(client: Api, by: &'static str, tokens: u64) -> Self {
        let told = match client {
            Api::Responses => {
                json!({ "object": "response.input_tokens", "input_tokens": tokens })
            }
            _ => json!({ "input_tokens": tokens }),
        };
        Self {
            by,
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: told.to_string().into(),
        }
    }
}

/// Where upstreams count, below where they answer.
fn below(client: Api) -> Option<&'static str> {
    match client {
        Api::Messages => Some("count_tokens"),
        Api::Responses => Some("input_tokens"),
        Api::Chat | Api::Completions | Api::Embeddings => None,
    }
}

/// An attempt at what is below its path.
fn at(mut attempt: Attempt, below: &str) -> Attempt {
    if let Ok(mut path) = attempt.url.path_segments_mut() {
        path.push(below);
    }
    attempt
}

/// Whether a count failed for reasons of whoever was asked: another one may know.
fn is_of_the_asked(told: &Result<TokenCount, ApiError>) -> bool {
    match told {
        Ok(count) => count.status.is_server_error() || count.status.as_u16() == 429,
        Err(_) => true,
    }
}

impl Planner {
    /// Counts what a body of `/v1/messages` or `/v1/responses` has, which needs no maximum for that.
    pub(crate) async fn count_tokens(
        &self,
        client: Api,
        received: Received,
    ) -> Result<TokenCount, ApiError> {
        let Received {
            headers,
            mut body,
            exact,
            aside,
            // kept to the end
            place: _place,
            room,
            ..
        } = received;
        let model = model_id(&body)?;
        let candidate = self.catalog.candidate(&model, &[])?;
        let api = candidate.api(client);
        if let (true, Some(below)) = (api == client, below(client)) {
            refuse_state(&body, allowed(&candidate, api, None).accepted)?;
            if api == Api::Messages {
                without_our_thoughts(&mut body);
            }
            let said = (&body, exact.as_ref());
            return self
                .passed_on(candidate, (api, below), &headers, said)
                .await;
        }
        if client == Api::Messages {
            body.entry("max_tokens").or_insert_with(|| json!(1));
        }
        let way = between(client, api)?;
        let reading = move || Ok((read(way, api, body)?, room));
        let ((body, ask, _), room) = aside.clone().work(reading).await?;
        refuse_state(&body, allowed(&candidate, api, None).accepted)?;
        let read = Read {
            body,
            ask,
            room,
            aside,
        };
        match candidate {
            Candidate::Foreign(_, model) => {
                let (bound, _) = foreign_bound(api, model, read).await?;
                Ok(TokenCount::here(client, "bound", bound.input_tokens))
            }
            Candidate::Neuron(neuron) => {
                if let Some(counter) = self.recipe(&neuron, api, &read.body).await {
                    let most = self.catalog.context_max(&neuron.model);
                    let (tokens, read) = counted(api, counter, most, read).await?;
                    let bound = exactly(&read.ask, tokens, most, most)?;
                    return Ok(TokenCount::here(client, "exact", bound.input_tokens));
                }
                let (_, tokens) = count(&self.counter, &model, neuron, &read.body).await?;
                Ok(TokenCount::here(client, "exact", tokens))
            }
        }
    }

    /// Asks an upstream that counts itself, in the API that it was asked in.
    async fn passed_on(
        &self,
        candidate: Candidate,
        (api, below): (Api, &str),
        headers: &HeaderMap,
        (body, exact): (&Fields, Option<&Exact>),
    ) -> Result<TokenCount, ApiError> {
        let pass = Pass {
            secret: &self.counter.secret,
            held: None,
            deadline_ms: (self.counter.clock)().saturating_add(ms(COUNT_TIMEOUT)),
        };
        let mut written = serde_json::to_vec(body).expect("a JSON object is written to memory");
        if let Some(exact) = exact {
            written = exact.unmarked(&written);
        }
        let attempt = Attempt::new(&candidate, api, &pass, headers, written);
        match candidate {
            Candidate::Foreign(first, model) => {
                let asked = (first, &*model);
                self.asked_of_any(asked, (api, below), headers, attempt)
                    .await
            }
            Candidate::Neuron(_) => self.asked(at(attempt, below), &candidate.name()).await,
        }
    }

    /// Asks one deployment after another: a count costs nothing, so whatever came of one that failed is no matter.
    async fn asked_of_any(
        &self,
        (first, model): (Chosen, &Model),
        (api, below): (Api, &str),
        headers: &HeaderMap,
        attempt: Attempt,
    ) -> Result<TokenCount, ApiError> {
        let body = attempt.body.clone();
        let mut told = self.asked(at(attempt, below), &first.name).await;
        let mut tried = vec![first.name.clone()];
        while tried.len() < TRIES_MAX && is_of_the_asked(&told) {
            let places = self.catalog.deployments(&model.told.id);
            let Some(next) = places.and_then(|places| places.another(&tried, Instant::now()))
            else {
                break;
            };
            let attempt = Attempt::to(&next, api, headers, body.clone());
            told = self.asked(at(attempt, below), &next.name).await;
            tried.push(next.name.clone());
        }
        told
    }

    async fn asked(&self, attempt: Attempt, upstream: &str) -> Result<TokenCount, ApiError> {
        let asking = async {
            let call = self.counter.client.post(attempt.url);
            let call = call.headers(attempt.headers).body(attempt.body);
            let mut answer = call.send().await?;
            let (status, headers) = (answer.status(), passed_headers(answer.headers()));
            if let Some(problem) = unreadable(&answer) {
                return Ok((status, headers, Err(problem)));
            }
            let mut body = BytesMut::new();
            while let Some(chunk) = answer.chunk().await? {
                body.extend_from_slice(&chunk);
                if body.len() > ANSWER_BYTES_MAX {
                    return Ok((status, headers, Err("its answer is too large".to_owned())));
                }
            }
            Ok::<_, reqwest::Error>((status, headers, Ok(body.freeze())))
        };
        let broke = |log: String| ApiError::upstream_broke(upstream, log);
        let (status, headers, body) = match timeout(COUNT_TIMEOUT, asking).await {
            Err(_) => return Err(ApiError::upstream_timeout(upstream)),
            Ok(Err(error)) => return Err(broke(error.to_string())),
            Ok(Ok((status, headers, body))) => (status, headers, body.map_err(broke)?),
        };
        let is_operators = matches!(status.as_u16(), 401..=403);
        match status {
            _ if is_operators || status.is_redirection() || status.is_informational() => {
                let log = format!("upstream {upstream} answered {status} to a count");
                Err(ApiError::upstream_refused(upstream, log))
            }
            _ if is_of_no_api(status, &body) => Err(not_there(upstream, status)),
            _ if status.is_success() && number_told(&body).is_none() => Err(broke(
                "its answer to a count tells no number of tokens".to_owned(),
            )),
            _ => Ok(TokenCount {
                by: "upstream",
                status,
                headers,
                body,
            }),
        }
    }
}
