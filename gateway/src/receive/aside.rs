//! What takes long for a large body, done on a thread of its own: the threads that serve everybody are
//! as few as the processor's cores, and nobody is to wait there behind another's megabytes.

use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::{
    config::{COUNTED_AT_ONCE_MAX, DONE_AT_ONCE_MAX},
    error::{ApiError, Case},
};

/// Where the work on a body is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aside {
    /// Where it was read: that takes less than to hand it over would matter.
    No,
    Yes,
}

impl Aside {
    pub(super) fn of(body: &Bytes) -> Self {
        if body.len() <= DONE_AT_ONCE_MAX {
            Self::No
        } else {
            Self::Yes
        }
    }

    /// For the count of this many bytes of text.
    pub(crate) fn to_count(bytes: u64) -> Self {
        if bytes <= COUNTED_AT_ONCE_MAX {
            Self::No
        } else {
            Self::Yes
        }
    }

    /// Does the work. It goes on where its caller is dropped, so it keeps what it takes of the shares.
    pub(crate) async fn work<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        match self {
            Self::No => work(),
            Self::Yes => spawn_blocking(work).await.unwrap_or_else(|died| {
                let message = "the request body could not be worked on";
                Err(ApiError::new(Case::Internal, message).log(died.to_string()))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    #[tokio::test]
    async fn others_go_on_while_a_large_body_is_worked_on() {
        let (tell, told) = mpsc::channel();
        let large = Aside::of(&Bytes::from(vec![b' '; DONE_AT_ONCE_MAX + 1]));
        let working = large.work(move || {
            let told = told.recv_timeout(Duration::from_secs(20));
            told.map_err(|_| ApiError::busy("nobody went on"))
        });
        let (worked, _) = futures::future::join(working, async { tell.send(()) }).await;
        assert!(worked.is_ok());
        let small = Aside::of(&Bytes::from_static(b"{}"));
        assert_eq!(small, Aside::No);
        assert!(small.work(|| Ok(())).await.is_ok());
    }
}
