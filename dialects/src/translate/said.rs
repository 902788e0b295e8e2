//! What a choice of chat completions says, whole or in pieces: thoughts, texts, refusals and calls.

use serde_json::value::RawValue;

use crate::{
    odd::Unread,
    raw::Pairs,
    translate::pieces::{Piece, each, piece, piece_of, within, word},
};

/// What a message says, or what is added to one.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) thought: Option<Piece>,
    pub(crate) text: Option<Piece>,
    pub(crate) refusal: Option<Piece>,
    pub(crate) calls: Vec<CallPiece>,
    /// Something beside it cannot be read: what it says stands all the same, and nothing after it.
    pub(crate) is_odd: bool,
}

/// A call of a tool, or what is added to one.
#[derive(Debug)]
pub(crate) struct CallPiece {
    pub(crate) index: Option<u64>,
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) arguments: Option<Piece>,
}

/// The first choice of an answer or a chunk: no other is ever asked for.
pub(crate) fn first_choice<'a>(body: &Pairs<'a>) -> Result<Option<Pairs<'a>>, Unread> {
    Ok(each(body, "choices")?.into_iter().next())
}

/// Where a choice says something: whole, in a piece, and whichever of them a server takes for the other.
const SAID_IN: [&str; 2] = ["message", "delta"];

/// What the message or the delta of a choice says.
pub(crate) fn said(choice: &Pairs<'_>, field: &str) -> Result<Said, Unread> {
    let named = |name: &str| choice.last(name).is_some();
    let other = SAID_IN.into_iter().find(|other| *other != field);
    let other = other.filter(|other| !named(field) && named(other));
    let message = within(choice, other.unwrap_or(field))?;
    let mut said = Said {
        thought: thought(&message),
        refusal: piece(&message, "refusal")?,
        ..Said::default()
    };
    match message.last("content") {
        Some(list) if list.get().starts_with('[') => parts(&message, &mut said)?,
        Some(text) => said.text = piece_of(text)?,
        // as completions of before chats have it
        None if message.is_empty() => said.text = piece(choice, "text")?,
        None => {}
    }
    match calls(&message) {
        Ok(calls) => said.calls = calls,
        Err(Unread) => said.is_odd = true,
    }
    Ok(said)
}

fn calls(message: &Pairs<'_>) -> Result<Vec<CallPiece>, Unread> {
    let mut calls = Vec::new();
    for call in each(message, "tool_calls")? {
        calls.push(call_piece(&call, &within(&call, "function")?)?);
    }
    let old = within(message, "function_call")?;
    if !old.is_empty() {
        calls.push(call_piece(&Pairs::default(), &old)?);
    }
    Ok(calls)
}

/// Servers name it in one of two ways. One that cannot be read is no answer, and spoils none.
fn thought(message: &Pairs<'_>) -> Option<Piece> {
    let named = |name| piece(message, name).ok().flatten();
    named("reasoning_content").or_else(|| named("reasoning"))
}

/// Content in parts, as one text.
fn parts(message: &Pairs<'_>, said: &mut Said) -> Result<(), Unread> {
    let (mut text, mut refusal, mut thought) = (String::new(), String::new(), String::new());
    for part in each(message, "content")? {
        let whole = |name| Ok(piece(&part, name)?.map_or_else(String::new, |piece| piece.whole()));
        text += &whole("text")?;
        refusal += &whole("refusal")?;
        match part.last("thinking") {
            Some(list) if list.get().starts_with('[') => {
                for inner in each(&part, "thinking")? {
                    thought += &word(&inner, "text").unwrap_or_default();
                }
            }
            _ => thought += &whole("thinking")?,
        }
    }
    let some = |text: String| Some(Piece::of(&text)).filter(|_| !text.is_empty());
    said.text = some(text);
    said.refusal = some(refusal).or(said.refusal.take());
    said.thought = said.thought.take().or(some(thought));
    Ok(())
}

fn call_piece(call: &Pairs<'_>, function: &Pairs<'_>) -> Result<CallPiece, Unread> {
    let is_object = |raw: &&RawValue| raw.get().starts_with('{');
    let arguments = match function.last("arguments").filter(is_object) {
        Some(object) => Some(Piece::of(object.get())), // some do not print it as a text
        None => piece(function, "arguments")?,
    };
    Ok(CallPiece {
        index: call.last("index").and_then(|raw| raw.get().parse().ok()),
        id: word(call, "id"),
        name: word(function, "name"),
        arguments,
    })
}

/// Why the output ended, and by which stop sequence, where the upstream names it.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    finish: Option<String>,
    stop: Option<String>,
}

impl Ending {
    /// Takes note of how a choice ended. A reason that is no word is a reason all the same.
    pub(crate) fn note(&mut self, choice: &Pairs<'_>) {
        if choice.last("finish_reason").is_some() {
            let finish = word(choice, "finish_reason");
            self.finish = Some(finish.unwrap_or_else(|| "unknown".to_owned()));
            let names = ["stop_reason", "matched_stop"];
            self.stop = names.iter().find_map(|name| word(choice, name));
        }
    }

    /// Why the output ended, in the upstream's word.
    pub(crate) fn finish(&self) -> Option<&str> {
        self.finish.as_deref()
    }

    /// Anthropic's `stop_reason` and `stop_sequence`. A call is to be carried out whatever an upstream
    /// says of the end, but where it was cut.
    pub(crate) fn shown(
        &self,
        stops: &[String],
        called: bool,
        refused: bool,
    ) -> (&'static str, Option<&str>) {
        let finish = self.finish.as_deref().unwrap_or("stop");
        let stop = self.stop.as_ref().filter(|stop| stops.contains(stop));
        match finish {
            _ if refused => ("refusal", None),
            "length" => ("max_tokens", None),
            "content_filter" => ("refusal", None),
            _ if called => ("tool_use", None),
            _ if stop.is_some() => ("stop_sequence", stop.map(String::as_str)),
            _ => ("end_turn", None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_choice_says_is_found_wherever_its_server_puts_it() {
        let text = |choice: &str, field| {
            let said = said(&Pairs::read(choice).unwrap(), field).unwrap();
            said.text.map(|piece| piece.whole())
        };
        for choice in [
            r#"{"delta":{"content":"hi"}}"#,
            r#"{"message":{"content":"hi"}}"#,
            r#"{"text":"hi"}"#,
            r#"{"delta":{},"text":"hi"}"#,
        ] {
            assert_eq!(text(choice, "delta").as_deref(), Some("hi"), "{choice}");
            assert_eq!(text(choice, "message").as_deref(), Some("hi"), "{choice}");
        }
        // as some end a stream: all that was said, once more
        let again = r#"{"delta":{},"message":{"content":"hi"}}"#;
        assert_eq!(text(again, "delta"), None);
    }
}
