//! What a metered request may say of images and sounds, where its model has limits for them.

use serde_json::{Value, json};

use super::has_a_length;
use crate::{
    allow::{
        Holds::{self, *},
        Shape,
    },
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

/// An address of an image: of what comes within it, such as every family reckons as one image. A video or a document of
/// many pages may cost any number of them.
pub(crate) const ADDRESS: Holds = Holds::Only(
    is_of_an_image,
    "it must be the address of an image, or have a png, jpeg, webp, gif, bmp, tiff, heic, heif or avif in it as 'data:image/...;base64,'",
);

/// The type of what comes inline.
pub(crate) const MEDIA_TYPE: Holds = Holds::Only(
    is_type_of_images,
    "it must be the type of an image: image/png, image/jpeg, image/webp or image/gif",
);

/// Types of single images.
const IMAGES: [&str; 10] = [
    "png", "jpeg", "jpg", "webp", "gif", "bmp", "tiff", "heic", "heif", "avif",
];

fn is_of_an_image(address: &Value) -> bool {
    let Some(address) = address.as_str() else {
        return false;
    };
    // readers pass over spaces before it, and take it in any case
    let address = address.trim_start_matches(|c: char| c.is_whitespace() || c.is_control());
    let is_inline = address
        .get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"));
    !is_inline || address[5..].split([';', ',']).next().is_some_and(is_image)
}

fn is_type_of_images(kind: &Value) -> bool {
    kind.as_str().is_some_and(is_image)
}

fn is_image(kind: &str) -> bool {
    let kind = kind.trim().to_ascii_lowercase();
    let kind = kind.strip_prefix("image/");
    kind.is_some_and(|kind| IMAGES.contains(&kind))
}

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
