//! Requests without a maximum under tight caps, at a real neuron: random caps, answers held slice by slice, and kill -9
//! in the middle. No cap is passed at any position of the journal, no text is another one, and every hold has one end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "the seed, for whoever runs it again")]

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use seatbelt_tests::{Answer, Key, Running, Stack, nats::TestNats, until, until_within};
use serde_json::{Value, json};

/// A hold outlives its request's time by half a minute, so that a late settle still finds it.
const HOLD_LIFE_MAX: Duration = Duration::from_secs(90);
/// Random caps, each of an account of its own.
const CAPS: usize = 12;
/// Requests at once under one cap.
const AT_ONCE: usize = 6;

fn body(stream: bool) -> String {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let options = json!({ "include_usage": true });
    let mut body = json!({ "model": "tiny", "messages": messages, "stream": stream });
    if stream {
        body["stream_options"] = options;
    }
    body.to_string()
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    text: String,
    finish: String,
    output_tokens: u64,
}

impl Said {
    fn of(answer: &Answer) -> Self {
        assert!(answer.is_ok(), "{answer:?}");
        let (mut text, mut finish, mut output_tokens) = (String::new(), String::new(), 0);
        for event in events(&answer.body) {
            let choice = &event["choices"][0];
            for from in ["delta", "message"] {
                text += choice[from]["content"].as_str().unwrap_or_default();
            }
            if let Some(reason) = choice["finish_reason"].as_str() {
                reason.clone_into(&mut finish);
            }
            if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
                output_tokens = tokens;
            }
        }
        Self {
            text,
            finish,
            output_tokens,
        }
    }
}

/// The events of a stream, or a whole answer as the only one.
fn events(body: &str) -> Vec<Value> {
    if let Ok(whole) = serde_json::from_str(body) {
        return vec![whole];
    }
    let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok())
        .collect()
}

async fn ask(stack: &Running, secret: &str, stream: bool) -> Answer {
    let path = "/v1/chat/completions";
    stack.post(path, secret, body(stream)).await
}

/// Numbers that are the same in each run of a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        // Knuth's, of which the upper half is good
        self.0 = (self.0)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn seed() -> u64 {
    let told = std::env::var("SEATBELT_SEED").ok();
    let seed = told.map_or_else(|| std::process::id().into(), |told| told.parse().unwrap());
    println!("SEATBELT_SEED={seed}");
    seed
}

async fn cap_of(stack: &Running, secret: &str) -> Value {
    let rests = |cap: &Value| cap["held"] == 0 && cap["spent"].as_u64().unwrap_or(0) > 0;
    stack.cap(secret, "nothing is held", rests).await
}

#[tokio::test]
async fn an_answer_is_as_long_as_its_cap_allows_and_the_beginning_of_the_whole_one() {
    let mut dice = Dice(seed());
    let caps: Vec<u64> = (0..CAPS).map(|_| 30 + dice.roll(500)).collect();
    // below what one would hold whole
    let shared = 500 + dice.roll(500);
    let mut stack = Stack::new()
        .neuron()
        .key(Key::new("free").hard_cap(1_000_000))
        .key(Key::new("shared").hard_cap(shared));
    for (n, cap) in caps.iter().enumerate() {
        stack = stack.key(Key::new(&format!("k{n}")).hard_cap(*cap));
    }
    let stack = stack.start().await;
    until("the neuron serves", || async {
        let answer = ask(&stack, "sk-free", true).await;
        answer.is_ok().then_some(())
    })
    .await;
    let whole = Said::of(&ask(&stack, "sk-free", true).await);
    let input = {
        let asked = ask(&stack, "sk-free", false).await;
        asked.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let alone = caps.iter().enumerate().map(|(n, cap)| {
        let (stack, whole) = (&stack, &whole);
        async move {
            let secret = format!("sk-k{n}");
            let said = Said::of(&ask(stack, &secret, n % 2 == 0).await);
            let room = (cap - input).min(whole.output_tokens);
            assert_eq!(said.output_tokens, room, "of {cap}: {said:?}");
            assert!(whole.text.starts_with(&said.text), "{said:?} of {whole:?}");
            if room < whole.output_tokens {
                assert_eq!(said.finish, "length");
            }
            let spent = cap_of(stack, &secret).await["spent"].as_u64().unwrap();
            assert_eq!(spent, input + room);
        }
    });
    join_all(alone).await;
    let together = (0..AT_ONCE).map(|n| ask(&stack, "sk-shared", n % 2 == 0));
    let together = join_all(together).await;
    let (mut charged, mut served) = (0, 0);
    for answer in together.iter().filter(|answer| answer.is_ok()) {
        let said = Said::of(answer);
        assert!(whole.text.starts_with(&said.text), "{said:?}");
        charged += input + said.output_tokens;
        served += 1;
    }
    assert!(served >= 2, "{together:?}");
    let spent = cap_of(&stack, "sk-shared").await["spent"].as_u64().unwrap();
    assert_eq!(spent, charged);
    assert!(spent <= shared, "{spent} of {shared}");
    let stopped = stack.stop().await;
    stopped.verify().await;
    let grown = stopped.events_of("acct-shared", "resized").await;
    assert!(!grown.is_empty(), "nothing grew");
}

/// Reads a stream until so much of its text has come; the connection is left open.
async fn begun(stack: &Running, letters: usize) -> (reqwest::Response, String) {
    let url = format!("{}/v1/chat/completions", stack.gateway);
    let asked = seatbelt_tests::http_client().post(url);
    let asked = asked.bearer_auth("sk-tight").body(body(true));
    let mut response = asked.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let mut came = String::new();
    while came.matches("\"content\":").count() < letters {
        let chunk = response.chunk().await.unwrap();
        came += std::str::from_utf8(&chunk.expect("it ended early")).unwrap();
    }
    (response, came)
}

/// Every reservation of the account with its ends, late ones left out.
async fn ends(stack: &Running) -> BTreeMap<String, usize> {
    let mut ends = BTreeMap::new();
    for event in stack.home().events().await {
        let id = event["data"]["reservation"].as_str().unwrap_or_default();
        let kind = event["kind"].as_str().unwrap();
        if event["account"] != "acct-tight" || event["data"]["late"] == true {
            continue;
        }
        match kind {
            "reserved" => drop(ends.entry(id.to_owned()).or_insert(0)),
            "settled" | "released" | "expired" => *ends.get_mut(id).unwrap() += 1,
            _ => {}
        }
    }
    ends
}

/// Nothing is held, and what was charged is not below what was written nor above the cap.
async fn is_sound(stack: &Running, written: u64, cap: u64) {
    until_within(HOLD_LIFE_MAX, "every hold has ended", || async {
        let answer = stack.get("/v1/key", "sk-tight").await;
        (answer.is_ok() && answer.json()["caps"][0]["held"] == 0).then_some(())
    })
    .await;
    let answer = stack.get("/v1/key", "sk-tight").await;
    let spent = answer.json()["caps"][0]["spent"].as_u64().unwrap();
    assert!(
        (written..=cap).contains(&spent),
        "{written}..={cap}: {spent}"
    );
    let ends = ends(stack).await;
    assert!(ends.values().all(|ends| *ends == 1), "{ends:?}");
}

const TIGHT: u64 = 700;
/// Written when something is killed.
const WRITTEN: usize = 150;

#[tokio::test]
async fn killed_in_the_middle_all_at_once_leaves_one_end_within_the_cap() {
    let stack = Stack::new()
        .neuron()
        .key(Key::new("tight").hard_cap(TIGHT))
        .gateway("request_timeout_ms = 20000")
        .gateway("budget_wait_ms = 100")
        .ledger("expiry_grace_ms = 0")
        .start()
        .await;
    let (response, _) = begun(&stack, WRITTEN).await;
    let stopped = stack.kill_all().await;
    drop(response);
    let stack = stopped.start().await;
    is_sound(&stack, WRITTEN as u64, TIGHT).await;
    stack.stop().await.verify().await;
}

#[tokio::test]
async fn a_neuron_killed_in_the_middle_leaves_one_end_within_the_cap() {
    let server = TestNats::start().await;
    let stack = || {
        let url = format!("url = {:?}", server.server.url());
        Stack::new().nats(&url).neuron()
    };
    let home = stack().key(Key::new("tight").hard_cap(TIGHT)).write();
    let gateway = home.start_role("gateway").await;
    let projector = home.start_role("projector").await;
    let at = stack().write();
    let neuron = at.start_role("neuron").await;
    until("the neuron serves", || async {
        let answer = gateway.get("/v1/models", "sk-tight").await;
        answer.body.contains("tiny").then_some(())
    })
    .await;
    let (mut response, mut came) = begun(&gateway, WRITTEN).await;
    drop(neuron);
    while let Ok(Some(chunk)) = response.chunk().await {
        came += std::str::from_utf8(&chunk).unwrap();
    }
    let whole = came.contains("[DONE]");
    assert!(whole || came.contains("event: error"), "{came}");
    is_sound(&gateway, WRITTEN as u64, TIGHT).await;
    // what a neuron reports that starts again is within the hold too
    let neuron = at.start_role("neuron").await;
    is_sound(&gateway, WRITTEN as u64, TIGHT).await;
    for role in [neuron, gateway, projector] {
        role.stop().await;
    }
    home.verify().await;
}
