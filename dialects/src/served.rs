//! How an answer says that it was served, against how it was priced.
//!
//! What was pinned is not always what is served: a provider may take a request to another model, tier, speed
//! or place, or run tools of its own. What it says of that is gathered here and compared. Not here: what
//! another class costs, and what to do about it.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

pub use calls::CallsTold;
use calls::{Called, Names};

use crate::{
    allow::Profile,
    fields::Fields,
    odd::says_nothing,
    provided::{Provided, called, failed},
    raw::{Pairs, is_null, items},
};

mod calls;
#[cfg(test)]
mod tests;

/// Most things said that are kept: one that differs is enough.
const SAID_MAX: usize = 32;
/// Most characters of one.
const SAID_CHARS_MAX: usize = 256;

/// What decides a price besides the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// Which model answered.
    Model,
    /// How soon it was served.
    ServiceTier,
    /// How fast it was written.
    Speed,
    /// Where it was computed.
    Geography,
    /// What the provider ran besides.
    Tools,
}

impl Aspect {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Model,
        Self::ServiceTier,
        Self::Speed,
        Self::Geography,
        Self::Tools,
    ];

    /// As its field is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::ServiceTier => "service_tier",
            Self::Speed => "speed",
            Self::Geography => "inference_geo",
            Self::Tools => "server_tool_use",
        }
    }
}

const CLASSES: [Aspect; 3] = [Aspect::ServiceTier, Aspect::Speed, Aspect::Geography];
/// Objects of a report that count by name what the provider ran.
const TOOL_COUNTS: [&str; 3] = [
    "server_tool_use",
    "server_side_tool_usage",
    "server_side_tool_usage_details",
];
/// Counts of a report that stand alone.
const TOOL_COUNT: [&str; 2] = ["num_search_queries", "num_sources_used"];
/// Object of an answer that says of each tool of the provider how often it was asked.
const TOOL_USAGE: &str = "tool_usage";
/// Lists of an answer in which calls of the provider's tools stand.
const LISTS: [&str; 2] = ["output", "content"];

/// What an answer says of how it was served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    said: BTreeSet<(Aspect, String)>,
    called: Called,
}

impl Served {
    /// Takes note of an answer, or of an event.
    pub(crate) fn answer(&mut self, fields: &Pairs<'_>) {
        self.fields(fields, &[Aspect::Model]);
        self.fields(fields, &CLASSES);
        for tools in fields.all(TOOL_USAGE) {
            for (name, raw) in Pairs::of(tools).iter() {
                let counts = Pairs::of(raw);
                counts
                    .all("num_requests")
                    .for_each(|raw| self.tool(name, raw));
            }
        }
        for list in LISTS.into_iter().flat_map(|name| fields.all(name)) {
            let mut names = Names::default();
            for (item, place) in items(list).into_iter().zip(0u64..) {
                self.item_among(&Pairs::of(item), place, &mut names);
            }
        }
    }

    /// Takes note of an item of an answer that comes by itself, in its place among them.
    pub(crate) fn item(&mut self, item: &Pairs<'_>, place: u64) {
        self.item_among(item, place, &mut Names::default());
    }

    fn item_among(&mut self, item: &Pairs<'_>, place: u64, names: &mut Names) {
        if let Some(tool) = called(item) {
            self.say(Aspect::Tools, &tool);
            self.called.see(&tool, item.last("id"), place, names);
        }
        if let Some(call) = failed(item) {
            self.called.fail(Some(call));
        }
    }

    /// Takes note of a call that an event tells of, without the item itself.
    pub(crate) fn call(&mut self, tool: &str, id: Option<&RawValue>, place: u64) {
        self.say(Aspect::Tools, tool);
        self.called.see(tool, id, place, &mut Names::default());
    }

    /// How often the provider's tools were called that have a fee.
    pub fn charged_calls(&self, priced: &[Provided]) -> CallsTold {
        let mut charged = priced.iter().filter(|tool| tool.charged).peekable();
        if charged.peek().is_none() {
            return CallsTold::default();
        }
        let charged: Vec<_> = charged.collect();
        self.called
            .told(|name| charged.iter().any(|tool| tool.is_called(name)))
    }

    /// Takes note of a report of usage.
    pub(crate) fn report(&mut self, raw: &RawValue) {
        let fields = Pairs::of(raw);
        self.fields(&fields, &CLASSES);
        for counts in TOOL_COUNTS {
            for raw in fields.all(counts) {
                let listed = Pairs::of(raw);
                listed.iter().for_each(|(name, raw)| self.tool(name, raw));
                if listed.is_empty() && !says_nothing(raw.get()) {
                    self.say(Aspect::Tools, counts);
                    self.called.odd();
                }
            }
        }
        for name in TOOL_COUNT {
            fields.all(name).for_each(|raw| self.tool(name, raw));
        }
    }

    fn fields(&mut self, fields: &Pairs<'_>, aspects: &[Aspect]) {
        for aspect in aspects {
            for raw in fields.all(aspect.as_str()) {
                if !says_nothing(raw.get()) {
                    let said = serde_json::from_str(raw.get());
                    self.say(*aspect, &said.unwrap_or_else(|_| raw.get().to_owned()));
                }
            }
        }
    }

    fn tool(&mut self, name: &str, raw: &RawValue) {
        if is_null(raw) {
            return;
        }
        let tool = name.strip_suffix("_requests").unwrap_or(name);
        self.called.count(tool, raw);
        let is_none = raw.get().parse::<f64>().is_ok_and(|count| count == 0.0);
        if !is_none && !says_nothing(raw.get()) {
            self.say(Aspect::Tools, tool);
        }
    }

    fn say(&mut self, aspect: Aspect, said: &str) {
        if self.said.len() < SAID_MAX {
            let said = said.chars().take(SAID_CHARS_MAX).collect();
            self.said.insert((aspect, said));
        }
    }
}

/// How a request was priced.
#[derive(Debug, Clone, Copy)]
pub struct Priced<'a> {
    /// Whose server was asked.
    pub profile: Profile,
    /// The model that was asked for.
    pub model: &'a str,
    /// Names under which that model answers besides.
    pub answers_as: &'a [String],
    /// What the operator accepts besides what is listed.
    pub accepted: [&'a [String]; 2],
    /// The class that was asked for and is priced, where it is another than the pinned one.
    pub class: Option<&'a Class>,
    /// Tools of the provider that are priced by the call.
    pub tools: &'a [Provided],
}

/// A class of service that has a price of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The field that asks for it.
    pub aspect: Aspect,
    /// What that field says then.
    pub value: String,
    /// Other words by which an answer says that it was served so.
    pub answers_as: Vec<String>,
}

impl Class {
    /// Whether a body asks for it.
    pub fn is_asked(&self, body: &Fields) -> bool {
        body.get(self.aspect.as_str())
            .is_some_and(|asked| *asked == self.value)
    }

    fn covers(&self, aspect: Aspect, said: &str) -> bool {
        let is_it = said == self.value || self.answers_as.iter().any(|word| word == said);
        aspect == self.aspect && is_it
    }
}

impl Priced<'_> {
    /// What an answer says that was not priced so.
    pub fn other<'s>(&self, served: &'s Served) -> Option<(Aspect, &'s str)> {
        let mut said = served.said.iter();
        let found = said.find(|(aspect, said)| !self.covers(*aspect, said));
        found.map(|(aspect, said)| (*aspect, said.as_str()))
    }

    fn covers(&self, aspect: Aspect, said: &str) -> bool {
        if self.profile == Profile::Generic || self.accepts(aspect) {
            return true; // nothing was pinned: what a server calls its model and its service is its own
        }
        // one that was asked for costs no less than the pinned one, which may be served for it
        if self.class.is_some_and(|class| class.covers(aspect, said)) {
            return true;
        }
        match aspect {
            Aspect::Model => {
                is_same_model(self.model, said) || self.answers_as.iter().any(|name| name == said)
            }
            Aspect::ServiceTier | Aspect::Speed => matches!(said, "default" | "standard"),
            Aspect::Geography => matches!(said, "global" | "not_available"),
            Aspect::Tools => self.tools.iter().any(|tool| tool.is_called(said)),
        }
    }

    fn accepts(&self, aspect: Aspect) -> bool {
        let mut accepted = self.accepted.into_iter().flatten();
        accepted.any(|field| match aspect {
            Aspect::Tools => field.starts_with("tools") || field.starts_with("web_search"),
            _ => field == aspect.as_str(),
        })
    }
}

/// Whether a name is the model's own, or of the version that it stands for.
fn is_same_model(asked: &str, answered: &str) -> bool {
    let alias = asked.strip_suffix("-latest").or(asked.strip_suffix("-0"));
    let alias = alias.unwrap_or(asked);
    answered == asked
        || undated(answered) == alias
        || undated(asked) == answered
        || ALSO_CALLED.contains(&(asked, answered))
}

/// What a provider calls a model of its own in answers, where no rule tells.
const ALSO_CALLED: &[(&str, &str)] = &[("text-embedding-ada-002", "text-embedding-ada-002-v2")];

/// A name without the date of its version: `-20241022`, `-2024-08-06`, `-0125`, `@20241022`, `:20230824-v2`.
fn undated(name: &str) -> &str {
    let name = match name
        .rsplit_once(':')
        .and_then(|(_, tail)| tail.rsplit_once("-v"))
    {
        Some((_, number)) if matches!(number.as_bytes(), [b'0'..=b'9']) => {
            &name[..name.len() - "-v2".len()]
        }
        _ => name,
    };
    let is_date = |date: &str| {
        let parts: Vec<_> = date.split('-').map(str::len).collect();
        let is_dashed = matches!(*parts, [4 | 8] | [4, 2, 2]);
        is_dashed
            && date
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'-')
    };
    let begun = name.len().saturating_sub("-2024-08-06".len());
    let cuts = name
        .char_indices()
        .filter(|(at, c)| *at >= begun && matches!(c, '-' | '@' | ':'));
    let mut cuts = cuts.map(|(at, _)| at);
    match cuts.find(|at| is_date(&name[at + 1..])) {
        Some(at) => &name[..at],
        None => name,
    }
}
