//! An answer and its parts: whole ones, and what is read alike of an event of a stream.

use seatbelt_schemas::usage::Usage;
use serde_json::value::RawValue;

use super::{
    StreamTold,
    report::{Least, believed, reports_within},
    stream::Sent,
};
use crate::{
    api::{Api, responses},
    odd::says_nothing,
    raw::{Pairs, items},
    served::Served,
};

/// Longest reason for an end that is kept.
const FINISH_CHARS_MAX: usize = 64;

/// A whole answer, as far as the gate cares.
#[derive(Debug, Default)]
pub struct Told {
    /// What it used, where that can be believed.
    pub usage: Option<Usage>,
    /// What it used at least: each count that is one, whatever else is odd.
    pub least: Least,
    /// Why the output ended, in the upstream's word.
    pub finish: Option<String>,
    /// Bytes of the choices as JSON: a bound of the tokens in them.
    pub output_bytes: u64,
    /// How it says that it was served.
    pub served: Served,
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
    /// Which of them it says that it is.
    pub(crate) fn index(&self) -> Option<u64> {
        self.0.last("index").and_then(|raw| raw.get().parse().ok())
    }

    /// Where its output may stand: in a message, in what is added to one, or as a plain text.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &'a RawValue> {
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

pub(super) fn length(raw: &RawValue) -> u64 {
    raw.get().len() as u64
}

/// Whether a message, a delta or a block carries any output.
pub(crate) fn has_content(raw: &RawValue) -> bool {
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

impl Told {
    /// Reads a whole answer; `None` where it is not the shape of one.
    pub fn read(api: Api, sent: Sent, body: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        let body = Body::read(&text)?;
        let choices = body.choices();
        let mut told = StreamTold::new(api, sent);
        told.reports(&body.0);
        told.served.answer(&body.0);
        for (choice, place) in choices.iter().zip(0..) {
            told.reports_of(choice, Some(place));
        }
        let outputs = choices.iter().flat_map(Choice::outputs);
        let mut outputs: Vec<_> = outputs.chain(body.0.all("content")).collect();
        let named = match api {
            Api::Embeddings => Some("data"),
            Api::Responses => Some("output"),
            Api::Chat | Api::Messages | Api::Completions => None,
        };
        outputs.extend(named.into_iter().flat_map(|name| body.0.all(name)));
        let says_it = outputs.iter().any(|raw| has_content(raw));
        if api == Api::Responses && !says_it {
            outputs.extend(body.0.all("output_text")); // all that some say
        }
        let has_content = outputs.iter().any(|raw| has_content(raw));
        let usage = told
            .counted()
            .and_then(|usage| believed(usage, has_content));
        if usage.is_none() {
            told.anywhere(&text);
        }
        Some(Self {
            usage,
            least: told.least(),
            output_bytes: outputs.iter().map(|raw| length(raw)).sum(),
            finish: choices
                .iter()
                .find_map(|choice| finish(choice.0.last("finish_reason")))
                .or_else(|| finish(body.0.last("stop_reason")))
                .or_else(|| {
                    let is_response = api == Api::Responses;
                    is_response.then(|| responses::ending(&body.0)).flatten()
                }),
            served: told.served,
            is_error: body.is_error() && outputs.iter().all(|raw| is_empty(raw)),
        })
    }

    /// What an answer that is not the shape of one tells all the same.
    pub fn unread(api: Api, sent: Sent, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let mut told = StreamTold::new(api, sent);
        for raw in reports_within(&text) {
            told.served.report(raw);
            told.report(raw, None);
        }
        told.anywhere(&text);
        Self {
            least: told.least(),
            served: told.served,
            ..Self::default()
        }
    }
}
