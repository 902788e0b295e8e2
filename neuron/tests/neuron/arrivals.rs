//! No answer depends on who else comes, waits, is read beside it, or leaves, nor on what slots still hold.
//!
//! A failing case is printed with its requests, shrunk, and with the seed that leads to it:
//! `SEATBELT_SIM_SEED=<seed>` does it again.

use futures::{StreamExt, stream};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use seatbelt_schemas::neuron::HEADER_ACCOUNT;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::common::{Neuron, chat, open};

const SLOTS: usize = 5;
const CASES: u32 = 4;

/// A request as it comes.
#[derive(Debug, Clone)]
struct Asked {
    /// Who pays: within an account, what was read before is not read again.
    account: Option<&'static str>,
    /// Letters of the prompt, a token each; all begin alike, but for those of the other kind.
    letters: usize,
    other: bool,
    max_tokens: usize,
    temperature: f64,
    seed: u32,
    /// Leaves once it has so many bytes of its answer.
    leaves_after: Option<usize>,
}

impl Asked {
    fn any() -> impl Strategy<Value = Self> {
        let letters = prop_oneof![1usize..40, 200usize..300, 700usize..900];
        let temperature = prop_oneof![Just(0.0), 0.5f64..1.5];
        let leaves_after = prop_oneof![3 => Just(None), 1 => (0usize..2_000).prop_map(Some)];
        let account = prop_oneof![Just(None), Just(Some("ann")), Just(Some("bob"))];
        let text = (account, letters, any::<bool>());
        (text, 1usize..60, temperature, any::<u32>(), leaves_after).prop_map(
            |((account, letters, other), max_tokens, temperature, seed, leaves_after)| Self {
                account,
                letters,
                other,
                max_tokens,
                temperature,
                seed,
                leaves_after,
            },
        )
    }

    fn body(&self) -> Value {
        let shift = if self.other { self.letters } else { 0 };
        let letter = |n: usize| char::from(b'a' + u8::try_from((n * 7 + shift) % 26).unwrap());
        let prompt: String = (0..self.letters).map(letter).collect();
        let mut body = chat(&prompt, self.max_tokens);
        body["temperature"] = json!(self.temperature);
        body["seed"] = json!(self.seed);
        body["stream"] = json!(true);
        body
    }

    fn headers(&self) -> Vec<(&'static str, &'static str)> {
        let account = self.account.map(|account| (HEADER_ACCOUNT, account));
        account.into_iter().collect()
    }

    async fn text(&self, neuron: &Neuron) -> String {
        self.text_for(neuron, &self.headers()).await
    }

    /// The same on behalf of nobody: all is read.
    async fn text_anew(&self, neuron: &Neuron) -> String {
        self.text_for(neuron, &[]).await
    }

    async fn text_for(&self, neuron: &Neuron, headers: &[(&str, &str)]) -> String {
        let path = "/v1/chat/completions";
        let answer = neuron.post_with(path, headers, &self.body()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.streamed_text()
    }

    /// The text, unless it leaves before.
    async fn come(&self, neuron: &Neuron) -> Option<String> {
        let Some(bytes) = self.leaves_after else {
            return Some(self.text(neuron).await);
        };
        let body = self.body().to_string();
        let path = "/v1/chat/completions";
        let headers = self.headers();
        let mut stream = open(neuron.address(), "POST", path, &headers, body.as_bytes()).await;
        let mut some = vec![0; bytes];
        let _ = stream.read_exact(&mut some).await;
        None
    }
}

async fn alone_and_together(asked: &[Asked], at_once: usize) -> Result<(), TestCaseError> {
    let neuron = Neuron::with(|config| config.models[0].slots = Some(SLOTS)).await;
    let mut alone = Vec::new();
    for asked in asked {
        alone.push(asked.text_anew(&neuron).await);
    }
    let together: Vec<Option<String>> = stream::iter(asked)
        .map(|asked| asked.come(&neuron))
        .buffered(at_once)
        .collect()
        .await;
    neuron.stop().await;
    for ((asked, alone), together) in asked.iter().zip(alone).zip(together) {
        if let Some(together) = together {
            prop_assert_eq!(together, alone, "{:?}", asked);
        }
    }
    Ok(())
}

#[test]
fn every_answer_is_the_one_it_is_alone() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seed = seed();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 20,
        ..ProptestConfig::default()
    };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, random);
    let cases = (vec(Asked::any(), 2..10), 2usize..10);
    let ran = runner.run(&cases, |(asked, at_once)| {
        runtime.block_on(alone_and_together(&asked, at_once))
    });
    if let Err(error) = ran {
        panic!("seed {seed}: {error}");
    }
}

fn seed() -> u64 {
    match std::env::var("SEATBELT_SIM_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand_seed(),
    }
}

/// Any number: what keeps maps in no order is seeded by the system.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
