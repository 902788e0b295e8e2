//! A settle with two answers over NATS: one request, and two replies to the same inbox.
//!
//! The first says that the settle is taken, the second that it lasts. A host of an earlier version
//! sends the first only. The caller's side here sends again until the first has come; whether to send
//! the command again because the second did not come is its caller's to decide.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, StatusCode, Subscriber, client::PublishErrorKind};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use seatbelt_schemas::{
    command::{Ack, CommandError, Resolution, Settle},
    wire,
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{
    Request, SettleBody, VERSION, Verb, WITHIN_MAX,
    client::{AGAIN_FIRST, Inner, PAUSE_MAX, PAUSE_MIN},
    decode_one_of_two, reply,
};
use crate::{
    api::{Answer, Ledger, Taken},
    nats::connect::{Trouble, Troubles},
};

/// The way to the second answer.
pub(super) type Lasting = BoxFuture<'static, Answer<Resolution>>;

/// How long the second reply is waited for after the first: far longer than a commit takes, and short
/// enough that a command whose writer died is soon with the next one.
const LASTING_MAX: Duration = Duration::from_secs(2);

/// The side of the writer: carries a settle out, and leaves the way to its second answer in `second`
/// where the caller wants one.
pub(super) async fn settle_here(
    ledger: &dyn Ledger,
    body: SettleBody,
    second: &mut Option<Lasting>,
) -> Answer<Resolution> {
    if body.ack != Ack::Taken || !body.lasting {
        return ledger.settle(body.command, body.ack).await;
    }
    let Taken {
        resolution,
        lasting,
    } = ledger.settle_early(body.command).await?;
    *second = Some(lasting);
    Ok(resolution)
}

/// The second reply.
pub(super) async fn second(lasting: Lasting) -> Vec<u8> {
    let late = |_| Err(CommandError::unavailable("the settle does not last yet"));
    let answer = timeout(WITHIN_MAX, lasting).await.unwrap_or_else(late);
    wire::encode(&reply(answer, true))
}

/// The side of the caller: asks until the settle is taken.
pub(super) async fn settle(inner: &Arc<Inner>, command: Settle) -> Answer<Taken> {
    let inbox = inner.nats.client().new_inbox();
    let subscribed = inner.nats.client().subscribe(inbox.clone()).await;
    let replies = subscribed.map_err(|error| {
        CommandError::unavailable(format!("cannot listen for the writer's replies: {error}"))
    })?;
    let mut call = Call {
        subject: inner
            .names
            .ledger_subject(inner.partition, Verb::Settle.name()),
        inbox,
        troubles: inner.nats.troubles(),
        inner: Arc::clone(inner),
        replies,
    };
    let (resolution, lasts) = call.taken(command).await?;
    if lasts {
        return Ok(Taken::lasting(resolution));
    }
    let lasting = call.lasting().boxed();
    Ok(Taken {
        resolution,
        lasting,
    })
}

/// One settle on its way, with the inbox that all tries of it are answered to.
struct Call {
    inner: Arc<Inner>,
    subject: String,
    inbox: String,
    replies: Subscriber,
    troubles: Troubles,
}

/// What was heard.
enum Heard {
    Reply(Answer<(Resolution, bool)>),
    Nothing(String),
}

impl Call {
    /// Sends the command until the first reply, which may say that it lasts already.
    async fn taken(&mut self, command: Settle) -> Answer<(Resolution, bool)> {
        let deadline = Instant::now() + self.inner.patience;
        let mut request = Request {
            v: VERSION,
            within_ms: 0,
            body: SettleBody {
                command,
                ack: Ack::Taken,
                lasting: true,
            },
        };
        let partition = self.inner.partition;
        let mut detail = format!("the host of partition {partition} does not answer");
        let (mut again, mut pause) = (AGAIN_FIRST, PAUSE_MIN);
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            request.within_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            self.send(wire::encode(&request)).await?;
            let send_at = deadline.min(Instant::now() + again);
            match timeout_at(send_at, self.hear()).await {
                Ok(Heard::Reply(Err(CommandError::Unavailable { detail: why })))
                | Ok(Heard::Nothing(why)) => {
                    detail = why;
                    sleep_until(deadline.min(Instant::now() + pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Ok(Heard::Reply(answer)) => return answer,
                Err(_) => again *= 2,
            }
        }
        Err(CommandError::unavailable(detail))
    }

    async fn send(&self, payload: Vec<u8>) -> Result<(), CommandError> {
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        let client = self.inner.nats.client();
        let sent = client
            .publish_with_reply(subject, inbox, payload.into())
            .await;
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => CommandError::invalid(error.to_string()),
            _ => CommandError::unavailable(format!("the settle was not sent: {error}")),
        })
    }

    async fn hear(&mut self) -> Heard {
        let partition = self.inner.partition;
        let nobody = || format!("nobody hosts partition {partition} now");
        tokio::select! {
            biased;
            message = self.replies.next() => match message {
                Some(Message { status: Some(StatusCode::NO_RESPONDERS), .. }) => Heard::Nothing(nobody()),
                Some(message) => Heard::Reply(decode_one_of_two(&message.payload)),
                None => Heard::Nothing("the connection is closed".to_owned()),
            },
            trouble = self.troubles.about(&self.subject) => match trouble {
                Trouble::Lost => Heard::Nothing(nobody()),
                Trouble::Denied(denied) => Heard::Nothing(denied.to_string()),
            },
        }
    }

    /// Waits for the second reply; further first ones, to earlier tries, say nothing new.
    async fn lasting(mut self) -> Answer<Resolution> {
        let until = Instant::now() + LASTING_MAX;
        loop {
            match timeout_at(until, self.hear()).await {
                Ok(Heard::Reply(Ok((_, false)))) => {}
                Ok(Heard::Reply(answer)) => return answer.map(|(resolution, _)| resolution),
                Ok(Heard::Nothing(why)) => return Err(CommandError::unavailable(why)),
                Err(_) => {
                    let why = "whether the settle lasts was not answered in time";
                    return Err(CommandError::unavailable(why));
                }
            }
        }
    }
}
