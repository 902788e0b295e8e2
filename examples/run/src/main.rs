//! Gives an agent a budget of its own: opens a run with one out of a key's cap, lets the agent work until the
//! budget refuses it, and closes the run, which gives the rest back.
//!
//! Whoever opens runs is an operator: with an embedded server take `url` of `nats.json`, with one of your own the
//! user `gateway`. The agent needs nothing but its key and the header `x-seatbelt-run`.
//!
//! ```sh
//! cargo run -p seatbelt-example-run -- data/nats.json acct-demo/key-demo sk-demo http://127.0.0.1:8080/v1 tiny 200
//! ```
#![expect(clippy::print_stdout, reason = "it prints what became of the budget")]

mod budget;

use std::{env, fs, time::Duration};

use anyhow::{Context, bail};
use reqwest::StatusCode;
use seatbelt_bus::{Identity, Nats, NatsRole};
use serde_json::{Value, json};

use budget::Run;

/// How long NATS, and then the ledger, may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The budget is spent long before; this ends a run whose agent does nothing else but wait.
const STEPS_MAX: u64 = 1000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [nats, payer, secret, base_url, model, tokens] = &arguments[..] else {
        bail!(
            "give nats.json, account/key, the key's secret, the base URL, a model, and a budget of tokens"
        );
    };
    let (account, key) = payer
        .split_once('/')
        .context("write the payer as account/key")?;
    let run = Run::open(&operator(nats).await?, account, key, tokens.parse()?).await?;
    let worked = work(&run, base_url, secret, model).await;
    // also where the agent failed: what is not given back is held until the run's deadline
    let stood = run.close().await?;
    let steps = worked?;
    println!(
        "{}",
        json!({"steps": steps, "spent": stood.spent, "given_back": stood.given_back})
    );
    Ok(())
}

/// A connection that may give commands to the ledger.
async fn operator(nats: &str) -> anyhow::Result<Nats> {
    let text = fs::read(nats).with_context(|| format!("cannot read {nats}"))?;
    let about: Value = serde_json::from_slice(&text)?;
    let url = about["url"].as_str();
    let url = url.with_context(|| format!("{nats} names no url"))?;
    // whoever writes a journal may answer only where gateways and projectors hear it
    let who = Identity::default().as_role(NatsRole::Gateway);
    Ok(seatbelt_bus::connect_as(url, &who, "run-with-budget", PATIENCE).await?)
}

/// An agent that never has enough; how many steps the budget let it take.
async fn work(run: &Run, base_url: &str, secret: &str, model: &str) -> anyhow::Result<u64> {
    // a second installation is refused, and means that the provider is there
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::new();
    for steps in 0..STEPS_MAX {
        let request = http
            .post(format!("{base_url}/chat/completions"))
            .bearer_auth(secret)
            .header("x-seatbelt-run", run.id())
            .json(&json!({"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": "go on"}]}));
        let answer = request.send().await?;
        match answer.status() {
            StatusCode::OK => drop(answer.bytes().await?),
            StatusCode::TOO_MANY_REQUESTS => return Ok(steps),
            status => bail!("the gateway says {status}: {}", answer.text().await?),
        }
    }
    Ok(STEPS_MAX)
}
