//! The network: who is there, and how bytes get to them.
//!
//! Two planes with one identity. The *control* plane (`control`) is a libp2p swarm: discovery,
//! gossip, and one TCP connection with each member whose end tells at once that a process died. The
//! *bulk* plane (`bulk`) is one quinn connection with each member, for gradients, ordered messages
//! and requests. The hub (`hub`) is the one task that knows all peers and decides: whom to dial,
//! which connection a pair uses, and when a peer is lost.
//!
//! | Module | What |
//! |---|---|
//! | `limits` | every bound of both planes |
//! | `address` | addresses as users write them, as nodes advertise and dial them |
//! | `presence` | what members tell each other about where members are |
//! | `seal` | sealing of gossip, replays |
//! | `control` | the libp2p swarm |
//! | `bulk` | TLS, membership proof, frames, links |
//! | `hub` | the state of all peers |
//!
//! A [`NetEvent::Connected`] comes before everything else of a link and a [`NetEvent::Lost`] after.
//! The driver must keep taking events: an untaken event holds back the links' readers and, through
//! flow control, the senders.

mod address;
mod bulk;
mod control;
mod hub;
mod limits;
mod presence;
mod seal;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, RwLock},
    time::Duration,
};

use bytes::Bytes;
use p2ptrain_protocol::id::Incarnation;
use tokio::sync::{mpsc, oneshot};

use self::{
    bulk::{Bulk, frame::Kind, link::Link},
    control::Command,
    hub::Report,
};
use crate::{
    identity::{Identity, PeerId},
    swarm_key::SwarmSecret,
};

pub use self::{
    address::{PeerAddr, PeerAddrError},
    bulk::tuning::{Congestion, Tuning},
    limits::{
        CHUNK_HEADER_BYTES_MAX, CHUNK_PAYLOAD_BYTES_MAX, GOSSIP_BYTES_MAX, MESSAGE_BYTES_MAX,
        REQUEST_BYTES_MAX,
    },
};

/// Control port that a node takes if nobody asked for another and it is free.
pub const DEFAULT_CONTROL_PORT: u16 = 4120;
/// Bulk port that a node takes if nobody asked for another and it is free.
pub const DEFAULT_BULK_PORT: u16 = 4121;

/// What a node's network needs to know.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Who this node is.
    pub identity: Identity,
    /// This run of the process: higher than that of any earlier run.
    pub incarnation: Incarnation,
    /// Who is a member.
    pub access: SwarmAccess,
    /// Address to listen on; `0.0.0.0` or `::` for all.
    pub listen: IpAddr,
    /// TCP port (and UDP port of the same number) of the control plane.
    pub control_port: Port,
    /// UDP port of the bulk plane.
    pub bulk_port: Port,
    /// Whether to find and be found by peers on the local network. Without effect when listening on
    /// loopback.
    pub mdns: bool,
    /// Where to look for members; each address is tried again for as long as nobody is connected
    /// there.
    pub bootstrap: Vec<PeerAddr>,
    /// Parameters of the bulk transport.
    pub tuning: Tuning,
}

/// Who is a member of the swarm.
#[derive(Debug, Clone)]
pub enum SwarmAccess {
    /// Whoever knows the secret.
    Secret(SwarmSecret),
    /// These peers. Give all members the same list.
    AllowList(Vec<PeerId>),
}

/// Which port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Whichever is free.
    Any,
    /// This one if it is free, else any: for defaults.
    Prefer(u16),
    /// This one or fail: for ports that a user asked for.
    Require(u16),
}

/// What gossip is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Signed adverts of peers.
    Advert,
    /// Jobs that were submitted.
    Job,
    /// Progress of jobs.
    Status,
}

/// What happened. See the module's documentation for the order of events.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetEvent {
    /// The bulk connection with a peer is up: both sides authenticated, membership proven.
    Connected {
        /// The peer.
        peer: PeerId,
        /// Which run of its process this is.
        incarnation: Incarnation,
        /// Measured during the handshake.
        rtt: Duration,
        /// Where the peer is.
        remote: SocketAddr,
    },
    /// A connected peer is gone. It is sought again by itself, except after a goodbye.
    Lost {
        /// The peer.
        peer: PeerId,
        /// Which run of its process was lost.
        incarnation: Incarnation,
        /// How sure it is that the process is gone.
        cause: LossCause,
    },
    /// A message, in the order in which the peer sent it.
    Message {
        /// Its sender.
        from: PeerId,
        /// The message.
        bytes: Bytes,
    },
    /// A chunk; chunks may overtake each other and messages.
    Chunk {
        /// Its sender.
        from: PeerId,
        /// At most [`CHUNK_HEADER_BYTES_MAX`].
        header: Bytes,
        /// At most [`CHUNK_PAYLOAD_BYTES_MAX`].
        payload: Bytes,
    },
    /// A peer asks. Dropping `respond` refuses.
    Request {
        /// Who asks.
        from: PeerId,
        /// At most [`REQUEST_BYTES_MAX`].
        bytes: Bytes,
        /// Takes the answer.
        respond: Responder,
    },
    /// A member published this; it was sealed with the swarm's key and is no replay.
    Gossip {
        /// Who published it, not who passed it on.
        from: PeerId,
        /// On which topic.
        topic: Topic,
        /// At most [`GOSSIP_BYTES_MAX`].
        bytes: Bytes,
    },
    /// A peer was heard of that was unknown before; connecting to it has begun.
    Discovered {
        /// The peer.
        peer: PeerId,
        /// Where it may be.
        addrs: Vec<SocketAddr>,
    },
    /// A bootstrap address did not lead to a member. It is tried again.
    BootstrapFailed {
        /// The address.
        addr: PeerAddr,
        /// Why, for people.
        reason: String,
        /// When the next attempt starts.
        retry_in: Duration,
    },
}

/// How sure it is that a lost peer's process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LossCause {
    /// Certain: its port refuses connections, its system reset one, or a later incarnation has
    /// come.
    Dead,
    /// Certain: it said goodbye.
    Closed,
    /// Unknown: it is silent, or the network is broken.
    Unreachable,
    /// It broke the format and was disconnected; it is left alone for a while.
    Violation,
}

/// Answers one request.
#[derive(Debug)]
pub struct Responder {
    respond: oneshot::Sender<Bytes>,
}

/// A link's state, for people and for the planner.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkStats {
    /// The peer.
    pub peer: PeerId,
    /// Where it is.
    pub remote: SocketAddr,
    /// Time since the link came up.
    pub age: Duration,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// UDP payload sent, retransmissions and acknowledgements included.
    pub sent_bytes: u64,
    /// UDP payload received.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Of these, lost.
    pub lost_packets: u64,
    /// Current largest UDP payload.
    pub mtu_bytes: u16,
    /// Bytes that may be under way at once.
    pub congestion_window_bytes: u64,
    /// Bytes that wait to be handed to the transport.
    pub queued_bytes: usize,
    /// Whether the system splits large sends into datagrams; without it sending costs several times
    /// the time.
    pub segmentation_offload: bool,
}

/// Where a node can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddrs {
    /// Addresses of the control plane: what others pass as bootstrap. Loopback only if there is
    /// nothing else.
    pub control: Vec<SocketAddr>,
    /// Addresses of the bulk plane.
    pub bulk: Vec<SocketAddr>,
}

/// Why the network did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// A port that the user asked for is taken.
    #[error("{plane} port {port} on {listen} is in use by another program; choose another or none")]
    PortInUse {
        /// "control (TCP)", "control (UDP)" or "bulk (UDP)".
        plane: &'static str,
        /// The address.
        listen: IpAddr,
        /// The port.
        port: u16,
    },
    /// The system refuses a socket.
    #[error("listening on {listen} for the {plane} plane: {source}")]
    Listen {
        /// As above.
        plane: &'static str,
        /// The address.
        listen: IpAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The libp2p swarm could not be set up.
    #[error("setting up the control plane: {0}")]
    Control(String),
}

/// Why something was not queued for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no link with the peer; a [`NetEvent::Lost`] says or said why.
    #[error("not connected")]
    NotConnected,
    /// The peer takes data more slowly than it is given.
    #[error("{queued_bytes} bytes wait for the peer already")]
    QueueFull {
        /// Bytes that wait.
        queued_bytes: usize,
    },
    /// Beyond the bound of its kind.
    #[error("{bytes} bytes, of which at most {max} can be sent at once")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no link with the peer.
    #[error("not connected")]
    NotConnected,
    /// The link was lost before the answer was complete.
    #[error("the connection was lost")]
    Lost,
    /// The peer did not want to answer.
    #[error("the peer refused to answer")]
    Refused,
    /// The request is larger than [`REQUEST_BYTES_MAX`].
    #[error("a request of {bytes} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The answer is larger than the caller wanted.
    #[error("the answer has more than {max} bytes")]
    ResponseTooLarge {
        /// The caller's limit.
        max: usize,
    },
}

/// Why nothing was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Beyond [`GOSSIP_BYTES_MAX`].
    #[error("a gossip message of {bytes} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The control plane is busy or has stopped.
    #[error("the control plane takes no message now")]
    Busy,
}

/// Commands to the network. Clones are the same network; it stops when the last is dropped.
#[derive(Clone)]
pub struct NetHandle {
    shared: Arc<Shared>,
    // Not in `Shared`, which the hub holds as well.
    _guard: Arc<Guard>,
}

/// What the handle sees of the hub's state.
struct Shared {
    links: RwLock<BTreeMap<PeerId, Arc<Link>>>,
    bulk: Arc<Bulk>,
    own: PeerId,
    addrs: LocalAddrs,
    control: mpsc::Sender<Command>,
    reports: mpsc::Sender<Report>,
}

/// Stops the hub when dropped.
struct Guard {
    reports: mpsc::Sender<Report>,
}

/// Starts both planes on the current tokio runtime.
///
/// # Errors
/// A required port that is taken, or an address that this machine doesn't have. That no peer can be
/// reached is no error: they may come later.
pub async fn start(config: NetConfig) -> Result<(NetHandle, mpsc::Receiver<NetEvent>), NetError> {
    let own = config.identity.peer_id();
    let socket = bind_bulk(&config)?;
    let member = bulk::handshake::Member::new(&config.access, own, config.incarnation);
    let listen_error = |source| NetError::Listen { plane: "bulk", listen: config.listen, source };
    let bulk =
        Bulk::new(socket, &config.identity, member, config.tuning.clone()).map_err(listen_error)?;
    let bulk = Arc::new(bulk);
    let bulk_port = bulk.local_addr().map_err(listen_error)?.port();

    let (events, receiver) = mpsc::channel(limits::EVENTS_QUEUED_MAX);
    let (reports, inbox) = mpsc::channel(limits::REPORTS_QUEUED_MAX);
    let (control_port, control) =
        control::start(&config, bulk_port, events.clone(), reports.clone())?;

    let ips = address::advertised_ips(config.listen);
    let with_port = |port| ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    let addrs = LocalAddrs { control: with_port(control_port), bulk: with_port(bulk_port) };
    if !bulk.segmentation_offload() {
        tracing::warn!("the system doesn't split large sends (GSO): sending will cost more time");
    }
    let fingerprint = config.access.fingerprint();
    tracing::info!(peer = %own, control_port, bulk_port, swarm = fingerprint, "network started");

    let presence = presence::Presence {
        peer: own,
        incarnation: config.incarnation,
        host: address::host_id(),
        control_port,
        bulk_port,
        ips,
    };
    let shared = Arc::new(Shared {
        links: RwLock::default(),
        bulk,
        own,
        addrs,
        control,
        reports: reports.clone(),
    });
    hub::start(presence, config.bootstrap, Arc::clone(&shared), events, inbox);
    Ok((NetHandle { shared, _guard: Arc::new(Guard { reports }) }, receiver))
}

impl NetHandle {
    /// This node's id.
    pub fn peer_id(&self) -> PeerId {
        self.shared.own
    }

    /// Where this node can be reached.
    pub fn local_addrs(&self) -> &LocalAddrs {
        &self.shared.addrs
    }

    /// The links that are up, by peer.
    pub fn links(&self) -> Vec<LinkStats> {
        let offload = self.shared.bulk.segmentation_offload();
        let links = self.shared.links.read().expect("no holder of the lock panics");
        links.values().map(|link| LinkStats::of(link, offload)).collect()
    }

    /// Queues a message for a connected peer. Messages arrive in order, or the peer is reported
    /// lost.
    ///
    /// # Errors
    /// See [`SendError`]; nothing is queued then.
    pub fn send(&self, to: PeerId, bytes: Bytes) -> Result<(), SendError> {
        self.link(to).ok_or(SendError::NotConnected)?.send(Kind::Message, bytes)
    }

    /// Queues a chunk for a connected peer, without a copy. Chunks may overtake each other.
    ///
    /// # Errors
    /// See [`SendError`]; nothing is queued then.
    pub fn send_chunk(&self, to: PeerId, header: &[u8], payload: Bytes) -> Result<(), SendError> {
        self.link(to).ok_or(SendError::NotConnected)?.send_chunk(header, payload)
    }

    /// Asks a connected peer; the answer may have up to `limit` bytes. There is no time limit: a
    /// lost peer ends it, and so does dropping the future.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request(
        &self,
        to: PeerId,
        bytes: Bytes,
        limit: usize,
    ) -> Result<Bytes, RequestError> {
        self.link(to).ok_or(RequestError::NotConnected)?.request(bytes, limit).await
    }

    /// Publishes to all members that the control plane reaches now. Delivery is likely, not
    /// certain; publish state again.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(&self, topic: Topic, bytes: Bytes) -> Result<(), PublishError> {
        if bytes.len() > GOSSIP_BYTES_MAX {
            return Err(PublishError::TooLarge { bytes: bytes.len() });
        }
        let command = Command::Publish { topic, bytes };
        self.shared.control.try_send(command).map_err(|_| PublishError::Busy)
    }

    /// Adds bulk addresses of a peer, as from its advert, and keeps trying to connect. Members find
    /// each other without it.
    pub fn connect(&self, peer: PeerId, bulk_addrs: Vec<SocketAddr>) {
        // A busy hub has enough to connect to; the next advert says it again.
        let _ = self.shared.reports.try_send(Report::Connect { peer, bulk_addrs });
    }

    /// Breaks the connection with a peer that sends what makes no sense. It is reported lost, as a violation.
    pub fn refuse(&self, peer: PeerId, reason: &str) {
        if let Some(link) = self.link(peer) {
            link.refuse(reason);
        }
    }

    /// Says goodbye to all peers and stops both planes. Returns when that is done.
    pub async fn shutdown(&self) {
        let (done, finished) = oneshot::channel();
        if self.shared.reports.send(Report::Shutdown { done: Some(done) }).await.is_ok() {
            // An error means that the hub has stopped already.
            let _ = finished.await;
        }
    }

    fn link(&self, peer: PeerId) -> Option<Arc<Link>> {
        let links = self.shared.links.read().expect("no holder of the lock panics");
        links.get(&peer).cloned()
    }
}

impl fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetHandle({})", self.shared.own)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.reports.try_send(Report::Shutdown { done: None });
    }
}

impl Default for NetConfig {
    /// A new identity in a new swarm, reachable on all interfaces; what a real node replaces part
    /// by part.
    fn default() -> Self {
        Self {
            identity: Identity::generate(),
            incarnation: Incarnation(1),
            access: SwarmAccess::Secret(SwarmSecret::generate()),
            listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            control_port: Port::Prefer(DEFAULT_CONTROL_PORT),
            bulk_port: Port::Prefer(DEFAULT_BULK_PORT),
            mdns: true,
            bootstrap: Vec::new(),
            tuning: Tuning::default(),
        }
    }
}

impl SwarmAccess {
    fn fingerprint(&self) -> String {
        match self {
            Self::Secret(secret) => secret.fingerprint(),
            Self::AllowList(peers) => format!("allow-list of {}", peers.len()),
        }
    }
}

impl Responder {
    /// Sends the answer. If the asker is gone, nothing happens.
    pub fn send(self, bytes: Bytes) {
        let _ = self.respond.send(bytes);
    }

    /// Whether the asker no longer waits.
    pub fn is_withdrawn(&self) -> bool {
        self.respond.is_closed()
    }
}

impl LinkStats {
    fn of(link: &Link, offload: bool) -> Self {
        let stats = link.stats();
        Self {
            peer: link.peer,
            remote: link.remote(),
            age: link.since.elapsed(),
            rtt: stats.path.rtt,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            mtu_bytes: stats.path.current_mtu,
            congestion_window_bytes: stats.path.cwnd,
            queued_bytes: link.queued_bytes(),
            segmentation_offload: offload,
        }
    }
}

impl Topic {
    const ALL: [Self; 3] = [Self::Advert, Self::Job, Self::Status];

    fn name(self) -> &'static str {
        match self {
            Self::Advert => "advert",
            Self::Job => "job",
            Self::Status => "status",
        }
    }
}

fn bind_bulk(config: &NetConfig) -> Result<std::net::UdpSocket, NetError> {
    let plane = "bulk (UDP)";
    let bind = |port| config.tuning.bind(SocketAddr::new(config.listen, port));
    let (port, result) = match config.bulk_port {
        Port::Any => (0, bind(0)),
        Port::Prefer(port) => (port, bind(port).or_else(|_| bind(0))),
        Port::Require(port) => (port, bind(port)),
    };
    result.map_err(|source| NetError::of_bind(plane, config.listen, port, source))
}

impl NetError {
    fn of_bind(plane: &'static str, listen: IpAddr, port: u16, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::PortInUse { plane, listen, port }
        } else {
            Self::Listen { plane, listen, source }
        }
    }
}
