//! `POST /v1/chat/completions` and `POST /v1/messages`: from the request to the driver of its job.
//!
//! Both take the same way: key, body, model, bound, reserve; only then anything is dispatched. Until
//! the hold is granted all of it lives in the connection's own task, so that a client which leaves
//! gives up its place in the queue.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use seatbelt_schemas::{
    amount::TOKENS_PER_REQUEST_MAX,
    cap::CapStanding,
    command::Grant,
    event::OnShort,
    ids::{EndUserId, ModelId},
    meter::Meter,
    neuron::{
        HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
        HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    bounds::{Asked, Bound, ask_for_usage, write_chat_max},
    catalog::{ChosenNeuron, Route, Upstream},
    config::{HOLD_GRACE, KeyEntry, MaxField, OnDisconnect, UpstreamKind},
    drive::{Call, Face, Job, Limits, USAGE_EVENT_WAIT, drive},
    error::{ApiError, Case, Dialect, X_POSITION},
    gate::{Reservation, Want, ms},
    messages::{MessagesStream, to_chat},
    metrics::Stage,
    server::{RequestId, Shared},
    usage::Api,
};

/// A client may ask for its output maximum to be lowered to what fits: `clamp`, else `refuse`.
const X_ON_SHORT: &str = "x-seatbelt-on-short";
/// The output maximum of one choice, where it was lowered.
const X_CLAMPED: HeaderName = HeaderName::from_static("x-seatbelt-clamped");
const X_RESERVATION: HeaderName = HeaderName::from_static("x-seatbelt-reservation");
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a body that is refused is read all the same, so that the client gets to read why.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a neuron may take to count a prompt.
const TOKENIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer to a count.
const TOKENIZE_BYTES_MAX: usize = 64 * 1024;
const ANTHROPIC_VERSION: &str = "2023-06-01";

type Fields = Map<String, Value>;

/// `POST /v1/chat/completions`.
pub(crate) async fn chat_completions(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Response {
    answer(&shared, request, Dialect::OpenAi).await
}

/// `POST /v1/messages`.
pub(crate) async fn messages(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(&shared, request, Dialect::Anthropic).await
}

async fn answer(shared: &Arc<Shared>, request: Request, dialect: Dialect) -> Response {
    admit(shared, request, dialect)
        .await
        .unwrap_or_else(|error| {
            error.note();
            error.into_response(dialect)
        })
}

/// Lets a request through to its driver, or says why not.
async fn admit(
    shared: &Arc<Shared>,
    request: Request,
    dialect: Dialect,
) -> Result<Response, ApiError> {
    let permit = Arc::clone(&shared.slots)
        .try_acquire_owned()
        .map_err(|_| ApiError::busy("too many requests are in progress"))?;
    let (parts, body) = request.into_parts();
    let began = Instant::now();
    let caller = match shared.keyring.caller(&parts.headers) {
        Ok(caller) => caller,
        Err(error) => {
            discard(body, 0).await;
            return Err(error);
        }
    };
    shared.metrics.stage(Stage::Auth, began.elapsed());
    let body = read_body(body, shared.config.body_bytes).await?;
    let body = parse(&body)?;
    let id = parts
        .extensions
        .get::<RequestId>()
        .map(|id| id.0.clone())
        .unwrap_or_default();
    let plan = plan(shared, dialect, body, &id, caller.as_deref()).await?;
    let on_short = on_short(&parts.headers, caller.as_deref(), &plan.asked)?;
    let (reservation, grant) = match &caller {
        Some(caller) => {
            let want = want(caller, &plan, on_short)?;
            let (reservation, grant) = shared.gate.reserve(want).await?;
            (Some(reservation), Some(grant))
        }
        None => (None, None),
    };
    // from here on, no await before the driver has the hold
    let job = job(
        shared,
        dialect,
        plan,
        reservation,
        grant.as_ref(),
        &parts.headers,
        permit,
    );
    let (head, answered) = oneshot::channel();
    shared.tracker.spawn(drive(job, head));
    answered.await.unwrap_or_else(|_| {
        Err(ApiError::new(
            Case::Internal,
            "the request was lost inside the gateway",
        ))
    })
}

/// What will be done, once the hold is granted.
struct Plan {
    model: ModelId,
    /// As it will be forwarded, but for the output maximum.
    body: Fields,
    asked: Asked,
    bound: Bound,
    route: Route,
    api: Api,
    face: Face,
    answer_id: String,
}

async fn plan(
    shared: &Shared,
    dialect: Dialect,
    body: Fields,
    id: &str,
    caller: Option<&KeyEntry>,
) -> Result<Plan, ApiError> {
    let began = Instant::now();
    let model = model_name(&body)?;
    let route = shared.catalog.route(&model)?;
    let api = match &route {
        Route::Foreign(upstream, _) if upstream.kind == UpstreamKind::Anthropic => Api::Anthropic,
        _ => Api::OpenAi,
    };
    let mut body = body;
    let asked = match (dialect, api) {
        (Dialect::OpenAi, Api::OpenAi) => Asked::chat(&body)?,
        (Dialect::Anthropic, Api::Anthropic) => Asked::messages(&body)?,
        (Dialect::Anthropic, Api::OpenAi) => {
            body = to_chat(&body)?;
            Asked::chat(&body)?
        }
        (Dialect::OpenAi, Api::Anthropic) => {
            return Err(ApiError::invalid_field(
                "model",
                "is served in the Anthropic dialect alone: call POST /v1/messages",
            ));
        }
    };
    let mut asked = asked;
    if let Some(error) = asked.unbounded.take().filter(|_| caller.is_some()) {
        return Err(error);
    }
    let bound = match &route {
        Route::Foreign(_, model) => asked.by_bytes(model)?,
        Route::Neuron(neuron) => {
            let input_tokens = count(shared, neuron, &body).await?;
            asked.exactly(input_tokens, neuron.model.context, neuron.model.output)?
        }
    };
    let hide_usage = asked.stream && !asked.include_usage;
    if asked.stream && api == Api::OpenAi {
        ask_for_usage(&mut body);
    }
    let answer_id = format!("msg_{id}");
    let face = match (dialect, api) {
        (Dialect::Anthropic, Api::OpenAi) => {
            let exact = if matches!(route, Route::Neuron(_)) {
                bound.input_tokens
            } else {
                0
            };
            Face::Messages(MessagesStream::new(answer_id.clone(), model.clone(), exact))
        }
        _ => Face::Same {
            hide_usage: hide_usage && api == Api::OpenAi,
        },
    };
    shared.metrics.stage(Stage::Bound, began.elapsed());
    let model = ModelId::new(&model).map_err(|_| ApiError::model_not_found(&model))?;
    Ok(Plan {
        model,
        body,
        asked,
        bound,
        route,
        api,
        face,
        answer_id,
    })
}

/// The exact number of input tokens, by the model's own tokenizer.
async fn count(shared: &Shared, neuron: &ChosenNeuron, body: &Fields) -> Result<u64, ApiError> {
    #[derive(Deserialize)]
    struct Counted {
        input_tokens: u64,
    }
    let away = |log: String| {
        ApiError::no_upstream(
            &neuron.model.id,
            format!("neuron {} cannot count: {log}", neuron.neuron),
        )
    };
    let bytes = serde_json::to_vec(body).map_err(ApiError::invalid_body)?;
    let call = shared
        .client
        .post(neuron.tokenize_url.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .body(bytes)
        .send();
    let asked = async {
        let answer = call.await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let mut bytes = BytesMut::new();
        let mut answer = answer;
        while let Some(chunk) = answer.chunk().await.map_err(|error| error.to_string())? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > TOKENIZE_BYTES_MAX {
                return Err("its answer is too large".to_owned());
            }
        }
        Ok((status, bytes.freeze()))
    };
    let (status, bytes) = match timeout(TOKENIZE_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(away)?,
        Err(_) => return Err(away("no answer in time".to_owned())),
    };
    if status.is_client_error() {
        return Err(ApiError::passed_on(status, &bytes));
    }
    let counted = serde_json::from_slice::<Counted>(&bytes);
    match counted {
        Ok(counted) if status.is_success() && counted.input_tokens <= TOKENS_PER_REQUEST_MAX => {
            Ok(counted.input_tokens)
        }
        _ => Err(away(format!("it answered {status}"))),
    }
}

fn want(caller: &KeyEntry, plan: &Plan, on_short: OnShort) -> Result<Want, ApiError> {
    let output_tokens = plan.bound.output_tokens.saturating_mul(plan.asked.choices);
    if output_tokens > TOKENS_PER_REQUEST_MAX {
        return Err(ApiError::invalid_field(
            "n",
            "asks for more output than one request may have",
        ));
    }
    let end_user = plan.body.get("user").and_then(Value::as_str);
    Ok(Want {
        account: caller.account.clone(),
        key: caller.key.clone(),
        model: plan.model.clone(),
        end_user: end_user.and_then(|user| EndUserId::new(user).ok()),
        input_tokens: plan.bound.input_tokens,
        output_tokens,
        on_short,
        on_unknown: caller.on_unknown,
    })
}

/// The request's own word, else the key's. Several choices share one maximum that cannot be lowered
/// fairly: they are refused.
fn on_short(
    headers: &HeaderMap,
    caller: Option<&KeyEntry>,
    asked: &Asked,
) -> Result<OnShort, ApiError> {
    let policy = match headers.get(X_ON_SHORT).map(HeaderValue::as_bytes) {
        None => caller.map_or(OnShort::Refuse, |caller| caller.on_short),
        Some(b"refuse") => OnShort::Refuse,
        Some(b"clamp") => OnShort::Clamp,
        Some(_) => {
            return Err(ApiError::invalid_field(
                X_ON_SHORT,
                "must be 'refuse' or 'clamp'",
            ));
        }
    };
    Ok(if asked.choices > 1 {
        OnShort::Refuse
    } else {
        policy
    })
}

fn job(
    shared: &Arc<Shared>,
    dialect: Dialect,
    plan: Plan,
    reservation: Option<Reservation>,
    grant: Option<&Grant>,
    client_headers: &HeaderMap,
    permit: OwnedSemaphorePermit,
) -> Job {
    let now_ms = (shared.clock)();
    let limit = shared.config.request_timeout;
    let mut headers = HeaderMap::new();
    let mut max = plan.bound.output_tokens;
    if let Some(grant) = grant {
        if grant.clamped {
            max = (grant.hold.output_tokens / plan.asked.choices).max(1);
            headers.insert(X_CLAMPED, max.into());
        }
        grant_headers(grant, now_ms, &mut headers);
    }
    let mut body = plan.body;
    write_max(&mut body, max, &plan.route, plan.api);
    let mut call_headers = HeaderMap::new();
    call_headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if let Some(reservation) = &reservation
        && matches!(plan.route, Route::Neuron(_))
    {
        neuron_headers(reservation, &mut call_headers);
    }
    let wait = limit + USAGE_EVENT_WAIT;
    let usage_event = match (&plan.route, &reservation) {
        (Route::Neuron(_), Some(reservation)) => Some(shared.usage.usage(reservation.id, wait)),
        _ => None,
    };
    let drains = shared.config.on_disconnect == OnDisconnect::Drain;
    let (url, upstream, neuron, output_is_visible) = match plan.route {
        Route::Foreign(upstream, model) => {
            upstream_headers(&upstream, client_headers, &mut call_headers);
            (
                upstream.url.clone(),
                upstream.name.clone(),
                None,
                model.output_is_visible,
            )
        }
        Route::Neuron(neuron) => (
            neuron.chat_url.clone(),
            neuron.neuron.to_string(),
            Some(neuron),
            false,
        ),
    };
    let began = Instant::now();
    Job {
        shared: Arc::clone(shared),
        limits: Limits {
            ends_with_client: neuron.is_some() || !drains || reservation.is_none(),
            deadline: began + limit,
            cut: shared.cut.clone(),
        },
        reservation,
        call: Some(Call {
            url,
            headers: call_headers,
            body: serialize(&body),
        }),
        upstream,
        neuron,
        usage_event,
        api: plan.api,
        dialect,
        face: plan.face,
        answer_id: plan.answer_id,
        stream: plan.asked.stream,
        choices: plan.asked.choices,
        output_is_visible,
        began,
        headers,
        _permit: permit,
    }
}

fn serialize(body: &Fields) -> Bytes {
    let mut bytes = Vec::with_capacity(512);
    serde_json::to_writer(&mut bytes, body).expect("a JSON object is written to memory");
    bytes.into()
}

fn write_max(body: &mut Fields, max: u64, route: &Route, api: Api) {
    let field = match route {
        Route::Foreign(_, model) => model.max_field,
        Route::Neuron(_) => MaxField::MaxTokens,
    };
    match api {
        Api::OpenAi => write_chat_max(body, max, field),
        Api::Anthropic => {
            body.insert("max_tokens".to_owned(), json!(max));
        }
    }
}

/// What the neuron must know to hold the request to its reservation.
fn neuron_headers(reservation: &Reservation, headers: &mut HeaderMap) {
    let mut set = |name: &'static str, value: String| {
        let value = HeaderValue::try_from(value).expect("ids and numbers are valid header values");
        headers.insert(HeaderName::from_static(name), value);
    };
    set(HEADER_RESERVATION, reservation.id.to_string());
    set(HEADER_ACCOUNT, reservation.account.to_string());
    set(HEADER_KEY, reservation.key.to_string());
    set(
        HEADER_MAX_INPUT_TOKENS,
        reservation.hold.input_tokens.to_string(),
    );
    set(
        HEADER_MAX_OUTPUT_TOKENS,
        reservation.hold.output_tokens.to_string(),
    );
    set(
        HEADER_DEADLINE_MS,
        reservation
            .deadline_ms
            .saturating_sub(ms(HOLD_GRACE))
            .to_string(),
    );
}

/// The operator's key, never the client's; of the client's headers only what chooses an API version.
fn upstream_headers(upstream: &Upstream, client: &HeaderMap, headers: &mut HeaderMap) {
    let sensitive = |text: String| {
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let key = upstream.api_key.as_ref().map(|key| key.expose());
    match upstream.kind {
        UpstreamKind::OpenAi => {
            if let Some(value) = key.and_then(|key| sensitive(format!("Bearer {key}"))) {
                headers.insert(header::AUTHORIZATION, value);
            }
        }
        UpstreamKind::Anthropic => {
            if let Some(value) = key.and_then(|key| sensitive(key.to_owned())) {
                headers.insert(HeaderName::from_static("x-api-key"), value);
            }
            let version = HeaderName::from_static("anthropic-version");
            let default = HeaderValue::from_static(ANTHROPIC_VERSION);
            headers.insert(
                version.clone(),
                client.get(&version).cloned().unwrap_or(default),
            );
            let beta = HeaderName::from_static("anthropic-beta");
            for value in client.get_all(&beta) {
                headers.append(beta.clone(), value.clone());
            }
        }
    }
}

/// The reservation, its position, and the tightest caps in requests and tokens.
fn grant_headers(grant: &Grant, now_ms: u64, headers: &mut HeaderMap) {
    let id = HeaderValue::try_from(grant.reservation.to_string());
    headers.insert(
        X_RESERVATION,
        id.expect("a reservation id is a valid header value"),
    );
    headers.insert(X_POSITION, grant.position.0.into());
    let names = [
        (
            Meter::Requests,
            [
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ],
        ),
        (
            Meter::Tokens,
            [
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ],
        ),
    ];
    for (meter, [limit, remaining, reset]) in names {
        let caps = grant.caps.iter().filter(|cap| cap.meter == meter);
        let Some(cap) = caps.min_by_key(|cap| cap.available()) else {
            continue;
        };
        headers.insert(HeaderName::from_static(limit), cap.limit.into());
        headers.insert(HeaderName::from_static(remaining), cap.available().into());
        if let Some(text) = reset_text(cap, now_ms) {
            headers.insert(HeaderName::from_static(reset), text);
        }
    }
}

/// Time until a cap is whole again, as OpenAI writes it: `6m0s`.
fn reset_text(cap: &CapStanding, now_ms: u64) -> Option<HeaderValue> {
    let seconds = cap.resets_at_ms?.saturating_sub(now_ms).div_ceil(1000);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let text = match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    };
    HeaderValue::try_from(text).ok()
}

fn model_name(body: &Fields) -> Result<String, ApiError> {
    match body.get("model") {
        None | Some(Value::Null) => Err(ApiError::missing_model()),
        Some(Value::String(model)) if model.is_empty() => Err(ApiError::missing_model()),
        Some(Value::String(model)) => Ok(model.clone()),
        Some(_) => Err(ApiError::invalid_field("model", "must be a string")),
    }
}

fn parse(body: &[u8]) -> Result<Fields, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(body)) => Ok(body),
        Ok(_) => Err(ApiError::invalid_body("it must be a JSON object")),
        Err(error) => Err(ApiError::invalid_body(format_args!(
            "it is not JSON: {error}"
        ))),
    }
}

async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let until = Instant::now() + BODY_TIMEOUT;
    let late = || {
        ApiError::new(
            Case::BodyTimeout,
            "the request body did not arrive in time: send it faster",
        )
    };
    let mut chunks = body.into_data_stream();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = timeout_at(until, chunks.next()).await.map_err(|_| late())? {
        let chunk =
            chunk.map_err(|error| ApiError::invalid_body(format_args!("it broke off: {error}")))?;
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&chunk);
        }
        let read = first.len().max(all.len());
        if read > bytes_max {
            discard(Body::from_stream(chunks), read).await;
            return Err(ApiError::new(
                Case::BodyTooLarge,
                format!("the request body is larger than {bytes_max} bytes: send a smaller one"),
            ));
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads what a refused client still sends, within bounds: closing at once would reset the
/// connection before the client has read its answer.
async fn discard(body: Body, mut read: usize) {
    let mut chunks = body.into_data_stream();
    let _ = timeout(DISCARD_TIMEOUT, async {
        while let Some(Ok(chunk)) = chunks.next().await {
            read += chunk.len();
            if read > DISCARD_BYTES_MAX {
                break;
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{
        ids::{CapId, ReservationId},
        meter::Amounts,
        position::Position,
        scope::Scope,
        window::Window,
    };

    use super::*;

    fn cap(meter: Meter, limit: u64, spent: u64, resets_at_ms: Option<u64>) -> CapStanding {
        CapStanding {
            cap: CapId::new("c").unwrap(),
            scope: Scope::Account,
            meter,
            window: Window::Rolling { seconds: 60 },
            limit,
            spent,
            held: 5,
            resets_at_ms,
        }
    }

    #[test]
    fn the_tightest_cap_is_the_one_shown() {
        let grant = Grant {
            reservation: ReservationId::from_parts(1, 2),
            position: Position(9),
            hold: Amounts::request(1, 2, None),
            clamped: false,
            caps: vec![
                cap(Meter::Tokens, 1000, 0, None),
                cap(Meter::Tokens, 500, 100, Some(401_000)),
                cap(Meter::Cost, 1, 0, None),
            ],
        };
        let mut headers = HeaderMap::new();
        grant_headers(&grant, 1_000, &mut headers);
        let shown = |name: &str| {
            headers
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(shown("x-ratelimit-limit-tokens").as_deref(), Some("500"));
        assert_eq!(
            shown("x-ratelimit-remaining-tokens").as_deref(),
            Some("395")
        );
        assert_eq!(shown("x-ratelimit-reset-tokens").as_deref(), Some("6m40s"));
        assert_eq!(shown("x-ratelimit-limit-requests"), None);
        assert_eq!(shown("x-seatbelt-position").as_deref(), Some("9"));
    }

    #[test]
    fn a_body_that_is_no_object_is_not_parsed() {
        for odd in [
            "",
            "nonsense",
            "[]",
            "\"a\"",
            "{\"a\":",
            "{} x",
            "{\"a\":1e999}",
        ] {
            assert_eq!(
                parse(odd.as_bytes()).unwrap_err().code(),
                "invalid_body",
                "{odd}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
    }
}
