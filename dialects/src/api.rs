//! The APIs that are spoken: each is one file that answers these questions in this order. Here they
//! are asked, and nothing else.

use seatbelt_schemas::usage::Usage;

use crate::{
    allow::{Found, Profile, Shape},
    ask::{Ask, Bytes, Measure},
    dialect::Dialect,
    fields::{FieldError, Fields},
    sse::SseEvent,
    told::{Counts, Odd, Part, Report, StreamTold},
};

mod chat;
mod completions;
mod embeddings;
mod messages;
pub(crate) mod responses;

pub use chat::MaxField;

/// An API: what a client asks in, or what an upstream is asked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/messages`.
    Messages,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/responses`.
    Responses,
}

impl Api {
    /// The API in which upstreams of a dialect generate.
    pub fn of(dialect: Dialect) -> Self {
        match dialect {
            Dialect::OpenAi => Self::Chat,
            Dialect::Anthropic => Self::Messages,
        }
    }

    pub fn dialect(self) -> Dialect {
        match self {
            Self::Chat | Self::Completions | Self::Embeddings | Self::Responses => Dialect::OpenAi,
            Self::Messages => Dialect::Anthropic,
        }
    }

    /// Where an upstream serves it, below the base URL as that vendor's SDK writes it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => chat::PATH,
            Self::Messages => messages::PATH,
            Self::Completions => completions::PATH,
            Self::Embeddings => embeddings::PATH,
            Self::Responses => responses::PATH,
        }
    }

    /// The fields that a body may have: those of the API, and those of the profile besides.
    pub(crate) fn shapes(self, profile: Profile) -> [Shape; 2] {
        match self {
            Self::Chat => chat::shapes(profile),
            Self::Messages => messages::shapes(profile),
            Self::Completions => completions::shapes(profile),
            Self::Embeddings => embeddings::shapes(profile),
            Self::Responses => responses::shapes(profile),
        }
    }

    /// The type of a part that is an image, and its fields.
    pub(crate) fn image(self) -> Option<(&'static str, Shape)> {
        match self {
            Self::Chat => Some(("image_url", chat::IMAGE)),
            Self::Messages => Some(("image", messages::IMAGE)),
            Self::Responses => Some(("input_image", responses::IMAGE)),
            Self::Completions | Self::Embeddings => None,
        }
    }

    /// What has no bound although each of its fields is listed.
    pub(crate) fn unbounded(self, body: &Fields, output_max: u64) -> Option<Found> {
        match self {
            Self::Chat => chat::unbounded(body, output_max),
            Self::Messages => messages::unbounded(body, output_max),
            Self::Completions => completions::unbounded(body, output_max),
            Self::Embeddings => embeddings::unbounded(body, output_max),
            Self::Responses => responses::unbounded(body, output_max),
        }
    }

    /// The features that a header may turn on; none where the header is not sent on.
    pub(crate) fn betas(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Chat => chat::BETAS,
            Self::Messages => messages::BETAS,
            Self::Completions => completions::BETAS,
            Self::Embeddings => embeddings::BETAS,
            Self::Responses => responses::BETAS,
        }
    }

    /// The versions of the API that a header may ask for; none where the header is not sent on.
    pub(crate) fn versions(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Chat => chat::VERSIONS,
            Self::Messages => messages::VERSIONS,
            Self::Completions => completions::VERSIONS,
            Self::Embeddings => embeddings::VERSIONS,
            Self::Responses => responses::VERSIONS,
        }
    }

    /// Why some fields are not listed, of any API: a client may have mistaken one for the other.
    pub(crate) fn why(field: &str) -> Option<&'static str> {
        let mut known = [
            chat::WHY,
            messages::WHY,
            completions::WHY,
            embeddings::WHY,
            responses::WHY,
        ]
        .into_iter()
        .flatten();
        known.find(|(name, _)| *name == field).map(|(_, why)| *why)
    }

    /// What a body asks for.
    pub fn ask(self, body: &Fields) -> Result<Ask, FieldError> {
        self.ask_by(body, &mut Bytes)
    }

    /// The same, its text measured otherwise.
    pub fn ask_by(self, body: &Fields, by: &mut dyn Measure) -> Result<Ask, FieldError> {
        match self {
            Self::Chat => chat::ask(body, by),
            Self::Messages => messages::ask(body, by),
            Self::Completions => completions::ask(body, by),
            Self::Embeddings => embeddings::ask(body, by),
            Self::Responses => responses::ask(body, by),
        }
    }

    /// Writes the output maximum of one choice; `field` where the client named none.
    pub fn set_max(self, body: &mut Fields, max: u64, field: MaxField) {
        match self {
            Self::Chat => chat::set_max(body, max, field),
            Self::Messages => messages::set_max(body, max, field),
            Self::Completions => completions::set_max(body, max, field),
            Self::Embeddings => embeddings::set_max(body, max, field),
            Self::Responses => responses::set_max(body, max, field),
        }
    }

    /// Asks for a stream's usage, where it has to be asked for.
    pub fn want_usage(self, body: &mut Fields) {
        match self {
            Self::Chat => chat::want_usage(body),
            Self::Messages => messages::want_usage(body),
            Self::Completions => completions::want_usage(body),
            Self::Embeddings => embeddings::want_usage(body),
            Self::Responses => responses::want_usage(body),
        }
    }

    /// Whether a stream tells its usage only when asked.
    pub(crate) fn has_to_be_asked(self) -> bool {
        match self {
            Self::Chat => chat::USAGE_HAS_TO_BE_ASKED,
            Self::Messages => messages::USAGE_HAS_TO_BE_ASKED,
            Self::Completions => completions::USAGE_HAS_TO_BE_ASKED,
            Self::Embeddings => embeddings::USAGE_HAS_TO_BE_ASKED,
            Self::Responses => responses::USAGE_HAS_TO_BE_ASKED,
        }
    }

    /// The counts of a usage report.
    pub(crate) fn counts(self, report: &Report<'_>) -> Result<Counts, Odd> {
        match self {
            Self::Chat => chat::counts(report),
            Self::Messages => messages::counts(report),
            Self::Completions => completions::counts(report),
            Self::Embeddings => embeddings::counts(report),
            Self::Responses => responses::counts(report),
        }
    }

    /// What counts come to; nothing where one is missing.
    pub(crate) fn usage(self, counts: Counts) -> Option<Usage> {
        match self {
            Self::Chat => chat::usage(counts),
            Self::Messages => messages::usage(counts),
            Self::Completions => completions::usage(counts),
            Self::Embeddings => embeddings::usage(counts),
            Self::Responses => responses::usage(counts),
        }
    }

    /// Takes note of an event of a stream.
    pub(crate) fn event(self, told: &mut StreamTold, event: &SseEvent) -> Part {
        match self {
            Self::Chat => chat::event(told, event),
            Self::Messages => messages::event(told, event),
            Self::Completions => completions::event(told, event),
            Self::Embeddings => embeddings::event(told, event),
            Self::Responses => responses::event(told, event),
        }
    }
}
