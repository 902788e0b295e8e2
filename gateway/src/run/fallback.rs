//! Another model, after one for which nothing was done: its hold takes the place of the first one's in one decision,
//! at its own price and bound. One that does not fit is not asked: the client gets the error that there was.

use axum::http::{HeaderName, HeaderValue};
use seatbelt_schemas::{command::Grant, ids::ModelId};
use tokio::time::Instant;

use super::{
    Head, Job, Runner,
    again::{Answered, WORTH, sent_once_more},
    anew::{AlsoCharged, Ended},
    attempts::Stop,
};
use crate::{
    error::{ApiError, Charged},
    gate::{NotExchanged, Reservation},
    plan::{Instead, Plan},
    upstream::answer::passed_headers,
};

/// Which model was asked in the place of the one that was named; or why none was.
pub(super) const X_FALLBACK: HeaderName = HeaderName::from_static("x-seatbelt-fallback");
const DOES_NOT_FIT: HeaderValue = HeaderValue::from_static("does-not-fit");
const NOT_POSSIBLE: HeaderValue = HeaderValue::from_static("not-possible");

/// What becomes of a request after the attempts at a model.
pub(super) enum Turn {
    /// It is sent to another model.
    Next(Box<Job>),
    /// It ends with what there is.
    Stays(Box<Job>, Answered),
}

impl Runner {
    /// Turns to the next of the models that are named for this one, where nothing was done for the request.
    pub(super) async fn falls_back(
        &self,
        mut job: Box<Job>,
        (mut instead, answered): (Instead, Answered),
        head: &mut Head,
    ) -> Turn {
        let (answered, unused) = match instead.names_others() {
            true => job.is_unused(answered, head).await,
            false => (answered, false),
        };
        let in_time = Instant::now() + WORTH < job.limits.deadline;
        if !unused || !in_time || head.is_closed() {
            job.anew = Some(Box::new(instead));
            return Turn::Stays(job, answered);
        }
        while let Some(model) = instead.next() {
            let planned = match job.place.another(0) {
                Ok(place) => self.planner.plan_instead(&instead, &model, place).await,
                Err(error) => Err(error),
            };
            let told = match planned {
                Ok(plan) => match job.holds_for(&plan).await {
                    Ok(held) => {
                        job.instead = Some(instead);
                        job.metrics.attempt_again();
                        let first = match job.first.take() {
                            Some(first) => first,
                            None => Box::new(job.refused_with(answered).await),
                        };
                        let mut next = self.turned(*job, (plan, held), &model);
                        next.first = Some(first);
                        return Turn::Next(next);
                    }
                    Err(told) => told,
                },
                Err(error) => {
                    error.note();
                    NOT_POSSIBLE
                }
            };
            job.headers.insert(X_FALLBACK, told);
        }
        Turn::Stays(job, answered)
    }

    /// The same request, on its way to another model.
    fn turned(
        &self,
        before: Job,
        (plan, held): (Plan, Option<(Reservation, Grant)>),
        model: &ModelId,
    ) -> Box<Job> {
        let mut next = Box::new(self.job(plan, held));
        let name = HeaderValue::from_str(model.as_str());
        next.headers
            .insert(X_FALLBACK, name.unwrap_or(HeaderValue::from_static("?")));
        sent_once_more(&before.headers, &mut next.headers);
        AlsoCharged::before(&before.headers).tell(&mut next.headers);
        next.limits.deadline = before.limits.deadline;
        next.began = before.began;
        next.named = before.named;
        next.instead = before.instead;
        next.place = before.place;
        next
    }
}

impl Job {
    /// What the client is told by an attempt of which nothing came.
    async fn refused_with(&mut self, answered: Answered) -> Ended {
        let answer = match answered {
            Ok(answer) => answer,
            Err(Stop::Unreachable(log)) => {
                let error = ApiError::upstream_unreachable(&self.upstream, log);
                return Err(error.charged(Charged::Nothing));
            }
            Err(_) => return Err(ApiError::upstream_broke(&self.upstream, "nothing was used")),
        };
        let (status, headers) = (answer.status(), passed_headers(answer.headers()));
        let body = answer.bytes().await.unwrap_or_default(); // it was read before
        self.charged = Some(Charged::Nothing);
        self.upstream_error(status, headers, body, None)
    }

    /// What is shown of a request that another model was asked for: that one's refusal of it is not the matter of whoever
    /// named the first.
    pub(super) fn of_whom_was_named(&mut self, ended: Ended) -> Ended {
        let Some(first) = self.first.take() else {
            return ended;
        };
        let refuses = ended
            .as_ref()
            .is_ok_and(|response| matches!(response.status().as_u16(), 400 | 404 | 413 | 422));
        if !refuses || self.charged != Some(Charged::Nothing) {
            return ended;
        }
        let mut first = *first;
        match &mut first {
            Ok(response) => response.headers_mut().insert(X_FALLBACK, NOT_POSSIBLE),
            Err(error) => error.headers.insert(X_FALLBACK, NOT_POSSIBLE),
        };
        self.headers.clear(); // they are of the other
        self.charged = None; // it says so itself
        first
    }

    /// The hold of another model's attempt, in the place of this one's; nothing for what is not metered.
    async fn holds_for(
        &mut self,
        plan: &Plan,
    ) -> Result<Option<(Reservation, Grant)>, HeaderValue> {
        let want = plan.want().map_err(|_| NOT_POSSIBLE)?;
        let (Some(want), Some(reservation)) = (want, self.take_hold().await) else {
            return Ok(None);
        };
        let gate = reservation.gate();
        match gate.exchange(reservation, want).await {
            Ok(held) => Ok(Some(held)),
            Err(NotExchanged {
                reservation,
                is_short,
            }) => {
                self.reservation = Some(reservation);
                Err(if is_short { DOES_NOT_FIT } else { NOT_POSSIBLE })
            }
        }
    }
}
