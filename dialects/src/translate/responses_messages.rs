//! `/v1/responses` over an upstream that speaks `/v1/messages`: through chat completions, both ways.

use bytes::{Bytes, BytesMut};
use seatbelt_schemas::usage::Usage;
use serde_json::{Value, json};

use super::{
    Shown,
    chat_messages::{ChatStream, from_messages, to_messages},
    names::{OF_RESPONSES, renamed},
    responses_chat::{self, ResponsesStream, to_chat},
};
use crate::{
    fields::{FieldError, Fields},
    odd::Unread,
    sse::{SseEvent, SseReader},
};

/// A body of `/v1/messages`, without its output maximum.
pub(super) fn request(body: &Fields) -> Result<Fields, FieldError> {
    to_messages(&to_chat(body)?).map_err(|error| {
        let param = renamed(OF_RESPONSES, &error.param);
        FieldError { param, ..error }
    })
}

/// Translates a stream, event by event.
#[derive(Debug)]
pub struct ResponsesOverMessages {
    chat: ChatStream,
    reader: SseReader,
    responses: ResponsesStream,
}

impl ResponsesOverMessages {
    pub(super) fn new(shown: Shown) -> Self {
        Self {
            chat: ChatStream::new(Shown {
                include_usage: false,
                ..shown.clone()
            }),
            reader: SseReader::default(),
            responses: ResponsesStream::new(shown),
        }
    }

    /// A whole answer; nothing where it is none.
    pub(crate) fn whole(&self, body: &[u8], usage: Option<Usage>) -> Option<Bytes> {
        let chat = from_messages(body, self.chat.shown(), usage)?;
        responses_chat::from_chat(&chat, self.responses.shown(), usage)
    }

    /// Writes what `event` comes to.
    pub(crate) fn content(&mut self, event: &SseEvent, out: &mut BytesMut) -> Result<(), Unread> {
        let mut chat = BytesMut::new();
        let read = self.chat.content(event, &mut chat);
        self.pass_on(&chat, out)?;
        read
    }

    fn pass_on(&mut self, chat: &[u8], out: &mut BytesMut) -> Result<(), Unread> {
        self.reader.push(chat);
        while let Some(event) = self.reader.next_event().map_err(|_| Unread)? {
            if event.data != b"[DONE]"[..] {
                self.responses.content(&event, out)?;
            }
        }
        Ok(())
    }

    /// Writes the normal end.
    pub(crate) fn end(&mut self, usage: Option<Usage>, out: &mut BytesMut) {
        let mut chat = BytesMut::new();
        self.chat.end(usage, &mut chat);
        match self.pass_on(&chat, out) {
            Ok(()) => self.responses.end(usage, out),
            Err(Unread) => {
                let message = "the answer is too large to be shown";
                let envelope = json!({"error": {"message": message, "type": "server_error"}});
                self.responses.failed(&envelope, out);
            }
        }
    }

    /// Writes an error that came within the stream.
    pub(crate) fn error(&mut self, event: &SseEvent, out: &mut BytesMut) {
        self.responses.error(event, out);
    }

    /// An error in its envelope as an event of this API.
    pub(crate) fn failure(&mut self, envelope: &Value) -> Value {
        self.responses.failure(envelope)
    }
}
