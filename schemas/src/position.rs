//! Where something stands: partition, epoch, position. Newtypes, so that a position is never taken
//! for a JetStream sequence.

use std::{fmt, num::NonZeroU8};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::ids::AccountId;

/// Most partitions a ledger can have: partition names have two digits.
pub const PARTITIONS_MAX: u8 = 100;

/// Number of a partition, printed with two digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u8);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

/// How many partitions the ledger has, fixed at genesis: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Partitions(NonZeroU8);

/// A number of partitions outside 1 to 100.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0} partitions is not possible: use 1 to {PARTITIONS_MAX}")]
pub struct InvalidPartitions(pub u8);

impl TryFrom<u8> for Partitions {
    type Error = InvalidPartitions;
    fn try_from(count: u8) -> Result<Self, InvalidPartitions> {
        match NonZeroU8::new(count) {
            Some(some) if count <= PARTITIONS_MAX => Ok(Self(some)),
            _ => Err(InvalidPartitions(count)),
        }
    }
}

impl From<Partitions> for u8 {
    fn from(partitions: Partitions) -> u8 {
        partitions.0.get()
    }
}

impl Partitions {
    /// The partition of an account: the first 8 bytes of the SHA-256 of its id, big endian, modulo
    /// the number of partitions. Fixed for good: changing it would split accounts.
    pub fn of(self, account: &AccountId) -> Partition {
        let digest = Sha256::digest(account.as_str());
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        let index = u64::from_be_bytes(head) % u64::from(self.0.get());
        Partition(u8::try_from(index).expect("a remainder of a u8 divisor fits u8"))
    }

    /// All partitions, in order.
    pub fn iter(self) -> impl Iterator<Item = Partition> {
        (0..self.0.get()).map(Partition)
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Gapless number of an event within its partition: 1, 2, 3, ... Zero stands before the first.
    Position
);
counter!(
    /// Number of a writer's reign over its partition; grows by one at each takeover.
    Epoch
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_an_account_never_changes() {
        let four = Partitions::try_from(4).unwrap();
        let of = |id| four.of(&AccountId::new(id).unwrap()).0;
        assert_eq!(
            [
                of("acct-cap"),
                of("acct-a"),
                of("acct-b"),
                of("alice"),
                of("bob")
            ],
            [1, 1, 1, 3, 2]
        );
    }

    #[test]
    fn there_are_1_to_100_partitions() {
        assert!(Partitions::try_from(0).is_err());
        assert!(Partitions::try_from(101).is_err());
        assert_eq!(Partitions::try_from(100).unwrap().iter().count(), 100);
    }
}
