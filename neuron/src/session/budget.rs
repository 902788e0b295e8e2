//! How many slots and how much context a model gets, by the memory that its caches may take.
//!
//! What is configured is what is used, or the load fails before anything is taken. What is not follows
//! from the budget: the context is cut to what fits the slots, or the slots are as many as fit.

use thiserror::Error;

use super::host;
use crate::config::{CONTEXT_FOLLOWING_MIN, ModelConfig, SLOTS_FOLLOWING_MAX};

/// A context that follows from the budget is a multiple of this.
const CONTEXT_STEP: usize = 64;

const _: () = assert!(CONTEXT_FOLLOWING_MIN.is_multiple_of(CONTEXT_STEP));

/// What caches may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    bytes: u128,
    whose: Whose,
}

/// Who set a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Configured,
    HalfOfFree,
    Nobodys,
}

/// What a model gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) slots: usize,
    pub(super) context: usize,
}

/// What is wanted of a budget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) slots: Option<usize>,
    pub(super) context: Option<usize>,
    /// The model's own context, or the configured one where that is smaller.
    pub(super) context_max: usize,
    /// What one token takes in one slot.
    pub(super) bytes_token: usize,
}

/// The caches do not fit: configure less of something, or give them more memory.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the caches of {slots} slots with a context of {context} tokens take {needed}, and {budget}; set smaller slots or \
     context of the model, or a larger cache_bytes_max"
)]
pub(super) struct TooLarge {
    slots: usize,
    context: usize,
    needed: String,
    budget: String,
}

impl Budget {
    /// The configured one, else half of what is free where the caches will lie.
    pub(super) fn of(config: &ModelConfig) -> Self {
        let configured = config
            .cache_bytes_max
            .map(|bytes| (bytes, Whose::Configured));
        let free = || Some((host::free(config)? / 2, Whose::HalfOfFree));
        let (bytes, whose) = (configured.or_else(free)).unwrap_or((usize::MAX, Whose::Nobodys));
        Self {
            bytes: bytes as u128,
            whose,
        }
    }

    /// What fits of what is wanted.
    pub(super) fn room(self, wanted: Wanted) -> Result<Room, TooLarge> {
        let Wanted {
            slots,
            context,
            context_max,
            bytes_token,
        } = wanted;
        assert!(context_max > 0 && bytes_token > 0, "a cache has a size");
        let tokens = usize::try_from(self.bytes / bytes_token as u128).unwrap_or(usize::MAX);
        let room = match (slots, context) {
            (Some(slots), Some(_)) => Room {
                slots,
                context: context_max,
            },
            (Some(slots), None) => Room {
                slots,
                context: following(tokens / slots.max(1), context_max),
            },
            (None, Some(_)) => Room {
                slots: (tokens / context_max).clamp(1, SLOTS_FOLLOWING_MAX),
                context: context_max,
            },
            (None, None) => {
                let slots = (tokens / context_max).clamp(1, SLOTS_FOLLOWING_MAX);
                Room {
                    slots,
                    context: following(tokens / slots, context_max),
                }
            }
        };
        if room.slots as u128 * room.context as u128 > tokens as u128 {
            return Err(self.too_large(room, bytes_token));
        }
        Ok(room)
    }

    fn too_large(self, room: Room, bytes_token: usize) -> TooLarge {
        let needed = room.slots as u128 * room.context as u128 * bytes_token as u128;
        let bytes = gigabytes(self.bytes);
        TooLarge {
            slots: room.slots,
            context: room.context,
            needed: gigabytes(needed),
            budget: match self.whose {
                Whose::Configured => format!("cache_bytes_max is {bytes}"),
                Whose::HalfOfFree => format!("half of the free memory is {bytes}"),
                Whose::Nobodys => "no memory is that large".to_owned(),
            },
        }
    }
}

/// As much context as `tokens` allow; too little of it would serve nobody, and is for the operator to
/// decide.
fn following(tokens: usize, most: usize) -> usize {
    if tokens >= most {
        return most;
    }
    let whole = tokens - tokens % CONTEXT_STEP;
    whole.max(CONTEXT_FOLLOWING_MIN.min(most))
}

fn gigabytes(bytes: u128) -> String {
    let tenths = bytes.div_ceil(100_000_000);
    match bytes < 1_000_000_000 {
        true => format!("{} MB", bytes.div_ceil(1_000_000)),
        false => format!("{}.{} GB", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(bytes: u128) -> Budget {
        Budget {
            bytes,
            whose: Whose::HalfOfFree,
        }
    }

    #[track_caller]
    fn check(
        bytes: u128,
        slots: Option<usize>,
        context: Option<usize>,
        expected: Result<(usize, usize), &str>,
    ) {
        let wanted = Wanted {
            slots,
            context,
            context_max: context.unwrap_or(131_072),
            bytes_token: 45_000,
        };
        let room = budget(bytes).room(wanted);
        match (room, expected) {
            (Ok(room), Ok(expected)) => assert_eq!((room.slots, room.context), expected),
            (Err(error), Err(words)) => {
                let error = error.to_string();
                assert!(error.contains(words), "{error}");
            }
            (room, _) => panic!("{room:?} and not {expected:?}"),
        }
    }

    #[test]
    fn what_is_configured_is_used_or_refused_by_name() {
        let gib = 1 << 30;
        check(12 * gib, Some(8), Some(4_096), Ok((8, 4_096)));
        check(
            12 * gib,
            Some(8),
            Some(131_072),
            Err(
                "8 slots with a context of 131072 tokens take 47.2 GB, and half of the free memory is 12.9 GB; set smaller slots or context of the model, or a larger cache_bytes_max",
            ),
        );
    }

    #[test]
    fn the_context_follows_from_the_budget_and_the_slots() {
        let gib = 1 << 30;
        check(64 * gib, Some(8), None, Ok((8, 131_072)));
        check(12 * gib, Some(8), None, Ok((8, 35_776)));
        check(
            gib / 4,
            Some(8),
            None,
            Err("8 slots with a context of 1024"),
        );
    }

    #[test]
    fn the_slots_follow_from_the_budget_and_the_context() {
        let gib = 1 << 30;
        check(12 * gib, None, Some(131_072), Ok((2, 131_072)));
        check(12 * gib, None, Some(16_384), Ok((8, 16_384)));
        check(64 * gib, None, None, Ok((8, 131_072)));
        check(2 * gib, None, None, Ok((1, 47_680)));
        check(gib, None, Some(131_072), Err("1 slots"));
    }

    proptest! {
        #[test]
        fn no_room_takes_more_than_its_budget(
            bytes in 0u64..,
            slots in proptest::option::of(1usize..=256),
            context in proptest::option::of(2usize..1 << 20),
            own in 2usize..1 << 20,
            bytes_token in 1usize..1 << 20,
        ) {
            let context = context.map(|context| context.min(own));
            let wanted = Wanted { slots, context, context_max: context.unwrap_or(own), bytes_token };
            if let Ok(room) = budget(bytes.into()).room(wanted) {
                let takes = room.slots as u128 * room.context as u128 * bytes_token as u128;
                prop_assert!(takes <= u128::from(bytes));
                prop_assert!(room.slots >= 1 && room.context >= 1 && room.context <= own);
            }
        }
    }
}
