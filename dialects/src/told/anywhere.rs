//! Counts of what was used, wherever an answer has them and whatever it calls them.
//!
//! No report of an API, so that nobody is charged by it where there is one. Where there is none, it is the least that
//! was used: what an error says beside its message, or a server in the words of another one's API. One rule for what is
//! charged and for what is sent to nobody else.

use serde_json::value::RawValue;

use super::report::{COUNT_MAX, Counts, values_within};
use crate::{
    fields::folded,
    raw::{Pairs, items},
};

/// How deep they are looked for.
const DEPTH_MAX: u8 = 8;
/// Most objects with counts.
const FOUND_MAX: usize = 64;
/// Longest name of a count.
const NAME_CHARS_MAX: usize = 40;
/// Names as they are folded: without case and separators.
const INPUT: [&str; 5] = [
    "prompttokens",
    "inputtokens",
    "prompttokencount",
    "inputtokencount",
    "promptevalcount",
];
const OUTPUT: [&str; 6] = [
    "completiontokens",
    "outputtokens",
    "candidatestokencount",
    "outputtokencount",
    "generatedtokens",
    "evalcount",
];
/// Told apart from the output by who tells of them.
const THOUGHTS: &str = "thoughtstokencount";
const TOTAL: [&str; 5] = [
    "totaltokens",
    "totaltokencount",
    "tokenusage",
    "usedtokens",
    "tokensused",
];
/// Where they stand in a text that is not read as a whole.
const WITHIN: [&str; 3] = ["usage", "usageMetadata", "token_usage"];

/// The counts in an answer, each object's by itself.
pub(super) fn counts_anywhere(text: &str) -> Vec<Counts> {
    let mut found = Vec::new();
    if !may_have(text) {
        return found;
    }
    match serde_json::from_str::<&RawValue>(text) {
        Ok(whole) => walk(whole, DEPTH_MAX, &mut found),
        Err(_) => {
            for name in WITHIN {
                for raw in values_within(text, name) {
                    walk(raw, DEPTH_MAX, &mut found);
                }
            }
        }
    }
    found
}

/// Whether any name of a count can stand in a text, in any case; one in escapes too.
fn may_have(text: &str) -> bool {
    const OKEN: u32 = u32::from_le_bytes(*b"oken");
    const EVAL: u32 = u32::from_le_bytes(*b"eval");
    // as what follows makes it of `\u00`
    const ESCAPED: u32 = u32::from_le_bytes(*b"|u00");
    let four = |at: &[u8]| u32::from_le_bytes([at[0], at[1], at[2], at[3]]) | 0x2020_2020;
    let mut places = text.as_bytes().windows(4);
    places.any(|at| matches!(four(at), OKEN | EVAL | ESCAPED))
}

fn walk(raw: &RawValue, depth: u8, found: &mut Vec<Counts>) {
    if depth == 0 || found.len() >= FOUND_MAX {
        return;
    }
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let fields = Pairs::of(raw);
            found.extend(counts_of(&fields));
            for (_, inner) in fields.iter().filter(|(_, inner)| is_container(inner)) {
                walk(inner, depth - 1, found);
            }
        }
        Some(b'[') => {
            for inner in items(raw).into_iter().filter(|inner| is_container(inner)) {
                walk(inner, depth - 1, found);
            }
        }
        _ => {}
    }
}

fn is_container(raw: &RawValue) -> bool {
    raw.get().starts_with(['{', '[']) && may_have(raw.get())
}

fn counts_of(fields: &Pairs<'_>) -> Option<Counts> {
    let (mut counts, mut thoughts, mut any) = (Counts::default(), 0, false);
    for (name, raw) in fields.iter() {
        let Some(count) = raw.get().parse().ok().filter(|count| *count <= COUNT_MAX) else {
            continue;
        };
        match folded(name, NAME_CHARS_MAX).as_str() {
            name if INPUT.contains(&name) => counts.input = counts.input.max(Some(count)),
            name if OUTPUT.contains(&name) => counts.output = counts.output.max(Some(count)),
            name if TOTAL.contains(&name) => counts.total = counts.total.max(count),
            THOUGHTS => thoughts = thoughts.max(count),
            _ => continue,
        }
        any = true;
    }
    if thoughts > 0 {
        counts.output = Some(counts.output.unwrap_or(0).saturating_add(thoughts));
    }
    any.then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> (u64, u64, u64) {
        let found = counts_anywhere(text);
        let most = |of: fn(&Counts) -> u64| found.iter().map(of).max().unwrap_or(0);
        let input = most(|counts| counts.input.unwrap_or(0));
        let output = most(|counts| counts.output.unwrap_or(0));
        (input, output, most(|counts| counts.total))
    }

    #[test]
    fn counts_are_found_wherever_they_stand_and_whatever_they_are_called() {
        for told in [
            r#"{"usage":{"prompt_tokens":3,"completion_tokens":77}}"#,
            r#"{"usage":{"input_tokens":3,"output_tokens":77}}"#,
            r#"{"detail":"b","response":{"usage":{"input_tokens":3,"output_tokens":77}}}"#,
            r#"{"Usage":{"PromptTokens":3,"CompletionTokens":77}}"#,
            r#"{"x_groq":{"usage":{"prompt_tokens":3,"completion_tokens":77}}}"#,
            r#"{"choices":[{"message":{"usage":{"prompt_tokens":3,"completion_tokens":77}}}]}"#,
            r#"{"prompt_eval_count":3,"eval_count":77}"#,
            r#"{"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":70,"thoughtsTokenCount":7}}"#,
            r#"[{"error":{"code":503}},{"usage":{"prompt_tokens":3,"completion_tokens":77}}]"#,
            r#"{"error":{"us\u0061ge":{"\u0070rompt_tokens":3,"completion_tokens":77}}}"#,
            r#"{"error":{"mess":"x"},"usage":{"prompt_tokens":3,"completion_tokens":77},"cut"#,
        ] {
            assert_eq!(all(told), (3, 77, 0), "{told}");
        }
        assert_eq!(all(r#"{"error":{"token_usage":80}}"#), (0, 0, 80));
        for none in [
            r#"{"error":{"message":"see usage of tokens","prompt_tokens":"3"}}"#,
            r#"{"max_tokens":4096,"limit_tokens":9,"usage":{"prompt_tokens":-1,"output_tokens":1.5}}"#,
            r#"{"content":"{\"usage\":{\"prompt_tokens\":3}}"}"#,
            "",
        ] {
            assert_eq!(all(none), (0, 0, 0), "{none}");
        }
    }

    #[test]
    fn what_is_looked_at_is_bounded() {
        let deep = r#"{"tokens":"#.repeat(200) + "1" + &"}".repeat(200);
        assert_eq!(all(&deep), (0, 0, 0));
        let many = format!("[{}]", vec![r#"{"input_tokens":1}"#; 1000].join(","));
        assert_eq!(counts_anywhere(&many).len(), FOUND_MAX);
    }
}
