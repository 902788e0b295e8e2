//! Keeps bills from Seatbelt's feed: one line of JSON for each charge, in a file that only grows.
//!
//! Stop it at any time and start it again: it goes on where it was. A charge is on the disk before its message
//! is acknowledged, and what is delivered twice is written once, for the file is read at the start and says which
//! ids it has.
//!
//! ```sh
//! cargo run -p seatbelt-example-billing -- data/nats.json bills.jsonl          # follows the feed
//! cargo run -p seatbelt-example-billing -- data/nats.json bills.jsonl --once   # stops at its end, prints totals
//! ```
#![expect(clippy::print_stdout, reason = "it prints bills")]

mod book;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::{self, consumer::PullConsumer},
};
use futures::StreamExt;
use seatbelt_schemas::event::Event;
use serde_json::Value;

use book::Book;

/// Made with the stream: who only reads the feed may make no consumers.
const CONSUMER: &str = "billing";
/// With the default `nats.prefix`.
const STREAM: &str = "SEATBELT_FEED";
/// Messages that one write to the disk covers.
const BATCH: usize = 500;
/// No message for so long is the feed's end.
const QUIET: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let (nats, bills, once) = match &arguments[..] {
        [nats, bills] => (nats, bills, false),
        [nats, bills, once] if once.as_os_str() == "--once" => (nats, bills, true),
        _ => bail!("give nats.json, the file of bills, and --once to stop at the feed's end"),
    };
    let mut book = Book::open(bills)?;
    let feed = feed(nats).await?;
    while take(&feed, &mut book).await? > 0 || !once {}
    for total in book.totals() {
        println!("{}", serde_json::to_string(&total)?);
    }
    Ok(())
}

/// The feed of the server that `nats.json` names, or a file like it: `{"url": "nats://user:password@host"}`.
async fn feed(nats: &Path) -> anyhow::Result<PullConsumer> {
    let text = fs::read(nats).with_context(|| format!("cannot read {}", nats.display()))?;
    let about: Value = serde_json::from_slice(&text)?;
    let url = about["reader_url"].as_str().or(about["url"].as_str());
    let url = url.with_context(|| format!("{} names no url", nats.display()))?;
    // a login in the address is not taken from there by this client
    let address: ServerAddr = url.parse()?;
    let options = match (address.username(), address.password()) {
        (Some(user), Some(password)) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        _ => ConnectOptions::new(),
    };
    let context = jetstream::new(options.connect(address).await?);
    let feed = context.get_consumer_from_stream(CONSUMER, STREAM).await;
    feed.context("the feed has no consumer for billing")
}

/// Writes what the next messages charge, then acknowledges them; how many there were.
async fn take(feed: &PullConsumer, book: &mut Book) -> anyhow::Result<usize> {
    let batch = feed.fetch().max_messages(BATCH).expires(QUIET);
    let mut messages = batch.messages().await?;
    let mut taken = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.map_err(anyhow::Error::from_boxed)?;
        let id = message.headers.as_ref().and_then(|all| all.get("ce-id"));
        let id = id.context("a message of the feed has no ce-id")?.as_str();
        book.enter(id, &Event::decode(&message.payload)?);
        taken.push(message);
    }
    book.write()?;
    for message in &taken {
        message.ack().await.map_err(anyhow::Error::from_boxed)?;
    }
    Ok(taken.len())
}
