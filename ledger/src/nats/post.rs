//! Requests and replies between processes, as NATS carries them.

use std::time::Duration;

use async_nats::{Message, RequestErrorKind, StatusCode, Subscriber, client::PublishErrorKind};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use seatbelt_bus::{
    Nats,
    connect::{Trouble, Troubles},
};
use tokio::time::timeout;
use tracing::debug;

use crate::{
    remote::post::{Asked, Correspondence, Heard, Post, Requests, SendError},
    store::StoreError,
};

impl Post for Nats {
    fn request<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'a, Heard> {
        request(self, subject, payload, within).boxed()
    }

    fn correspond(
        &self,
        subject: String,
    ) -> BoxFuture<'_, Result<Box<dyn Correspondence>, StoreError>> {
        async move {
            let inbox = self.client().new_inbox();
            let subscribed = self.client().subscribe(inbox.clone()).await;
            let replies = subscribed.map_err(|error| StoreError {
                action: "listen for the writer's replies".to_owned(),
                source: error.into(),
            })?;
            let letters: Box<dyn Correspondence> = Box::new(Letters {
                troubles: self.troubles(),
                nats: self.clone(),
                subject,
                inbox,
                replies,
            });
            Ok(letters)
        }
        .boxed()
    }

    fn receive(&self, subject: String) -> BoxFuture<'_, Result<Box<dyn Requests>, StoreError>> {
        receive(self, subject).boxed()
    }

    fn reply<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, ()> {
        async move {
            if let Err(error) = self.client().publish(to.to_owned(), payload).await {
                debug!(%error, "a reply of the ledger was not sent: the caller asks again");
            }
        }
        .boxed()
    }
}

async fn request(nats: &Nats, subject: &str, payload: Bytes, within: Duration) -> Heard {
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

fn in_vain(trouble: Trouble) -> Heard {
    match trouble {
        Trouble::Lost => Heard::Nobody,
        Trouble::Denied(denied) => Heard::Denied(denied.to_string()),
    }
}

/// An inbox that all requests to one subject are answered to.
struct Letters {
    nats: Nats,
    subject: String,
    inbox: String,
    replies: Subscriber,
    troubles: Troubles,
}

impl Correspondence for Letters {
    fn send(&mut self, payload: Bytes) -> BoxFuture<'_, Result<(), SendError>> {
        async move {
            let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
            let client = self.nats.client();
            let sent = client.publish_with_reply(subject, inbox, payload).await;
            sent.map_err(|error| match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => SendError::TooLarge(error.to_string()),
                _ => SendError::NotSent(error.to_string()),
            })
        }
        .boxed()
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        async move {
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
        .boxed()
    }
}

async fn receive(nats: &Nats, subject: String) -> Result<Box<dyn Requests>, StoreError> {
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
        None => Ok(Box::new(Subscribed {
            nats: nats.clone(),
            requests,
        })),
        Some(source) => Err(StoreError {
            action: format!("subscribe to {subject}"),
            source,
        }),
    }
}

struct Subscribed {
    nats: Nats,
    requests: Subscriber,
}

impl Requests for Subscribed {
    fn next(&mut self) -> BoxFuture<'_, Option<Asked>> {
        let next = self.requests.next();
        next.map(|message| {
            message.map(|message| Asked {
                subject: message.subject.into_string(),
                reply_to: message.reply.map(async_nats::Subject::into_string),
                payload: message.payload,
            })
        })
        .boxed()
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            // what is subscribed no longer is not sent here: the next caller hears at once that nobody is
            if let Err(error) = self.requests.unsubscribe().await {
                debug!(%error, "not unsubscribed");
            }
            self.nats.settled().await;
        }
        .boxed()
    }
}
