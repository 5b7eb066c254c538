//! Two to five networks over real sockets on the loopback device.

mod death;
mod hostile;
mod mesh;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use p2ptrain_node::{
    identity::{Identity, PeerId},
    net::{self, LossCause, NetConfig, NetEvent, NetHandle, PeerAddr, Port, SwarmAccess, Tuning},
    swarm_key::SwarmSecret,
};
use p2ptrain_protocol::id::Incarnation;
use tokio::sync::mpsc;

/// Far above what anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network and its events.
struct Node {
    handle: NetHandle,
    events: mpsc::Receiver<NetEvent>,
}

/// A node on the loopback device with ports of its own, in the swarm of this secret.
fn config(secret: u8, bootstrap: &[&Node]) -> NetConfig {
    NetConfig {
        identity: Identity::generate(),
        incarnation: Incarnation(1),
        access: SwarmAccess::Secret(SwarmSecret::from_bytes([secret; 32])),
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        control_port: Port::Any,
        bulk_port: Port::Any,
        mdns: false,
        bootstrap: bootstrap.iter().map(|node| node.addr()).collect(),
        tuning: Tuning::default(),
    }
}

async fn start(config: NetConfig) -> Node {
    // `RUST_LOG=p2ptrain_node=debug` shows what the nodes of a failing test say. Only the first call
    // counts.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let (handle, events) = net::start(config).await.expect("starts");
    Node { handle, events }
}

impl Node {
    fn id(&self) -> PeerId {
        self.handle.peer_id()
    }

    fn addr(&self) -> PeerAddr {
        self.control().to_string().parse().expect("an address")
    }

    fn control(&self) -> SocketAddr {
        self.handle.local_addrs().control[0]
    }

    fn bulk(&self) -> SocketAddr {
        self.handle.local_addrs().bulk[0]
    }

    /// The next event that `pick` wants; the others are dropped.
    async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(NetEvent) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let event = self.events.recv().await.expect("the network runs");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("no {what}"),
        }
    }

    async fn connected(&mut self) -> PeerId {
        self.wait("connection", |event| match event {
            NetEvent::Connected { peer, .. } => Some(peer),
            _ => None,
        })
        .await
    }

    async fn lost(&mut self) -> (PeerId, LossCause) {
        self.wait("loss", |event| match event {
            NetEvent::Lost { peer, cause, .. } => Some((peer, cause)),
            _ => None,
        })
        .await
    }

    async fn message(&mut self) -> (PeerId, Vec<u8>) {
        self.wait("message", |event| match event {
            NetEvent::Message { from, bytes } => Some((from, bytes.to_vec())),
            _ => None,
        })
        .await
    }

    /// Asserts that nothing but failed attempts happens for a while.
    async fn stays_alone(&mut self, time: Duration) {
        let waiting = async {
            loop {
                match self.events.recv().await.expect("the network runs") {
                    NetEvent::BootstrapFailed { .. } | NetEvent::Discovered { .. } => {}
                    event => panic!("unexpected: {event:?}"),
                }
            }
        };
        let _ = tokio::time::timeout(time, waiting).await;
        assert!(self.handle.links().is_empty());
    }
}

/// Two nodes of one swarm, connected.
async fn pair() -> (Node, Node) {
    let mut ann = start(config(1, &[])).await;
    let mut bob = start(config(1, &[&ann])).await;
    assert_eq!(ann.connected().await, bob.id());
    assert_eq!(bob.connected().await, ann.id());
    (ann, bob)
}
