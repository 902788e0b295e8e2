//! What is served, one file for each thing that can be asked for.

pub(crate) mod generate;
pub(crate) mod key;
