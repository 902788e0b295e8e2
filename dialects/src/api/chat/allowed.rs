//! `/v1/chat/completions`: what a metered request may say.

use serde_json::Value;

use crate::{
    allow::{Holds, Holds::*, Kind, SETTING, Shape},
    media::ADDRESS,
};

/// Fields of a body that every server of this API knows, or ignores.
pub(crate) const BODY: Shape = &[
    ("model", Anything),
    ("messages", Each(MESSAGE)),
    ("max_tokens", Anything),
    ("max_completion_tokens", Anything),
    ("n", Anything),
    ("stream", Anything),
    ("stream_options", Object(STREAM_OPTIONS)),
    ("stop", Anything),
    ("temperature", Anything),
    ("top_p", Anything),
    ("seed", Anything),
    ("presence_penalty", Anything),
    ("frequency_penalty", Anything),
    ("logit_bias", Anything),
    ("logprobs", Anything),
    ("top_logprobs", Anything),
    ("user", Anything),
    ("metadata", Anything),
    (
        "store",
        Only(is_false, "it names what the provider keeps; leave it out"),
    ),
    ("tools", Each(TOOL)),
    ("tool_choice", Anything),
    ("parallel_tool_calls", Anything),
    ("functions", Each(OLD_FUNCTION)),
    ("function_call", Anything),
    ("response_format", Object(RESPONSE_FORMAT)),
    ("reasoning_effort", SETTING),
    (
        "modalities",
        Only(
            is_text_only,
            "only text output is counted; ask for [\"text\"]",
        ),
    ),
];

/// What OpenAI takes besides.
pub(crate) const OPENAI: Shape = &[
    ("safety_identifier", Anything),
    ("prompt_cache_key", Anything),
    ("prompt_cache_retention", Anything),
    ("verbosity", SETTING),
    (
        "service_tier",
        Only(
            is_default_tier,
            "another class has another price; leave it out",
        ),
    ),
];

/// What vLLM, llama.cpp, Ollama and the like take besides.
pub(crate) const GENERIC: Shape = &[
    ("best_of", Anything),
    ("top_k", Anything),
    ("min_p", Anything),
    ("typical_p", Anything),
    ("repetition_penalty", Anything),
    ("ignore_eos", Anything),
    ("stop_token_ids", Anything),
    ("skip_special_tokens", Anything),
    ("include_stop_str_in_output", Anything),
    ("safety_identifier", Anything),
    ("prompt_cache_key", Anything),
    ("verbosity", SETTING),
];

const RESPONSE_FORMAT: Shape = &[
    ("type", Anything),
    ("json_schema", Anything),
    ("schema", Anything),
];

const STREAM_OPTIONS: Shape = &[
    ("include_usage", Anything),
    ("include_obfuscation", Anything),
    ("continuous_usage_stats", Anything),
];

const MESSAGE: &[Kind] = &[Kind {
    tag: "",
    shape: &[
        ("role", Only(Value::is_string, "it must be a string")),
        ("content", Parts(PART)),
        ("name", Anything),
        ("tool_calls", Each(TOOL_CALL)),
        ("tool_call_id", Anything),
        ("function_call", Anything),
        ("refusal", Anything),
        ("reasoning_content", Anything),
        ("reasoning", Anything),
    ],
}];

const PART: &[Kind] = &[
    Kind {
        tag: "text",
        shape: &[("type", Anything), ("text", TEXT)],
    },
    Kind {
        tag: "refusal",
        shape: &[("type", Anything), ("refusal", TEXT)],
    },
];

const TOOL_CALL: &[Kind] = &[
    Kind {
        tag: "function",
        shape: CALL,
    },
    Kind {
        tag: "custom",
        shape: CALL,
    },
    Kind {
        tag: "",
        shape: CALL,
    },
];
const CALL: Shape = &[
    ("id", Anything),
    ("type", Anything),
    ("index", Anything),
    ("function", Anything),
    ("custom", Anything),
];

/// Tools that the caller runs itself; all others are run by the provider and add input.
const TOOL: &[Kind] = &[
    Kind {
        tag: "function",
        shape: &[("type", Anything), ("function", Object(FUNCTION))],
    },
    Kind {
        tag: "custom",
        shape: &[("type", Anything), ("custom", Anything)],
    },
    Kind {
        tag: "",
        shape: &[("type", Anything), ("function", Object(FUNCTION))],
    },
];
const FUNCTION: Shape = &[
    ("name", Anything),
    ("description", Anything),
    ("parameters", Anything),
    ("strict", Anything),
];
const OLD_FUNCTION: &[Kind] = &[Kind {
    tag: "",
    shape: FUNCTION,
}];

const TEXT: Holds = Only(Value::is_string, "it must be a string");

/// Why some fields are not listed; the others are refused all the same.
pub(crate) const WHY: &[(&str, &str)] = &[
    (
        "min_tokens",
        "a server may write as many whatever the maximum is; leave it out",
    ),
    (
        "web_search_options",
        "a search adds input and fees that no maximum limits; leave it out",
    ),
    (
        "search_parameters",
        "a search adds input and fees that no maximum limits; leave it out",
    ),
    (
        "web_search",
        "a search adds input and fees that no maximum limits; leave it out",
    ),
    (
        "enable_search",
        "a search adds input and fees that no maximum limits; leave it out",
    ),
    (
        "prediction",
        "rejected predictions are charged beyond the output maximum; leave it out",
    ),
    ("audio", "audio is not counted in text tokens; leave it out"),
    (
        "plugins",
        "plugins add input that no maximum limits; leave them out",
    ),
    (
        "models",
        "another model may answer at another price; name one model in 'model'",
    ),
    (
        "fallbacks",
        "another model may answer at another price; leave it out",
    ),
    (
        "provider",
        "another provider has another price; leave it out",
    ),
    (
        "chat_template",
        "a template can make any prompt of a message; leave it out",
    ),
    (
        "n_predict",
        "it would replace the output maximum; write 'max_tokens'",
    ),
    (
        "service_tier",
        "another class has another price; leave it out",
    ),
];

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_default_tier(value: &Value) -> bool {
    value == "default" || value == "auto" // what is sent is "default"
}

fn is_text_only(modalities: &Value) -> bool {
    modalities
        .as_array()
        .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one == "text"))
}

/// An image, where its model has a limit for one.
pub(crate) const IMAGE: Shape = &[
    ("type", Anything),
    (
        "image_url",
        Object(&[("url", ADDRESS), ("detail", SETTING)]),
    ),
];
