//! How much of everything a host takes in, keeps and does at once. Tests set tiny bounds, so that a short
//! story meets each of them.

use seatbelt_schemas::commit::COMMIT_EVENTS_MAX;

use super::{CHANNEL_MAX, fetching::FETCHES_MAX};
use crate::{outcomes::HOT_MAX, writer::WriterConfig};

/// The bounds of one partition's host.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Commands that wait in the channel.
    pub channel_max: usize,
    /// Accounts and older commands that are fetched at once.
    pub fetches_max: usize,
    /// Events of a commit, unless one decision alone is more.
    pub commit_events_max: usize,
    /// Commands whose outcome stays in memory.
    pub hot_max: usize,
    /// Refusals of one key by one cap that are events of their own, per second.
    pub single_refusals_per_second: u32,
    /// How long a settle waits for company, ms.
    pub settle_linger_ms: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            channel_max: CHANNEL_MAX,
            fetches_max: FETCHES_MAX,
            commit_events_max: COMMIT_EVENTS_MAX,
            hot_max: HOT_MAX,
            single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
            settle_linger_ms: WriterConfig::SETTLE_LINGER_MS_DEFAULT,
        }
    }
}
