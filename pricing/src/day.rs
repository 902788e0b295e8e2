//! Days, as price lists name those from which a price applies.

use std::{fmt, str::FromStr};

use seatbelt_schemas::time::{parse_rfc3339_ms, rfc3339_ms};
use thiserror::Error;

/// Length of a day as it is written.
const DAY_LEN: usize = "2026-11-26".len();

/// A day of the calendar, in UTC: its midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(u64);

/// Text that is no day.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("is not a day: write it as 2026-11-26")]
pub struct InvalidDay;

impl Day {
    /// The day in which this millisecond since 1970 lies.
    pub fn of_unix_ms(at_ms: u64) -> Self {
        Self(at_ms - at_ms % 86_400_000)
    }
}

impl FromStr for Day {
    type Err = InvalidDay;

    fn from_str(text: &str) -> Result<Self, InvalidDay> {
        let day = || parse_rfc3339_ms(text).map(Self);
        (text.len() == DAY_LEN)
            .then(day)
            .flatten()
            .ok_or(InvalidDay)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339_ms(self.0)[..DAY_LEN])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_compared_and_shown() {
        let day = |text: &str| text.parse::<Day>();
        assert!(day("2026-11-26").unwrap() < day("2026-12-01").unwrap());
        assert_eq!(day("2028-02-29").unwrap().to_string(), "2028-02-29");
        assert_eq!(
            Day::of_unix_ms(1_795_651_200_001),
            day("2026-11-26").unwrap()
        );
        for bad in [
            "2026-02-29",
            "2026-13-01",
            "2026-1-1",
            "2026-01-01T00:00:00Z",
            "",
        ] {
            assert_eq!(day(bad), Err(InvalidDay), "{bad:?}");
        }
    }
}
