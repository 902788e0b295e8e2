//! How requests and replies travel between processes, behind a trait: both sides run as they are on a
//! medium that loses, delays, doubles and reorders what is sent, and on NATS.

use std::{fmt::Debug, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
pub use seatbelt_bus::post::{Heard, IncomingRequest, Listens, SendError};
use seatbelt_schemas::ids::CommandId;

use crate::store::StoreError;

/// A process's way to the others. Clones share it.
pub trait Post: Debug + Send + Sync + 'static {
    /// Sends a request and waits for one reply, at most `within`. What is not heard may have been done.
    fn request<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'a, Heard>;

    /// Begins a correspondence with whoever receives what is sent to `subject`: several requests, and
    /// all replies to any of them.
    fn correspond(
        &self,
        subject: String,
    ) -> BoxFuture<'_, Result<Box<dyn Correspondence>, StoreError>>;

    /// Receives from now on what others send to subjects that match `subject`.
    fn receive(&self, subject: String) -> BoxFuture<'_, Result<Box<dyn Requests>, StoreError>>;

    /// Sends a reply to an address that came with a request. Nobody learns whether it arrived, but one that
    /// cannot be sent is an error.
    fn reply<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SendError>>;

    /// The same, and learns whether whoever gave the address is known to be there no more.
    fn reply_to_listener<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, Listens>;

    /// A new id, for a command that this process gives by itself.
    fn command_id(&self) -> CommandId {
        ulid::Ulid::new().into()
    }
}

/// Requests to one subject, and the replies to all of them.
pub trait Correspondence: Send {
    /// Sends a request.
    fn send(&mut self, payload: Bytes) -> BoxFuture<'_, Result<(), SendError>>;

    /// What comes next. Nothing is lost if the caller stops waiting.
    fn hear(&mut self) -> BoxFuture<'_, Heard>;
}

/// Requests of others, in the order in which they come.
pub trait Requests: Send {
    /// The next one; none once nothing more comes. Nothing is lost if the caller stops waiting.
    fn next(&mut self) -> BoxFuture<'_, Option<IncomingRequest>>;

    /// Receives no more: once this resolves, whoever sends hears that nobody is there.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}
