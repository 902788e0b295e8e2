//! HTTP connections of strangers: so many at once, each with a bound on how long the head of a request may be
//! on its way, and on how long what is written may lie unread. The gateway's clients come in here, and whoever
//! reaches a neuron.
//!
//! Above the bound nothing is accepted; who waits there is served once a connection ends, and those
//! that ask for nothing end by the first bound.

mod patient;

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

use patient::Patient;

/// Pause before connections are accepted again where the machine has no room for one.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What connections are held to.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionBounds {
    /// Connections at once.
    pub connections: usize,
    /// How long the head of a request may be on its way, and a connection without one stay open.
    pub header_timeout: Duration,
    /// How long a peer may take nothing of what is written to it; then it is cut.
    pub stall_max: Duration,
}

/// Who accepts connections, and how many more.
#[derive(Debug)]
pub struct Connections {
    room: Arc<Semaphore>,
    bounds: ConnectionBounds,
}

impl Connections {
    /// Nobody is connected yet.
    pub fn new(bounds: ConnectionBounds) -> Self {
        Self {
            room: Arc::new(Semaphore::new(bounds.connections)),
            bounds,
        }
    }

    /// Serves until `shutdown`, then until each connection's request has its answer. Dropped before, it leaves open
    /// ones to end with the process.
    pub async fn serve(self, listener: TcpListener, table: Router, shutdown: CancellationToken) {
        let open = TaskTracker::new();
        loop {
            let (stream, room) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.accept(&listener) => accepted,
            };
            open.spawn(self.connection(stream, room, table.clone(), shutdown.clone()));
        }
        drop(listener); // who comes now goes elsewhere
        open.close();
        open.wait().await;
    }

    /// The next connection there is room for.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, OwnedSemaphorePermit) {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.expect("the room for connections is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return (stream, room),
                Err(error) if is_the_peers(&error) => {}
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
        table: Router,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        // without it a small event can wait 40 ms for the answer to the one before
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY on a connection");
        }
        let stream = TokioIo::new(Patient::new(stream, self.bounds.stall_max));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.header_timeout)
            .serve_connection(stream, TowerToHyperService::new(table));
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

/// Whether it was the peer that left before it was accepted.
fn is_the_peers(error: &io::Error) -> bool {
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

    #[tokio::test]
    async fn who_asks_for_nothing_loses_his_place_to_who_asks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::new(ConnectionBounds {
            connections: 2,
            header_timeout: Duration::from_millis(100),
            stall_max: Duration::from_secs(60),
        });
        let stop = CancellationToken::new();
        let routes = Router::new().route("/", get(async || "here"));
        let served = tokio::spawn(connections.serve(listener, routes, stop.clone()));
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
