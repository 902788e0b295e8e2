//! MessagePack with named fields, both ways, and the one error of reading it.

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use thiserror::Error;

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
}

/// Encodes with named fields. Our own types always encode: they hold no maps with odd keys.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    rmp_serde::encode::write_named(&mut bytes, value).expect("our own types encode to MessagePack");
    bytes
}

/// Decodes one value that fills `bytes` whole; unknown fields are skipped.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, WireError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    let shape = |detail: String| WireError::Shape { what, detail };
    let value = T::deserialize(&mut reader).map_err(|error| shape(error.to_string()))?;
    // with nothing left, not even the marker of a further value can be read
    match IgnoredAny::deserialize(&mut reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(shape("further bytes follow its end".to_owned())),
    }
}
