//! How a request body is encoded, and its decoding within the bound of its size.

use std::io::Read;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::bufread::GzDecoder;

use super::shares::Share;
use crate::error::{ApiError, Case};

/// What is decoded at once.
const STEP_BYTES: usize = 64 * 1024;
/// Most members of one gzip: each costs the decoder more than its bytes do, and whoever has a reason for several has
/// few.
const MEMBERS_MAX: usize = 64;
/// Longest name of an encoding that is shown back.
const NAME_CHARS_MAX: usize = 40;

/// An encoding that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
}

impl Encoding {
    /// The encoding that a body is said to be in; an error that names any other.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let said = headers.get_all(header::CONTENT_ENCODING).iter();
        let said = said.map(|value| value.to_str().unwrap_or("?"));
        let mut named = said
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"));
        match (named.next(), named.next()) {
            (None, _) => Ok(Self::Identity),
            (Some(name), None)
                if ["gzip", "x-gzip"]
                    .iter()
                    .any(|gzip| name.eq_ignore_ascii_case(gzip)) =>
            {
                Ok(Self::Gzip)
            }
            (Some(name), other) => Err(not_taken(other.unwrap_or(name))),
        }
    }

    /// A body as it was before it was encoded, with room for it.
    pub(super) fn decoded(
        self,
        body: Bytes,
        bytes_max: usize,
        room: &mut Share,
    ) -> Result<Bytes, ApiError> {
        match self {
            Self::Identity => Ok(body),
            Self::Gzip => unzipped(&body, bytes_max, room),
        }
    }
}

fn not_taken(name: &str) -> ApiError {
    let name: String = name.chars().take(NAME_CHARS_MAX).collect();
    let message = format!(
        "request bodies encoded as '{name}' are not taken: send it without content-encoding, or as gzip alone"
    );
    ApiError::new(Case::EncodingNotTaken, message)
}

/// The members of a gzip one after another; each has a head and a tail of its own.
fn unzipped(body: &[u8], bytes_max: usize, room: &mut Share) -> Result<Bytes, ApiError> {
    let no_gzip = |error| ApiError::invalid_body(format_args!("it is no gzip: {error}"));
    let mut rest = body;
    let (mut decoded, mut roomed) = (Vec::new(), 0);
    for _ in 0..MEMBERS_MAX {
        let mut member = GzDecoder::new(rest);
        loop {
            let before = decoded.len();
            let step = u64::try_from(STEP_BYTES.min(bytes_max + 1 - before)).unwrap_or(u64::MAX);
            room.grow(before + STEP_BYTES - roomed)?;
            roomed = before + STEP_BYTES;
            let read = member.by_ref().take(step).read_to_end(&mut decoded);
            read.map_err(no_gzip)?;
            if decoded.len() > bytes_max {
                return Err(super::body::too_large(bytes_max));
            }
            if decoded.len() == before {
                break;
            }
        }
        rest = member.into_inner();
        if rest.is_empty() {
            return Ok(decoded.into());
        }
    }
    let problem = format_args!("it is a gzip of more than {MEMBERS_MAX} members: write one");
    Err(ApiError::invalid_body(problem))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use axum::http::HeaderValue;
    use flate2::{Compression, write::GzEncoder};

    use super::*;
    use crate::receive::shares::Shares;

    fn zipped(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(body: Vec<u8>, bytes_max: usize) -> Result<Bytes, ApiError> {
        let shares: Arc<Shares> = Shares::new("bytes", 1 << 20, 1 << 20);
        let mut room = shares.take(None, 0).unwrap();
        Encoding::Gzip.decoded(body.into(), bytes_max, &mut room)
    }

    #[test]
    fn an_encoding_is_taken_or_named() {
        let of = |values: &[&str]| {
            let values = values.iter().map(|value| {
                (
                    header::CONTENT_ENCODING,
                    HeaderValue::from_str(value).unwrap(),
                )
            });
            let mut headers = HeaderMap::new();
            values.for_each(|(name, value)| {
                headers.append(name, value);
            });
            Encoding::of(&headers)
        };
        assert_eq!(of(&[]).unwrap(), Encoding::Identity);
        assert_eq!(of(&["identity", ""]).unwrap(), Encoding::Identity);
        assert_eq!(of(&["GZIP"]).unwrap(), Encoding::Gzip);
        for odd in [
            &["zstd"][..],
            &["br"],
            &["gzip, br"],
            &["gzip", "gzip"],
            &["deflate"],
        ] {
            assert_eq!(of(odd).unwrap_err().code(), "encoding_not_taken", "{odd:?}");
        }
    }

    #[test]
    fn what_is_decoded_is_bounded() {
        let text = b"{\"a\":1}".repeat(1000);
        assert_eq!(decoded(zipped(&text), 7000).unwrap(), text);
        assert_eq!(
            decoded(zipped(&text), 6999).unwrap_err().code(),
            "request_too_large"
        );
        let bomb = zipped(&vec![b' '; 50 << 20]);
        assert!(bomb.len() < 100_000);
        assert_eq!(
            decoded(bomb.clone(), 1 << 16).unwrap_err().code(),
            "request_too_large"
        );
        let over = decoded(bomb, 100 << 20).unwrap_err();
        assert_eq!(
            over.code(),
            "service_unavailable",
            "more than all bodies may take"
        );
        let two = [zipped(b"{"), zipped(b"}")].concat();
        assert_eq!(decoded(two, 10).unwrap(), &b"{}"[..]);
        let members = |count: usize| zipped(b"").repeat(count);
        assert_eq!(decoded(members(MEMBERS_MAX), 10).unwrap(), &b""[..]);
        let many = decoded(members(MEMBERS_MAX + 1), 10).unwrap_err();
        assert_eq!(many.code(), "invalid_body");
        let garbage = [zipped(b"{}"), b"x".to_vec()].concat();
        assert!(decoded(garbage, 10).is_err());
        for odd in [b"".to_vec(), b"{}".to_vec(), zipped(&text)[..20].to_vec()] {
            assert!(
                decoded(odd.clone(), 7000).is_err_and(|error| error.code() == "invalid_body"),
                "{odd:?}"
            );
        }
    }
}
