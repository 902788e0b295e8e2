//! What must be true of a journal, given what clients were told and what the provider served.
//!
//! Plain sums over the printed events, and no code of the product: what is wrong here is wrong twice
//! before it is missed. An acknowledged answer is charged what the provider reported, or its hold
//! where everything died before that was on the disk; nothing ends twice; no reserve exceeds a cap;
//! nobody is refused who had room.

mod span;

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
};

use serde_json::Value;

use super::{
    crowd::{Fate, Sent},
    provider::{Outcome, Served},
};

pub(super) use span::Span;

/// How far the time of an event may be from the true time: what a writer's clock may be off
/// (`ledger.clock_skew_max_ms`), and what a busy machine takes from one look at a clock to the next.
const OFF_MS_MAX: u64 = 5_000 + 2_000;

/// What a key may spend.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// The key's public id.
    pub(super) id: String,
    /// Tokens within its span.
    pub(super) limit: u64,
    /// Over which time.
    pub(super) span: Span,
    /// Requests at once.
    pub(super) at_once: Option<u64>,
    /// Whether its limits are ever met; a refusal of another key is one with room left.
    pub(super) short: bool,
}

/// Most findings told in words; the counts have all.
const FINDINGS_MAX: usize = 12;

/// What must be zero, and what is counted besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Answers that a client got whole.
    pub(super) acknowledged: u64,
    /// Those of them that were charged at the hold, because everything died in between.
    pub(super) at_hold: u64,
    /// Served or held, and not charged to the full.
    pub(super) lost: u64,
    /// Reserved, ended or charged more than once, or above what was served.
    pub(super) doubled: u64,
    /// Reserved above a cap.
    pub(super) over: u64,
    /// Refused although there was room.
    pub(super) phantom: u64,
    /// The first of these in words.
    pub(super) findings: Vec<String>,
}

/// Which promise something breaks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wrong {
    Lost,
    Doubled,
    Over,
    Phantom,
}

impl Counts {
    /// Whether every promise was kept.
    pub(super) fn kept(&self) -> bool {
        self.lost + self.doubled + self.over + self.phantom == 0
    }

    /// Adds what another lane of the row counted.
    pub(super) fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.at_hold += other.at_hold;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.over += other.over;
        self.phantom += other.phantom;
        let room = FINDINGS_MAX.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(room));
    }

    /// Counts so many breaches of one promise, and tells what they are.
    pub(super) fn wrong(&mut self, wrong: Wrong, times: u64, what: impl FnOnce() -> String) {
        if times == 0 {
            return;
        }
        *match wrong {
            Wrong::Lost => &mut self.lost,
            Wrong::Doubled => &mut self.doubled,
            Wrong::Over => &mut self.over,
            Wrong::Phantom => &mut self.phantom,
        } += times;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(format!("{wrong:?}: {}", what()));
        }
    }
}

/// A fault put into what the oracle reads, to show that it would see one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// One acknowledged answer of which the journal knows nothing.
    Answer,
    /// The first settle is not in the journal.
    SettleLost,
    /// The first settle is there twice.
    SettleTwice,
    /// The first reservation is of a million tokens more.
    OverCap,
    /// A client was refused that had room.
    Refusal,
}

impl Plant {
    const NAMES: [(&'static str, Self); 5] = [
        ("answer", Self::Answer),
        ("settle-lost", Self::SettleLost),
        ("settle-twice", Self::SettleTwice),
        ("over-cap", Self::OverCap),
        ("refusal", Self::Refusal),
    ];

    /// Every fault that can be planted.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::NAMES.into_iter().map(|(_, plant)| plant)
    }
}

impl FromStr for Plant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::NAMES.into_iter().find(|(known, _)| *known == name);
        let known = Self::NAMES.map(|(known, _)| known).join(", ");
        let found = found.ok_or_else(|| format!("no fault {name:?} to plant: one of {known}"));
        found.map(|(_, plant)| plant)
    }
}

#[derive(Debug, Default)]
struct Reservation {
    key: usize,
    at_ms: u64,
    hold: u64,
    ends: u64,
    charge: u64,
    /// How it ended was not a report of usage.
    end: End,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    None,
    /// Settled by what the provider reported.
    Reported,
    /// Charged at the hold: settled without a report, or expired.
    Hold,
    /// Given back.
    Released,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    spent: u64,
    held: u64,
    open: u64,
    reserved: u64,
    reported: u64,
    at_hold: u64,
}

/// A journal as far as it was read.
#[derive(Debug)]
pub(super) struct Journal {
    terms: Vec<Terms>,
    places: HashMap<String, usize>,
    reservations: HashMap<String, Reservation>,
    sums: Vec<Sums>,
    /// Reservations of each key whose limit counts over a span, in their order.
    spans: Vec<Vec<String>>,
    /// The time of the newest event, and so the time of the writer.
    at_ms: u64,
    counts: Counts,
    plant: Option<Plant>,
}

impl Journal {
    pub(super) fn new(terms: &[Terms], plant: Option<Plant>) -> Self {
        let places = terms.iter().enumerate();
        Self {
            places: places.map(|(place, key)| (key.id.clone(), place)).collect(),
            terms: terms.to_vec(),
            reservations: HashMap::new(),
            sums: vec![Sums::default(); terms.len()],
            spans: vec![Vec::new(); terms.len()],
            at_ms: 0,
            counts: Counts::default(),
            plant,
        }
    }

    /// Spent and held of a key by these sums, at the end of the journal.
    pub(super) fn standing(&self, key: usize) -> (u64, u64) {
        (
            self.spent_within(key, Span::counts, self.at_ms),
            self.sums[key].held,
        )
    }

    /// What is spent of a key, as far as it counts at `at_ms`.
    fn spent_within(&self, key: usize, counts: fn(Span, u64, u64) -> bool, at_ms: u64) -> u64 {
        let span = self.terms[key].span;
        if span == Span::Balance {
            return self.sums[key].spent;
        }
        let of_key = self.spans[key].iter().map(|id| &self.reservations[id]);
        let live = of_key.filter(|found| counts(span, found.at_ms, at_ms));
        live.map(|found| found.charge).sum()
    }

    /// How many reservations have not ended.
    pub(super) fn open(&self) -> u64 {
        self.sums.iter().map(|sums| sums.open).sum()
    }

    /// Takes the next event in, as it is or with the planted fault.
    pub(super) fn accept(&mut self, event: &Value) {
        let kind = event["kind"].as_str().unwrap_or_default();
        match (self.plant, kind) {
            (Some(Plant::SettleLost), "settled") => self.plant = None,
            (Some(Plant::SettleTwice), "settled") => {
                self.plant = None;
                self.take(event);
                self.take(event);
            }
            (Some(Plant::OverCap), "reserved") => {
                self.plant = None;
                let mut more = event.clone();
                more["data"]["hold"]["tokens"] = (1_u64 << 50).into();
                self.take(&more);
            }
            _ => self.take(event),
        }
    }

    fn take(&mut self, event: &Value) {
        let data = &event["data"];
        self.at_ms = event["at_ms"].as_u64().unwrap_or(self.at_ms);
        match event["kind"].as_str().unwrap_or_default() {
            "reserved" => self.reserved(data),
            "refused" => self.refused(data),
            "settled" if data["late"] == true => self.corrected(data),
            "settled" if data["source"] == "hold" => self.ended(data, End::Hold),
            "settled" => self.ended(data, End::Reported),
            "expired" => self.ended(data, End::Hold),
            "released" => self.ended(data, End::Released),
            _ => {}
        }
    }

    fn place(&self, data: &Value) -> Option<usize> {
        let key = data["key"].as_str().or(data["scopes"]["key"].as_str())?;
        self.places.get(key).copied()
    }

    fn reserved(&mut self, data: &Value) {
        let (Some(key), Some(hold)) = (self.place(data), data["hold"]["tokens"].as_u64()) else {
            return;
        };
        let spent = self.spent_within(key, Span::counts, self.at_ms);
        let (terms, sums) = (&self.terms[key], &mut self.sums[key]);
        let fits = spent.saturating_add(sums.held).saturating_add(hold) <= terms.limit;
        let alone = terms.at_once.is_none_or(|most| sums.open < most);
        self.counts
            .wrong(Wrong::Over, u64::from(!fits || !alone), || {
                format!("{spent} spent, {sums:?} and {hold} above {terms:?}")
            });
        sums.held += hold;
        sums.open += 1;
        sums.reserved += 1;
        if terms.span != Span::Balance {
            self.spans[key].push(id(data));
        }
        let made = Reservation {
            key,
            at_ms: self.at_ms,
            hold,
            ..Reservation::default()
        };
        let before = self.reservations.insert(id(data), made);
        self.counts
            .wrong(Wrong::Doubled, u64::from(before.is_some()), || {
                format!("{} is reserved again", id(data))
            });
    }

    fn ended(&mut self, data: &Value, end: End) {
        let charge = data["charge"]["tokens"].as_u64().unwrap_or(0);
        let Some(reservation) = self.reservations.get_mut(&id(data)) else {
            let what = || format!("{} ends and never began", id(data));
            return self.counts.wrong(Wrong::Doubled, 1, what);
        };
        let sums = &mut self.sums[reservation.key];
        reservation.ends += 1;
        if reservation.ends > 1 {
            sums.spent += charge;
            let what = || format!("{} ends again: {end:?}", id(data));
            return self.counts.wrong(Wrong::Doubled, 1, what);
        }
        reservation.charge = charge;
        reservation.end = end;
        sums.held -= reservation.hold;
        sums.open -= 1;
        sums.spent += charge;
        match end {
            End::Reported => sums.reported += charge,
            End::Hold => sums.at_hold += 1,
            End::Released | End::None => {}
        }
    }

    /// A settle that came after the reservation had expired replaces what was charged then.
    fn corrected(&mut self, data: &Value) {
        let charge = data["charge"]["tokens"].as_u64().unwrap_or(0);
        let Some(reservation) = self.reservations.get_mut(&id(data)) else {
            let what = || format!("{} is corrected and never began", id(data));
            return self.counts.wrong(Wrong::Doubled, 1, what);
        };
        let sums = &mut self.sums[reservation.key];
        if reservation.end != End::Hold {
            let what = || format!("{} is corrected, but did not expire", id(data));
            return self.counts.wrong(Wrong::Doubled, 1, what);
        }
        sums.spent = sums.spent - reservation.charge + charge;
        sums.at_hold -= 1;
        sums.reported += charge;
        reservation.charge = charge;
        reservation.end = End::Reported;
    }

    /// Refusals are written later than they are decided, so the event's own evidence is looked at: it
    /// must refuse, and may not claim more spend than there is by now.
    fn refused(&mut self, data: &Value) {
        let (Some(key), "tokens") = (
            self.place(data),
            data["terms"]["meter"].as_str().unwrap_or_default(),
        ) else {
            return;
        };
        let mut caps = data["caps"].as_array().into_iter().flatten();
        let evidence = caps.find(|cap| cap["cap"] == data["cap"]);
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let at_ms = data["decided_at_ms"].as_u64().unwrap_or(self.at_ms);
        let most = self.spent_within(key, Span::may_count, at_ms);
        let claimed = evidence.is_some_and(|cap| {
            let (spent, held) = (number(&cap["spent"]), number(&cap["held"]));
            let held = if data["reason"] == "held" { held } else { 0 };
            let wanted = number(&data["want"]["tokens"]);
            spent + held + wanted > number(&cap["limit"]) && spent <= most
        });
        self.counts
            .wrong(Wrong::Phantom, u64::from(!claimed), || data.to_string());
    }
}

fn id(data: &Value) -> String {
    data["reservation"].as_str().unwrap_or_default().to_owned()
}

/// What clients and provider know.
#[derive(Debug, Clone)]
pub(super) struct Witness {
    pub(super) sent: Vec<Sent>,
    pub(super) served: HashMap<u64, Served>,
    /// No process of the product died: charges must equal what was served, to the token.
    pub(super) exact: bool,
}

/// Holds the journal, read to its end, against the witnesses.
pub(super) fn judge(journal: &Journal, mut witness: Witness) -> Counts {
    plant(journal.plant, &mut witness);
    let mut counts = journal.counts.clone();
    let open = journal.open();
    counts.wrong(Wrong::Lost, open, || format!("{open} never ended"));
    let mut seen = HashSet::new();
    for sent in &witness.sent {
        if let Some(reservation) = &sent.reservation {
            let again = u64::from(!seen.insert(reservation));
            counts.wrong(Wrong::Doubled, again, || format!("two answers: {sent:?}"));
        }
        one(journal, &witness, sent, &mut counts);
    }
    for key in 0..journal.terms.len() {
        sums(journal, &witness, key, &mut counts);
    }
    counts
}

fn plant(plant: Option<Plant>, witness: &mut Witness) {
    let of = |fate: fn(&Fate) -> bool| witness.sent.iter().find(|sent| fate(&sent.fate)).cloned();
    let Some(mut more) = of(|fate| matches!(fate, Fate::Acknowledged(_))) else {
        return;
    };
    match plant {
        Some(Plant::Answer) => more.reservation = Some("res-planted".to_owned()),
        Some(Plant::Refusal) => {
            more.fate = Fate::Refused;
            more.ask.key = 0;
            more.reservation = None;
        }
        _ => return,
    }
    more.ask.number = u64::MAX;
    witness.sent.push(more);
}

/// What one client was told.
fn one(journal: &Journal, witness: &Witness, sent: &Sent, counts: &mut Counts) {
    let found = sent
        .reservation
        .as_ref()
        .and_then(|id| journal.reservations.get(id));
    match sent.fate {
        Fate::Acknowledged(tokens) => acknowledged(found, sent, tokens, counts),
        Fate::Refused => {
            let roomy = u64::from(!journal.terms[sent.ask.key].short);
            counts.wrong(Wrong::Phantom, roomy, || format!("told a client: {sent:?}"));
        }
        Fate::Answered(_) | Fate::Broken | Fate::Left => {}
    }
    let Some(served) = witness.served.get(&sent.ask.number) else {
        return;
    };
    let what = || format!("{sent:?}: {served:?}, in the journal {found:?}");
    counts.wrong(Wrong::Doubled, served.hits.saturating_sub(1), what);
    let (true, Some(found)) = (witness.exact, found) else {
        return;
    };
    let due = match served.outcome {
        Outcome::Reported(tokens) => tokens,
        Outcome::Free => 0,
        Outcome::Unsaid | Outcome::Open => found.hold,
    };
    counts.wrong(Wrong::Lost, u64::from(found.charge < due), what);
    counts.wrong(Wrong::Doubled, u64::from(found.charge > due), what);
}

fn acknowledged(found: Option<&Reservation>, sent: &Sent, tokens: u64, counts: &mut Counts) {
    counts.acknowledged += 1;
    let what = || format!("acknowledged {sent:?}, in the journal {found:?}");
    let Some(found) = found.filter(|found| found.key == sent.ask.key) else {
        return counts.wrong(Wrong::Lost, 1, what);
    };
    counts.wrong(Wrong::Lost, u64::from(found.charge < tokens), what);
    // by a time that is not the true one a window would be left too early, or never
    let early = found.at_ms + OFF_MS_MAX < sent.from_ms;
    let late = sent.to_ms + OFF_MS_MAX < found.at_ms;
    counts.wrong(Wrong::Over, u64::from(early || late), what);
    match found.end {
        End::Hold => counts.at_hold += 1,
        End::Reported => counts.wrong(Wrong::Doubled, u64::from(found.charge > tokens), what),
        // counted as charged below what was served, or as open
        End::Released | End::None => {}
    }
}

/// What no single client can tell: the sums of a key.
fn sums(journal: &Journal, witness: &Witness, key: usize, counts: &mut Counts) {
    let sums = journal.sums[key];
    let asked = witness.sent.iter().filter(|sent| sent.ask.key == key);
    let asked: Vec<_> = asked.collect();
    let served = asked
        .iter()
        .filter_map(|sent| witness.served.get(&sent.ask.number));
    let served: Vec<_> = served.collect();
    let (came, sent) = (served.len() as u64, asked.len() as u64);
    let what = || {
        let key = &journal.terms[key].id;
        format!("{key}: {sent} sent, {came} came to the provider; in the journal {sums:?}")
    };
    // work without a reservation, and reservations without a request
    counts.wrong(Wrong::Lost, came.saturating_sub(sums.reserved), what);
    counts.wrong(Wrong::Doubled, sums.reserved.saturating_sub(sent), what);
    if !witness.exact {
        return;
    }
    let reported = served.iter().map(|served| match served.outcome {
        Outcome::Reported(tokens) => tokens,
        _ => 0,
    });
    let reported: u64 = reported.sum();
    counts.wrong(Wrong::Lost, u64::from(sums.reported < reported), what);
    counts.wrong(Wrong::Doubled, u64::from(sums.reported > reported), what);
    let unsaid = |served: &&&Served| matches!(served.outcome, Outcome::Unsaid | Outcome::Open);
    let unsaid = served.iter().filter(unsaid).count() as u64;
    counts.wrong(Wrong::Lost, unsaid.saturating_sub(sums.at_hold), what);
    counts.wrong(Wrong::Doubled, sums.at_hold.saturating_sub(unsaid), what);
}

#[cfg(test)]
mod tests;
