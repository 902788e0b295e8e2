//! What a connection tells beside answers: that it was lost, and what the server denies.
//!
//! A denial comes as an event of the connection and not as an answer, so whoever asked would wait
//! for the whole of its time and then know nothing of the reason.

use std::{collections::VecDeque, sync::Arc};

use async_nats::{Event, ServerError};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// Denials of the server that are remembered for who waits: as many as one burst may have.
const DENIALS_KEPT_MAX: usize = 64;
/// What the server's own words for a denial begin with.
const DENIAL: &str = "permissions violation for ";

/// What the connection has told so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Signals {
    /// How often the connection was lost.
    losses: u64,
    /// How often the server denied an operation, and its last words on it, the newest at the end.
    denials: u64,
    denied: VecDeque<Denied>,
}

impl Signals {
    /// What was denied since `earlier`, as far as it is remembered.
    fn denied_since<'a>(&'a self, earlier: &Self) -> impl Iterator<Item = &'a Denied> + use<'a> {
        let new = usize::try_from(self.denials.saturating_sub(earlier.denials));
        let new = new.unwrap_or(usize::MAX).min(self.denied.len());
        self.denied.iter().skip(self.denied.len() - new)
    }
}

/// The server denies something to this user; nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "nats denies this user to {permission}: grant it, or use the user of the right role; `seatbelt nats config` prints what each role needs"
)]
pub struct Denied {
    /// What: such as `publish to "a.b"`.
    permission: Arc<str>,
}

impl Denied {
    /// What the server's words deny; `None` where they are about something else.
    fn read(words: &str) -> Option<Self> {
        let words = words.trim_matches(['\'', ' ']);
        let rest = words.get(DENIAL.len()..)?;
        let is_denial = words[..DENIAL.len()].eq_ignore_ascii_case(DENIAL);
        let lower = |verb: &str, as_: &str| {
            let found = rest.get(..verb.len())?.eq_ignore_ascii_case(verb);
            found.then(|| format!("{as_}{}", &rest[verb.len()..]))
        };
        let permission = lower("publish", "publish")
            .or_else(|| lower("subscription", "subscribe"))
            .unwrap_or_else(|| rest.to_owned());
        is_denial.then(|| Self {
            permission: permission.into(),
        })
    }

    pub(super) fn is_about(&self, verb: &str, subject: &str) -> bool {
        let permission = self.permission.strip_prefix(verb);
        permission
            .is_some_and(|rest| !subject.is_empty() && rest.contains(&format!("\"{subject}\"")))
    }
}

/// Why waiting for an answer is in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// The connection was lost; what was sent may or may not have arrived.
    Lost,
    /// The server denied publishing; nothing was taken.
    Denied(Denied),
}

/// Watches the connection from a moment on.
#[derive(Debug)]
pub struct Troubles {
    signals: watch::Receiver<Signals>,
    seen: Signals,
}

impl Troubles {
    pub(super) fn from_now_on(signals: &watch::Receiver<Signals>) -> Self {
        let mut signals = signals.clone();
        let seen = signals.borrow_and_update().clone();
        Self { signals, seen }
    }

    /// Resolves once the connection is lost, or the server denies publishing to `subject`.
    pub async fn about(&mut self, subject: &str) -> NoAnswer {
        self.about_any(&[subject]).await
    }

    /// As [`Troubles::about`], for publishing to any of some subjects.
    pub async fn about_any(&mut self, subjects: &[&str]) -> NoAnswer {
        let concerns = |denied: &Denied| {
            let mut subjects = subjects.iter();
            subjects.any(|subject| denied.is_about("publish", subject))
        };
        loop {
            // the sender lives as long as the connection; without it there is none
            if self.signals.changed().await.is_err() {
                return NoAnswer::Lost;
            }
            let now = self.signals.borrow_and_update().clone();
            let denied = now
                .denied_since(&self.seen)
                .find(|it| concerns(it))
                .cloned();
            let lost = now.losses != self.seen.losses;
            self.seen = now;
            match denied {
                Some(denied) => return NoAnswer::Denied(denied),
                None if lost => return NoAnswer::Lost,
                None => {}
            }
        }
    }

    /// Resolves once something is denied that `concerns` says matters; not where the connection is lost.
    pub async fn denied(&mut self, concerns: impl Fn(&Denied) -> bool) -> Denied {
        loop {
            if self.signals.changed().await.is_err() {
                return std::future::pending().await;
            }
            let now = self.signals.borrow_and_update().clone();
            let denied = now
                .denied_since(&self.seen)
                .find(|it| concerns(it))
                .cloned();
            self.seen = now;
            if let Some(denied) = denied {
                return denied;
            }
        }
    }

    /// As [`Troubles::denied`], for a subscription.
    pub async fn denied_to_subscribe(&mut self, subject: &str) -> Denied {
        self.denied(|denied| denied.is_about("subscribe", subject))
            .await
    }
}

pub(super) fn note(signals: &watch::Sender<Signals>, event: &Event) {
    match event {
        Event::Disconnected => {
            warn!("nats connection lost");
            signals.send_modify(|signals| signals.losses += 1);
        }
        // only ever by us: nobody holds the connection any more
        Event::Closed => {
            debug!("nats connection closed");
            signals.send_modify(|signals| signals.losses += 1);
        }
        Event::Connected => info!("nats connected"),
        Event::ServerError(ServerError::Other(words)) => {
            warn!(words, "nats server error");
            let Some(denied) = Denied::read(words) else {
                return;
            };
            signals.send_modify(|signals| {
                signals.denials += 1;
                if signals.denied.len() == DENIALS_KEPT_MAX {
                    signals.denied.pop_front();
                }
                signals.denied.push_back(denied);
            });
        }
        Event::ClientError(error) => debug!(%error, "nats client error"),
        other => warn!(event = %other, "nats connection event"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_concerns_its_own_subject_only() {
        let denied = Denied::read(r#"Permissions Violation for Publish to "a.b""#).unwrap();
        assert!(denied.is_about("publish", "a.b"));
        assert!(!denied.is_about("publish", "a"));
        assert!(!denied.is_about("publish", ""));
        assert!(!denied.is_about("subscribe", "a.b"));
        let told = denied.to_string();
        assert!(told.contains(r#"publish to "a.b""#), "{told}");
        let words = r#"'Permissions Violation for Subscription to "x.>"'"#;
        let denied = Denied::read(words).unwrap();
        assert!(denied.is_about("subscribe", "x.>"));
        assert!(!denied.is_about("publish", "x.>"));
        for other in ["Maximum Payload Violation", "", "Permissions"] {
            assert_eq!(Denied::read(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn no_denial_of_a_burst_is_missed() {
        let (sender, signals) = watch::channel(Signals::default());
        let mut troubles = Troubles::from_now_on(&signals);
        for subject in ["a", "b", "c"] {
            let words = format!("Permissions Violation for Publish to \"{subject}\"");
            note(&sender, &Event::ServerError(ServerError::Other(words)));
        }
        let NoAnswer::Denied(denied) = troubles.about("a").await else {
            panic!("the first one was overtaken");
        };
        assert!(denied.is_about("publish", "a"));
    }
}
