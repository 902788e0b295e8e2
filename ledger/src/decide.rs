//! Decisions: state and command in, events or a typed error out. Pure: no clock, no client, and the
//! same input gives the same event bytes, which is what the audit checks.
//!
//! Limits of time and number that protect the ledger from its callers are checked in [`validate`],
//! once, when a command enters; a recorded decision is not judged by them again.

use crate::prices::PriceBook;

mod change;
mod ending;
pub mod exchange;
pub mod follows;
mod reserve;
mod run;
mod taking;
pub mod validate;

pub use change::{change, change_of, set_price};
pub use ending::{expire, release, resize, settle};
pub use reserve::{ReserveRequest, Verdict, reserve};
pub(crate) use reserve::{contested, scopes_of};

/// What a decision depends on besides the account.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The time of the decision, unix ms.
    pub at_ms: u64,
    /// The prices in force.
    pub prices: &'a PriceBook,
    pub cover: Cover,
}

/// What it is worth to a request, in a cap that stands above its limit, that its open run holds its share there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// All: as events say that were decided before this was told apart.
    Always,
    /// Nothing: the request takes of what the limit leaves beside what others hold.
    WithinLimits,
}

impl Cover {
    /// By what an event says of itself.
    pub fn by(uncovered: bool) -> Self {
        match uncovered {
            true => Self::WithinLimits,
            false => Self::Always,
        }
    }
}
