//! Tokenizers of neurons, so that prompts are counted here before anything is reserved: a request that its
//! caps refuse causes no call to any neuron.
//!
//! Fetched once for each that is registered, by a task that follows the registrations and never by a
//! request; bounded in size, number and time. A neuron of an older release registers none, and is asked
//! to count as before (see [`super::count`]).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use reqwest::Url;
use seatbelt_ledger::{Pauses, api::Neurons};
use seatbelt_schemas::{
    ids::NeuronId,
    neuron::{NeuronRecord, PATH_RECIPE, signature::NeuronSecret},
};
use seatbelt_tokens::{ChatCounter, Recipe};
use serde_json::json;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    choose::{base_of, below},
    neuron::Pass,
};
use crate::{
    clock::{Clock, ms},
    config::{RECIPE_TIMEOUT, RECIPE_WAIT},
};

/// Largest one that is taken. The largest published tokenizers have 35 MB.
const RECIPE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most that are kept, of which each takes some times its bytes.
const RECIPES_MAX: usize = 32;
/// Pause before one that could not be fetched is tried again, doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Fetched at the same time.
const FETCHED_AT_ONCE: usize = 4;

/// What is known of one.
#[derive(Debug, Clone)]
enum RecipeState {
    Read(Arc<ChatCounter>),
    /// It was handed out as its name says, and cannot be used here.
    Unusable,
    /// It could not be fetched yet: nobody waits for it.
    Away,
}

/// The tokenizers of the neurons that are registered, by name.
pub(crate) struct Recipes {
    client: reqwest::Client,
    secret: NeuronSecret,
    clock: Clock,
    known: Mutex<HashMap<String, RecipeState>>,
    /// Told when one more is known.
    more: watch::Sender<()>,
}

impl Recipes {
    pub(crate) fn new(client: reqwest::Client, secret: NeuronSecret, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            client,
            secret,
            clock,
            known: Mutex::default(),
            more: watch::Sender::new(()),
        })
    }

    /// The one of this name; waits a while for one that is being fetched.
    pub(crate) async fn get(&self, name: &str) -> Option<Arc<ChatCounter>> {
        let mut more = self.more.subscribe();
        let found = async {
            loop {
                if let Some(known) = self.known().get(name).cloned() {
                    return known;
                }
                if more.changed().await.is_err() {
                    return RecipeState::Unusable;
                }
            }
        };
        match timeout(RECIPE_WAIT, found).await {
            Ok(RecipeState::Read(counter)) => Some(counter),
            Ok(RecipeState::Unusable | RecipeState::Away) | Err(_) => None,
        }
    }

    /// Fetches what is registered and not known, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, mut neurons: Neurons, stop: CancellationToken) {
        let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
        loop {
            let wanted = wanted(&neurons.borrow_and_update());
            let missing = self.missing(wanted);
            let all = tokio::select! {
                all = self.fetch_all(missing) => all,
                () = stop.cancelled() => return,
            };
            let pause = pauses.draw();
            if all {
                pauses.renew();
            }
            tokio::select! {
                changed = neurons.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(pause), if !all => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, RecipeState>> {
        self.known.lock().expect("no holder of the lock panics")
    }

    /// Those not known of the wanted ones. Makes room for them: what nobody has registered any more goes.
    fn missing(&self, mut wanted: Wanted) -> Wanted {
        let mut known = self.known();
        let is_read = |known: &RecipeState| !matches!(known, RecipeState::Away);
        let new = wanted.keys().filter(|name| !known.contains_key(*name));
        if known.len() + new.count() > RECIPES_MAX {
            known.retain(|name, _| wanted.contains_key(name));
        }
        wanted.retain(|name, _| !known.get(name).is_some_and(is_read));
        let room =
            RECIPES_MAX.saturating_sub(known.values().filter(|known| is_read(known)).count());
        while wanted.len() > room {
            wanted.pop_last();
        }
        wanted
    }

    /// Whether all were fetched. One neuron that hangs keeps no other waiting.
    async fn fetch_all(self: &Arc<Self>, missing: Wanted) -> bool {
        let each = missing.into_iter().map(|(name, places)| {
            let recipes = Arc::clone(self);
            async move { recipes.fetch_one(&name, &places).await }
        });
        let fetched = stream::iter(each).buffer_unordered(FETCHED_AT_ONCE);
        fetched.fold(true, async |all, one| all && one).await
    }

    /// From the first neuron that hands it out.
    async fn fetch_one(&self, name: &str, places: &[RecipeSource]) -> bool {
        let mut found = RecipeState::Away;
        for place in places {
            match self.fetch(name, place).await {
                Ok(known) => {
                    found = known;
                    break;
                }
                Err(detail) => {
                    tracing::warn!(neuron = %place.neuron, detail, "a neuron's tokenizer was not fetched; it is asked to count until it is");
                }
            }
        }
        let is_found = !matches!(found, RecipeState::Away);
        self.known().insert(name.to_owned(), found);
        self.more.send_replace(());
        is_found
    }

    async fn fetch(&self, name: &str, place: &RecipeSource) -> Result<RecipeState, String> {
        let called = timeout(RECIPE_TIMEOUT, self.call(name, place)).await;
        let bytes = called.map_err(|_| "no answer in time".to_owned())??;
        let name = name.to_owned();
        let read = spawn_blocking(move || {
            if Recipe::name_of(&bytes) != name {
                return Err("what it handed out is not what it registered".to_owned());
            }
            Ok(match ChatCounter::read(&bytes) {
                Ok(counter) => RecipeState::Read(Arc::new(counter)),
                Err(error) => {
                    tracing::warn!(%error, "a neuron's tokenizer cannot be used here; the neuron is asked to count");
                    RecipeState::Unusable
                }
            })
        });
        read.await.map_err(|died| died.to_string())?
    }

    async fn call(&self, name: &str, place: &RecipeSource) -> Result<Bytes, String> {
        let text = |error: reqwest::Error| error.to_string();
        let body = json!({ "name": name }).to_string();
        let pass = Pass {
            secret: &self.secret,
            held: None,
            deadline_ms: (self.clock)().saturating_add(ms(RECIPE_TIMEOUT)),
        };
        let mut headers = HeaderMap::new();
        pass.write(&place.neuron, PATH_RECIPE, body.as_bytes(), &mut headers);
        let call = self.client.post(place.url.clone()).headers(headers);
        let call = call.header(header::CONTENT_TYPE, "application/json");
        let mut answer = call.body(body).send().await.map_err(text)?;
        if !answer.status().is_success() {
            return Err(format!("it answered {}", answer.status()));
        }
        let mut bytes = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(text)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > RECIPE_BYTES_MAX {
                return Err(format!("it is larger than {RECIPE_BYTES_MAX} bytes"));
            }
        }
        Ok(bytes.freeze())
    }
}

/// Where one is handed out.
#[derive(Debug, PartialEq, Eq)]
struct RecipeSource {
    neuron: NeuronId,
    url: Url,
}

/// Where each is handed out, by name.
type Wanted = BTreeMap<String, Vec<RecipeSource>>;

fn wanted(records: &[NeuronRecord]) -> Wanted {
    let mut wanted = Wanted::new();
    for record in records {
        let Some(url) = base_of(record).and_then(|base| below(&base, PATH_RECIPE)) else {
            continue;
        };
        for name in record
            .models
            .iter()
            .filter_map(|model| model.recipe.as_ref())
        {
            let places = wanted.entry(name.clone()).or_default();
            if places.iter().all(|place| place.neuron != record.neuron) {
                places.push(RecipeSource {
                    neuron: record.neuron.clone(),
                    url: url.clone(),
                });
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests;
