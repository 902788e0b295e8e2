//! Ends the wait for neurons that are gone without a word: frozen, or on a host that fell off the network.
//!
//! A neuron that is not registered any more may still serve what it has: it may only have lost NATS. So it is asked
//! itself, and only where it does not answer that either, again and again, do the requests there end. Not here:
//! neurons that are registered, and connections that break, which are heard of at once.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use reqwest::Url;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{catalog::Catalog, standing::Standing};

/// How often those that left are asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long one may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// So often it must not have answered, in a row.
const MISSES_MAX: u32 = 2;
/// Asked at the same time.
const AT_ONCE: usize = 16;
/// What every neuron answers to anybody, whatever it says.
const PATH_LIVE: &str = "health/live";

/// Asks those that left while requests are there, until `stop`.
pub(crate) async fn watch(catalog: Arc<Catalog>, client: reqwest::Client, stop: CancellationToken) {
    let mut looks = interval(ASK_EVERY);
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        let looks = catalog.left_behind().into_iter().map(|(standing, base)| {
            let client = client.clone();
            async move { look(&client, &standing, &base).await }
        });
        let asked = stream::iter(looks)
            .buffer_unordered(AT_ONCE)
            .collect::<()>();
        if stop.run_until_cancelled(asked).await.is_none() {
            return;
        }
    }
}

async fn look(client: &reqwest::Client, standing: &Standing, base: &Url) {
    if answers(client, base).await {
        standing.answers();
    } else if standing.is_silent() >= MISSES_MAX {
        tracing::warn!(
            url = %base,
            "a neuron is not registered any more and does not answer: the requests there are ended"
        );
        standing.give_up();
    }
}

async fn answers(client: &reqwest::Client, base: &Url) -> bool {
    let Ok(url) = base.join(PATH_LIVE) else {
        return false;
    };
    client.get(url).timeout(ANSWER_MAX).send().await.is_ok()
}
