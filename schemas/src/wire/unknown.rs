//! A field that was skipped because this build does not know it: who decides by what was read must not go on
//! without it.
//!
//! The reader notes how many bytes were left when it skipped one. What stands there, and so what the field is
//! called, is only looked for once one was skipped.

use std::fmt;

use super::read::Reader;

/// A field that this build does not know, by the names on the way to it: `data.within`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField(Box<str>);

impl UnknownField {
    /// The field whose value begins where so many bytes are left.
    #[cold]
    pub(super) fn of(bytes: &[u8], left: usize) -> Self {
        match Reader::new(bytes).path_to(left) {
            Some(path) => Self(path.into()),
            None => Self::untold(),
        }
    }

    /// Of bytes that no build of ours writes, though they can be read: whether something was skipped in them
    /// cannot be told.
    #[cold]
    pub(super) fn untold() -> Self {
        Self("(in bytes that no release writes)".into())
    }

    /// The same, seen from what holds it under this name.
    #[cold]
    pub(crate) fn within(&self, name: &str) -> Self {
        Self(format!("{name}.{self}").into())
    }
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
