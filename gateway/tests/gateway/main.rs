//! The gateway from outside: over HTTP, against the real ledger and a foreign upstream.

mod budget;
mod disconnect;
mod messages;
mod neuron;
mod requests;
mod service;
mod streams;
mod support;
