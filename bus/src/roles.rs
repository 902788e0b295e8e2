//! What each role may do on NATS, as data: what it publishes and what it listens to.
//!
//! From this the configuration of nats-server is generated, for the embedded server and for others alike,
//! and the tests try everything that is not here. Nothing is granted by a pattern over stream names: NATS
//! knows no wildcard inside a token, so every journal is named.
//!
//! Whoever publishes may have the server answer to any subject of its own account, also one that it may
//! not publish to. So roles that need little are placed in an account apart, where no subject of the ledger
//! is, and reach only what is exported to them (ADR 0033).

use std::fmt;

use seatbelt_schemas::{
    names::Names,
    position::{Partition, Partitions},
};

/// The account of the ledger. What a server keeps lies in a folder of this name.
pub const LEDGER_ACCOUNT: &str = "SEATBELT";
/// What servers tell about themselves: whether they sync, and how full they are.
pub const SERVER_SERVICE: &str = "$SYS.REQ.SERVER.PING.JSZ";
/// The durable consumer of the feed for billing.
pub const BILLING_CONSUMER: &str = "billing";

/// A user of NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatsRole {
    /// Makes streams and buckets, and carries out what an operator decides about journals.
    Provisioning,
    /// Serves clients and writes journals.
    Gateway,
    /// Derives snapshots and the feed from journals, and settles what neurons reported.
    Projector,
    /// Serves models: registers itself and reports usage.
    Neuron,
    /// Reads journals and what was seen of them.
    Auditor,
    /// Reads the feed.
    Billing,
    /// Auditor and billing in one, for an embedded server's tools.
    Reader,
}

impl NatsRole {
    /// All that an outside server has users for.
    pub const OUTSIDE: [Self; 6] = [
        Self::Provisioning,
        Self::Gateway,
        Self::Projector,
        Self::Neuron,
        Self::Auditor,
        Self::Billing,
    ];

    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Gateway => "gateway",
            Self::Projector => "projector",
            Self::Neuron => "neuron",
            Self::Auditor => "auditor",
            Self::Billing => "billing",
            Self::Reader => "reader",
        }
    }

    /// The account it is placed in.
    pub fn account(self) -> String {
        match self {
            Self::Provisioning | Self::Gateway | Self::Projector => LEDGER_ACCOUNT.to_owned(),
            apart => format!("{LEDGER_ACCOUNT}_{}", apart.name().to_uppercase()),
        }
    }

    /// Whether it is placed in an account apart from the ledger's.
    pub const fn is_apart(self) -> bool {
        matches!(
            self,
            Self::Neuron | Self::Auditor | Self::Billing | Self::Reader
        )
    }

    /// What the subjects begin with to which its answers come. Tools of auditors and billing use the one
    /// that clients have by themselves; nobody else is in their account.
    pub fn inbox(self) -> String {
        match self {
            Self::Auditor | Self::Billing | Self::Reader => "_INBOX".to_owned(),
            own => format!("_INBOX_{}", own.name()),
        }
    }
}

impl fmt::Display for NatsRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a role may do; nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects it may publish to.
    pub publish: Vec<String>,
    /// Subjects it may subscribe to, in its own account.
    pub subscribe: Vec<String>,
    /// Subjects of the ledger's account that a role in another one hears, beside its own.
    pub hears: Vec<String>,
}

impl Permissions {
    /// Of a role, in a ledger of these names and partitions.
    pub fn of(role: NatsRole, names: &Names, partitions: Partitions) -> Self {
        let mut grants = Grants::new(names, partitions);
        match role {
            NatsRole::Provisioning => grants.provisioning(),
            NatsRole::Gateway => grants.gateway(),
            NatsRole::Projector => grants.projector(),
            NatsRole::Neuron => grants.neuron(),
            NatsRole::Auditor => grants.auditor(),
            NatsRole::Billing => grants.billing(),
            NatsRole::Reader => {
                grants.auditor();
                grants.billing();
            }
        }
        let inbox = format!("{}.>", role.inbox());
        grants.publish("$JS.API.INFO");
        // to itself: how it learns that what it sent before has arrived
        grants.publish(&inbox);
        grants.granted.subscribe.push(inbox);
        grants.finish()
    }
}

/// Permissions being put together.
struct Grants<'a> {
    names: &'a Names,
    partitions: Partitions,
    granted: Permissions,
}

impl<'a> Grants<'a> {
    fn new(names: &'a Names, partitions: Partitions) -> Self {
        Self {
            names,
            partitions,
            granted: Permissions::default(),
        }
    }

    fn finish(self) -> Permissions {
        let mut granted = self.granted;
        for list in [
            &mut granted.publish,
            &mut granted.subscribe,
            &mut granted.hears,
        ] {
            list.sort();
            list.dedup();
        }
        granted
    }

    fn provisioning(&mut self) {
        let names = self.names;
        for stream in self.streams() {
            self.make(&stream);
            self.get(&stream);
        }
        // also of journals that the configuration does not know of: facts are made again from all there are
        self.info("*");
        self.publish(SERVER_SERVICE);
        self.publish(&keys(&names.meta_bucket(), ">"));
        self.publish(&keys(&names.secret_bucket(), ">"));
        self.api(&format!("STREAM.PURGE.{}", kv(&names.meta_bucket())));
        // settings of what is a source are written once more when it is made
        let sources = [kv(&names.meta_bucket()), kv(&names.secret_bucket())];
        let others = [
            names.usage_stream(),
            kv(&names.thread_bucket()),
            kv(&names.first_use_bucket()),
        ];
        for stream in sources.iter().chain(&others) {
            self.api(&format!("STREAM.UPDATE.{stream}"));
        }
        // one that is damaged is made again
        for stream in &sources {
            self.api(&format!("STREAM.DELETE.{stream}"));
        }
        self.consume_as_billing(&["CREATE"]);
        // an operator's word stands in a journal, and what was derived before it is taken out
        for partition in self.partitions.iter() {
            self.follow(&names.journal_stream(partition));
            self.publish(&names.journal_subject(partition));
            // settings that a server does not have on its disk any more are written again
            self.api(&format!(
                "STREAM.UPDATE.{}",
                names.journal_stream(partition)
            ));
        }
        self.api(&format!("STREAM.PURGE.{}", kv(&names.snapshot_bucket())));
        self.api(&format!("STREAM.DELETE.{}", names.feed_stream()));
        // ends a run that nobody can close any more
        for verb in ["release", "read"] {
            for partition in self.partitions.iter() {
                self.publish(&names.ledger_subject(partition, verb));
            }
        }
    }

    fn gateway(&mut self) {
        let names = self.names;
        self.publish(SERVER_SERVICE);
        for partition in self.partitions.iter() {
            let stream = names.journal_stream(partition);
            self.get(&stream);
            self.follow(&stream);
            self.publish(&names.journal_subject(partition));
            for requester in [
                NatsRole::Gateway,
                NatsRole::Projector,
                NatsRole::Provisioning,
            ] {
                self.publish(&format!("{}.>", requester.inbox()));
            }
        }
        self.publish(&names.ledger_subjects());
        self.granted.subscribe.push(names.ledger_subjects());
        // how far each journal is known to go
        self.get(&names.feed_stream());
        self.get(&kv(&names.meta_bucket()));
        self.publish(&keys(&names.meta_bucket(), "journal.*"));
        self.get(&kv(&names.secret_bucket()));
        self.make(&kv(&names.snapshot_bucket()));
        self.get(&kv(&names.snapshot_bucket()));
        for bucket in [names.lease_bucket(), names.neuron_bucket()] {
            self.make(&kv(&bucket));
            self.get(&kv(&bucket));
            self.follow(&kv(&bucket));
        }
        self.publish(&keys(&names.lease_bucket(), ">"));
        for bucket in [names.thread_bucket(), names.first_use_bucket()] {
            self.get(&kv(&bucket));
            self.publish(&keys(&bucket, "*"));
        }
        // of what was refused nothing stays, or whoever has no money fills it
        let first_uses = kv(&names.first_use_bucket());
        self.api(&format!("STREAM.MSG.DELETE.{first_uses}"));
        // one that is damaged is made again
        self.api(&format!("STREAM.DELETE.{}", kv(&names.lease_bucket())));
        // where it is lost while requests are served
        self.make(&names.usage_stream());
        self.follow(&names.usage_stream());
    }

    fn projector(&mut self) {
        let names = self.names;
        self.publish(SERVER_SERVICE);
        for partition in self.partitions.iter() {
            let stream = names.journal_stream(partition);
            self.get(&stream);
            self.follow(&stream);
        }
        self.get(&kv(&names.meta_bucket()));
        self.make(&kv(&names.snapshot_bucket()));
        self.get(&kv(&names.snapshot_bucket()));
        self.publish(&keys(&names.snapshot_bucket(), ">"));
        self.make(&names.feed_stream());
        self.get(&names.feed_stream());
        self.follow(&names.feed_stream());
        self.publish(&names.feed_subjects());
        self.consume_as_billing(&["CREATE"]);
        self.info(&names.usage_stream());
        self.follow(&names.usage_stream());
        // settles what a dead gateway left open, where it has no ledger of its own
        for verb in ["settle", "read"] {
            for partition in self.partitions.iter() {
                self.publish(&names.ledger_subject(partition, verb));
            }
        }
    }

    fn neuron(&mut self) {
        let names = self.names;
        self.publish(SERVER_SERVICE);
        self.get(&kv(&names.meta_bucket()));
        self.get(&kv(&names.secret_bucket()));
        self.info(&names.usage_stream());
        self.info(&kv(&names.neuron_bucket()));
        self.publish(&keys(&names.neuron_bucket(), "*"));
        self.publish(&names.usage_subjects());
    }

    /// Makes no consumer: one could have the server deliver to any subject of the ledger.
    fn auditor(&mut self) {
        let names = self.names;
        // whatever its configuration says: how many journals there are, the ledger tells
        self.info("*");
        for partition in self.partitions.iter() {
            self.get(&names.journal_stream(partition));
        }
        for bucket in [names.meta_bucket(), names.snapshot_bucket()] {
            self.get(&kv(&bucket));
        }
        self.get(&names.feed_stream());
    }

    /// As an auditor makes none; there is a durable one for it.
    fn billing(&mut self) {
        let names = self.names;
        self.get(&names.feed_stream());
        self.consume_as_billing(&["INFO", "MSG.NEXT"]);
        let of_ours = format!("{}.{BILLING_CONSUMER}.>", names.feed_stream());
        self.publish(&format!("$JS.ACK.{of_ours}"));
        // as servers from 2.15 on name them, with domain and account
        self.publish(&format!("$JS.ACK.*.*.{of_ours}"));
        self.granted.subscribe.push(names.feed_subjects());
        self.granted.hears.push(names.feed_subjects());
    }

    /// All streams and buckets of the ledger.
    fn streams(&self) -> Vec<String> {
        let names = self.names;
        let buckets = [
            names.meta_bucket(),
            names.secret_bucket(),
            names.snapshot_bucket(),
            names.lease_bucket(),
            names.neuron_bucket(),
            names.thread_bucket(),
            names.first_use_bucket(),
        ];
        let journals = self.partitions.iter();
        let journals = journals.map(|partition: Partition| names.journal_stream(partition));
        let mut streams: Vec<_> = journals.collect();
        streams.extend(buckets.iter().map(|bucket| kv(bucket)));
        streams.extend([names.feed_stream(), names.usage_stream()]);
        streams
    }

    fn publish(&mut self, subject: &str) {
        self.granted.publish.push(subject.to_owned());
    }

    fn api(&mut self, verb: &str) {
        self.publish(&format!("$JS.API.{verb}"));
    }

    fn info(&mut self, stream: &str) {
        self.api(&format!("STREAM.INFO.{stream}"));
    }

    /// Make it where it is missing: a stream that is there is not changed by it.
    fn make(&mut self, stream: &str) {
        self.info(stream);
        self.api(&format!("STREAM.CREATE.{stream}"));
    }

    /// One message at a time.
    fn get(&mut self, stream: &str) {
        self.info(stream);
        self.api(&format!("STREAM.MSG.GET.{stream}"));
    }

    /// Messages in order, as they come.
    fn follow(&mut self, stream: &str) {
        self.api(&format!("CONSUMER.CREATE.{stream}"));
        self.api(&format!("CONSUMER.MSG.NEXT.{stream}.*"));
    }

    fn consume_as_billing(&mut self, verbs: &[&str]) {
        let stream = self.names.feed_stream();
        for verb in verbs {
            self.api(&format!("CONSUMER.{verb}.{stream}.{BILLING_CONSUMER}"));
        }
    }
}

/// The stream behind a bucket.
fn kv(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The subjects of a bucket's keys.
fn keys(bucket: &str, keys: &str) -> String {
    format!("$KV.{bucket}.{keys}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<NatsRole> {
        let outside = NatsRole::OUTSIDE.into_iter();
        outside.chain([NatsRole::Reader]).collect()
    }

    fn of(role: NatsRole) -> Permissions {
        Permissions::of(role, &Names::default(), Partitions::try_from(4).unwrap())
    }

    /// As nats-server matches a subject, which here may itself have wildcards: whether they have any in
    /// common.
    fn overlap(one: &str, other: &str) -> bool {
        let (mut one, mut other) = (one.split('.'), other.split('.'));
        loop {
            match (one.next(), other.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
                _ => return false,
            }
        }
    }

    #[track_caller]
    fn check_publishers(subject: &str, expected: &[NatsRole]) {
        let may = |role: &NatsRole| {
            let granted = of(*role).publish;
            granted.iter().any(|granted| overlap(granted, subject))
        };
        let found: Vec<_> = all().into_iter().filter(may).collect();
        assert_eq!(found, expected, "{subject}");
    }

    #[test]
    fn each_subject_has_its_own_publishers() {
        use NatsRole::{Billing, Gateway, Neuron, Projector, Provisioning, Reader};
        check_publishers("seatbelt.journal.v1.>", &[Provisioning, Gateway]);
        check_publishers("seatbelt.spend.v1.>", &[Projector]);
        check_publishers("seatbelt.usage.v1.>", &[Neuron]);
        check_publishers("$KV.SEATBELT_SNAPSHOTS.>", &[Projector]);
        check_publishers("$KV.SEATBELT_LEASES.>", &[Gateway]);
        check_publishers("$KV.SEATBELT_NEURONS.>", &[Neuron]);
        check_publishers("$KV.SEATBELT_THREADS.>", &[Gateway]);
        check_publishers("$KV.SEATBELT_IDEMPOTENCE.>", &[Gateway]);
        check_publishers("$KV.SEATBELT_META.journal.00", &[Provisioning, Gateway]);
        check_publishers("$KV.SEATBELT_META.ledger", &[Provisioning]);
        check_publishers("$KV.SEATBELT_SECRETS.>", &[Provisioning]);
        check_publishers("seatbelt.ledger.v1.00.settle", &[Gateway, Projector]);
        check_publishers("seatbelt.ledger.v1.00.admin", &[Gateway]);
        check_publishers("seatbelt.ledger.v1.00.release", &[Provisioning, Gateway]);
        check_publishers("$JS.ACK.SEATBELT_FEED.billing.1", &[Billing, Reader]);
    }

    #[test]
    fn nobody_that_serves_changes_a_stream_or_removes_what_is_true() {
        for verb in ["RESTORE.>", "SNAPSHOT.>"] {
            check_publishers(&format!("$JS.API.STREAM.{verb}"), &[]);
        }
        for stream in Grants::new(&Names::default(), Partitions::try_from(4).unwrap()).streams() {
            let taken_back = stream == "KV_SEATBELT_IDEMPOTENCE";
            let who: &[_] = if taken_back {
                &[NatsRole::Gateway]
            } else {
                &[]
            };
            check_publishers(&format!("$JS.API.STREAM.MSG.DELETE.{stream}"), who);
        }
        check_publishers("$JS.API.STREAM.UPDATE.>", &[NatsRole::Provisioning]);
        for stream in ["SEATBELT_JOURNAL_00", "SEATBELT_USAGE"] {
            check_publishers(&format!("$JS.API.STREAM.DELETE.{stream}"), &[]);
            check_publishers(&format!("$JS.API.STREAM.PURGE.{stream}"), &[]);
        }
    }

    #[test]
    fn a_role_apart_makes_no_consumer_and_no_stream() {
        for role in all().into_iter().filter(|role| role.is_apart()) {
            let granted = of(role).publish;
            for verb in ["CONSUMER.CREATE.>", "STREAM.CREATE.>", "CONSUMER.DURABLE.>"] {
                let denied = format!("$JS.API.{verb}");
                let found = granted.iter().find(|granted| overlap(granted, &denied));
                assert_eq!(found, None, "{role}");
            }
            assert_ne!(role.account(), LEDGER_ACCOUNT);
        }
    }

    #[test]
    fn only_gateways_and_neurons_read_the_secret() {
        use NatsRole::{Gateway, Neuron, Provisioning};
        let subject = "$JS.API.STREAM.MSG.GET.KV_SEATBELT_SECRETS";
        check_publishers(subject, &[Provisioning, Gateway, Neuron]);
    }

    #[test]
    fn no_role_hears_the_answers_of_another_in_its_account() {
        for role in all() {
            for other in all() {
                let same = role == other || role.account() != other.account();
                let answers = format!("{}.>", other.inbox());
                let mut heard = of(role).subscribe.into_iter();
                let hears = heard.any(|granted| overlap(&granted, &answers));
                assert!(same || !hears, "{role} hears answers to {other}");
            }
        }
    }
}
