//! Conversations that an upstream keeps: whose they are, and how much of one is read again.
//!
//! All keys share the operator's at the upstream, so an id is worth nothing there before it was bound to an
//! account here; that is done before the last word of an answer is let go. Not here: how bindings are kept.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use seatbelt_dialects::{Api, Fields};
use seatbelt_schemas::{
    ids::{AccountId, ModelId},
    thread::Thread,
    usage::Usage,
};
use serde_json::{Value, json};

use crate::{error::ApiError, receive::Caller, upstream::Candidate};

/// Bindings could not be read or written: try again.
pub type ThreadFailure = Box<dyn std::error::Error + Send + Sync>;

/// Who keeps the bindings.
pub trait ThreadStore: Send + Sync {
    /// To what a response is bound.
    fn find(&self, id: String) -> BoxFuture<'static, Result<Option<Thread>, ThreadFailure>>;

    /// Binds a response; answers once it lasts.
    fn bind(&self, id: String, thread: Thread) -> BoxFuture<'static, Result<(), ThreadFailure>>;
}

/// What a request has of a conversation that its upstream keeps.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    /// The response that it goes on with.
    previous: Option<Previous>,
    /// Its own response is to be kept.
    stores: bool,
}

#[derive(Debug, Clone)]
struct Previous {
    id: String,
    tokens: u64,
}

/// Where a body speaks of what is kept.
const PREVIOUS: &str = "previous_response_id";
const STORE: &str = "store";

impl Followed {
    /// Takes out of a body what it says of what is kept, where its upstream's responses are bound; else the body
    /// stays as it is, to be refused for it.
    pub(crate) async fn take(
        threads: Option<&Arc<dyn ThreadStore>>,
        caller: &Caller,
        candidate: &Candidate,
        api: Api,
        body: &mut Fields,
    ) -> Result<Option<Self>, ApiError> {
        let (Some(threads), Some(key), Candidate::Foreign(upstream, model)) =
            (threads, &caller.key, candidate)
        else {
            return Ok(None);
        };
        if api != Api::Responses || !upstream.threads {
            return Ok(None);
        }
        let stores = match body.shift_remove(STORE) {
            None | Some(Value::Null) => true,
            Some(Value::Bool(stores)) => stores,
            Some(_) => return Err(ApiError::invalid_field(STORE, "must be true or false")),
        };
        let previous = match body.shift_remove(PREVIOUS) {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => {
                let found = threads.find(id.clone()).await;
                let found = found.map_err(|error| ApiError::threads_unread(error.to_string()))?;
                let owned = found.filter(|found| found.account == key.account);
                let found = owned.filter(|found| found.upstream == upstream.name);
                let Some(found) = found else {
                    return Err(ApiError::thread_not_found(&id));
                };
                if found.model != model.told.id {
                    let problem =
                        format!("was answered by '{}': go on with that model", found.model);
                    return Err(ApiError::invalid_field(PREVIOUS, &problem));
                }
                let tokens = found.tokens;
                Some(Previous { id, tokens })
            }
            Some(_) => return Err(ApiError::invalid_field(PREVIOUS, "must be a string")),
        };
        Ok(Some(Self { previous, stores }))
    }

    /// Tokens that are read again before the request's own.
    pub(crate) fn tokens(&self) -> u64 {
        self.previous.as_ref().map_or(0, |previous| previous.tokens)
    }

    /// Writes into the body that goes out what was taken out of it.
    pub(crate) fn write(&self, body: &mut Fields) {
        body.insert(STORE.to_owned(), json!(self.stores));
        if let Some(previous) = &self.previous {
            body.insert(PREVIOUS.to_owned(), json!(previous.id));
        }
    }
}

/// Binds the response of one request.
pub(crate) struct Binding {
    threads: Arc<dyn ThreadStore>,
    account: AccountId,
    upstream: String,
    model: ModelId,
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding").finish_non_exhaustive()
    }
}

impl Binding {
    /// For a response that is to be kept.
    pub(crate) fn of(
        threads: Option<&Arc<dyn ThreadStore>>,
        followed: Option<&Followed>,
        caller: &Caller,
        candidate: &Candidate,
    ) -> Option<Self> {
        let Candidate::Foreign(upstream, model) = candidate else {
            return None;
        };
        followed.filter(|followed| followed.stores)?;
        Some(Self {
            threads: Arc::clone(threads?),
            account: caller.key.as_ref()?.account.clone(),
            upstream: upstream.name.clone(),
            model: model.told.id.clone(),
        })
    }

    /// Binds it. One that is not bound is nobody's: whoever goes on with it is told that it is not there.
    pub(crate) async fn bind(&self, id: Option<String>, used: Usage) {
        let Some(id) = id else {
            tracing::warn!(upstream = %self.upstream, "a response that is kept has no id that is a text: nobody can go on with it");
            return;
        };
        let thread = Thread {
            v: Thread::VERSION,
            account: self.account.clone(),
            upstream: self.upstream.clone(),
            model: self.model.clone(),
            tokens: used.input_tokens.saturating_add(used.output_tokens),
        };
        if let Err(error) = self.threads.bind(id, thread).await {
            tracing::warn!(upstream = %self.upstream, %error, "a response is not bound: nobody can go on with it");
        }
    }
}
