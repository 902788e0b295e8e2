//! The connections of a neuron: so many at once, each with a bound on how long the head of a request may be on its
//! way. Strangers who ask for nothing can take neither all files of the process nor a place for long.
//!
//! Above the bound nothing is accepted; who waits there is served once a connection ends.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Most connections at once, where the process may open files enough.
const CONNECTIONS_MAX: usize = 4096;
/// Fewest, whatever the process may open.
const CONNECTIONS_MIN: usize = 16;
/// Of the files that the process may open, what connections may take: 1 in so many. The rest is for models, the
/// outbox and NATS.
const OF_FILES: usize = 2;
/// How long the head of a request may be on its way, and a connection without one stay open. Well above the 4 s after
/// which gateways let go of one that lies idle, so that no request is written into one that is being closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause before connections are accepted again where the machine has no room for one.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What connections are held to.
#[derive(Debug)]
pub(super) struct Door {
    room: Arc<Semaphore>,
    header_timeout: Duration,
}

impl Door {
    pub(super) fn new() -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        Self {
            room: Arc::new(Semaphore::new(connections_max(&limits))),
            header_timeout: HEADER_TIMEOUT,
        }
    }

    /// Serves until `shutdown`, then until each connection's request has its answer.
    pub(super) async fn serve(
        self,
        listener: TcpListener,
        routes: Router,
        shutdown: CancellationToken,
    ) {
        let open = TaskTracker::new();
        loop {
            let (stream, room) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.accept(&listener) => accepted,
            };
            open.spawn(self.connection(stream, room, routes.clone(), shutdown.clone()));
        }
        drop(listener); // who comes now goes elsewhere
        open.close();
        // where this is dropped first, all that is still open ends with the process
        open.wait().await;
    }

    /// The next connection there is room for.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, OwnedSemaphorePermit) {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.expect("the room for connections is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return (stream, room),
                Err(error) if is_the_callers(&error) => {}
                // out of files or memory: both come back as connections end
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
        room: OwnedSemaphorePermit,
        routes: Router,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Without it a small event can wait 40 ms for the answer to the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not set");
        }
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
        async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(room);
        }
    }
}

/// How many connections leave files enough for the rest, given the process's limits as the kernel prints them.
fn connections_max(limits: &str) -> usize {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let files = line.and_then(|line| line.split_whitespace().next());
    match files.map(str::parse::<usize>) {
        Some(Ok(files)) => (files / OF_FILES).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX),
        // unlimited, or not told
        _ => CONNECTIONS_MAX,
    }
}

/// Whether it was the caller that left before it was accepted.
fn is_the_callers(error: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(
        error.kind(),
        E::ConnectionRefused | E::ConnectionAborted | E::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        let of = |soft: &str| {
            connections_max(&format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max open files            {soft}                 1048576              files\n"
            ))
        };
        assert_eq!((of("128"), of("1024"), of("8")), (64, 512, 16));
        assert_eq!((of("1048576"), of("unlimited")), (4096, 4096));
        assert_eq!(connections_max(""), 4096);
    }

    #[tokio::test]
    async fn who_asks_for_nothing_loses_his_place_to_who_asks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door {
            room: Arc::new(Semaphore::new(2)),
            header_timeout: Duration::from_millis(100),
        };
        let stop = CancellationToken::new();
        let routes = Router::new().route("/", get(async || "here"));
        let served = tokio::spawn(door.serve(listener, routes, stop.clone()));
        // more than there is room for; one is half way through a head
        let mut idle = Vec::new();
        for n in 0..5 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if n == 0 {
                stream.write_all(b"GET / HT").await.unwrap();
            }
            idle.push(stream);
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"),
            "{answer}"
        );
        for mut stream in idle {
            // closed, with or without a word
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
        stop.cancel();
        served.await.unwrap();
    }
}
