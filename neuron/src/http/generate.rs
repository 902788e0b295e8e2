//! The way of a generation: read, check, run, answer.
//!
//! A ticket is opened before anything is read and follows the request; every way out ends it. A
//! handler whose client leaves is dropped, and with it the generation.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::LengthLimitError;
use seatbelt_schemas::neuron::signature::BodyHash;
use seatbelt_tokens::PromptError;
use serde_json::Value;
use ulid::Ulid;

use super::{
    App, Served,
    access::{self, Signed},
    answer::{self, calls::Calls, likely::Told},
    error::ErrorAnswer,
    headers::{self, Limits},
    request::{Dialect, Prompt, ShapeWish, Wish},
};
use crate::{
    clock::unix_ms,
    config::{BODY_BYTES_MAX, BODY_TIME_MAX},
    engine::{Job, NotQueued},
    sampler::Sampling,
    shape::{Guide, ShapeError},
    usage::Ticket,
};

/// Bodies up to this size are read and tokenized in place; larger ones would hold up other requests.
const INLINE_BYTES_MAX: usize = 16 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves one generation from its first header to its answer.
pub(super) async fn serve(app: &Arc<App>, dialect: Dialect, request: Request) -> Response {
    let mut ticket = match open(app, &request) {
        Ok(ticket) => ticket,
        Err(error) => return error.into_response(),
    };
    let id = ticket.request().to_owned();
    let response = match prepare(app, dialect, request, &mut ticket).await {
        Ok(plan) => run(app, dialect, plan, ticket).await,
        Err(error) => turn_away(ticket, error).await,
    };
    with_request_id(response, &id)
}

/// Refuses a request that could cost something, whatever its body.
pub(super) async fn refuse(app: &App, request: Request, error: ErrorAnswer) -> Response {
    let ticket = match open(app, &request) {
        Ok(ticket) => ticket,
        Err(error) => return error.into_response(),
    };
    let id = ticket.request().to_owned();
    with_request_id(turn_away(ticket, error).await, &id)
}

/// The ticket of a request that has its reservation for itself. Where another had it, there is none: the
/// reservation has its one event from the other.
fn open(app: &App, request: &Request) -> Result<Ticket, ErrorAnswer> {
    let (headers, signed) = (request.headers(), request.extensions().get::<Signed>());
    access::take(app, signed, headers)?;
    Ok(app.office.open(headers::caller(headers)))
}

/// A request that may run.
struct Plan {
    served: usize,
    prompt: Vec<u32>,
    max_output: usize,
    sampling: Sampling,
    eos: Vec<u32>,
    /// Whether it tells how likely the tokens were.
    told: bool,
    /// Finds calls of tools in the answer, where there are tools.
    calls: Option<Calls>,
    guide: Option<Guide>,
    deadline: Option<Instant>,
    continues: bool,
    wish: Wish,
}

async fn prepare(
    app: &Arc<App>,
    dialect: Dialect,
    request: Request,
    ticket: &mut Ticket,
) -> Result<Plan, ErrorAnswer> {
    let signed = request.extensions().get::<Signed>().copied();
    if let Some(reason) = app.closed() {
        return Err(ErrorAnswer::closed(reason));
    }
    let limits = headers::limits(request.headers())?;
    // Before anything takes its time: the wall clock may be set meanwhile.
    let deadline = limits.deadline_ms.and_then(|at_ms| app.time.moment(at_ms));
    let body = read_body(request.into_body(), signed).await?;
    let size = body.len();
    let mut wish = aside(app, size, move || Wish::read(dialect, &body)).await??;
    let (at, served) = find(app, &wish.model)?;
    ticket.of_model(&served.id, served.device);
    if let Some(reason) = app.closed_for(served) {
        return Err(ErrorAnswer::closed(reason));
    }
    let stand_in = Prompt::Tokens(Vec::new());
    let prompt = std::mem::replace(&mut wish.prompt, stand_in);
    let continues = prompt.continues();
    let calls = prompt
        .tools()
        .map(|tools| calls(served, tools, wish.one_call));
    let calls = calls.transpose()?;
    let guide = guide(app, at, &mut wish.shape, prompt.tools()).await?;
    let prompt = tokens(app, at, prompt, size).await?;
    let max_output = ceiling(served, &limits, &wish, prompt.len())?;
    let told = wish.sampling.tells_logprobs();
    let sampling = std::mem::take(&mut wish.sampling);
    let sampling = sampling.over(served.model.sampling, random_seed);
    let eos = wish.ends.of(&served.model);
    Ok(Plan {
        served: at,
        prompt,
        max_output,
        sampling,
        eos,
        told,
        calls,
        guide,
        deadline,
        continues,
        wish,
    })
}

/// Who finds calls of these tools in an answer of this model.
fn calls(served: &Served, tools: &Value, one_call: bool) -> Result<Calls, ErrorAnswer> {
    let Some(format) = served.model.call_format else {
        return Err(ErrorAnswer::unsupported(
            "tools",
            "this model's chat template does not say how it writes calls, or in a way that is not known here: leave tools out",
        ));
    };
    let names = tools.as_array().into_iter().flatten();
    let names = names.filter_map(|tool| tool["function"]["name"].as_str());
    Ok(Calls::new(
        format,
        names.map(str::to_owned).collect(),
        one_call,
    ))
}

/// Leads the answer through the shape that it has to have.
async fn guide(
    app: &Arc<App>,
    at: usize,
    wish: &mut ShapeWish,
    tools: Option<&Value>,
) -> Result<Option<Guide>, ErrorAnswer> {
    let wish = std::mem::take(wish);
    let field = wish.field();
    let Some(shape) = wish.of(tools, app.models[at].model.call_format)? else {
        return Ok(None);
    };
    let shared = Arc::clone(app);
    let reading = move || shared.models[at].model.shapes.guides(&shape, 1);
    // However small a body is, its shape may take milliseconds, and longer than that.
    let read = app.shaping.read(field, reading).await?;
    read.map(|mut guides| guides.pop())
        .map_err(|error| match error {
            ShapeError::Impossible(words) => {
                let message = format!("{field} asks for what cannot be: {words}");
                ErrorAnswer::unsupported(field, message)
            }
            ShapeError::Vocabulary(_) => ErrorAnswer::unsupported(field, error.to_string()),
        })
}

/// The body, if it is neither too large nor too slow, and the one that was signed.
pub(super) async fn read_body(body: Body, signed: Option<Signed>) -> Result<Bytes, ErrorAnswer> {
    let read = axum::body::to_bytes(body, BODY_BYTES_MAX);
    let Ok(read) = tokio::time::timeout(BODY_TIME_MAX, read).await else {
        return Err(ErrorAnswer::body_too_slow());
    };
    let body = read.map_err(|error| {
        let source = std::error::Error::source(&error);
        match source.is_some_and(|source| source.is::<LengthLimitError>()) {
            true => ErrorAnswer::body_too_large(BODY_BYTES_MAX),
            false => ErrorAnswer::invalid_body("the body ended early"),
        }
    })?;
    match signed {
        Some(signed) if signed.body != BodyHash::of(&body) => {
            Err(ErrorAnswer::other_body().unused())
        }
        _ => Ok(body),
    }
}

/// The exact tokens of a request's prompt.
pub(super) async fn prompt_tokens(
    app: &Arc<App>,
    wish: Wish,
    size: usize,
) -> Result<Vec<u32>, ErrorAnswer> {
    let (at, _) = find(app, &wish.model)?;
    tokens(app, at, wish.prompt, size).await
}

/// Does what takes its time with a body of this size, beside the workers that serve everybody where it is
/// large: as much at once as there are cores.
pub(super) async fn aside<T: Send + 'static>(
    app: &App,
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ErrorAnswer> {
    if size <= INLINE_BYTES_MAX {
        return Ok(work());
    }
    let place = Arc::clone(&app.aside).acquire_owned().await;
    let place = place.expect("places are never closed");
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        // Held to the end, although whoever asked may be gone before.
        drop(place);
        done
    });
    let broke = |error| ErrorAnswer::engine(format!("reading the request broke off: {error}"));
    done.await.map_err(broke)
}

fn find<'a>(app: &'a App, name: &str) -> Result<(usize, &'a Served), ErrorAnswer> {
    let found = app
        .models
        .iter()
        .enumerate()
        .find(|(_, served)| served.id.as_str() == name);
    found.ok_or_else(|| app.absent(name))
}

/// The tokens of a prompt in a body of this size: the fewest bytes can be the most messages.
async fn tokens(
    app: &Arc<App>,
    at: usize,
    prompt: Prompt,
    size: usize,
) -> Result<Vec<u32>, ErrorAnswer> {
    let model = &app.models[at].model;
    if model.tokenizer.fewest(prompt.bytes()) >= model.context {
        return Err(ErrorAnswer::over_context(model.context));
    }
    let shared = Arc::clone(app);
    let tokens = aside(app, size, move || prompt.tokens(&shared.models[at].model)).await?;
    let tokens = tokens.map_err(prompt_error)?;
    if tokens.is_empty() || tokens.iter().any(|token| *token >= model.vocab) {
        return Err(ErrorAnswer::no_prompt(
            "the prompt must have at least one token, and only tokens of this model",
        ));
    }
    Ok(tokens)
}

fn prompt_error(error: PromptError) -> ErrorAnswer {
    match error {
        PromptError::NoTemplate | PromptError::Template(_) => {
            ErrorAnswer::no_prompt(error.to_string())
        }
        PromptError::NoTools => ErrorAnswer::unsupported("tools", error.to_string()),
        PromptError::Tokenizer(error) => ErrorAnswer::engine(error.to_string()),
    }
}

/// Most output tokens of a request: the smallest of what was reserved, asked for, allowed and fits.
fn ceiling(
    served: &Served,
    limits: &Limits,
    wish: &Wish,
    prompt: usize,
) -> Result<usize, ErrorAnswer> {
    let model = &served.model;
    if let Some(most) = limits.input_tokens.filter(|most| prompt > *most) {
        return Err(ErrorAnswer::over_reservation(most, prompt));
    }
    if prompt >= model.context {
        return Err(ErrorAnswer::over_context(model.context));
    }
    let asked = [limits.output_tokens, wish.max_output];
    let room = model.output.min(model.context - prompt);
    Ok(asked.into_iter().flatten().fold(room, usize::min))
}

async fn run(app: &App, dialect: Dialect, plan: Plan, mut ticket: Ticket) -> Response {
    let id = ticket.request().to_owned();
    if plan
        .deadline
        .is_some_and(|deadline| Instant::now() >= deadline)
    {
        ticket.expire().wait().await;
        return ErrorAnswer::expired().into_response();
    }
    let prompt_tokens = plan.prompt.len();
    ticket.begin(prompt_tokens, plan.max_output);
    let job = Job {
        prompt: plan.prompt,
        max_output: plan.max_output,
        sampling: plan.sampling,
        eos: plan.eos,
        guide: plan.guide,
        stops: plan.wish.stops,
        continues: plan.continues,
        deadline: plan.deadline,
        ticket,
    };
    let generation = match app.models[plan.served].engine().submit(job) {
        Ok(generation) => generation,
        Err(NotQueued::QueueFull(ticket)) => {
            return turn_away(*ticket, ErrorAnswer::queue_full()).await;
        }
        Err(NotQueued::Stopped(ticket)) => {
            return turn_away(*ticket, ErrorAnswer::closed("the engine has stopped")).await;
        }
    };
    let tokenizer = &app.models[plan.served].model.tokenizer;
    let style = answer::Style {
        dialect,
        id: answer::id(dialect, &id),
        created_s: unix_ms() / 1000,
        model: plan.wish.model,
        prompt_tokens,
        include_usage: plan.wish.include_usage,
        told: plan.told.then(|| Told::new(dialect, tokenizer.clone())),
        calls: plan.calls,
    };
    if plan.wish.stream {
        answer::stream(style, generation).await
    } else {
        answer::whole(style, generation).await
    }
}

async fn turn_away(ticket: Ticket, error: ErrorAnswer) -> Response {
    // The refusal stands even if its report could not be written: nothing was used.
    ticket.reject().wait().await;
    error.into_response()
}

fn with_request_id(mut response: Response, id: &str) -> Response {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "any 64 of the random bits will do"
)]
fn random_seed() -> u64 {
    Ulid::new().random() as u64
}
