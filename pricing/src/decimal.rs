//! Decimal numbers as they are written, down to the last digit.

/// Most digits of a number; longer ones are no prices.
const DIGITS_MAX: usize = 30;
/// Largest power of ten, either way, that a number is written with.
const POWER_MAX: u32 = 40;

/// `digits` times ten to the `power`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decimal {
    digits: u128,
    power: i32,
}

impl Decimal {
    /// A number as JSON writes it; `None` where it is negative or of a length that no price has.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (mantissa, power) = match text.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [whole, fraction].concat();
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || !plain
            || digits.len() > DIGITS_MAX
            || power.unsigned_abs() > POWER_MAX
        {
            return None;
        }
        Some(Self {
            digits: digits.parse().ok()?,
            power: power - i32::try_from(fraction.len()).ok()?,
        })
    }

    /// This number times ten to the `power`, rounded up; `None` beyond u64.
    pub(crate) fn times_ten_to(self, power: i32) -> Option<u64> {
        let power = self.power.checked_add(power)?;
        let ten = |power: u32| 10u128.checked_pow(power);
        let whole = match u32::try_from(power) {
            _ if self.digits == 0 => 0,
            Ok(power) => self.digits.checked_mul(ten(power)?)?,
            // a divisor beyond u128 is above all digits
            Err(_) => ten(power.unsigned_abs()).map_or(1, |by| self.digits.div_ceil(by)),
        };
        u64::try_from(whole).ok()
    }

    /// The number where it is whole.
    pub(crate) fn whole(self) -> Option<u64> {
        let by = 10u128.checked_pow(self.power.min(0).unsigned_abs())?;
        let is_whole = self.digits.is_multiple_of(by);
        is_whole.then(|| self.times_ten_to(0)).flatten()
    }

    pub(crate) fn is_zero(self) -> bool {
        self.digits == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, power: i32, expected: Option<u64>) {
        let found = Decimal::parse(text).and_then(|number| number.times_ten_to(power));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn what_is_not_whole_is_rounded_up_from_its_text() {
        check("2.5", 6, Some(2_500_000));
        check("0.075", 6, Some(75_000));
        check("1.5e-07", 12, Some(150_000));
        check("3E-7", 12, Some(300_000));
        check("3.0001999999999996E-7", 12, Some(300_020));
        check("2.9e-13", 12, Some(1));
        check("1e-40", 12, Some(1));
        check("0.0", 12, Some(0));
        check("0e-40", 12, Some(0));
        check("1e2", 6, Some(100_000_000));
    }

    #[test]
    fn what_no_price_looks_like_is_refused() {
        for bad in [
            "-1",
            "",
            ".5",
            "1e99",
            "1e",
            "1e-999999999999",
            "1e-2147483648",
            "1e2147483647",
            "NaN",
            "0x1",
            "1_0",
            "+1",
        ] {
            check(bad, 6, None);
        }
        check(&"1".repeat(31), 6, None);
        check("99999999999999999999", 6, None);
        let whole = |text: &str| Decimal::parse(text).and_then(Decimal::whole);
        assert_eq!(whole("256000.0"), Some(256_000));
        assert_eq!(whole("2e5"), Some(200_000));
        assert_eq!(whole("1.5"), None);
    }

    proptest! {
        #[test]
        fn no_rounding_is_down_or_by_a_whole_unit(digits in 0..1_000_000_000u64, places in 0..9usize) {
            let text = format!("{}.{:09}", digits / 1_000_000_000, digits % 1_000_000_000);
            let unit = 10u64.pow(u32::try_from(9 - places).unwrap());
            let found = Decimal::parse(&text).unwrap().times_ten_to(i32::try_from(places).unwrap()).unwrap();
            prop_assert!(found * unit >= digits && found * unit < digits + unit);
        }
    }
}
