//! MessagePack with named fields, both ways, and the one error of reading it.
//!
//! rmp-serde says what the bytes are. The plain cases, which is all of an honest journal, take a
//! shorter way to the same bytes and the same values.

mod read;
mod unknown;
mod write;

use std::marker::PhantomData;

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, IgnoredAny},
};
use thiserror::Error;

pub use unknown::UnknownField;

/// Bytes that are not what they should be.
#[derive(Debug, Error)]
pub enum WireError {
    /// Not MessagePack of the expected shape.
    #[error("cannot read {what}: {detail}")]
    Shape {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A version that this code does not know.
    #[error("cannot read {what} of version {found}: this build knows version 1, use a newer one")]
    Version {
        /// What was being read.
        what: &'static str,
        /// The version found.
        found: u8,
    },
    /// A field that this code does not know, where leaving it out would be wrong.
    #[error("cannot read {what}: this build does not know its field `{field}`, use a newer one")]
    Unknown {
        /// What was being read.
        what: &'static str,
        /// Which field.
        field: UnknownField,
    },
}

/// Encodes with named fields. Our own types always encode: they hold no maps with odd keys.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    encode_into(value, &mut bytes);
    bytes
}

/// As [`encode`], behind what `bytes` holds already.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) {
    let begin = bytes.len();
    if value.serialize(&mut write::Writer(bytes)).is_err() {
        bytes.truncate(begin);
        rmp_serde::encode::write_named(bytes, value).expect("our own types encode to MessagePack");
    }
}

/// Decodes one value that fills `bytes` whole; unknown fields are skipped.
pub fn decode<'de, T: Deserialize<'de>>(
    what: &'static str,
    bytes: &'de [u8],
) -> Result<T, WireError> {
    let mut reader = read::Reader::new(bytes);
    if let Ok(value) = T::deserialize(&mut reader)
        && reader.is_done()
    {
        return Ok(value);
    }
    decode_any(what, bytes, PhantomData)
}

/// As [`decode`], and which field was skipped, if any was: the first that this build does not know. Costs
/// nothing where none was; of no use for types that skip fields on purpose.
pub fn decode_noting<'de, T: Deserialize<'de>>(
    what: &'static str,
    bytes: &'de [u8],
) -> Result<(T, Option<UnknownField>), WireError> {
    decode_seed_noting(what, bytes, PhantomData)
}

/// As [`decode_noting`], of what `seed` reads.
pub(crate) fn decode_seed_noting<'de, S: DeserializeSeed<'de> + Copy>(
    what: &'static str,
    bytes: &'de [u8],
    seed: S,
) -> Result<(S::Value, Option<UnknownField>), WireError> {
    let mut reader = read::Reader::new(bytes);
    if let Ok(value) = seed.deserialize(&mut reader)
        && reader.is_done()
    {
        let skipped = reader.skipped();
        return Ok((value, skipped.map(|left| UnknownField::of(bytes, left))));
    }
    let value = decode_any(what, bytes, seed)?;
    Ok((value, Some(UnknownField::untold())))
}

/// As [`decode`], but [`WireError::Unknown`] where there is a field that this build does not know.
pub fn decode_whole<'de, T: Deserialize<'de>>(
    what: &'static str,
    bytes: &'de [u8],
) -> Result<T, WireError> {
    match decode_noting(what, bytes)? {
        (value, None) => Ok(value),
        (_, Some(field)) => Err(WireError::Unknown { what, field }),
    }
}

/// Reads whatever rmp-serde reads, and says what is wrong with the rest.
#[cold]
fn decode_any<'de, S: DeserializeSeed<'de>>(
    what: &'static str,
    bytes: &'de [u8],
    seed: S,
) -> Result<S::Value, WireError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    let shape = |detail: String| WireError::Shape { what, detail };
    let value = seed
        .deserialize(&mut reader)
        .map_err(|error| shape(error.to_string()))?;
    // with nothing left, not even the marker of a further value can be read
    match IgnoredAny::deserialize(&mut reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(shape("further bytes follow its end".to_owned())),
    }
}
