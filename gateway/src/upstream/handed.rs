//! A body on its way to an upstream: how much of it was taken, so that one that never came whole is known to have been
//! worked on by nobody.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use futures::stream;
use reqwest::{Body, RequestBuilder, header::CONTENT_LENGTH};

/// Bytes that are handed over at once. A body of no more is written with its head.
const PIECE: usize = 64 * 1024;

/// How much of a body is still here.
#[derive(Debug, Clone)]
pub(crate) struct Left(Arc<AtomicUsize>);

impl Left {
    /// Whether some of it was never taken: what stands in one piece of JSON, nobody can have read.
    pub(crate) fn any(&self) -> bool {
        self.0.load(Relaxed) > 0
    }
}

/// Gives a request its body.
pub(crate) fn with_body(request: RequestBuilder, body: Bytes) -> (RequestBuilder, Left) {
    let length = body.len();
    if length <= PIECE {
        let left = Left(Arc::default());
        return (request.body(body), left);
    }
    let left = Left(Arc::new(AtomicUsize::new(length)));
    let taken = left.clone();
    let pieces = stream::unfold(body, move |mut rest| {
        let piece = rest.split_to(rest.len().min(PIECE));
        let taken = taken.clone();
        async move {
            if piece.is_empty() {
                return None;
            }
            taken.0.fetch_sub(piece.len(), Relaxed);
            Some((Ok::<_, Infallible>(piece), rest))
        }
    });
    let request = request
        .header(CONTENT_LENGTH, length)
        .body(Body::wrap_stream(pieces));
    (request, left)
}
