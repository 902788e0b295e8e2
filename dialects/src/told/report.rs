//! Reports of usage: the counts in them as they came, and what they come to.
//!
//! A count is a whole number or it is none. What stands in the place of one is passed over where the least
//! that was used is asked for, and makes all of the report none elsewhere.

use std::collections::BTreeMap;

use seatbelt_schemas::usage::Usage;
use serde_json::{Value, value::RawValue};

use crate::{
    api::Api,
    raw::{Pairs, items},
};

/// A count above this is no count.
pub(crate) const COUNT_MAX: u64 = 1 << 40;
/// Most choices of an answer that are told apart; one with more is never known to have finished.
pub(super) const CHOICES_MAX: usize = 256;
/// Most reports that are looked for in a text that cannot be read.
const REPORTS_MAX: usize = 64;

/// Counts as they were reported, not yet put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) input: Option<u64>,
    pub(crate) cached: u64,
    pub(crate) written: u64,
    /// Of these, what is said to stay for less than an hour, where the report tells them apart.
    pub(crate) written_short: Option<u64>,
    /// Of these, what is said to stay an hour or longer.
    pub(crate) written_long: u64,
    pub(crate) output: Option<u64>,
    pub(crate) reasoning: u64,
    /// Of input and output, where that is reported too.
    pub(crate) total: u64,
}

/// A report with something in the place of a count that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Odd;

/// A report as it came.
pub(crate) struct Report<'a> {
    fields: Pairs<'a>,
    /// What is no count is passed over instead of making all of it none.
    passes_odd: bool,
}

impl<'a> Report<'a> {
    pub(super) fn of(raw: &'a RawValue, passes_odd: bool) -> Self {
        Self {
            fields: Pairs::of(raw),
            passes_odd,
        }
    }

    /// The same of what is within it.
    pub(crate) fn within(&self, name: &str) -> Option<Self> {
        let mut fields = Pairs::default();
        for raw in self.fields.all(name) {
            fields.add(Pairs::of(raw));
        }
        Some(Self { fields, ..*self }).filter(|within| !within.fields.is_empty())
    }

    /// The same of each object in a list within it.
    pub(crate) fn each(&self, name: &str) -> Vec<Self> {
        let lists = self.fields.all(name);
        let each = lists
            .flat_map(items)
            .map(|raw| Self::of(raw, self.passes_odd));
        each.collect()
    }

    /// A count, where there is one; the largest, where it is said twice.
    pub(crate) fn count(&self, name: &str) -> Result<Option<u64>, Odd> {
        let mut largest = None;
        for raw in self.fields.all(name) {
            match raw.get().parse::<u64>() {
                Ok(count) if count <= COUNT_MAX => largest = largest.max(Some(count)),
                _ if self.passes_odd => {}
                _ => return Err(Odd),
            }
        }
        Ok(largest)
    }

    /// A count that is zero where it is not said.
    pub(crate) fn part(&self, name: &str) -> Result<u64, Odd> {
        Ok(self.count(name)?.unwrap_or(0))
    }
}

impl Counts {
    /// What a report of this API comes to.
    pub(crate) fn usage_of(api: Api, report: &Value) -> Option<Usage> {
        let raw = serde_json::value::to_raw_value(report).ok()?;
        api.usage(api.counts(&Report::of(&raw, false)).ok()?)
    }

    /// The largest of each.
    pub(crate) fn merge(&mut self, other: Self) {
        *self = Self {
            input: self.input.max(other.input),
            cached: self.cached.max(other.cached),
            written: self.written.max(other.written),
            written_short: self.written_short.max(other.written_short),
            written_long: self.written_long.max(other.written_long),
            output: self.output.max(other.output),
            reasoning: self.reasoning.max(other.reasoning),
            total: self.total.max(other.total),
        };
    }

    /// The output, with what only the total tells of; that says nothing of it alone where the input is not
    /// known.
    pub(crate) fn output_with_hidden(&self) -> Option<u64> {
        let hidden = self.input.map(|input| self.total.saturating_sub(input));
        self.output.max(hidden.filter(|hidden| *hidden > 0))
    }

    /// `whole` with its parts: none is larger than its whole, and the dearer part goes first.
    pub(crate) fn parts_of(self, whole: Usage) -> Usage {
        let written = self.written.min(whole.input_tokens);
        // what a later report adds to the writes without saying how long they stay is of the dearest
        let short = self.written_short.unwrap_or(written);
        Usage {
            cache_write_tokens: written,
            cache_write_long_tokens: written
                .saturating_sub(short)
                .max(self.written_long)
                .min(written),
            cached_input_tokens: self.cached.min(whole.input_tokens - written),
            reasoning_tokens: self.reasoning.min(whole.output_tokens),
            ..whole
        }
    }
}

/// All that the reports of an answer say: those of the whole, and those of each choice, which stand for that
/// choice alone.
#[derive(Debug, Default)]
pub(super) struct Tally {
    whole: Counts,
    by_choice: BTreeMap<u64, Counts>,
}

impl Tally {
    /// Takes counts in, of one choice where they stand in one; whether there was room for them.
    pub(super) fn take(&mut self, choice: Option<u64>, counts: Counts) -> bool {
        let Some(choice) = choice else {
            self.whole.merge(counts);
            return true;
        };
        let has_room = self.by_choice.len() < CHOICES_MAX || self.by_choice.contains_key(&choice);
        if has_room {
            self.by_choice.entry(choice).or_default().merge(counts);
        }
        has_room
    }

    /// What all of them come to: choices share one prompt, and each has an output of its own.
    pub(super) fn counts(&self) -> Counts {
        let mut all = self.whole;
        let mut outputs: Option<u64> = None;
        let mut reasoning: u64 = 0;
        for counts in self.by_choice.values() {
            let output = counts.output_with_hidden();
            outputs = match (outputs, output) {
                (Some(sum), Some(output)) => Some(sum.saturating_add(output)),
                (sum, output) => sum.or(output),
            };
            reasoning = reasoning.saturating_add(counts.reasoning);
            all.merge(Counts {
                output: None,
                reasoning: 0,
                ..*counts
            });
        }
        all.output = all.output.max(outputs);
        all.reasoning = all.reasoning.max(reasoning);
        all
    }
}

/// What was used at least: no report, since a part of it may be missing, but what is charged is not below.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Least {
    /// What each count says.
    pub usage: Usage,
    /// Of input and output together, in whichever of them it was.
    pub total: u64,
}

impl Least {
    /// Nothing was said.
    pub fn is_nothing(&self) -> bool {
        self.usage.tokens() == 0 && self.usage.tool_calls == 0 && self.total == 0
    }

    /// `usage`, nowhere below this.
    pub fn raise(&self, usage: Usage) -> Usage {
        let input_tokens = usage.input_tokens.max(self.usage.input_tokens);
        let output_tokens = usage.output_tokens.max(self.usage.output_tokens);
        Usage {
            input_tokens,
            output_tokens: output_tokens.max(self.total.saturating_sub(input_tokens)),
            tool_calls: usage.tool_calls.max(self.usage.tool_calls),
            ..usage
        }
    }
}

/// Zero for an answer in which something came is no report.
pub(super) fn believed(usage: Usage, has_content: bool) -> Option<Usage> {
    (usage.tokens() > 0 || !has_content).then_some(usage)
}

/// Reports that stand somewhere in a text that cannot be read as a whole: cut off, or with something in
/// it that is no JSON. A quote inside of a text is escaped, so that none of these is one of its texts.
pub(super) fn reports_within(text: &str) -> impl Iterator<Item = &RawValue> {
    values_within(text, "usage")
}

/// The values of that name somewhere in such a text.
pub(super) fn values_within<'a>(
    text: &'a str,
    name: &str,
) -> impl Iterator<Item = &'a RawValue> + use<'a> {
    let quoted = format!("\"{name}\"");
    let found: Vec<_> = text.match_indices(&quoted).take(REPORTS_MAX).collect();
    found.into_iter().filter_map(move |(at, name)| {
        let is_escaped = text[..at].ends_with('\\');
        let rest = text[at + name.len()..].trim_start().strip_prefix(':')?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        values.next()?.ok().filter(|_| !is_escaped)
    })
}
