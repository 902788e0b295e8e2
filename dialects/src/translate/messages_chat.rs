//! The Anthropic dialect over an upstream that speaks the OpenAI one: requests, answers, streams.
//!
//! Tools, images and thinking are translated too. A field that has no counterpart is refused by name; what is
//! let go because it changes nothing is listed in `docs/dialects.md`. Not here: calls to upstreams that speak
//! the Anthropic dialect themselves, which are passed through.

use serde_json::Value;

use crate::fields::Fields;

mod answer;
mod blocks;
mod request;
mod stream;
mod tools;

pub(crate) use answer::from_chat;
pub(super) use request::to_chat;
pub use stream::MessagesStream;

/// Stands where Anthropic's own models sign what they thought. A block that carries it was made here, of an
/// upstream's reasoning, and goes back as such.
const SIGNATURE: &str = "seatbelt";

/// Takes thoughts out that were signed here, for a model of Anthropic's own, which would refuse the signature.
/// A message of nothing else goes with them.
pub fn without_our_thoughts(body: &mut Fields) {
    let is_ours = |block: &Value| {
        block.get("type").is_some_and(|kind| kind == "thinking")
            && block
                .get("signature")
                .is_some_and(|signed| signed == SIGNATURE)
    };
    let Some(messages) = body.get_mut("messages").and_then(Value::as_array_mut) else {
        return;
    };
    messages.retain_mut(|message| {
        let Some(blocks) = message.get_mut("content").and_then(Value::as_array_mut) else {
            return true;
        };
        let before = blocks.len();
        blocks.retain(|block| !is_ours(block));
        before == blocks.len() || !blocks.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn thoughts_that_were_signed_here_stay_here() {
        let ours = json!({"type": "thinking", "thinking": "a", "signature": "seatbelt"});
        let theirs = json!({"type": "thinking", "thinking": "b", "signature": "EqQB"});
        let text = json!({"type": "text", "text": "c"});
        let said = |content: Value| json!({"role": "assistant", "content": content});
        let body = json!({"messages": [said(json!([ours, theirs, text])), said(json!([ours])), said(json!("d")), said(json!([]))]});
        let mut body = body.as_object().unwrap().clone();
        without_our_thoughts(&mut body);
        let left = json!([
            said(json!([theirs, text])),
            said(json!("d")),
            said(json!([]))
        ]);
        assert_eq!(body["messages"], left);
    }
}
