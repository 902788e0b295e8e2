//! Money as integers. Amounts are nano-USD, prices pico-USD per token; decimal text is parsed
//! exactly or refused, and no float is ever involved.

use thiserror::Error;

/// Largest amount accepted anywhere (limits, credits, holds): 2^62, so that sums of a few fit u64.
pub const AMOUNT_MAX: u64 = 1 << 62;
/// Largest number of tokens one request may ask for: 2^40.
pub const TOKENS_PER_REQUEST_MAX: u64 = 1 << 40;
/// Largest price: one USD per token, in pico-USD.
pub const PRICE_MAX: u64 = 1_000_000_000_000;
/// Most that rates are multiplied by: a hundred times, in millionths.
pub const MULTIPLIER_PPM_MAX: u64 = 100_000_000;
/// Largest fee of one request, or of one call: 1000 USD, in nano-USD.
pub const FEE_MAX: u64 = 1_000_000_000_000;
/// Most calls of the provider's tools that one request may ask for, or report: 2^20, so that their fees
/// stay countable.
pub const TOOL_CALLS_MAX: u64 = 1 << 20;
const _: () = assert!(FEE_MAX <= AMOUNT_MAX / TOOL_CALLS_MAX);

/// Nano-USD in one USD.
pub const NANO_PER_USD: u64 = 1_000_000_000;
/// Pico-USD per token that one USD per million tokens comes to.
pub const PICO_PER_TOKEN_PER_USD_PER_MILLION: u64 = 1_000_000;

/// Decimal text that is not an exact amount.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{found:?} is not an amount: write a decimal number with at most {decimals} decimals, such as \"0.15\", up to {max}"
)]
pub struct InvalidAmount {
    /// The rejected text, cut to 80 characters.
    pub found: String,
    /// How many decimals are exact here.
    pub decimals: usize,
    /// Largest whole part allowed.
    pub max: u64,
}

/// USD as decimal text (`"25.00"`) to nano-USD.
pub fn parse_usd(text: &str) -> Result<u64, InvalidAmount> {
    parse_decimal(text, 9, AMOUNT_MAX)
}

/// USD per million tokens as decimal text (`"0.15"`) to pico-USD per token.
pub fn parse_usd_per_million(text: &str) -> Result<u64, InvalidAmount> {
    parse_decimal(text, 6, PRICE_MAX)
}

/// Nano-USD as USD decimal text without trailing zeros, for messages to people.
pub fn usd_text(nano: u64) -> String {
    let text = format!("{}.{:09}", nano / NANO_PER_USD, nano % NANO_PER_USD);
    let trimmed = text.trim_end_matches('0');
    let cents = trimmed.find('.').map_or(0, |dot| trimmed.len() - dot - 1);
    format!("{trimmed}{}", "0".repeat(2usize.saturating_sub(cents)))
}

fn parse_decimal(text: &str, decimals: usize, max: u64) -> Result<u64, InvalidAmount> {
    let scale = 10u64.pow(u32::try_from(decimals).unwrap_or(0));
    let invalid = || InvalidAmount {
        found: text.chars().take(80).collect(),
        decimals,
        max: max / scale,
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > decimals {
        return Err(invalid());
    }
    let whole: u64 = whole.parse().map_err(|_| invalid())?;
    let fraction: u64 = format!("{fraction:0<decimals$}")
        .parse()
        .map_err(|_| invalid())?;
    whole
        .checked_mul(scale)
        .and_then(|units| units.checked_add(fraction))
        .filter(|units| *units <= max)
        .ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usd_is_parsed_exactly_or_refused() {
        assert_eq!(parse_usd("25.00"), Ok(25_000_000_000));
        assert_eq!(parse_usd("0.000000001"), Ok(1));
        assert_eq!(parse_usd_per_million("0.15"), Ok(150_000));
        for bad in [
            "",
            ".5",
            "-1",
            "1e3",
            "0.0000000001",
            "99999999999999",
            "1,5",
            " 1",
            "1.-1",
        ] {
            assert!(parse_usd(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn usd_text_reads_back_as_the_same_amount(nano in 0..=AMOUNT_MAX) {
            prop_assert_eq!(parse_usd(&usd_text(nano)), Ok(nano));
        }
    }
}
