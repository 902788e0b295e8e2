//! Reports of usage: the counts in them as they came, and what they come to.
//!
//! A count is a whole number or it is none. What stands in the place of one is passed over where the least
//! that was used is asked for, and makes all of the report none elsewhere.

use seatbelt_schemas::usage::Usage;
use serde_json::{Value, value::RawValue};

use crate::{
    api::Api,
    raw::{Pairs, items},
};

/// A count above this is no count.
pub(crate) const COUNT_MAX: u64 = 1 << 40;
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

/// Zero for an answer in which something came is no report.
pub(super) fn believed(usage: Usage, has_content: bool) -> Option<Usage> {
    (usage.tokens() > 0 || !has_content).then_some(usage)
}

/// Reports that stand somewhere in a text that cannot be read as a whole: cut off, or with something in
/// it that is no JSON. A quote inside of a text is escaped, so that none of these is one of its texts.
pub(super) fn reports_within(text: &str) -> impl Iterator<Item = &RawValue> {
    let found = text.match_indices("\"usage\"").take(REPORTS_MAX);
    found.filter_map(|(at, name)| {
        let is_escaped = text[..at].ends_with('\\');
        let rest = text[at + name.len()..].trim_start().strip_prefix(':')?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        values.next()?.ok().filter(|_| !is_escaped)
    })
}
