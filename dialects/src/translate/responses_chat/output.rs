//! The output of a response as it comes to be: items in their order, and the events that tell of them.
//!
//! Several calls may be open at once, each at its own place. What is thought and what is said are open one at a
//! time. All of a stream is kept to its end, within a bound, since the last event says all of it again.

use bytes::BytesMut;
use serde_json::{Map, Value, json};

use super::{INPUT, KnownTools, thoughts};
use crate::{
    odd::Unread,
    sse::write_event,
    translate::{
        calls::Calls,
        pieces::{Joint, Piece, object, piece},
        said::{CallPiece, Said},
    },
};

/// Most bytes of a stream's output: the last event holds them all.
const STREAM_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Numbered events, kept until they are taken; none are written of an answer that is shown whole.
#[derive(Debug)]
pub(super) struct Events {
    next: u64,
    written: Option<BytesMut>,
}

impl Events {
    pub(super) fn emit(&mut self, kind: &str, said: &Value) {
        let Some(written) = &mut self.written else {
            return;
        };
        let mut event = Map::from_iter([
            ("type".to_owned(), json!(kind)),
            ("sequence_number".to_owned(), json!(self.next)),
        ]);
        event.extend(said.as_object().cloned().unwrap_or_default());
        write_event(
            written,
            Some(kind),
            Value::Object(event).to_string().as_bytes(),
        );
        self.next += 1;
    }

    /// The number of an event that somebody else writes.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn take(&mut self) -> BytesMut {
        self.written
            .as_mut()
            .map(BytesMut::split)
            .unwrap_or_default()
    }
}

/// A part of a message.
#[derive(Debug)]
struct Part {
    refuses: bool,
    text: String,
    joint: Joint,
}

impl Part {
    fn json(&self, text: &str) -> Value {
        match self.refuses {
            true => json!({"type": "refusal", "refusal": text}),
            false => {
                json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
            }
        }
    }
}

/// A call, as the client knows it.
#[derive(Debug)]
struct Call {
    is_custom: bool,
    call_id: String,
    /// The namespace of its function.
    space: Option<String>,
    name: String,
    arguments: String,
}

impl Call {
    fn json(&self) -> Value {
        let (id, name) = (&self.call_id, &self.name);
        if self.is_custom {
            let input = input_of(&self.arguments);
            return json!({"type": "custom_tool_call", "call_id": id, "name": name, "input": input});
        }
        let mut call = json!({"type": "function_call", "call_id": id, "name": name, "arguments": self.arguments});
        if let Some(space) = &self.space {
            call["namespace"] = json!(space);
        }
        call
    }
}

/// What an item is.
#[derive(Debug)]
enum Kind {
    Thought { text: String, joint: Joint },
    Message(Vec<Part>),
    Call(Call),
}

#[derive(Debug)]
struct Item {
    id: String,
    /// Once it is over.
    status: Option<&'static str>,
    kind: Kind,
}

impl Item {
    /// As it is now.
    fn json(&self) -> Value {
        let mut item = Map::from_iter([("id".to_owned(), json!(self.id))]);
        let said = match &self.kind {
            Kind::Thought { text, .. } => {
                let part = || json!({"type": "reasoning_text", "text": text});
                let content: Vec<Value> = self.status.map(|_| part()).into_iter().collect();
                json!({"type": "reasoning", "summary": [], "content": content})
            }
            Kind::Message(parts) => {
                let parts: Vec<Value> = parts.iter().map(|part| part.json(&part.text)).collect();
                json!({"type": "message", "role": "assistant", "content": parts})
            }
            Kind::Call(call) => call.json(),
        };
        item.extend(said.as_object().cloned().unwrap_or_default());
        item.insert(
            "status".to_owned(),
            json!(self.status.unwrap_or("in_progress")),
        );
        Value::Object(item)
    }
}

/// The text that a custom tool was called with. What a model wrote otherwise is taken as it is.
fn input_of(arguments: &str) -> String {
    let fields = object(arguments).ok().flatten();
    let only = fields.filter(|fields| fields.iter().count() == 1 && fields.last(INPUT).is_some());
    let text = only.and_then(|fields| piece(&fields, INPUT).ok());
    match text {
        Some(text) => text.map_or_else(String::new, |text| text.whole()),
        None => arguments.to_owned(),
    }
}

/// A call, as far as it stands in the output.
#[derive(Debug, Default)]
struct Called {
    item: Option<usize>,
    /// What came before its name.
    waiting: String,
}

/// The output of one answer.
#[derive(Debug)]
pub(super) struct Output {
    /// What is unique of the answer's id.
    id: String,
    /// Tools that are no plain functions to the client.
    tools: KnownTools,
    items: Vec<Item>,
    /// What is thought or said goes on there.
    open: Option<usize>,
    calls: Calls,
    called: Vec<Called>,
    bytes: usize,
    pub(super) events: Events,
}

impl Output {
    /// Of a stream, which tells of each piece; or of an answer that is whole.
    pub(super) fn new(id: &str, tools: &KnownTools, streams: bool) -> Self {
        Self {
            id: id.to_owned(),
            tools: tools.clone(),
            items: Vec::new(),
            open: None,
            calls: Calls::default(),
            called: Vec::new(),
            bytes: 0,
            events: Events {
                next: 0,
                written: streams.then(BytesMut::new),
            },
        }
    }

    /// All items, as they are now.
    pub(super) fn json(&self) -> Value {
        self.items.iter().map(Item::json).collect()
    }

    pub(super) fn any_nameless(&self) -> bool {
        self.calls.any_nameless()
    }

    /// Takes what a choice says, or what is added to it. What stands beside something odd stands all the same.
    pub(super) fn add(&mut self, said: Said) -> Result<(), Unread> {
        if let Some(piece) = said.thought {
            self.think(&piece)?;
        }
        if let Some(piece) = said.text {
            self.say(&piece, false)?;
        }
        if let Some(piece) = said.refusal {
            self.say(&piece, true)?;
        }
        if said.is_odd {
            return Err(Unread);
        }
        said.calls.into_iter().try_for_each(|call| self.call(call))
    }

    fn room(&mut self, text: &str) -> Result<(), Unread> {
        self.bytes = self.bytes.saturating_add(text.len());
        match self.events.written.is_some() && self.bytes > STREAM_BYTES_MAX {
            true => Err(Unread),
            false => Ok(()),
        }
    }

    fn think(&mut self, piece: &Piece) -> Result<(), Unread> {
        let is_thought = |item: &Item| matches!(item.kind, Kind::Thought { .. });
        let at = match self.open.filter(|at| is_thought(&self.items[*at])) {
            Some(at) => at,
            None => self.begin_thought(),
        };
        let Kind::Thought { text, joint } = &mut self.items[at].kind else {
            unreachable!("it is a thought, or was begun as one");
        };
        let more = joint.join(piece);
        text.push_str(&more);
        self.room(&more)?;
        self.tell_part(
            "response.reasoning_text.delta",
            at,
            0,
            json!({ "delta": more }),
        );
        Ok(())
    }

    fn begin_thought(&mut self) -> usize {
        self.close_open("completed");
        let kind = Kind::Thought {
            text: String::new(),
            joint: Joint::default(),
        };
        let at = self.push(thoughts::PREFIX, kind);
        self.open = Some(at);
        let part = json!({"type": "reasoning_text", "text": ""});
        self.tell_part(
            "response.content_part.added",
            at,
            0,
            json!({ "part": part }),
        );
        at
    }

    fn say(&mut self, piece: &Piece, refuses: bool) -> Result<(), Unread> {
        let is_message = |item: &Item| matches!(item.kind, Kind::Message(_));
        let at = match self.open.filter(|at| is_message(&self.items[*at])) {
            Some(at) => at,
            None => {
                self.close_open("completed");
                let at = self.push("msg", Kind::Message(Vec::new()));
                self.open = Some(at);
                at
            }
        };
        let part = self.part(at, refuses);
        let Kind::Message(parts) = &mut self.items[at].kind else {
            unreachable!("it is a message, or was begun as one");
        };
        let more = parts[part].joint.join(piece);
        parts[part].text.push_str(&more);
        self.room(&more)?;
        match refuses {
            true => self.tell_part("response.refusal.delta", at, part, json!({ "delta": more })),
            false => {
                let delta = json!({"delta": more, "logprobs": []});
                self.tell_part("response.output_text.delta", at, part, delta);
            }
        }
        Ok(())
    }

    /// The part of a message that is spoken into.
    fn part(&mut self, at: usize, refuses: bool) -> usize {
        let Kind::Message(parts) = &self.items[at].kind else {
            unreachable!("parts are those of a message");
        };
        let count = parts.len();
        if parts.last().is_some_and(|last| last.refuses == refuses) {
            return count - 1;
        }
        if count > 0 {
            self.close_part(at);
        }
        let part = Part {
            refuses,
            text: String::new(),
            joint: Joint::default(),
        };
        let empty = part.json("");
        if let Kind::Message(parts) = &mut self.items[at].kind {
            parts.push(part);
        }
        self.tell_part(
            "response.content_part.added",
            at,
            count,
            json!({ "part": empty }),
        );
        count
    }

    fn call(&mut self, piece: CallPiece) -> Result<(), Unread> {
        let (at, more) = match self.events.written {
            Some(_) => self.calls.add(piece)?,
            None => self.calls.add_whole(piece)?,
        };
        self.room(&more)?;
        if self.called.len() <= at {
            self.called.resize_with(at + 1, Called::default);
        }
        self.called[at].waiting.push_str(&more);
        if self.calls.get(at).name.is_empty() {
            return Ok(());
        }
        let item = match self.called[at].item {
            Some(item) => item,
            None => self.begin_call(at),
        };
        let more = std::mem::take(&mut self.called[at].waiting);
        self.pass_on(item, &more);
        Ok(())
    }

    fn begin_call(&mut self, at: usize) -> usize {
        self.close_open("completed");
        let call = self.calls.get(at);
        let name = call.name.clone();
        let call_id = match call.id.is_empty() {
            true => format!("call_{}_{at}", self.id),
            false => call.id.clone(),
        };
        let is_custom = self.tools.custom.contains(&name);
        let spaced = self.tools.spaced.iter().find(|(flat, _)| *flat == name);
        let (space, name) = match spaced {
            Some((_, [space, name])) if !is_custom => (Some(space.clone()), name.clone()),
            _ => (None, name),
        };
        let kind = Kind::Call(Call {
            is_custom,
            call_id,
            space,
            name,
            arguments: String::new(),
        });
        let prefix = if is_custom { "ctc" } else { "fc" };
        let item = self.push(prefix, kind);
        self.called[at].item = Some(item);
        item
    }

    /// The text of a custom tool is known once all of it came.
    fn pass_on(&mut self, at: usize, more: &str) {
        let Kind::Call(call) = &mut self.items[at].kind else {
            unreachable!("a call has the item of one");
        };
        call.arguments.push_str(more);
        if !call.is_custom && !more.is_empty() {
            let kind = "response.function_call_arguments.delta";
            self.tell(kind, at, json!({ "delta": more }));
        }
    }

    fn push(&mut self, prefix: &str, kind: Kind) -> usize {
        let at = self.items.len();
        let item = Item {
            id: format!("{prefix}_{}_{at}", self.id),
            status: None,
            kind,
        };
        let added = json!({"output_index": at, "item": item.json()});
        self.items.push(item);
        self.events.emit("response.output_item.added", &added);
        at
    }

    fn close_part(&mut self, at: usize) {
        let Kind::Message(parts) = &mut self.items[at].kind else {
            return;
        };
        let n = parts.len().saturating_sub(1);
        let Some(part) = parts.last_mut() else {
            return;
        };
        let rest = part.joint.rest();
        part.text.push_str(rest);
        let (text, whole, refuses) = (part.text.clone(), part.json(&part.text), part.refuses);
        match refuses {
            true => self.tell_part("response.refusal.done", at, n, json!({ "refusal": text })),
            false => {
                let done = json!({"text": text, "logprobs": []});
                self.tell_part("response.output_text.done", at, n, done);
            }
        }
        self.tell_part(
            "response.content_part.done",
            at,
            n,
            json!({ "part": whole }),
        );
    }

    fn close_open(&mut self, status: &'static str) {
        if let Some(at) = self.open.take() {
            self.close(at, status);
        }
    }

    fn close(&mut self, at: usize, status: &'static str) {
        match &mut self.items[at].kind {
            Kind::Thought { text, joint } => {
                text.push_str(joint.rest());
                let text = text.clone();
                let part = json!({"type": "reasoning_text", "text": text});
                self.tell_part(
                    "response.reasoning_text.done",
                    at,
                    0,
                    json!({ "text": text }),
                );
                self.tell_part("response.content_part.done", at, 0, json!({ "part": part }));
            }
            Kind::Message(_) => self.close_part(at),
            Kind::Call(call) if call.is_custom => {
                let input = input_of(&call.arguments);
                if !input.is_empty() {
                    let delta = json!({ "delta": input });
                    self.tell("response.custom_tool_call_input.delta", at, delta);
                }
                let done = json!({ "input": input });
                self.tell("response.custom_tool_call_input.done", at, done);
            }
            Kind::Call(Call {
                name, arguments, ..
            }) => {
                let done = json!({"name": name, "arguments": arguments});
                self.tell("response.function_call_arguments.done", at, done);
            }
        }
        self.items[at].status = Some(status);
        let done = json!({"output_index": at, "item": self.items[at].json()});
        self.events.emit("response.output_item.done", &done);
    }

    /// No piece follows: what is open was cut, or is complete.
    pub(super) fn finish(&mut self, status: &'static str) {
        self.close_open(status);
        for at in 0..self.called.len() {
            let rest = self.calls.rest(at);
            if let Some(item) = self.called[at].item {
                self.pass_on(item, rest);
                self.close(item, status);
            }
        }
    }

    fn tell(&mut self, kind: &str, at: usize, said: Value) {
        let mut event = Map::from_iter([
            ("item_id".to_owned(), json!(self.items[at].id)),
            ("output_index".to_owned(), json!(at)),
        ]);
        if let Value::Object(said) = said {
            event.extend(said);
        }
        self.events.emit(kind, &Value::Object(event));
    }

    fn tell_part(&mut self, kind: &str, at: usize, part: usize, mut said: Value) {
        said["content_index"] = json!(part);
        self.tell(kind, at, said);
    }
}
