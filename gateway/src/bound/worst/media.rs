//! Images and sounds among the random bodies, and what the worst provider bills for them by a model's rule.

use seatbelt_dialects::{AudioLimit, ImageLimit, ImageRule, MediaLimits};

use super::*;

/// What the operator states.
pub(super) const LIMITS: MediaLimits = MediaLimits {
    image: Some(ImageLimit {
        rule: ImageRule::Patches {
            per_million: 1_200_000,
        },
        max_tokens: MOST,
        pins_detail: true,
    }),
    audio: Some(AudioLimit {
        tokens_per_second: PER_SECOND,
    }),
};
const MOST: u64 = 3000;
const PER_SECOND: u64 = 32;

/// PNG images up to where their pixels begin, with width and height.
const IMAGES: &[(&str, u64, u64)] = &[
    (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAAAAAAAAAAAAAElEQVQA",
        1,
        1,
    ),
    (
        "iVBORw0KGgoAAAANSUhEUgAAAoAAAAHgCAIAAAAAAAAAAAAAAElEQVQA",
        640,
        480,
    ),
    (
        "iVBORw0KGgoAAAANSUhEUgAAD6AAAAu4CAIAAAAAAAAAAAAAAElEQVQA",
        4000,
        3000,
    ),
    (
        "iVBORw0KGgoAAAANSUhEUgAAACEAAAfQCAIAAAAAAAAAAAAAAElEQVQA",
        33,
        2000,
    ),
];
/// No longer than a second.
const SOUND: &str = "UklGRgAAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn address() -> BoxedStrategy<String> {
    let inline = select(IMAGES).prop_map(|(data, ..)| format!("data:image/png;base64,{data}"));
    let odd = "[a-zA-Z0-9+/=]{0,30}".prop_map(|data| format!("data:image/png;base64,{data}"));
    let elsewhere = "[a-z]{0,30}".prop_map(|path| format!("https://example.com/{path}"));
    prop_oneof![3 => inline, 1 => odd, 1 => elsewhere].boxed()
}

fn detail() -> BoxedStrategy<Option<Value>> {
    let words = select(&["low", "high", "auto", "original"][..]).prop_map(|word| Some(json!(word)));
    prop_oneof![2 => Just(None), 2 => words, 1 => scalar().prop_map(Some)].boxed()
}

/// An image or a sound as one of the APIs writes it.
pub(super) fn medium() -> BoxedStrategy<Value> {
    let chat = (address(), detail()).prop_map(|(url, detail)| {
        let mut image = json!({ "url": url });
        image
            .as_object_mut()
            .unwrap()
            .extend(detail.map(|detail| ("detail".to_owned(), detail)));
        json!({"type": "image_url", "image_url": image})
    });
    let responses = (address(), detail()).prop_map(|(url, detail)| {
        let mut part = json!({"type": "input_image", "image_url": url});
        part.as_object_mut()
            .unwrap()
            .extend(detail.map(|detail| ("detail".to_owned(), detail)));
        part
    });
    let messages = address().prop_map(|url| {
        let source = match url.split_once(";base64,") {
            Some((_, data)) => json!({"type": "base64", "media_type": "image/png", "data": data}),
            None => json!({"type": "url", "url": url}),
        };
        json!({"type": "image", "source": source})
    });
    let sound = prop_oneof![Just(SOUND.to_owned()), "[a-zA-Z]{0,12}"].prop_map(
        |data| json!({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}),
    );
    prop_oneof![3 => chat, 3 => responses, 3 => messages, 1 => sound].boxed()
}

/// What a part costs that is one of these and nothing else. One without its image may be any.
pub(super) fn billed(part: &Fields) -> Option<u64> {
    let kind = part.get("type")?.as_str()?;
    let known: &[&str] = match kind {
        "image_url" => &["type", "image_url"],
        "input_image" => &["type", "image_url", "detail"],
        "image" => &["type", "source"],
        "input_audio" => &["type", "input_audio"],
        _ => return None,
    };
    let is_only = |fields: &Fields, known: &[&str]| {
        let mut said = fields.iter().filter(|(_, value)| !value.is_null());
        said.all(|(name, _)| known.contains(&name.as_str()))
    };
    let within = |name: &str| part.get(name).and_then(Value::as_object);
    let is_image = |image: &Fields| is_pinned(image.get("detail"));
    match kind {
        _ if !is_only(part, known) => None,
        "image_url" => within("image_url").map_or(Some(MOST), |image| {
            let known = is_only(image, &["url", "detail"]) && is_image(image);
            known.then(|| of_address(image.get("url")))
        }),
        "input_image" => is_image(part).then(|| of_address(part.get("image_url"))),
        "image" => within("source").map_or(Some(MOST), |source| {
            let data = source.get("data").and_then(Value::as_str);
            Some(data.map_or_else(|| of_address(source.get("url")), of_data))
        }),
        _ => {
            let sound = within("input_audio")?;
            (sound.get("data")? == SOUND).then_some(PER_SECOND)
        }
    }
}

/// The most is known for these alone.
fn is_pinned(detail: Option<&Value>) -> bool {
    detail.is_some_and(|detail| detail == "high" || detail == "low")
}

/// An address may be printed besides.
fn of_address(url: Option<&Value>) -> u64 {
    let url = url.and_then(Value::as_str).unwrap_or("");
    match url.split_once(";base64,") {
        Some((_, data)) => of_data(data),
        None => MOST + url.len() as u64,
    }
}

fn of_data(data: &str) -> u64 {
    let known = IMAGES.iter().find(|(known, ..)| *known == data);
    known.map_or(MOST, |(_, width, height)| {
        let patches = width.div_ceil(32) * height.div_ceil(32);
        (patches * 12).div_ceil(10).min(MOST)
    })
}

#[test]
fn enough_images_are_let_through() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let through = (0..2000).filter(|_| {
        let body = body().new_tree(&mut runner).unwrap().current();
        let chat = let_through(Api::Chat, Profile::OpenAi, body.clone());
        let sent = chat.or_else(|| let_through(Api::Messages, Profile::Anthropic, body));
        sent.is_some_and(|(_, sent)| {
            let sent = Value::Object(sent).to_string();
            sent.contains("\"image_url\"") || sent.contains("\"image\"")
        })
    });
    let through = through.count();
    assert!(through >= 50, "{through}");
}
