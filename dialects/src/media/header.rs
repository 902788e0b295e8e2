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
        "mp3" if is_mp3(&bytes) => MP3_BYTES_PER_SECOND,
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

fn png(bytes: &[u8]) -> Option<(u64, u64)> {
    bytes.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    Some((be(bytes, 16, 4)?, be(bytes, 20, 4)?))
}

/// Segments one behind the other, each of a kind that may come before a frame, then the frame.
fn jpeg(bytes: &[u8]) -> Option<(u64, u64)> {
    bytes.strip_prefix(b"\xff\xd8")?;
    let mut at = 2;
    loop {
        if *bytes.get(at)? != 0xff {
            return None;
        }
        match *bytes.get(at + 1)? {
            0xc0..=0xc2 => return Some((be(bytes, at + 7, 2)?, be(bytes, at + 5, 2)?)),
            // tables, what applications say, and comments
            0xc4 | 0xdb | 0xdd | 0xe0..=0xef | 0xfe => {
                let length = usize::try_from(be(bytes, at + 2, 2)?).ok()?;
                at += 2 + length.max(2);
            }
            _ => return None,
        }
    }
}

/// The canvas, where there is one; else the only frame.
fn webp(bytes: &[u8]) -> Option<(u64, u64)> {
    bytes.strip_prefix(b"RIFF")?;
    match (bytes.get(8..12)?, bytes.get(12..16)?) {
        (b"WEBP", b"VP8X") => Some((le(bytes, 24, 3)? + 1, le(bytes, 27, 3)? + 1)),
        (b"WEBP", b"VP8L") if *bytes.get(20)? == 0x2f => {
            let sizes = le(bytes, 21, 4)?;
            Some(((sizes & 0x3fff) + 1, (sizes >> 14 & 0x3fff) + 1))
        }
        (b"WEBP", b"VP8 ") if bytes.get(23..26)? == b"\x9d\x01\x2a" => {
            Some((le(bytes, 26, 2)? & 0x3fff, le(bytes, 28, 2)? & 0x3fff))
        }
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
    let is_pcm =
        matches!(format, 1 | 3) && channels > 0 && bits >= 8 && rate >= SAMPLES_PER_SECOND_MIN;
    let by_block = rate.checked_mul(block)?;
    let by_bits = rate.checked_mul(channels)?.checked_mul(bits / 8)?;
    let slowest = per_second.min(by_block).min(by_bits);
    (is_pcm && slowest > 0).then_some(slowest)
}

/// A tag, or the first frame of a layer III.
fn is_mp3(bytes: &[u8]) -> bool {
    let is_frame = bytes.len() >= 2 && bytes[0] == 0xff && bytes[1] & 0xe6 == 0xe2;
    bytes.starts_with(b"ID3") || is_frame
}
