//! An error with what caused it.

use std::{error::Error, fmt::Write as _};

/// In one line, for logs and for `/health/ready`.
pub(crate) fn in_one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        // writing to a string cannot fail
        let _ = write!(line, ": {source}");
        next = source.source();
    }
    line
}
