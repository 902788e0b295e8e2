//! A stream of chat completions as one of `/v1/messages`, event by event.
//!
//! Blocks come one after the other, each with its start, deltas and stop. The deltas of several calls may be
//! mixed in chat completions, and a block that was closed cannot be gone on with: so one call is passed on
//! at once, and what comes beside it waits, within a bound, until the end.

use bytes::BytesMut;
use seatbelt_schemas::usage::Usage;
use serde_json::{Value, json};

use super::{
    SIGNATURE,
    answer::{call_id, usage_shown},
};
use crate::{
    odd::Unread,
    raw::Pairs,
    sse::{SseEvent, write_event},
    translate::{
        Shown,
        calls::Calls,
        pieces::{Joint, object},
        said::{CallPiece, Ending, first_choice, said},
    },
};

/// Most bytes that wait for the end of a call.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    /// Of the call in this place.
    Call(usize),
}

/// What waits for the end of a call that is passed on.
#[derive(Debug)]
struct Deferred {
    kind: Kind,
    text: String,
}

/// Translates a stream, event by event.
#[derive(Debug)]
pub struct MessagesStream {
    shown: Shown,
    begun: bool,
    /// The block that is passed on.
    open: Option<Kind>,
    /// Blocks that were begun.
    blocks: u64,
    thought: Joint,
    text: Joint,
    calls: Calls,
    waiting: Vec<Deferred>,
    waiting_bytes: usize,
    refused: bool,
    ending: Ending,
}

impl MessagesStream {
    pub(crate) fn new(shown: Shown) -> Self {
        Self {
            shown,
            begun: false,
            open: None,
            blocks: 0,
            thought: Joint::default(),
            text: Joint::default(),
            calls: Calls::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            refused: false,
            ending: Ending::default(),
        }
    }

    /// How the answer is shown.
    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Writes what `event` comes to.
    pub(crate) fn content(&mut self, event: &SseEvent, out: &mut BytesMut) -> Result<(), Unread> {
        let text = String::from_utf8_lossy(&event.data);
        let chunk: Pairs<'_> = object(&text)?.unwrap_or_default();
        let Some(choice) = first_choice(&chunk)? else {
            return Ok(());
        };
        let said = said(&choice, "delta")?;
        self.begin(out);
        if let Some(piece) = said.thought {
            let text = self.thought.join(&piece);
            self.put(Kind::Thinking, &text, out)?;
        }
        self.refused |= said.refusal.is_some();
        for piece in [said.text, said.refusal].into_iter().flatten() {
            let text = self.text.join(&piece);
            self.put(Kind::Text, &text, out)?;
        }
        if said.is_odd {
            return Err(Unread);
        }
        for piece in said.calls {
            self.call(piece, out)?;
        }
        self.ending.note(&choice);
        Ok(())
    }

    fn call(&mut self, piece: CallPiece, out: &mut BytesMut) -> Result<(), Unread> {
        let (at, text) = self.calls.add(piece)?;
        self.put(Kind::Call(at), &text, out)
    }

    /// Passes a piece on, or has it wait: behind an open call, or for the name of its own.
    fn put(&mut self, kind: Kind, text: &str, out: &mut BytesMut) -> Result<(), Unread> {
        if text.is_empty() && !matches!(kind, Kind::Call(_)) {
            return Ok(());
        }
        let behind = matches!(self.open, Some(Kind::Call(_))) && self.open != Some(kind);
        let nameless = matches!(kind, Kind::Call(at) if self.calls.get(at).name.is_empty());
        if behind || nameless {
            return self.wait(kind, text);
        }
        if self.open != Some(kind) {
            self.close(out);
            self.start(kind, out);
            let earlier = self.waiting.iter().position(|waiting| waiting.kind == kind);
            if let Some(at) = earlier {
                let earlier = self.waiting.remove(at).text;
                self.waiting_bytes -= earlier.len();
                self.delta(kind, &earlier, out);
            }
        }
        self.delta(kind, text, out);
        Ok(())
    }

    fn wait(&mut self, kind: Kind, text: &str) -> Result<(), Unread> {
        self.waiting_bytes += text.len();
        if self.waiting_bytes > WAITING_BYTES_MAX {
            return Err(Unread);
        }
        let last = self.waiting.len().checked_sub(1);
        let same = match kind {
            Kind::Call(_) => self.waiting.iter().position(|waiting| waiting.kind == kind),
            _ => last.filter(|last| self.waiting[*last].kind == kind),
        };
        match same {
            Some(at) => self.waiting[at].text.push_str(text),
            None => self.waiting.push(Deferred {
                kind,
                text: text.to_owned(),
            }),
        }
        Ok(())
    }

    fn begin(&mut self, out: &mut BytesMut) {
        if self.begun {
            return;
        }
        self.begun = true;
        let usage = Usage {
            input_tokens: self.shown.input_tokens,
            ..Usage::default()
        };
        let Shown { id, model, .. } = &self.shown;
        let message = json!({
            "id": id, "type": "message", "role": "assistant", "model": model,
            "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage_shown(usage),
        });
        emit(out, &json!({"type": "message_start", "message": message}));
    }

    fn start(&mut self, kind: Kind, out: &mut BytesMut) {
        let block = match kind {
            Kind::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Kind::Text => json!({"type": "text", "text": ""}),
            Kind::Call(at) => {
                let call = self.calls.get(at);
                let id = match call.id.is_empty() {
                    true => call_id(&self.shown, at),
                    false => call.id.clone(),
                };
                json!({"type": "tool_use", "id": id, "name": call.name, "input": {}})
            }
        };
        let index = self.blocks;
        emit(
            out,
            &json!({"type": "content_block_start", "index": index, "content_block": block}),
        );
        self.blocks += 1;
        self.open = Some(kind);
    }

    fn delta(&self, kind: Kind, text: &str, out: &mut BytesMut) {
        let delta = match kind {
            _ if text.is_empty() => return,
            Kind::Thinking => json!({"type": "thinking_delta", "thinking": text}),
            Kind::Text => json!({"type": "text_delta", "text": text}),
            Kind::Call(_) => json!({"type": "input_json_delta", "partial_json": text}),
        };
        self.emit_delta(&delta, out);
    }

    fn emit_delta(&self, delta: &Value, out: &mut BytesMut) {
        let index = self.blocks.saturating_sub(1);
        emit(
            out,
            &json!({"type": "content_block_delta", "index": index, "delta": delta}),
        );
    }

    fn close(&mut self, out: &mut BytesMut) {
        let Some(kind) = self.open.take() else {
            return;
        };
        let rest = match kind {
            Kind::Thinking => self.thought.rest(),
            Kind::Text => self.text.rest(),
            Kind::Call(at) => self.calls.rest(at),
        };
        self.delta(kind, rest, out);
        if kind == Kind::Thinking {
            let signed = json!({"type": "signature_delta", "signature": SIGNATURE});
            self.emit_delta(&signed, out);
        }
        let index = self.blocks.saturating_sub(1);
        emit(out, &json!({"type": "content_block_stop", "index": index}));
    }

    /// Writes the normal end.
    pub(crate) fn end(&mut self, usage: Option<Usage>, out: &mut BytesMut) {
        let usage = usage.unwrap_or_default(); // the dialect has no word for what is not known
        self.begin(out);
        self.close(out);
        if self.calls.any_nameless() {
            return emit(out, &nameless());
        }
        for waiting in std::mem::take(&mut self.waiting) {
            self.start(waiting.kind, out);
            self.delta(waiting.kind, &waiting.text, out);
            self.close(out);
        }
        if self.blocks == 0 {
            self.start(Kind::Text, out); // clients look for a first block
            self.close(out);
        }
        let called = !self.calls.is_empty();
        let (reason, sequence) = self.ending.shown(&self.shown.stops, called, self.refused);
        emit(
            out,
            &json!({
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": usage_shown(usage),
            }),
        );
        emit(out, &json!({"type": "message_stop"}));
    }
}

/// A call that nobody can carry out is no answer, though all else of it came.
fn nameless() -> Value {
    let message = "the upstream called a tool without its name";
    json!({"type": "error", "error": {"type": "api_error", "message": message}})
}

/// Writes an event that is named by its own type.
fn emit(out: &mut BytesMut, data: &Value) {
    let name = data.get("type").and_then(Value::as_str);
    write_event(out, name, data.to_string().as_bytes());
}
