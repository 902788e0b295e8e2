//! NATS as the way between processes.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use seatbelt_bus::{
    Nats,
    post::{self, Letters, Received},
};

use crate::{
    remote::post::{Correspondence, Heard, IncomingRequest, Listens, Post, Requests, SendError},
    store::StoreError,
};

impl Post for Nats {
    fn request<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'a, Heard> {
        post::request(self, subject, payload, within).boxed()
    }

    fn correspond(
        &self,
        subject: String,
    ) -> BoxFuture<'_, Result<Box<dyn Correspondence>, StoreError>> {
        async move {
            let letters: Box<dyn Correspondence> = Box::new(Letters::begin(self, subject).await?);
            Ok(letters)
        }
        .boxed()
    }

    fn receive(&self, subject: String) -> BoxFuture<'_, Result<Box<dyn Requests>, StoreError>> {
        async move {
            let received: Box<dyn Requests> = Box::new(Received::begin(self, subject).await?);
            Ok(received)
        }
        .boxed()
    }

    fn reply_to_listener<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, Listens> {
        post::reply_to_listener(self, to, payload).boxed()
    }

    fn reply<'a>(&'a self, to: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SendError>> {
        post::reply(self, to, payload).boxed()
    }
}

impl Correspondence for Letters {
    fn send(&mut self, payload: Bytes) -> BoxFuture<'_, Result<(), SendError>> {
        Letters::send(self, payload).boxed()
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        Letters::hear(self).boxed()
    }
}

impl Requests for Received {
    fn next(&mut self) -> BoxFuture<'_, Option<IncomingRequest>> {
        Received::next(self).boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Received::close(*self).boxed()
    }
}
