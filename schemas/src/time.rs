//! Times as people write them: RFC 3339 in UTC with milliseconds, from and to unix ms.
//!
//! Whole numbers only, no time zones, no leap seconds: a unix time has none.

use crate::window::{AT_MS_MAX, civil_date, day_of_month_start};

const DAY_MS: u64 = 86_400_000;

/// `at_ms` as `2024-02-29T12:34:56.000Z`. Times past [`AT_MS_MAX`] are shown as that.
pub fn rfc3339_ms(at_ms: u64) -> String {
    let at_ms = at_ms.min(AT_MS_MAX);
    let (year, month, day) = civil_date(at_ms / DAY_MS);
    let of_day = at_ms % DAY_MS;
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, ms) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Reads `2024-02-29T12:34:56Z`, with up to 3 digits of a second or none, or a date alone (its
/// midnight). `None` where the text is no such time at or after 1970.
pub fn parse_rfc3339_ms(text: &str) -> Option<u64> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    if year < 1970 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = (day_of_month_start(year, month) + day).checked_sub(1)?;
    if civil_date(days) != (year, month, day) {
        return None; // no such day in that month
    }
    if fraction.is_empty() {
        return None;
    }
    let [ms] = numbers(&format!("{fraction:0<3}"), ' ', [3])?;
    Some(days * DAY_MS + hour * 3_600_000 + minute * 60_000 + second * 1000 + ms)
}

/// Exactly `N` numbers of exactly so many digits each.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(between);
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        assert_eq!(rfc3339_ms(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_ms(1_709_210_096_007), "2024-02-29T12:34:56.007Z");
        assert_eq!(rfc3339_ms(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
    }

    #[test]
    fn short_forms_are_read_and_odd_ones_are_not() {
        assert_eq!(
            parse_rfc3339_ms("2024-02-29T12:34:56Z"),
            Some(1_709_210_096_000)
        );
        assert_eq!(
            parse_rfc3339_ms("2024-02-29T12:34:56.5Z"),
            Some(1_709_210_096_500)
        );
        assert_eq!(parse_rfc3339_ms("2024-02-29"), Some(1_709_164_800_000));
        for bad in [
            "",
            "2023-02-29",
            "2024-00-01",
            "2024-13-01",
            "2024-1-1",
            "1969-12-31",
            "2024-02-00",
            "2024-02-29T24:00:00Z",
            "2024-02-29T12:34:56",
            "2024-02-29T12:34:56.1234Z",
            "2024-02-29T+2:34:56Z",
            "2024-02-29T12:34Z",
            "2024-02-29T12:34:56.Z",
        ] {
            assert_eq!(parse_rfc3339_ms(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_time_reads_back_as_it_was_written(at_ms in 0..253_402_300_800_000u64) {
            prop_assert_eq!(parse_rfc3339_ms(&rfc3339_ms(at_ms)), Some(at_ms));
        }
    }
}
