//! Writes a price book: TOML that `include` reads, with where it comes from and what it does not say.

use crate::{Day, Limits, List, Listed, ListedTerms, NotImported, StatedRates};

/// Longest comment; what a list says may be of any length.
const COMMENT_CHARS_MAX: usize = 300;

/// Where a book's prices come from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The list's name.
    pub source: String,
    /// Its SHA-256, in hex.
    pub sha256: String,
    /// The day whose prices were taken.
    pub day: Day,
}

/// The list as a price book.
pub fn write(list: &List, origin: &Origin) -> String {
    let mut book = String::new();
    comment(
        &mut book,
        "Prices as `seatbelt prices import` read them: USD per million tokens. No list is always right:",
    );
    comment(
        &mut book,
        "compare them with the provider's own page before you rely on them.",
    );
    comment(
        &mut book,
        &format!(
            "source: {} (format {}), sha256 {}",
            origin.source, list.format, origin.sha256
        ),
    );
    comment(&mut book, &format!("day: {}", origin.day));
    for listed in &list.models {
        model(&mut book, listed);
    }
    if !list.left_out.is_empty() {
        book.push('\n');
        comment(&mut book, "Not imported:");
        for NotImported { name, reason } in &list.left_out {
            comment(&mut book, &format!("{name}: {reason}"));
        }
    }
    book
}

fn model(book: &mut String, listed: &Listed) {
    let Listed {
        name,
        limits,
        terms,
        classes,
        notes,
    } = listed;
    book.push('\n');
    for note in notes {
        comment(book, note);
    }
    book.push_str("[[prices]]\n");
    line(book, "provider", &quoted(&name.provider));
    line(book, "model", &quoted(&name.model));
    let Limits { context, output } = limits;
    for (key, tokens) in [("context", context), ("output", output)] {
        if let Some(tokens) = tokens {
            line(book, key, &tokens.to_string());
        }
    }
    line(book, "price", &price(terms));
    for class in classes {
        book.push_str("[[prices.class]]\n");
        line(book, class.field, &quoted(&class.value));
        line(book, "price", &price(&class.terms));
    }
}

fn line(book: &mut String, key: &str, value: &str) {
    book.push_str(&format!("{key} = {value}\n"));
}

fn price(terms: &ListedTerms) -> String {
    let mut parts = rates(&terms.rates);
    let tiers = terms.tiers.iter().map(|(above, tier)| {
        let parts = [vec![format!("above_input_tokens = {above}")], rates(tier)].concat();
        format!("{{ {} }}", parts.join(", "))
    });
    let tiers: Vec<_> = tiers.collect();
    if !tiers.is_empty() {
        parts.push(format!("tiers = [{}]", tiers.join(", ")));
    }
    if terms.per_request > 0 {
        parts.push(format!(
            "per_request = \"{}\"",
            decimal(terms.per_request, 9)
        ));
    }
    format!("{{ {} }}", parts.join(", "))
}

fn rates(rates: &StatedRates) -> Vec<String> {
    let all = [
        ("input", Some(rates.input)),
        ("cached_input", rates.cached_input),
        ("cache_write", rates.cache_write),
        ("cache_write_long", rates.cache_write_long),
        ("output", Some(rates.output)),
        ("reasoning", rates.reasoning),
    ];
    let stated = all.into_iter().filter_map(|(key, rate)| Some((key, rate?)));
    stated
        .map(|(key, rate)| format!("{key} = \"{}\"", decimal(rate, 6)))
        .collect()
}

/// A whole number of the smallest unit, as a decimal number with at most so many decimals.
pub(crate) fn decimal(units: u64, decimals: u32) -> String {
    let scale = 10u64.pow(decimals);
    let text = format!(
        "{}.{:0width$}",
        units / scale,
        units % scale,
        width = decimals as usize
    );
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text as TOML quotes it: names come from outside.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => {
                quoted.push_str(&format!("\\u{:04X}", u32::from(letter)));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// One line, whatever the text holds: a line break in it would go on as TOML.
fn comment(book: &mut String, text: &str) {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    book.push_str("# ");
    book.extend(text.chars().take(COMMENT_CHARS_MAX).map(plain));
    book.push('\n');
}
