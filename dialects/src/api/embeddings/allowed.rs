//! `/v1/embeddings`: what a metered request may say.

use serde_json::Value;

use crate::allow::{Holds::*, SETTING, Shape};

/// Fields of a body.
pub(crate) const BODY: Shape = &[
    ("model", Anything),
    ("input", Anything),
    ("encoding_format", SETTING),
    (
        "dimensions",
        Only(Value::is_u64, "it must be a whole number"),
    ),
    ("user", Anything),
];

/// What vLLM and the like take besides: what is cut off is no input.
pub(crate) const GENERIC: Shape = &[("truncate_prompt_tokens", SETTING)];

/// Why some fields are not listed; the others are refused all the same.
pub(crate) const WHY: &[(&str, &str)] = &[];
