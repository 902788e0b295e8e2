//! What each user of a NATS server with a ledger may do: its own, and nothing else. Everything that is not
//! its own is tried on a real server, by the configuration that `seatbelt nats config` prints.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use async_nats::{ConnectOptions, Event, ServerError};
use bytes::Bytes;
use seatbelt_bus::{Nats, NatsRole};
use seatbelt_ledger::{
    journal::{AppendError, Journal, Sequence},
    nats::NatsJournal,
};
use seatbelt_schemas::{names::Names, position::Partition};
use seatbelt_tests::outside::OutsideNats;
use tokio::sync::mpsc;

const PARTITIONS: u8 = 4;
/// Attempts on their way at once: as many as the client keeps events of.
const ATTEMPTS_AT_ONCE: usize = 16;

/// A user of the server, and what the server denies it.
struct User {
    client: async_nats::Client,
    denied: mpsc::UnboundedReceiver<String>,
}

impl User {
    async fn connect(server: &OutsideNats, role: NatsRole) -> Self {
        let (sender, denied) = mpsc::unbounded_channel();
        let options = ConnectOptions::with_nkey(server.seed(role))
            .custom_inbox_prefix(role.inbox())
            .event_callback(move |event| {
                if let Event::ServerError(ServerError::Other(words)) = event {
                    // the test may have ended
                    let _ = sender.send(words);
                }
                async {}
            });
        let client = options.connect(&server.url).await.unwrap();
        Self { client, denied }
    }

    /// Tries all, and gives those that the server denied.
    async fn denied(&mut self, verb: &str, subjects: &[String]) -> BTreeSet<String> {
        let mut denied = BTreeSet::new();
        for some in subjects.chunks(ATTEMPTS_AT_ONCE) {
            for subject in some {
                match verb {
                    "Publish" => self
                        .client
                        .publish(subject.clone(), Bytes::new())
                        .await
                        .unwrap(),
                    _ => drop(self.client.subscribe(subject.clone()).await.unwrap()),
                }
            }
            // a request of its own comes after all of them
            self.client
                .request("$JS.API.INFO", Bytes::new())
                .await
                .unwrap();
            let begun = Instant::now();
            let mut missing = some
                .iter()
                .filter(|subject| !denied.contains(*subject))
                .count();
            while missing > 0 && begun.elapsed() < Duration::from_secs(2) {
                let next = tokio::time::timeout(Duration::from_secs(1), self.denied.recv());
                let Ok(Some(words)) = next.await else { break };
                let about = format!("Permissions Violation for {verb} to \"");
                let Some(rest) = words.split_once(&about) else {
                    continue;
                };
                let subject = rest.1.split('"').next().unwrap().to_owned();
                missing -= usize::from(denied.insert(subject));
            }
        }
        denied
    }
}

fn names() -> Names {
    Names::default()
}

fn journals() -> impl Iterator<Item = Partition> {
    (0..PARTITIONS).map(Partition)
}

fn streams() -> Vec<String> {
    let mut streams: Vec<_> = journals().map(|one| names().journal_stream(one)).collect();
    for name in ["SEATBELT_FEED", "SEATBELT_USAGE"] {
        streams.push(name.to_owned());
    }
    for bucket in [
        "META",
        "SECRETS",
        "SNAPSHOTS",
        "LEASES",
        "NEURONS",
        "THREADS",
        "IDEMPOTENCE",
    ] {
        streams.push(format!("KV_SEATBELT_{bucket}"));
    }
    streams
}

/// Questions of JetStream about a stream as a whole.
const OF_STREAMS: [&str; 15] = [
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.MSG.DELETE",
    "STREAM.MSG.GET",
    "STREAM.INFO",
    "STREAM.SNAPSHOT",
    "STREAM.RESTORE",
    "STREAM.LEADER.STEPDOWN",
    "STREAM.PEER.REMOVE",
    "CONSUMER.CREATE",
    "CONSUMER.NAMES",
    "CONSUMER.LIST",
    "DIRECT.GET",
];
/// And about a consumer of one.
const OF_CONSUMERS: [&str; 7] = [
    "CREATE",
    "DURABLE.CREATE",
    "DELETE",
    "INFO",
    "MSG.NEXT",
    "PAUSE",
    "RESET",
];

/// Everything that somebody might publish.
fn publishable() -> Vec<String> {
    let mut all = Vec::new();
    for stream in streams() {
        for verb in OF_STREAMS {
            all.push(format!("$JS.API.{verb}.{stream}"));
        }
        for verb in OF_CONSUMERS {
            for consumer in ["theirs", "billing"] {
                all.push(format!("$JS.API.CONSUMER.{verb}.{stream}.{consumer}"));
            }
        }
        all.push(format!(
            "$JS.API.CONSUMER.CREATE.{stream}.theirs.some.subject"
        ));
        all.push(format!("$JS.ACK.{stream}.theirs.1.1.1.1.1"));
        all.push(format!("$JS.ACK.d.h.{stream}.theirs.1.1.1.1.1.r"));
    }
    for partition in journals() {
        all.push(names().journal_subject(partition));
        for verb in ["reserve", "resize", "settle", "release", "read", "admin"] {
            all.push(names().ledger_subject(partition, verb));
        }
    }
    for bucket in [
        "META",
        "SECRETS",
        "SNAPSHOTS",
        "LEASES",
        "NEURONS",
        "THREADS",
        "IDEMPOTENCE",
    ] {
        for key in [
            "ledger",
            "journal.00",
            "neuron_secret",
            "account.a",
            "a",
            "partition.00",
        ] {
            all.push(format!("$KV.SEATBELT_{bucket}.{key}"));
        }
    }
    all.extend(
        [
            "seatbelt.journal.v1.99",
            "seatbelt.spend.v1.a.settled",
            "seatbelt.usage.v1.n",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.LIST",
            "$JS.API.ACCOUNT.PURGE.SEATBELT",
            "$JS.API.META.LEADER.STEPDOWN",
            "$SYS.REQ.SERVER.PING.JSZ",
            "$SYS.REQ.SERVER.PING.VARZ",
            "$SYS.REQ.SERVER.PING.CONNZ",
            "$SYS.REQ.ACCOUNT.PING.CONNZ",
        ]
        .map(str::to_owned),
    );
    all.extend(inboxes().iter().map(|inbox| format!("{inbox}.x.y")));
    all
}

/// Everything that somebody might listen to.
fn hearable() -> Vec<String> {
    let mut all = [
        ">",
        "*",
        "*.>",
        "_INBOX.*.*.>",
        "seatbelt.>",
        "seatbelt.journal.v1.00",
        "seatbelt.ledger.v1.>",
        "seatbelt.ledger.v1.*.*",
        "seatbelt.spend.v1.>",
        "seatbelt.usage.v1.>",
        "$KV.>",
        "$KV.SEATBELT_SECRETS.>",
        "$JS.>",
        "$JS.API.>",
        "$JS.ACK.>",
        "$JS.EVENT.>",
        "$SYS.>",
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend(inboxes().iter().map(|inbox| format!("{inbox}.>")));
    all
}

fn inboxes() -> [&'static str; 5] {
    [
        "_INBOX",
        "_INBOX_provisioning",
        "_INBOX_gateway",
        "_INBOX_projector",
        "_INBOX_neuron",
    ]
}

/// What is a role's own, told apart from the program: what it may publish, where `*` stands for any text, and hear.
fn own(role: NatsRole) -> (Vec<String>, Vec<&'static str>) {
    match role {
        NatsRole::Provisioning => own_of_provisioning(),
        NatsRole::Gateway => own_of_gateways(),
        NatsRole::Projector => own_of_projectors(),
        NatsRole::Neuron => own_of_neurons(),
        NatsRole::Auditor => own_of_auditors(),
        NatsRole::Billing | NatsRole::Reader => own_of_billing(),
    }
}

fn own_of_provisioning() -> (Vec<String>, Vec<&'static str>) {
    let mut publish: Vec<String> = Vec::new();
    publish.extend(texts(&[
        "_INBOX_provisioning.*",
        "$KV.SEATBELT_META.*",
        "$KV.SEATBELT_SECRETS.*",
    ]));
    publish.extend(texts(&[
        "seatbelt.journal.v1.0*",
        "seatbelt.ledger.v1.*.release",
        "seatbelt.ledger.v1.*.read",
        "$SYS.REQ.SERVER.PING.JSZ",
    ]));
    publish.extend(texts(&[
        "$JS.API.STREAM.PURGE.KV_SEATBELT_SNAPSHOTS",
        "$JS.API.STREAM.PURGE.KV_SEATBELT_META",
    ]));
    publish.extend(texts(&[
        "$JS.API.STREAM.DELETE.SEATBELT_FEED",
        "$JS.API.CONSUMER.CREATE.SEATBELT_FEED.billing",
    ]));
    publish.extend(streams().iter().flat_map(|stream| read(stream)));
    publish.extend(streams().iter().map(|stream| make(stream)));
    publish.extend(follow(JOURNAL));
    for stream in [
        JOURNAL,
        "KV_SEATBELT_META",
        "KV_SEATBELT_SECRETS",
        "KV_SEATBELT_THREADS",
        "KV_SEATBELT_IDEMPOTENCE",
        "SEATBELT_USAGE",
    ] {
        publish.push(format!("$JS.API.STREAM.UPDATE.{stream}"));
    }
    for bucket in ["META", "SECRETS"] {
        publish.push(format!("$JS.API.STREAM.DELETE.KV_SEATBELT_{bucket}"));
    }
    (publish, vec!["_INBOX_provisioning.>"])
}

fn own_of_gateways() -> (Vec<String>, Vec<&'static str>) {
    let mut publish: Vec<String> = Vec::new();
    publish.extend(texts(&[
        "_INBOX_gateway.*",
        "_INBOX_projector.*",
        "_INBOX_provisioning.*",
        "$SYS.REQ.SERVER.PING.JSZ",
    ]));
    publish.extend(texts(&[
        "seatbelt.journal.v1.0*",
        "seatbelt.ledger.v1.*",
        "$KV.SEATBELT_LEASES.*",
    ]));
    for bucket in ["THREADS", "IDEMPOTENCE"] {
        let keys = ["a", "ledger", "neuron_secret"];
        publish.extend(keys.map(|key| format!("$KV.SEATBELT_{bucket}.{key}")));
    }
    publish.extend(texts(&["$KV.SEATBELT_META.journal.*"]));
    // one of which the server keeps nothing is made again
    publish.extend(texts(&["$JS.API.STREAM.DELETE.KV_SEATBELT_LEASES"]));
    // what was refused is taken out again
    publish.extend(texts(&[
        "$JS.API.STREAM.MSG.DELETE.KV_SEATBELT_IDEMPOTENCE",
    ]));
    for stream in [JOURNAL, "KV_SEATBELT_LEASES", "KV_SEATBELT_NEURONS"] {
        publish.extend(read(stream).into_iter().chain(follow(stream)));
    }
    for bucket in ["META", "SECRETS", "SNAPSHOTS", "THREADS", "IDEMPOTENCE"] {
        publish.extend(read(&format!("KV_SEATBELT_{bucket}")));
    }
    for bucket in ["LEASES", "NEURONS", "SNAPSHOTS"] {
        publish.push(make(&format!("KV_SEATBELT_{bucket}")));
    }
    publish.extend(read("SEATBELT_FEED"));
    publish.extend(follow("SEATBELT_USAGE"));
    publish.push("$JS.API.STREAM.INFO.SEATBELT_USAGE".to_owned());
    publish.push(make("SEATBELT_USAGE"));
    (publish, vec!["_INBOX_gateway.>", "seatbelt.ledger.v1.*.*"])
}

fn own_of_projectors() -> (Vec<String>, Vec<&'static str>) {
    let mut publish: Vec<String> = Vec::new();
    publish.extend(texts(&[
        "_INBOX_projector.*",
        "$SYS.REQ.SERVER.PING.JSZ",
        "seatbelt.spend.v1.*",
    ]));
    publish.extend(texts(&[
        "$KV.SEATBELT_SNAPSHOTS.*",
        "seatbelt.ledger.v1.*.settle",
        "seatbelt.ledger.v1.*.read",
    ]));
    publish.extend(texts(&[
        "$JS.API.CONSUMER.CREATE.SEATBELT_FEED.billing",
        "$JS.API.STREAM.INFO.SEATBELT_USAGE",
    ]));
    for stream in [JOURNAL, "SEATBELT_FEED"] {
        publish.extend(read(stream).into_iter().chain(follow(stream)));
    }
    publish.extend(follow("SEATBELT_USAGE"));
    for bucket in ["META", "SNAPSHOTS"] {
        publish.extend(read(&format!("KV_SEATBELT_{bucket}")));
    }
    publish.extend([make("SEATBELT_FEED"), make("KV_SEATBELT_SNAPSHOTS")]);
    (publish, vec!["_INBOX_projector.>"])
}

fn own_of_neurons() -> (Vec<String>, Vec<&'static str>) {
    let mut publish: Vec<String> = Vec::new();
    publish.extend(texts(&[
        "_INBOX_neuron.*",
        "$SYS.REQ.SERVER.PING.JSZ",
        "seatbelt.usage.v1.*",
    ]));
    for key in ["a", "ledger", "neuron_secret"] {
        publish.push(format!("$KV.SEATBELT_NEURONS.{key}"));
    }
    for bucket in ["META", "SECRETS"] {
        publish.extend(read(&format!("KV_SEATBELT_{bucket}")));
    }
    for stream in ["SEATBELT_USAGE", "KV_SEATBELT_NEURONS"] {
        publish.push(format!("$JS.API.STREAM.INFO.{stream}"));
    }
    (publish, vec!["_INBOX_neuron.>"])
}

fn own_of_auditors() -> (Vec<String>, Vec<&'static str>) {
    let mut publish: Vec<String> = Vec::new();
    publish.extend(texts(&["_INBOX.*"]));
    publish.extend(texts(&["$JS.API.STREAM.INFO.*"]));
    let buckets = ["KV_SEATBELT_META", "KV_SEATBELT_SNAPSHOTS"];
    for stream in [JOURNAL, "SEATBELT_FEED"].into_iter().chain(buckets) {
        publish.extend(read(stream));
    }
    (publish, vec!["_INBOX.>", "_INBOX.*.*.>"])
}

fn own_of_billing() -> (Vec<String>, Vec<&'static str>) {
    let mut publish: Vec<String> = Vec::new();
    publish.extend(texts(&["_INBOX.*"]));
    publish.extend(read("SEATBELT_FEED"));
    for verb in ["INFO", "MSG.NEXT"] {
        publish.push(format!("$JS.API.CONSUMER.{verb}.SEATBELT_FEED.billing"));
    }
    (
        publish,
        vec!["_INBOX.>", "_INBOX.*.*.>", "seatbelt.spend.v1.>"],
    )
}

const JOURNAL: &str = "SEATBELT_JOURNAL_*";

fn texts(of: &[&str]) -> Vec<String> {
    of.iter().map(|one| (*one).to_owned()).collect()
}

fn read(stream: &str) -> [String; 2] {
    ["INFO", "MSG.GET"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}"))
}

fn follow(stream: &str) -> [String; 2] {
    [
        format!("$JS.API.CONSUMER.CREATE.{stream}"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
    ]
}

fn make(stream: &str) -> String {
    format!("$JS.API.STREAM.CREATE.{stream}")
}

fn matches(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(rest) = text.strip_prefix(before) else {
        return false;
    };
    let mut ends = rest
        .char_indices()
        .map(|(at, letter)| at + letter.len_utf8());
    ends.any(|end| matches(after, &rest[end..]))
}

/// How every stream is kept, and how it ends.
async fn state(nats: &Nats) -> BTreeMap<String, serde_json::Value> {
    let mut state = BTreeMap::new();
    for stream in streams() {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let told = nats.client().request(subject, Bytes::new()).await.unwrap();
        let told: serde_json::Value = serde_json::from_slice(&told.payload).unwrap();
        state.insert(
            stream,
            serde_json::json!([told["config"], told["state"]["last_seq"]]),
        );
    }
    state
}

#[tokio::test]
async fn what_is_not_a_roles_own_is_denied() {
    let server = OutsideNats::provisioned().await;
    let operator = server.connect(NatsRole::Provisioning).await;
    let before = state(&operator).await;
    for role in NatsRole::OUTSIDE {
        let (publish, hear) = own(role);
        let foreign = |subject: &String| !publish.iter().any(|own| matches(own, subject));
        let foreign: Vec<_> = publishable().into_iter().filter(foreign).collect();
        let mut user = User::connect(&server, role).await;
        let denied = user.denied("Publish", &foreign).await;
        let let_through: Vec<_> = foreign
            .iter()
            .filter(|one| !denied.contains(*one))
            .collect();
        assert!(
            let_through.is_empty(),
            "{role} may publish to {let_through:?}"
        );

        let foreign = |subject: &String| !hear.contains(&subject.as_str());
        let foreign: Vec<_> = hearable().into_iter().filter(foreign).collect();
        let denied = user.denied("Subscription", &foreign).await;
        let let_through: Vec<_> = foreign
            .iter()
            .filter(|one| !denied.contains(*one))
            .collect();
        assert!(
            let_through.is_empty(),
            "{role} may subscribe to {let_through:?}"
        );
    }
    assert_eq!(state(&operator).await, before);
}

/// A server answers wherever it is asked to, also where whoever asks may not publish.
#[tokio::test]
async fn no_role_apart_has_the_server_write_to_a_journal() {
    let server = OutsideNats::provisioned().await;
    let operator = server.connect(NatsRole::Provisioning).await;
    let before = state(&operator).await;
    let journal = names().journal_subject(Partition(0));
    for role in [NatsRole::Neuron, NatsRole::Auditor, NatsRole::Billing] {
        let user = server.connect(role).await;
        let (own, _) = own(role);
        let exact = own
            .into_iter()
            .filter(|subject| !subject.contains('*') && !subject.starts_with("$SYS"));
        let asked: Vec<_> = exact.chain(["$JS.API.INFO".to_owned()]).collect();
        for subject in &asked {
            let payload = Bytes::from_static(br#"{"seq":1,"last_by_subj":"ledger","batch":1}"#);
            let sent = user
                .client()
                .publish_with_reply(subject.clone(), journal.clone(), payload);
            sent.await.unwrap();
        }
        assert!(user.settled().await);
    }
    let now = state(&operator).await;
    for partition in journals() {
        let stream = names().journal_stream(partition);
        assert_eq!(
            now[&stream], before[&stream],
            "the server wrote to {stream}"
        );
    }
}

#[tokio::test]
async fn a_denial_is_told_at_once_and_names_the_permission() {
    let server = OutsideNats::provisioned().await;
    let (projector, billing) = (
        server.connect(NatsRole::Projector).await,
        server.connect(NatsRole::Billing).await,
    );
    let begun = Instant::now();
    let journal = NatsJournal::open_existing(&projector, &names(), Partition(0))
        .await
        .unwrap();
    let refused = journal.append(Sequence(0), Bytes::from_static(b"no")).await;
    let Err(AppendError::Refused { detail }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        detail.contains("publish to \"seatbelt.journal.v1.00\""),
        "{detail}"
    );
    assert!(detail.contains("seatbelt nats config"), "{detail}");

    let refused = NatsJournal::open_existing(&billing, &names(), Partition(0)).await;
    let told = refused.unwrap_err().to_string();
    let permission = "publish to \"$JS.API.STREAM.INFO.SEATBELT_JOURNAL_00\"";
    assert!(told.contains(permission), "{told}");

    let refused = seatbelt_bus::meta(&billing, &names()).await;
    let told = refused.unwrap_err().to_string();
    let permission = "publish to \"$JS.API.STREAM.INFO.KV_SEATBELT_META\"";
    assert!(told.contains(permission), "{told}");

    let neuron = server.connect(NatsRole::Neuron).await;
    let told = seatbelt_bus::usage_end(&neuron, &names()).await;
    assert!(told.is_ok(), "{told:?}");
    let mut usage = std::pin::pin!(seatbelt_bus::follow_usage(&neuron, &names(), 0));
    let Some(Err(refused)) = futures::StreamExt::next(&mut usage).await else {
        panic!("a neuron reads what others report");
    };
    let told = refused.source.to_string();
    let permission = "publish to \"$JS.API.CONSUMER.CREATE.SEATBELT_USAGE\"";
    assert!(told.contains(permission), "{told}");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "waited out an answer that cannot come"
    );
}
