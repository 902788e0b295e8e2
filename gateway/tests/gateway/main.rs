//! The gateway from outside: over HTTP, against the real ledger and a foreign upstream.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod anew;
mod answers;
mod attempts;
mod budget;
mod cases;
mod classes;
mod clients;
mod disconnect;
mod elsewhere;
mod ends;
mod fallback;
mod images;
mod messages;
mod neuron;
mod provided;
mod repeats;
mod requests;
mod responses;
mod runs;
mod runs_http;
mod service;
mod slices;
mod streams;
mod support;
mod tenants;
mod texts;
mod threads;
mod translated;
