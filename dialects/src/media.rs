//! Images and sounds in a request: what can be known of their cost before anybody has looked at them.
//!
//! Width, height and length are read from the header of what comes inline, and only where every reader takes the
//! header the same way; of all else there is the cap of the model, or nothing. Base64 is never counted as text.
//! Not here: what a model charges, which is the operator's to say.

use serde_json::Value;

use crate::printed::json_bytes;

mod allowed;
mod header;
mod rule;

pub(crate) use allowed::{ADDRESS, AUDIO, MEDIA_TYPE, pin_detail};
pub use rule::{AudioLimit, ImageLimit, ImageRule, MediaLimits};

/// Something that is no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    Image(Image),
    Audio(Audio),
}

/// An image, as far as its cost depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    /// Width and height, where they are known.
    pub(crate) size: Option<(u64, u64)>,
    /// It is to be looked at from afar.
    pub(crate) is_low: bool,
    /// It comes within the request.
    pub(crate) is_inline: bool,
    /// Bytes of its part, as JSON.
    pub(crate) printed: u64,
}

/// A sound, as far as its cost depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Audio {
    /// No fewer than it lasts, where that is known.
    pub(crate) seconds: Option<u64>,
    /// Bytes of its part, as JSON.
    pub(crate) printed: u64,
}

impl Medium {
    /// What a part of a message is, if it is one of these.
    pub(crate) fn of(part: &Value) -> Option<Self> {
        let at = |pointer: &str| part.pointer(pointer).and_then(Value::as_str);
        let image = |url: Option<&str>, detail: Option<&str>| {
            let inline = url.and_then(|url| url.strip_prefix("data:"));
            Self::Image(Image {
                size: inline.and_then(inline_image).and_then(header::image_size),
                is_low: detail == Some("low"),
                is_inline: inline.is_some(),
                printed: json_bytes(part),
            })
        };
        match part.get("type")?.as_str()? {
            "image_url" => {
                let url = at("/image_url/url").or_else(|| at("/image_url"));
                Some(image(url, at("/image_url/detail")))
            }
            "input_image" => Some(image(at("/image_url"), at("/detail"))),
            "image" => {
                let data = at("/source/data").filter(|_| at("/source/type") == Some("base64"));
                Some(Self::Image(Image {
                    size: data.and_then(header::image_size),
                    is_low: false,
                    is_inline: data.is_some(),
                    printed: json_bytes(part),
                }))
            }
            "input_audio" => Some(Self::Audio(Audio {
                seconds: at("/input_audio/data")
                    .and_then(|data| header::seconds(data, at("/input_audio/format")?)),
                printed: json_bytes(part),
            })),
            _ => None,
        }
    }
}

/// The base64 of an address that has all of an image in it: `image/png;base64,...`. With more than one comma or another
/// word in it, readers differ on where it begins.
fn inline_image(inline: &str) -> Option<&str> {
    let (kind, data) = inline.split_once(',')?;
    let kind = kind.strip_suffix(";base64")?.strip_prefix("image/")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-');
    (!kind.is_empty() && kind.bytes().all(plain)).then_some(data)
}

/// Whether the length of a sound can be told.
pub(crate) fn has_a_length(audio: &Value) -> bool {
    let said = |name: &str| audio.get(name).and_then(Value::as_str);
    let seconds = said("data").zip(said("format"));
    seconds.is_some_and(|(data, format)| header::seconds(data, format).is_some())
}

#[cfg(test)]
mod tests;
