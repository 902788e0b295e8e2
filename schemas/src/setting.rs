//! Numbers that an operator may set, each with its bounds and its default in one place: beside the field that
//! it fills. Whoever reads them, from a file or the environment, asks here and keeps none of its own.

use std::time::Duration;

/// A whole number that may be set. Its unit closes the name of the constant that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    least: u64,
    most: u64,
    default: u64,
}

impl Setting {
    /// What may be set, and what holds where nothing is. The default lies within the bounds, or this is no
    /// constant.
    pub const fn new(least: u64, most: u64, default: u64) -> Self {
        assert!(least <= default && default <= most);
        Self {
            least,
            most,
            default,
        }
    }

    /// The least and the most that may be set.
    pub const fn bounds(self) -> (u64, u64) {
        (self.least, self.most)
    }

    /// What holds where nothing is set.
    pub const fn default(self) -> u64 {
        self.default
    }

    /// The default of a setting in milliseconds.
    pub const fn default_ms(self) -> Duration {
        Duration::from_millis(self.default)
    }

    /// The default of a number of things.
    pub const fn default_count(self) -> usize {
        count(self.default)
    }
}

/// A number of things, as this machine counts them.
#[expect(
    clippy::cast_possible_truncation,
    reason = "compared before; a constant cannot use try_from"
)]
pub const fn count(number: u64) -> usize {
    if number > usize::MAX as u64 {
        return usize::MAX;
    }
    number as usize
}
