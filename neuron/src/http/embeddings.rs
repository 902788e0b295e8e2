//! `POST /v1/embeddings`: a vector for each text, by a model that is an encoder.
//!
//! The way is that of a generation: a ticket is opened before anything is read, and every way out ends it. There is no
//! output that would be charged.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use seatbelt_schemas::{ids::ModelId, neuron::NeuronModel};
use serde_json::{Value, json};

use super::{
    App,
    error::ErrorAnswer,
    request::{EmbeddingWish, Prompt},
    served::tell,
    way::{Begun, aside, begin, open, turn_away, with_request_id},
};
use crate::{
    config::{Device, ModelConfig},
    embed::{Ask, Embedded, Embedder, NotTaken, Undone},
    encoder::EncoderFolder,
    seat::{Lease, Resident, Seat},
    session::normalised,
    usage::Ticket,
};

/// A model that gives vectors.
pub(crate) struct Embeds {
    pub(crate) id: ModelId,
    pub(crate) device: Device,
    pub(crate) folder: Arc<EncoderFolder>,
    pub(crate) seat: Arc<Seat<Embedder>>,
    pub(crate) wanted: ModelConfig,
}

impl Embeds {
    /// Why it takes no request now, if so.
    pub(super) fn closed(&self) -> Option<&'static str> {
        self.seat.status().closed()
    }

    /// What gateways are told of it. That it writes nothing says what it is for.
    pub(super) fn record(&self, closed: Option<&str>) -> NeuronModel {
        NeuronModel {
            id: self.id.clone(),
            context: self.folder.context as u64,
            output: 0,
            slots: 1,
            recipe: None,
            ready: closed.is_none(),
            loaded: self.seat.up().is_some(),
            grows: false,
        }
    }

    pub(super) fn json(&self, since_s: u64) -> Value {
        let up = self.seat.up().map(|embedder| embedder.width());
        let mut told = json!({
            "id": self.id,
            "object": "model",
            "created": since_s,
            "owned_by": "seatbelt",
            "context_length": self.folder.context,
            "max_output_tokens": 0,
            "embedding_length": up.or(self.folder.width),
            "device": self.device.as_str(),
        });
        tell(&mut told, &*self.seat);
        told
    }

    fn tokens(&self, text: &Prompt) -> Result<Vec<u32>, ErrorAnswer> {
        let tokens = match text {
            Prompt::Text(text) => {
                if self.folder.tokenizer.fewest(text.len()) > self.folder.context {
                    return Err(ErrorAnswer::text_too_long(self.folder.context));
                }
                let tokens = self.folder.tokenizer.encode_plain(text);
                tokens.map_err(|error| ErrorAnswer::engine(error.to_string()))?
            }
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Chat(_) => Vec::new(),
        };
        if tokens.is_empty() || tokens.iter().any(|token| *token >= self.folder.vocab) {
            return Err(ErrorAnswer::no_prompt(
                "each text must have at least one token, and only tokens of this model",
            ));
        }
        match tokens.len() > self.folder.context {
            true => Err(ErrorAnswer::text_too_long(self.folder.context)),
            false => Ok(tokens),
        }
    }
}

/// Serves one request from its first header to its answer.
pub(super) async fn serve(app: &Arc<App>, request: Request) -> Response {
    let mut ticket = match open(app, &request) {
        Ok(ticket) => ticket,
        Err(error) => return error.into_response(),
    };
    let id = ticket.request().to_owned();
    let response = match prepare(app, request, &mut ticket).await {
        Ok(plan) => run(plan, ticket).await,
        Err(error) => turn_away(ticket, error).await,
    };
    with_request_id(response, &id)
}

/// How many tokens the texts of a body have, exactly, and the model's limits.
pub(super) async fn count(app: &Arc<App>, body: &[u8]) -> Result<Value, ErrorAnswer> {
    let wish = EmbeddingWish::read(body)?;
    let embeds = app.embeds(&wish.model)?;
    let texts = texts(app, &embeds, wish.texts, body.len()).await?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    Ok(json!({ "input_tokens": tokens, "context": embeds.folder.context, "output": 0 }))
}

struct Plan {
    embedder: Lease<Embedder>,
    wish: EmbeddingWish,
    texts: Vec<Vec<u32>>,
    deadline: Option<Instant>,
}

async fn prepare(
    app: &Arc<App>,
    request: Request,
    ticket: &mut Ticket,
) -> Result<Plan, ErrorAnswer> {
    let Begun {
        limits,
        deadline,
        body,
    } = begin(app, request).await?;
    let size = body.len();
    let mut wish = aside(app, size, move || EmbeddingWish::read(&body)).await??;
    let embeds = app.embeds(&wish.model)?;
    ticket.of_model(&embeds.id, embeds.device);
    if let Some(reason) = embeds.closed() {
        return Err(ErrorAnswer::closed(reason));
    }
    let texts = texts(app, &embeds, std::mem::take(&mut wish.texts), size).await?;
    let all = texts.iter().map(Vec::len).sum();
    if let Some(most) = limits.input_tokens.filter(|most| all > *most) {
        return Err(ErrorAnswer::over_reservation(most, all));
    }
    // Nothing is loaded for who is refused.
    let embedder = app.shelf.lease(&embeds.seat, deadline).await;
    let embedder = embedder.map_err(|why| ErrorAnswer::not_up(&wish.model, why))?;
    let width = embedder.width();
    if wish.dimensions.is_some_and(|dimensions| dimensions > width) {
        let wanted = format!("at most {width}, which is what this model gives");
        return Err(ErrorAnswer::invalid_value("dimensions", &wanted));
    }
    Ok(Plan {
        embedder,
        wish,
        texts,
        deadline,
    })
}

async fn texts(
    app: &App,
    embeds: &Arc<Embeds>,
    texts: Vec<Prompt>,
    size: usize,
) -> Result<Vec<Vec<u32>>, ErrorAnswer> {
    let shared = Arc::clone(embeds);
    let read = move || texts.iter().map(|text| shared.tokens(text)).collect();
    aside(app, size, read).await?
}

async fn run(plan: Plan, mut ticket: Ticket) -> Response {
    let passed = |deadline: Instant| Instant::now() >= deadline;
    if plan.deadline.is_some_and(passed) {
        ticket.expire().wait().await;
        return ErrorAnswer::expired().into_response();
    }
    let tokens = plan.texts.iter().map(Vec::len).sum();
    ticket.begin(tokens, 0);
    let ask = Ask {
        texts: plan.texts,
        deadline: plan.deadline,
        ticket,
    };
    let submitted = plan.embedder.submit(ask);
    // What is in line keeps the model in memory from now on.
    drop(plan.embedder);
    let answered = match submitted {
        Ok(answered) => answered,
        Err(NotTaken::QueueFull(ticket)) => {
            return turn_away(*ticket, ErrorAnswer::queue_full()).await;
        }
        Err(NotTaken::Stopped(ticket)) => {
            return turn_away(*ticket, ErrorAnswer::closed("the model has stopped")).await;
        }
    };
    let failed = || ErrorAnswer::engine("the model could not be run");
    let answer = match answered.await {
        Ok(Ok(embedded)) => answer(&plan.wish, tokens, embedded).await,
        Ok(Err(Undone::Expired)) => Err(ErrorAnswer::expired()),
        Ok(Err(Undone::Stopping)) => Err(ErrorAnswer::broken_off()),
        Ok(Err(Undone::Failed(_))) | Err(_) => Err(failed()),
    };
    answer.map_or_else(IntoResponse::into_response, |answer| {
        Json(answer).into_response()
    })
}

async fn answer(
    wish: &EmbeddingWish,
    tokens: usize,
    embedded: Embedded,
) -> Result<Value, ErrorAnswer> {
    if !embedded.durable.wait().await {
        return Err(ErrorAnswer::not_recorded());
    }
    let data: Vec<Value> = (embedded.vectors.into_iter().enumerate())
        .map(|(index, vector)| {
            let embedding = shown(shortened(vector, wish.dimensions), wish.base64);
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(json!({ "object": "list", "data": data, "model": wish.model, "usage": usage }))
}

/// The first numbers alone, of length one again.
fn shortened(mut vector: Vec<f32>, dimensions: Option<usize>) -> Vec<f32> {
    match dimensions {
        Some(count) if count < vector.len() => {
            vector.truncate(count);
            normalised(vector)
        }
        _ => vector,
    }
}

fn shown(vector: Vec<f32>, base64: bool) -> Value {
    if !base64 {
        // As short as they can be written, not as what they are in twice the bits.
        let number = |value: f32| value.to_string().parse::<f64>().unwrap_or_default();
        return vector.into_iter().map(number).collect();
    }
    let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
    json!(BASE64_STANDARD.encode(bytes))
}
