//! The lanes of a row: homes of their own side by side, which share the row's rounds.
//!
//! Most of a round is waiting, for a process to start or a lease to lapse, so that lanes cost little
//! more than one and the row comes to its rounds in its time. Each has its own provider, clients and
//! journal, and is judged by itself; nothing is counted for a part of a lane only.

use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

use super::{Room, Went, oracle::Counts, rows::Kind};

/// Runs a row's rounds on so many homes. A lane that panics ends the row, and what the others
/// started is stopped with it.
pub(super) async fn run(kind: &Kind, room: Room, lanes: u32) -> Result<Went, JoinError> {
    let mut running: JoinSet<Went> = shares(room, lanes).map(kind.run).collect();
    let mut all = (0, Counts::default(), Duration::ZERO);
    while let Some(ended) = running.join_next().await {
        match ended? {
            Went::Through {
                rounds,
                counts,
                pause,
            } => {
                all.0 += rounds;
                all.1.add(counts);
                all.2 = all.2.max(pause);
            }
            left_out @ Went::LeftOut(_) => return Ok(left_out),
        }
    }
    let (rounds, counts, pause) = all;
    Ok(Went::Through {
        rounds,
        counts,
        pause,
    })
}

/// The room of each lane: its share of the rounds, and choices of its own.
fn shares(room: Room, lanes: u32) -> impl Iterator<Item = Room> {
    let lanes = lanes.clamp(1, room.rounds.max(1));
    (0..lanes).map(move |lane| Room {
        seed: room.seed ^ (u64::from(lane) << 32),
        rounds: room.rounds / lanes + u32::from(lane < room.rounds % lanes),
        ..room
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_all_rounds_and_no_choices() {
        let room = |rounds| Room {
            seed: 42,
            rounds,
            end: std::time::Instant::now(),
            plant: None,
        };
        let parts: Vec<_> = shares(room(1000), 3).collect();
        let rounds: Vec<_> = parts.iter().map(|part| part.rounds).collect();
        assert_eq!(rounds, [334, 333, 333]);
        let seeds = std::collections::HashSet::<_>::from_iter(parts.iter().map(|part| part.seed));
        assert_eq!(seeds.len(), 3);
        assert!(seeds.contains(&42), "the first chooses as one lane would");
        assert_eq!(shares(room(2), 8).count(), 2);
    }
}
