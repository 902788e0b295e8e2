//! Fields of one API as the client wrote them in another: an error is to name what is in its own body.

/// Names in the upstream's API, each with the client's; of two that fit, the longer stands first.
pub(super) type Names = &'static [(&'static str, &'static str)];

/// Of chat completions, for who wrote `/v1/messages`.
pub(super) const OF_MESSAGES: Names = &[
    ("response_format.json_schema", "output_config.format"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
    ("stop", "stop_sequences"),
    (
        "parallel_tool_calls",
        "tool_choice.disable_parallel_tool_use",
    ),
];

/// Of chat completions, for who wrote `/v1/responses`.
pub(super) const OF_RESPONSES: Names = &[
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
    ("output_config.format", "text.format"),
    ("output_config.effort", "reasoning.effort"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("messages", "input"),
];

/// Of messages, for who wrote `/v1/chat/completions`.
pub(super) const OF_CHAT: Names = &[
    (
        "output_config.format.schema",
        "response_format.json_schema.schema",
    ),
    ("output_config.format", "response_format"),
    ("output_config.effort", "reasoning_effort"),
    ("stop_sequences", "stop"),
    (
        "tool_choice.disable_parallel_tool_use",
        "parallel_tool_calls",
    ),
];

/// The client's name of a field. Places within turns are of no use to it: there are others in its own body.
pub(super) fn renamed(names: Names, param: &str) -> String {
    let found = names.iter().find_map(|(upstream, client)| {
        let rest = param.strip_prefix(upstream)?;
        let is_whole = rest.is_empty() || rest.starts_with(['.', '[']);
        is_whole.then_some((*client, rest))
    });
    match found {
        Some(("input", _)) => "input".to_owned(),
        Some((client, rest)) => format!("{client}{rest}"),
        None => param.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_named_as_its_client_wrote_it() {
        for (names, upstream, client) in [
            (OF_MESSAGES, "response_format", "output_config.format"),
            (
                OF_MESSAGES,
                "response_format.json_schema.schema.type",
                "output_config.format.schema.type",
            ),
            (OF_MESSAGES, "stop", "stop_sequences"),
            (OF_MESSAGES, "stop_token_ids", "stop_token_ids"),
            (OF_MESSAGES, "messages[0].content", "messages[0].content"),
            (
                OF_RESPONSES,
                "response_format.json_schema.name",
                "text.format.name",
            ),
            (OF_RESPONSES, "messages[3].content[0]", "input"),
            (OF_RESPONSES, "max_tokens", "max_output_tokens"),
            (OF_CHAT, "output_config.format", "response_format"),
        ] {
            assert_eq!(renamed(names, upstream), client, "{upstream}");
        }
    }
}
