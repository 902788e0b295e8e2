//! What bounds a request to a model, once all defaults are decided.

use seatbelt_tokens::Framing;

use super::{
    MESSAGE_ALLOWANCE_DEFAULT, MediaLimits, REQUEST_ALLOWANCE_DEFAULT, TOOLS_ALLOWANCE_DEFAULT,
    UpstreamModel,
};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most tokens of input and output together.
    pub(crate) context: u64,
    /// Most output tokens of one choice.
    pub(crate) output: u64,
    /// The output maximum where the client sends none; [`Self::output`] where not given.
    pub(crate) output_default: Option<u64>,
    /// Tokens added to the input bound for what is written around texts.
    pub(crate) framing: Framing,
    /// What its images and sounds may cost.
    pub(crate) media: MediaLimits,
}

impl Limits {
    /// Those of a provider that adds no prompt of its own.
    pub(crate) fn new(context: u64, output: u64) -> Self {
        Self {
            context,
            output,
            output_default: None,
            framing: Framing {
                message: MESSAGE_ALLOWANCE_DEFAULT,
                request: REQUEST_ALLOWANCE_DEFAULT,
                tools: TOOLS_ALLOWANCE_DEFAULT,
            },
            media: MediaLimits::default(),
        }
    }

    /// Those of a model. Where its chat template is known, what that was `seen` to write around texts is allowed
    /// at least; `request` is what its provider adds.
    pub(crate) fn of(model: &UpstreamModel, request: u64, seen: Framing) -> Self {
        let plain = Self::new(model.context, model.output);
        let allowed = |told: Option<u64>, default: u64, seen| told.unwrap_or(default.max(seen));
        let framing = Framing {
            message: allowed(model.message_allowance, plain.framing.message, seen.message),
            request: allowed(model.request_allowance, request, seen.request),
            tools: allowed(model.tools_allowance, plain.framing.tools, seen.tools),
        };
        Self {
            output_default: model.output_default,
            framing,
            media: model.media,
            ..plain
        }
    }
}

/// Output tokens that are held at first of a request that is held in slices; each slice is twice the one before.
pub(crate) const FIRST_SLICE: u64 = 64;
/// Largest slice.
pub(crate) const SLICE_MAX: u64 = 1024;
