//! A stream of chat completions as one of responses, event by event.

use bytes::BytesMut;
use seatbelt_schemas::usage::Usage;
use serde_json::{Value, json};

use super::{
    answer::{State, response},
    output::Output,
};
use crate::{
    dialect::Dialect,
    odd::Unread,
    raw::Pairs,
    sse::{SseEvent, write_event},
    translate::{
        Shown,
        errors::translated,
        pieces::object,
        said::{Ending, first_choice, said},
    },
};

/// Translates a stream, event by event.
#[derive(Debug)]
pub struct ResponsesStream {
    shown: Shown,
    begun: bool,
    output: Output,
    ending: Ending,
}

impl ResponsesStream {
    pub(crate) fn new(shown: Shown) -> Self {
        Self {
            output: Output::new(&shown.unique, &shown.echo.tools, true),
            shown,
            begun: false,
            ending: Ending::default(),
        }
    }

    /// How the answer is shown.
    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Writes what `event` comes to.
    pub(crate) fn content(&mut self, event: &SseEvent, out: &mut BytesMut) -> Result<(), Unread> {
        let read = self.take(event);
        out.extend_from_slice(&self.output.events.take());
        read
    }

    fn take(&mut self, event: &SseEvent) -> Result<(), Unread> {
        let text = String::from_utf8_lossy(&event.data);
        let chunk: Pairs<'_> = object(&text)?.unwrap_or_default();
        let Some(choice) = first_choice(&chunk)? else {
            return Ok(());
        };
        let said = said(&choice, "delta")?;
        self.begin();
        self.output.add(said)?;
        self.ending.note(&choice);
        Ok(())
    }

    fn begin(&mut self) {
        if self.begun {
            return;
        }
        self.begun = true;
        for kind in ["response.created", "response.in_progress"] {
            let response = response(&self.shown, State::InProgress, &json!([]), None);
            self.output
                .events
                .emit(kind, &json!({ "response": response }));
        }
    }

    /// Writes the normal end.
    pub(crate) fn end(&mut self, usage: Option<Usage>, out: &mut BytesMut) {
        self.begin();
        if self.output.any_nameless() {
            out.extend_from_slice(&self.output.events.take());
            let message = "the upstream called a tool without its name";
            let envelope = json!({"error": {"message": message, "type": "server_error"}});
            return self.failed(&envelope, out);
        }
        let state = State::of(&self.ending);
        self.output.finish(state.as_str());
        let response = response(&self.shown, state, &self.output.json(), usage);
        let kind = format!("response.{}", state.as_str());
        self.output
            .events
            .emit(&kind, &json!({ "response": response }));
        out.extend_from_slice(&self.output.events.take());
    }

    /// Writes an error that came within the stream.
    pub(crate) fn error(&mut self, event: &SseEvent, out: &mut BytesMut) {
        let envelope = translated(Dialect::OpenAi, None, &event.data);
        self.failed(&envelope, out);
    }

    /// Writes an error as the last event.
    pub(crate) fn failed(&mut self, envelope: &Value, out: &mut BytesMut) {
        let error = self.failure(envelope);
        write_event(out, Some("error"), error.to_string().as_bytes());
    }

    /// An error in its envelope as an event of this API.
    pub(crate) fn failure(&mut self, envelope: &Value) -> Value {
        error_event(envelope, self.output.events.number())
    }
}

/// An error in its envelope as an event of responses: clients look for it there, or in the envelope.
pub(crate) fn error_event(envelope: &Value, number: u64) -> Value {
    let error = envelope.get("error").cloned().unwrap_or_default();
    let said = |name: &str| error.get(name).filter(|said| !said.is_null());
    let code = said("code").or_else(|| said("type"));
    let code = code.map(|code| {
        code.as_str()
            .map_or_else(|| code.to_string(), str::to_owned)
    });
    json!({
        "type": "error",
        "sequence_number": number,
        "code": code,
        "message": said("message"),
        "param": said("param"),
        "error": error,
    })
}
