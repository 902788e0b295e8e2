//! The clients' connections: so many at once, each with a bound on how long the head of a request may be
//! on its way, and on how long what is written may lie unread.
//!
//! Above the bound nothing is accepted; who waits there is served once a connection ends, and those
//! that ask for nothing end by the first bound.

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

use super::patient::Patient;
use crate::config::{ACCEPT_AGAIN, GatewayConfig};

/// What connections are held to.
pub(super) struct Connections {
    room: Arc<Semaphore>,
    header_timeout: Duration,
    stall_max: Duration,
}

impl Connections {
    pub(super) fn new(config: &GatewayConfig) -> Self {
        Self {
            room: Arc::new(Semaphore::new(config.connections)),
            header_timeout: config.header_timeout,
            stall_max: config.client_stall,
        }
    }

    /// Serves until `shutdown`, then until each connection's request has its answer.
    pub(super) async fn serve(
        self,
        listener: TcpListener,
        table: Router,
        shutdown: CancellationToken,
    ) {
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
                Err(error) if is_the_clients(&error) => {}
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
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY on a connection");
        }
        let stream = TokioIo::new(Patient::new(stream, self.stall_max));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
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

/// Whether it was the client that left before it was accepted.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(
        error.kind(),
        E::ConnectionRefused | E::ConnectionAborted | E::ConnectionReset
    )
}
