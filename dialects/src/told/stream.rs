//! A stream, event by event: what it has told so far, and what each event is.

use std::collections::BTreeSet;

use seatbelt_schemas::usage::Usage;
use serde_json::value::RawValue;

use super::{
    anywhere::counts_anywhere,
    report::{CHOICES_MAX, Counts, Least, Odd, Report, Tally, believed, reports_within},
    whole::{Choice, finish, has_content, length},
};
use crate::{api::Api, ask::Ask, odd::says_nothing, raw::Pairs, served::Served, sse::SseEvent};

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

/// What was sent, as far as an answer is read by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How many choices were asked for.
    pub choices: u64,
    /// Writes to the cache were asked for that cost as long ones: one that is not said to be short may be.
    pub long_writes: bool,
}

impl Ask {
    /// What an answer to it is read by.
    pub fn sent(&self) -> Sent {
        Sent {
            choices: self.choices,
            long_writes: self.long_writes,
        }
    }
}

/// What a stream has told so far.
#[derive(Debug)]
pub struct StreamTold {
    api: Api,
    sent: Sent,
    counts: Tally,
    /// The same, of what is a count in each report.
    least: Tally,
    /// Something stood in the place of a count: nothing of this stream's reports is believed.
    odd: bool,
    /// Output came after the last report, which then cannot be the last word.
    pub(crate) content_since: bool,
    pub(crate) has_content: bool,
    /// The report came with or after the end of the output.
    pub(crate) closed: bool,
    open_choices: BTreeSet<u64>,
    seen_choices: BTreeSet<u64>,
    /// Why the output ended, in the upstream's word.
    pub finish: Option<String>,
    /// Bytes of the output as JSON: a bound of the tokens in it.
    pub output_bytes: u64,
    /// Bytes of items that came whole: all there is to go by where nothing was told piece by piece.
    item_bytes: u64,
    has_pieces: bool,
    /// How it says that it was served.
    pub served: Served,
    /// The id of the response, where the API keeps what has one.
    pub id: Option<String>,
    /// The status that its error names.
    pub failure: Option<u16>,
}

impl StreamTold {
    /// Nothing told yet.
    pub fn new(api: Api, sent: Sent) -> Self {
        Self {
            api,
            sent,
            counts: Tally::default(),
            least: Tally::default(),
            odd: false,
            content_since: false,
            has_content: false,
            closed: false,
            open_choices: BTreeSet::new(),
            seen_choices: BTreeSet::new(),
            finish: None,
            output_bytes: 0,
            item_bytes: 0,
            has_pieces: false,
            served: Served::default(),
            id: None,
            failure: None,
        }
    }

    /// The usage, once nothing can be added to it any more: the stream has `ended` by its own mark, or
    /// every choice of it has.
    pub fn final_usage(&self, ended: bool) -> Option<Usage> {
        let usage = self.counted()?;
        let all_came =
            self.seen_choices.len() as u64 >= self.sent.choices || self.api == Api::Messages;
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

    /// What was used at least, by the largest of each count that was told.
    pub fn least(&self) -> Least {
        let told = self.priced(&self.least);
        let (input, output) = (
            told.input.unwrap_or(0),
            told.output_with_hidden().unwrap_or(0),
        );
        let counts = Counts {
            input: Some(input),
            output: Some(output),
            total: 0,
            ..told
        };
        let alone = Usage {
            input_tokens: input,
            output_tokens: output,
            ..Usage::default()
        };
        Least {
            usage: self.api.usage(counts).unwrap_or(alone),
            total: told.total,
        }
    }

    pub(super) fn counted(&self) -> Option<Usage> {
        let counts = self.priced(&self.counts);
        self.api.usage(counts).filter(|_| !self.odd)
    }

    /// All counts, those writes at the dearest that was asked for of which nothing says how long they stay.
    fn priced(&self, tally: &Tally) -> Counts {
        let counts = tally.counts();
        let none_is_short = self.sent.long_writes.then_some(0);
        Counts {
            written_short: counts.written_short.or(none_is_short),
            ..counts
        }
    }

    /// Nothing came of it: no output, and no word of what was used.
    pub fn used_nothing(&self) -> bool {
        !self.has_content && self.least().is_nothing()
    }

    /// Takes note of an event.
    pub fn note(&mut self, event: &SseEvent) -> Part {
        self.anywhere(&String::from_utf8_lossy(&event.data));
        self.api.event(self, event)
    }

    /// Takes the reports among some fields in; whether there was one.
    pub(crate) fn reports(&mut self, fields: &Pairs<'_>) -> bool {
        let mut reported = self.reports_in(fields, None);
        let is_error = |raw: &RawValue| !says_nothing(raw.get());
        if fields.all("error").any(is_error) {
            // an error tells of its use wherever it likes
            for (_, raw) in fields.iter().filter(|(name, _)| *name != "usage") {
                for raw in reports_within(raw.get()) {
                    self.served.report(raw);
                    reported |= self.report(raw, None);
                }
            }
        }
        reported
    }

    /// Takes the reports within a choice in, which stand for it alone; whether there was one. Of several
    /// choices that do not say which they are none can be told apart from what it said before.
    pub(crate) fn reports_of(&mut self, choice: &Choice<'_>, place: Option<u64>) -> bool {
        let reported = self.reports_in(&choice.0, Some(place.unwrap_or(0)));
        self.odd |= reported && place.is_none() && self.sent.choices > 1;
        reported
    }

    fn reports_in(&mut self, fields: &Pairs<'_>, choice: Option<u64>) -> bool {
        let mut reported = false;
        for raw in fields.all("usage") {
            self.served.report(raw);
            reported |= self.report(raw, choice);
        }
        reported
    }

    /// Takes a report in; whether it was one.
    pub(crate) fn report(&mut self, raw: &RawValue, choice: Option<u64>) -> bool {
        self.at_least(raw, choice);
        match self.api.counts(&Report::of(raw, false)) {
            Ok(counts) if counts == Counts::default() => false,
            Ok(counts) => {
                self.odd |= !self.counts.take(choice, counts);
                true
            }
            Err(Odd) => {
                self.odd = true;
                true
            }
        }
    }

    /// Takes whatever counts there are in an answer for the least that was used.
    pub(super) fn anywhere(&mut self, text: &str) {
        for counts in counts_anywhere(text) {
            self.least.take(None, counts);
        }
    }

    fn at_least(&mut self, raw: &RawValue, choice: Option<u64>) {
        if let Ok(counts) = self.api.counts(&Report::of(raw, true)) {
            self.least.take(choice, counts);
        }
    }

    /// Whether a report among some fields says how much output there was.
    pub(crate) fn tells_output(&self, fields: &Pairs<'_>) -> bool {
        let mut reports = fields.all("usage").map(|raw| Report::of(raw, true));
        reports
            .any(|report| matches!(self.api.counts(&report), Ok(counts) if counts.output.is_some()))
    }

    /// An item as a whole.
    pub(crate) fn item(&mut self, raw: &RawValue) {
        self.items_of(self.item_bytes + length(raw));
    }

    /// All items as a whole.
    pub(crate) fn items(&mut self, raw: &RawValue) {
        self.items_of(length(raw));
    }

    fn items_of(&mut self, bytes: u64) {
        self.item_bytes = self.item_bytes.max(bytes);
        if !self.has_pieces {
            self.output_bytes = self.output_bytes.max(self.item_bytes);
        }
    }

    pub(crate) fn content(&mut self, raw: &RawValue) {
        self.has_pieces = true;
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
        let index = choice.index().unwrap_or(0);
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
            self.served.report(raw);
            self.at_least(raw, None);
        }
        if !event.data.trim_ascii().is_empty() {
            self.output_bytes += event.data.len() as u64;
            self.has_content = true;
            self.content_since = true;
        }
    }
}
