//! Requests and replies between processes, as NATS carries them.

use std::time::Duration;

use async_nats::{
    Message, PublishError, RequestErrorKind, StatusCode, Subscriber, client::PublishErrorKind,
};
use bytes::Bytes;
use futures::StreamExt;
use thiserror::Error;
use tokio::time::timeout;
use tracing::debug;

use super::{
    Nats,
    connect::{NoAnswer, Troubles},
    kept::StoreError,
};

/// How long the server may take to say that nobody is subscribed.
const NOBODY_WITHIN: Duration = Duration::from_millis(500);

/// What came of a request, or came to a correspondence.
#[derive(Debug)]
pub enum Heard {
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

/// Whether anybody listens at an address that a reply was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// Somebody does, or it cannot be known.
    Perhaps,
    /// Nobody: the reply has reached nobody, and never will.
    Nobody,
}

/// Why a request of a correspondence, or a reply, is not on its way.
#[derive(Debug, Error)]
pub enum SendError {
    /// It can never be sent.
    #[error("{0}")]
    TooLarge(String),
    /// It may be sent again.
    #[error("{0}")]
    NotSent(String),
}

/// A request as it was received.
#[derive(Debug)]
pub struct IncomingRequest {
    /// Where it was sent to.
    pub subject: String,
    /// Where replies go; none where nobody waits for one.
    pub reply_to: Option<String>,
    /// What it says.
    pub payload: Bytes,
}

/// Sends a request and waits for one reply, at most `within`. What is not heard may have been done.
pub async fn request(nats: &Nats, subject: &str, payload: Bytes, within: Duration) -> Heard {
    let request = async_nats::Request::new()
        .payload(payload)
        .timeout(Some(within));
    let mut troubles = nats.troubles();
    let sent = nats.client().send_request(subject.to_owned(), request);
    tokio::select! {
        biased;
        reply = timeout(within, sent) => match reply {
            Ok(Ok(message)) => Heard::Reply(message.payload),
            Ok(Err(error)) => match error.kind() {
                RequestErrorKind::NoResponders => Heard::Nobody,
                RequestErrorKind::MaxPayloadExceeded => Heard::TooLarge(error.to_string()),
                _ => Heard::Silence,
            },
            Err(_) => Heard::Silence,
        },
        trouble = troubles.about(subject) => in_vain(trouble),
    }
}

fn in_vain(trouble: NoAnswer) -> Heard {
    match trouble {
        NoAnswer::Lost => Heard::Nobody,
        NoAnswer::Denied(denied) => Heard::Denied(denied.to_string()),
    }
}

/// Sends a reply to an address that came with a request. Nobody learns whether it arrived, but one that cannot
/// be sent is an error.
pub async fn reply(nats: &Nats, to: &str, payload: Bytes) -> Result<(), SendError> {
    let sent = nats.client().publish(to.to_owned(), payload).await;
    sent.map_err(|error| not_sent(&error))
}

fn not_sent(error: &PublishError) -> SendError {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => SendError::TooLarge(error.to_string()),
        _ => SendError::NotSent(error.to_string()),
    }
}

/// The same, and learns whether whoever gave the address is known to be there no more. It asks for an answer
/// itself: the server says at once where nobody is subscribed, and who is there does not answer.
pub async fn reply_to_listener(nats: &Nats, to: &str, payload: Bytes) -> Listens {
    let request = async_nats::Request::new()
        .payload(payload)
        .timeout(Some(NOBODY_WITHIN));
    let sent = nats.client().send_request(to.to_owned(), request);
    match timeout(NOBODY_WITHIN, sent).await {
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Listens::Nobody,
        Ok(_) | Err(_) => Listens::Perhaps,
    }
}

/// An inbox that all requests to one subject are answered to.
#[derive(Debug)]
pub struct Letters {
    nats: Nats,
    subject: String,
    inbox: String,
    replies: Subscriber,
    troubles: Troubles,
}

impl Letters {
    /// Begins to correspond with whoever receives what is sent to `subject`.
    pub async fn begin(nats: &Nats, subject: String) -> Result<Self, StoreError> {
        let inbox = nats.client().new_inbox();
        let subscribed = nats.client().subscribe(inbox.clone()).await;
        let replies = subscribed.map_err(|error| StoreError {
            action: "listen for the writer's replies".to_owned(),
            source: error.into(),
        })?;
        Ok(Self {
            troubles: nats.troubles(),
            nats: nats.clone(),
            subject,
            inbox,
            replies,
        })
    }

    /// Sends a request.
    pub async fn send(&self, payload: Bytes) -> Result<(), SendError> {
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        let client = self.nats.client();
        let sent = client.publish_with_reply(subject, inbox, payload).await;
        sent.map_err(|error| not_sent(&error))
    }

    /// What comes next. Nothing is lost if the caller stops waiting.
    pub async fn hear(&mut self) -> Heard {
        tokio::select! {
            biased;
            message = self.replies.next() => match message {
                Some(Message { status: Some(StatusCode::NO_RESPONDERS), .. }) => Heard::Nobody,
                Some(message) => Heard::Reply(message.payload),
                None => Heard::Silence,
            },
            trouble = self.troubles.about(&self.subject) => in_vain(trouble),
        }
    }
}

/// Requests of others to one subject, in the order in which they come.
#[derive(Debug)]
pub struct Received {
    nats: Nats,
    requests: Subscriber,
}

impl Received {
    /// Receives from now on what others send to subjects that match `subject`.
    pub async fn begin(nats: &Nats, subject: String) -> Result<Self, StoreError> {
        let mut troubles = nats.troubles();
        let subscribed = nats.client().subscribe(subject.clone()).await;
        let requests = subscribed.map_err(|error| StoreError {
            action: format!("subscribe to {subject}"),
            source: error.into(),
        })?;
        // the server must know of the subscription before anybody is told that this is the host
        let source = tokio::select! {
            biased;
            denied = troubles.denied_to_subscribe(&subject) => Some(denied.into()),
            settled = nats.settled() => (!settled).then(|| "the server does not answer".into()),
        };
        match source {
            None => Ok(Self {
                nats: nats.clone(),
                requests,
            }),
            Some(source) => Err(StoreError {
                action: format!("subscribe to {subject}"),
                source,
            }),
        }
    }

    /// The next one; none once nothing more comes. Nothing is lost if the caller stops waiting.
    pub async fn next(&mut self) -> Option<IncomingRequest> {
        let message = self.requests.next().await?;
        Some(IncomingRequest {
            subject: message.subject.into_string(),
            reply_to: message.reply.map(async_nats::Subject::into_string),
            payload: message.payload,
        })
    }

    /// Receives no more: once this resolves, whoever sends hears that nobody is there.
    pub async fn close(mut self) {
        // what is subscribed no longer is not sent here: the next caller hears at once that nobody is
        if let Err(error) = self.requests.unsubscribe().await {
            debug!(%error, "not unsubscribed");
        }
        self.nats.settled().await;
    }
}
