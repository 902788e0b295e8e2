//! `POST /limit`: more output is held for a request that runs, or no more will be.
//!
//! The reservation and its new maximum are in the signed headers. The maximum only ever rises, so a call that is sent
//! again, or comes late, changes nothing. What a crash would be answered for rises first, on file. The answer to the call
//! says how much was written, once that is as much as was asked about: so a gateway follows a request without its text,
//! however many answers it has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use seatbelt_schemas::neuron::{
    HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION, LimitCall, LimitTold,
};
use tokio::time::timeout;

use super::{
    App,
    access::Signed,
    error::ErrorAnswer,
    headers::{self, number},
    way::read_body,
};
use crate::{
    engine::{Allowance, Engine, Job},
    usage::parts::SharedTicket,
};

/// Longest that an answer to a call is waited with.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The requests that run and may be let write more, by their reservations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Growing(Arc<Mutex<HashMap<String, Arc<Entry>>>>);

struct Entry {
    allowance: Allowance,
    ticket: SharedTicket,
    engine: Arc<Engine>,
    answers: usize,
    /// One call after the other: what is on file is never below what may be written.
    raising: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

/// A request in the list, until this is dropped.
#[derive(Debug)]
pub(super) struct Listed {
    all: Growing,
    reservation: String,
    entry: Arc<Entry>,
}

impl Growing {
    /// Lists a request, if it is one that may grow. Of two with one reservation, which there are only where anybody is
    /// served, the first stays.
    pub(super) fn list(
        &self,
        reservation: String,
        jobs: &[Job],
        engine: &Arc<Engine>,
    ) -> Option<Listed> {
        let first = jobs.first()?;
        let entry = Arc::new(Entry {
            allowance: first.allowance.clone()?,
            ticket: first.ticket.shared(),
            engine: Arc::clone(engine),
            answers: jobs.len(),
            raising: tokio::sync::Mutex::default(),
        });
        let mut all = self.lock();
        if all.contains_key(&reservation) {
            return None;
        }
        all.insert(reservation.clone(), Arc::clone(&entry));
        Some(Listed {
            all: self.clone(),
            reservation,
            entry,
        })
    }

    fn find(&self, reservation: &str) -> Option<Arc<Entry>> {
        self.lock().get(reservation).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.all.lock().remove(&self.reservation);
        self.entry.allowance.close();
    }
}

pub(super) async fn limit(State(app): State<Arc<App>>, request: Request) -> Response {
    told(&app, request)
        .await
        .map_or_else(IntoResponse::into_response, |told| {
            Json(told).into_response()
        })
}

async fn told(app: &App, request: Request) -> Result<LimitTold, ErrorAnswer> {
    let signed = request.extensions().get::<Signed>().copied();
    let reservation = headers::caller(request.headers()).reservation;
    let most = number(request.headers(), HEADER_MAX_OUTPUT_TOKENS)?;
    let body = read_body(request.into_body(), signed).await?;
    let call: LimitCall = serde_json::from_slice(&body).map_err(|error| {
        ErrorAnswer::invalid_body(format!("the body is no call of limits: {error}"))
    })?;
    let missing = |name| ErrorAnswer::invalid_header(name, "there");
    let reservation = reservation.ok_or_else(|| missing(HEADER_RESERVATION))?;
    let most = most.ok_or_else(|| missing(HEADER_MAX_OUTPUT_TOKENS))?;
    let entry = app.growing.find(&reservation);
    let entry = entry.ok_or_else(ErrorAnswer::not_running)?;
    entry
        .raise(usize::try_from(most).unwrap_or(usize::MAX))
        .await?;
    if call.last {
        entry.allowance.was_the_last();
        entry.engine.look();
    }
    entry.stands_at(call).await
}

impl Entry {
    /// Lets its answers write so much together.
    async fn raise(&self, most: usize) -> Result<(), ErrorAnswer> {
        let each = most / self.answers;
        let _turn = self.raising.lock().await;
        if !self.allowance.is_more(each) {
            return Ok(());
        }
        let noted = self.ticket.grows(each.saturating_mul(self.answers));
        let noted = noted.ok_or_else(ErrorAnswer::not_running)?;
        if !noted.wait().await {
            return Err(ErrorAnswer::closed("usage cannot be recorded now"));
        }
        if self.allowance.raise(each) {
            self.engine.look();
        }
        Ok(())
    }

    /// How it stands, once that is as was asked, or the time is up.
    async fn stands_at(&self, call: LimitCall) -> Result<LimitTold, ErrorAnswer> {
        let each = call.written.div_ceil(self.answers as u64);
        let each = usize::try_from(each).unwrap_or(usize::MAX);
        let wait = Duration::from_millis(call.wait_ms).min(WAIT_MAX);
        // late is as good: how it stands is told in any case
        let _ = timeout(wait, self.allowance.until(each)).await;
        let stands = self.allowance.stands();
        if stands.over {
            return Err(ErrorAnswer::not_running());
        }
        Ok(LimitTold {
            written: stands.longest.saturating_mul(self.answers) as u64,
            waits: stands.waits,
        })
    }
}
