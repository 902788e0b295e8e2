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

    fn remedy(self) -> &'static str {
        match self {
            Self::Feed => {
                "nothing new comes to billing; if it lasts, have the feed made again (docs/recovery.md, lost feed)"
            }
            Self::Snapshots => {
                "/v1/key shows what was; if it lasts, have the snapshots made again (docs/recovery.md, lost snapshots)"
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
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, component) = (self.partition, self.component.as_str());
        let remedy = match self.is_halted {
            true => {
                "it is tried again; `seatbelt audit verify` says more, docs/recovery.md what to do"
            }
            false => self.component.remedy(),
        };
        let reason = &self.reason;
        write!(
            f,
            "partition {partition}, {component}: stands still: {reason}; {remedy}"
        )
    }
}

#[derive(Debug)]
struct Standing {
    well_at: Instant,
    trouble: Option<String>,
    is_halted: bool,
}

impl Standing {
    fn well() -> Self {
        Self {
            well_at: Instant::now(),
            trouble: None,
            is_halted: false,
        }
    }
}

/// How all projections of a process get on. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<(Partition, Component), Standing>>>);

impl Health {
    /// The projections that stand still, in order.
    pub fn stalled(&self) -> Vec<Stalled> {
        let stands =
            |standing: &Standing| standing.is_halted || standing.well_at.elapsed() >= STALLED_AFTER;
        let known = self.lock();
        let stalled = known.iter().filter(|(_, standing)| stands(standing));
        stalled
            .map(|((partition, component), standing)| Stalled {
                partition: *partition,
                component: *component,
                reason: standing
                    .trouble
                    .clone()
                    .unwrap_or_else(|| "it is being read from the journal".to_owned()),
                is_halted: standing.is_halted,
            })
            .collect()
    }

    /// This process stood still for so long, as one that was stopped and goes on: nothing could be said
    /// meanwhile, and so its silence does not count.
    pub fn stood_still(&self, gap: Duration) {
        let now = Instant::now();
        for standing in self.lock().values_mut() {
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
            let standing = known.get(&(partition, *component));
            standing.is_some_and(|standing| standing.is_halted)
        })
    }

    /// Both are begun: from now on they are expected to say that they are well.
    pub(crate) fn begins(&self, partition: Partition) {
        let mut known = self.lock();
        for component in Component::ALL {
            let standing = known.entry((partition, component));
            standing.or_insert_with(Standing::well);
        }
    }

    /// All is as it should be.
    pub(crate) fn works(&self, partition: Partition, component: Component) {
        self.lock().insert((partition, component), Standing::well());
    }

    /// It does not get on now, and tries again.
    pub(crate) fn waits(&self, partition: Partition, component: Component, reason: String) {
        self.note(partition, component, reason, false);
    }

    /// As [`Self::waits`], for both.
    pub(crate) fn both_wait(&self, partition: Partition, reason: &str) {
        for component in Component::ALL {
            self.waits(partition, component, reason.to_owned());
        }
    }

    /// The journal cannot be followed.
    pub(crate) fn halted(&self, partition: Partition, reason: &str) {
        for component in Component::ALL {
            self.note(partition, component, reason.to_owned(), true);
        }
    }

    /// They are another projector's to keep, or nobody's.
    pub(crate) fn lets_go(&self, partition: Partition) {
        self.lock().retain(|(of, _), _| *of != partition);
    }

    fn note(&self, partition: Partition, component: Component, reason: String, is_halted: bool) {
        let mut known = self.lock();
        let standing = known.entry((partition, component));
        let standing = standing.or_insert_with(Standing::well);
        (standing.trouble, standing.is_halted) = (Some(reason), is_halted);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Partition, Component), Standing>> {
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
