//! A stream on its way through: event by event, its end held back until the settle is taken.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use seatbelt_dialects::{
    Api, Dialect, Face, Part, StreamTold,
    sse::{SseEvent, SseReader, write_event},
};
use serde::de::IgnoredAny;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Head, Job,
    attempts::{Limits, Stop},
    report::Known,
};
use crate::{config::TRAILER_WAIT, metrics::Stage};

/// The mark of the end in the OpenAI dialect, which is no JSON.
const DONE: &[u8] = b"[DONE]";
/// Pieces of a stream that wait for a slow client; then the upstream waits too.
const STREAM_PIECES_MAX: usize = 32;

impl Job {
    /// Passes a stream on, event by event, holding its end back until the settle is taken.
    pub(super) async fn relay(&mut self, mut answer: reqwest::Response, head: Head) {
        let (pieces, body) = mpsc::channel::<Bytes>(STREAM_PIECES_MAX);
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        );
        let _ = head.send(Ok(self.response(StatusCode::OK, headers, streamed(body))));
        let told = StreamTold::new(self.api, self.sent);
        let mut relay = Relay::new(told, pieces);
        let stopped = self.pump(&mut answer, &mut relay).await;
        self.metrics
            .stage(Stage::UpstreamTotal, self.began.elapsed());
        // a connection that is closed now is what stops a neuron: only then it reports
        let ended = stopped.is_ok().then_some(answer);
        self.finish(relay, stopped).await;
        // read the end of the body, so that the connection goes back to the pool
        if let Some(mut answer) = ended {
            let _ = timeout(TRAILER_WAIT, answer.chunk()).await;
        }
    }

    /// Reads the upstream until its end, sending on all but the end itself.
    async fn pump(
        &mut self,
        answer: &mut reqwest::Response,
        relay: &mut Relay,
    ) -> Result<(), Stop> {
        loop {
            // by what the client last got: much may come of which it sees nothing
            let silent_until = relay.sent_at + self.ping;
            let next = self.limits.chunk(answer, relay.gone());
            let next = timeout_at(silent_until, next).await;
            if next.is_err() || Instant::now() >= silent_until {
                let sign = Bytes::from_static(sign_of_life(self.dialect));
                self.limits.send(relay, sign).await?;
            }
            let Ok(chunk) = next else {
                continue;
            };
            let chunk = chunk?;
            let last = chunk.is_none();
            let mut out = BytesMut::new();
            let taken = relay.take(chunk.as_ref(), &mut self.face, &mut out);
            if !out.is_empty() {
                self.limits.send(relay, out.freeze()).await?;
            }
            taken?;
            match relay.state {
                State::Failed => {
                    if !self.is_neurons() {
                        let _ =
                            timeout(TRAILER_WAIT, self.limits.read_on(answer, relay, last)).await;
                    }
                    return Err(Stop::Failed);
                }
                State::Ended => return Ok(()),
                State::Open if last && relay.is_whole(self.api) => return Ok(()),
                State::Open if last => {
                    return Err(Stop::Broke("stream ended without its end".to_owned()));
                }
                State::Open => {}
            }
        }
    }

    /// Whether a stream that failed used nothing: nothing came of it, and its error names no status of those
    /// that come after work. Neurons report it themselves.
    fn is_free(&self, told: &StreamTold) -> bool {
        let status = told
            .failure
            .and_then(|code| StatusCode::from_u16(code).ok());
        !self.is_neurons()
            && told.used_nothing()
            && self.is_nothing(&told.least(), &told.served)
            && !status.is_some_and(|status| self.worked(status))
    }

    async fn finish(&mut self, mut relay: Relay, stopped: Result<(), Stop>) {
        let known = relay.known();
        let told = known.usage;
        let by_client = matches!(stopped, Err(Stop::ClientLeft));
        let failed = match stopped {
            Ok(()) => match self.settle(known).await {
                Ok(_) => {
                    self.bind(|| relay.told.id.take()).await;
                    None
                }
                Err(error) => Some(error),
            },
            Err(Stop::Failed) if self.is_free(&relay.told) => {
                self.release("upstream failed before it began").await;
                return;
            }
            Err(Stop::Failed) => {
                // the upstream's own error was passed on already
                let _ = self.stopped(Stop::Failed, known).await;
                return;
            }
            Err(stop) => Some(self.stopped(stop, known).await),
        };
        let held = std::mem::take(&mut relay.end);
        let last = match failed {
            None => self.face.end(told.or(self.billed), held),
            Some(error) => {
                let (upstream, detail) = (&self.upstream, error.log.as_deref());
                if by_client {
                    tracing::debug!(%upstream, "the client left before the end of its stream");
                } else {
                    tracing::warn!(%upstream, code = error.code(), detail, "stream failed");
                }
                let error = match self.charged {
                    Some(charged) => error.charged(charged),
                    None => error,
                };
                let mut last = BytesMut::new();
                let envelope = self.face.failure(error.envelope(self.dialect));
                write_event(&mut last, Some("error"), envelope.to_string().as_bytes());
                last
            }
        };
        // a client too slow for its last piece loses it, never the ledger
        let _ = self.limits.send(&mut relay, last.freeze()).await;
    }
}

/// What says that a stream goes on, and is nothing to its reader: between two events.
fn sign_of_life(dialect: Dialect) -> &'static [u8] {
    match dialect {
        Dialect::Anthropic => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
        Dialect::OpenAi => b": ping\n\n",
    }
}

impl Limits {
    /// Reads what still comes of a stream that failed: some say what they used only then. Its client has seen the
    /// error, and nothing after it.
    async fn read_on(&self, answer: &mut reqwest::Response, relay: &mut Relay, mut last: bool) {
        loop {
            relay.note_rest(last);
            if last {
                return;
            }
            match self.chunk(answer, std::future::pending()).await {
                Ok(Some(chunk)) => relay.reader.push(&chunk),
                Ok(None) | Err(_) => {
                    relay.reader.close();
                    last = true;
                }
            }
        }
    }

    async fn send(&self, relay: &mut Relay, piece: Bytes) -> Result<(), Stop> {
        relay.sent_at = Instant::now();
        let Some(client) = &relay.client else {
            return Ok(());
        };
        let sent = self
            .unless_stopped(client.send(piece), std::future::pending())
            .await?;
        if sent.is_err() {
            if self.ends_with_client {
                return Err(Stop::ClientLeft);
            }
            relay.client = None; // drained from here on
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed,
}

/// A stream on its way through.
struct Relay {
    reader: SseReader,
    told: StreamTold,
    state: State,
    /// What is held back until the settle is taken.
    end: BytesMut,
    /// When the client last got something.
    sent_at: Instant,
    /// None once the client is gone.
    client: Option<mpsc::Sender<Bytes>>,
}

impl Relay {
    fn new(told: StreamTold, client: mpsc::Sender<Bytes>) -> Self {
        Self {
            reader: SseReader::default(),
            told,
            state: State::Open,
            end: BytesMut::new(),
            sent_at: Instant::now(),
            client: Some(client),
        }
    }

    async fn gone(&self) {
        match &self.client {
            Some(client) => client.closed().await,
            None => std::future::pending().await,
        }
    }

    /// Takes a chunk, or the end of the body, and writes what the client may see of it now.
    fn take(
        &mut self,
        chunk: Option<&Bytes>,
        face: &mut Face,
        out: &mut BytesMut,
    ) -> Result<(), Stop> {
        match chunk {
            Some(chunk) => self.reader.push(chunk),
            None => self.reader.close(),
        }
        while self.state == State::Open {
            match self.reader.next_event() {
                Ok(Some(event)) => self.event(&event, face, out)?,
                Ok(None) if chunk.is_none() => return self.cut(face, out),
                Ok(None) => break,
                Err(error) => return Err(Stop::Broke(error.to_string())),
            }
        }
        Ok(())
    }

    /// Notes what the events tell that come after an error, and of a `last` one without its blank line; of two
    /// errors the first is what happened.
    fn note_rest(&mut self, last: bool) {
        let failure = self.told.failure;
        while let Ok(Some(event)) = self.reader.next_event() {
            self.told.note(&event);
        }
        if last && let Some(event) = self.reader.last_event() {
            self.told.note(&event.completed());
        }
        self.told.failure = failure;
    }

    /// Takes the event whose blank line did not come, if there is one. It may be cut, so nothing of it is
    /// seen unless the stream turns out to be whole, or it is the error that ended it.
    fn cut(&mut self, face: &mut Face, out: &mut BytesMut) -> Result<(), Stop> {
        let Some(event) = self.reader.last_event().map(SseEvent::completed) else {
            return Ok(());
        };
        if self.was_the_mark(&event) {
            return Ok(());
        }
        let mut late = BytesMut::new();
        self.event(&event, face, &mut late)?;
        if self.state == State::Failed {
            out.extend_from_slice(&late);
        } else if !event.data.is_empty() {
            late.extend_from_slice(&self.end);
            self.end = late;
        }
        Ok(())
    }

    /// Whether what is left of an event can only have been the mark of the end: all output and its usage came
    /// before, and it says nothing of either.
    fn was_the_mark(&self, event: &SseEvent) -> bool {
        let is_cut =
            event.data != DONE && serde_json::from_slice::<IgnoredAny>(&event.data).is_err();
        let tells = |what: &[u8]| event.data.windows(what.len()).any(|found| found == what);
        let is_error = event.name.as_deref() == Some("error") || tells(b"error");
        is_cut && !is_error && !tells(b"usage") && self.told.final_usage(false).is_some()
    }

    /// Whether the body may be over where it is.
    fn is_whole(&self, api: Api) -> bool {
        api.may_end_unmarked() && self.told.final_usage(false).is_some()
    }

    fn event(&mut self, event: &SseEvent, face: &mut Face, out: &mut BytesMut) -> Result<(), Stop> {
        let part = self.told.note(event);
        match part {
            Part::End => self.state = State::Ended,
            Part::Error => self.state = State::Failed,
            Part::Content | Part::UsageOnly => {}
        }
        face.event(event, part, &mut self.end, out)
            .map_err(|error| Stop::Broke(error.to_string()))
    }

    fn known(&self) -> Known {
        let told = &self.told;
        Known {
            usage: match self.state {
                State::Failed => told.usage_so_far(),
                State::Ended | State::Open => told.final_usage(self.state == State::Ended),
            },
            least: told.least(),
            finish: told.finish.clone(),
            output_bytes: (self.state == State::Ended).then_some(told.output_bytes),
            served: told.served.clone(),
            client_left: false,
        }
    }
}

fn streamed(mut pieces: mpsc::Receiver<Bytes>) -> Body {
    let pieces = stream::poll_fn(move |cx| pieces.poll_recv(cx));
    Body::from_stream(pieces.map(Ok::<_, std::convert::Infallible>))
}

#[cfg(test)]
mod tests {
    use seatbelt_dialects::Sent;

    use super::*;

    const SENT: Sent = Sent {
        choices: 1,
        long_writes: false,
    };

    fn relay(api: Api) -> Relay {
        Relay::new(StreamTold::new(api, SENT), mpsc::channel(1).0)
    }

    fn take(relay: &mut Relay, face: &mut Face, chunk: Option<&'static str>) -> String {
        let chunk = chunk.map(|text| Bytes::from_static(text.as_bytes()));
        let mut out = BytesMut::new();
        relay.take(chunk.as_ref(), face, &mut out).unwrap();
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn same(api: Api, hide_usage: bool) -> Face {
        let dialect = api.dialect();
        Face::Same {
            dialect,
            hide_usage,
            numbered: None,
        }
    }

    const CONTENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    const USAGE: &str =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    #[test]
    fn content_goes_through_at_once_and_the_end_is_held_back() {
        let (mut relay, mut face) = (relay(Api::Chat), same(Api::Chat, false));
        assert_eq!(take(&mut relay, &mut face, Some(CONTENT)), CONTENT);
        assert_eq!(take(&mut relay, &mut face, Some(USAGE)), "");
        assert_eq!(take(&mut relay, &mut face, Some(DONE)), "");
        assert_eq!(relay.state, State::Ended);
        assert_eq!(relay.end, format!("{USAGE}{DONE}").as_bytes());
        let known = relay.known();
        assert_eq!(known.usage.unwrap().output_tokens, 1);
        assert_eq!(known.finish.as_deref(), Some("stop"));
    }

    #[test]
    fn what_is_held_back_is_one_usage_chunk_at_most() {
        let (mut relay, mut face) = (relay(Api::Chat), same(Api::Chat, false));
        assert_eq!(take(&mut relay, &mut face, Some(USAGE)), "");
        for _ in 0..3 {
            assert_eq!(take(&mut relay, &mut face, Some(CONTENT)), CONTENT);
            assert_eq!(take(&mut relay, &mut face, Some(USAGE)), USAGE);
            assert_eq!(relay.end, USAGE.as_bytes());
        }
    }

    #[test]
    fn of_a_cut_event_nothing_is_seen_unless_the_stream_is_whole() {
        let cut = CONTENT.trim_end();
        let (mut relay, mut face) = (relay(Api::Chat), same(Api::Chat, false));
        assert_eq!(take(&mut relay, &mut face, Some(cut)), "");
        assert_eq!(take(&mut relay, &mut face, None), "");
        assert!(!relay.is_whole(Api::Chat), "what is held then is dropped");
        let (mut relay, mut face) = (super::tests::relay(Api::Chat), same(Api::Chat, false));
        assert_eq!(take(&mut relay, &mut face, Some(CONTENT)), CONTENT);
        assert_eq!(take(&mut relay, &mut face, Some(USAGE.trim_end())), "");
        assert_eq!(take(&mut relay, &mut face, None), "");
        assert!(relay.is_whole(Api::Chat));
        assert_eq!(relay.end, USAGE.as_bytes());
    }

    #[test]
    fn a_hidden_usage_counts_and_is_not_shown() {
        let (mut relay, mut face) = (relay(Api::Chat), same(Api::Chat, true));
        for event in [CONTENT, USAGE, DONE] {
            take(&mut relay, &mut face, Some(event));
        }
        assert_eq!(relay.end, DONE.as_bytes());
        assert_eq!(relay.known().usage.unwrap().input_tokens, 3);
    }

    #[test]
    fn nothing_is_known_of_a_stream_that_broke_off() {
        let (mut relay, mut face) = (relay(Api::Chat), same(Api::Chat, false));
        take(&mut relay, &mut face, Some(CONTENT));
        take(&mut relay, &mut face, None);
        assert_eq!(relay.state, State::Open);
        let known = relay.known();
        assert_eq!((known.usage, known.output_bytes), (None, None));
    }

    #[test]
    fn an_error_is_shown_and_what_it_told_before_is_kept() {
        let (mut relay, mut face) = (relay(Api::Messages), same(Api::Messages, false));
        let start = "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n";
        let error = "event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\n";
        assert_eq!(take(&mut relay, &mut face, Some(start)), start);
        assert_eq!(take(&mut relay, &mut face, Some(error)), error);
        assert_eq!(relay.state, State::Failed);
        assert_eq!(relay.known().usage.unwrap().input_tokens, 5);
    }

    #[test]
    fn what_is_told_after_an_error_counts_and_the_first_error_is_what_happened() {
        let (mut relay, mut face) = (relay(Api::Chat), same(Api::Chat, false));
        let error = "data: {\"error\":{\"code\":500}}\n\n";
        take(&mut relay, &mut face, Some(CONTENT));
        take(&mut relay, &mut face, Some(error));
        assert_eq!((relay.state, relay.known().usage), (State::Failed, None));
        let later = "data: {\"error\":{\"code\":503}}\n\n";
        for chunk in [CONTENT, later, &USAGE[..20], &USAGE[20..]] {
            relay.reader.push(chunk.as_bytes());
            relay.note_rest(false);
        }
        assert_eq!(relay.known().usage.unwrap().output_tokens, 1);
        assert_eq!(relay.told.failure, Some(500));
        relay
            .reader
            .push(USAGE.replace(":1}", ":7}").trim_end().as_bytes());
        relay.reader.close();
        relay.note_rest(true);
        assert_eq!(relay.known().usage.unwrap().output_tokens, 7);
    }
}
