//! The way of a generation: read, check, run, answer.
//!
//! A ticket is opened before anything is read and follows the request; every way out ends it. A
//! handler whose client leaves is dropped, and with it the generation.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use seatbelt_schemas::neuron::HEADER_MAX_OUTPUT_TOKENS;
use seatbelt_tokens::PromptError;
use serde_json::Value;
use ulid::Ulid;

use super::{
    App, Served,
    answer::{self, calls::Calls, likely::Told},
    error::ErrorAnswer,
    headers::Limits,
    request::{Dialect, Prompt, ShapeWish, Wish},
    way::{Begun, aside, begin, open, turn_away, with_request_id},
};
use crate::{
    clock::unix_ms,
    engine::{Allowance, Engine, Job, NotQueued},
    sampler::Sampling,
    seat::Lease,
    shape::{Guide, ShapeError},
    usage::{
        Ticket,
        parts::{self, Part},
    },
};

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

/// A request that may run.
struct Plan {
    served: Arc<Served>,
    engine: Lease<Engine>,
    prompts: Vec<Read>,
    ceiling: Ceiling,
    sampling: Sampling,
    eos: Vec<u32>,
    /// Whether it tells how likely the tokens were.
    told: bool,
    /// For each answer, what finds calls of tools in it, where there are tools.
    calls: Vec<Calls>,
    /// For each answer, where it has to have a shape.
    guides: Vec<Guide>,
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
    let Begun {
        limits,
        deadline,
        body,
    } = begin(app, request).await?;
    let size = body.len();
    let mut wish = aside(app, size, move || Wish::read(dialect, &body)).await??;
    let served = app.served(&wish.model)?;
    ticket.of_model(&served.id, served.device);
    if let Some(reason) = app.closed().or_else(|| served.closed()) {
        return Err(ErrorAnswer::closed(reason));
    }
    let prompts = std::mem::take(&mut wish.prompts);
    let count = prompts.len() * wish.choices;
    let up = served.seat.up();
    up.map_or(Ok(()), |engine| have_room(&engine, count))?;
    // Chats are alone, and of several texts either all are gone on with.
    let continues = prompts.iter().all(Prompt::continues);
    let tools = prompts.iter().find_map(Prompt::tools);
    let calls = tools.map_or(Ok(Vec::new()), |tools| {
        (0..count)
            .map(|_| calls(&served, tools, wish.one_call))
            .collect()
    })?;
    let guides = guides(app, &served, &mut wish.shape, tools, count).await?;
    let prompts = read_prompts(app, &served, prompts, size, wish.echo).await?;
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    // Nothing is loaded for who is refused; what is loaded may turn out to have less room.
    ceiling(&served, &limits, &wish, &lengths)?;
    let engine = app.shelf.lease(&served.seat, deadline).await;
    let engine = engine.map_err(|why| ErrorAnswer::not_up(&wish.model, why))?;
    have_room(&engine, count)?;
    let ceiling = ceiling(&served, &limits, &wish, &lengths)?;
    let told = wish.sampling.tells_logprobs();
    let sampling = std::mem::take(&mut wish.sampling);
    let sampling = sampling.over(served.model.sampling, random_seed);
    let eos = wish.ends.of(&served.model);
    Ok(Plan {
        served,
        engine,
        prompts,
        ceiling,
        sampling,
        eos,
        told,
        calls,
        guides,
        deadline,
        continues,
        wish,
    })
}

/// That all answers of a request can be in line at once.
fn have_room(engine: &Engine, count: usize) -> Result<(), ErrorAnswer> {
    match count > engine.room() {
        true => Err(ErrorAnswer::too_many_answers(engine.room())),
        false => Ok(()),
    }
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

/// Leads answers through the shape that they have to have.
async fn guides(
    app: &Arc<App>,
    served: &Arc<Served>,
    wish: &mut ShapeWish,
    tools: Option<&Value>,
    count: usize,
) -> Result<Vec<Guide>, ErrorAnswer> {
    let wish = std::mem::take(wish);
    let field = wish.field();
    let Some(shape) = wish.of(tools, served.model.call_format)? else {
        return Ok(Vec::new());
    };
    let model = Arc::clone(&served.model);
    let reading = move || model.shapes.guides(&shape, count);
    // However small a body is, its shape may take milliseconds, and longer than that.
    let read = app.shaping.read(field, reading).await?;
    read.map_err(|error| match error {
        ShapeError::Impossible(words) => {
            let message = format!("{field} asks for what cannot be: {words}");
            ErrorAnswer::unsupported(field, message)
        }
        ShapeError::Vocabulary(_) => ErrorAnswer::unsupported(field, error.to_string()),
    })
}

/// How many tokens the prompts of a request have, exactly.
pub(super) async fn prompt_tokens(
    app: &App,
    served: &Served,
    wish: Wish,
    size: usize,
) -> Result<usize, ErrorAnswer> {
    let prompts = read_prompts(app, served, wish.prompts, size, false).await?;
    Ok(prompts.iter().map(|prompt| prompt.tokens.len()).sum())
}

/// A prompt as the model reads it, and as it is shown before its answer.
struct Read {
    tokens: Vec<u32>,
    shown: String,
}

/// The tokens of prompts in a body of this size: the fewest bytes can be the most messages.
async fn read_prompts(
    app: &App,
    served: &Served,
    prompts: Vec<Prompt>,
    size: usize,
    echo: bool,
) -> Result<Vec<Read>, ErrorAnswer> {
    let (model, context) = (&served.model, served.context());
    let fewest = |prompt: &Prompt| model.tokenizer.fewest(prompt.bytes());
    if prompts.iter().any(|prompt| fewest(prompt) >= context) {
        return Err(ErrorAnswer::over_context(context));
    }
    let shared = Arc::clone(model);
    let read = move || -> Result<Vec<Read>, PromptError> {
        let model = &*shared;
        let read = |prompt: &Prompt| {
            let shown = if echo {
                prompt.shown(model)
            } else {
                String::new()
            };
            prompt.tokens(model).map(|tokens| Read { tokens, shown })
        };
        prompts.iter().map(read).collect()
    };
    let prompts = aside(app, size, read).await?.map_err(prompt_error)?;
    let unknown = |token: &u32| *token >= model.vocab;
    let unsound = |prompt: &Read| prompt.tokens.is_empty() || prompt.tokens.iter().any(unknown);
    if prompts.iter().any(unsound) {
        return Err(ErrorAnswer::no_prompt(
            "the prompt must have at least one token, and only tokens of this model",
        ));
    }
    Ok(prompts)
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

/// Most output tokens of each answer.
#[derive(Debug, Clone, Copy)]
struct Ceiling {
    /// As the request came.
    now: usize,
    /// What that may grow to while it runs.
    most: usize,
}

/// Most output tokens of each answer: the smallest of what was reserved, asked for, allowed and fits.
fn ceiling(
    served: &Served,
    limits: &Limits,
    wish: &Wish,
    prompts: &[usize],
) -> Result<Ceiling, ErrorAnswer> {
    let context = served.context();
    let all = prompts.iter().sum();
    if let Some(most) = limits.input_tokens.filter(|most| all > *most) {
        return Err(ErrorAnswer::over_reservation(most, all));
    }
    let longest = prompts.iter().copied().max().unwrap_or(0);
    if longest >= context {
        return Err(ErrorAnswer::over_context(context));
    }
    // What was reserved is for all of them.
    let answers = prompts.len() * wish.choices;
    let each = |tokens: Option<usize>| tokens.map(|most| most / answers.max(1));
    let reserved = each(limits.output_tokens);
    if reserved == Some(0) {
        return Err(ErrorAnswer::invalid_header(
            HEADER_MAX_OUTPUT_TOKENS,
            "at least 1 for each answer",
        ));
    }
    let room = served.output().min(context - longest);
    let most = wish.max_output.unwrap_or(room).min(room);
    let now = reserved.unwrap_or(most).min(most);
    let grown = each(limits.grows_to).unwrap_or(now).min(most);
    Ok(Ceiling {
        now,
        most: grown.max(now),
    })
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
    let prompt_tokens = plan.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    let answers = plan.prompts.len() * plan.wish.choices;
    ticket.begin(prompt_tokens, plan.ceiling.now * answers);
    let reservation = ticket.reservation().map(str::to_owned);
    let (engine, style, jobs) = plan.into_jobs(dialect, &id, ticket);
    // listed before it runs: from its first token on it may have to be told of more
    let grows = reservation.and_then(|id| app.growing.list(id, &jobs, engine.runner()));
    let submitted = engine.submit_all(jobs);
    // What is in line keeps the model in memory from now on.
    drop(engine);
    let (stream, running) = match submitted {
        Ok(generations) => (style.stream, answer::Running::new(generations, grows)),
        Err(NotQueued::QueueFull(parts)) => {
            // The refusal stands even if its report could not be written: nothing was used.
            parts::reject(parts).wait().await;
            return ErrorAnswer::queue_full().into_response();
        }
        Err(NotQueued::Stopped(parts)) => {
            parts::reject(parts).wait().await;
            return ErrorAnswer::closed("the engine has stopped").into_response();
        }
    };
    match stream {
        true => answer::stream(style, running).await,
        false => answer::whole(style, running).await,
    }
}

impl Plan {
    /// What runs them, a job for each answer, and how they are shown.
    fn into_jobs(
        self,
        dialect: Dialect,
        request: &str,
        ticket: Ticket,
    ) -> (Lease<Engine>, answer::Style, Vec<Job>) {
        let tokenizer = &self.served.model.tokenizer;
        let choices = self.wish.choices;
        let (mut calls, mut guides) = (self.calls.into_iter(), self.guides.into_iter());
        let mut style = answer::Style {
            dialect,
            id: answer::id(dialect, request),
            created_s: unix_ms() / 1000,
            model: self.wish.model,
            prompt_tokens: self.prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
            stream: self.wish.stream,
            include_usage: self.wish.include_usage,
            choices: Vec::new(),
        };
        let Ceiling { now, most } = self.ceiling;
        let allowance = (now < most).then(|| Allowance::new(now, most));
        let parts = Part::of(ticket, self.prompts.len(), choices);
        let mut jobs = Vec::with_capacity(parts.len());
        for (n, ticket) in parts.into_iter().enumerate() {
            let prompt = &self.prompts[n / choices];
            style.choices.push(answer::Choice {
                echo: prompt.shown.clone(),
                told: self.told.then(|| Told::new(dialect, tokenizer.clone())),
                calls: calls.next(),
            });
            jobs.push(Job {
                prompt: prompt.tokens.clone(),
                max_output: most,
                allowance: allowance.clone(),
                // The first is what it would be alone.
                sampling: Sampling {
                    seed: self.sampling.seed.wrapping_add(n as u64),
                    ..self.sampling.clone()
                },
                eos: self.eos.clone(),
                guide: guides.next(),
                stops: self.wish.stops.clone(),
                continues: self.continues,
                deadline: self.deadline,
                ticket,
            });
        }
        (self.engine, style, jobs)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "any 64 of the random bits will do"
)]
fn random_seed() -> u64 {
    Ulid::new().random() as u64
}
