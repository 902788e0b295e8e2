//! Over which time a cap counts, and the integer arithmetic of slots and calendar periods.
//!
//! A rolling window slides in 60 slots. A slot's spend leaves only when the whole slot has left the
//! window, never early. Slot borders are rational (`seconds * 1000 / 60` ms), so both directions are
//! computed exactly in integers.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// Slots of a rolling window.
pub const ROLLING_SLOTS: u64 = 60;
/// Longest rolling window: 366 days.
pub const ROLLING_SECONDS_MAX: u64 = 366 * 86_400;
/// Latest time that is computed with, unix ms: the year 10889. Keeps all products within u64.
pub const AT_MS_MAX: u64 = (1 << 48) - 1;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Over which time a cap counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Window {
    /// Never resets; credits raise the limit.
    Balance,
    /// Slides over the last so many seconds.
    Rolling {
        /// Length, 1 to [`ROLLING_SECONDS_MAX`].
        seconds: u64,
    },
    /// Starts anew with each calendar period, UTC.
    Calendar { period: Period },
}

/// [`Window`] on the wire. Written out: derived, every field would be buffered, and none that is skipped
/// be noticed.
#[derive(Deserialize)]
struct WindowFields {
    kind: WindowKind,
    seconds: Option<u64>,
    period: Option<Period>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WindowKind {
    Balance,
    Rolling,
    Calendar,
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let fields = WindowFields::deserialize(from)?;
        let window = match (fields.kind, fields.seconds, fields.period) {
            (WindowKind::Balance, None, None) => Self::Balance,
            (WindowKind::Rolling, Some(seconds), None) => Self::Rolling { seconds },
            (WindowKind::Calendar, None, Some(period)) => Self::Calendar { period },
            (WindowKind::Rolling, None, _) => return Err(D::Error::missing_field("seconds")),
            (WindowKind::Calendar, _, None) => return Err(D::Error::missing_field("period")),
            _ => return Err(D::Error::custom("a window has a field of another kind")),
        };
        Ok(window)
    }
}

/// A calendar period, UTC. Weeks start on Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// From minute 0.
    Hour,
    /// From midnight.
    Day,
    /// From Monday, midnight.
    Week,
    /// From the first, midnight.
    Month,
}

impl Window {
    /// Whether spend ever leaves the window by itself.
    pub fn resets(self) -> bool {
        self != Self::Balance
    }

    /// Whether the window's numbers can be computed with.
    pub fn is_valid(self) -> bool {
        match self {
            Self::Rolling { seconds } => (1..=ROLLING_SECONDS_MAX).contains(&seconds),
            Self::Balance | Self::Calendar { .. } => true,
        }
    }

    /// The slot into which spend at `at_ms` falls. Slots of one window grow with time.
    pub fn slot(self, at_ms: u64) -> u64 {
        let at_ms = at_ms.min(AT_MS_MAX);
        match self {
            Self::Balance => 0,
            Self::Rolling { seconds } => at_ms * ROLLING_SLOTS / (seconds.max(1) * 1000),
            Self::Calendar { period } => period.start_ms(at_ms),
        }
    }

    /// The first moment at which a slot's spend no longer counts; `None` for a balance.
    pub fn slot_gone_ms(self, slot: u64) -> Option<u64> {
        match self {
            Self::Balance => None,
            Self::Rolling { seconds } => {
                let length_ms = seconds.max(1) * 1000;
                Some(((slot + 1) * length_ms).div_ceil(ROLLING_SLOTS) + length_ms)
            }
            Self::Calendar { period } => Some(period.end_ms(slot)),
        }
    }

    /// The length of the window around `at_ms`; `None` for a balance.
    pub fn length_ms(self, at_ms: u64) -> Option<u64> {
        match self {
            Self::Balance => None,
            Self::Rolling { seconds } => Some(seconds * 1000),
            Self::Calendar { period } => {
                let start = period.start_ms(at_ms.min(AT_MS_MAX));
                Some(period.end_ms(start) - start)
            }
        }
    }
}

impl Period {
    /// When the period around `at_ms` began, unix ms.
    pub fn start_ms(self, at_ms: u64) -> u64 {
        let day = at_ms / DAY_MS;
        match self {
            Self::Hour => at_ms / HOUR_MS * HOUR_MS,
            Self::Day => day * DAY_MS,
            // 1970-01-01 was a Thursday: the epoch's own week is cut at the epoch
            Self::Week => day.saturating_sub((day + 3) % 7) * DAY_MS,
            Self::Month => {
                let (year, month) = civil_month(day);
                day_of_month_start(year, month) * DAY_MS
            }
        }
    }

    /// When the period that began at `start_ms` ends, unix ms.
    fn end_ms(self, start_ms: u64) -> u64 {
        match self {
            Self::Hour => start_ms + HOUR_MS,
            Self::Day => start_ms + DAY_MS,
            Self::Week if start_ms == 0 => 4 * DAY_MS,
            Self::Week => start_ms + 7 * DAY_MS,
            Self::Month => {
                let (year, month) = civil_month(start_ms / DAY_MS);
                let next = if month == 12 {
                    (year + 1, 1)
                } else {
                    (year, month + 1)
                };
                day_of_month_start(next.0, next.1) * DAY_MS
            }
        }
    }
}

/// Year and month (1 to 12) of a day since 1970-01-01. After Howard Hinnant, "chrono-compatible
/// low-level date algorithms", for days from the epoch on.
fn civil_month(day: u64) -> (u64, u64) {
    let z = day + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month)
}

/// Year, month (1 to 12) and day (1 to 31) of a day since 1970-01-01.
pub(crate) fn civil_date(day: u64) -> (u64, u64, u64) {
    let (year, month) = civil_month(day);
    (year, month, day - day_of_month_start(year, month) + 1)
}

/// Day since 1970-01-01 on which a month begins. The inverse of [`civil_month`], same source.
pub(crate) fn day_of_month_start(year: u64, month: u64) -> u64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y / 400;
    let yoe = y % 400;
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doy = (153 * mp + 2) / 5;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(period: Period, at_ms: u64, start_ms: u64, end_ms: u64) {
        assert_eq!(period.start_ms(at_ms), start_ms);
        assert_eq!(
            Window::Calendar { period }.slot_gone_ms(start_ms),
            Some(end_ms)
        );
    }

    #[test]
    fn calendar_periods_are_utc_and_weeks_begin_on_monday() {
        let at = 1_709_210_096_000; // Thu 2024-02-29T12:34:56Z
        check(Period::Hour, at, 1_709_208_000_000, 1_709_211_600_000);
        check(Period::Day, at, 1_709_164_800_000, 1_709_251_200_000);
        check(Period::Week, at, 1_708_905_600_000, 1_709_510_400_000);
        check(Period::Month, at, 1_706_745_600_000, 1_709_251_200_000);
        check(Period::Week, 1000, 0, 4 * DAY_MS);
        check(Period::Month, 31 * DAY_MS - 1, 0, 31 * DAY_MS);
    }

    /// Day after day by the rule that everybody knows, which shares nothing with the arithmetic above.
    #[test]
    fn months_are_as_long_as_they_are_for_four_hundred_years() {
        let mut day = 0;
        for year in 1970..2371_u64 {
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let lengths = [
                31,
                28 + u64::from(is_leap),
                31,
                30,
                31,
                30,
                31,
                31,
                30,
                31,
                30,
                31,
            ];
            for (month, days) in (1..).zip(lengths) {
                let (start, end) = (day * DAY_MS, (day + days) * DAY_MS);
                check(Period::Month, start, start, end);
                check(Period::Month, end - 1, start, end);
                assert_eq!(civil_date(day), (year, month, 1));
                assert_eq!(civil_date(day + days - 1), (year, month, days));
                day += days;
            }
        }
    }

    fn windows() -> impl Strategy<Value = Window> {
        use Period::{Day, Hour, Month, Week};
        prop_oneof![
            (1..=ROLLING_SECONDS_MAX).prop_map(|seconds| Window::Rolling { seconds }),
            (1..100u64).prop_map(|seconds| Window::Rolling { seconds }),
            proptest::sample::select(vec![Hour, Day, Week, Month])
                .prop_map(|period| Window::Calendar { period }),
        ]
    }

    proptest! {
        #[test]
        fn spend_counts_for_at_least_the_window_and_at_most_one_slot_more(
            window in windows(), at in 0..4_102_444_800_000u64,
        ) {
            let gone = window.slot_gone_ms(window.slot(at)).unwrap();
            prop_assert!(gone > at);
            if let Window::Rolling { seconds } = window {
                prop_assert!(gone >= at + seconds * 1000);
                prop_assert!(gone <= at + seconds * 1000 + (seconds * 1000).div_ceil(ROLLING_SLOTS) + 1);
            } else {
                prop_assert_eq!(window.slot(gone), gone);
                prop_assert_eq!(window.slot(gone - 1), window.slot(at));
            }
        }

        #[test]
        fn slots_never_go_backwards(window in windows(), at in 0..4_102_444_800_000u64, later in 0..10_000_000_000u64) {
            prop_assert!(window.slot(at) <= window.slot(at + later));
        }
    }
}
