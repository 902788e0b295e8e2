//! What the provider keeps between requests, refused for every key: one operator's key serves all tenants, so
//! that an id of one works for another.
//!
//! It is told by its kind, at any depth and in any spelling that a careless server takes for it: whatever is
//! called an id of something, but for those few that name nothing which is kept. What belongs to the client
//! alone is not looked into: the input of its tools, its schemas, its labels. Not here: what costs.

use serde_json::Value;

use crate::fields::{self, FieldError, Fields};

/// Names of what is kept itself: servers look for them at the top of a body, and within fields of their own.
const KEPT: &[&str] = &[
    "assistant",
    "cachedcontent",
    "container",
    "conversation",
    "thread",
];
/// What has a plain `id` where it is kept.
const KEPT_BY_ID: &[&str] = &[
    "assistant",
    "attachment",
    "attachments",
    "audio",
    "container",
    "conversation",
    "document",
    "file",
    "files",
    "image",
    "imagefile",
    "images",
    "inputaudio",
    "previousresponse",
    "prompt",
    "response",
    "responses",
    "source",
    "thread",
    "vectorstore",
    "vectorstores",
    "video",
    "videos",
];
/// Ids written in one word.
const IDS_IN_ONE_WORD: &[&str] = &[
    "fileid",
    "fileids",
    "vectorstoreids",
    "containerid",
    "threadid",
];
/// Ids of nothing that is kept: of calls within the messages, of whom the client names, of tokens.
const OF_NOTHING_KEPT: &[&str] = &[
    "callid",
    "enduserid",
    "requestid",
    "toolcallid",
    "tooluseid",
    "traceid",
    "userid",
];
/// What belongs to the client alone.
const THE_CLIENTS: &[&str] = &[
    "arguments",
    "inputexamples",
    "inputschema",
    "jsonschema",
    "logitbias",
    "parameters",
    "schema",
];
/// What the client says of itself and its request, at the top of a body.
const LABELS: &[&str] = &["metadata", "clientmetadata"];
/// What an item has that comes whole.
const CONTENTS: &[&str] = &[
    "action",
    "actions",
    "arguments",
    "content",
    "encrypted_content",
    "input",
    "operation",
    "output",
    "outputs",
    "queries",
    "result",
    "results",
    "tools",
];
/// Most characters of a name that are looked at, and shown.
const NAME_CHARS_MAX: usize = 40;
const WHY: &str = "names what the provider keeps, which all keys of this gateway would share: send its content; responses alone may be gone on with, where the operator sets threads = true for the upstream";

/// Refuses what the provider keeps, but for ids that the operator accepts by their path.
pub fn refuse_state(body: &Fields, accepted: [&[String]; 2]) -> Result<(), FieldError> {
    for (name, value) in body.iter().filter(|(_, value)| !value.is_null()) {
        if name == "input" {
            refuse_kept_items(value)?;
        }
        let folded = folded(name);
        // in responses it is never a text of the client's
        if folded == "prompt" && value.is_string() && body.contains_key("input") {
            return Err(FieldError::invalid(shown(name), WHY));
        }
        if !LABELS.contains(&folded.as_str()) {
            let search = Search { accepted };
            search.field(
                name,
                value,
                ValuePath {
                    path: &shown(name),
                    under: "",
                },
            )?;
        }
    }
    Ok(())
}

/// Refuses items of `/v1/responses` that stand for one which the provider keeps: each would be another tenant's
/// just as well.
fn refuse_kept_items(input: &Value) -> Result<(), FieldError> {
    let items = input.as_array().into_iter().flatten();
    let mut items = items.enumerate();
    items.try_for_each(|(n, item)| match item.as_object() {
        Some(item) => refuse_kept_item(&format!("input[{n}]"), item),
        None => Ok(()),
    })
}

/// Refuses one of them.
pub(crate) fn refuse_kept_item(param: &str, item: &Fields) -> Result<(), FieldError> {
    if !is_kept_item(item) {
        return Ok(());
    }
    let problem = "names what the provider keeps: send its content, with include = [\"reasoning.encrypted_content\"] of the answer before";
    Err(FieldError::invalid(param, problem))
}

fn is_kept_item(item: &Fields) -> bool {
    let says = |field: &str| {
        let value = item.get(field).unwrap_or(&Value::Null);
        !value.is_null() && value.as_str() != Some("")
    };
    match item.get("type").and_then(Value::as_str) {
        Some("item_reference") => true,
        // what the model thought comes along sealed; an id alone stands for what the provider keeps
        Some("reasoning" | "compaction") => {
            let sealed = item.get("encrypted_content").and_then(Value::as_str);
            sealed.is_none_or(|sealed| sealed.trim().is_empty())
        }
        // a search is said again without what it found
        Some("web_search_call") => false,
        // a reference need not say that it is one, and may say some odd word besides
        _ => says("id") && !CONTENTS.iter().any(|name| says(name)),
    }
}

struct Search<'a> {
    accepted: [&'a [String]; 2],
}

/// Where a value stands: its path, and the name of what it is in.
#[derive(Clone, Copy)]
struct ValuePath<'a> {
    path: &'a str,
    under: &'a str,
}

impl Search<'_> {
    fn field(&self, name: &str, value: &Value, place: ValuePath<'_>) -> Result<(), FieldError> {
        let folded = folded(name);
        if value.is_null() || THE_CLIENTS.contains(&folded.as_str()) {
            return Ok(());
        }
        let is_kept = KEPT.contains(&folded.as_str())
            || folded == "store" && *value != Value::Bool(false)
            || is_id_of_something(name, &folded)
            || folded == "id" && KEPT_BY_ID.contains(&place.under);
        if is_kept && !self.accepts(place.path) {
            return Err(FieldError::invalid(place.path, WHY));
        }
        self.value(
            value,
            ValuePath {
                under: &folded,
                ..place
            },
        )
    }

    fn value(&self, value: &Value, place: ValuePath<'_>) -> Result<(), FieldError> {
        match value {
            Value::Object(fields) => {
                if fields
                    .get("type")
                    .is_some_and(|kind| kind == "item_reference")
                {
                    return Err(FieldError::invalid(place.path, WHY));
                }
                let is_call = is_call(fields);
                let looked_into = |name: &str| !(is_call && name == "input");
                fields
                    .iter()
                    .filter(|(name, _)| looked_into(name))
                    .try_for_each(|(name, value)| {
                        let path = format!("{}.{}", place.path, shown(name));
                        self.field(
                            name,
                            value,
                            ValuePath {
                                path: &path,
                                ..place
                            },
                        )
                    })
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .filter(|(_, item)| item.is_object() || item.is_array())
                .try_for_each(|(n, item)| {
                    let path = format!("{}[{n}]", place.path);
                    self.value(
                        item,
                        ValuePath {
                            path: &path,
                            ..place
                        },
                    )
                }),
            _ => Ok(()),
        }
    }

    fn accepts(&self, path: &str) -> bool {
        let path = crate::allow::without_places(path);
        self.accepted
            .into_iter()
            .flatten()
            .any(|field| *field == path)
    }
}

/// Whether it is a call of a tool, whose input is the client's own: `tool_use`, `custom_tool_call`, or the
/// `custom` of a call.
fn is_call(fields: &Fields) -> bool {
    let kind = fields.get("type").and_then(Value::as_str);
    let calls = |kind: &str| kind.ends_with("tool_use") || kind.ends_with("tool_call");
    fields.contains_key("name") && (kind.is_some_and(calls) || !fields.contains_key("type"))
}

/// Whether a name ends in an id of something: `file_id`, `fileIds`, `FILE-ID`.
fn is_id_of_something(name: &str, folded: &str) -> bool {
    if OF_NOTHING_KEPT.contains(&folded)
        || folded.ends_with("tokenid")
        || folded.ends_with("tokenids")
    {
        return false;
    }
    let end = ["id", "ids"].iter().find_map(|end| {
        let at = name.len().checked_sub(end.len())?;
        let (before, last) = (name.get(..at)?, name.get(at..)?);
        last.eq_ignore_ascii_case(end).then_some((before, last))
    });
    let is_apart = end.is_some_and(|(before, last)| {
        let before_it = before.chars().next_back();
        let is_camel = last.starts_with('I') && before_it.is_some_and(char::is_lowercase);
        before_it.is_some_and(|c| !c.is_alphanumeric()) || is_camel
    });
    is_apart || IDS_IN_ONE_WORD.contains(&folded)
}

/// A name without case and separators.
fn folded(name: &str) -> String {
    fields::folded(name, NAME_CHARS_MAX)
}

fn shown(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::Fault;

    fn refused(body: &Value) -> Option<String> {
        let body = body.as_object().expect("a body is an object");
        let error = refuse_state(body, [&[], &[]]).err()?;
        assert_eq!(error.fault, Fault::Invalid);
        Some(error.param)
    }

    #[track_caller]
    fn check(body: &Value, param: &str) {
        assert_eq!(refused(body).as_deref(), Some(param), "{body}");
    }

    #[test]
    fn what_the_provider_keeps_is_refused_by_its_name() {
        for field in [
            "previous_response_id",
            "conversation",
            "thread",
            "container",
            "Thread",
            "assistant_id",
            "cachedContent",
        ] {
            check(&json!({ field: "x" }), field);
        }
        check(&json!({"store": true}), "store");
        check(&json!({"Store": "yes"}), "Store");
        check(&json!({"prompt": {"id": "p"}}), "prompt.id");
    }

    #[test]
    fn an_odd_word_beside_an_id_makes_no_content_of_a_reference() {
        let item = |item: Value| json!({"input": [item]});
        for kept in [
            json!({"id": "msg_x", "phase": "x"}),
            json!({"type": "image_generation_call", "id": "ig", "x": 1}),
            json!({"type": "code_interpreter_call", "id": "ci", "code": "x"}),
            json!({"type": "compaction", "id": "c", "encrypted_content": " "}),
            json!({"type": "reasoning", "id": "rs", "encrypted_content": " "}),
        ] {
            check(&item(kept), "input[0]");
        }
        check(
            &item(json!({"role": "user", "content": [{"type": "item_reference", "id": "m"}]})),
            "input[0].content[0]",
        );
        check(&json!({"input": "hi", "prompt": "pmpt_x"}), "prompt");
        check(&json!({"responses": [{"id": "r"}]}), "responses[0].id");
        check(
            &json!({"previous_response": {"id": "r"}}),
            "previous_response.id",
        );
        for whole in [
            json!({"type": "message", "id": "m", "role": "user", "content": "hi"}),
            json!({"type": "function_call", "id": "f", "call_id": "c", "name": "f", "arguments": "{}"}),
            json!({"type": "compaction", "id": "c", "encrypted_content": "x"}),
            json!({"type": "web_search_call", "id": "w"}),
        ] {
            assert_eq!(refused(&item(whole.clone())), None, "{whole}");
        }
        assert_eq!(refused(&json!({"prompt": "hi"})), None, "a completion");
    }

    #[test]
    fn what_the_provider_keeps_is_refused_wherever_it_stands() {
        let message =
            |message: Value| json!({"messages": [{"role": "user", "content": "hi"}, message]});
        let part = |part: Value| message(json!({"content": [part]}));
        check(
            &part(json!({"type": "file", "file": {"file_id": "f"}})),
            "messages[1].content[0].file.file_id",
        );
        check(
            &part(json!({"type": "image", "source": {"type": "file", "fileId": "f"}})),
            "messages[1].content[0].source.fileId",
        );
        check(
            &part(json!({"type": "tool_result", "content": [{"source": {"FILE_ID": "f"}}]})),
            "messages[1].content[0].content[0].source.FILE_ID",
        );
        check(
            &message(json!({"role": "assistant", "audio": {"id": "a"}})),
            "messages[1].audio.id",
        );
        check(
            &message(json!({"role": "assistant", "Audio": {"ID": "a"}})),
            "messages[1].Audio.ID",
        );
        check(
            &json!({"system": [{"type": "document", "source": {"file_id": "f"}}]}),
            "system[0].source.file_id",
        );
        check(
            &json!({"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}),
            "tools[0].vector_store_ids",
        );
        check(
            &json!({"tools": [{"type": "file_search", "vectorStoreIds": ["v"]}]}),
            "tools[0].vectorStoreIds",
        );
        check(
            &json!({"tools": [{"type": "code_interpreter", "container": "c"}]}),
            "tools[0].container",
        );
        check(
            &json!({"extra_body": {"google": {"cached_content": "cachedContents/1"}}}),
            "extra_body.google.cached_content",
        );
        check(&json!({"x": {"thread": "t"}}), "x.thread");
        check(
            &json!({"x": {"client_metadata": {"thread_id": "t"}}}),
            "x.client_metadata.thread_id",
        );
        check(&json!({"x": {"store": true}}), "x.store");
        check(&json!({"x": [{"assistant": "a"}]}), "x[0].assistant");
        check(&json!({"files": [{"id": "f"}]}), "files[0].id");
        check(&json!({"attachments": [{"id": "f"}]}), "attachments[0].id");
        check(
            &part(json!({"type": "file", "name": "x", "input": {"file_id": "f"}})),
            "messages[1].content[0].input.file_id",
        );
        check(
            &json!({"deep": [[{"mcp": {"connector-id": "c"}}]]}),
            "deep[0][0].mcp.connector-id",
        );
    }

    #[test]
    fn what_is_the_clients_own_is_not_looked_into() {
        let schema = json!({"type": "object", "properties": {"file_id": {"type": "string"}}});
        for body in [
            json!({"store": false, "previous_response_id": null, "thread": null}),
            json!({"user": "u", "metadata": {"user_id": "u", "conversation_id": "c", "file_id": "f"}}),
            json!({"client_metadata": {"thread_id": "t", "session_id": "s"}}),
            json!({"messages": [{"role": "assistant", "id": "m", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"file_id": 1}}}]}]}),
            json!({"messages": [{"role": "tool", "tool_call_id": "1", "content": "r"}]}),
            json!({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f", "input": {"file_id": 1}}}]}]}),
            json!({"input": [{"type": "custom_tool_call", "name": "f", "input": {"thread": "mine"}}]}),
            json!({"documents": [{"id": "mine", "text": "t"}]}),
            json!({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"file_id": "mine"}}]}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}]}]}),
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}),
            json!({"tools": [{"name": "f", "input_schema": schema, "input_examples": [{"file_id": "a"}]}]}),
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
            json!({"stop_token_ids": [1], "eos_token_id": 2, "logit_bias": {"50256": -100}}),
            json!({"grid": 1, "valid": true, "paid": 2, "android": {"void": 1}, "documents": [{"id": "d", "text": "t"}]}),
        ] {
            assert_eq!(refused(&body), None, "{body}");
        }
    }

    #[test]
    fn an_item_that_stands_for_a_kept_one_is_refused_in_whatever_spelling() {
        for item in [
            json!({"type": "item_reference", "id": "x"}),
            json!({"id": "x"}),
            json!({"id": "x", "type": null}),
            json!({"id": "x", "type": "", "content": null}),
            json!({"type": "message", "id": "x", "role": "assistant", "status": "completed"}),
            json!({"type": "image_generation_call", "id": "x"}),
            json!({"type": "reasoning", "id": "x"}),
            json!({"type": "reasoning", "id": "x", "summary": [], "encrypted_content": ""}),
        ] {
            check(&json!({"input": ["hi", item]}), "input[1]");
        }
        for item in [
            json!({"type": "message", "id": "x", "role": "assistant", "content": "hi"}),
            json!({"role": "user", "content": "hi"}),
            json!({"type": "reasoning", "id": "x", "encrypted_content": "e"}),
            json!({"type": "function_call", "id": "x", "name": "f", "arguments": "{}"}),
            json!({"type": "web_search_call", "id": "x", "status": "completed"}),
        ] {
            assert_eq!(refused(&json!({ "input": [item] })), None, "{item}");
        }
    }

    #[test]
    fn the_operator_may_accept_an_id_by_its_path() {
        let body = json!({"lora": [{"adapter_id": "a"}]});
        let body = body.as_object().unwrap();
        assert!(refuse_state(body, [&[], &[]]).is_err());
        assert!(refuse_state(body, [&["lora[].adapter_id".to_owned()], &[]]).is_ok());
    }
}
