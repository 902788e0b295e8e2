//! Each role with a user of its own on NATS: they serve together with their own keys alone, an embedded
//! server has one that only reads, and a folder from before there were roles starts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use seatbelt_bus::NatsRole;
use seatbelt_ledger::{
    journal::{AppendError, Journal, Sequence},
    nats::NatsJournal,
};
use seatbelt_schemas::{names::Names, position::Partition};
use seatbelt_tests::{Foreign, Key, Stack, nats::PATIENCE, outside::OutsideNats, until};

const PARTITIONS: u8 = 4;

fn names() -> Names {
    Names::default()
}

#[tokio::test]
async fn roles_with_their_own_keys_alone_serve_together() {
    let server = OutsideNats::provisioned().await;
    let foreign = Foreign::start().await;
    let stack = || {
        let key = Key::new("cap").hard_cap(100_000);
        Stack::new().neuron().upstream(&foreign).key(key)
    };
    let home = |role| server.configured(stack(), &[role]);
    let gateway = home(NatsRole::Gateway).start_role("gateway").await;
    let projector = home(NatsRole::Projector).start_role("projector").await;
    let neuron = home(NatsRole::Neuron).start_role("neuron").await;
    let answer = gateway.chat("sk-cap", 20).await;
    assert!(answer.is_ok(), "{answer:?}");
    let body = seatbelt_tests::stack::chat_body("tiny", 8).to_string();
    let body = &body;
    let gateway_ = &gateway;
    let answer = until("the gateway knows the neuron", || async move {
        let answer = gateway_
            .post("/v1/chat/completions", "sk-cap", body.clone())
            .await;
        answer.is_ok().then_some(answer)
    });
    let used = answer.await.json()["usage"]["total_tokens"]
        .as_u64()
        .unwrap()
        + 15;
    let spent = |cap: &serde_json::Value| cap["spent"] == used && cap["held"] == 0;
    gateway
        .cap("sk-cap", "the projector has seen both", spent)
        .await;

    // another gateway takes part: its requests go to the first one's writers
    let other = home(NatsRole::Gateway).start_role("gateway").await;
    assert!(other.chat("sk-cap", 20).await.is_ok());
    gateway.stop().await;
    let answer = until("the other one has taken over", || async {
        let answer = other.chat("sk-cap", 20).await;
        answer.is_ok().then_some(answer)
    });
    answer.await;
    for role in [&other, &projector, &neuron] {
        let log = role.log();
        assert!(
            !log.to_lowercase().contains("permissions violation"),
            "{log}"
        );
    }
    let auditor = home(NatsRole::Auditor);
    auditor.verify().await;
    let settled = auditor.events_of("acct-cap", "settled").await.len();
    assert_eq!(settled, 4);
    bills(&server, settled).await;
    for role in [other, projector, neuron] {
        role.stop().await;
    }
    auditor.verify().await;
}

/// Billing reads the feed with the consumer that is there for it, and acknowledges.
async fn bills(server: &OutsideNats, settled: usize) {
    let billing = server.connect(NatsRole::Billing).await;
    let subject = "$JS.API.CONSUMER.MSG.NEXT.SEATBELT_FEED.billing";
    let mut seen = 0;
    while seen < settled {
        let asked = Bytes::from_static(br#"{"batch":1,"expires":20000000000}"#);
        let inbox = billing.client().new_inbox();
        let mut messages = billing.client().subscribe(inbox.clone()).await.unwrap();
        billing
            .client()
            .publish_with_reply(subject, inbox, asked)
            .await
            .unwrap();
        let next = futures::StreamExt::next(&mut messages);
        let message = tokio::time::timeout(PATIENCE, next).await.unwrap().unwrap();
        assert_eq!(message.status, None, "{message:?}");
        let ack = message.reply.unwrap();
        let acked = billing.client().request(ack, Bytes::from_static(b"+ACK"));
        acked.await.unwrap();
        seen += usize::from(message.subject.ends_with(".settled"));
    }
}

#[tokio::test]
async fn a_role_without_a_ledger_says_who_makes_it() {
    let server = OutsideNats::start().await;
    let key = Key::new("cap").hard_cap(100);
    let home = server.configured(Stack::new().key(key), &[NatsRole::Gateway]);
    let log = home.try_start_role("gateway").await.err().unwrap();
    assert!(log.contains("seatbelt nats provision"), "{log}");
}

#[tokio::test]
async fn the_embedded_server_has_a_url_that_only_reads() {
    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(100);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    let text = std::fs::read(stack.home().data().join("nats.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let reader_url = told["reader_url"].as_str().unwrap();
    let reader = seatbelt_bus::connect(reader_url, "test", PATIENCE)
        .await
        .unwrap();
    let journal = NatsJournal::open_existing(&reader, &names(), Partition(0))
        .await
        .unwrap();
    let refused = journal.append(Sequence(0), Bytes::from_static(b"no")).await;
    assert!(
        matches!(refused, Err(AppendError::Refused { .. })),
        "{refused:?}"
    );
    stack.home().verify().await;
    let log = stack.log();
    assert!(
        !log.to_lowercase().contains("permissions violation"),
        "{log}"
    );
    let home = stack.stop().await;
    home.verify().await;
}

/// A folder that was kept by a server with one user, and the neurons' secret beside the facts.
#[tokio::test]
async fn a_folder_from_before_there_were_roles_starts() {
    use seatbelt_cli::nats_server::{NatsServer, NatsServerOptions};
    use seatbelt_schemas::position::Partitions;

    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(100);
    let home = Stack::new().upstream(&foreign).key(key).write();
    let options = NatsServerOptions::new(seatbelt_tests::nats::program(), home.data());
    let server = NatsServer::start(options).await.unwrap();
    let nats = seatbelt_bus::connect(&server.url(), "test", PATIENCE)
        .await
        .unwrap();
    let layout = seatbelt_bus::Layout {
        partitions: Partitions::try_from(PARTITIONS).unwrap(),
        replicas: 1,
    };
    seatbelt_bus::provision(&nats, &names(), layout)
        .await
        .unwrap();
    let jetstream = async_nats::jetstream::new(nats.client().clone());
    let secrets = jetstream.get_stream("KV_SEATBELT_SECRETS").await.unwrap();
    drop(secrets);
    jetstream
        .delete_stream("KV_SEATBELT_SECRETS")
        .await
        .unwrap();
    let meta = jetstream
        .get_key_value(names().meta_bucket())
        .await
        .unwrap();
    meta.put("neuron_secret", vec![7; 32].into()).await.unwrap();
    drop((jetstream, meta, nats));
    server.stop().await;

    let stack = home.start().await;
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    let secrets = jetstream
        .get_key_value(names().secret_bucket())
        .await
        .unwrap();
    let kept = secrets.get("neuron_secret").await.unwrap().unwrap();
    assert_eq!(kept[..], [7; 32], "neurons that run would know no gateway");
    let meta = jetstream
        .get_key_value(names().meta_bucket())
        .await
        .unwrap();
    assert_eq!(meta.get("neuron_secret").await.unwrap(), None);
    let home = stack.stop().await;
    home.verify().await;
    let again = home.start().await;
    assert!(again.chat("sk-cap", 20).await.is_ok());
    again.stop().await;
}
