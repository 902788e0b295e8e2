//! One usage event for every request, however it ends, and none lost.

use futures::future::join_all;
use seatbelt_schemas::usage::NeuronOutcome;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::common::{Neuron, chat, open, request, tiny, with};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_report_names_who_paid_and_counts_what_was_run() {
    let neuron = Neuron::start().await;
    let headers = [
        ("x-seatbelt-reservation", "01J0000000000000000000TEST"),
        ("x-seatbelt-account", "acct-1"),
        ("x-seatbelt-key", "key-1"),
    ];
    assert_eq!(
        neuron
            .post_with(CHAT, &headers, &chat("Hi", 8))
            .await
            .status,
        200
    );
    let (id, event) = neuron.reports.exactly(1).await.remove(0);
    assert_eq!(
        (id.as_str(), event.reservation.as_str()),
        (headers[0].1, headers[0].1)
    );
    assert_eq!(event.account.unwrap().as_str(), "acct-1");
    assert_eq!(event.key.unwrap().as_str(), "key-1");
    assert_eq!(event.model.unwrap().as_str(), "tiny");
    assert_eq!(
        (event.neuron.as_str(), event.device.as_str()),
        ("neuron-1", "cpu")
    );
    assert_eq!(
        (event.usage.input_tokens, event.usage.output_tokens),
        (6, 8)
    );
    assert_eq!(
        (event.outcome, event.usage.cached_input_tokens),
        (NeuronOutcome::Completed, 0)
    );
}

#[tokio::test]
async fn a_request_turned_away_is_reported_once_under_its_own_id() {
    let neuron = Neuron::start().await;
    let headers = [("x-seatbelt-reservation", "r-1")];
    let bodies: [(&str, Value); 5] = [
        (CHAT, json!([])),
        (CHAT, with(chat("x", 1), "model", json!("gpt"))),
        (CHAT, with(chat("x", 1), "n", json!(0))),
        ("/v1/completions", json!({ "model": "tiny" })),
        ("/v1/embeddings", json!({ "model": "tiny", "input": "x" })),
    ];
    for (path, body) in &bodies {
        let answer = neuron.post_with(path, &headers, body).await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
    request(
        neuron.address(),
        "POST",
        CHAT,
        &headers,
        &vec![b' '; 5 << 20],
    )
    .await;
    let reports = neuron.reports.exactly(bodies.len() + 1).await;
    for (id, event) in &reports {
        assert_eq!(event.outcome, NeuronOutcome::Rejected);
        assert_eq!(
            (event.usage.input_tokens, event.usage.output_tokens),
            (0, 0)
        );
        // The same reservation may be used elsewhere; that report must not be a duplicate of this.
        assert_eq!((id, &event.account), (&event.reservation, &None));
        assert_ne!(id, "r-1");
    }
}

#[tokio::test]
async fn whatever_a_field_holds_it_is_answered_in_the_dialect_and_reported_once() {
    let neuron = Neuron::start().await;
    let fields = [
        "model",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "stream",
        "stream_options",
        "n",
        "seed",
        "tools",
        "response_format",
        "logprobs",
    ];
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(1.5),
        json!(1e308),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!([]),
        json!([1]),
        json!([[]]),
        json!({}),
        json!({ "type": 1 }),
        json!([{ "role": 1, "content": {} }]),
        json!("\u{0}\u{7f}é"),
    ];
    let cases: Vec<Value> = (fields.iter())
        .flat_map(|field| {
            values
                .iter()
                .map(|value| with(chat("Hi", 2), field, value.clone()))
        })
        .collect();
    for body in &cases {
        let answer = neuron.post(CHAT, body).await;
        match answer.status {
            200 if answer.body.starts_with("data: ") => drop(answer.chunks()),
            200 => drop(answer.text()),
            400 | 404 => assert!(
                answer.json()["error"]["message"].is_string(),
                "{body}: {answer:?}"
            ),
            _ => panic!("{body}: {answer:?}"),
        }
    }
    neuron.reports.exactly(cases.len()).await;
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_an_error_and_an_expired_report() {
    let neuron = Neuron::start().await;
    let headers = [("x-seatbelt-deadline-ms", "1000")];
    for stream in [false, true] {
        let answer = neuron
            .post_with(
                CHAT,
                &headers,
                &with(chat("Hi", 5), "stream", json!(stream)),
            )
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (504, "deadline_exceeded")
        );
    }
    neuron.reports.exactly(2).await;
    assert_eq!(neuron.reports.count(NeuronOutcome::Expired), 2);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_reported_as_aborted_with_what_was_run() {
    // One slot: those who wait leave long before their turn, the one who runs leaves in the middle.
    let neuron = Neuron::with(|config| config.models = vec![tiny(1)]).await;
    let body = with(chat("Hi", 1000), "stream", json!(true)).to_string();
    let mut first = open(
        neuron.address(),
        "POST",
        CHAT,
        &[("x-seatbelt-reservation", "runs")],
        body.as_bytes(),
    )
    .await;
    let mut begun = [0; 16];
    first.read_exact(&mut begun).await.unwrap();
    drop(first);
    let reports = neuron.reports.exactly(1).await;
    let event = &reports[0].1;
    assert_eq!(
        (event.outcome, event.reservation.as_str()),
        (NeuronOutcome::Aborted, "runs")
    );
    assert!((1..1000).contains(&event.usage.output_tokens), "{event:?}");
    // The slot is free again.
    neuron.says("Hi", 3).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_while_it_waits_costs_nothing() {
    let neuron = Neuron::with(|config| config.models = vec![tiny(1)]).await;
    let long = chat("Hi", 1000).to_string();
    let mut ahead = Vec::new();
    for _ in 0..8 {
        ahead.push(open(neuron.address(), "POST", CHAT, &[], long.as_bytes()).await);
    }
    let headers = [("x-seatbelt-reservation", "waits")];
    let waits = open(neuron.address(), "POST", CHAT, &headers, long.as_bytes()).await;
    while !neuron
        .get("/metrics")
        .await
        .body
        .contains("usage_pending 9")
    {}
    drop(waits);
    loop {
        let reports = neuron.reports.all();
        if let Some((_, event)) = reports.iter().find(|(id, _)| id == "waits") {
            assert_eq!(
                (event.outcome, event.usage.input_tokens),
                (NeuronOutcome::Aborted, 0)
            );
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(ahead);
}

#[tokio::test]
async fn a_deadline_in_the_middle_ends_the_stream_with_an_error() {
    let neuron = Neuron::start().await;
    let unix_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let deadline = (unix_ms + 15).to_string();
    let headers = [("x-seatbelt-deadline-ms", deadline.as_str())];
    let body = with(chat("Hi", 1000), "stream", json!(true));
    let answer = neuron.post_with(CHAT, &headers, &body).await;
    // With bad luck it passes before the first token: then the status says it.
    let streamed = answer
        .events()
        .last()
        .is_some_and(|last| last.contains("deadline_exceeded"));
    assert!(streamed || answer.status == 504, "{answer:?}");
    assert!(!answer.body.contains("[DONE]"));
    let event = neuron.reports.exactly(1).await.remove(0).1;
    assert_eq!(event.outcome, NeuronOutcome::Expired);
    assert!(event.usage.output_tokens < 1000);
}

#[tokio::test]
async fn a_full_neuron_says_when_to_come_back_and_reports_all() {
    let neuron = Neuron::with(|config| (config.models, config.queue) = (vec![tiny(1)], 2)).await;
    let body = chat("Hi", 400);
    let answers = join_all((0..24).map(|_| neuron.post(CHAT, &body))).await;
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == 503)
        .collect();
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(
        served >= 3 && !refused.is_empty(),
        "{served} served, {} refused",
        refused.len()
    );
    assert_eq!(served + refused.len(), answers.len());
    for answer in &refused {
        assert_eq!(
            (answer.header("retry-after"), answer.code().as_str()),
            (Some("1"), "service_unavailable")
        );
    }
    neuron.reports.exactly(answers.len()).await;
    assert_eq!(neuron.reports.count(NeuronOutcome::Rejected), refused.len());
    assert_eq!(neuron.reports.count(NeuronOutcome::Completed), served);
}

#[tokio::test]
async fn reports_that_nobody_took_come_out_at_the_next_start() {
    let neuron = Neuron::with_sink(None, |_| {}).await;
    for _ in 0..3 {
        neuron.says("Hi", 4).await;
    }
    let (_, folder) = neuron.stop().await;

    let restarted = Neuron::in_folder(folder).await;
    let left = restarted.reports.exactly(3).await;
    assert!(left.iter().all(|(_, event)| event.usage.output_tokens == 4));
    let (reports, folder) = restarted.stop().await;
    let again = Neuron::in_folder(folder).await;
    again.stop().await;
    assert_eq!(reports.all().len(), 3);
}

#[tokio::test]
async fn what_a_crash_leaves_on_disk_is_reported_after_the_restart() {
    let neuron = Neuron::with_sink(None, |_| {}).await;
    neuron.says("Hi", 4).await;
    neuron.says("Hi", 5).await;
    let body = with(chat("Hi", 1000), "stream", json!(true)).to_string();
    let running = open(neuron.address(), "POST", CHAT, &[], body.as_bytes()).await;
    while !neuron
        .get("/metrics")
        .await
        .body
        .contains("seatbelt_neuron_usage_pending 3")
    {}

    // A copy of the file in the middle of things is what a kill would leave.
    let after = tempfile::tempdir().unwrap();
    std::fs::create_dir(after.path().join("outbox")).unwrap();
    let file = "outbox/usage.outbox";
    std::fs::copy(neuron.folder.path().join(file), after.path().join(file)).unwrap();
    drop(running);

    let restarted = Neuron::in_folder(after).await;
    let mut reports = restarted.reports.exactly(3).await;
    reports.sort_by_key(|(_, event)| event.usage.output_tokens);
    let seen: Vec<_> = reports
        .iter()
        .map(|(_, event)| (event.outcome, event.usage.output_tokens))
        .collect();
    // What the third really wrote is not known: it is reported at its ceiling.
    let expected = [
        (NeuronOutcome::Completed, 4),
        (NeuronOutcome::Completed, 5),
        (NeuronOutcome::Failed, 1000),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_stop_lets_running_requests_end_and_takes_no_more() {
    let neuron = Neuron::start().await;
    let address = neuron.address();
    let body = with(chat("Hi", 900), "stream", json!(true)).to_string();
    let mut running = open(address, "POST", CHAT, &[], body.as_bytes()).await;
    let mut first = [0; 16];
    running.read_exact(&mut first).await.unwrap();
    let (reports, _folder) = neuron.stop().await;
    let mut rest = Vec::new();
    running.read_to_end(&mut rest).await.unwrap();
    assert!(String::from_utf8(rest).unwrap().contains("data: [DONE]"));
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let reports = reports.all();
    assert_eq!(
        (reports.len(), reports[0].1.outcome),
        (1, NeuronOutcome::Completed)
    );
}

#[tokio::test]
async fn a_stop_without_drain_time_aborts_with_an_error_and_a_report() {
    let neuron = Neuron::with(|config| config.drain = std::time::Duration::ZERO).await;
    let body = with(chat("Hi", 1000), "stream", json!(true)).to_string();
    let mut running = open(neuron.address(), "POST", CHAT, &[], body.as_bytes()).await;
    let mut first = [0; 16];
    running.read_exact(&mut first).await.unwrap();
    let (reports, _folder) = neuron.stop().await;
    let mut rest = Vec::new();
    running.read_to_end(&mut rest).await.unwrap();
    let rest = String::from_utf8(rest).unwrap();
    assert!(
        rest.contains("the neuron is stopping") && !rest.contains("[DONE]"),
        "{rest}"
    );
    let reports = reports.all();
    assert_eq!(
        (reports.len(), reports[0].1.outcome),
        (1, NeuronOutcome::Aborted)
    );
}
