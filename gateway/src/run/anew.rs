//! One more attempt after one of which nobody knows what it did, where the operator wants it (`retry_unknown`): the
//! first keeps its charge, and this one needs a hold besides it. Only before anything reached the client.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use seatbelt_schemas::ids::ReservationId;
use tokio::time::Instant;

use super::{
    Head, Job, Runner,
    again::{WORTH, sent_once_more},
    fallback::X_FALLBACK,
};
use crate::{
    error::{ApiError, Charged, X_SHOULD_RETRY},
    plan::Instead,
    upstream::Candidate,
};

/// The reservation of an attempt that was charged although nothing came of it.
const X_ALSO_CHARGED: HeaderName = HeaderName::from_static("x-seatbelt-also-charged");

/// The attempts of a request that were charged although nothing came of them, by their reservations.
#[derive(Default)]
pub(super) struct AlsoCharged(Vec<HeaderValue>);

impl AlsoCharged {
    pub(super) fn before(headers: &HeaderMap) -> Self {
        Self(headers.get_all(&X_ALSO_CHARGED).iter().cloned().collect())
    }

    pub(super) fn tell(self, headers: &mut HeaderMap) {
        headers.remove(&X_ALSO_CHARGED);
        for first in self.0 {
            headers.append(X_ALSO_CHARGED, first);
        }
    }

    /// Tells it with whatever is shown in the end; and that one more try of what failed costs once more.
    pub(super) fn told_with(self, mut ended: Ended) -> Ended {
        if self.0.is_empty() {
            return ended;
        }
        let (failed, headers) = match &mut ended {
            Ok(response) => (!response.status().is_success(), response.headers_mut()),
            Err(error) => (true, &mut error.headers),
        };
        if failed {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        self.tell(headers);
        ended
    }
}

/// What came of a request: shown to the client, or begun anew.
pub(super) type Ended = Result<Response, ApiError>;

impl Job {
    /// What it takes to begin anew, where the request may be.
    pub(super) fn anew(
        &mut self,
        ended: &Ended,
        head: &Head,
    ) -> Option<(Box<Instead>, ReservationId)> {
        let instead = self.anew.take()?;
        let Candidate::Foreign(upstream, _) = &self.candidate else {
            return None;
        };
        let failed = match ended {
            Ok(response) => !response.status().is_success(),
            Err(_) => true,
        };
        let in_time = Instant::now() + WORTH < self.limits.deadline;
        let may = upstream.retry_unknown && failed && in_time && !head.is_closed();
        let first = self
            .unknown
            .filter(|_| may && !self.limits.cut.is_cancelled())?;
        Some((instead, first))
    }
}

impl Runner {
    /// The same request once more, with a hold of its own; nothing where there is no room for it.
    pub(super) async fn begins_anew(
        &self,
        before: &mut Job,
        (instead, first): (Box<Instead>, ReservationId),
    ) -> Option<Box<Job>> {
        let place = before.place.another(0).ok()?;
        let plan = self
            .planner
            .plan_instead(&instead, instead.asked(), place)
            .await;
        let plan = plan.inspect_err(ApiError::note).ok()?;
        let want = plan.want().ok().flatten()?;
        let named = before.named.take();
        let held = self.repeats.reserve_anew(named, first, want).await;
        let held = held.inspect_err(ApiError::note).ok()?;
        self.metrics.attempt_again();
        let mut next = Box::new(self.job(plan, Some(held)));
        AlsoCharged::before(&before.headers).tell(&mut next.headers);
        if before.charged == Some(Charged::Hold) {
            let told = HeaderValue::try_from(first.to_string());
            let told = told.expect("a reservation id is a valid header value");
            next.headers.append(X_ALSO_CHARGED, told);
        }
        next.again = None; // once more, and not as often as the first time
        sent_once_more(&before.headers, &mut next.headers);
        // of another model than was named, it is so now too
        if let Some(fallback) = before.headers.get(&X_FALLBACK) {
            next.headers.insert(X_FALLBACK, fallback.clone());
        }
        next.first = before.first.take();
        next.limits.deadline = before.limits.deadline;
        Some(next)
    }
}
