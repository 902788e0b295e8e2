//! How requests and replies travel between processes, behind a trait: both sides run as they are on a
//! medium that loses, delays, doubles and reorders what is sent, and on NATS.

use std::{fmt::Debug, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use seatbelt_schemas::ids::CommandId;
use thiserror::Error;

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

    /// Sends a reply to an address that came with a request. Nobody learns whether it arrived.
    fn reply<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, ()>;

    /// A new id, for a command that this process gives by itself.
    fn command_id(&self) -> CommandId {
        ulid::Ulid::new().into()
    }
}

/// What came of a request, or came to a correspondence.
#[derive(Debug)]
pub enum Heard {
    /// A reply.
    Reply(Bytes),
    /// Nobody receives now what is sent there, or the way was lost: send it again soon.
    Nobody,
    /// This process may not send there: the reason.
    Denied(String),
    /// It can never be sent: the reason.
    TooLarge(String),
    /// Nothing came in time, and nothing more will.
    Silence,
}

/// Why a request of a correspondence is not on its way.
#[derive(Debug, Error)]
pub enum SendError {
    /// It can never be sent.
    #[error("{0}")]
    TooLarge(String),
    /// It may be sent again.
    #[error("{0}")]
    NotSent(String),
}

/// Requests to one subject, and the replies to all of them.
pub trait Correspondence: Send {
    /// Sends a request.
    fn send(&mut self, payload: Bytes) -> BoxFuture<'_, Result<(), SendError>>;

    /// What comes next. Nothing is lost if the caller stops waiting.
    fn hear(&mut self) -> BoxFuture<'_, Heard>;
}

/// A request as it was received.
#[derive(Debug)]
pub struct Asked {
    /// Where it was sent to.
    pub subject: String,
    /// Where replies go; none where nobody waits for one.
    pub reply_to: Option<String>,
    /// What it says.
    pub payload: Bytes,
}

/// Requests of others, in the order in which they come.
pub trait Requests: Send {
    /// The next one; none once nothing more comes. Nothing is lost if the caller stops waiting.
    fn next(&mut self) -> BoxFuture<'_, Option<Asked>>;

    /// Receives no more: once this resolves, whoever sends hears that nobody is there.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}
