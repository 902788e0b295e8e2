//! Which of the deployments of an upstream takes a request for a model: of those in order and of the first
//! priority, the one with the least in progress for its weight.
//!
//! All of them serve the same models at the same prices, so a hold taken for one is a hold for any. Where
//! all are out, the one that is back first is asked all the same: what is noticed here keeps nobody from an
//! answer. What is known is this gateway's own.

use std::{
    ops::Deref,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Upstream,
    health::{Health, Outcome, Who},
};

/// One place where a model is served, with what goes on there.
#[derive(Debug)]
struct Deployment {
    upstream: Arc<Upstream>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    busy: u64,
    /// Requests that it was sent, so that those with nothing in progress take turns.
    sent: u64,
    health: Health,
}

/// All places where a model is served.
#[derive(Debug)]
pub(crate) struct Deployments(Vec<Arc<Deployment>>);

/// A deployment that was chosen for a request. Counts as busy while this lives.
#[derive(Debug)]
pub(crate) struct Chosen(Arc<Deployment>);

impl Deref for Chosen {
    type Target = Upstream;

    fn deref(&self) -> &Upstream {
        &self.0.upstream
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.0
            .with(|state| state.busy = state.busy.saturating_sub(1));
    }
}

impl Chosen {
    /// It is being sent the request.
    pub(crate) fn asked(&self, now: Instant) {
        self.0.with(|state| state.health.asked(now));
    }

    /// What came of it, for whom.
    pub(crate) fn told(&self, outcome: Outcome, who: Who, now: Instant) {
        let (was_out, is_out) = self.0.with(|state| {
            let was_out = state.health.out_for(now).is_some();
            state.health.told(outcome, who, now);
            (was_out, state.health.out_for(now))
        });
        match is_out {
            Some(pause) if !was_out => {
                let (upstream, pause_ms) = (&self.0.upstream.name, pause.as_millis());
                tracing::warn!(upstream, pause_ms, "a deployment is left alone for a while");
            }
            None if was_out => {
                tracing::info!(
                    upstream = self.0.upstream.name,
                    "a deployment answers again"
                );
            }
            _ => {}
        }
    }
}

impl Deployment {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().expect("no holder of the lock panics"))
    }
}

impl Deployments {
    pub(crate) fn new(upstreams: &[Arc<Upstream>]) -> Self {
        let deployment = |upstream: &Arc<Upstream>| {
            Arc::new(Deployment {
                upstream: Arc::clone(upstream),
                state: Mutex::default(),
            })
        };
        Self(upstreams.iter().map(deployment).collect())
    }

    /// The one whose name is listed.
    pub(crate) fn first(&self) -> &Upstream {
        &self.0[0].upstream
    }

    /// The one that takes a request now; none of those in `tried` while another is in order.
    pub(crate) fn choose(&self, tried: &[String], now: Instant) -> Chosen {
        let rank = |deployment: &&Arc<Deployment>| {
            deployment.with(|state| {
                let upstream = &deployment.upstream;
                let weighed = |count: u64| count.saturating_mul(1000) / u64::from(upstream.weight);
                let usable = state.health.is_usable(now);
                let out_for = match usable {
                    true => Duration::ZERO,
                    false => state.health.out_for(now).unwrap_or_default(),
                };
                (
                    !usable,
                    out_for,
                    tried.contains(&upstream.name),
                    upstream.priority,
                    weighed(state.busy),
                    weighed(state.sent),
                )
            })
        };
        let chosen = self.0.iter().min_by_key(rank);
        let chosen = Arc::clone(chosen.expect("an upstream has a deployment"));
        let turns = self.turns_of_others(&chosen, now);
        chosen.with(|state| {
            state.busy = state.busy.saturating_add(1);
            state.sent = state.sent.saturating_add(1).max(turns);
        });
        Chosen(chosen)
    }

    /// What the others had, in requests of this one, less a turn: one that was out does not catch up.
    fn turns_of_others(&self, one: &Arc<Deployment>, now: Instant) -> u64 {
        let others = self.0.iter().filter(|other| !Arc::ptr_eq(one, other));
        let turns = others.filter_map(|other| {
            let weight = u64::from(other.upstream.weight);
            other.with(|state| state.health.is_usable(now).then_some(state.sent / weight))
        });
        let turns = turns.min().unwrap_or(0).saturating_sub(1);
        turns.saturating_mul(one.upstream.weight.into())
    }

    /// Another one than those in `tried` that is in order.
    pub(crate) fn another(&self, tried: &[String], now: Instant) -> Option<Chosen> {
        let fresh = |one: &Arc<Deployment>| {
            !tried.contains(&one.upstream.name) && one.with(|state| state.health.is_usable(now))
        };
        self.0.iter().any(fresh).then(|| self.choose(tried, now))
    }

    /// Those that are left alone now, each with for how much longer.
    pub(crate) fn out(&self, now: Instant) -> impl Iterator<Item = (&str, Duration)> {
        self.0.iter().filter_map(move |deployment| {
            let out_for = deployment.with(|state| state.health.out_for(now))?;
            Some((deployment.upstream.name.as_str(), out_for))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DeploymentConfig, Dialect, UpstreamConfig};

    /// Deployments with a weight and a priority each.
    fn deployments(told: &[(u32, u8)]) -> Deployments {
        let upstreams = told.iter().enumerate().map(|(n, (weight, priority))| {
            let deployment = DeploymentConfig {
                name: format!("d{n}"),
                base_url: format!("http://d{n}/v1"),
                api_key: None,
                weight: *weight,
                priority: *priority,
            };
            let config = UpstreamConfig::new("u".to_owned(), Dialect::OpenAi, String::new());
            Arc::new(Upstream::new(&config, &deployment).unwrap())
        });
        Deployments::new(&upstreams.collect::<Vec<_>>())
    }

    fn names(all: &[Chosen]) -> Vec<&str> {
        all.iter().map(|chosen| chosen.name.as_str()).collect()
    }

    fn fails(chosen: &Chosen, now: Instant) {
        for _ in 0..5 {
            chosen.told(Outcome::Ill { retry_after: None }, Who::of(None), now);
        }
    }

    #[test]
    fn the_least_busy_for_its_weight_takes_the_next_and_idle_ones_take_turns() {
        let (all, now) = (deployments(&[(1, 0), (3, 0)]), Instant::now());
        let chosen: Vec<_> = (0..4).map(|_| all.choose(&[], now)).collect();
        let of_second = names(&chosen).iter().filter(|name| **name == "d1").count();
        assert_eq!(of_second, 3);
        drop(chosen);
        let turns: Vec<String> = (0..8).map(|_| all.choose(&[], now).name.clone()).collect();
        assert_eq!(turns.iter().filter(|name| *name == "d1").count(), 6);
    }

    #[test]
    fn one_that_was_out_takes_its_turn_and_does_not_catch_up() {
        let (all, now) = (deployments(&[(1, 0), (1, 0)]), Instant::now());
        fails(&all.choose(&[], now), now);
        let alone: Vec<String> = (0..50).map(|_| all.choose(&[], now).name.clone()).collect();
        assert!(alone.iter().all(|name| *name == alone[0]));
        let later = now + Duration::from_secs(5);
        all.choose(&[], later)
            .told(Outcome::Well, Who::of(None), later);
        let turns: Vec<String> = (0..20)
            .map(|_| all.choose(&[], later).name.clone())
            .collect();
        let same = turns.iter().filter(|name| **name == alone[0]).count();
        assert!((9..=11).contains(&same), "{turns:?}");
    }

    #[test]
    fn the_second_priority_is_asked_only_where_the_first_is_out() {
        let (all, now) = (deployments(&[(1, 1), (1, 0)]), Instant::now());
        let chosen: Vec<_> = (0..3).map(|_| all.choose(&[], now)).collect();
        assert_eq!(names(&chosen), ["d1"; 3]);
        fails(&chosen[0], now);
        let instead = all.choose(&[], now);
        assert_eq!(instead.name, "d0");
        assert_eq!(
            all.out(now).collect::<Vec<_>>(),
            [("d1", Duration::from_secs(5))]
        );
        // the first is tried again by one request
        let later = now + Duration::from_secs(5);
        let probe = all.choose(&[], later);
        probe.asked(later);
        assert_eq!(
            (probe.name.as_str(), all.choose(&[], later).name.as_str()),
            ("d1", "d0")
        );
        probe.told(Outcome::Well, Who::of(None), later);
        assert_eq!(all.choose(&[], later).name, "d1");
    }

    #[test]
    fn where_all_are_out_the_one_that_is_back_first_is_asked() {
        let (all, now) = (deployments(&[(1, 0), (1, 0)]), Instant::now());
        let first = all.choose(&[], now);
        fails(&first, now);
        let second = all.choose(&[], now);
        fails(&second, now + Duration::from_secs(1));
        assert_eq!(
            all.choose(&[], now + Duration::from_secs(2)).name,
            first.name
        );
        assert!(all.another(&[], now + Duration::from_secs(2)).is_none());
    }

    #[test]
    fn another_is_one_that_was_not_tried() {
        let (all, now) = (deployments(&[(1, 0), (1, 1)]), Instant::now());
        let tried = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let another = |names: &[&str]| all.another(&tried(names), now).map(|one| one.name.clone());
        assert_eq!(another(&["d0"]).as_deref(), Some("d1"));
        assert_eq!(another(&["d0", "d1"]), None);
    }
}
