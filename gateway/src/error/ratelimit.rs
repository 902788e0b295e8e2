//! The `x-ratelimit-*` headers: the tightest caps in requests and in tokens.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use seatbelt_schemas::{cap::CapStanding, meter::Meter};

/// By meter: the names of limit, remainder and reset.
const NAMES: [(Meter, [&str; 3]); 2] = [
    (
        Meter::Requests,
        [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ],
    ),
    (
        Meter::Tokens,
        [
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ],
    ),
];

/// Shows the tightest of `caps` in each meter that the headers know.
pub(crate) fn show(caps: &[CapStanding], now_ms: u64, headers: &mut HeaderMap) {
    for (meter, [limit, remaining, reset]) in NAMES {
        let counted = caps.iter().filter(|cap| cap.meter == meter);
        let Some(cap) = counted.min_by_key(|cap| cap.available()) else {
            continue;
        };
        headers.insert(HeaderName::from_static(limit), cap.limit.into());
        headers.insert(HeaderName::from_static(remaining), cap.available().into());
        if let Some(text) = reset_text(cap, now_ms) {
            headers.insert(HeaderName::from_static(reset), text);
        }
    }
}

/// Time until a cap is whole again, as OpenAI writes it: `6m0s`.
fn reset_text(cap: &CapStanding, now_ms: u64) -> Option<HeaderValue> {
    let seconds = cap.resets_at_ms?.saturating_sub(now_ms).div_ceil(1000);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let text = match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    };
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{ids::CapId, scope::Scope, window::Window};

    use super::*;

    fn cap(meter: Meter, limit: u64, spent: u64, resets_at_ms: Option<u64>) -> CapStanding {
        CapStanding {
            cap: CapId::new("c").unwrap(),
            scope: Scope::Account,
            meter,
            window: Window::Rolling { seconds: 60 },
            limit,
            spent,
            held: 5,
            resets_at_ms,
        }
    }

    #[test]
    fn the_tightest_cap_is_the_one_shown() {
        let caps = [
            cap(Meter::Tokens, 1000, 0, None),
            cap(Meter::Tokens, 500, 100, Some(401_000)),
            cap(Meter::Cost, 1, 0, None),
        ];
        let mut headers = HeaderMap::new();
        show(&caps, 1_000, &mut headers);
        let shown = |name: &str| {
            headers
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(shown("x-ratelimit-limit-tokens").as_deref(), Some("500"));
        assert_eq!(
            shown("x-ratelimit-remaining-tokens").as_deref(),
            Some("395")
        );
        assert_eq!(shown("x-ratelimit-reset-tokens").as_deref(), Some("6m40s"));
        assert_eq!(shown("x-ratelimit-limit-requests"), None);
    }
}
