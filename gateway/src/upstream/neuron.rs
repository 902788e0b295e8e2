//! What a neuron is told besides the body, so that it holds the request to its reservation, and the
//! signature without which it serves nobody.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use seatbelt_schemas::{
    ids::{AccountId, KeyId, NeuronId, ReservationId},
    neuron::{
        HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_GROWS_TO, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
        HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION, HEADER_UNUSED,
        signature::{BodyHash, Call, HEADER_SIGNATURE, NeuronSecret},
    },
};

use super::standing::Fault;
use crate::metrics::NothingDone;

/// What a request may use at most.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) reservation: ReservationId,
    pub(crate) account: &'a AccountId,
    pub(crate) key: &'a KeyId,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    /// What of output may come to be held while it runs.
    pub(crate) grows_to: Option<u64>,
}

impl Held<'_> {
    fn write(&self, headers: &mut HeaderMap) {
        set(headers, HEADER_RESERVATION, self.reservation.to_string());
        set(headers, HEADER_ACCOUNT, self.account.to_string());
        set(headers, HEADER_KEY, self.key.to_string());
        let (input, output) = (self.input_tokens, self.output_tokens);
        set(headers, HEADER_MAX_INPUT_TOKENS, input.to_string());
        set(headers, HEADER_MAX_OUTPUT_TOKENS, output.to_string());
        if let Some(most) = self.grows_to {
            set(headers, HEADER_GROWS_TO, most.to_string());
        }
    }
}

/// With what a neuron is called.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) secret: &'a NeuronSecret,
    /// None for a request that is not metered, and for a count.
    pub(crate) held: Option<Held<'a>>,
    /// Unix ms, when it is worth nothing any more; earlier than the end of the hold, which waits for the
    /// settle.
    pub(crate) deadline_ms: u64,
}

impl Pass<'_> {
    /// Writes the headers of a POST to `path` of `neuron`.
    pub(super) fn write(
        &self,
        neuron: &NeuronId,
        path: &'static str,
        body: &[u8],
        headers: &mut HeaderMap,
    ) {
        if let Some(held) = &self.held {
            held.write(headers);
        }
        set(headers, HEADER_DEADLINE_MS, self.deadline_ms.to_string());
        let told = |name| headers.get(name).map(HeaderValue::as_bytes);
        let call = Call::new(neuron, "POST", path, told);
        let signature = self.secret.sign(&call, &BodyHash::of(body));
        set(headers, HEADER_SIGNATURE, signature);
    }
}

/// How a neuron says that it did nothing for a request, so that its reservation may be used elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// It cannot take it now: it is full, or stops.
    Busy,
    /// Why it would take none.
    Fault(Fault),
}

impl Undone {
    /// By its answer. Older neurons turn a call away with a status alone: what is refused with these is so before
    /// anybody looked at it.
    pub(crate) fn by(answer: &reqwest::Response) -> Option<Self> {
        let told = answer.headers().contains_key(HEADER_UNUSED);
        match answer.status() {
            status if status.is_success() => None,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                Some(Self::Fault(Fault::NotThere))
            }
            StatusCode::UNAUTHORIZED => Some(Self::Fault(Fault::TurnsUsAway)),
            StatusCode::SERVICE_UNAVAILABLE if told => Some(Self::Busy),
            _ if told => Some(Self::Fault(Fault::TurnsUsAway)),
            _ => None,
        }
    }
}

impl From<Undone> for NothingDone {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Busy => Self::Busy,
            Undone::Fault(Fault::Unreachable) => Self::Unreachable,
            Undone::Fault(Fault::TurnsUsAway) => Self::TurnsUsAway,
            Undone::Fault(Fault::NotThere) => Self::NotThere,
        }
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: String) {
    let value = HeaderValue::try_from(value).expect("ids and numbers are valid header values");
    headers.insert(HeaderName::from_static(name), value);
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::ids::CommandId;

    use super::*;

    #[test]
    fn all_that_binds_a_request_is_told() {
        let (account, key) = (AccountId::new("a").unwrap(), KeyId::new("k").unwrap());
        let held = Held {
            reservation: CommandId::from_parts(5, 7).into(),
            account: &account,
            key: &key,
            input_tokens: 3,
            output_tokens: 4,
            grows_to: Some(5),
        };
        let reservation = held.reservation;
        let pass = Pass {
            secret: &NeuronSecret::new([7; 32]),
            held: Some(held),
            deadline_ms: 99,
        };
        let (neuron, mut headers) = (NeuronId::new("n").unwrap(), HeaderMap::new());
        pass.write(&neuron, "/p", b"body", &mut headers);
        let told = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(told(HEADER_RESERVATION), reservation.to_string());
        assert_eq!(told(HEADER_ACCOUNT), "a");
        assert_eq!(told(HEADER_KEY), "k");
        assert_eq!(told(HEADER_MAX_INPUT_TOKENS), "3");
        assert_eq!(told(HEADER_MAX_OUTPUT_TOKENS), "4");
        assert_eq!(told(HEADER_GROWS_TO), "5");
        assert_eq!(told(HEADER_DEADLINE_MS), "99");
        let signed = |name| headers.get(name).map(HeaderValue::as_bytes);
        let call = Call::new(&neuron, "POST", "/p", signed);
        let signature = headers[HEADER_SIGNATURE].as_bytes();
        let body = pass.secret.verify(&call, signature);
        assert_eq!(body, Some(BodyHash::of(b"body")));
    }
}
