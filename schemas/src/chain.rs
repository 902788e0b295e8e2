//! An error with what caused it, in one line: for logs, for `/health/ready`, for answers to operators.
//!
//! By hand, because a log line is one line: what crates write of a chain stands below each other.

use std::{error::Error, fmt::Write as _};

/// `what failed: because of this: because of that`.
pub fn in_one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        // writing to a string cannot fail
        let _ = write!(line, ": {source}");
        next = source.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the start failed")]
    struct Start(#[source] std::io::Error);

    #[test]
    fn causes_follow_on_the_same_line() {
        let error = Start(std::io::Error::other("no room"));
        assert_eq!(in_one_line(&error), "the start failed: no room");
    }
}
