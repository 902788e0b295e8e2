//! Another model in the place of one that did nothing for a request: planned anew from what the client sent, for
//! its own upstream, at its own price, within its own bound.

use axum::http::HeaderMap;
use seatbelt_dialects::{Api, Exact, Fields};
use seatbelt_schemas::ids::ModelId;

use super::{Plan, Planner};
use crate::{
    error::ApiError,
    receive::{Caller, Received, aside::Aside, shares::Share},
    upstream::Candidate,
};

/// What the client sent, kept for as long as another model may be asked.
#[derive(Debug)]
pub(crate) struct Instead {
    /// Those that are left, the next one last.
    models: Vec<ModelId>,
    /// The one that is asked.
    asked: ModelId,
    client: Api,
    id: String,
    caller: Caller,
    headers: HeaderMap,
    body: Fields,
    exact: Option<Exact>,
    aside: Aside,
    room: Share,
}

impl Instead {
    /// Of a request to a model that names others, or that may be begun anew; none where there is no room to keep its
    /// body.
    pub(super) fn of(candidate: &Candidate, client: Api, received: &Received) -> Option<Self> {
        let Candidate::Foreign(upstream, model) = candidate else {
            return None;
        };
        if model.told.fallback.is_empty() && !upstream.retry_unknown {
            return None;
        }
        let room = &received.room;
        Some(Self {
            models: model.told.fallback.iter().rev().cloned().collect(),
            asked: model.told.id.clone(),
            client,
            id: received.id.clone(),
            caller: received.caller.clone(),
            headers: received.headers.clone(),
            room: room.another(room.amount()).ok()?,
            body: received.body.clone(),
            exact: received.exact.clone(),
            aside: received.aside.clone(),
        })
    }

    /// Whether another model may be asked.
    pub(crate) fn names_others(&self) -> bool {
        !self.models.is_empty()
    }

    /// The model that comes next.
    pub(crate) fn next(&mut self) -> Option<ModelId> {
        let next = self.models.pop()?;
        self.asked.clone_from(&next);
        Some(next)
    }

    /// The model that was asked last.
    pub(crate) fn asked(&self) -> &ModelId {
        &self.asked
    }
}

impl Planner {
    /// Plans the same request for another model. What that one does not take, as it was said, is an error.
    pub(crate) async fn plan_instead(
        &self,
        instead: &Instead,
        model: &ModelId,
        place: Share,
    ) -> Result<Plan, ApiError> {
        let mut body = instead.body.clone();
        body.insert("model".to_owned(), model.as_str().into());
        let received = Received {
            id: instead.id.clone(),
            caller: Caller {
                // whoever waits for room holds already
                wait: Some(std::time::Duration::ZERO),
                ..instead.caller.clone()
            },
            headers: instead.headers.clone(),
            body,
            exact: instead.exact.clone(),
            place,
            aside: instead.aside.clone(),
            room: instead.room.another(instead.room.amount())?,
        };
        let plan = self.plan(instead.client, received).await?;
        // a model that is asked in another's place has no other in its own
        Ok(Plan {
            instead: None,
            ..plan
        })
    }
}
