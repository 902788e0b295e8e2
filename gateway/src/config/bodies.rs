//! What the bodies of requests may take of memory, as text and parsed.

use seatbelt_schemas::setting::Setting;

/// Largest request body, bytes.
pub const BODY_BYTES: Setting = Setting::new(1024, 256 << 20, 16 << 20);
/// Memory for the bodies of all requests together, bytes.
pub const BODIES_BYTES: Setting = Setting::new(1024, 1 << 40, 512 << 20);
/// Most values of a body, and one for this many bytes of the largest: a message of a conversation has
/// some 30 bytes for each value.
const VALUES_MAX: usize = 250_000;
const BYTES_PER_VALUE: usize = 8;
/// How deep the values of a body may lie. Below the 128 of the parser, so that the bound is named.
pub(crate) const DEPTH_MAX: usize = 100;
/// What a value takes besides its text, as an entry of an object whose table has just doubled.
pub(crate) const VALUE_BYTES: usize = 256;
/// What the first entry of an object or an array takes: room for four is made at once. An object
/// `{"":0}` within an array was seen to take 550 bytes.
pub(crate) const CONTAINER_BYTES: usize = 512;
/// Bodies up to here are parsed and bounded where they were read, in some milliseconds; longer ones on a
/// thread of their own. To bound 15 MB of text that no normal form leaves as it is takes a second.
pub(crate) const DONE_AT_ONCE_MAX: usize = 256 * 1024;

/// Texts up to here are counted by a tokenizer where they were read, in a few milliseconds; longer ones on a
/// thread of their own.
pub(crate) const COUNTED_AT_ONCE_MAX: u64 = 16 * 1024;
/// Texts above this are bounded by their bytes: to count so much takes a second at worst.
pub(crate) const COUNTED_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// And texts of more bytes for each token of the context: they do not fit it, or nearly so.
pub(crate) const COUNTED_BYTES_PER_TOKEN: u64 = 16;

/// Most values of one body.
pub(crate) fn values_max(body_bytes: usize) -> usize {
    (body_bytes / BYTES_PER_VALUE).clamp(16, VALUES_MAX)
}

/// What one body takes at most.
pub(crate) fn body_memory_max(body_bytes: usize) -> usize {
    let parsed = values_max(body_bytes).saturating_mul(VALUE_BYTES + CONTAINER_BYTES);
    body_bytes.saturating_add(parsed)
}

// two of the largest bodies have room where nothing is configured
const _: () = assert!(
    2 * (BODY_BYTES.default_count() + VALUES_MAX * (VALUE_BYTES + CONTAINER_BYTES))
        <= BODIES_BYTES.default_count()
);
