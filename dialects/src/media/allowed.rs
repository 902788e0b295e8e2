//! What a metered request may say of images and sounds, where its model has limits for them.

use serde_json::{Value, json};

use super::has_a_length;
use crate::{
    allow::{Holds::*, Shape},
    fields::Fields,
};

/// A sound: one whose length can be told.
pub(crate) const AUDIO: Shape = &[
    ("type", Anything),
    (
        "input_audio",
        Only(
            is_bounded,
            "its length cannot be told: send WAV in PCM, or MP3, in base64",
        ),
    ),
];

fn is_bounded(audio: &Value) -> bool {
    let known = |name: &String| name == "data" || name == "format";
    let says_no_more = audio
        .as_object()
        .is_some_and(|fields| fields.keys().all(known));
    says_no_more && has_a_length(audio)
}

/// Has every image that is not to be looked at from afar be looked at as the most for one says.
pub(crate) fn pin_detail(body: &mut Fields) {
    for name in ["messages", "input"] {
        let items = body.get_mut(name).and_then(Value::as_array_mut);
        for item in items.into_iter().flatten() {
            for name in ["content", "output"] {
                let parts = item.get_mut(name).and_then(Value::as_array_mut);
                parts.into_iter().flatten().for_each(pin);
            }
        }
    }
}

fn pin(part: &mut Value) {
    let kind = part.get("type").and_then(Value::as_str);
    let image = match kind {
        Some("image_url") => part.get_mut("image_url"),
        Some("input_image") => Some(part),
        _ => None,
    };
    if let Some(image) = image.and_then(Value::as_object_mut)
        && image.get("detail").is_none_or(|detail| detail != "low")
    {
        image.insert("detail".to_owned(), json!("high"));
    }
}
