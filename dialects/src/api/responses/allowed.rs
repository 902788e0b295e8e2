//! `/v1/responses`: what a metered request may say.

use serde_json::Value;

use crate::{
    allow::{Holds, Holds::*, Kind, SETTING, Shape},
    media::ADDRESS,
};

/// Fields of a body.
pub(crate) const BODY: Shape = &[
    ("model", Anything),
    ("input", Parts(ITEM)),
    ("instructions", TEXT),
    ("max_output_tokens", Anything),
    ("max_tool_calls", Anything),
    ("stream", Anything),
    (
        "stream_options",
        Object(&[("include_obfuscation", Anything)]),
    ),
    ("temperature", Anything),
    ("top_p", Anything),
    ("top_logprobs", Anything),
    ("user", Anything),
    ("safety_identifier", Anything),
    ("prompt_cache_key", Anything),
    ("prompt_cache_retention", Anything),
    ("metadata", Anything),
    // what Codex says of itself
    ("client_metadata", Anything),
    (
        "store",
        Only(is_false, "it names what the provider keeps; leave it out"),
    ),
    (
        "background",
        Only(is_false, "it answers later; leave it out"),
    ),
    ("truncation", SETTING),
    ("parallel_tool_calls", Anything),
    ("tool_choice", Anything),
    ("tools", Each(TOOL)),
    ("reasoning", Object(REASONING)),
    (
        "text",
        Object(&[("format", Anything), ("verbosity", SETTING)]),
    ),
    (
        "include",
        Only(
            is_of_the_answer,
            "only the model's sealed reasoning and its logprobs are known to cost nothing",
        ),
    ),
    (
        "service_tier",
        Only(
            is_default_tier,
            "another class has another price; leave it out",
        ),
    ),
];

const TEXT: Holds = Only(Value::is_string, "it must be a string");
const REASONING: Shape = &[
    ("effort", SETTING),
    ("summary", SETTING),
    ("generate_summary", SETTING),
];

const MESSAGE: Shape = &[
    ("type", Anything),
    ("role", TEXT),
    ("content", Parts(PART)),
    ("id", Anything),
    ("status", Anything),
    ("phase", Anything),
];
const RESULT: Shape = &[
    ("type", Anything),
    ("call_id", Anything),
    ("output", Parts(PART)),
    ("id", Anything),
    ("status", Anything),
];
const ITEM: &[Kind] = &[
    Kind {
        tag: "",
        shape: MESSAGE,
    },
    Kind {
        tag: "message",
        shape: MESSAGE,
    },
    Kind {
        tag: "function_call",
        shape: &[
            ("type", Anything),
            ("call_id", Anything),
            ("namespace", Anything),
            ("name", Anything),
            ("arguments", TEXT),
            ("id", Anything),
            ("status", Anything),
        ],
    },
    Kind {
        tag: "function_call_output",
        shape: RESULT,
    },
    Kind {
        tag: "custom_tool_call",
        shape: &[
            ("type", Anything),
            ("call_id", Anything),
            ("namespace", Anything),
            ("name", Anything),
            ("input", TEXT),
            ("id", Anything),
            ("status", Anything),
        ],
    },
    Kind {
        tag: "custom_tool_call_output",
        shape: RESULT,
    },
    Kind {
        tag: "reasoning",
        shape: &[
            ("type", Anything),
            ("id", Anything),
            ("summary", Anything),
            ("content", Anything),
            ("encrypted_content", TEXT),
            ("status", Anything),
        ],
    },
];

const PART: &[Kind] = &[
    Kind {
        tag: "input_text",
        shape: &[("type", Anything), ("text", TEXT)],
    },
    Kind {
        tag: "output_text",
        shape: &[
            ("type", Anything),
            ("text", TEXT),
            ("annotations", Anything),
            ("logprobs", Anything),
        ],
    },
    Kind {
        tag: "refusal",
        shape: &[("type", Anything), ("refusal", TEXT)],
    },
];

/// Tools that the caller runs itself; all others are run by the provider and add input.
const TOOL: &[Kind] = &[
    FUNCTION,
    CUSTOM,
    // such tools under one name
    Kind {
        tag: "namespace",
        shape: &[
            ("type", Anything),
            ("name", Anything),
            ("description", Anything),
            ("tools", Each(&[FUNCTION, CUSTOM])),
        ],
    },
];
const FUNCTION: Kind = Kind {
    tag: "function",
    shape: &[
        ("type", Anything),
        ("name", Anything),
        ("description", Anything),
        ("parameters", Anything),
        ("strict", Anything),
    ],
};
const CUSTOM: Kind = Kind {
    tag: "custom",
    shape: &[
        ("type", Anything),
        ("name", Anything),
        ("description", Anything),
        ("format", Anything),
    ],
};

/// Why some fields are not listed; the others are refused all the same.
pub(crate) const WHY: &[(&str, &str)] = &[(
    "moderation",
    "what it adds is charged beyond the answer's usage; leave it out",
)];

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_default_tier(value: &Value) -> bool {
    value == "default" || value == "auto" // what is sent is "default"
}

fn is_of_the_answer(include: &Value) -> bool {
    let known = |one: &Value| {
        one == "reasoning.encrypted_content"
            || one == "message.output_text.logprobs"
            || one == "web_search_call.action.sources"
    };
    include.as_array().is_some_and(|all| all.iter().all(known))
}

/// An image, where its model has a limit for one.
pub(crate) const IMAGE: Shape = &[
    ("type", Anything),
    ("image_url", ADDRESS),
    ("detail", SETTING),
];
