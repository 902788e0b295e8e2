//! Tools that the provider runs and charges for by the call: which of them a request asks for, and how
//! often it may call them.
//!
//! They are let through only where the operator priced them, and with a maximum of calls in the field that
//! their API has for it, which is written into every metered request. Not here: what a call costs, and what its
//! results add to the input.

use serde_json::{Value, json, value::RawValue};

use crate::{
    allow::{Holds, Holds::*, Kind, Profile, SETTING, Shape},
    api::Api,
    fields::{FieldError, Fields, counted},
    raw::Pairs,
    told::text,
};

/// A tool that the provider runs, as the operator priced it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provided {
    /// Its `type`, versions included.
    pub kind: String,
    /// Most calls of one request; fewer where the request says so.
    pub calls_max: u64,
    /// Most tokens that one call adds to the input, as the operator states them.
    pub input_max: u64,
    /// Each call has a fee.
    pub charged: bool,
}

impl Provided {
    /// Whether calls that an answer tells under this name are of this tool: `web_search` of `web_search_20250305`.
    pub fn is_called(&self, name: &str) -> bool {
        let version = self.kind.strip_prefix(name);
        version.is_some_and(|version| version.is_empty() || version.starts_with('_'))
    }
}

/// Most calls that a request may cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Of all tools together.
    pub all: u64,
    /// Of those that have a fee.
    pub charged: u64,
    /// Most tokens that any one of them adds to the input.
    pub input_max: u64,
}

/// Whether an upstream takes a maximum of calls in this API, and keeps it.
pub(crate) fn is_bounded(api: Api, profile: Profile) -> bool {
    matches!(
        (api, profile),
        (Api::Responses, Profile::OpenAi) | (Api::Messages, Profile::Anthropic)
    )
}

/// Writes the maximum of calls of those tools that a body asks for; what they come to.
pub(crate) fn pin(api: Api, priced: &[Provided], body: &mut Fields) -> Result<Calls, FieldError> {
    match api {
        Api::Responses => pin_together(priced, body),
        Api::Messages => pin_each(priced, body),
        Api::Chat | Api::Completions | Api::Embeddings => Ok(Calls::default()),
    }
}

fn priced_as<'a>(priced: &'a [Provided], tool: &Value) -> Option<&'a Provided> {
    let kind = tool.get("type")?.as_str()?;
    priced.iter().find(|provided| provided.kind == kind)
}

/// One maximum for all of them, which may all be of the one that has a fee.
fn pin_together(priced: &[Provided], body: &mut Fields) -> Result<Calls, FieldError> {
    let tools = body.get("tools").and_then(Value::as_array);
    let asked: Vec<_> = tools
        .into_iter()
        .flatten()
        .filter_map(|tool| priced_as(priced, tool))
        .collect();
    let Some(most) = asked.iter().map(|tool| tool.calls_max).min() else {
        return Ok(Calls::default());
    };
    let all = calls(body.get("max_tool_calls"), "max_tool_calls", most)?;
    body.insert("max_tool_calls".to_owned(), json!(all));
    let has_fee = asked.iter().any(|tool| tool.charged);
    Ok(Calls {
        all,
        charged: if has_fee { all } else { 0 },
        input_max: asked.iter().map(|tool| tool.input_max).max().unwrap_or(0),
    })
}

/// A maximum for each of them.
fn pin_each(priced: &[Provided], body: &mut Fields) -> Result<Calls, FieldError> {
    let mut sum = Calls::default();
    let tools = body.get_mut("tools").and_then(Value::as_array_mut);
    for (n, tool) in tools.into_iter().flatten().enumerate() {
        let Some(provided) = priced_as(priced, tool) else {
            continue;
        };
        let param = format!("tools[{n}].max_uses");
        let most = calls(tool.get("max_uses"), &param, provided.calls_max)?;
        if let Some(fields) = tool.as_object_mut() {
            fields.insert("max_uses".to_owned(), json!(most));
        }
        sum.all = sum.all.saturating_add(most);
        sum.charged = sum
            .charged
            .saturating_add(if provided.charged { most } else { 0 });
        sum.input_max = sum.input_max.max(provided.input_max);
    }
    Ok(sum)
}

/// What a client asks for, and no more than is priced.
fn calls(asked: Option<&Value>, param: &str, most: u64) -> Result<u64, FieldError> {
    match asked {
        None | Some(Value::Null) => Ok(most),
        Some(asked) => match counted(asked) {
            Some(asked) => Ok(asked.min(most)),
            None => Err(FieldError::invalid(param, "must be a whole number")),
        },
    }
}

/// What such a tool may say. What it is to look at is narrowed by it and never widened.
pub(crate) const TOOL: Shape = &[
    ("type", Anything),
    ("name", Anything),
    ("max_uses", Anything),
    ("allowed_domains", Anything),
    ("blocked_domains", Anything),
    (
        "filters",
        Object(&[("allowed_domains", Anything), ("blocked_domains", Anything)]),
    ),
    ("user_location", Object(LOCATION)),
    ("search_context_size", SETTING),
    ("max_content_tokens", SETTING),
    ("citations", Object(&[("enabled", SETTING)])),
];
const LOCATION: Shape = &[
    ("type", SETTING),
    ("city", TEXT),
    ("region", TEXT),
    ("country", TEXT),
    ("timezone", TEXT),
];
const TEXT: Holds = Only(Value::is_string, "it must be a string");

/// What a message holds of a call of the provider's tools.
const SERVER_TOOL_USE: &str = "server_tool_use";

/// What a conversation holds of earlier calls, by API.
pub(crate) fn history(api: Api) -> &'static [Kind] {
    match api {
        Api::Messages => BLOCKS,
        Api::Responses => ITEMS,
        Api::Chat | Api::Completions | Api::Embeddings => &[],
    }
}

const BLOCKS: &[Kind] = &[
    Kind {
        tag: SERVER_TOOL_USE,
        shape: &[
            ("type", Anything),
            ("id", Anything),
            ("name", Anything),
            ("input", Anything),
            ("caller", Anything),
        ],
    },
    Kind {
        tag: "web_search_tool_result",
        shape: &[
            ("type", Anything),
            ("tool_use_id", Anything),
            ("caller", Anything),
            ("content", RESULTS),
        ],
    },
];
const RESULTS: Holds = Only(
    are_results,
    "it must be the results as the provider gave them",
);
const ITEMS: &[Kind] = &[Kind {
    tag: "web_search_call",
    shape: &[
        ("type", Anything),
        ("id", Anything),
        ("status", Anything),
        ("action", Anything),
    ],
}];

/// Sealed texts, whose bytes are counted; or an error.
fn are_results(content: &Value) -> bool {
    let kind = |one: &Value, kind: &str| one.get("type").is_some_and(|found| found == kind);
    match content {
        Value::Array(results) => results.iter().all(|one| kind(one, "web_search_result")),
        other => kind(other, "web_search_tool_result_error"),
    }
}

/// Calls of the client's own tools, which are no item of a provider's.
const BY_THE_CLIENT: &[&str] = &[
    "function_call",
    "custom_tool_call",
    "computer_call",
    "local_shell_call",
    "shell_call",
    "apply_patch_call",
];

/// Which of the provider's tools an item of an answer is a call of.
pub(crate) fn called(item: &Pairs<'_>) -> Option<String> {
    let kind = text(item.last("type"));
    if kind == SERVER_TOOL_USE {
        let tool = Some(text(item.last("name"))).filter(|tool| !tool.is_empty());
        return tool.or(Some(kind));
    }
    called_by(&kind).map(str::to_owned)
}

/// A call's kind without what makes it one: `web_search` of `web_search_call`.
pub(crate) fn called_by(kind: &str) -> Option<&str> {
    let is_ours = BY_THE_CLIENT.contains(&kind);
    kind.strip_suffix("_call").filter(|_| !is_ours)
}

/// The call that an item is the result of, where that is an error.
pub(crate) fn failed<'a>(item: &Pairs<'a>) -> Option<&'a RawValue> {
    let kind = text(item.last("type"));
    let content = item.last("content").map(Pairs::of)?;
    let is_error = text(content.last("type")) == format!("{kind}_error");
    item.last("tool_use_id")
        .filter(|_| is_error && kind.ends_with("_tool_result"))
}
