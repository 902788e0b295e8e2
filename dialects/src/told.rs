//! What upstreams report of their usage, and what one event of their stream means to the gate.
//!
//! A report is believed only where it cannot be below the truth: every count is a whole number, over a
//! stream the largest of each counts, and what came before the last of the content is no report. Else
//! there is none, and the hold is charged. What else is odd in an answer is the client's to read and
//! spoils no report.

use std::collections::BTreeSet;

use seatbelt_schemas::usage::Usage;
use serde_json::{Value, value::RawValue};

use crate::{
    api::Api,
    odd::says_nothing,
    raw::{Pairs, items},
    sse::SseEvent,
};

/// A count above this is no count.
pub(crate) const COUNT_MAX: u64 = 1 << 40;
/// Most choices of a stream that are told apart; one with more is never known to have finished.
const CHOICES_MAX: usize = 256;
/// Longest reason for an end that is kept.
const FINISH_CHARS_MAX: usize = 64;
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
    fn of(raw: &'a RawValue, passes_odd: bool) -> Self {
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
fn believed(usage: Usage, has_content: bool) -> Option<Usage> {
    (usage.tokens() > 0 || !has_content).then_some(usage)
}

/// A whole answer, as far as the gate cares.
#[derive(Debug, Default)]
pub struct Told {
    /// What it used, where that can be believed.
    pub usage: Option<Usage>,
    /// What it used at least: each count that is one, whatever else is odd.
    pub least: Usage,
    /// Why the output ended, in the upstream's word.
    pub finish: Option<String>,
    /// Bytes of the choices as JSON: a bound of the tokens in them.
    pub output_bytes: u64,
    /// It says that it is an error, whatever its status.
    pub is_error: bool,
}

/// An answer or an event: each field is read by itself, so that an odd one spoils no other.
pub(crate) struct Body<'a>(pub(crate) Pairs<'a>);

impl<'a> Body<'a> {
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        Pairs::read(text).map(Self)
    }

    /// All of its choices; one that is no list of them is one itself.
    pub(crate) fn choices(&self) -> Vec<Choice<'a>> {
        let mut choices = Vec::new();
        for raw in self.0.all("choices") {
            let listed = items(raw);
            let is_list = raw.get().starts_with('[');
            let found = if is_list { listed } else { vec![raw] };
            choices.extend(found.into_iter().map(|raw| Choice(Pairs::of(raw))));
        }
        choices
    }

    /// Whether it says that it is an error.
    pub(crate) fn is_error(&self) -> bool {
        self.0.all("error").any(|raw| !says_nothing(raw.get()))
    }
}

/// One choice of an answer.
pub(crate) struct Choice<'a>(pub(crate) Pairs<'a>);

impl<'a> Choice<'a> {
    /// Where its output may stand: in a message, in what is added to one, or as a plain text.
    fn outputs(&self) -> impl Iterator<Item = &'a RawValue> {
        let named = ["message", "delta", "text"].into_iter();
        named
            .flat_map(|name| self.0.all(name))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

/// A text; empty where it is none.
pub(crate) fn text(raw: Option<&RawValue>) -> String {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

/// Why an output ended, in no more than a few words.
pub(crate) fn finish(raw: Option<&RawValue>) -> Option<String> {
    let reason: String = raw.and_then(|raw| serde_json::from_str(raw.get()).ok())?;
    let kept = reason.chars().filter(|c| !c.is_control());
    Some(kept.take(FINISH_CHARS_MAX).collect())
}

fn length(raw: &RawValue) -> u64 {
    raw.get().len() as u64
}

/// Whether a message, a delta or a block carries any output.
fn has_content(raw: &RawValue) -> bool {
    match Pairs::read(raw.get()) {
        Some(fields) => {
            let names_it = |name: &str| matches!(name, "role" | "type" | "index");
            fields
                .iter()
                .any(|(name, raw)| !names_it(name) && !is_empty(raw))
        }
        None => !is_empty(raw),
    }
}

fn is_empty(raw: &RawValue) -> bool {
    matches!(raw.get(), "null" | "\"\"" | "[]" | "{}")
}

/// Reports that stand somewhere in a text that cannot be read as a whole: cut off, or with something in
/// it that is no JSON. A quote inside of a text is escaped, so that none of these is one of its texts.
fn reports_within(text: &str) -> impl Iterator<Item = &RawValue> {
    let found = text.match_indices("\"usage\"").take(REPORTS_MAX);
    found.filter_map(|(at, name)| {
        let is_escaped = text[..at].ends_with('\\');
        let rest = text[at + name.len()..].trim_start().strip_prefix(':')?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        values.next()?.ok().filter(|_| !is_escaped)
    })
}

impl Told {
    /// Reads a whole answer; `None` where it is not the shape of one.
    pub fn read(api: Api, body: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        let body = Body::read(&text)?;
        let choices = body.choices();
        let mut told = StreamTold::new(api);
        told.reports(&body.0);
        for choice in &choices {
            told.reports(&choice.0);
        }
        let outputs = choices.iter().flat_map(Choice::outputs);
        let outputs: Vec<_> = outputs.chain(body.0.all("content")).collect();
        let has_content = outputs.iter().any(|raw| has_content(raw));
        Some(Self {
            usage: told
                .counted()
                .and_then(|usage| believed(usage, has_content)),
            least: told.least(),
            output_bytes: outputs.iter().map(|raw| length(raw)).sum(),
            finish: choices
                .iter()
                .find_map(|choice| finish(choice.0.last("finish_reason")))
                .or_else(|| finish(body.0.last("stop_reason"))),
            is_error: body.is_error() && outputs.iter().all(|raw| is_empty(raw)),
        })
    }

    /// What an answer that is not the shape of one tells all the same.
    pub fn unread(api: Api, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let mut told = StreamTold::new(api);
        for raw in reports_within(&text) {
            told.report(raw);
        }
        Self {
            least: told.least(),
            ..Self::default()
        }
    }
}

/// What one event of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Something for the client.
    Content,
    /// The usage chunk of the OpenAI dialect: it carries nothing else.
    UsageOnly,
    /// An error, after which no normal end may follow.
    Error,
    /// The end as the dialect marks it.
    End,
}

/// What a stream has told so far.
#[derive(Debug)]
pub struct StreamTold {
    api: Api,
    counts: Counts,
    /// The same, of what is a count in each report.
    least: Counts,
    /// Something stood in the place of a count: nothing of this stream's reports is believed.
    odd: bool,
    /// Output came after the last report, which then cannot be the last word.
    pub(crate) content_since: bool,
    has_content: bool,
    /// The report came with or after the end of the output.
    pub(crate) closed: bool,
    /// How many choices were asked for.
    choices: u64,
    open_choices: BTreeSet<u64>,
    seen_choices: BTreeSet<u64>,
    /// Why the output ended, in the upstream's word.
    pub finish: Option<String>,
    /// Bytes of the output as JSON: a bound of the tokens in it.
    pub output_bytes: u64,
}

impl StreamTold {
    /// Nothing told yet.
    pub fn new(api: Api) -> Self {
        Self {
            api,
            choices: 1,
            counts: Counts::default(),
            least: Counts::default(),
            odd: false,
            content_since: false,
            has_content: false,
            closed: false,
            open_choices: BTreeSet::new(),
            seen_choices: BTreeSet::new(),
            finish: None,
            output_bytes: 0,
        }
    }

    /// The same of a stream that has so many choices: it is not at its end before each of them is.
    #[must_use]
    pub fn of_choices(self, choices: u64) -> Self {
        Self { choices, ..self }
    }

    /// The usage, once nothing can be added to it any more: the stream has `ended` by its own mark, or
    /// every choice of it has.
    pub fn final_usage(&self, ended: bool) -> Option<Usage> {
        let usage = self.counted()?;
        let all_came = self.seen_choices.len() as u64 >= self.choices || self.api == Api::Messages;
        let finished = self.finish.is_some() && self.open_choices.is_empty() && all_came;
        let last_word = self.closed && !self.content_since && (ended || finished);
        believed(usage, self.has_content).filter(|_| last_word)
    }

    /// The usage as far as it was told, where no output followed: what an upstream that then fails says
    /// that it used.
    pub fn usage_so_far(&self) -> Option<Usage> {
        let usage = self.counted()?;
        believed(usage, self.has_content).filter(|_| !self.content_since)
    }

    /// What was used at least, by the largest of each count that was told: no report, since a part of it may
    /// be missing, but what is charged is not below it.
    pub fn least(&self) -> Usage {
        let (input, output) = (
            self.least.input.unwrap_or(0),
            self.least.output.unwrap_or(0),
        );
        let counts = Counts {
            input: Some(input),
            output: Some(output),
            ..self.least
        };
        let alone = Usage {
            input_tokens: input,
            output_tokens: output,
            ..Usage::default()
        };
        self.api.usage(counts).unwrap_or(alone)
    }

    fn counted(&self) -> Option<Usage> {
        self.api.usage(self.counts).filter(|_| !self.odd)
    }

    /// Takes note of an event.
    pub fn note(&mut self, event: &SseEvent) -> Part {
        self.api.event(self, event)
    }

    /// Takes the reports among some fields in; whether there was one.
    pub(crate) fn reports(&mut self, fields: &Pairs<'_>) -> bool {
        let mut reported = false;
        for raw in fields.all("usage") {
            reported |= self.report(raw);
        }
        reported
    }

    /// Takes a report in; whether it was one.
    pub(crate) fn report(&mut self, raw: &RawValue) -> bool {
        if let Ok(counts) = self.api.counts(&Report::of(raw, true)) {
            self.least.merge(counts);
        }
        match self.api.counts(&Report::of(raw, false)) {
            Ok(counts) if counts == Counts::default() => false,
            Ok(counts) => {
                self.counts.merge(counts);
                true
            }
            Err(Odd) => {
                self.odd = true;
                true
            }
        }
    }

    /// Whether a report among some fields says how much output there was.
    pub(crate) fn tells_output(&self, fields: &Pairs<'_>) -> bool {
        let mut reports = fields.all("usage").map(|raw| Report::of(raw, true));
        reports
            .any(|report| matches!(self.api.counts(&report), Ok(counts) if counts.output.is_some()))
    }

    pub(crate) fn content(&mut self, raw: &RawValue) {
        self.output_bytes += length(raw);
        if has_content(raw) {
            self.has_content = true;
            self.content_since = true;
        }
    }

    pub(crate) fn choice(&mut self, choice: &Choice<'_>) {
        for raw in choice.outputs() {
            self.content(raw);
        }
        let index = choice.0.last("index");
        let index = index.and_then(|raw| raw.get().parse().ok()).unwrap_or(0);
        let is_new = self.seen_choices.len() <= CHOICES_MAX && self.seen_choices.insert(index);
        if is_new {
            self.open_choices.insert(index);
        }
        if let Some(reason) = choice.0.last("finish_reason") {
            self.open_choices.remove(&index);
            let reason = finish(Some(reason));
            self.finish = Some(reason.unwrap_or_else(|| "unknown".to_owned()));
        }
    }

    /// An event that cannot be read may be anything but a report.
    pub(crate) fn unread(&mut self, event: &SseEvent) {
        for raw in reports_within(&String::from_utf8_lossy(&event.data)) {
            if let Ok(counts) = self.api.counts(&Report::of(raw, true)) {
                self.least.merge(counts);
            }
        }
        if !event.data.trim_ascii().is_empty() {
            self.output_bytes += event.data.len() as u64;
            self.has_content = true;
            self.content_since = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    use super::*;

    fn told(api: Api, data: &[Value]) -> (StreamTold, Vec<Part>) {
        let mut told = StreamTold::new(api);
        let parts = data
            .iter()
            .map(|data| {
                let text = data
                    .as_str()
                    .map_or_else(|| data.to_string(), str::to_owned);
                let event = SseEvent {
                    raw: Bytes::new(),
                    name: None,
                    data: text.into(),
                };
                told.note(&event)
            })
            .collect();
        (told, parts)
    }

    fn openai_usage(report: &Value) -> Option<Usage> {
        Counts::usage_of(Api::Chat, report)
    }

    #[test]
    fn what_is_a_count_is_the_least_that_was_used_whatever_else_is_odd() {
        let least = |api, data: &[Value]| {
            let usage = told(api, data).0.least();
            (usage.input_tokens, usage.output_tokens)
        };
        let chat = |report: Value| json!({"choices": [], "usage": report});
        let odd = [chat(
            json!({"prompt_tokens": 900, "completion_tokens": 9.5}),
        )];
        assert_eq!(least(Api::Chat, &odd), (900, 0));
        let missing = [chat(json!({"completion_tokens": 70, "prompt_tokens": "3"}))];
        assert_eq!(least(Api::Chat, &missing), (0, 70));
        let apart = [
            chat(json!({"prompt_tokens": 5})),
            chat(json!({"completion_tokens": 6})),
        ];
        assert_eq!(least(Api::Chat, &apart), (5, 6));
        let start = json!({"type": "message_start", "message": {"usage": {
            "input_tokens": 7, "cache_read_input_tokens": 2, "output_tokens": null}}});
        assert_eq!(least(Api::Messages, &[start]), (9, 0));
        assert_eq!(least(Api::Messages, &[]), (0, 0));
    }

    fn told_raw(api: Api, data: &str) -> Told {
        Told::read(api, data.as_bytes()).unwrap_or_else(|| Told::unread(api, data.as_bytes()))
    }

    #[test]
    fn a_report_with_something_else_in_the_place_of_a_count_tells_its_other_counts() {
        for odd in [
            "{}",
            "[]",
            "{\"a\": 1}",
            "\"7\"",
            "1.5",
            "-1",
            "1e400",
            "\"\\ud83d\"",
        ] {
            let chat =
                format!(r#"{{"usage": {{"prompt_tokens": 5000, "completion_tokens": {odd}}}}}"#);
            assert_eq!(told_raw(Api::Chat, &chat).least.input_tokens, 5000, "{odd}");
            let part = format!(r#"{{"usage": {{"input_tokens": 5000, "output_tokens": {odd}}}}}"#);
            assert_eq!(
                told_raw(Api::Messages, &part).least.input_tokens,
                5000,
                "{odd}"
            );
        }
        let huge = r#"{"usage": {"input_tokens": 1099511627776, "cache_read_input_tokens": 1}}"#;
        assert_eq!(told_raw(Api::Messages, huge).least.input_tokens, COUNT_MAX);
    }

    #[test]
    fn what_is_odd_elsewhere_spoils_no_report() {
        let report = r#"{"prompt_tokens": 5000, "completion_tokens": 7}"#;
        let deep = "[".repeat(200) + &"]".repeat(200);
        for odd in [
            r#""choices": [{"message": {"content": "x"}}], "choices": []"#.to_owned(),
            r#""object": "a", "object": "b", "x": 1e400"#.to_owned(),
            r#""x": "\ud83d""#.to_owned(),
            format!(r#""x": {deep}"#),
        ] {
            let whole = format!(r#"{{{odd}, "usage": {report}}}"#);
            let usage = told_raw(Api::Chat, &whole).usage.unwrap();
            assert_eq!(
                (usage.input_tokens, usage.output_tokens),
                (5000, 7),
                "{odd}"
            );
        }
        let latin = [
            b"{\"choices\": [{\"message\": {\"content\": \"\xe9\"}}], \"usage\": ",
            report.as_bytes(),
            b"}",
        ];
        assert_eq!(
            Told::read(Api::Chat, &latin.concat())
                .unwrap()
                .usage
                .unwrap()
                .input_tokens,
            5000
        );
        let within = r#"{"usage": {"prompt_tokens": 5000, "completion_tokens": 7, "prompt_tokens": 1, "x": 1e400}}"#;
        assert_eq!(
            told_raw(Api::Chat, within).usage.unwrap().input_tokens,
            5000,
            "the largest of two"
        );
    }

    #[test]
    fn an_answer_that_cannot_be_read_tells_what_stands_in_it() {
        let cut =
            r#"{"usage": {"prompt_tokens": 5000, "completion_tokens": 7}, "choices": [{"mess"#;
        assert_eq!(told_raw(Api::Chat, cut).least.input_tokens, 5000);
        assert_eq!(told_raw(Api::Chat, cut).usage, None);
        let python = r#"{"choices": [{"logprobs": NaN}], "usage": {"prompt_tokens": 5000}}"#;
        assert_eq!(told_raw(Api::Chat, python).least.input_tokens, 5000);
        let said =
            r#"{"choices": [{"message": {"content": "\"usage\": {\"prompt_tokens\": 9}"}}], NaN"#;
        assert_eq!(
            told_raw(Api::Chat, said).least.input_tokens,
            0,
            "what a model says is no report"
        );
        let lines = "{\"choices\": []}\n{\"usage\": {\"prompt_tokens\": 5000}}\n";
        assert_eq!(told_raw(Api::Chat, lines).least.input_tokens, 5000);
    }

    #[test]
    fn a_stream_is_at_its_end_once_every_choice_that_was_asked_for_is() {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
        let (one, _) = told(Api::Chat, &[chunk]);
        assert!(one.final_usage(false).is_some());
        let two = one.of_choices(2);
        assert_eq!(two.final_usage(false), None);
        assert!(
            two.final_usage(true).is_some(),
            "it says itself that it ended"
        );
    }

    #[test]
    fn output_counts_wherever_it_stands() {
        let block = |block: Value| json!({"type": "content_block_start", "index": 0, "content_block": block});
        let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}});
        let thinks = block(json!({"type": "redacted_thinking", "data": "x".repeat(400)}));
        let (stream, _) = told(Api::Messages, &[start.clone(), thinks]);
        assert_eq!(stream.usage_so_far(), None);
        assert!(stream.output_bytes > 400);
        let (stream, _) = told(
            Api::Messages,
            &[start, block(json!({"type": "text", "text": ""}))],
        );
        assert!(stream.usage_so_far().is_some(), "nothing came yet");
        let early = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}});
        for choice in [
            json!([{"message": {"content": "x"}}]),
            json!([{"text": "x"}]),
            json!({"delta": {"content": "x"}}),
        ] {
            let late = json!({ "choices": choice });
            let (stream, _) = told(Api::Chat, &[early.clone(), late]);
            assert_eq!(stream.final_usage(true), None, "{choice}");
            assert!(stream.output_bytes > 0, "{choice}");
        }
    }

    #[test]
    fn only_what_says_something_is_an_error() {
        for (said, is_error) in [
            ("null", false),
            ("false", false),
            ("\"\"", false),
            ("{\"message\": \"x\"}", true),
            ("\"x\"", true),
        ] {
            let data: Value =
                serde_json::from_str(&format!(r#"{{"choices": [], "error": {said}}}"#)).unwrap();
            let (_, parts) = told(Api::Chat, &[data]);
            assert_eq!(parts[0] == Part::Error, is_error, "{said}");
        }
    }

    #[test]
    fn writes_that_stay_an_hour_are_told_apart() {
        let long = |reports: &[Value]| {
            let (told, _) = told(Api::Messages, reports);
            let usage = told.counted().unwrap();
            (usage.cache_write_tokens, usage.cache_write_long_tokens)
        };
        let split = |short: u64, long: u64| {
            json!({"type": "message_start", "message": {"usage": {
                "input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": short + long,
                "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}}}})
        };
        assert_eq!(long(&[split(40, 60)]), (100, 60));
        assert_eq!(long(&[split(100, 0)]), (100, 0));
        let grown = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 3, "cache_creation_input_tokens": 130}});
        assert_eq!(
            long(&[split(40, 60), grown.clone()]),
            (130, 90),
            "growth at the dearest"
        );
        let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 1, "output_tokens": 1}}});
        assert_eq!(
            long(&[start, grown]),
            (130, 0),
            "nothing says how long these stay"
        );
    }

    #[test]
    fn openai_usage_counts_hidden_totals_in_full() {
        let usage =
            openai_usage(&json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}))
                .unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (10, 30));
        assert_eq!(openai_usage(&json!({"completion_tokens": 5})), None);
        assert_eq!(openai_usage(&json!({"prompt_tokens": -1})), None);
    }

    /// A count, or what stands in its place.
    fn odd_count() -> impl Strategy<Value = Option<Value>> {
        prop_oneof![
            2 => Just(None),
            8 => (0..500u64).prop_map(|count| Some(json!(count))),
            1 => prop_oneof![
                Just(json!(null)), Just(json!(-1)), Just(json!(9.0)), Just(json!("9")), Just(json!([])),
                Just(json!(COUNT_MAX + 1)), Just(json!(u64::MAX)),
            ].prop_map(Some),
        ]
    }

    fn odd_report() -> impl Strategy<Value = Option<Value>> {
        let names = ["prompt_tokens", "completion_tokens", "total_tokens"];
        let counts = (
            odd_count(),
            odd_count(),
            odd_count(),
            odd_count(),
            odd_count(),
        );
        proptest::option::of(
            counts.prop_map(move |(input, output, total, cached, reasoning)| {
                let mut report = json!({
                    "prompt_tokens_details": {"cached_tokens": cached},
                    "completion_tokens_details": {"reasoning_tokens": reasoning},
                });
                for (name, count) in names.into_iter().zip([input, output, total]) {
                    if let Some(count) = count {
                        report[name] = count;
                    }
                }
                report
            }),
        )
    }

    fn odd_events() -> impl Strategy<Value = Vec<Value>> {
        let finish =
            prop_oneof![3 => Just(json!(null)), 2 => Just(json!("stop")), 1 => Just(json!(7))];
        let event = (".{0,4}", finish, odd_report(), 0..4u8, 0..2u64);
        let event = event.prop_map(|(text, finish, report, shape, index)| {
            let choice =
                json!({"index": index, "delta": {"content": text}, "finish_reason": finish});
            let choices = match shape {
                0 => json!([]),
                1 => json!({}),
                _ => json!([choice]),
            };
            json!({"choices": choices, "usage": report})
        });
        vec(event, 1..6)
    }

    /// The largest number that any report has in a place; what is no number says nothing.
    fn said(events: &[Value], pointer: &str) -> u64 {
        let numbers = events
            .iter()
            .filter_map(|event| event["usage"].pointer(pointer)?.as_u64());
        numbers.max().unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn no_stream_is_believed_below_what_it_says(events in odd_events(), ended in any::<bool>()) {
            let (told, _) = told(Api::Chat, &events);
            if let Some(usage) = told.final_usage(ended) {
                let (input, output) = (said(&events, "/prompt_tokens"), said(&events, "/completion_tokens"));
                prop_assert!(usage.input_tokens >= input && usage.output_tokens >= output);
                prop_assert!(usage.tokens() >= said(&events, "/total_tokens"));
                prop_assert!(usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens);
                prop_assert!(usage.reasoning_tokens <= usage.output_tokens);
                let last = events.iter().rposition(|event| !event["usage"].is_null());
                let after = &events[last.expect("usage was reported") + 1..];
                let content = |event: &Value| event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty());
                prop_assert!(!after.iter().any(content), "output came after the last report");
            }
        }

        #[test]
        fn no_whole_answer_is_believed_below_what_it_says(report in odd_report(), text in ".{0,4}") {
            let body = json!({"choices": [{"message": {"content": text}}], "usage": report});
            let usage = Told::read(Api::Chat, body.to_string().as_bytes()).unwrap().usage;
            if let Some(usage) = usage {
                let bodies = [body];
                prop_assert!(usage.input_tokens >= said(&bodies, "/prompt_tokens"));
                prop_assert!(usage.output_tokens >= said(&bodies, "/completion_tokens"));
                prop_assert!(usage.tokens() >= said(&bodies, "/total_tokens"));
                prop_assert!(usage.tokens() > 0 || text.is_empty());
            }
        }
    }

    fn anthropic(report: &Value) -> Option<Usage> {
        Counts::usage_of(Api::Messages, report)
    }

    #[test]
    fn parts_of_the_input_are_told_apart_and_cut_to_their_whole() {
        let parts = |details: Value| {
            let mut report = json!({"prompt_tokens": 100, "completion_tokens": 0});
            report
                .as_object_mut()
                .unwrap()
                .extend(details.as_object().unwrap().clone());
            let usage = openai_usage(&report).unwrap();
            (usage.cached_input_tokens, usage.cache_write_tokens)
        };
        let details = |cached, written| json!({"prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written}});
        assert_eq!(parts(details(0, 100)), (0, 100));
        assert_eq!(parts(details(500, 0)), (100, 0));
        assert_eq!(parts(details(90, 60)), (40, 60));
        assert_eq!(
            parts(json!({"prompt_cache_hit_tokens": 100, "prompt_cache_miss_tokens": 0})),
            (100, 0)
        );
    }

    #[test]
    fn what_anthropic_counts_beside_the_answer_counts() {
        let split = json!({"input_tokens": 0, "output_tokens": 0, "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60}});
        let usage = anthropic(&split).unwrap();
        assert_eq!((usage.input_tokens, usage.cache_write_tokens), (100, 100));
        let compacted = json!({"input_tokens": 10, "output_tokens": 1, "iterations": [
            {"type": "compaction", "input_tokens": 900, "output_tokens": 50},
            {"type": "message", "input_tokens": 10, "output_tokens": 1},
        ]});
        assert_eq!(anthropic(&compacted).unwrap().tokens(), 961);
        assert_eq!(anthropic(&json!({"input_tokens": 1})), None);
        assert_eq!(
            anthropic(&json!({"input_tokens": 1, "output_tokens": 1.0})),
            None
        );
        assert_eq!(
            anthropic(
                &json!({"input_tokens": COUNT_MAX, "output_tokens": 1, "cache_read_input_tokens": 1})
            ),
            None
        );
    }

    #[test]
    fn anthropic_usage_is_gathered_over_the_stream() {
        let (told, parts) = told(
            Api::Messages,
            &[
                json!({"type": "message_start", "message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1, "output_tokens": 1}}}),
                json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}),
                json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
                json!({"type": "message_stop"}),
            ],
        );
        let usage = told.final_usage(true).unwrap();
        assert_eq!(
            (
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.cache_write_tokens
            ),
            (10, 2, 1)
        );
        assert_eq!(usage.output_tokens, 5);
        assert_eq!(told.finish.as_deref(), Some("end_turn"));
        assert_eq!(parts.last(), Some(&Part::End));
    }

    #[test]
    fn running_usage_is_not_the_final_one() {
        let running = json!({"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
        let (early, _) = told(Api::Chat, std::slice::from_ref(&running));
        assert_eq!(early.final_usage(true), None);
        assert!(early.usage_so_far().is_some());
        let last = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9}});
        let (whole, parts) = told(Api::Chat, &[running, last, json!("[DONE]")]);
        let usage = whole.final_usage(true);
        assert_eq!(usage.map(|usage| usage.output_tokens), Some(9));
        assert_eq!(parts, [Part::Content, Part::UsageOnly, Part::End]);
    }

    #[test]
    fn an_error_in_the_stream_is_seen() {
        let (_, parts) = told(Api::Chat, &[json!({"error": {"message": "boom"}})]);
        assert_eq!(parts, [Part::Error]);
        let (_, parts) = told(Api::Chat, &[json!({"choices": [], "error": null})]);
        assert_eq!(parts, [Part::Content]);
    }
}
