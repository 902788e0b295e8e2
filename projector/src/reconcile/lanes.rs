//! Which usage event is looked at next: one reader goes through the stream, and each partition has a
//! lane of its own, so that one whose ledger does not answer keeps no other waiting.
//!
//! A lane is bounded. One that is full misses what follows and remembers where that began; once it
//! has room, the reader goes back there, and then on to the end again. No event is lost, none is in a
//! lane twice, and the mark is the place before which every lane is done.
//!
//! An event rests for the grace since it was first met, by this process's own monotonic clock: what
//! the clock of a neuron says changes nothing. No I/O and no clock here.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use seatbelt_schemas::{
    ids::{AccountId, ReservationId},
    position::{Partition, Partitions},
    usage::UsageEvent,
};
use tokio::time::Instant;

use crate::follow::Patience;

/// Events that wait in a lane.
pub(super) const LANE_MAX: usize = 4096;
/// A lane goes back for what it missed once it holds no more than this.
const LANE_LOW: usize = LANE_MAX / 2;
/// How exactly it is remembered when an event was first met, as a part of the grace.
const SIGHTS: u32 = 64;

/// A usage event that names a reservation.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) reservation: ReservationId,
    pub(super) account: AccountId,
    pub(super) event: Arc<UsageEvent>,
    /// When it was taken in, by this process's wall clock.
    pub(super) received_ms: u64,
}

/// How a lane stands to the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// All that the reader ever met was taken in.
    Along,
    /// All before this place was taken in; the reader goes through what follows, which was met before.
    Again(u64),
    /// All before this place was taken in; there is no room for more.
    Not(u64),
}

#[derive(Debug)]
struct Lane {
    waiting: VecDeque<(u64, Work)>,
    reads: Reads,
    /// The first of `waiting` is worked on.
    busy: bool,
    patience: Patience,
    /// Not before this time, after a try that did not work.
    again_at: Option<Instant>,
}

/// All lanes, and where the reader is.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// The place that the reader has gone through last.
    at: u64,
    /// The furthest that it ever was.
    furthest: u64,
    met: Met,
}

impl Lanes {
    /// Lanes that have done everything up to `after`.
    pub(super) fn new(partitions: Partitions, after: u64, grace: Duration) -> Self {
        let lane = |_| Lane {
            waiting: VecDeque::new(),
            reads: Reads::Along,
            busy: false,
            patience: Patience::default(),
            again_at: None,
        };
        Self {
            lanes: partitions.iter().map(lane).collect(),
            at: after,
            furthest: after,
            met: Met::new(after, grace),
        }
    }

    /// The place after which the reader goes on.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The stream was made anew: it is read from its start.
    pub(super) fn begin_anew(&mut self) {
        (self.at, self.furthest) = (0, 0);
        for lane in &mut self.lanes {
            lane.reads = Reads::Along;
            for (sequence, _) in &mut lane.waiting {
                *sequence = 0;
            }
        }
        self.met = Met::new(0, self.met.grace);
    }

    /// Whether any lane takes in what the reader meets next.
    pub(super) fn wants(&self) -> bool {
        self.at < self.furthest || self.lanes.iter().any(|lane| lane.reads == Reads::Along)
    }

    /// Takes in what stands at `sequence`, if it is for a lane.
    pub(super) fn take_in(&mut self, sequence: u64, work: Option<(Partition, Work)>, now: Instant) {
        let is_new = sequence > self.furthest;
        if is_new {
            self.met.note(sequence, now);
        }
        if let Some((partition, work)) = work {
            self.lanes[usize::from(partition.0)].take_in(sequence, work, is_new);
        }
        self.at = sequence;
        self.furthest = self.furthest.max(sequence);
        if self.at == self.furthest {
            for lane in &mut self.lanes {
                if matches!(lane.reads, Reads::Again(_)) {
                    lane.reads = Reads::Along;
                }
            }
        }
    }

    /// Where the reader has to go before it goes on: back for what a lane with room has missed, or on
    /// to where it was, when no lane needs what lies between.
    pub(super) fn turn(&mut self) -> Option<u64> {
        let mut back = self.at;
        for lane in &mut self.lanes {
            if let Reads::Not(from) = lane.reads
                && lane.waiting.len() <= LANE_LOW
            {
                lane.reads = Reads::Again(from);
                back = back.min(from.saturating_sub(1));
            }
        }
        let again = |lane: &Lane| matches!(lane.reads, Reads::Again(_));
        let to = match self.lanes.iter().any(again) {
            true => back,
            false => self.furthest,
        };
        let turns = to != self.at;
        self.at = to;
        turns.then_some(to)
    }

    /// What is to be done now, with its lane, which is busy until told otherwise.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(usize, Work)> {
        self.met.grow_old(now);
        let met = &self.met;
        let due = |lane: &&mut Lane| lane.due_at(met).is_some_and(|due| due.is_by(now));
        let (index, lane) = self
            .lanes
            .iter_mut()
            .enumerate()
            .find(|(_, lane)| due(lane))?;
        lane.busy = true;
        let (_, work) = lane.waiting.front()?;
        Some((index, work.clone()))
    }

    /// When [`Lanes::next_due`] has something again, if only time is needed.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let due = self.lanes.iter().filter_map(|lane| lane.due_at(&self.met));
        due.filter_map(|due| match due {
            Due::Now => None,
            Due::At(at) => Some(at),
        })
        .min()
    }

    /// A lane has done what it was given.
    pub(super) fn done(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        assert!(lane.busy, "a lane is told of what it was given");
        lane.busy = false;
        lane.waiting.pop_front();
        lane.patience.renew();
        lane.again_at = None;
    }

    /// It did not work: tried again after a pause that grows.
    pub(super) fn failed(&mut self, lane: usize, now: Instant) {
        let lane = &mut self.lanes[lane];
        assert!(lane.busy, "a lane is told of what it was given");
        lane.busy = false;
        lane.again_at = Some(now + lane.patience.next());
    }

    /// Up to where every lane is done.
    pub(super) fn mark(&self) -> u64 {
        let places = self.lanes.iter().map(|lane| lane.place(self.furthest));
        places.min().unwrap_or(self.furthest)
    }
}

impl Lane {
    fn take_in(&mut self, sequence: u64, work: Work, is_new: bool) {
        let takes = match self.reads {
            Reads::Along => is_new,
            Reads::Again(from) => sequence >= from,
            Reads::Not(_) => false,
        };
        if !takes {
            return;
        }
        if self.waiting.len() >= LANE_MAX {
            self.reads = Reads::Not(sequence);
            return;
        }
        if let Reads::Again(from) = &mut self.reads {
            *from = sequence.saturating_add(1);
        }
        self.waiting.push_back((sequence, work));
    }

    fn due_at(&self, met: &Met) -> Option<Due> {
        if self.busy {
            return None;
        }
        let (sequence, _) = self.waiting.front()?;
        Some(match (met.due(*sequence), self.again_at) {
            (Due::Now, None) => Due::Now,
            (Due::Now, Some(at)) | (Due::At(at), None) => Due::At(at),
            (Due::At(one), Some(other)) => Due::At(one.max(other)),
        })
    }

    /// Up to where it is done, given where the reader was.
    fn place(&self, furthest: u64) -> u64 {
        match (self.waiting.front(), self.reads) {
            (Some((sequence, _)), _) => sequence.saturating_sub(1),
            (None, Reads::Along) => furthest,
            (None, Reads::Again(from) | Reads::Not(from)) => from.saturating_sub(1),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now,
    At(Instant),
}

impl Due {
    fn is_by(self, now: Instant) -> bool {
        match self {
            Self::Now => true,
            Self::At(at) => at <= now,
        }
    }
}

/// When places were first met, for as long as the grace lasts.
#[derive(Debug)]
struct Met {
    grace: Duration,
    /// Their grace is over.
    old: u64,
    /// Up to this place, met by this time; both grow.
    spans: VecDeque<(u64, Instant)>,
}

impl Met {
    fn new(old: u64, grace: Duration) -> Self {
        let spans = VecDeque::new();
        Self { grace, old, spans }
    }

    fn note(&mut self, sequence: u64, now: Instant) {
        self.grow_old(now);
        match self.spans.back_mut() {
            Some((last, by)) if now <= *by => *last = sequence,
            _ => self.spans.push_back((sequence, now + self.grace / SIGHTS)),
        }
        assert!(
            self.spans.len() <= SIGHTS as usize + 2,
            "a span begins after the one before it has ended"
        );
    }

    fn grow_old(&mut self, now: Instant) {
        while let Some((last, by)) = self.spans.front().copied()
            && by + self.grace <= now
        {
            self.old = last;
            self.spans.pop_front();
        }
    }

    fn due(&self, sequence: u64) -> Due {
        if sequence <= self.old {
            return Due::Now;
        }
        let after = self.spans.partition_point(|(last, _)| *last < sequence);
        self.spans
            .get(after)
            .map_or(Due::Now, |(_, by)| Due::At(*by + self.grace))
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{
        ids::NeuronId,
        usage::{NeuronOutcome, NeuronUsage},
    };

    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn work(number: u64) -> Work {
        let reservation = ReservationId::from_parts(1, u128::from(number));
        let account = AccountId::new("acct").unwrap();
        let event = UsageEvent {
            v: UsageEvent::VERSION,
            reservation: reservation.to_string(),
            account: Some(account.clone()),
            key: None,
            model: None,
            neuron: NeuronId::new("n").unwrap(),
            device: "cpu".to_owned(),
            usage: NeuronUsage::default(),
            outcome: NeuronOutcome::Completed,
            queued_ms: 0,
            prefill_ms: 0,
            decode_ms: 0,
            at_ms: 0,
        };
        Work {
            reservation,
            account,
            event: Arc::new(event),
            received_ms: 0,
        }
    }

    fn lanes(partitions: u8, grace: Duration) -> Lanes {
        Lanes::new(Partitions::try_from(partitions).unwrap(), 0, grace)
    }

    fn number(work: &Work) -> u64 {
        u64::try_from(work.reservation.bits() & u128::from(u64::MAX)).unwrap()
    }

    /// Drives lanes as the reader does over a stream whose event `n` is of partition `of(n)`.
    struct Drive {
        lanes: Lanes,
        end: u64,
        of: fn(u64) -> u8,
        now: Instant,
        /// How many events the reader went through.
        read: u64,
        done: Vec<Vec<u64>>,
    }

    impl Drive {
        fn new(partitions: u8, end: u64, of: fn(u64) -> u8) -> Self {
            Self {
                lanes: lanes(partitions, Duration::ZERO),
                end,
                of,
                now: Instant::now(),
                read: 0,
                done: vec![Vec::new(); usize::from(partitions)],
            }
        }

        fn read_on(&mut self) {
            loop {
                self.lanes.turn();
                let next = self.lanes.at() + 1;
                if next > self.end || !self.lanes.wants() {
                    return;
                }
                self.read += 1;
                let partition = Partition((self.of)(next));
                self.lanes
                    .take_in(next, Some((partition, work(next))), self.now);
            }
        }

        /// Does what is due, once for each lane; those of `troubled` do not work.
        fn work(&mut self, troubled: Option<usize>) -> usize {
            let mut given = Vec::new();
            while let Some(due) = self.lanes.next_due(self.now) {
                given.push(due);
            }
            let mut done = 0;
            for (lane, work) in given {
                if troubled == Some(lane) {
                    self.lanes.failed(lane, self.now);
                } else {
                    self.lanes.done(lane);
                    self.done[lane].push(number(&work));
                    done += 1;
                }
            }
            done
        }

        fn work_all(&mut self, troubled: Option<usize>) {
            loop {
                self.read_on();
                if self.work(troubled) == 0 {
                    return;
                }
            }
        }
    }

    fn of_lane(end: u64, of: fn(u64) -> u8, lane: u8) -> Vec<u64> {
        (1..=end).filter(|number| of(*number) == lane).collect()
    }

    #[test]
    fn a_lane_in_trouble_keeps_nobody_waiting_and_misses_nothing() {
        let of = |number| u8::try_from(number % 3).unwrap();
        let end = 6 * LANE_MAX as u64;
        let mut drive = Drive::new(3, end, of);
        drive.work_all(Some(1));
        assert_eq!(drive.done[0], of_lane(end, of, 0));
        assert_eq!(drive.done[2], of_lane(end, of, 2));
        assert!(drive.done[1].is_empty());
        assert_eq!(drive.lanes.mark(), 0, "the first of it is not done");
        drive.now += Duration::from_secs(60);
        drive.work_all(None);
        assert_eq!(drive.done[1], of_lane(end, of, 1), "once each, in order");
        assert_eq!(drive.lanes.mark(), end);
        assert!(
            drive.read < 3 * end,
            "read {} of {end}: what lies between is not read again",
            drive.read
        );
    }

    #[test]
    fn more_than_all_lanes_hold_is_done_once_each_and_in_order() {
        let of = |number| u8::try_from(number / 7 % 2).unwrap();
        let end = 10 * LANE_MAX as u64;
        let mut drive = Drive::new(2, end, of);
        drive.work_all(None);
        for lane in 0..2 {
            assert_eq!(drive.done[usize::from(lane)], of_lane(end, of, lane));
        }
        assert_eq!(drive.lanes.mark(), end);
    }

    #[test]
    fn a_full_lane_stops_the_reader_only_where_it_is_the_last() {
        let now = Instant::now();
        let mut lanes = lanes(2, GRACE);
        let mut place = 0;
        for partition in [0, 1] {
            assert!(lanes.wants());
            for _ in 0..=LANE_MAX {
                place += 1;
                lanes.take_in(place, Some((Partition(partition), work(place))), now);
            }
        }
        assert!(!lanes.wants());
        assert_eq!(lanes.turn(), None);
    }

    #[test]
    fn the_mark_is_the_smallest_place_and_never_goes_back() {
        let of = |number| u8::try_from(number % 2).unwrap();
        let mut drive = Drive::new(2, 5 * LANE_MAX as u64, of);
        let mut mark = 0;
        for round in 0..u64::MAX {
            drive.read_on();
            if drive.work((round % 3 == 0).then_some(1)) == 0 {
                drive.now += Duration::from_secs(5);
            }
            let now = drive.lanes.mark();
            assert!(now >= mark, "{mark} to {now}");
            mark = now;
            if mark == drive.end {
                return;
            }
            let least = drive.done.iter().map(Vec::len).min().unwrap();
            assert!(mark <= 2 * least as u64 + 2, "{mark} with {least} done");
        }
    }

    #[test]
    fn an_event_rests_for_the_grace_since_it_was_met() {
        let begun = Instant::now();
        let mut lanes = lanes(1, GRACE);
        lanes.take_in(1, Some((Partition(0), work(1))), begun);
        assert!(lanes.next_due(begun + GRACE / 2).is_none());
        let due = lanes.wake_at().expect("time alone is needed");
        assert!((begun + GRACE..begun + GRACE * 2).contains(&due));
        assert!(
            lanes
                .next_due(begun + GRACE - Duration::from_millis(1))
                .is_none()
        );
        assert!(lanes.next_due(due).is_some());
    }

    #[test]
    fn what_was_missed_does_not_rest_again() {
        let begun = Instant::now();
        let mut lanes = lanes(1, GRACE);
        let (mut place, more) = (0, LANE_MAX as u64 + 10);
        while place < more {
            place += 1;
            lanes.take_in(place, Some((Partition(0), work(place))), begun);
        }
        let late = begun + GRACE * 2;
        for _ in 0..LANE_MAX {
            let (lane, _) = lanes.next_due(late).expect("due");
            lanes.done(lane);
        }
        assert_eq!(lanes.turn(), Some(LANE_MAX as u64));
        let next = lanes.at() + 1;
        lanes.take_in(next, Some((Partition(0), work(next))), late);
        assert!(lanes.next_due(late).is_some());
    }

    #[test]
    fn a_stream_made_anew_is_read_from_its_start() {
        let now = Instant::now();
        let mut lanes = lanes(1, GRACE);
        lanes.take_in(900, Some((Partition(0), work(900))), now);
        lanes.begin_anew();
        assert_eq!((lanes.at(), lanes.mark()), (0, 0));
        lanes.take_in(1, Some((Partition(0), work(1))), now);
        let (lane, old) = lanes.next_due(now).expect("it has nothing to wait for");
        assert_eq!(number(&old), 900);
        lanes.done(lane);
        assert_eq!(lanes.mark(), 0, "the new one rests");
    }
}
