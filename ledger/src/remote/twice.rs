//! A settle with two answers: one request, and two replies to the same inbox.
//!
//! The first says that the settle is taken, the second that it lasts. A host of an earlier version
//! sends the first only. The caller's side here sends again until the first has come; whether to send
//! the command again because the second did not come is its caller's to decide.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use seatbelt_schemas::{
    chain::in_one_line,
    command::{Ack, CommandError, Resolution, Settle},
    wire,
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{
    RequestFrame, SettleBody, VERSION, Verb, WITHIN_MAX,
    client::{AGAIN_FIRST, Inner, PAUSE_MAX, PAUSE_MIN},
    decode_one_of_two,
    post::{Correspondence, Heard as News, SendError},
    reply,
};
use crate::api::{Answer, Ledger, Taken};

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
    let subject = inner
        .names
        .ledger_subject(inner.partition, Verb::Settle.name());
    let letters = inner.post.correspond(subject).await;
    let letters = letters.map_err(|error| CommandError::unavailable(in_one_line(&error)))?;
    let mut call = Call {
        inner: Arc::clone(inner),
        letters,
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

/// One settle on its way, with the correspondence that all tries of it are answered in.
struct Call {
    inner: Arc<Inner>,
    letters: Box<dyn Correspondence>,
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
        let mut request = RequestFrame {
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

    async fn send(&mut self, payload: Vec<u8>) -> Result<(), CommandError> {
        let sent = self.letters.send(payload.into()).await;
        sent.map_err(|error| match error {
            SendError::TooLarge(detail) => CommandError::invalid(detail),
            SendError::NotSent(detail) => {
                CommandError::unavailable(format!("the settle was not sent: {detail}"))
            }
        })
    }

    async fn hear(&mut self) -> Heard {
        match self.letters.hear().await {
            News::Reply(bytes) => Heard::Reply(decode_one_of_two(&bytes)),
            News::Nobody => {
                let partition = self.inner.partition;
                Heard::Nothing(format!("nobody hosts partition {partition} now"))
            }
            News::Denied(detail) | News::TooLarge(detail) => Heard::Nothing(detail),
            News::Silence => Heard::Nothing("the connection is closed".to_owned()),
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
