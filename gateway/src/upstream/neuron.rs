//! What a neuron is told besides the body, so that it holds the request to its reservation.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use seatbelt_schemas::{
    ids::{AccountId, KeyId, ReservationId},
    meter::Amounts,
    neuron::{
        HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
        HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
    },
};

/// What a request may use at most, and until when.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) reservation: ReservationId,
    pub(crate) account: &'a AccountId,
    pub(crate) key: &'a KeyId,
    pub(crate) hold: &'a Amounts,
    /// Unix ms; earlier than the end of the hold, which waits for the settle.
    pub(crate) deadline_ms: u64,
}

impl Held<'_> {
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let mut set = |name: &'static str, value: String| {
            let value =
                HeaderValue::try_from(value).expect("ids and numbers are valid header values");
            headers.insert(HeaderName::from_static(name), value);
        };
        set(HEADER_RESERVATION, self.reservation.to_string());
        set(HEADER_ACCOUNT, self.account.to_string());
        set(HEADER_KEY, self.key.to_string());
        set(HEADER_MAX_INPUT_TOKENS, self.hold.input_tokens.to_string());
        set(
            HEADER_MAX_OUTPUT_TOKENS,
            self.hold.output_tokens.to_string(),
        );
        set(HEADER_DEADLINE_MS, self.deadline_ms.to_string());
    }
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
            hold: &Amounts::request(3, 4, None),
            deadline_ms: 99,
        };
        let mut headers = HeaderMap::new();
        held.write(&mut headers);
        let told = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(told(HEADER_RESERVATION), held.reservation.to_string());
        assert_eq!(told(HEADER_ACCOUNT), "a");
        assert_eq!(told(HEADER_KEY), "k");
        assert_eq!(told(HEADER_MAX_INPUT_TOKENS), "3");
        assert_eq!(told(HEADER_MAX_OUTPUT_TOKENS), "4");
        assert_eq!(told(HEADER_DEADLINE_MS), "99");
    }
}
