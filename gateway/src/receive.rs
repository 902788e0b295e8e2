//! What a client sent: whose key it carries, its body, a place for it, and what its headers ask for.
//!
//! Nothing is known yet of models, caps or upstreams. A request that is refused here has cost nothing,
//! and its body is read away so that the client gets to read why.

use std::{num::NonZero, sync::Arc, thread::available_parallelism, time::Duration};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue},
};
use seatbelt_dialects::{Exact, Fields};
use seatbelt_schemas::{
    event::OnShort,
    ids::{EndUserId, RunId, TeamId},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::ms,
    config::{BUDGET_WAIT_MAX, GatewayConfig, KeyEntry},
    error::ApiError,
    metrics::{Metrics, Stage},
};

pub(crate) mod aside;
pub(crate) mod body;
pub(crate) mod caller;
mod encoding;
pub(crate) mod run_secret;
mod scan;
pub(crate) mod shares;

use aside::{Aside, Benches};
use body::{Bodies, see_off};
use caller::Keyring;
use encoding::Encoding;
use shares::{Share, Shares};

/// A client may ask for its output maximum to be lowered to what fits: `clamp`, else `refuse`. This
/// and the next four are the only `x-seatbelt-*` headers of a client that are read: they say how to decide
/// and what the request is part of, not who pays for it.
const X_ON_SHORT: &str = "x-seatbelt-on-short";
/// The agent run that the request belongs to. Naming one can only add limits, or spend what the
/// account has set aside for it: the caps of the caller's own key apply in any case.
pub(crate) const X_RUN: &str = "x-seatbelt-run";
/// The caller's own end user, instead of the one that the body names: caps of that one apply too.
const X_USER: &str = "x-seatbelt-user";
/// The team that it is for, of those that its key may name: caps of that one apply too.
pub(crate) const X_TEAM: &str = "x-seatbelt-team";
/// How long the request may wait for open holds to resolve, ms: its caller's own patience instead of the
/// configured one.
const X_WAIT: &str = "x-seatbelt-wait-ms";
/// A request under it is charged once, however often it is sent.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The id of a request, in its answer and in the log.
#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// A request that may be planned.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) id: String,
    pub(crate) caller: Caller,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Fields,
    /// Of its numbers that no machine word holds.
    pub(crate) exact: Option<Exact>,
    /// Its place among the requests in progress.
    pub(crate) place: Share,
    /// Where the work on the body is done.
    pub(crate) aside: Aside,
    /// What its body takes of memory.
    pub(crate) room: Share,
}

/// Who asks, and how the request is to be decided.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// None for a request that is not metered.
    pub(crate) key: Option<Arc<KeyEntry>>,
    pub(crate) run: Option<RunId>,
    /// Its team, where a header names one.
    pub(crate) team: Option<TeamId>,
    /// Its end user, where a header names one.
    pub(crate) end_user: Option<EndUserId>,
    /// Where it or its key says so.
    pub(crate) on_short: Option<OnShort>,
    /// Its own patience for open holds, where it says one.
    pub(crate) wait: Option<Duration>,
}

/// Takes requests in, so many at a time.
pub(crate) struct Receiver {
    keyring: Arc<Keyring>,
    places: Arc<Shares>,
    bodies: Bodies,
    benches: Arc<Benches>,
    metrics: Arc<Metrics>,
    /// The gateway waits for no body any more.
    cut: CancellationToken,
}

impl Receiver {
    pub(crate) fn new(
        keyring: Arc<Keyring>,
        config: &GatewayConfig,
        metrics: Arc<Metrics>,
        cut: CancellationToken,
    ) -> Self {
        let (what, whole) = ("requests in progress", config.requests);
        Self {
            keyring,
            places: Shares::new(what, whole, config.share(whole)),
            bodies: Bodies::new(config),
            benches: Benches::new(available_parallelism().map_or(1, NonZero::get)),
            metrics,
            cut,
        }
    }

    pub(crate) async fn receive(&self, request: Request) -> Result<Received, ApiError> {
        let (parts, body) = request.into_parts();
        let began = Instant::now();
        let key = match self.keyring.caller(&parts.headers) {
            Ok(key) => key,
            Err(error) => {
                see_off(&parts.headers, body).await;
                return Err(error);
            }
        };
        self.metrics.stage(Stage::Auth, began.elapsed());
        let encoding = match Encoding::of(&parts.headers) {
            Ok(encoding) => encoding,
            Err(error) => {
                see_off(&parts.headers, body).await;
                return Err(error);
            }
        };
        let account = key.as_ref().map(|key| &key.account);
        let (body, room) = tokio::select! {
            biased;
            read = self.bodies.read(body, account) => read?,
            () = self.cut.cancelled() => return Err(ApiError::busy("the gateway is stopping")),
        };
        let aside = Aside::of(&body, &self.benches, account);
        // only now: a client that is slow with its body keeps nobody out
        let place = self.places.take(account, 1)?;
        let aside = match encoding {
            Encoding::Identity => aside,
            // how much there is to do shows only then
            Encoding::Gzip => aside.unpacking(),
        };
        let (body, exact, room) = self
            .bodies
            .parse(body, encoding, aside.clone(), room)
            .await?;
        let id = parts.extensions.get::<RequestId>();
        Ok(Received {
            id: id.map(|id| id.0.clone()).unwrap_or_default(),
            caller: Caller {
                on_short: on_short(&parts.headers, key.as_deref())?,
                run: run(&parts.headers, key.as_deref())?,
                team: team(&parts.headers, key.as_deref())?,
                end_user: end_user(&parts.headers)?,
                wait: wait(&parts.headers)?,
                key,
            },
            headers: parts.headers,
            body,
            exact,
            place,
            aside,
            room,
        })
    }
}

/// The request's own word, else the key's.
fn on_short(headers: &HeaderMap, caller: Option<&KeyEntry>) -> Result<Option<OnShort>, ApiError> {
    match headers.get(X_ON_SHORT).map(HeaderValue::as_bytes) {
        None => Ok(caller.and_then(|caller| caller.on_short)),
        Some(b"refuse") => Ok(Some(OnShort::Refuse)),
        Some(b"clamp") => Ok(Some(OnShort::Clamp)),
        Some(_) => Err(ApiError::invalid_field(
            X_ON_SHORT,
            "must be 'refuse' or 'clamp'",
        )),
    }
}

/// The run that a client names, or that its key was handed out for.
fn run(headers: &HeaderMap, key: Option<&KeyEntry>) -> Result<Option<RunId>, ApiError> {
    let problem = "must be a run id: 1 to 64 characters of A-Z a-z 0-9 _ -";
    let own = key.and_then(|key| key.within.as_ref());
    let own = own.map(|within| within.run.clone());
    let Some(value) = headers.get(X_RUN) else {
        return Ok(own);
    };
    let named = value.to_str().ok().and_then(|text| RunId::new(text).ok());
    let named = named.ok_or_else(|| ApiError::invalid_field(X_RUN, problem))?;
    if own.is_some_and(|own| own != named) {
        let problem =
            "names another run than the one that the key was handed out for: leave it out";
        return Err(ApiError::invalid_field(X_RUN, problem));
    }
    Ok(Some(named))
}

/// The team that a client names: one that its key may, since each takes of what that team has left.
fn team(headers: &HeaderMap, key: Option<&KeyEntry>) -> Result<Option<TeamId>, ApiError> {
    let Some(value) = headers.get(X_TEAM) else {
        return Ok(None);
    };
    let named = value.to_str().ok().and_then(|text| TeamId::new(text).ok());
    let named = named.ok_or_else(|| {
        let problem = "must be a team id: 1 to 64 characters of A-Z a-z 0-9 _ -";
        ApiError::invalid_field(X_TEAM, problem)
    })?;
    match key {
        Some(key) if key.teams.contains(&named) => Ok(Some(named)),
        _ => Err(ApiError::team_not_allowed(&named)),
    }
}

/// The end user that a client names beside the body.
fn end_user(headers: &HeaderMap) -> Result<Option<EndUserId>, ApiError> {
    let Some(value) = headers.get(X_USER) else {
        return Ok(None);
    };
    let user = value
        .to_str()
        .ok()
        .and_then(|text| EndUserId::new(text).ok());
    user.map(Some).ok_or_else(|| {
        let problem = "must be an id of 1 to 256 characters of ASCII without control characters";
        ApiError::invalid_field(X_USER, problem)
    })
}

/// How long a client says that it waits for room.
fn wait(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(X_WAIT) else {
        return Ok(None);
    };
    let most = ms(BUDGET_WAIT_MAX);
    let told = value.to_str().ok().and_then(|text| text.parse().ok());
    let wait = told
        .map(Duration::from_millis)
        .filter(|wait| *wait <= BUDGET_WAIT_MAX);
    wait.map(Some).ok_or_else(|| {
        ApiError::invalid_field(X_WAIT, &format!("must be a whole number from 0 to {most}"))
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use seatbelt_schemas::{
        ids::{AccountId, KeyId},
        neuron::signature::NeuronSecret,
    };
    use tokio::sync::watch;

    use super::*;
    use crate::{
        config::{KeySecret, KeyTable},
        receive::run_secret::RunSecrets,
    };

    fn receiver(requests: usize) -> Receiver {
        let entry = KeyEntry {
            on_short: Some(OnShort::Clamp),
            teams: ["blue", "red"]
                .map(|team| TeamId::new(team).unwrap())
                .to_vec(),
            ..KeyEntry::new(
                KeySecret::hash("sk-good"),
                AccountId::new("a").unwrap(),
                KeyId::new("k").unwrap(),
            )
        };
        let keys = watch::channel(KeyTable::new(vec![entry]).unwrap()).1;
        let of_runs = RunSecrets::new(NeuronSecret::new([7; 32]), Arc::new(|| 0));
        let keyring = Arc::new(Keyring::new(keys, true, of_runs));
        let config = GatewayConfig {
            requests,
            body_bytes: 64,
            ..GatewayConfig::default()
        };
        Receiver::new(
            keyring,
            &config,
            Arc::new(Metrics::new(true)),
            CancellationToken::new(),
        )
    }

    fn request(headers: &[(&str, &str)], body: &'static str) -> Request {
        let mut request = Request::builder().header("authorization", "Bearer sk-good");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::from(body)).unwrap()
    }

    #[tokio::test]
    async fn a_team_is_one_that_the_key_may_name() {
        let receiver = receiver(1);
        for team in ["blue", "red"] {
            let asked = [(X_TEAM, team)];
            let received = receiver.receive(request(&asked, "{}")).await.unwrap();
            assert_eq!(received.caller.team.unwrap().as_str(), team);
        }
        assert_eq!(code(&[(X_TEAM, "green")], "{}").await, "team_not_allowed");
        assert_eq!(code(&[(X_TEAM, "")], "{}").await, "invalid_body");
        assert_eq!(code(&[(X_TEAM, "b lue")], "{}").await, "invalid_body");
    }

    async fn code(headers: &[(&str, &str)], body: &'static str) -> &'static str {
        let received = receiver(1).receive(request(headers, body)).await;
        received.unwrap_err().code()
    }

    #[tokio::test]
    async fn a_requests_own_word_goes_before_its_keys() {
        let receiver = receiver(1);
        let quiet = receiver.receive(request(&[], "{}")).await.unwrap();
        assert_eq!(quiet.caller.on_short, Some(OnShort::Clamp));
        assert_eq!(quiet.caller.run, None);
        assert_eq!(quiet.caller.wait, None);
        drop(quiet);
        let asked = [
            (X_ON_SHORT, "refuse"),
            (X_RUN, "run-1"),
            (X_USER, "u@example"),
            (X_WAIT, "60000"),
        ];
        let asked = receiver.receive(request(&asked, "{}")).await.unwrap();
        assert_eq!(asked.caller.on_short, Some(OnShort::Refuse));
        assert_eq!(asked.caller.wait, Some(Duration::from_secs(60)));
        assert_eq!(asked.caller.run.unwrap().as_str(), "run-1");
        assert_eq!(asked.caller.end_user.unwrap().as_str(), "u@example");
    }

    #[tokio::test]
    async fn a_header_that_is_read_is_never_guessed_at() {
        assert_eq!(code(&[(X_ON_SHORT, "CLAMP")], "{}").await, "invalid_body");
        assert_eq!(code(&[(X_RUN, "no run")], "{}").await, "invalid_body");
        assert_eq!(code(&[(X_RUN, "")], "{}").await, "invalid_body");
        assert_eq!(code(&[(X_USER, "")], "{}").await, "invalid_body");
        assert_eq!(code(&[(X_USER, "ü")], "{}").await, "invalid_body");
        for odd in ["-1", "1.5", "", "soon", "60001", "99999999999999999999"] {
            assert_eq!(code(&[(X_WAIT, odd)], "{}").await, "invalid_body", "{odd}");
        }
    }

    #[tokio::test]
    async fn a_body_above_its_bound_is_not_kept() {
        let long = concat!(
            "{\"a\":\"0123456789012345678901234567890123456789",
            "0123456789012345678901234567890123456789\"}"
        );
        assert_eq!(code(&[], long).await, "request_too_large");
    }

    #[tokio::test]
    async fn a_request_above_the_places_is_turned_away_and_a_place_comes_back_with_its_request() {
        let receiver = receiver(1);
        let first = receiver.receive(request(&[], "{}")).await.unwrap();
        let second = receiver.receive(request(&[], "{}")).await;
        assert_eq!(second.unwrap_err().code(), "service_unavailable");
        drop(first);
        assert!(receiver.receive(request(&[], "{}")).await.is_ok());
    }

    #[tokio::test]
    async fn a_wrong_key_takes_no_place() {
        let receiver = receiver(1);
        let mut wrong = request(&[], "{}");
        let bad = HeaderValue::from_static("Bearer sk-bad");
        wrong.headers_mut().insert("authorization", bad);
        let refused = receiver.receive(wrong).await.unwrap_err();
        assert_eq!(refused.code(), "invalid_api_key");
        assert!(receiver.receive(request(&[], "{}")).await.is_ok());
    }
}
