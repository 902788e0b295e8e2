//! `/v1/messages`: what a metered request may say.

use serde_json::Value;

use crate::{
    allow::{Found, Holds, Holds::*, Kind, SETTING, Shape},
    fields::Fields,
    media::{ADDRESS, MEDIA_TYPE},
};

/// Fields of a body.
pub(crate) const BODY: Shape = &[
    ("model", Anything),
    ("messages", Each(MESSAGE)),
    ("max_tokens", Anything),
    ("system", Parts(SYSTEM)),
    ("stop_sequences", Anything),
    ("temperature", Anything),
    ("top_p", Anything),
    ("top_k", Anything),
    ("stream", Anything),
    ("metadata", Object(&[("user_id", Anything)])),
    ("thinking", Object(THINKING)),
    ("output_config", Object(OUTPUT_CONFIG)),
    ("cache_control", CACHE),
    (
        "context_management",
        Only(
            clears_alone,
            "only edits that clear thinking or uses of tools are known to add nothing; leave it out",
        ),
    ),
    ("tools", Each(TOOL)),
    ("tool_choice", Anything),
];

/// What Anthropic takes besides.
pub(crate) const ANTHROPIC: Shape = &[(
    "service_tier",
    Only(
        is_standard_tier,
        "another class has another price; leave it out",
    ),
)];

const THINKING: Shape = &[
    ("type", SETTING),
    ("budget_tokens", SETTING),
    ("display", SETTING),
];

const OUTPUT_CONFIG: Shape = &[
    ("effort", SETTING),
    // its schema counts as it is printed, and the instructions that come with it as those of tools
    (
        "format",
        Object(&[("type", SETTING), ("schema", Anything), ("name", Anything)]),
    ),
];

const MESSAGE: &[Kind] = &[Kind {
    tag: "",
    shape: &[
        ("role", Only(Value::is_string, "it must be a string")),
        ("content", Parts(PART)),
    ],
}];

const TEXT_PART: Kind = Kind {
    tag: "text",
    shape: &[
        ("type", Anything),
        ("text", Only(Value::is_string, "it must be a string")),
        ("citations", Anything),
        ("cache_control", CACHE),
    ],
};

const SYSTEM: &[Kind] = &[TEXT_PART];

const RESULT: &[Kind] = &[
    TEXT_PART,
    // a tool of the request that was looked for, which may be written out there
    Kind {
        tag: "tool_reference",
        shape: &[
            ("type", Anything),
            ("tool_name", Anything),
            ("cache_control", CACHE),
        ],
    },
];

const PART: &[Kind] = &[
    TEXT_PART,
    Kind {
        tag: "tool_use",
        shape: &[
            ("type", Anything),
            ("id", Anything),
            ("name", Anything),
            ("input", Anything),
            ("caller", Anything),
            ("cache_control", CACHE),
        ],
    },
    Kind {
        tag: "tool_result",
        shape: &[
            ("type", Anything),
            ("tool_use_id", Anything),
            ("content", Parts(RESULT)),
            ("is_error", SETTING),
            ("cache_control", CACHE),
        ],
    },
    Kind {
        tag: "thinking",
        shape: &[
            ("type", Anything),
            ("thinking", Anything),
            ("signature", Anything),
        ],
    },
    Kind {
        tag: "redacted_thinking",
        shape: &[("type", Anything), ("data", Anything)],
    },
];

/// Tools that the caller runs itself; all others are run by the provider and add input.
const TOOL: &[Kind] = &[
    Kind {
        tag: "",
        shape: CUSTOM,
    },
    Kind {
        tag: "custom",
        shape: CUSTOM,
    },
    Kind {
        tag: "bash_*",
        shape: CLIENT,
    },
    Kind {
        tag: "text_editor_*",
        shape: CLIENT,
    },
    Kind {
        tag: "memory_*",
        shape: CLIENT,
    },
    Kind {
        tag: "computer_*",
        shape: CLIENT,
    },
];
const CUSTOM: Shape = &[
    ("type", Anything),
    ("name", Anything),
    ("description", Anything),
    ("input_schema", Anything),
    ("input_examples", Anything),
    ("strict", Anything),
    ("eager_input_streaming", Anything),
    ("defer_loading", Anything),
    ("cache_control", CACHE),
];
const CLIENT: Shape = &[
    ("type", Anything),
    ("name", Anything),
    ("max_characters", Anything),
    ("display_width_px", Anything),
    ("display_height_px", Anything),
    ("display_number", Anything),
    ("cache_control", CACHE),
];

const CACHE: Holds = Only(
    is_priced_cache,
    "a cache that is kept for another time than '5m' or '1h' has no price; leave out its 'ttl'",
);

/// Features that change no price and add no input: all they turn on is in a field that is listed here
/// or refused.
pub(crate) const BETAS: &[&str] = &[
    "advanced-tool-use-2025-11-20",
    "claude-code-20250219",
    "computer-use-2024-10-22",
    "computer-use-2025-01-24",
    "computer-use-2025-11-24",
    "context-management-2025-06-27",
    "effort-2025-11-24",
    "fine-grained-tool-streaming-2025-05-14",
    "interleaved-thinking-2025-05-14",
    "max-tokens-3-5-sonnet-2024-07-15",
    "message-threads-2026-08-12",
    "mid-conversation-system-2026-04-07",
    "mid-conversation-tool-changes-2026-07-01",
    "output-128k-2025-02-19",
    "prompt-caching-2024-07-31",
    "structured-outputs-2025-11-13",
    "thinking-token-count-2026-05-13",
    "token-efficient-tools-2025-02-19",
];

/// Why some fields are not listed; the others are refused all the same.
pub(crate) const WHY: &[(&str, &str)] = &[
    (
        "mcp_servers",
        "remote tools add input that no maximum limits; leave them out",
    ),
    (
        "container",
        "code execution adds input that no maximum limits; leave it out",
    ),
    ("speed", "another speed has another price; leave it out"),
    (
        "inference_geo",
        "another place has another price; leave it out",
    ),
    (
        "context_management",
        "a compaction is charged beyond the answer's usage; leave it out",
    ),
];

/// A thinking budget may stand above the output maximum where a beta allows it; then the maximum is none.
/// What counts is the maximum that goes out, which the model's own may lower.
pub(crate) fn thinks_beyond_the_maximum(body: &Fields, output_max: u64) -> Option<Found> {
    let budget = body.get("thinking")?.get("budget_tokens")?;
    let max = body.get("max_tokens").and_then(Value::as_u64);
    let within = budget
        .as_u64()
        .zip(max)
        .is_some_and(|(budget, max)| budget < max.min(output_max));
    (!within && !budget.is_null()).then(|| {
        Found::new(
            "thinking.budget_tokens",
            "it must be a whole number below 'max_tokens' and the model's own maximum",
        )
    })
}

/// A compaction is charged beside the answer; what is cleared is input that is not read.
fn clears_alone(management: &Value) -> bool {
    let clears = |edit: &Value| {
        let kind = edit.get("type").and_then(Value::as_str);
        kind.is_some_and(|kind| {
            kind.starts_with("clear_thinking_") || kind.starts_with("clear_tool_uses_")
        })
    };
    management.as_object().is_some_and(|fields| {
        fields.iter().all(|(name, value)| {
            name == "edits"
                && value
                    .as_array()
                    .is_some_and(|edits| edits.iter().all(clears))
        })
    })
}

fn is_standard_tier(value: &Value) -> bool {
    value == "standard_only" || value == "auto" // what is sent is "standard_only"
}

fn is_priced_cache(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| {
        fields.iter().all(|(name, value)| match name.as_str() {
            "type" => value == "ephemeral",
            "ttl" => value.is_null() || value == "5m" || value == "1h",
            _ => false,
        })
    })
}

/// An image, where its model has a limit for one.
pub(crate) const IMAGE: Shape = &[
    ("type", Anything),
    (
        "source",
        Object(&[
            ("type", SETTING),
            ("media_type", MEDIA_TYPE),
            ("data", Only(Value::is_string, "it must be a string")),
            ("url", ADDRESS),
        ]),
    ),
    ("cache_control", CACHE),
];
