//! How an upstream's answer is shown to its client: as it came, or in another API.

use bytes::{Bytes, BytesMut};
use seatbelt_schemas::usage::Usage;
use serde_json::Value;

use crate::{
    api::Api,
    ask::Ask,
    dialect::Dialect,
    ends::{error_in, pass_error, says_error_itself},
    odd::Unread,
    sse::{SseEvent, write_event},
    told::Part,
    translate::{
        ChatStream, MessagesStream, ResponsesOverMessages, ResponsesStream, Translation,
        error_event, errors::translated, from_chat, from_messages, response_from_chat,
    },
};

/// How an upstream's answer is shown to the client.
#[derive(Debug)]
pub enum Face {
    /// As it is; the usage chunk hidden where it was asked for here and not by the client.
    Same {
        /// Whose errors its client knows.
        dialect: Dialect,
        /// Whether to hide it.
        hide_usage: bool,
        /// Of a stream of responses, how many events were passed: each has a number, from 0 on.
        numbered: Option<u64>,
    },
    /// As one of `/v1/messages`.
    Messages(MessagesStream),
    /// As one of `/v1/chat/completions`.
    Chat(ChatStream),
    /// As one of `/v1/responses`, made of a chat completion.
    Responses(Box<ResponsesStream>),
    /// As one of `/v1/responses`, made of a message.
    ResponsesOverMessages(Box<ResponsesOverMessages>),
}

impl Face {
    /// The face of an answer that is passed on.
    pub fn same(api: Api, ask: &Ask) -> Self {
        let hide_usage = api.has_to_be_asked() && ask.stream && !ask.include_usage;
        Self::Same {
            dialect: api.dialect(),
            hide_usage,
            numbered: (api == Api::Responses).then_some(0),
        }
    }

    /// A whole answer; nothing where it is none. `usage` is what it is known to have used, or is charged for.
    pub fn whole(&self, body: Bytes, usage: Option<Usage>) -> Option<Bytes> {
        match self {
            Self::Same { .. } => Some(body),
            Self::Messages(stream) => from_chat(&body, stream.shown(), usage),
            Self::Chat(stream) => from_messages(&body, stream.shown(), usage),
            Self::Responses(stream) => response_from_chat(&body, stream.shown(), usage),
            Self::ResponsesOverMessages(stream) => stream.whole(&body, usage),
        }
    }

    /// The dialect that answers are translated to; none where they are passed on.
    pub fn translates_to(&self) -> Option<Dialect> {
        match self {
            Self::Same { .. } => None,
            Self::Messages(_) => Some(Dialect::Anthropic),
            Self::Chat(_) | Self::Responses(_) | Self::ResponsesOverMessages(_) => {
                Some(Dialect::OpenAi)
            }
        }
    }

    /// An error of the upstream's own, under its status.
    pub fn error(&self, status: u16, body: Bytes) -> Bytes {
        match self.translates_to() {
            None => body,
            Some(dialect) => {
                let mut error = translated(dialect, Some(status), &body);
                if let Some(way) = self.way() {
                    name_fields(&mut error, way);
                }
                error.to_string().into()
            }
        }
    }

    /// The way that its answers take back.
    fn way(&self) -> Option<Translation> {
        match self {
            Self::Same { .. } => None,
            Self::Messages(_) => Some(Translation::MessagesToChat),
            Self::Chat(_) => Some(Translation::ChatToMessages),
            Self::Responses(_) => Some(Translation::ResponsesToChat),
            Self::ResponsesOverMessages(_) => Some(Translation::ResponsesToMessages),
        }
    }

    /// An event of a stream: writes to `out` what may be seen now, and to `end` what is held back: the
    /// mark of the end, and one usage chunk, which may be the last.
    pub fn event(
        &mut self,
        event: &SseEvent,
        part: Part,
        end: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<(), Unread> {
        match (self, part) {
            (Self::Same { .. }, Part::End) => end.extend_from_slice(&event.raw),
            (
                Self::Same {
                    hide_usage: true, ..
                },
                Part::UsageOnly,
            ) => {}
            (Self::Same { .. }, Part::UsageOnly) => {
                out.extend_from_slice(&end.split()); // an earlier one was not the last
                end.extend_from_slice(&event.raw);
            }
            (
                Self::Same {
                    numbered: Some(passed),
                    ..
                },
                Part::Error,
            ) => pass_error_of_responses(event, *passed, out),
            (Self::Same { dialect, .. }, Part::Error) => pass_error(*dialect, event, out),
            (
                Self::Same {
                    hide_usage,
                    numbered,
                    ..
                },
                Part::Content,
            ) => {
                // a comment is no event
                if let Some(passed) = numbered.as_mut().filter(|_| !event.data.is_empty()) {
                    *passed += 1;
                }
                pass(&event.raw, *hide_usage, out);
            }
            (_, Part::End) => {}
            (Self::Messages(_), Part::Error) => error_within(Dialect::Anthropic, event, out),
            (Self::Chat(_), Part::Error) => error_within(Dialect::OpenAi, event, out),
            (Self::Responses(stream), Part::Error) => stream.error(event, out),
            (Self::ResponsesOverMessages(stream), Part::Error) => stream.error(event, out),
            (Self::Messages(stream), _) => return stream.content(event, out),
            (Self::Chat(stream), _) => return stream.content(event, out),
            (Self::Responses(stream), _) => return stream.content(event, out),
            (Self::ResponsesOverMessages(stream), _) => return stream.content(event, out),
        }
        Ok(())
    }

    /// The normal end of a stream: what was held back, or what stands for it. `usage` is what it is known to
    /// have used, or is charged for.
    pub fn end(&mut self, usage: Option<Usage>, held: BytesMut) -> BytesMut {
        let mut last = held;
        match self {
            Self::Same { .. } => {}
            Self::Messages(stream) => stream.end(usage, &mut last),
            Self::Chat(stream) => stream.end(usage, &mut last),
            Self::Responses(stream) => stream.end(usage, &mut last),
            Self::ResponsesOverMessages(stream) => stream.end(usage, &mut last),
        }
        last
    }

    /// An error in its envelope, as the last event of a stream says it.
    pub fn failure(&mut self, envelope: Value) -> Value {
        match self {
            Self::Same {
                numbered: Some(passed),
                ..
            } => error_event(&envelope, *passed),
            Self::Same { .. } | Self::Messages(_) | Self::Chat(_) => envelope,
            Self::Responses(stream) => stream.failure(&envelope),
            Self::ResponsesOverMessages(stream) => stream.failure(&envelope),
        }
    }
}

/// Has an error name the field as its client wrote it, where it names one.
fn name_fields(error: &mut Value, way: Translation) {
    let Some(inner) = error.get_mut("error").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(told) = inner.get("param").and_then(Value::as_str) else {
        return;
    };
    let (told, client) = (told.to_owned(), way.named(told));
    if told == client {
        return;
    }
    if let Some(Value::String(message)) = inner.get_mut("message") {
        *message = message.replacen(&format!("'{told}'"), &format!("'{client}'"), 1);
    }
    inner.insert("param".to_owned(), Value::String(client));
}

/// Writes an error that came within a stream, in this dialect.
fn error_within(dialect: Dialect, event: &SseEvent, out: &mut BytesMut) {
    let error = translated(dialect, None, &event.data).to_string();
    write_event(out, Some("error"), error.as_bytes());
}

/// Passes an upstream's error on within a stream of responses: as it came where it is an event of that API.
fn pass_error_of_responses(event: &SseEvent, passed: u64, out: &mut BytesMut) {
    if says_error_itself(event) {
        return out.extend_from_slice(&event.raw);
    }
    let error = error_event(&error_in(Dialect::OpenAi, &event.data), passed);
    write_event(out, Some("error"), error.to_string().as_bytes());
}

/// Passes an event on; without the `usage: null` that only the gateway's own question brought.
fn pass(raw: &[u8], hide_usage: bool, out: &mut BytesMut) {
    let found = hide_usage
        .then(|| std::str::from_utf8(raw).ok())
        .flatten()
        .and_then(|text| {
            // quotes inside JSON strings are escaped, so this can only be the field itself
            [",\"usage\":null", ", \"usage\": null"]
                .into_iter()
                .find_map(|field| Some((text.find(field)?, field.len())))
        });
    match found {
        Some((at, len)) => {
            out.extend_from_slice(&raw[..at]);
            out.extend_from_slice(&raw[at + len..]);
        }
        None => out.extend_from_slice(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(raw: &str, hide_usage: bool) -> String {
        let mut out = BytesMut::new();
        pass(raw.as_bytes(), hide_usage, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn an_error_of_a_stream_of_responses_is_an_event_of_that_api() {
        let ask = Ask::default();
        let event = |data: &str| SseEvent {
            raw: format!("data: {data}\n\n").into(),
            name: None,
            data: data.to_owned().into(),
        };
        let after_two = |error: &str| {
            let mut face = Face::same(Api::Responses, &ask);
            let (mut end, mut out) = (BytesMut::new(), BytesMut::new());
            for data in [r#"{"type":"response.created"}"#, r#"{"type":"x"}"#] {
                let event = event(data);
                face.event(&event, Part::Content, &mut end, &mut out)
                    .unwrap();
            }
            out.clear();
            let event = event(error);
            face.event(&event, Part::Error, &mut end, &mut out).unwrap();
            (face, String::from_utf8(out.to_vec()).unwrap())
        };
        let own = r#"{"type":"error","code":"server_error","message":"no","param":null,"sequence_number":2}"#;
        let (mut face, passed) = after_two(own);
        assert_eq!(passed, format!("data: {own}\n\n"), "as it came");
        let broke = face
            .failure(serde_json::json!({"error": {"message": "broke", "type": "server_error"}}));
        assert_eq!(broke["type"], "error");
        assert_eq!(broke["sequence_number"], 2);
        assert_eq!(
            (&broke["message"], &broke["error"]["message"]),
            (&"broke".into(), &"broke".into())
        );
        let (_, told) = after_two(r#"{"error":{"message":"busy","code":"rate_limit_exceeded"}}"#);
        for said in [
            r#""type":"error""#,
            r#""sequence_number":2"#,
            r#""code":"rate_limit_exceeded""#,
            r#""message":"busy""#,
        ] {
            assert!(told.contains(said), "{told}");
        }
    }

    #[test]
    fn only_the_usage_null_that_was_asked_for_here_is_hidden() {
        let chunk = "data: {\"id\":1,\"choices\":[],\"usage\":null}\n\n";
        assert_eq!(passed(chunk, false), chunk);
        assert_eq!(passed(chunk, true), "data: {\"id\":1,\"choices\":[]}\n\n");
        let spaced = "data: {\"id\": 1, \"usage\": null, \"x\": 2}\n\n";
        assert_eq!(passed(spaced, true), "data: {\"id\": 1, \"x\": 2}\n\n");
        let quoted = r#"data: {"content":"say ,\"usage\":null"}"#;
        assert_eq!(passed(quoted, true), quoted);
    }
}
