//! Each row of the table, and each refusal, as a client reads it.

use seatbelt_schemas::{
    cap::CapStanding,
    command::Refusal,
    event::RefusalReason,
    ids::{CapId, KeyId},
    meter::{Amounts, Meter},
    position::Position,
    scope::Scope,
    window::Window,
};

use serde_json::json;

use super::*;

const NOW: u64 = 1_700_000_000_000;

fn refusal(reason: RefusalReason, window: Window, resets_at_ms: Option<u64>) -> Refusal {
    Refusal {
        position: Position(7),
        at_ms: NOW,
        reason,
        cap: CapStanding {
            cap: CapId::new("key/k/tokens/x").unwrap(),
            scope: Scope::Key(KeyId::new("k").unwrap()),
            meter: Meter::Tokens,
            window,
            limit: 100,
            spent: 60,
            held: 10,
            resets_at_ms: None,
        },
        requested: 50,
        resets_at_ms,
        held_by_runs: 0,
    }
}

/// Status, type, code, `Retry-After` and `x-should-retry`, with `-` for what is not sent.
fn shown(error: ApiError) -> String {
    let body = error.envelope(Dialect::OpenAi);
    let response = error.into_response(Dialect::OpenAi);
    let header = |name: &str| {
        let value = response.headers().get(name);
        value.map_or("-", |value| value.to_str().unwrap())
    };
    format!(
        "{} {} {} {} {}",
        response.status().as_u16(),
        body["error"]["type"].as_str().unwrap(),
        body["error"]["code"].as_str().unwrap(),
        header("retry-after"),
        header("x-should-retry"),
    )
}

#[track_caller]
fn check(error: ApiError, expected: &str) {
    assert_eq!(shown(error), expected);
}

#[test]
#[rustfmt::skip] // a table: one line each
fn refusals_follow_the_table() {
    let rolling = Window::Rolling { seconds: 3600 };
    let refused = |reason, window, resets| ApiError::refused(&refusal(reason, window, resets), NOW);
    let soon = Some(NOW + 1500);
    check(refused(RefusalReason::Spent, Window::Balance, None), "429 insufficient_quota insufficient_quota - false");
    check(refused(RefusalReason::Spent, rolling, soon), "429 rate_limit_error rate_limit_exceeded 2 true");
    check(refused(RefusalReason::Spent, rolling, Some(NOW + 61_000)), "429 rate_limit_error rate_limit_exceeded 61 false");
    check(refused(RefusalReason::Spent, rolling, Some(NOW - 5)), "429 rate_limit_error rate_limit_exceeded 1 true");
    check(refused(RefusalReason::Unsatisfiable, rolling, Some(NOW + 3_600_000)), "429 rate_limit_error rate_limit_exceeded 3600 false");
    check(refused(RefusalReason::Unsatisfiable, rolling, None), "429 rate_limit_error rate_limit_exceeded 3600 false");
    check(refused(RefusalReason::Held, rolling, None), "429 rate_limit_error rate_limit_exceeded 1 true");
    check(refused(RefusalReason::Held, Window::Balance, None), "429 rate_limit_error rate_limit_exceeded 1 true");
    check(refused(RefusalReason::Unpriced, Window::Balance, None), "400 invalid_request_error cost_unbounded - false");
}

#[test]
#[rustfmt::skip] // a table: one line each
fn all_other_errors_follow_the_table() {
    let model = ModelId::new("m").unwrap();
    check(ApiError::invalid_key(), "401 invalid_request_error invalid_api_key - false");
    check(ApiError::model_not_found("x"), "404 invalid_request_error model_not_found - false");
    check(ApiError::no_upstream(&model, ""), "503 api_error service_unavailable 2 true");
    check(ApiError::busy("full"), "503 api_error service_unavailable 1 true");
    check(ApiError::ledger_unavailable(""), "503 api_error ledger_unavailable 2 true");
    check(ApiError::not_recorded(""), "503 api_error ledger_unavailable 2 true");
    check(ApiError::context_exceeded(9, 8), "400 invalid_request_error context_length_exceeded - false");
    check(ApiError::unbounded("a", "b"), "400 invalid_request_error cost_unbounded - false");
    check(ApiError::upstream_unreachable("u", ""), "502 api_error upstream_connection_error - -");
    check(ApiError::upstream_gave_none("u", ""), "502 api_error upstream_connection_error - -");
    check(ApiError::upstream_broke("u", ""), "502 api_error upstream_connection_error - -");
    check(ApiError::upstream_timeout("u"), "504 api_error upstream_timeout - false");
    check(ApiError::invalid_body("x"), "400 invalid_request_error invalid_body - false");
    check(ApiError::missing_model(), "400 invalid_request_error missing_model_field - false");
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
    check(ApiError::idempotency_key_of_another(), "422 invalid_request_error idempotency_key_reused - false");
    check(ApiError::request_in_progress(id), "409 invalid_request_error request_in_progress 1 true");
    check(ApiError::request_answered(id, Position(7), &Amounts::zero()), "409 invalid_request_error request_answered - false");
    check(ApiError::team_not_allowed(&"t".parse().unwrap()), "403 invalid_request_error team_not_allowed - false");
    check(ApiError::too_many_first_uses(1), "400 invalid_request_error too_many_idempotency_keys - false");
    check(ApiError::first_uses_away(""), "503 api_error service_unavailable 1 true");
    check(ApiError::new(Case::BodyTooLarge, ""), "413 invalid_request_error request_too_large - false");
    check(ApiError::new(Case::BodyTimeout, ""), "408 invalid_request_error request_timeout - -");
    check(ApiError::new(Case::RouteNotFound, ""), "404 invalid_request_error route_not_found - false");
    check(ApiError::route_not_served("/x", "y"), "404 invalid_request_error route_not_served - false");
    check(ApiError::new(Case::MethodNotAllowed, ""), "405 invalid_request_error method_not_allowed - false");
    check(ApiError::new(Case::Internal, ""), "500 api_error internal_error - -");
}

#[test]
fn what_no_retry_can_cure_says_so_and_nothing_else_does() {
    for case in Case::ALL {
        let response = ApiError::new(case, "").into_response(Dialect::OpenAi);
        let retry = response.headers().get(X_SHOULD_RETRY);
        let retry = retry.map(|value| value.to_str().unwrap());
        let expected = match (response.status().as_u16(), case) {
            (
                429,
                Case::BalanceSpent
                | Case::WindowUnsatisfiable
                | Case::TooManyRuns
                | Case::HeldByRuns,
            ) => Some("false"),
            (429 | 503, _) | (409, Case::RequestInProgress) => Some("true"),
            (504, _) => Some("false"), // it was worked on for as long as a request may take
            (408 | 500 | 502, _) => None,
            _ => Some("false"),
        };
        assert_eq!(retry, expected, "{case:?}");
    }
    for status in [400, 413, 415, 422, 429, 500] {
        let status = StatusCode::from_u16(status).unwrap();
        let said = json!({"error": {"message": "no"}}).to_string();
        let neurons = ApiError::passed_on(status, said.as_bytes());
        let lost = ApiError::upstream_error_lost("u", status, HeaderMap::new());
        for error in [neurons, lost] {
            let response = error.into_response(Dialect::Anthropic);
            assert_eq!(response.status(), status);
            let is_final = status.is_client_error() && status.as_u16() != 429;
            let retry = response.headers().get(X_SHOULD_RETRY);
            assert_eq!(
                retry.map(HeaderValue::as_bytes),
                is_final.then_some(b"false".as_slice())
            );
        }
    }
}

#[test]
fn a_smaller_maximum_is_advised_only_where_it_may_help() {
    let message = |meter, spent, window| {
        let mut refusal = refusal(RefusalReason::Spent, window, Some(NOW));
        (refusal.cap.meter, refusal.cap.spent) = (meter, spent);
        refusal.requested = 1;
        let error = ApiError::refused(&refusal, NOW).envelope(Dialect::OpenAi);
        error["error"]["message"].as_str().unwrap().to_owned()
    };
    let rolling = Window::Rolling { seconds: 60 };
    for window in [Window::Balance, rolling] {
        assert!(message(Meter::Tokens, 60, window).contains("a smaller maximum"));
        for none_fits in [
            message(Meter::Tokens, 100, window),
            message(Meter::Requests, 60, window),
            message(Meter::Concurrency, 60, window),
            message(Meter::InputTokens, 60, window),
        ] {
            assert!(!none_fits.contains("smaller"), "{none_fits}");
        }
    }
    let one = message(Meter::Requests, 60, rolling);
    assert!(
        one.contains("up to 1 request;") && one.contains("60 requests spent"),
        "{one}"
    );
}

#[test]
fn what_runs_hold_is_not_said_to_come_back_at_once() {
    let told = |held_by_runs, requested| {
        let refusal = Refusal {
            held_by_runs,
            requested,
            ..refusal(RefusalReason::Held, Window::Balance, None)
        };
        let error = ApiError::refused(&refusal, NOW);
        let message = error.envelope(Dialect::OpenAi)["error"]["message"].to_string();
        (message.contains("open runs hold"), shown(error))
    };
    let soon = "429 rate_limit_error rate_limit_exceeded 1 true".to_owned();
    let long = "429 rate_limit_error rate_limit_exceeded - false".to_owned();
    // 40 are not spent, and 10 of these held
    assert_eq!(told(0, 31), (false, soon.clone()));
    assert_eq!(
        told(9, 31),
        (false, soon.clone()),
        "the tenth is a request's"
    );
    assert_eq!(told(10, 31), (true, long.clone()));
    assert_eq!(told(500, 31), (true, long), "more runs since");
    assert_eq!(told(500, 30), (false, soon), "one ended since");
}

#[test]
fn an_error_has_the_type_that_its_dialect_goes_by() {
    let kind = |error: ApiError, dialect| error.envelope(dialect)["error"]["type"].clone();
    let key = || ApiError::invalid_key();
    assert_eq!(kind(key(), Dialect::OpenAi), "invalid_request_error");
    assert_eq!(kind(key(), Dialect::Anthropic), "authentication_error");
    let model = ApiError::model_not_found("x");
    assert_eq!(kind(model, Dialect::Anthropic), "not_found_error");
    let large = ApiError::new(Case::BodyTooLarge, "");
    assert_eq!(kind(large, Dialect::Anthropic), "request_too_large");
    let field = ApiError::invalid_field("a", "b");
    assert_eq!(kind(field, Dialect::Anthropic), "invalid_request_error");
}

#[test]
fn a_ledger_that_says_no_is_told_apart_from_one_that_says_nothing() {
    let key = KeyId::new("k").unwrap();
    let status = |error: CommandError| ApiError::from_command(&error).status().as_u16();
    assert_eq!(status(CommandError::KeyRevoked { key: key.clone() }), 401);
    assert_eq!(status(CommandError::UnknownKey { key }), 401);
    assert_eq!(status(CommandError::unavailable("away")), 503);
    assert_eq!(status(CommandError::invalid("odd")), 400);
    let full = ApiError::from_command(&CommandError::TooManyRuns { open: 1000 });
    let told = full.envelope(Dialect::OpenAi)["error"]["message"].to_string();
    assert!(told.contains("1000 runs open"), "{told}");
    let expected = "429 rate_limit_error too_many_runs - false";
    check(full, expected);
}

#[test]
fn a_refusal_carries_its_numbers_in_both_dialects() {
    let rolling = Window::Rolling { seconds: 60 };
    let error = ApiError::refused(&refusal(RefusalReason::Spent, rolling, Some(NOW)), NOW);
    let openai = error.envelope(Dialect::OpenAi);
    assert_eq!(
        openai["error"],
        json!({
            "message": "the request needs up to 50 tokens; cap 'key/k/tokens/x' of key k allows 100 tokens, of which 60 tokens spent and 10 tokens held; enough of it frees up in 1 s: try again then, or ask for a smaller maximum",
            "type": "rate_limit_error", "code": "rate_limit_exceeded", "param": null,
            "reason": "spent", "cap": "key/k/tokens/x", "scope": "key", "meter": "tokens",
            "limit": 100, "spent": 60, "held": 10, "requested": 50, "resets_at": "2023-11-14T22:13:20.000Z",
        })
    );
    let anthropic = error.envelope(Dialect::Anthropic);
    assert_eq!(anthropic["type"], "error");
    assert_eq!(anthropic["error"]["type"], "rate_limit_error");
    assert_eq!(anthropic["error"]["requested"], 50);
}
