//! What lies between the nodes of a cluster: one cable from each to each, which may be cut. A cut cable
//! carries nothing and breaks nothing, as a network that is down: what was sent comes when it is mended.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// All cables of a cluster; gone when dropped.
#[derive(Debug)]
pub(super) struct Cables {
    all: Vec<Cable>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Cable {
    from: usize,
    to: usize,
    /// Where `from` finds `to`.
    port: u16,
    cut: watch::Sender<bool>,
}

impl Cables {
    /// One from each node to each other one.
    pub(super) async fn between(ports: &[u16]) -> Self {
        let (mut all, mut tasks) = (Vec::new(), JoinSet::new());
        for from in 0..ports.len() {
            for (to, port) in ports.iter().copied().enumerate() {
                if from == to {
                    continue;
                }
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                let listener = listener.expect("a free port");
                let cut = watch::Sender::new(false);
                all.push(Cable {
                    from,
                    to,
                    port: listener.local_addr().expect("bound").port(),
                    cut: cut.clone(),
                });
                tasks.spawn(lie(listener, port, cut));
            }
        }
        Self { all, _tasks: tasks }
    }

    /// Where a node finds the others.
    pub(super) fn from(&self, node: usize) -> Vec<u16> {
        let own = self.all.iter().filter(|cable| cable.from == node);
        own.map(|cable| cable.port).collect()
    }

    pub(super) fn cut_off(&self, node: usize, cut: bool) {
        let ends = |cable: &&Cable| cable.from == node || cable.to == node;
        for cable in self.all.iter().filter(ends) {
            cable.cut.send_replace(cut);
        }
    }
}

async fn lie(listener: TcpListener, to: u16, cut: watch::Sender<bool>) {
    let mut carried = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let cut = cut.subscribe();
        carried.spawn(async move {
            // a node that is down refuses, and so does its end of the cable
            if let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await {
                carry(near, far, cut).await;
            }
        });
        while carried.try_join_next().is_some() {}
    }
}

async fn carry(near: TcpStream, far: TcpStream, cut: watch::Receiver<bool>) {
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = one_way(near_in, far_out, cut.clone()) => {}
        () = one_way(far_in, near_out, cut) => {}
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let is_whole = cut.wait_for(|cut| !cut).await.is_ok();
        if !is_whole || to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
