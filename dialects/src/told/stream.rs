//! A stream, event by event: what it has told so far, and what each event is.

use std::collections::BTreeSet;

use seatbelt_schemas::usage::Usage;
use serde_json::value::RawValue;

use super::{
    report::{Counts, Odd, Report, believed, reports_within},
    whole::{Choice, finish, has_content, length},
};
use crate::{api::Api, raw::Pairs, sse::SseEvent};

/// Most choices of a stream that are told apart; one with more is never known to have finished.
const CHOICES_MAX: usize = 256;

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

    pub(super) fn counted(&self) -> Option<Usage> {
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
