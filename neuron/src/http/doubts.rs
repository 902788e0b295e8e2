//! Why calls of this deployment's own gateways may be turned away at the door, for the operator: the log says so
//! once a minute, and `/health/ready` while it goes on.
//!
//! Who sent such a call is not known: a gateway that holds another secret looks like a stranger who has none.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often a doubt is logged, and for how long it is shown after it last came up.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// What was wrong with a call that somebody had signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It was signed with another secret, or for another neuron.
    OtherSecret,
    /// Its deadline lies where none can, by this neuron's time.
    Untimely,
}

impl Doubt {
    const ALL: [Self; 2] = [Self::OtherSecret, Self::Untimely];

    fn text(self) -> &'static str {
        match self {
            Self::OtherSecret => {
                "calls are turned away that are signed with another secret than this neuron read at its start, or for another neuron: if the secret was changed, restart the neurons and gateways that started before; if two neurons have one id or one url, give each its own; else somebody who is no gateway calls here"
            }
            Self::Untimely => {
                "calls are turned away whose deadline is long past or more than a day ahead by this neuron's time: see whether its clock, or that of nats-server, is off (chrony, systemd-timesyncd)"
            }
        }
    }
}

/// When each doubt last came up.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<[Seen; Doubt::ALL.len()]>);

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    last: Option<Instant>,
    told: Option<Instant>,
}

impl Doubts {
    /// Takes note of one, and logs it where that was not done lately.
    pub(super) fn note(&self, doubt: Doubt, now: Instant) {
        if self.is_to_be_told(doubt, now) {
            tracing::warn!("{}", doubt.text());
        }
    }

    fn is_to_be_told(&self, doubt: Doubt, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut all[doubt as usize];
        seen.last = Some(now);
        let tell = seen.told.is_none_or(|told| is_over(told, now));
        if tell {
            seen.told = Some(now);
        }
        tell
    }

    /// Those that came up lately.
    pub(super) fn warnings(&self, now: Instant) -> Vec<&'static str> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = |seen: Seen| seen.last.is_some_and(|last| !is_over(last, now));
        let doubts = Doubt::ALL.into_iter();
        doubts
            .filter(|doubt| lately(all[*doubt as usize]))
            .map(Doubt::text)
            .collect()
    }
}

fn is_over(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= TOLD_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_told_once_a_minute_and_shown_while_it_lasts() {
        let (doubts, begun) = (Doubts::default(), Instant::now());
        assert!(doubts.warnings(begun).is_empty());
        assert!(doubts.is_to_be_told(Doubt::OtherSecret, begun));
        let later = begun + TOLD_FOR / 2;
        assert!(!doubts.is_to_be_told(Doubt::OtherSecret, later));
        assert!(doubts.is_to_be_told(Doubt::Untimely, later), "another one");
        assert_eq!(doubts.warnings(later).len(), 2);
        assert!(doubts.is_to_be_told(Doubt::OtherSecret, begun + TOLD_FOR));
        let left = doubts.warnings(later + TOLD_FOR);
        assert_eq!(left, [Doubt::OtherSecret.text()]);
    }
}
