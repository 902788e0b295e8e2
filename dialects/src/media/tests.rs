//! No rule makes less of an image than the family that it is of, and no header is read that another reader may
//! read otherwise.

use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::json;

use super::{header::*, *};

const PATCHES: ImageRule = ImageRule::Patches {
    per_million: 1_200_000,
};
const TILES: ImageRule = ImageRule::Tiles {
    base: 85,
    tile: 170,
};

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"\0\0\0\x04IDATabcd");
    bytes
}

fn jpeg(before: &[u8], width: u16, height: u16) -> Vec<u8> {
    let mut bytes = b"\xff\xd8".to_vec();
    bytes.extend(before);
    bytes.extend(b"\xff\xc0\0\x11\x08");
    bytes.extend(height.to_be_bytes());
    bytes.extend(width.to_be_bytes());
    bytes.extend([3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]);
    bytes.extend(b"\xff\xda\0\x02");
    bytes
}

fn wav(rate: u32, channels: u16, bits: u16, data: usize) -> Vec<u8> {
    let block = channels * bits / 8;
    let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0".to_vec();
    bytes.extend(channels.to_le_bytes());
    bytes.extend(rate.to_le_bytes());
    bytes.extend((rate * u32::from(block)).to_le_bytes());
    bytes.extend(block.to_le_bytes());
    bytes.extend(bits.to_le_bytes());
    bytes.extend(b"data\0\0\0\0");
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn size(bytes: &[u8]) -> Option<(u64, u64)> {
    image_size(&STANDARD.encode(bytes))
}

#[test]
fn a_size_is_read_of_headers_that_every_reader_takes_the_same_way() {
    assert_eq!(size(&png(640, 480)), Some((640, 480)));
    assert_eq!(size(&jpeg(b"", 640, 480)), Some((640, 480)));
    let tables = b"\xff\xe0\0\x04ab\xff\xdb\0\x03c";
    assert_eq!(size(&jpeg(tables, 640, 480)), Some((640, 480)));
    let canvas = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x7f\x02\0\xdf\x01\0";
    let frame = b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a\x80\x02\xe0\x41";
    let with_alpha = [&canvas[..], b"ALPH\x01\0\0\0aa", frame].concat();
    assert_eq!(size(&with_alpha), Some((640, 480)));
    let mut animated = canvas.to_vec();
    animated[20] = 2;
    let (animated, frame) = (
        animated,
        b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a\xb8\x0b\xb8\x0b",
    );
    assert_eq!(
        size(&[&animated[..], frame].concat()),
        None,
        "of some readers the frame"
    );
    let lossy = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a\x80\x02\xe0\x41";
    assert_eq!(size(lossy), Some((640, 480)));
    let lossless = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f\x7f\xc2\x77\0";
    assert_eq!(size(lossless), Some((640, 480)));
    let mut long = jpeg(b"", 640, 480);
    long.resize(1 << 20, 7);
    assert_eq!(
        size(&long),
        Some((640, 480)),
        "all behind the frame is left"
    );
}

#[test]
fn what_is_odd_has_no_size() {
    // fill bytes, another image within, a frame of a kind that is seldom, a frame too far behind
    let far: Vec<u8> = (0..2)
        .flat_map(|_| [&b"\xff\xe1\xff\xff"[..], &[0; 65_533]].concat())
        .collect();
    for before in [&b"\xff"[..], b"\xff\xd8", b"\xff\xda\0\x02", b"\0", &far] {
        assert_eq!(
            size(&jpeg(before, 1, 1)),
            None,
            "{:?}",
            &before[..before.len().min(4)]
        );
    }
    // two words on one size, of which readers take one or the other
    let mut twice = png(1, 1);
    twice.splice(
        33..33,
        b"\0\0\0\x0dIHDR\0\0\x0f\xa0\0\0\x0f\xa0\x08\x02\0\0\0abcd".to_vec(),
    );
    assert_eq!(size(&twice), None);
    let frame = b"\xff\xc0\0\x11\x08\x0f\xa0\x0f\xa0\x03\x01\x22\0\x02\x11\x01\x03\x11\x01";
    assert_eq!(size(&jpeg(frame, 1, 1)), None);
    let small = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let large = b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a\xb8\x0b\xb8\x0b";
    assert_eq!(size(&[&small[..], large].concat()), None);
    assert_eq!(size(small), None, "no frame at all");
    assert_eq!(size(&png(0, 480)), None);
    assert_eq!(size(&png(640, 480)[..20]), None);
    let mut moved = png(1, 1);
    moved[11] = 12;
    assert_eq!(size(&moved), None);
    assert_eq!(
        size(b"GIF89a\x01\0\x01\0"),
        None,
        "its frames may be larger"
    );
    assert_eq!(size(b""), None);
    assert_eq!(image_size("iVBOR w0KGgo="), None);
    assert_eq!(image_size("é"), None);
}

#[test]
fn a_sound_lasts_no_longer_than_is_said() {
    let of = |bytes: &[u8], format: &str| seconds(&STANDARD.encode(bytes), format);
    assert_eq!(of(&wav(16_000, 1, 16, 32_000 * 10), "wav"), Some(11));
    assert_eq!(of(&wav(8_000, 2, 8, 16_000), "wav"), Some(2));
    let mut slow = wav(16_000, 1, 16, 32_000);
    slow[28..32].copy_from_slice(&1_000_u32.to_le_bytes());
    assert_eq!(of(&slow, "wav"), Some(33), "of two words the slower");
    for (at, value) in [(20, 2), (22, 0), (24, 0), (34, 4), (16, 8)] {
        let mut odd = wav(200, 1, 16, 100);
        odd[24..26].copy_from_slice(&16_000_u16.to_le_bytes());
        odd[at] = value;
        if at == 24 {
            odd[25] = 0;
        }
        assert_eq!(of(&odd, "wav"), None, "{at}");
    }
    let tag = b"ID3\x04\0\0\0\0\x01\x02";
    let tagged = |sound: &[u8]| [&tag[..], &[0; 130], sound].concat();
    // 417 bytes each, and 24: half the rate, and the slowest
    let frames = |header: &[u8], length, count| {
        let mut frame = header.to_vec();
        frame.resize(length, 0);
        frame.repeat(count)
    };
    let sound = frames(b"\xff\xfb\x90\0", 417, 22);
    assert_eq!(of(&tagged(&sound), "mp3"), Some(10));
    let mut tagged_after = sound.clone();
    tagged_after.extend([&b"TAG"[..], &[0; 125]].concat());
    assert_eq!(of(&tagged_after, "mp3"), Some(10));
    assert_eq!(of(&sound[..9_000], "mp3"), Some(9), "the last is cut");
    assert_eq!(of(&tagged(b"fLaC"), "mp3"), None, "another sound");
    assert_eq!(of(&tagged(b""), "mp3"), None, "no sound");
    let own_rate = frames(b"\xff\xe3\x08\xc0", 16, 10);
    assert_eq!(of(&own_rate, "mp3"), None, "a rate of its own");
    for begun in [&b"\xff\xe3\x18"[..], &sound] {
        let hidden = [begun, &own_rate].concat();
        assert_eq!(of(&hidden, "mp3"), None, "behind what has one");
    }
    let slow = frames(b"\xff\xe3\x18\xc0", 72 * 8000 / 8000, 100);
    assert_eq!(of(&slow, "mp3"), Some(8));
    let mut twice = wav(16_000, 1, 16, 100);
    let other = wav(8_000, 1, 8, 0)[12..36].to_vec();
    twice.splice(36..36, other);
    assert_eq!(of(&twice, "wav"), None);
    assert_eq!(of(b"\xff\xfb\x90\0", "mp3"), Some(1));
    assert_eq!(of(b"OggS", "mp3"), None);
    assert_eq!(of(&wav(16_000, 1, 16, 100), "ogg"), None);
}

#[test]
fn parts_of_every_api_are_known() {
    let data = STANDARD.encode(png(640, 480));
    let url = format!("data:image/png;base64,{data}");
    let sizes = |part: serde_json::Value| match Medium::of(&part) {
        Some(Medium::Image(image)) => (image.size, image.is_low, image.is_inline),
        other => panic!("{other:?}"),
    };
    let known = Some((640, 480));
    let chat = json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}});
    assert_eq!(sizes(chat), (known, true, true));
    assert_eq!(
        sizes(json!({"type": "image_url", "image_url": url})),
        (known, false, true)
    );
    assert_eq!(
        sizes(json!({"type": "input_image", "image_url": url})),
        (known, false, true)
    );
    assert_eq!(
        sizes(json!({"type": "input_image", "file_id": "f"})),
        (None, false, false)
    );
    for odd in [
        format!("data:image/png,{data};base64,{data}"),
        format!("data:image/png;a=b;base64,{data}"),
        format!("data:video/mp4;base64,{data}"),
    ] {
        let part = json!({"type": "image_url", "image_url": {"url": odd}});
        assert_eq!(sizes(part), (None, false, true), "{odd}");
    }
    let source = json!({"type": "base64", "media_type": "image/png", "data": data});
    assert_eq!(
        sizes(json!({"type": "image", "source": source})),
        (known, false, true)
    );
    let source = json!({"type": "url", "url": "https://example.com"});
    assert_eq!(
        sizes(json!({"type": "image", "source": source})),
        (None, false, false)
    );
    assert_eq!(Medium::of(&json!({"type": "text", "text": url})), None);
}

fn tokens(rule: ImageRule, width: u64, height: u64, max_tokens: u64) -> u64 {
    let limit = ImageLimit {
        rule,
        max_tokens,
        pins_detail: false,
    };
    limit.tokens(&Image {
        size: Some((width, height)),
        is_low: false,
        is_inline: true,
        printed: 1_000_000,
    })
}

#[test]
fn the_examples_that_the_families_give_come_out() {
    assert_eq!(tokens(TILES, 1024, 1024, 1445), 765);
    assert_eq!(tokens(TILES, 2048, 4096, 1445), 1105);
    assert_eq!(tokens(PATCHES, 1024, 1024, 3000), 1229);
    assert_eq!(tokens(PATCHES, 4000, 3000, 3000), 3000);
    assert_eq!(tokens(ImageRule::Grid, 1092, 1092, 4784), 1590);
    assert_eq!(tokens(ImageRule::Fixed, 1, 1, 1120), 1120);
}

/// As OpenAI says that tiles are counted, with scaling up and without.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sizes of images are small"
)]
fn told(width: u64, height: u64, scales_up: bool) -> u64 {
    let (mut w, mut h) = (width as f64, height as f64);
    let fit = (2048.0 / w.max(h)).min(1.0);
    (w, h) = (w * fit, h * fit);
    let short = 768.0 / w.min(h);
    if scales_up || short < 1.0 {
        (w, h) = (w * short, h * short);
    }
    let cells = |side: f64| (side.round() / 512.0).ceil() as u64;
    cells(w).max(1) * cells(h).max(1)
}

proptest! {
    #[test]
    fn no_image_costs_more_than_is_said(width in 1_u64..9000, height in 1_u64..9000) {
        for scales_up in [false, true] {
            let tiles = told(width, height, scales_up).min(8);
            prop_assert!(tokens(TILES, width, height, 1445) >= 85 + 170 * tiles);
        }
        let patches = width.div_ceil(32) * height.div_ceil(32);
        prop_assert!(tokens(PATCHES, width, height, 3000) >= (patches.min(2500) * 12).div_ceil(10));
        let grid = width.div_ceil(28) * height.div_ceil(28);
        prop_assert!(tokens(ImageRule::Grid, width, height, 4784) >= grid.min(4784));
        prop_assert!(tokens(ImageRule::Grid, width, height, 1600) >= (width * height / 750).min(1600));
        prop_assert_eq!(tokens(ImageRule::Fixed, width, height, 1120), 1120);
    }

    #[test]
    fn no_bytes_make_a_header_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_usize..4) {
        let start: &[u8] = [&b"\xff\xd8"[..], b"RIFF\0\0\0\0WEBPVP8X", b"RIFF\0\0\0\0WAVEfmt ", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"][kind];
        let bytes = [start, &bytes].concat();
        let _ = size(&bytes);
        for format in ["wav", "mp3"] {
            let _ = seconds(&STANDARD.encode(&bytes), format);
        }
    }
}
