//! What vendor JSON means to a cap: what a request asks for, what may be asked at all, what an answer
//! tells of its usage, and the way from one API to another.
//!
//! Pure: text in, values out. An [`Api`] is one file that answers the same questions in the same order
//! as its siblings. Not here: HTTP, clients, clocks, prices, limits of models, and what to do about any
//! of it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// what is asked
mod api;
mod ask;
mod dialect;
mod media;

// what may be asked at all
pub mod allow;
mod provided;
mod state;

// what an answer tells
mod ends;
mod served;
pub mod sse;
mod told;

// the way from one to another
mod face;
pub mod translate;

// how JSON is read and written
mod exact;
mod fields;
mod odd;
mod printed;
mod printing;
mod raw;

pub use api::{Api, MaxField, responses::response_id};
pub use ask::{Ask, Measure};
pub use dialect::{Dialect, ErrorBody};
pub use exact::Exact;
pub use face::Face;
pub use fields::{Fault, FieldError, Fields};
pub use media::{AudioLimit, ImageLimit, ImageRule, MediaLimits};
pub use odd::Unread;
pub use printing::{Escapes, Printed};
pub use provided::{Calls, Provided};
pub use served::{Aspect, CallsTold, Class, Priced, Served};
pub use told::{Least, Part, Sent, StreamTold, Told};
