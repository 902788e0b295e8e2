//! Which dialect an answer is shown in.

use crate::messages::MessagesStream;

/// How an upstream's answer is shown to the client.
#[derive(Debug)]
pub(crate) enum Face {
    /// As it is; the usage chunk hidden where the gateway asked for it and not the client.
    Same {
        /// Whether to hide it.
        hide_usage: bool,
    },
    /// In the Anthropic dialect.
    Messages(MessagesStream),
}
