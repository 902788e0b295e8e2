//! One tenant cannot shut out another: what all share has bounds, and a share for each.

use std::time::Duration;

use seatbelt_gateway::{KeyEntry, KeySecret, OnDisconnect};
use seatbelt_ledger::api::{Admin, Ledger};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    event::KeyIssued,
    ids::{AccountId, Actor, CommandId, KeyId},
    window::Window,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    SECRET, Script, Stack, Told, chat_answer, chat_stream, eventually, hi, hi_stream, read_until,
    status_and_body, tokens,
};

const OTHER: &str = "sk-other";
/// Longest that a connection is read from.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway with a second account, which has no caps.
async fn two_tenants(cap: CapSpec, change: impl FnOnce(&mut Told)) -> Stack {
    let account = AccountId::new("other").unwrap();
    let key = KeyId::new("other-key").unwrap();
    let entry = KeyEntry::new(KeySecret::hash(OTHER), account.clone(), key.clone());
    let stack = Stack::start_with(cap, |config| {
        config.keys.push(entry);
        change(config);
    })
    .await;
    let issued = KeyIssued {
        key,
        team: None,
        secret_sha256: None,
    };
    let changes = [Change::OpenAccount, Change::IssueKey(issued)];
    for (n, change) in changes.into_iter().enumerate() {
        let admin = Admin {
            id: CommandId::from_parts(seatbelt_gateway::system_clock()(), 100 + n as u128),
            account: account.clone(),
            actor: Actor::system("test"),
            change,
        };
        stack.ledger.admin(admin).await.unwrap();
    }
    stack
}

fn balance(limit: u64) -> CapSpec {
    tokens(limit, Window::Balance)
}

/// A request of the second account.
fn others(stack: &Stack, body: &Value) -> reqwest::RequestBuilder {
    let url = format!("{}/v1/chat/completions", stack.base);
    stack
        .client
        .post(url)
        .bearer_auth(OTHER)
        .body(body.to_string())
}

async fn connect(stack: &Stack) -> TcpStream {
    let address = stack.base.trim_start_matches("http://");
    TcpStream::connect(address).await.unwrap()
}

fn head(length: usize, extra: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{extra}\r\n"
    )
}

fn with_key() -> String {
    format!("authorization: Bearer {SECRET}\r\n")
}

/// Sends the start of a body whose rest never comes.
async fn dribble(stack: &Stack, sent: &str) -> TcpStream {
    let mut stream = connect(stack).await;
    let head = head(sent.len() + 1, &with_key());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    stream
}

/// What comes on a connection until it is closed, or `text` has come.
async fn heard(stream: &mut TcpStream, text: &str) -> String {
    let mut all = Vec::new();
    let reading = async {
        let mut piece = vec![0; 16_384];
        loop {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(n) => all.extend_from_slice(&piece[..n]),
            }
            let end = all.len().saturating_sub(piece.len() + text.len());
            if String::from_utf8_lossy(&all[end..]).contains(text) {
                break;
            }
        }
    };
    timeout(PATIENCE, reading)
        .await
        .expect("neither an answer nor an end came");
    String::from_utf8(all).unwrap()
}

fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap()
}

#[tokio::test]
async fn bodies_that_dribble_take_no_place() {
    let stack = two_tenants(balance(1000), |config| config.requests = 2).await;
    let mut dribbling = Vec::new();
    for _ in 0..3 {
        dribbling.push(dribble(&stack, "{\"model\":").await);
    }
    // each request is behind those before it: a connection is served in the order it was accepted
    for _ in 0..3 {
        assert_eq!(status_and_body(others(&stack, &hi(20))).await.0, 200);
    }
}

#[tokio::test]
async fn one_account_leaves_the_others_their_places() {
    let stack = two_tenants(balance(60), |config| {
        config.requests = 4;
        config.budget_wait = Duration::from_secs(60);
    })
    .await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut unread = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut unread, "hel").await;
    // one waits for budget behind it: both places of the account are taken
    let waiting = tokio::spawn(stack.chat(&hi(20)).send());
    let (status, body) = eventually(async || {
        let answer = timeout(
            Duration::from_millis(200),
            status_and_body(stack.chat(&hi(20))),
        )
        .await;
        answer.ok()
    })
    .await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("service_unavailable"))
    );
    assert!(message(&body).contains("account 'acct'"), "{body}");
    assert!(message(&body).contains("2 requests"), "{body}");
    let whole = Script::Whole(200, "application/json", chat_answer());
    stack.upstream.plays(whole);
    assert_eq!(status_and_body(others(&stack, &hi(20))).await.0, 200);
    stack.upstream.go_on.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    // what is over takes no place
    eventually(async || (status_and_body(stack.chat(&hi(1))).await.0 != 503).then_some(())).await;
}

#[tokio::test]
async fn a_body_of_too_many_values_is_refused_by_the_bound() {
    let stack = Stack::balance(1000).await;
    let many = "{\"\":0},".repeat(300_000);
    let body = format!("{{\"model\":\"test-model\",\"messages\":[{many}0]}}");
    let (status, answer) = status_and_body(stack.chat(&Value::Null).body(body)).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (400, &json!("invalid_body"))
    );
    assert!(message(&answer).contains("250000"), "{answer}");
    let body = format!("{{\"messages\":{}", "[".repeat(200));
    let (status, answer) = status_and_body(stack.chat(&Value::Null).body(body)).await;
    assert_eq!((status, message(&answer).contains("100")), (400, true));
}

#[tokio::test]
async fn a_large_body_is_served_as_a_small_one() {
    let cap = balance(10_000_000);
    let stack = Stack::start_with(cap, |config| {
        config.upstreams[0].models[0].context = 1_000_000;
    })
    .await;
    let mut body = hi(20);
    body["messages"][0]["content"] = json!("word ".repeat(100_000));
    assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
    assert_eq!(stack.upstream.last().body, body);
}

#[tokio::test]
async fn bodies_on_their_way_leave_memory_to_other_accounts() {
    let stack = two_tenants(balance(1000), |config| {
        config.body_bytes = 8000;
        config.bodies_bytes = 1_600_000;
    })
    .await;
    let most = "[".to_owned() + &" ".repeat(7_990);
    let mut dribbling = Vec::new();
    for _ in 0..110 {
        dribbling.push(dribble(&stack, &most).await);
    }
    let refused = async || {
        let (status, body) = status_and_body(stack.chat(&hi(20))).await;
        (status == 503).then_some(body)
    };
    let body = eventually(refused).await;
    assert!(message(&body).contains("account 'acct'"), "{body}");
    assert!(message(&body).contains("800000 bytes"), "{body}");
    assert_eq!(status_and_body(others(&stack, &hi(20))).await.0, 200);
    // what is given up gives its memory back
    drop(dribbling);
    eventually(async || (status_and_body(stack.chat(&hi(1))).await.0 != 503).then_some(())).await;
}

#[tokio::test]
async fn a_client_without_a_key_is_answered_before_its_body_is_asked_for() {
    let stack = Stack::balance(1000).await;
    let mut stream = connect(&stack).await;
    let head = head(1_000_000, "expect: 100-continue\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = heard(&mut stream, "invalid_api_key").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test]
async fn little_is_read_of_a_client_without_a_key() {
    let stack = Stack::balance(1000).await;
    let mut stream = connect(&stack).await;
    let head = head(200 << 20, "");
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b' '; 1 << 20];
    let mut taken = 0;
    let writing = async {
        while taken < 200 && stream.write_all(&piece).await.is_ok() {
            taken += 1;
        }
    };
    timeout(PATIENCE, writing).await.unwrap();
    assert!(
        taken < 32,
        "{taken} MiB were taken, buffers of the kernel among them"
    );
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_its_connection() {
    let stack = Stack::start_with(balance(1000), |config| {
        config.header_timeout = Duration::from_millis(100);
    })
    .await;
    let mut half = connect(&stack).await;
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        .await
        .unwrap();
    assert!(!heard(&mut half, "200 OK").await.contains("200 OK"));
    let mut silent = connect(&stack).await;
    assert_eq!(heard(&mut silent, "200 OK").await, "");
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
}

#[tokio::test]
async fn a_connection_above_the_bound_is_served_once_there_is_room() {
    let stack = Stack::start_with(balance(1000), |config| config.connections = 1).await;
    let ask = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = connect(&stack).await;
    first.write_all(ask).await.unwrap();
    assert!(heard(&mut first, "200 OK").await.contains("200 OK"));
    let mut second = connect(&stack).await;
    second.write_all(ask).await.unwrap();
    let early = timeout(Duration::from_millis(200), second.readable()).await;
    assert!(early.is_err(), "it was served beside the first");
    drop(first);
    assert!(heard(&mut second, "200 OK").await.contains("200 OK"));
}

/// A stream that is longer than all buffers between an upstream and its client.
fn endless() -> Vec<String> {
    let piece = crate::support::chunk(&"x".repeat(1 << 16));
    let mut pieces = vec![piece; 400];
    pieces.extend(chat_stream());
    pieces
}

/// One that asks for a stream without end and reads none of it; what it pays, and what it gets.
async fn unread(on_disconnect: OnDisconnect) -> (u64, String) {
    let stack = Stack::start_with(balance(1000), |config| {
        config.client_stall = Duration::from_millis(300);
        config.on_disconnect = on_disconnect;
    })
    .await;
    stack.upstream.plays(Script::Stream(endless()));
    let mut stream = connect(&stack).await;
    let body = hi_stream(20).to_string();
    let request = head(body.len(), &with_key()) + &body;
    stream.write_all(request.as_bytes()).await.unwrap();
    eventually(async || (stack.upstream.hits() == 1).then_some(())).await;
    let spent = stack.spent_once_idle().await;
    (spent, heard(&mut stream, "[DONE]").await)
}

#[tokio::test]
async fn a_client_that_does_not_read_its_stream_is_cut_and_pays_what_was_used() {
    let (spent, text) = unread(OnDisconnect::Drain).await;
    assert_eq!(spent, 15);
    assert!(!text.contains("[DONE]"), "the end came to one who was cut");
    let (spent, text) = unread(OnDisconnect::Cancel).await;
    assert_eq!(spent, 38);
    assert!(!text.contains("[DONE]"), "the end came to one who was cut");
}

#[tokio::test]
async fn bodies_on_their_way_leave_connections_to_other_accounts() {
    let stack = two_tenants(balance(1000), |config| config.connections = 8).await;
    let mut dribbling = Vec::new();
    for _ in 0..8 {
        dribbling.push(dribble(&stack, "{\"model\":").await);
    }
    let served = timeout(PATIENCE, status_and_body(others(&stack, &hi(20)))).await;
    assert_eq!(served.expect("nobody else is served").0, 200);
    let refused = heard(dribbling.last_mut().unwrap(), "bodies on their way").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
}
