//! How the projections of each partition get on, for whoever shows it beside what they make: an operator has
//! to hear of one that stands still, though no request is turned away for it.
//!
//! A projection that is known to be well is well for [`STALLED_AFTER`]; whatever keeps it from saying so
//! again, an error, a wait, or a journal that cannot be followed, it then stands still. One that halted does
//! so at once. What another projector keeps is not known here.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seatbelt_schemas::position::Partition;
use tokio::time::Instant;

/// How long a projection may say nothing before it counts as standing still: longer than a server takes
/// to be started again.
pub const STALLED_AFTER: Duration = Duration::from_secs(5);

/// What is derived from a partition's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Its events on the public feed.
    Feed,
    /// Its snapshots, which `/v1/key` reads.
    Snapshots,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Feed, Self::Snapshots];

    /// Its name, a label of the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Feed => "feed",
            Self::Snapshots => "snapshots",
        }
    }

    fn means(self) -> &'static str {
        match self {
            Self::Feed => "nothing new comes to billing; ",
            Self::Snapshots => "/v1/key shows what was; ",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Feed => "if it lasts, have the feed made again (docs/recovery.md, lost feed)",
            Self::Snapshots => {
                "if it lasts, have the snapshots made again (docs/recovery.md, lost snapshots)"
            }
        }
    }
}

/// A projection that stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stalled {
    pub partition: Partition,
    pub component: Component,
    /// Why, as far as that is known.
    pub reason: String,
    /// Whether the journal itself cannot be followed.
    pub is_halted: bool,
    /// What of a server has to be seen to, where the journal can.
    ails: Component,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, component) = (self.partition, self.component.as_str());
        let remedy = match self.is_halted {
            true => {
                "it is tried again; `seatbelt audit verify` says more, docs/recovery.md what to do"
            }
            false => self.ails.remedy(),
        };
        let (reason, means) = (&self.reason, self.component.means());
        write!(
            f,
            "partition {partition}, {component}: stands still: {reason}; {means}{remedy}"
        )
    }
}

#[derive(Debug)]
struct Standing {
    well_at: Instant,
    trouble: Option<String>,
    is_halted: bool,
    /// What the trouble is with.
    ails: Option<Component>,
}

impl Standing {
    fn well() -> Self {
        Self {
            well_at: Instant::now(),
            trouble: None,
            is_halted: false,
            ails: None,
        }
    }
}

#[derive(Debug, Default)]
struct Standings {
    of: BTreeMap<(Partition, Component), Standing>,
    /// Why whoever reads the feed gets no further, though it is written.
    unread: Option<String>,
}

/// How all projections of a process get on. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Standings>>);

impl Health {
    /// The projections that stand still, in order.
    pub fn stalled(&self) -> Vec<Stalled> {
        let known = self.lock();
        let stalled = known.of.iter();
        stalled
            .filter_map(|((partition, component), standing)| {
                let stands = standing.is_halted || standing.well_at.elapsed() >= STALLED_AFTER;
                let unread = known.unread.as_ref();
                let unread = unread.filter(|_| *component == Component::Feed);
                let reason = match (stands, unread) {
                    (false, None) => return None,
                    (false, Some(unread)) => unread.clone(),
                    (true, _) => standing
                        .trouble
                        .clone()
                        .unwrap_or_else(|| "it is being read from the journal".to_owned()),
                };
                Some(Stalled {
                    partition: *partition,
                    component: *component,
                    reason,
                    is_halted: standing.is_halted,
                    ails: standing.ails.filter(|_| stands).unwrap_or(*component),
                })
            })
            .collect()
    }

    /// Whether all of the feed can be read, or why not.
    pub(crate) fn feed_reads(&self, unread: Option<String>) {
        self.lock().unread = unread;
    }

    /// This process stood still for so long, as one that was stopped and goes on: nothing could be said
    /// meanwhile, and so its silence does not count.
    pub fn stood_still(&self, gap: Duration) {
        let now = Instant::now();
        for standing in self.lock().of.values_mut() {
            standing.well_at = standing
                .well_at
                .checked_add(gap)
                .map_or(now, |at| at.min(now));
        }
    }

    /// Whether the journal of a partition could not be followed when it was last tried.
    pub(crate) fn is_halted(&self, partition: Partition) -> bool {
        let known = self.lock();
        let mut ours = Component::ALL.iter();
        ours.any(|component| {
            let standing = known.of.get(&(partition, *component));
            standing.is_some_and(|standing| standing.is_halted)
        })
    }

    /// Both are begun: from now on they are expected to say that they are well.
    pub(crate) fn begins(&self, partition: Partition) {
        let mut known = self.lock();
        for component in Component::ALL {
            let standing = known.of.entry((partition, component));
            standing.or_insert_with(Standing::well);
        }
    }

    /// All is as it should be.
    pub(crate) fn works(&self, partition: Partition, component: Component) {
        let well = Standing::well();
        self.lock().of.insert((partition, component), well);
    }

    /// It does not get on now, and tries again.
    pub(crate) fn waits(&self, partition: Partition, component: Component, reason: String) {
        self.note((partition, component), reason, None);
    }

    /// Neither gets on, for what is beside the snapshots cannot be read or written.
    pub(crate) fn both_wait(&self, partition: Partition, reason: &str) {
        for component in Component::ALL {
            let ails = Some(Component::Snapshots);
            self.note((partition, component), reason.to_owned(), ails);
        }
    }

    /// The journal cannot be followed.
    pub(crate) fn halted(&self, partition: Partition, reason: &str) {
        for component in Component::ALL {
            self.note((partition, component), reason.to_owned(), None);
            let mut known = self.lock();
            if let Some(standing) = known.of.get_mut(&(partition, component)) {
                standing.is_halted = true;
            }
        }
    }

    /// They are another projector's to keep, or nobody's.
    pub(crate) fn lets_go(&self, partition: Partition) {
        let mut known = self.lock();
        known.of.retain(|(of, _), _| *of != partition);
    }

    fn note(&self, of: (Partition, Component), reason: String, ails: Option<Component>) {
        let mut known = self.lock();
        let standing = known.of.entry(of);
        let standing = standing.or_insert_with(Standing::well);
        (standing.trouble, standing.is_halted) = (Some(reason), false);
        standing.ails = ails;
    }

    fn lock(&self) -> MutexGuard<'_, Standings> {
        // no code panics while it holds the lock half way through a change
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(3);

    fn told(health: &Health) -> Vec<String> {
        health.stalled().iter().map(Stalled::to_string).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_for_a_while_stands_still_whatever_the_reason() {
        let health = Health::default();
        health.works(P, Component::Feed);
        health.works(P, Component::Snapshots);
        tokio::time::advance(STALLED_AFTER / 2).await;
        health.waits(P, Component::Snapshots, "no answer".to_owned());
        assert_eq!(told(&health), Vec::<String>::new(), "it may pass");
        tokio::time::advance(STALLED_AFTER).await;
        let told = told(&health);
        assert!(
            told[0].contains("partition 03, feed: stands still"),
            "{told:?}"
        );
        assert!(
            told[1].contains("no answer") && told[1].contains("/v1/key"),
            "{told:?}"
        );
        health.works(P, Component::Feed);
        assert_eq!(health.stalled().len(), 1);
        health.lets_go(P);
        assert_eq!(health.stalled(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_silence_of_a_process_that_stood_still_is_no_projections() {
        let health = Health::default();
        health.works(P, Component::Feed);
        health.halted(Partition(4), "partition 04 halted");
        tokio::time::advance(STALLED_AFTER * 10).await;
        health.stood_still(STALLED_AFTER * 10);
        let halted = |stalled: &[Stalled]| stalled.iter().all(|one| one.partition == Partition(4));
        assert!(halted(&health.stalled()), "{:?}", told(&health));
        tokio::time::advance(STALLED_AFTER).await;
        assert!(
            told(&health)[0].contains("partition 03, feed"),
            "it has its usual time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_told_with_the_remedy_of_what_ails() {
        let health = Health::default();
        health.begins(P);
        health.both_wait(P, "cannot write partition.03 in bucket SEATBELT_SNAPSHOTS");
        tokio::time::advance(STALLED_AFTER).await;
        for told in told(&health) {
            assert!(told.contains("lost snapshots"), "{told}");
        }
        health.works(P, Component::Feed);
        health.works(P, Component::Snapshots);
        assert!(health.stalled().is_empty());
        health.feed_reads(Some("message 7 cannot be read".to_owned()));
        let unread = told(&health);
        assert_eq!(unread.len(), 1, "{unread:?}");
        let told = &unread[0];
        assert!(
            told.contains("message 7") && told.contains("lost feed"),
            "{told}"
        );
        health.feed_reads(None);
        assert!(health.stalled().is_empty());
    }

    #[test]
    fn a_halt_is_told_at_once_until_it_works_again() {
        let health = Health::default();
        health.halted(P, "partition 03 halted");
        assert_eq!(health.stalled().len(), 2);
        assert!(told(&health)[0].contains("audit verify"));
        health.works(P, Component::Feed);
        assert!(health.is_halted(P));
        health.works(P, Component::Snapshots);
        assert!(!health.is_halted(P) && health.stalled().is_empty());
    }
}
