//! Who is served: whoever shows that a gateway of this deployment sent him, once for each reservation.
//!
//! A stranger is turned away before his body is read, and leaves no usage event: he names reservations
//! that are not his. Since nothing was done, his answer says so: a gateway with another secret, or one that shares
//! no time with this neuron, asks another neuron on the same reservation. What machines look at (health, metrics, the list of models) is open. Known only
//! until this process ends: which reservations were served.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header::HeaderName},
    middleware::Next,
    response::{IntoResponse, Response},
};
use seatbelt_schemas::{
    ids::NeuronId,
    neuron::{
        HEADER_DEADLINE_MS, HEADER_RESERVATION,
        signature::{BodyHash, Call, HEADER_SIGNATURE, NeuronSecret},
    },
};

use super::{App, admin, doubts::Doubt, error::ErrorAnswer, headers::number};
use crate::{config::Access, metrics::TurnedAway};

/// Served to anybody.
const OPEN_PATHS: [&str; 4] = ["/models", "/health/live", "/health/ready", "/metrics"];
/// Furthest deadline of a call: so long its reservation has to be remembered.
const AHEAD_MS_MAX: u64 = 24 * 3_600_000;
/// So long after its deadline a call is still told so in its usage event; until then it is remembered.
const LATE_MS_MAX: u64 = 60_000;
/// Most reservations remembered; more are not served until some have passed their deadlines.
const USED_MAX: usize = 1 << 20;

/// What a call was found to be, for those who handle it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed {
    pub(super) body: BodyHash,
    deadline_ms: u64,
}

/// Lets through what is open, and what is signed.
pub(super) async fn guard(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let of_admin = admin::is_of_admin(path);
    let open = match &app.access {
        // Whoever may ask for answers is not who says which models there are.
        Access::Open => !of_admin || app.admin.is_none(),
        Access::Signed(_) => OPEN_PATHS.contains(&path),
    };
    if open || (of_admin && admin::has(app.admin.as_ref(), request.headers())) {
        return next.run(request).await;
    }
    let Access::Signed(secret) = &app.access else {
        return ErrorAnswer::no_admin().into_response();
    };
    match signed(secret, &app.office.neuron, &request, app.time.now_ms()) {
        Ok(signed) => {
            request.extensions_mut().insert(signed);
            next.run(request).await
        }
        Err(not_let_in) => {
            let (why, doubt) = not_let_in.told();
            app.office.metrics.turned_away(why);
            if let Some(doubt) = doubt {
                app.doubts.note(doubt, Instant::now());
            }
            not_let_in.error().into_response()
        }
    }
}

/// Why a call was not let in, before a byte of its body was read.
#[derive(Debug)]
enum NotLetIn {
    /// Nobody signed it.
    Unsigned,
    /// Somebody did, with another secret or for another neuron.
    OtherSecret,
    /// Its deadline is none, or too far off, or long past.
    Untimely(ErrorAnswer),
}

impl NotLetIn {
    fn told(&self) -> (TurnedAway, Option<Doubt>) {
        match self {
            Self::Unsigned => (TurnedAway::Unsigned, None),
            Self::OtherSecret => (TurnedAway::Unsigned, Some(Doubt::OtherSecret)),
            Self::Untimely(_) => (TurnedAway::Untimely, Some(Doubt::Untimely)),
        }
    }

    fn error(self) -> ErrorAnswer {
        let error = match self {
            Self::Unsigned => ErrorAnswer::unsigned(),
            Self::OtherSecret => ErrorAnswer::other_secret(),
            Self::Untimely(error) => error,
        };
        error.unused()
    }
}

fn signed(
    secret: &NeuronSecret,
    neuron: &NeuronId,
    request: &Request,
    now_ms: u64,
) -> Result<Signed, NotLetIn> {
    let headers = request.headers();
    let told = |name| {
        headers
            .get(HeaderName::from_static(name))
            .map(HeaderValue::as_bytes)
    };
    let call = Call::new(
        neuron,
        request.method().as_str(),
        request.uri().path(),
        told,
    );
    let signature = told(HEADER_SIGNATURE).ok_or(NotLetIn::Unsigned)?;
    let body = secret
        .verify(&call, signature)
        .ok_or(NotLetIn::OtherSecret)?;
    let deadline_ms = number(headers, HEADER_DEADLINE_MS).map_err(NotLetIn::Untimely)?;
    let deadline_ms = deadline_ms.unwrap_or(0);
    if deadline_ms > now_ms.saturating_add(AHEAD_MS_MAX) {
        let error = ErrorAnswer::invalid_header(HEADER_DEADLINE_MS, "within a day");
        return Err(NotLetIn::Untimely(error));
    }
    if deadline_ms.saturating_add(LATE_MS_MAX) <= now_ms {
        return Err(NotLetIn::Untimely(ErrorAnswer::expired()));
    }
    Ok(Signed { body, deadline_ms })
}

/// Takes the reservation of a signed call, which no other call gets then.
pub(super) fn take(
    app: &App,
    signed: Option<&Signed>,
    headers: &HeaderMap,
) -> Result<(), ErrorAnswer> {
    let (Some(signed), Some(reservation)) = (signed, headers.get(HEADER_RESERVATION)) else {
        return Ok(());
    };
    let until_ms = signed.deadline_ms.saturating_add(LATE_MS_MAX);
    let taken = app
        .used
        .take(reservation.as_bytes(), until_ms, app.time.now_ms());
    taken.map_err(|refused| {
        let (why, error) = match refused {
            NotTaken::Served => (TurnedAway::Repeated, ErrorAnswer::served_before()),
            NotTaken::Full => (
                TurnedAway::Full,
                ErrorAnswer::closed("too many calls are remembered"),
            ),
        };
        app.office.metrics.turned_away(why);
        error
    })
}

/// Why a reservation was not taken.
#[derive(Debug, PartialEq, Eq)]
enum NotTaken {
    Served,
    Full,
}

/// The reservations that were served, each until its deadline and a little more.
#[derive(Debug, Default)]
pub(crate) struct Used(Mutex<Reservations>);

#[derive(Debug, Default)]
struct Reservations {
    reservations: HashSet<Arc<[u8]>>,
    /// The same by their ends.
    ends: BTreeSet<(u64, Arc<[u8]>)>,
}

impl Used {
    fn take(&self, reservation: &[u8], until_ms: u64, now_ms: u64) -> Result<(), NotTaken> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.forget(now_ms);
        if known.reservations.contains(reservation) {
            return Err(NotTaken::Served);
        }
        if known.reservations.len() >= USED_MAX {
            return Err(NotTaken::Full);
        }
        let reservation: Arc<[u8]> = reservation.into();
        known.reservations.insert(Arc::clone(&reservation));
        known.ends.insert((until_ms, reservation));
        debug_assert_eq!(known.reservations.len(), known.ends.len());
        Ok(())
    }
}

impl Reservations {
    fn forget(&mut self, now_ms: u64) {
        while self
            .ends
            .first()
            .is_some_and(|(until_ms, _)| *until_ms <= now_ms)
        {
            let (_, reservation) = self.ends.pop_first().expect("it was just looked at");
            self.reservations.remove(&reservation);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn a_reservation_is_taken_once_until_it_is_over() {
        let used = Used::default();
        assert_eq!(used.take(b"a", 100, 1), Ok(()));
        assert_eq!(used.take(b"a", 900, 99), Err(NotTaken::Served));
        assert_eq!(used.take(b"b", 50, 99), Ok(()));
        let known = used.0.lock().unwrap().reservations.len();
        assert_eq!(known, 2);
        assert_eq!(used.take(b"c", 900, 100), Ok(()));
        let known = used.0.lock().unwrap();
        assert_eq!((known.reservations.len(), known.ends.len()), (1, 1));
    }

    #[test]
    fn no_more_are_taken_than_are_remembered() {
        let used = Used::default();
        for n in 0..USED_MAX {
            assert_eq!(used.take(&n.to_be_bytes(), 100, 1), Ok(()));
        }
        assert_eq!(used.take(b"more", 100, 1), Err(NotTaken::Full));
        assert_eq!(used.take(b"more", 200, 100), Ok(()));
    }

    fn of_deadline(deadline_ms: u64) -> Result<u64, u16> {
        let (secret, neuron) = (NeuronSecret::new([7; 32]), NeuronId::new("n").unwrap());
        let deadline = deadline_ms.to_string();
        let told = |name| (name == HEADER_DEADLINE_MS).then_some(deadline.as_bytes());
        let call = Call::new(&neuron, "POST", "/p", told);
        let signature = secret.sign(&call, &BodyHash::of(b""));
        let request = Request::post("/p")
            .header(HEADER_DEADLINE_MS, &deadline)
            .header(HEADER_SIGNATURE, signature)
            .body(Body::empty())
            .unwrap();
        let signed = signed(&secret, &neuron, &request, NOW);
        let status = |not_let_in: NotLetIn| {
            let error = not_let_in.error();
            assert!(error.is_unused(), "another neuron may be asked");
            error.into_response().status().as_u16()
        };
        signed.map(|signed| signed.deadline_ms).map_err(status)
    }

    #[test]
    fn whoever_is_not_let_in_may_go_elsewhere_and_only_who_signed_is_a_doubt() {
        let neuron = NeuronId::new("n").unwrap();
        let call = Call::new(&neuron, "POST", "/p", |_| None);
        let signature = NeuronSecret::new([8; 32]).sign(&call, &BodyHash::of(b""));
        let asked = |signature: Option<&str>| {
            let mut request = Request::post("/p").body(Body::empty()).unwrap();
            if let Some(signature) = signature {
                let value = HeaderValue::try_from(signature).unwrap();
                request.headers_mut().insert(HEADER_SIGNATURE, value);
            }
            let refused = signed(&NeuronSecret::new([7; 32]), &neuron, &request, NOW).unwrap_err();
            let (_, doubt) = refused.told();
            let error = refused.error();
            assert!(error.is_unused());
            (error.into_response().status().as_u16(), doubt)
        };
        assert_eq!(asked(None), (401, None));
        assert_eq!(asked(Some(&signature)), (401, Some(Doubt::OtherSecret)));
    }

    #[test]
    fn a_deadline_lies_within_a_day() {
        for good in [NOW + 1, NOW + AHEAD_MS_MAX, NOW + 1 - LATE_MS_MAX] {
            assert_eq!(of_deadline(good), Ok(good));
        }
        assert_eq!(of_deadline(NOW + AHEAD_MS_MAX + 1), Err(400));
        assert_eq!(of_deadline(u64::MAX), Err(400));
        assert_eq!(of_deadline(NOW - LATE_MS_MAX), Err(504));
        assert_eq!(of_deadline(0), Err(504));
    }
}
