//! A refusal of the ledger in the client's words: what was asked, what there is, what to do.

use axum::http::HeaderValue;
use seatbelt_schemas::{
    amount::usd_text, command::Refusal, event::RefusalReason, meter::Meter, scope::Scope,
    time::rfc3339_ms,
};
use serde_json::{Map, Value, json};

use super::{ApiError, Case, X_POSITION, X_REFUSED_BY, ratelimit};

impl ApiError {
    /// A refusal of the ledger, in the client's words.
    pub(crate) fn refused(refusal: &Refusal, now_ms: u64) -> Self {
        let reason = refusal.reason;
        let resets = refusal.cap.window.resets();
        let case = match reason {
            RefusalReason::Unpriced => Case::CostUnbounded,
            RefusalReason::Held if runs_hold_it(refusal) => Case::HeldByRuns,
            RefusalReason::Held => Case::Held,
            _ if !resets => Case::BalanceSpent,
            RefusalReason::Spent => Case::WindowSpent,
            RefusalReason::Unsatisfiable => Case::WindowUnsatisfiable,
        };
        let now_ms = now_ms.max(refusal.at_ms);
        let until = |at_ms: u64| at_ms.saturating_sub(now_ms).div_ceil(1000).max(1);
        let window_s = refusal
            .cap
            .window
            .length_ms(now_ms)
            .map(|ms| ms.div_ceil(1000));
        let retry_after_s = match case {
            Case::Held => Some(1),
            Case::WindowSpent | Case::WindowUnsatisfiable => {
                refusal.resets_at_ms.map(until).or(window_s)
            }
            _ => None,
        };
        let mut error = Self::new(case, refusal_message(case, refusal, retry_after_s));
        error.retry_after_s = retry_after_s;
        error.extras = refusal_extras(refusal);
        error.headers.insert(X_POSITION, refusal.position.0.into());
        let by_cap = HeaderValue::from_static("cap");
        error.headers.insert(X_REFUSED_BY, by_cap);
        let caps = std::slice::from_ref(&refusal.cap);
        ratelimit::show(caps, now_ms, &mut error.headers);
        error
    }
}

fn refusal_extras(refusal: &Refusal) -> Map<String, Value> {
    let cap = &refusal.cap;
    let extras = json!({
        "reason": refusal.reason.as_str(),
        "cap": cap.cap,
        "scope": cap.scope.kind(),
        "meter": cap.meter,
        "limit": cap.limit,
        "spent": cap.spent,
        "held": cap.held,
        "requested": refusal.requested,
        "resets_at": refusal.resets_at_ms.map(rfc3339_ms),
    });
    match extras {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// An amount with its unit, for people.
fn amount(meter: Meter, value: u64) -> String {
    match meter {
        Meter::Cost => format!("{} USD", usd_text(value)),
        Meter::Concurrency => counted(value, "open request"),
        Meter::Requests => counted(value, "request"),
        Meter::Tokens => counted(value, "token"),
        Meter::InputTokens => counted(value, "input token"),
        Meter::OutputTokens => counted(value, "output token"),
    }
}

fn counted(value: u64, what: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{value} {what}{plural}")
}

/// Whether it would not fit either if no request were in progress: runs hold too much, for as long as they
/// are open.
fn runs_hold_it(refusal: &Refusal) -> bool {
    let cap = &refusal.cap;
    let room = cap.limit.saturating_sub(cap.spent);
    // no more than the decision met, for more may have been opened since
    let by_runs = refusal.held_by_runs.min(cap.held);
    by_runs > 0 && refusal.requested > room.saturating_sub(by_runs)
}

/// Whether a smaller output could make a request fit, as far as the refusal tells.
fn may_fit_smaller(refusal: &Refusal) -> bool {
    let cap = &refusal.cap;
    let counts_output = matches!(cap.meter, Meter::Tokens | Meter::OutputTokens | Meter::Cost);
    counts_output && cap.limit.saturating_sub(cap.spent) > 0
}

fn refusal_message(case: Case, refusal: &Refusal, retry_after_s: Option<u64>) -> String {
    let cap = &refusal.cap;
    if case == Case::CostUnbounded {
        return format!(
            "cap '{}' of {} counts money and this model has no price: use another model, or have its price set",
            cap.cap, cap.scope
        );
    }
    let of = |value| amount(cap.meter, value);
    let numbers = format!(
        "the request needs up to {}; cap '{}' of {} allows {}, of which {} spent and {} held",
        of(refusal.requested),
        cap.cap,
        cap.scope,
        of(cap.limit),
        of(cap.spent),
        of(cap.held),
    );
    let seconds = retry_after_s.unwrap_or(1);
    let smaller = may_fit_smaller(refusal);
    let remedy = match case {
        Case::BalanceSpent if matches!(cap.scope, Scope::Run(_)) => {
            "close runs inside it that are done, or ask for less, or open another run".to_owned()
        }
        Case::BalanceSpent if smaller => {
            "it does not refill by itself: ask for a smaller maximum, or have the limit raised"
                .to_owned()
        }
        Case::BalanceSpent => "it does not refill by itself: have the limit raised".to_owned(),
        Case::WindowUnsatisfiable if smaller => {
            "it can never fit: ask for a smaller maximum".to_owned()
        }
        Case::WindowUnsatisfiable => "it can never fit: have the limit raised".to_owned(),
        Case::HeldByRuns => {
            "open runs hold the rest: it comes back as they are closed or their time is up"
                .to_owned()
        }
        Case::Held => "requests in progress hold the rest: try again in 1 s".to_owned(),
        _ if smaller => format!(
            "enough of it frees up in {seconds} s: try again then, or ask for a smaller maximum"
        ),
        _ => format!("enough of it frees up in {seconds} s: try again then"),
    };
    format!("{numbers}; {remedy}")
}
