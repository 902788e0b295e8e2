//! Public price lists, read as prices that Seatbelt can charge by.
//!
//! Pure: text in, values out. A list is read model by model; one that says anything that is not understood
//! is left out by name with its reason, so that no price is ever a guess. Numbers are read as text, never as
//! floats, and what is not a whole pico-USD per token is rounded up. Where several prices may apply, by the
//! time of day or from a day to come, the dearest is taken. Not here: files, clocks, the running configuration.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// the lists
mod genai;
mod list;
mod litellm;

// what they say
mod day;
mod decimal;
mod json;
mod terms;

// what is made of it
mod book;
mod diff;

pub use book::{Origin, write};
pub use day::{Day, InvalidDay};
pub use diff::{Difference, PriceChange, Running, compare};
pub use list::{
    Format, Limits, List, ListError, Listed, ListedClass, ListedName, NotImported, Selection, read,
};
pub use terms::{ListedTerms, StatedRates};

#[cfg(test)]
mod tests;
