//! What a request used, by kind of token, and the event with which a neuron reports it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, KeyId, ModelId, NeuronId},
    wire::{self, WireError},
};

/// What was used: tokens by kind, and calls of the provider's tools. The narrower kinds are part of the wider: cached and written input are
/// counted in `input_tokens`, reasoning in `output_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// All input tokens.
    pub input_tokens: u64,
    /// Of these, read from a cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cached_input_tokens: u64,
    /// Of these, written to a cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
    /// Of those written, the ones that stay for an hour or longer.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_long_tokens: u64,
    /// All output tokens.
    pub output_tokens: u64,
    /// Of these, spent on reasoning.
    #[serde(skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u64,
    /// Calls of tools that the provider ran and charges for.
    #[serde(skip_serializing_if = "is_zero")]
    pub tool_calls: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Usage {
    /// Input and output tokens together.
    pub fn tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }
}

/// How a request ended on a neuron.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NeuronOutcome {
    /// It ran to its end.
    Completed,
    /// The caller went away.
    Aborted,
    /// Its deadline passed, waiting or running.
    Expired,
    /// It was turned away before anything ran.
    Rejected,
    /// The engine broke.
    Failed,
}

/// Token counts in a neuron's usage event: all three are always written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeuronUsage {
    /// Tokens of the prompt that were run.
    pub input_tokens: u64,
    /// Of these, taken from a cache.
    pub cached_input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
}

impl From<NeuronUsage> for Usage {
    fn from(usage: NeuronUsage) -> Usage {
        Usage {
            input_tokens: usage.input_tokens,
            cached_input_tokens: usage.cached_input_tokens,
            output_tokens: usage.output_tokens,
            ..Usage::default()
        }
    }
}

/// One request on a neuron, exactly one event each. Stream `SEATBELT_USAGE`,
/// subject `seatbelt.usage.v1.<neuron>`, `Nats-Msg-Id` = reservation or request id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// Version of this shape: 1.
    pub v: u8,
    /// The reservation, or the neuron's own request id where the caller named none.
    pub reservation: String,
    /// The account, where the caller named it.
    pub account: Option<AccountId>,
    /// The key, where the caller named it.
    pub key: Option<KeyId>,
    /// The model asked for; none where the request never named a known one.
    pub model: Option<ModelId>,
    pub neuron: NeuronId,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Tokens.
    pub usage: NeuronUsage,
    /// How it ended.
    pub outcome: NeuronOutcome,
    /// Time in the queue.
    pub queued_ms: u64,
    /// Time for the prompt.
    pub prefill_ms: u64,
    /// Time for the output.
    pub decode_ms: u64,
    /// When it ended, unix ms.
    pub at_ms: u64,
}

impl UsageEvent {
    /// The version this code writes.
    pub const VERSION: u8 = 1;

    /// The event as MessagePack with named fields.
    pub fn encode(&self) -> Bytes {
        wire::encode(self).into()
    }

    /// Reads an event; unknown fields are skipped.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let event: Self = wire::decode("usage event", bytes)?;
        if event.v == Self::VERSION {
            return Ok(event);
        }
        Err(WireError::Version {
            what: "usage event",
            found: event.v,
        })
    }
}
