//! How what is kept in memory is hashed: with [foldhash](foldhash) in place of the standard library's
//! SipHash, which was an eighth of a decision's instructions.
//!
//! Maps are seeded anew in each process, so that nobody who chooses an end user or a label can choose ids
//! that fall together. What has to have one order in every process says [`Fixed`].

use std::{collections::HashMap, hash::Hash};

/// Seeded by the process.
pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Of one order in every process.
pub(crate) type Fixed = foldhash::fast::FixedState;

/// A digest of 64 bits, well mixed: the same in every process of one build, and no defence against
/// somebody who looks for two contents with one digest.
pub(crate) fn digest(content: impl Hash) -> u64 {
    use std::hash::BuildHasher;
    foldhash::quality::FixedState::default().hash_one(content)
}
