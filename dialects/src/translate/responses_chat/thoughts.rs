//! What a model thought that answered over a translation: shown to the client as items, which no provider keeps.

use serde_json::Value;

use crate::fields::Fields;

/// What an item is that was made here begins with; then what is unique of the answer, and its place.
pub(super) const PREFIX: &str = "rs";

/// Takes out of an input what was thought elsewhere: an upstream that speaks responses itself looks for such an item by
/// its id, and has none of it.
pub fn without_thoughts_of_others(body: &mut Fields) {
    if let Some(items) = body.get_mut("input").and_then(Value::as_array_mut)
        && items.iter().any(|item| !is_ours(item))
    {
        items.retain(|item| !is_ours(item));
    }
}

/// Whether an item is one of a translated answer: thoughts in plain words under an id as they are made here. A provider
/// seals them, or keeps them under an id of its own.
fn is_ours(item: &Value) -> bool {
    let said = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or("");
    let place = said("id")
        .strip_prefix(PREFIX)
        .and_then(|id| id.strip_prefix('_'))
        .and_then(|id| id.rsplit_once('_'));
    let is_placed = place.is_some_and(|(unique, place)| {
        !unique.is_empty() && !place.is_empty() && place.bytes().all(|byte| byte.is_ascii_digit())
    });
    let tells = item
        .get("content")
        .and_then(Value::as_array)
        .is_some_and(|parts| !parts.is_empty());
    said("type") == "reasoning" && said("encrypted_content").is_empty() && is_placed && tells
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn thoughts_that_were_told_over_a_translation_stay_here() {
        let part = json!([{"type": "reasoning_text", "text": "a"}]);
        let ours = json!({"type": "reasoning", "id": "rs_01ARZ3NDEKTSV4RRFFQ69G5FAV_0", "summary": [], "content": part});
        let mut sealed = ours.clone();
        sealed["encrypted_content"] = json!("x");
        let theirs =
            json!({"type": "reasoning", "id": "rs_68af4030592c81", "summary": [], "content": part});
        let mut bare = ours.clone();
        bare["content"] = json!([]);
        let said = json!({"role": "user", "content": "hi"});
        let body = json!({"input": [ours, sealed, theirs, bare, said]});
        let mut body = body.as_object().unwrap().clone();
        without_thoughts_of_others(&mut body);
        assert_eq!(body["input"], json!([sealed, theirs, bare, said]));
        let mut alone = json!({"input": [ours]}).as_object().unwrap().clone();
        without_thoughts_of_others(&mut alone);
        assert_eq!(alone["input"], json!([ours]), "an empty input is none");
    }
}
