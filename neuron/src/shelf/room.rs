//! Which models have to leave the memory for another. Decided here, done elsewhere.

/// What a model that is in memory takes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) bytes: u64,
    /// When it was last asked for, counted in requests; none while it has work.
    pub(super) idle_since: Option<u64>,
}

/// What is to be done for one that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// There is room.
    Fits,
    /// These make room, by their places in the list.
    Unload(Vec<usize>),
    /// Those that would make room have work.
    Wait,
    /// There is not so much memory.
    Never,
}

/// Makes room for `wanted` bytes within a budget: those go that were asked for least recently, no more of them than
/// it takes, and none where that would not suffice.
pub(super) fn plan(budget: u64, wanted: u64, held: &[Held]) -> Plan {
    if wanted > budget {
        return Plan::Never;
    }
    let taken = |leaving: &[usize]| {
        let stays = (held.iter().enumerate()).filter(|(at, _)| !leaving.contains(at));
        stays.fold(0u64, |all, (_, held)| all.saturating_add(held.bytes))
    };
    let fits = |leaving: &[usize]| taken(leaving).saturating_add(wanted) <= budget;
    if fits(&[]) {
        return Plan::Fits;
    }
    let idle = held.iter().enumerate();
    let mut idle: Vec<(u64, usize)> = idle
        .filter_map(|(at, held)| Some((held.idle_since?, at)))
        .collect();
    idle.sort_unstable();
    let mut leaving = Vec::new();
    for (_, at) in idle {
        leaving.push(at);
        if fits(&leaving) {
            return Plan::Unload(needed(leaving, fits));
        }
    }
    Plan::Wait
}

/// Of those that make room, the ones that have to: a small one need not go when the large one behind it does.
fn needed(mut leaving: Vec<usize>, fits: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    for at in (0..leaving.len()).rev() {
        let one = leaving.remove(at);
        if !fits(&leaving) {
            leaving.insert(at, one);
        }
    }
    leaving
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(bytes: u64, idle_since: Option<u64>) -> Held {
        Held { bytes, idle_since }
    }

    #[test]
    fn the_least_recently_used_goes_and_never_one_with_work() {
        let three = [held(4, Some(7)), held(4, Some(3)), held(2, None)];
        assert_eq!(plan(14, 4, &three), Plan::Fits);
        assert_eq!(plan(10, 4, &three), Plan::Unload(vec![1]));
        assert_eq!(plan(10, 8, &three), Plan::Unload(vec![1, 0]));
        assert_eq!(plan(10, 9, &three), Plan::Wait);
        assert_eq!(plan(10, 11, &three), Plan::Never);
    }

    #[test]
    fn a_small_one_need_not_go_with_a_large_one() {
        let two = [held(1, Some(1)), held(6, Some(2))];
        assert_eq!(plan(8, 5, &two), Plan::Unload(vec![1]));
    }

    proptest! {
        #[test]
        fn who_leaves_is_idle_makes_room_and_is_needed(
            budget in 0u64..40,
            wanted in 0u64..40,
            held in proptest::collection::vec((0u64..20, proptest::option::of(0u64..9)), 0..8),
        ) {
            let held: Vec<Held> = held.into_iter().map(|(bytes, idle_since)| Held { bytes, idle_since }).collect();
            let stays = |leaving: &[usize]| -> u64 {
                (0..held.len()).filter(|at| !leaving.contains(at)).map(|at| held[at].bytes).sum()
            };
            let busy: Vec<usize> = (0..held.len()).filter(|at| held[*at].idle_since.is_some()).collect();
            match plan(budget, wanted, &held) {
                Plan::Fits => prop_assert!(stays(&[]) + wanted <= budget),
                Plan::Unload(leaving) => {
                    prop_assert!(leaving.iter().all(|at| held[*at].idle_since.is_some()));
                    prop_assert!(stays(&leaving) + wanted <= budget);
                    for one in &leaving {
                        let fewer: Vec<usize> = leaving.iter().copied().filter(|at| at != one).collect();
                        prop_assert!(stays(&fewer) + wanted > budget);
                    }
                }
                Plan::Wait => prop_assert!(wanted <= budget && stays(&busy) + wanted > budget),
                Plan::Never => prop_assert!(wanted > budget),
            }
        }
    }
}
