//! How fast a whole ledger is proved from an exported copy: a journal as busy writers would leave it
//! is made in memory, written to a file in both forms, and `seatbelt audit verify` is timed on it.
//!
//! 1,000 accounts in 4 partitions, one in a hundred of them hot with half of the requests; two caps
//! each, one a balance of tokens by key, one a rolling hour of money by account. Of the requests, most
//! are settled within their hold; some are refused, given back, resized, left to expire, settled late
//! or above their hold. Commits hold 1 to 128 events.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use seatbelt_ledger::{
    api::{Ack, Admin, Release, Reserve, ReserveOutcome, Resize, Settle},
    journal::{Sequence, export::ExportWriter},
    outcomes::HOT_MAX,
    resume::Resumed,
    writer::{Caller, Next, Reply, Request, Writer, WriterConfig},
};
use seatbelt_schemas::{
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    command::Change,
    event::{KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ModelId, ReservationId},
    meter::Meter,
    position::{Partition, Partitions},
    price::{Price, Rates},
    scope::Scope,
    usage::Usage,
    window::Window,
};

const PARTITIONS: u8 = 4;
const ACCOUNTS: u64 = 1000;
/// Events of one partition.
const EVENTS: u64 = 600_000;
/// Commands submitted before a commit is taken, at most.
const COMMANDS_MAX: u64 = 128;
const LIFE_MS: u64 = 5_000;
const ROUNDS: usize = 5;
const BEGAN_MS: u64 = 1_760_000_000_000;

pub(crate) fn measure() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let journals: Vec<Vec<Bytes>> = std::thread::scope(|scope| {
        let partitions =
            (0..PARTITIONS).map(|partition| scope.spawn(move || Maker::new(partition).make()));
        let partitions: Vec<_> = partitions.collect();
        partitions
            .into_iter()
            .map(|made| made.join().unwrap())
            .collect()
    });
    let commits: usize = journals.iter().map(Vec::len).sum();
    let bytes: usize = journals.iter().flatten().map(Bytes::len).sum();
    println!(
        "\nverify: a ledger of {} partitions, {ACCOUNTS} accounts, {commits} commits, {} MB, made in {:.1} s",
        PARTITIONS,
        bytes / 1_000_000,
        begun.elapsed().as_secs_f64()
    );
    println!(
        "{:<28} {:>10} {:>9} {:>12} {:>16}",
        "export", "events", "seconds", "events/s", "events/s a core"
    );
    // one after the other: a disk that is still busy with the second would slow the first
    let export = folder.path().join("export");
    for (name, write) in [
        ("frames", write_frames as fn(&[Vec<Bytes>], &Path)),
        ("JSON lines", write_lines),
    ] {
        write(&journals, &export);
        for _ in 0..ROUNDS {
            verify(name, &export);
        }
    }
}

/// One run of the real binary.
fn verify(name: &str, path: &Path) {
    let cpu = children_cpu();
    let begun = Instant::now();
    let output = Command::new(seatbelt_tests::binary())
        .args(["audit", "verify", "--json", "--file"])
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (children_cpu() - cpu).as_secs_f64();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let events = report["events"].as_f64().unwrap();
    println!(
        "{name:<28} {events:>10} {seconds:>9.2} {:>12.0} {:>16.0}",
        events / seconds,
        events / cpu
    );
}

/// Processor time of all children that have ended.
fn children_cpu() -> Duration {
    let usage =
        nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap();
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec().try_into().unwrap())
            + Duration::from_micros(value.tv_usec().try_into().unwrap())
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Commits of all partitions in turns, as `audit export` takes them.
fn in_turns(journals: &[Vec<Bytes>]) -> impl Iterator<Item = (Partition, Sequence, &Bytes)> {
    let longest = journals.iter().map(Vec::len).max().unwrap();
    (0..longest).flat_map(move |index| {
        (0..).zip(journals).filter_map(move |(partition, journal)| {
            let payload = journal.get(index)?;
            Some((Partition(partition), Sequence(index as u64 + 1), payload))
        })
    })
}

fn write_frames(journals: &[Vec<Bytes>], path: &Path) {
    let mut writer = ExportWriter::begin(BufWriter::new(File::create(path).unwrap())).unwrap();
    for (partition, sequence, payload) in in_turns(journals) {
        writer.commit(partition, sequence, payload).unwrap();
    }
    on_disk(writer.finish().unwrap());
}

fn write_lines(journals: &[Vec<Bytes>], path: &Path) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    for (partition, sequence, payload) in in_turns(journals) {
        let payload: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = serde_json::json!({"partition": partition.0, "sequence": sequence.0, "payload": payload});
        writeln!(file, "{line}").unwrap();
    }
    on_disk(file);
}

/// Waits until all of it is on disk: writing it out must not go on beside what is timed.
fn on_disk(mut file: BufWriter<File>) {
    file.flush().unwrap();
    file.get_ref().sync_all().unwrap();
}

struct Nobody(usize);

impl Caller for Nobody {
    fn is_gone(&self) -> bool {
        false
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same journal in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Drives one writer and keeps its commits.
struct Maker {
    random: Random,
    now_ms: u64,
    writer: Writer<Nobody>,
    accounts: Vec<AccountId>,
    key: KeyId,
    model: ModelId,
    journal: Vec<Bytes>,
    ids: u64,
    open: VecDeque<(usize, ReservationId, u64)>,
}

impl Maker {
    fn new(partition: u8) -> Self {
        let (partition, partitions) = (
            Partition(partition),
            Partitions::try_from(PARTITIONS).unwrap(),
        );
        let accounts = (0..ACCOUNTS)
            .map(|number| AccountId::new(format!("acct-{number:06}")).unwrap())
            .filter(|account| partitions.of(account) == partition);
        let config = WriterConfig {
            partition,
            partitions,
            ledger: LedgerId::new("bench").unwrap(),
            writer: "bench".to_owned(),
            expiry_grace_ms: 0,
            single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
            accounts_max: usize::MAX,
            settle_linger_ms: 0,
            commit_events_max: seatbelt_schemas::commit::COMMIT_EVENTS_MAX,
        };
        let resumed = Resumed::empty(partition, HOT_MAX);
        Self {
            random: Random(u64::from(partition.0)),
            now_ms: BEGAN_MS,
            writer: Writer::start(config, resumed, BEGAN_MS),
            accounts: accounts.collect(),
            key: KeyId::new("key-production").unwrap(),
            model: ModelId::new("gpt-4o-mini").unwrap(),
            journal: Vec::new(),
            ids: 0,
            open: VecDeque::new(),
        }
    }

    fn make(mut self) -> Vec<Bytes> {
        self.set_up();
        while self.writer.state().position().0 < EVENTS {
            for _ in 0..=self.random.below(COMMANDS_MAX) {
                self.step();
            }
            self.commit();
        }
        self.journal
    }

    fn id(&mut self) -> CommandId {
        self.ids += 1;
        let noise = u128::from(self.random.below(1 << 40)) << 40;
        CommandId::from_parts(self.now_ms, noise | u128::from(self.ids))
    }

    fn submit(&mut self, request: Request, account: usize) {
        self.writer.submit(self.now_ms, request, Nobody(account));
    }

    fn admin(&mut self, account: AccountId, change: Change) {
        let id = self.id();
        let actor = Actor::operator("bench");
        self.submit(
            Request::Admin(Admin {
                id,
                account,
                actor,
                change,
            }),
            usize::MAX,
        );
        self.commit();
    }

    fn set_up(&mut self) {
        let model = self.model.clone();
        let rates = Rates::flat(150_000, 600_000);
        let price = Price::of(model, rates);
        self.admin(AccountId::system(), Change::SetPrice(price));
        for (number, account) in self.accounts.clone().into_iter().enumerate() {
            let (key, team, secret_sha256) = (self.key.clone(), None, None);
            // one in fifty has little to spend
            let tokens = if number % 50 == 7 { 20_000 } else { 1 << 40 };
            let cap = |cap: &str, scope, meter, window, limit| CapSpec {
                cap: CapId::new(cap).unwrap(),
                scope,
                meter,
                window,
                limit,
                hard: true,
                thresholds: THRESHOLDS_DEFAULT.to_vec(),
            };
            let by_key = Scope::Key(key.clone());
            let hour = Window::Rolling { seconds: 3600 };
            let changes = [
                Change::OpenAccount,
                Change::IssueKey(KeyIssued {
                    key,
                    team,
                    secret_sha256,
                }),
                Change::SetCap(cap(
                    "key/key-production/tokens",
                    by_key,
                    Meter::Tokens,
                    Window::Balance,
                    tokens,
                )),
                Change::SetCap(cap(
                    "account/cost/hour",
                    Scope::Account,
                    Meter::Cost,
                    hour,
                    20_000_000_000,
                )),
            ];
            for change in changes {
                self.admin(account.clone(), change);
            }
        }
    }

    fn step(&mut self) {
        if self.random.below(10) == 0 {
            self.now_ms += 1;
            self.writer.tick(self.now_ms);
        }
        if self.random.below(2) == 0 || self.open.len() < 16 {
            return self.reserve();
        }
        let (account, reservation, output) = self.open.pop_front().unwrap();
        match self.random.below(100) {
            0..3 => self.release(account, reservation),
            3 => {
                self.resize(account, reservation, output / 2);
                self.open.push_back((account, reservation, output / 2));
            }
            // left to expire
            4 => {}
            // late, where it has expired by then
            5 if self.open.len() < 2000 => self.open.push_back((account, reservation, output)),
            6 => self.settle(account, reservation, output + 100),
            share => self.settle(account, reservation, output * share / 100),
        }
    }

    fn reserve(&mut self) {
        let count = self.accounts.len() as u64;
        let few = (count / 100).max(1);
        let among = if self.random.below(2) == 0 {
            few
        } else {
            count
        };
        let account = usize::try_from(self.random.below(among)).unwrap();
        let output_tokens = 64 + self.random.below(1000);
        let command = Reserve {
            team: None,
            id: self.id(),
            account: self.accounts[account].clone(),
            key: self.key.clone(),
            model: Some(self.model.clone()),
            run: None,
            end_user: None,
            input_tokens: 100 + self.random.below(4000),
            output_tokens,
            tool_calls: 0,
            deadline_ms: self.now_ms + LIFE_MS,
            wait_ms: 0,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
            budget: None,
            within: None,
        };
        self.submit(Request::Reserve(command), account);
    }

    fn settle(&mut self, account: usize, reservation: ReservationId, output_tokens: u64) {
        let report = Report {
            usage: Usage {
                input_tokens: 100,
                output_tokens,
                ..Usage::default()
            },
            upstream: "openai".to_owned(),
            source: UsageSource::Upstream,
            finish: Some("stop".to_owned()),
            timings: Timings {
                first_byte_ms: 180,
                total_ms: 1400,
            },
        };
        let command = Settle {
            id: self.id(),
            account: self.accounts[account].clone(),
            reservation,
            report,
            actor: Actor::key(&self.key),
        };
        self.submit(Request::Settle(command, Ack::Durable), account);
    }

    fn release(&mut self, account: usize, reservation: ReservationId) {
        let command = Release {
            id: self.id(),
            account: self.accounts[account].clone(),
            reservation,
            reason: "the upstream answered 503".to_owned(),
            actor: Actor::key(&self.key),
        };
        self.submit(Request::Release(command), account);
    }

    fn resize(&mut self, account: usize, reservation: ReservationId, output_tokens: u64) {
        let command = Resize {
            id: self.id(),
            account: self.accounts[account].clone(),
            reservation,
            input_tokens: 100,
            output_tokens,
            actor: Actor::key(&self.key),
        };
        self.submit(Request::Resize(command), account);
    }

    fn commit(&mut self) {
        while let Some((after, payload)) = self.writer.take_append() {
            self.journal.push(payload);
            assert!(matches!(
                self.writer.appended(Ok(after.next())),
                Next::Continue
            ));
        }
        for (Nobody(account), answer) in self.writer.answers() {
            if let Ok(Reply::Reserve(ReserveOutcome::Reserved(grant))) = answer {
                self.open
                    .push_back((account, grant.reservation, grant.hold.output_tokens));
            }
        }
    }
}
