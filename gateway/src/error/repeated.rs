//! What is said of a request that is sent again under its `Idempotency-Key`.

use axum::http::HeaderValue;
use seatbelt_schemas::{ids::ReservationId, meter::Amounts, position::Position};
use serde_json::{Map, Value, json};

use super::{ApiError, Case, X_CHARGE, X_POSITION, X_RESERVATION};

impl ApiError {
    /// Under the same key another request came first.
    pub(crate) fn idempotency_key_of_another() -> Self {
        Self::new(
            Case::IdempotencyKeyReused,
            "the Idempotency-Key was given before, with another request: repeat that request as it was, or give another key",
        )
    }

    /// The same request is still being answered.
    pub(crate) fn request_in_progress(reservation: ReservationId) -> Self {
        let message = "the same request is still in progress under this Idempotency-Key; nothing more was charged: wait for its answer, or ask again in 1 s what became of it";
        let mut error = Self::new(Case::RequestInProgress, message).retry_after(1);
        error.is_of(reservation);
        error
    }

    /// The same request was answered and charged; the answer is gone.
    pub(crate) fn request_answered(
        reservation: ReservationId,
        position: Position,
        charge: &Amounts,
    ) -> Self {
        let message = format!(
            "the same request has ended already under this Idempotency-Key, at position {position}: it is not charged again, and its answer is not kept; give another key to ask anew"
        );
        let mut error = Self::new(Case::RequestAnswered, message);
        error.is_of(reservation);
        let told = json!(charge);
        if let Ok(value) = HeaderValue::from_str(&told.to_string()) {
            error.headers.insert(X_CHARGE, value);
        }
        error.headers.insert(X_POSITION, position.0.into());
        error.extras.extend([
            ("position".to_owned(), json!(position.0)),
            ("charge".to_owned(), told),
        ]);
        error
    }

    /// What a key was used for first cannot be read or written now.
    pub(crate) fn first_uses_away(log: impl Into<String>) -> Self {
        Self::busy("what was asked under an 'Idempotency-Key' cannot be looked up, so the request was not let through; without that header it would be")
            .log(log)
    }

    /// The account has as many keys kept as it may.
    pub(crate) fn too_many_first_uses(most: u32) -> Self {
        let message = format!(
            "this account used {most} Idempotency-Keys within a day, which is as many as it may: leave that header out, or wait until some of them are a day old"
        );
        Self::new(Case::TooManyFirstUses, message)
    }

    fn is_of(&mut self, reservation: ReservationId) {
        let id = HeaderValue::try_from(reservation.to_string());
        let id = id.expect("a reservation id is a valid header value");
        self.headers.insert(X_RESERVATION, id);
        let told = Value::String(reservation.to_string());
        self.extras = Map::from_iter([("reservation".to_owned(), told)]);
    }
}
