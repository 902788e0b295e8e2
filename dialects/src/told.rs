//! What upstreams report of their usage, and what one event of their stream means to the gate.
//!
//! A report is believed only where it cannot be below the truth: every count is a whole number, over a
//! stream the largest of each counts, and what came before the last of the content is no report. Else
//! there is none, and the hold is charged. What else is odd in an answer is the client's to read and
//! spoils no report.

mod anywhere;
mod failure;
mod report;
mod stream;
mod whole;

pub(crate) use failure::status_named;
pub use report::Least;
pub(crate) use report::{COUNT_MAX, Counts, Odd, Report};
pub use stream::{Part, Sent, StreamTold};
pub use whole::Told;
pub(crate) use whole::{Body, finish, has_content, text};

#[cfg(test)]
mod odd_places;
#[cfg(test)]
mod tests;
