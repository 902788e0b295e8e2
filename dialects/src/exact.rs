//! Numbers that no machine word holds go out as they came.
//!
//! A parsed body has its numbers as 64-bit words: `18446744073709551617` and `0.1234567890123456789` would be
//! others afterwards, `1e400` would be none. Each of these is parsed as an object of one field instead, whose
//! name is a mark that nobody can guess, and is a number again in what is written. An object, since nobody who
//! looks for a text, a number or a switch takes one for it, and shows or keeps it as such. All other numbers are
//! left as they are: what is written of them is the same number, though `0.70` may be written `0.7`. Not here:
//! what a number means; no field that bounds anything takes such a one.

/// The mark of one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exact {
    mark: String,
}

impl Exact {
    /// A body with its inexact numbers as marked objects; nothing where it has none. `mark` has letters and
    /// digits alone, and must not be known to whoever sent the body.
    pub fn marked(body: &[u8], mark: impl FnOnce() -> String) -> Option<(Vec<u8>, Self)> {
        let mut inexact = Numbers { body, at: 0 }
            .filter(|(from, to)| std::str::from_utf8(&body[*from..*to]).is_ok_and(is_inexact))
            .peekable();
        inexact.peek()?;
        let mark = mark();
        assert!(!mark.is_empty() && mark.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let mut out = Vec::with_capacity(body.len() + 64);
        let mut written = 0;
        for (from, to) in inexact {
            out.extend_from_slice(&body[written..from]);
            out.extend_from_slice(b"{\"");
            out.extend_from_slice(mark.as_bytes());
            out.extend_from_slice(b"\":\"");
            out.extend_from_slice(&body[from..to]);
            out.extend_from_slice(b"\"}");
            written = to;
        }
        out.extend_from_slice(&body[written..]);
        Some((out, Self { mark }))
    }

    /// The same with each marked object as the number that it was, within texts of JSON too.
    pub fn unmarked(&self, written: &[u8]) -> Vec<u8> {
        let mark = self.mark.as_bytes();
        let mut out = Vec::with_capacity(written.len());
        let mut rest = written;
        while let Some(at) = position(rest, mark) {
            let behind = &rest[at + mark.len()..];
            let quote = quote_before(&rest[..at]);
            let opened = rest[..at - quote.len()].strip_suffix(b"{");
            match opened.zip(number_within(behind, quote)) {
                Some((before, (number, after))) => {
                    out.extend_from_slice(before);
                    out.extend_from_slice(number);
                    rest = after;
                }
                None => {
                    out.extend_from_slice(&rest[..at + mark.len()]);
                    rest = behind;
                }
            }
        }
        out.extend_from_slice(rest);
        out
    }
}

/// The number that stands behind its mark in these quotes, and what comes after its object.
fn number_within<'a>(behind: &'a [u8], quote: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let value = behind.strip_prefix(quote)?.strip_prefix(b":")?;
    let value = value.strip_prefix(quote).filter(|_| !quote.is_empty())?;
    let long = value.iter().take_while(|byte| is_of_number(**byte)).count();
    let (number, after) = value.split_at(long);
    Some((number, after.strip_prefix(quote)?.strip_prefix(b"}")?))
}

/// The quote at the end, with what escapes it.
fn quote_before(text: &[u8]) -> &[u8] {
    let Some((b'"', before)) = text.split_last() else {
        return &[];
    };
    let slashes = before
        .iter()
        .rev()
        .take_while(|byte| **byte == b'\\')
        .count();
    &text[before.len() - slashes..]
}

fn position(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).position(|found| found == mark)
}

fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E')
}

/// The places of what may be numbers: nothing within a text is.
struct Numbers<'a> {
    body: &'a [u8],
    at: usize,
}

impl Iterator for Numbers<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        loop {
            match self.body.get(self.at)? {
                b'"' => self.skip_text(),
                b'-' | b'0'..=b'9' => {
                    let from = self.at;
                    let rest = &self.body[from..];
                    let long = rest.iter().take_while(|byte| is_of_number(**byte)).count();
                    self.at += long;
                    return Some((from, self.at));
                }
                _ => self.at += 1,
            }
        }
    }
}

impl Numbers<'_> {
    fn skip_text(&mut self) {
        self.at += 1;
        while let Some(byte) = self.body.get(self.at) {
            self.at += match byte {
                b'"' => {
                    self.at += 1;
                    return;
                }
                b'\\' => 2,
                _ => 1,
            };
        }
    }
}

/// Whether a number is another one once it was parsed and written; what is no number is left to the parser.
fn is_inexact(text: &str) -> bool {
    let Some(decimal) = Decimal::of(text) else {
        return false;
    };
    let is_word = text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok();
    // as the body will be parsed, which is not always to the nearest float, and written, which where two texts are as
    // short and as near is not always as others write it
    let float = || serde_json::from_str::<f64>(text).ok();
    let written = || serde_json::to_string(&float()?).ok();
    !is_word && written().and_then(|written| Decimal::of(&written)) != Some(decimal)
}

/// A number by its digits, without zeros at either end, and the power of ten of the last.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    is_negative: bool,
    digits: String,
    power: i64,
}

impl Decimal {
    /// `None` where the text is no number of JSON, or one with a power that is none.
    fn of(text: &str) -> Option<Self> {
        let (is_negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, power) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (mantissa, ""),
        };
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let leads = whole.len() > 1 && whole.starts_with('0');
        let unsigned = power.strip_prefix(['+', '-']).unwrap_or(power);
        if whole.is_empty() || leads || !is_digits(whole) || !is_digits(fraction) {
            return None;
        }
        if unsigned.is_empty() || !is_digits(unsigned) {
            return None;
        }
        // a power beyond any word is no number that could be told from its neighbours
        let power: i64 = power.parse().unwrap_or(i64::MAX / 2);
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let kept = digits.trim_end_matches('0');
        let zeros = i64::try_from(digits.len() - kept.len()).ok()?;
        let places = i64::try_from(fraction.len()).ok()?;
        Some(Self {
            is_negative: is_negative && !kept.is_empty(),
            power: if kept.is_empty() {
                0
            } else {
                power - places + zeros
            },
            digits: kept.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn round(body: &str) -> String {
        let bytes = body.as_bytes();
        let written = match Exact::marked(bytes, || "mark7".to_owned()) {
            None => serde_json::from_slice::<Value>(bytes)
                .unwrap()
                .to_string()
                .into_bytes(),
            Some((marked, exact)) => {
                let value: Value = serde_json::from_slice(&marked).unwrap();
                exact.unmarked(value.to_string().as_bytes())
            }
        };
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn what_no_word_holds_goes_out_as_it_came() {
        for number in [
            "18446744073709551616",
            "-9223372036854775809",
            "123456789012345678901234567890",
            "0.1234567890123456789",
            "1e400",
            "-1E+400",
            "1e-400",
            "100000000000000.13",
            "1e99999999999999999999",
        ] {
            let body = format!(r#"{{"seed":{number},"a":[{number},"{number}"],"n":7}}"#);
            assert_eq!(round(&body), body);
        }
    }

    #[test]
    fn what_a_word_holds_is_left_alone() {
        for number in [
            "0",
            "-0",
            "18446744073709551615",
            "-9223372036854775808",
            "0.70",
            "1.0",
            "1e3",
            "0.0",
            "5e-324",
            "0.1",
            "1.7976931348623157e308",
        ] {
            assert!(!is_inexact(number), "{number}");
        }
        for odd in [
            "", "-", "01", "1.", ".5", "1e", "1e+", "--1", "1-2", "1.2.3",
        ] {
            assert!(!is_inexact(odd), "{odd} is the parser's to refuse");
        }
        assert_eq!(
            Exact::marked(br#"{"a": "1e400 \" 1e400", "b": 1}"#, || unreachable!()),
            None
        );
    }

    #[test]
    fn a_mark_is_taken_out_of_texts_of_json_and_only_where_it_stands_whole() {
        let exact = Exact {
            mark: "mark7".to_owned(),
        };
        let unmarked = |text: &str| String::from_utf8(exact.unmarked(text.as_bytes())).unwrap();
        assert_eq!(
            unmarked(r#"{"a":"{\"b\":{\"mark7\":\"1e400\"}}"}"#),
            r#"{"a":"{\"b\":1e400}"}"#
        );
        for other in [
            r#"{"x mark7":"1e400"}"#,
            r#"{"mark7":"1e400 x"}"#,
            r#"{"mark7":"1e400","a":1}"#,
            r#"{"a":1,"mark7":"1e400"}"#,
            r#""mark7":"1e400"}"#,
            "mark7",
            r#""mark7"#,
            r#"{"mark7""#,
        ] {
            assert_eq!(unmarked(other), other);
        }
    }

    #[test]
    fn where_a_text_is_looked_for_no_such_number_is_one() {
        let body = br#"{"model":1e400,"user":18446744073709551617,"text":0.1234567890123456789}"#;
        let (marked, _) = Exact::marked(body, || "mark7".to_owned()).unwrap();
        let body: Value = serde_json::from_slice(&marked).unwrap();
        for (name, value) in body.as_object().unwrap() {
            assert!(value.is_object(), "{name}: {value}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_the_same_one_afterwards(
            number in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
            text in "[\\PC\"\\\\]{0,8}",
        ) {
            let body = format!(r#"{{"a":{},"b":[{number},{number}]}}"#, Value::String(text.clone()));
            let written = round(&body);
            let start = format!(r#"{{"a":{},"b":["#, Value::String(text));
            let numbers = written.strip_prefix(&start).and_then(|rest| rest.strip_suffix("]}")).unwrap();
            for found in numbers.split(',') {
                prop_assert_eq!(Decimal::of(found), Decimal::of(&number), "{} {}", number, written);
            }
        }
    }
}
