//! `/v1/completions`: what a metered request may say.

use crate::allow::{Holds::*, Shape};

/// Fields of a body.
pub(crate) const BODY: Shape = &[
    ("model", Anything),
    ("prompt", Anything),
    ("suffix", Anything),
    ("echo", Anything),
    ("max_tokens", Anything),
    ("n", Anything),
    ("best_of", Anything),
    ("stream", Anything),
    (
        "stream_options",
        Object(&[
            ("include_usage", Anything),
            ("include_obfuscation", Anything),
            ("continuous_usage_stats", Anything),
        ]),
    ),
    ("stop", Anything),
    ("temperature", Anything),
    ("top_p", Anything),
    ("seed", Anything),
    ("presence_penalty", Anything),
    ("frequency_penalty", Anything),
    ("logit_bias", Anything),
    ("logprobs", Anything),
    ("user", Anything),
];

/// What vLLM, llama.cpp, Ollama and the like take besides.
pub(crate) const GENERIC: Shape = &[
    ("top_k", Anything),
    ("min_p", Anything),
    ("typical_p", Anything),
    ("repetition_penalty", Anything),
    ("ignore_eos", Anything),
    ("stop_token_ids", Anything),
    ("skip_special_tokens", Anything),
    ("include_stop_str_in_output", Anything),
];

/// Why some fields are not listed; the others are refused all the same.
pub(crate) const WHY: &[(&str, &str)] = &[(
    "prompt_embeds",
    "what it adds to the input is not counted; leave it out",
)];
