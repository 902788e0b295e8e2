//! What a client sent: its key and its body.

pub(crate) mod body;
pub(crate) mod caller;
