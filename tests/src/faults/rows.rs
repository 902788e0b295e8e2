//! The rows: each brings one kind of fault about, again and again.

mod clocks;
mod disconnects;
mod full_disk;
mod kill_all;
mod kill_server;
mod power;
mod purges;
mod replicas;
mod upstreams;
mod zombie;

use std::time::Duration;

use super::{Room, Running};

/// A row of the matrix.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Rounds of the long form.
    pub(super) rounds: u32,
    /// Rounds of the short form.
    pub(super) rounds_short: u32,
    /// Homes side by side that share the long form's rounds.
    pub(super) lanes: u32,
    /// No round begins after so much time.
    pub(super) time_max: Duration,
    pub(super) run: fn(Room) -> Running,
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

/// All of them, in the order in which they run.
pub(super) const ALL: &[Kind] = &[
    Kind {
        name: "kill-all",
        rounds: 1000,
        rounds_short: 3,
        lanes: 4,
        time_max: minutes(16),
        run: |room| Box::pin(kill_all::run(room)),
    },
    Kind {
        name: "kill-server",
        rounds: 200,
        rounds_short: 1,
        lanes: 4,
        time_max: minutes(8),
        run: |room| Box::pin(kill_server::run(room)),
    },
    Kind {
        name: "disconnects",
        rounds: 40,
        rounds_short: 2,
        lanes: 1,
        time_max: minutes(2),
        run: |room| Box::pin(disconnects::run(room)),
    },
    Kind {
        name: "upstreams",
        rounds: 40,
        rounds_short: 2,
        lanes: 1,
        time_max: minutes(2),
        run: |room| Box::pin(upstreams::run(room)),
    },
    Kind {
        name: "purges",
        rounds: 60,
        rounds_short: 3,
        lanes: 1,
        time_max: minutes(3),
        run: |room| Box::pin(purges::run(room)),
    },
    Kind {
        name: "zombie",
        rounds: 20,
        rounds_short: 2,
        lanes: 1,
        time_max: minutes(3),
        run: |room| Box::pin(zombie::run(room)),
    },
    Kind {
        name: "replicas",
        rounds: 18,
        rounds_short: 3,
        lanes: 1,
        time_max: minutes(4),
        run: |room| Box::pin(replicas::run(room)),
    },
    Kind {
        name: "power",
        rounds: 60,
        rounds_short: 2,
        lanes: 1,
        time_max: minutes(4),
        run: |room| Box::pin(power::run(room)),
    },
    Kind {
        name: "full-disk",
        rounds: 6,
        rounds_short: 1,
        lanes: 1,
        time_max: minutes(4),
        run: |room| Box::pin(full_disk::run(room)),
    },
    Kind {
        name: "clocks",
        rounds: 60,
        rounds_short: 2,
        lanes: 3,
        time_max: minutes(4),
        run: |room| Box::pin(clocks::run(room)),
    },
];
