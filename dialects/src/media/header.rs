//! Headers of images and sounds, read so strictly that no other reader sees something else in them.
//!
//! A reader that is lenient where others are not, or the other way, can be shown an image of one pixel where they
//! decode one of millions. So a JPEG has to come segment by segment up to its frame, a PNG with its header first,
//! and whatever is odd has no size here. At most [`HEADER_BYTES_MAX`] of each are looked at.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Most bytes of an image that are looked at.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// The slowest stream that an MP3 may be, bytes a second: 8 kbit/s.
const MP3_BYTES_PER_SECOND: u64 = 1000;
/// What a sound in PCM is sampled at, at least: less makes minutes of a few bytes, which nobody records.
const SAMPLES_PER_SECOND_MIN: u64 = 1000;

/// Width and height of an image in base64.
pub(super) fn image_size(base64: &str) -> Option<(u64, u64)> {
    let bytes = beginning(base64)?;
    let size = png(&bytes)
        .or_else(|| jpeg(&bytes))
        .or_else(|| webp(&bytes));
    size.filter(|(width, height)| *width > 0 && *height > 0)
}

/// No fewer seconds than a sound in base64 lasts.
pub(super) fn seconds(base64: &str, format: &str) -> Option<u64> {
    let bytes = beginning(base64)?;
    let length = (base64.len() as u64).div_ceil(4).saturating_mul(3);
    let per_second = match format {
        "wav" => wav_bytes_per_second(&bytes)?,
        "mp3" if is_mp3(base64) => MP3_BYTES_PER_SECOND,
        _ => return None,
    };
    Some(length.div_ceil(per_second))
}

/// The first bytes of what is base64 without anything between.
fn beginning(base64: &str) -> Option<Vec<u8>> {
    let most = HEADER_BYTES_MAX.div_ceil(3) * 4;
    let first = match base64.len() > most {
        true => base64.as_bytes().get(..most)?,
        false => base64.as_bytes(),
    };
    STANDARD.decode(first).ok()
}

fn be(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at + width)?;
    Some(
        field
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

fn le(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at + width)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

/// The header, said once before the pixels begin: some readers go by a second one.
fn png(bytes: &[u8]) -> Option<(u64, u64)> {
    bytes.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let mut at = 33;
    loop {
        match bytes.get(at + 4..at + 8)? {
            b"IDAT" => return Some((be(bytes, 16, 4)?, be(bytes, 20, 4)?)),
            b"IHDR" => return None,
            _ => at = at.checked_add(12 + usize::try_from(be(bytes, at, 4)?).ok()?)?,
        }
    }
}

/// Segments one behind the other, each of a kind that may come before the pixels, and one frame among them.
fn jpeg(bytes: &[u8]) -> Option<(u64, u64)> {
    bytes.strip_prefix(b"\xff\xd8")?;
    let (mut at, mut frame) = (2, None);
    loop {
        if *bytes.get(at)? != 0xff {
            return None;
        }
        match *bytes.get(at + 1)? {
            0xc0..=0xc2 if frame.is_none() => {
                frame = Some((be(bytes, at + 7, 2)?, be(bytes, at + 5, 2)?));
            }
            0xda => return frame,
            // tables, what applications say, and comments
            0xc4 | 0xdb | 0xdd | 0xe0..=0xef | 0xfe => {}
            _ => return None,
        }
        let length = usize::try_from(be(bytes, at + 2, 2)?).ok()?;
        at += 2 + length.max(2);
    }
}

/// The only frame. Where there is a canvas, the frame has to be as large.
fn webp(bytes: &[u8]) -> Option<(u64, u64)> {
    bytes.strip_prefix(b"RIFF")?;
    if bytes.get(8..16)? != b"WEBPVP8X" {
        return (bytes.get(8..12)? == b"WEBP")
            .then(|| webp_frame(bytes, 12))
            .flatten();
    }
    let canvas = (le(bytes, 24, 3)? + 1, le(bytes, 27, 3)? + 1);
    let is_animated = *bytes.get(20)? & 2 != 0;
    if is_animated {
        return None; // readers that know of no animation take whichever frame they find
    }
    let mut at = 30;
    loop {
        if matches!(bytes.get(at..at + 4)?, b"VP8 " | b"VP8L") {
            return webp_frame(bytes, at).filter(|frame| *frame == canvas);
        }
        let length = usize::try_from(le(bytes, at + 4, 4)?).ok()?;
        at = at
            .checked_add(8)?
            .checked_add(length)?
            .checked_add(length % 2)?;
    }
}

fn webp_frame(bytes: &[u8], at: usize) -> Option<(u64, u64)> {
    match bytes.get(at..at + 4)? {
        b"VP8L" if *bytes.get(at + 8)? == 0x2f => {
            let sizes = le(bytes, at + 9, 4)?;
            Some(((sizes & 0x3fff) + 1, (sizes >> 14 & 0x3fff) + 1))
        }
        b"VP8 " if bytes.get(at + 11..at + 14)? == b"\x9d\x01\x2a" => Some((
            le(bytes, at + 14, 2)? & 0x3fff,
            le(bytes, at + 16, 2)? & 0x3fff,
        )),
        _ => None,
    }
}

/// Of PCM alone, whose format comes first: compressed sound lasts longer than its bytes say. Of what the header
/// says in two ways the slower counts.
fn wav_bytes_per_second(bytes: &[u8]) -> Option<u64> {
    bytes.strip_prefix(b"RIFF")?;
    if bytes.get(8..16)? != b"WAVEfmt " || le(bytes, 16, 4)? < 16 {
        return None;
    }
    let (format, channels) = (le(bytes, 20, 2)?, le(bytes, 22, 2)?);
    let (rate, per_second) = (le(bytes, 24, 4)?, le(bytes, 28, 4)?);
    let (block, bits) = (le(bytes, 32, 2)?, le(bytes, 34, 2)?);
    if !has_one_format(bytes)? {
        return None;
    }
    let is_pcm =
        matches!(format, 1 | 3) && channels > 0 && bits >= 8 && rate >= SAMPLES_PER_SECOND_MIN;
    let by_block = rate.checked_mul(block)?;
    let by_bits = rate.checked_mul(channels)?.checked_mul(bits / 8)?;
    let slowest = per_second.min(by_block).min(by_bits);
    (is_pcm && slowest > 0).then_some(slowest)
}

/// Whether no other format stands before the data: some readers go by the last.
fn has_one_format(bytes: &[u8]) -> Option<bool> {
    let (mut at, mut formats) = (12_usize, 0);
    loop {
        match bytes.get(at..at + 4)? {
            b"data" => return Some(formats == 1),
            b"fmt " => formats += 1,
            _ => {}
        }
        let length = usize::try_from(le(bytes, at + 4, 4)?).ok()?;
        at = at
            .checked_add(8)?
            .checked_add(length)?
            .checked_add(length % 2)?;
    }
}

/// Frames of a layer III, one behind the other to the end, behind a tag where there is one: another sound may have
/// such a tag too. Each has a bitrate that its header names: one of a rate of its own may be slower than any, and
/// readers find it wherever it stands.
fn is_mp3(base64: &str) -> bool {
    let length = base64.trim_end_matches('=').len() * 3 / 4;
    let mut at = match bytes_at(base64, 0) {
        Some([b'I', b'D', b'3', _]) => match tag_length(base64) {
            Some(length) => length,
            None => return false,
        },
        _ => 0,
    };
    let mut frames = 0_usize;
    while at < length {
        let is_cut = length - at < 4;
        let Some(header) = bytes_at(base64, at) else {
            return is_cut && frames > 0;
        };
        if header.starts_with(b"TAG") && length - at == 128 {
            break; // what older writers put at the end
        }
        let Some(frame) = mp3_frame(header) else {
            return false;
        };
        at += frame;
        frames += 1;
    }
    frames > 0
}

fn tag_length(base64: &str) -> Option<usize> {
    let size = [bytes_at(base64, 6)?, bytes_at(base64, 8)?];
    let size = [size[0][0], size[0][1], size[1][0], size[1][1]];
    let seven = |sum: usize, byte: &u8| sum << 7 | usize::from(byte & 0x7f);
    Some(10 + size.iter().fold(0, seven))
}

/// Four bytes in the middle of what is base64.
fn bytes_at(base64: &str, at: usize) -> Option<[u8; 4]> {
    let from = at / 3 * 4;
    let text = base64.as_bytes();
    let text = text.get(from..text.len().min(from + 8))?;
    let mut decoded = [0; 6];
    let length = STANDARD.decode_slice(text, &mut decoded).ok()?;
    let bytes = decoded.get(at % 3..length)?;
    bytes.get(..4)?.try_into().ok()
}

/// The length of the frame that such a header begins.
fn mp3_frame([sync, kind, rates, _]: [u8; 4]) -> Option<usize> {
    const KBITS: [[usize; 14]; 2] = [
        [
            32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
        ],
        [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
    ];
    const HERTZ: [usize; 3] = [44_100, 48_000, 32_000];
    if sync != 0xff || kind & 0xe6 != 0xe2 {
        return None;
    }
    // the versions that are of half the rate, and of a quarter
    let (table, slower, slots) = match kind >> 3 & 3 {
        0 => (1, 4, 72),
        2 => (1, 2, 72),
        3 => (0, 1, 144),
        _ => return None,
    };
    let kbits = KBITS[table].get(usize::from(rates >> 4).checked_sub(1)?)?;
    let hertz = HERTZ.get(usize::from(rates >> 2 & 3))? / slower;
    let padding = usize::from(rates >> 1 & 1);
    Some(slots * kbits * 1000 / hertz + padding)
}
