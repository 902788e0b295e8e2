//! A stream of `/v1/messages` as one of chat completions, event by event.

use std::collections::BTreeMap;

use bytes::BytesMut;
use seatbelt_schemas::usage::Usage;
use serde_json::{Value, json};

use super::answer::{finish_reason, usage_shown};
use crate::{
    odd::Unread,
    raw::Pairs,
    sse::{SseEvent, write_event},
    translate::{
        Shown,
        pieces::{Joint, Piece, each, object, piece, within, word},
    },
};

/// Where a block stands that came with the beginning: at no place of one that follows.
const EARLY: u64 = u64::MAX;
/// Most blocks of one answer that are open at once.
const OPEN_MAX: usize = 256;

/// A block that was begun.
#[derive(Debug)]
enum Block {
    Text(Joint),
    Thinking(Joint),
    Call(Call),
    /// Nobody but the model can read it.
    Hidden,
}

/// A call of a tool.
#[derive(Debug)]
struct Call {
    /// Among the calls of the answer.
    place: u64,
    /// The input that came with its beginning, as it came: where no piece of one follows, it is all of it.
    input: String,
    in_pieces: bool,
    joint: Joint,
}

/// Translates a stream, event by event.
#[derive(Debug)]
pub struct ChatStream {
    shown: Shown,
    begun: bool,
    open: BTreeMap<u64, Block>,
    calls: u64,
    reason: Option<String>,
}

impl ChatStream {
    pub(crate) fn new(shown: Shown) -> Self {
        Self {
            shown,
            begun: false,
            open: BTreeMap::new(),
            calls: 0,
            reason: None,
        }
    }

    /// How the answer is shown.
    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Writes what `event` comes to.
    pub(crate) fn content(&mut self, event: &SseEvent, out: &mut BytesMut) -> Result<(), Unread> {
        let text = String::from_utf8_lossy(&event.data);
        let Some(said) = object(&text)? else {
            return Ok(());
        };
        let index = said.last("index");
        let index = index.and_then(|raw| raw.get().parse().ok()).unwrap_or(0);
        match word(&said, "type").as_deref() {
            Some("message_start") => {
                self.begin(out);
                // as some servers that write in one go
                for block in each(&within(&said, "message")?, "content")? {
                    self.start(EARLY, &block, out)?;
                    self.stop(EARLY, out);
                }
            }
            Some("content_block_start") => {
                self.start(index, &within(&said, "content_block")?, out)?;
            }
            Some("content_block_delta") => self.delta(index, &within(&said, "delta")?, out)?,
            Some("content_block_stop") => self.stop(index, out),
            Some("message_delta") => {
                let delta = within(&said, "delta")?;
                self.reason = word(&delta, "stop_reason").or(self.reason.take());
            }
            _ => {} // a ping, or something else that is no content
        }
        Ok(())
    }

    fn begin(&mut self, out: &mut BytesMut) {
        if !self.begun {
            self.begun = true;
            self.chunk(&json!({"role": "assistant", "content": ""}), None, out);
        }
    }

    fn start(&mut self, at: u64, block: &Pairs<'_>, out: &mut BytesMut) -> Result<(), Unread> {
        self.begin(out);
        let begun = match word(block, "type").as_deref() {
            Some("text") => Block::Text(Joint::default()),
            Some("thinking") => Block::Thinking(Joint::default()),
            Some("redacted_thinking") => Block::Hidden,
            Some("tool_use") => self.start_call(block, out)?,
            _ => return Err(Unread),
        };
        let early = match begun {
            Block::Text(_) => piece(block, "text")?,
            Block::Thinking(_) => piece(block, "thinking")?,
            Block::Call(_) | Block::Hidden => None,
        };
        self.insert(at, begun)?;
        early.map_or(Ok(()), |early| self.add(at, &early, out))
    }

    fn start_call(&mut self, block: &Pairs<'_>, out: &mut BytesMut) -> Result<Block, Unread> {
        let (Some(id), Some(name)) = (word(block, "id"), word(block, "name")) else {
            return Err(Unread);
        };
        let call = Call {
            place: self.calls,
            input: block
                .last("input")
                .map_or("{}", |input| input.get())
                .to_owned(),
            in_pieces: false,
            joint: Joint::default(),
        };
        self.calls += 1;
        let function = json!({"name": name, "arguments": ""});
        let begun =
            json!({"index": call.place, "id": id, "type": "function", "function": function});
        self.chunk(&json!({ "tool_calls": [begun] }), None, out);
        Ok(Block::Call(call))
    }

    fn delta(&mut self, at: u64, delta: &Pairs<'_>, out: &mut BytesMut) -> Result<(), Unread> {
        let (name, unbegun) = match word(delta, "type").as_deref() {
            Some("text_delta") => ("text", Some(Block::Text(Joint::default()))),
            Some("thinking_delta") => ("thinking", Some(Block::Thinking(Joint::default()))),
            Some("input_json_delta") => ("partial_json", None),
            // what is signed and cited has no place; whatever else there may be has nothing of these
            _ => return Ok(()),
        };
        let Some(piece) = piece(delta, name)? else {
            return Ok(());
        };
        if let Some(block) = unbegun.filter(|_| !self.open.contains_key(&at)) {
            self.begin(out);
            self.insert(at, block)?;
        }
        self.add(at, &piece, out)
    }

    fn insert(&mut self, at: u64, block: Block) -> Result<(), Unread> {
        if self.open.len() >= OPEN_MAX {
            return Err(Unread);
        }
        self.open.insert(at, block);
        Ok(())
    }

    /// Passes a piece of a block on. One of a call that was never begun has no place.
    fn add(&mut self, at: u64, piece: &Piece, out: &mut BytesMut) -> Result<(), Unread> {
        let delta = match self.open.get_mut(&at).ok_or(Unread)? {
            Block::Text(joint) => json!({"content": joint.join(piece)}),
            Block::Thinking(joint) => json!({"reasoning_content": joint.join(piece)}),
            Block::Call(call) => {
                call.in_pieces = true;
                arguments(call.place, &call.joint.join(piece))
            }
            Block::Hidden => return Ok(()),
        };
        self.chunk(&delta, None, out);
        Ok(())
    }

    fn stop(&mut self, at: u64, out: &mut BytesMut) {
        let (delta, is_empty) = match self.open.remove(&at) {
            None | Some(Block::Hidden) => return,
            Some(Block::Text(mut joint)) => {
                let rest = joint.rest();
                (json!({ "content": rest }), rest.is_empty())
            }
            Some(Block::Thinking(mut joint)) => {
                let rest = joint.rest();
                (json!({ "reasoning_content": rest }), rest.is_empty())
            }
            Some(Block::Call(mut call)) => {
                let rest = match call.in_pieces {
                    true => call.joint.rest(),
                    false => &call.input,
                };
                (arguments(call.place, rest), rest.is_empty())
            }
        };
        if !is_empty {
            self.chunk(&delta, None, out);
        }
    }

    /// Writes the normal end.
    pub(crate) fn end(&mut self, usage: Option<Usage>, out: &mut BytesMut) {
        self.begin(out);
        let open: Vec<u64> = self.open.keys().copied().collect();
        for at in open {
            self.stop(at, out);
        }
        let reason = finish_reason(self.reason.as_deref());
        self.chunk(&json!({}), Some(reason), out);
        if let Some(usage) = usage.filter(|_| self.shown.include_usage) {
            let mut last = self.frame();
            last["choices"] = json!([]);
            last["usage"] = usage_shown(usage);
            write_event(out, None, last.to_string().as_bytes());
        }
        write_event(out, None, b"[DONE]");
    }

    fn frame(&self) -> Value {
        json!({
            "id": self.shown.id,
            "object": "chat.completion.chunk",
            "created": self.shown.created_s,
            "model": self.shown.model,
        })
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>, out: &mut BytesMut) {
        let mut chunk = self.frame();
        chunk["choices"] =
            json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
        if self.shown.include_usage {
            chunk["usage"] = Value::Null;
        }
        write_event(out, None, chunk.to_string().as_bytes());
    }
}

fn arguments(place: u64, text: &str) -> Value {
    json!({"tool_calls": [{"index": place, "function": {"arguments": text}}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_the_beginning_is_shown() {
        let mut stream = ChatStream::new(Shown::default());
        let mut out = BytesMut::new();
        let start = json!({"type": "message_start", "message": {"content": [
            {"type": "text", "text": "hello"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        ]}});
        let event = |data: &Value| SseEvent {
            raw: bytes::Bytes::new(),
            name: None,
            data: data.to_string().into(),
        };
        stream.content(&event(&start), &mut out).unwrap();
        let next = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "!"}});
        stream.content(&event(&next), &mut out).unwrap();
        let text = String::from_utf8(out.to_vec()).unwrap();
        for said in ["hello", r#"{\"a\":1}"#, r#""content":"!""#] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
}
