//! The hub: the one task that knows all peers.
//!
//! Everything arrives as a [`Report`]; decisions go out as dials, control commands and events. A
//! peer is pursued from the moment it is heard of until it says goodbye or has been silent for
//! long. The pair's connection is chosen by the lower id (see [`super::bulk::handshake`]); a later
//! incarnation of a peer ends the link with the earlier one.

mod peer;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p::{Multiaddr, swarm::ConnectionId};
use p2ptrain_protocol::id::Incarnation;
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
};

use self::peer::{Attempts, ControlConnection, Peer};
use super::{
    LossCause, NetEvent, PeerAddr, Shared, address,
    bulk::{
        DialError, close,
        frame::Kind,
        handshake::Proven,
        link::{End, Link},
    },
    control::{Agent, Command},
    limits,
    presence::{self, Presence},
};
use crate::identity::PeerId;

/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(50);

/// What the hub hears.
pub(super) enum Report {
    /// A control connection is up.
    Opened {
        peer: PeerId,
        connection: ConnectionId,
        remote: SocketAddr,
        tcp: bool,
        dialled: bool,
        token: Option<usize>,
    },
    /// A control connection is gone.
    Closed { peer: PeerId, connection: ConnectionId },
    /// A control peer has told its ports.
    Identified { peer: PeerId, agent: Agent },
    /// Peers were found on the local network.
    Found { peers: BTreeMap<PeerId, Vec<Multiaddr>> },
    /// Another peer answered where this one was expected.
    Replaced { peer: PeerId, at: SocketAddr },
    /// A control dial failed; the token names the bootstrap address.
    DialFailed { token: Option<usize>, reason: String },
    /// A bootstrap address was looked up.
    Resolved { token: usize, result: Result<Vec<Multiaddr>, String> },
    /// A bulk connection passed its handshake.
    Proven(Box<Proven>),
    /// The peer, who decides, has chosen this connection.
    Chosen(Box<Proven>),
    /// An attempt to reach a peer's bulk plane is over.
    Dialled { peer: PeerId, result: Result<(), DialError> },
    /// A member told where members are.
    Presence { from: PeerId, presences: Vec<Presence> },
    /// A link is gone and all its events are delivered.
    LinkEnded { peer: PeerId, id: u64, end: End },
    /// A peer's control port was tried after a connection with it closed.
    Probed { peer: PeerId, incarnation: Incarnation, refused: bool },
    /// The driver knows addresses.
    Connect { peer: PeerId, bulk_addrs: Vec<SocketAddr> },
    /// The driver, or the last handle's drop, ends the network.
    Shutdown { done: Option<oneshot::Sender<()>> },
}

struct Hub {
    presence: Presence,
    peers: BTreeMap<PeerId, Peer>,
    bootstrap: Vec<Bootstrap>,
    links_made: u64,
    shared: Arc<Shared>,
    events: mpsc::Sender<NetEvent>,
}

/// An address where the user expects a member.
struct Bootstrap {
    addr: PeerAddr,
    /// Who answered there last.
    peer: Option<PeerId>,
    /// It is this node: not dialled again.
    own: bool,
    /// Dials under way.
    pending: usize,
    attempts: Attempts,
}

pub(super) fn start(
    presence: Presence,
    bootstrap: Vec<PeerAddr>,
    shared: Arc<Shared>,
    events: mpsc::Sender<NetEvent>,
    inbox: mpsc::Receiver<Report>,
) {
    let bootstrap = bootstrap
        .into_iter()
        .map(|addr| Bootstrap {
            peer: addr.peer(),
            addr,
            own: false,
            pending: 0,
            attempts: Attempts::default(),
        })
        .collect();
    let (sender, mut proven) = mpsc::channel(limits::HANDSHAKES_MAX);
    let accept = tokio::spawn(Arc::clone(&shared.bulk).accept(sender));
    let reports = shared.reports.clone();
    tokio::spawn(async move {
        while let Some(connection) = proven.recv().await {
            if reports.send(Report::Proven(Box::new(connection))).await.is_err() {
                return;
            }
        }
    });
    let hub = Hub { presence, peers: BTreeMap::new(), bootstrap, links_made: 0, shared, events };
    tokio::spawn(async move {
        let done = hub.run(inbox).await;
        accept.abort();
        if let Some(done) = done {
            let _ = done.send(());
        }
    });
}

impl Hub {
    async fn run(mut self, mut inbox: mpsc::Receiver<Report>) -> Option<oneshot::Sender<()>> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let done = loop {
            tokio::select! {
                report = inbox.recv() => match report {
                    None => break None,
                    Some(Report::Shutdown { done }) => break done,
                    Some(report) => self.handle(report).await,
                },
                _ = ticks.tick() => self.handle_timers(),
                () = self.events.closed() => break None,
            }
        };
        // Links go first and say goodbye; the control connections' end is then no news.
        self.shared.links.write().expect("no holder of the lock panics").clear();
        self.shared.bulk.close().await;
        self.command(Command::Shutdown);
        done
    }

    async fn handle(&mut self, report: Report) {
        match report {
            Report::Opened { peer, connection, remote, tcp, dialled, token } => {
                let found = ControlConnection { remote, tcp, dialled };
                self.handle_opened(peer, connection, found, token);
            }
            Report::Closed { peer, connection } => self.handle_closed(peer, connection),
            Report::Identified { peer, agent } => self.handle_identified(peer, agent),
            Report::Found { peers } => self.handle_found(peers),
            Report::Replaced { peer, at } => self.handle_replaced(peer, at),
            Report::DialFailed { token, reason } => self.handle_dial_failed(token, reason).await,
            Report::Resolved { token, result } => self.handle_resolved(token, result).await,
            Report::Proven(proven) => self.handle_proven(*proven).await,
            Report::Chosen(proven) => self.handle_chosen(*proven).await,
            Report::Dialled { peer, result } => self.handle_dialled(peer, result),
            Report::Presence { from, presences } => self.handle_presences(from, presences),
            Report::LinkEnded { peer, id, end } => self.handle_link_ended(peer, id, end).await,
            Report::Probed { peer, incarnation, refused } => {
                self.handle_probed(peer, incarnation, refused);
            }
            Report::Connect { peer, bulk_addrs } => {
                if let Some(known) = self.know(peer) {
                    known.add_bulk_addrs(bulk_addrs);
                    self.pursue(peer);
                }
            }
            // The loop ends before it gets here.
            Report::Shutdown { .. } => {}
        }
    }

    // Control connections.

    fn handle_opened(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        found: ControlConnection,
        token: Option<usize>,
    ) {
        if let Some(bootstrap) = token.and_then(|token| self.bootstrap.get_mut(token)) {
            bootstrap.pending = 0;
            bootstrap.peer = Some(peer);
            bootstrap.attempts.succeeded();
        }
        if let Some(known) = self.know(peer) {
            known.control.insert(connection, found);
            known.control_attempts.succeeded();
        }
    }

    fn handle_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(closed) = known.control.remove(&connection) else { return };
        let (Some(link), Some(probe)) = (&known.link, known.probe_addr(&closed)) else { return };
        // A process that was killed closes its connections and refuses new ones.
        let (incarnation, reports) = (link.incarnation, self.shared.reports.clone());
        tokio::spawn(async move {
            let refused = refuses(probe).await;
            let _ = reports.send(Report::Probed { peer, incarnation, refused }).await;
        });
    }

    fn handle_probed(&mut self, peer: PeerId, incarnation: Incarnation, refused: bool) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(link) = known.link.as_ref().filter(|l| l.incarnation == incarnation) else {
            return;
        };
        if refused {
            known.cause = Some(LossCause::Dead);
            link.close(close::SUPERSEDED, "believed dead");
        } else {
            // The connection broke but the peer listens: have one again soon.
            known.control_attempts.retry_now();
        }
    }

    /// A process keeps its control port for as long as it lives. Only the address of the link
    /// itself is sure to be the peer's machine: private addresses mean other machines elsewhere.
    fn handle_replaced(&mut self, peer: PeerId, at: SocketAddr) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let port = known.presence.as_ref().map(|presence| presence.control_port);
        if let Some(link) = &known.link
            && link.remote().ip() == at.ip().to_canonical()
            && port == Some(at.port())
        {
            known.cause = Some(LossCause::Dead);
            link.close(close::SUPERSEDED, "another process has its port");
        }
    }

    fn handle_identified(&mut self, peer: PeerId, agent: Agent) {
        let Some(known) = self.know(peer) else { return };
        known.agent = Some(agent);
        if let Some(link) = &known.link
            && link.incarnation < agent.incarnation
        {
            known.cause = Some(LossCause::Dead);
            link.close(close::SUPERSEDED, "a later incarnation has come");
        }
        self.pursue(peer);
    }

    fn handle_found(&mut self, peers: BTreeMap<PeerId, Vec<Multiaddr>>) {
        for (peer, addrs) in peers.into_iter().take(limits::PEERS_MAX) {
            let connected = self.peers.get(&peer).is_some_and(|known| known.has_tcp());
            if peer == self.presence.peer || connected {
                continue;
            }
            let addrs = addrs.into_iter().take(limits::ADDRS_MAX).collect();
            self.command(Command::Dial { peer: Some(peer), addrs, token: None });
        }
    }

    // Bootstrap.

    async fn handle_resolved(&mut self, token: usize, result: Result<Vec<Multiaddr>, String>) {
        match result {
            Ok(addrs) if addrs.is_empty() => {
                self.bootstrap_failed(token, "the name has no address".to_owned()).await;
            }
            Ok(addrs) => {
                let Some(bootstrap) = self.bootstrap.get_mut(token) else { return };
                let peer = bootstrap.addr.peer();
                bootstrap.pending = if peer.is_some() { 1 } else { addrs.len() };
                self.command(Command::Dial { peer, addrs, token: Some(token) });
            }
            Err(reason) => self.bootstrap_failed(token, reason).await,
        }
    }

    async fn handle_dial_failed(&mut self, token: Option<usize>, reason: String) {
        let Some(token) = token else {
            tracing::debug!("control dial failed: {reason}");
            return;
        };
        let Some(bootstrap) = self.bootstrap.get_mut(token) else { return };
        bootstrap.own |= reason == "this node itself";
        bootstrap.pending = bootstrap.pending.saturating_sub(1);
        if bootstrap.pending == 0 && !bootstrap.own {
            self.bootstrap_failed(token, reason).await;
        }
    }

    async fn bootstrap_failed(&mut self, token: usize, reason: String) {
        let Some(bootstrap) = self.bootstrap.get_mut(token) else { return };
        bootstrap.pending = 0;
        let retry_in = bootstrap.attempts.failed();
        let addr = bootstrap.addr.clone();
        tracing::debug!("no member at {addr} ({reason}); trying again in {retry_in:?}");
        self.event(NetEvent::BootstrapFailed { addr, reason, retry_in }).await;
    }

    // Bulk connections.

    async fn handle_proven(&mut self, mut proven: Proven) {
        let peer = proven.peer;
        let decides = proven.decides(self.presence.peer);
        let Some(known) = self.know(peer) else {
            proven.close(close::STRANGER, "too many peers");
            return;
        };
        if known.barred_until.is_some_and(|until| Instant::now() < until) {
            proven.close(close::VIOLATION, "barred for breaking the format");
            return;
        }
        if !decides {
            let reports = self.shared.reports.clone();
            tokio::spawn(async move {
                let chosen =
                    tokio::time::timeout(limits::HANDSHAKE_TIME_MAX, proven.chosen()).await;
                match chosen {
                    Ok(Ok(())) => drop(reports.send(Report::Chosen(Box::new(proven))).await),
                    Ok(Err(e)) => tracing::debug!(%peer, "connection not chosen: {e}"),
                    Err(_) => proven.close(close::DUPLICATE, "not chosen"),
                }
            });
            return;
        }
        match &known.link {
            Some(link) if link.incarnation > proven.incarnation => {
                proven.close(close::SUPERSEDED, "a later incarnation is linked");
            }
            // Both sides dialled at once. An older link is another matter: the peer has lost it and
            // came back.
            Some(link)
                if link.incarnation == proven.incarnation
                    && link.since.elapsed() < limits::HANDSHAKE_TIME_MAX =>
            {
                proven.close(close::DUPLICATE, "already linked");
            }
            _ => match proven.choose().await {
                Ok(()) => self.handle_chosen(proven).await,
                Err(e) => tracing::debug!(%peer, "connection lost while it was chosen: {e}"),
            },
        }
    }

    async fn handle_chosen(&mut self, proven: Proven) {
        let peer = proven.peer;
        let Some(known) = self.know(peer) else {
            proven.close(close::STRANGER, "too many peers");
            return;
        };
        let Some(link) = &known.link else {
            self.link_up(proven).await;
            return;
        };
        // Its last events come first; then this connection takes over.
        if link.incarnation != proven.incarnation {
            known.cause = Some(LossCause::Dead);
        }
        link.close(close::SUPERSEDED, "replaced");
        if let Some(earlier) = known.successor.replace(Box::new(proven)) {
            earlier.close(close::DUPLICATE, "replaced");
        }
    }

    async fn link_up(&mut self, proven: Proven) {
        let (peer, incarnation) = (proven.peer, proven.incarnation);
        let rtt = proven.connection.rtt();
        let remote = proven.connection.remote_address();
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        self.links_made += 1;
        let shared = &self.shared;
        let (link, running) = Link::new(
            self.links_made,
            proven,
            shared.bulk.tuning(),
            self.events.clone(),
            shared.reports.clone(),
        );
        shared.links.write().expect("no holder of the lock panics").insert(peer, Arc::clone(&link));
        self.command(Command::Met { peer, incarnation });
        // Whoever hears of the connection can send at once, and hears of it before all that comes
        // through it.
        tracing::info!(%peer, %remote, ?rtt, "connected");
        self.event(NetEvent::Connected { peer, incarnation, rtt, remote }).await;
        tokio::spawn(running);

        let own = std::iter::once(&self.presence);
        let others = self.peers.values().filter(|known| known.link.is_some());
        let all = presence::encode(own.chain(others.filter_map(|known| known.presence.as_ref())));
        // A new link's queue is empty, and the table is far below a message's bound.
        let _ = link.send(Kind::Presence, all.into());
        if let Some(known) = self.peers.get_mut(&peer) {
            known.link = Some(link);
            known.attempts.succeeded();
            known.violations = known.violations.saturating_sub(1);
            known.control_attempts.start_after(head_start(self.presence.peer, peer));
        }
    }

    async fn handle_link_ended(&mut self, peer: PeerId, id: u64, end: End) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(link) = known.link.take_if(|link| link.id == id) else { return };
        self.shared.links.write().expect("no holder of the lock panics").remove(&peer);
        let cause = known.cause.take().unwrap_or(match &end {
            End::Goodbye => LossCause::Closed,
            End::Reset => LossCause::Dead,
            End::Violation(_) => LossCause::Violation,
            End::Local | End::Failed(_) => LossCause::Unreachable,
        });
        if let End::Violation(reason) = &end {
            tracing::warn!(%peer, "disconnected for breaking the format: {reason}");
            known.bar();
        } else {
            tracing::info!(%peer, ?cause, "lost: {end}");
        }
        known.heard = Instant::now();
        known.attempts.start_after(head_start(self.presence.peer, peer));
        let successor = known.successor.take();
        if cause == LossCause::Closed {
            // It left: seek it no more, until it is heard of again.
            known.forget_addrs();
        }
        self.command(Command::Parted { peer });
        let incarnation = link.incarnation;
        self.event(NetEvent::Lost { peer, incarnation, cause }).await;
        match successor {
            Some(proven) if proven.connection.close_reason().is_none() => {
                self.link_up(*proven).await;
            }
            _ => {}
        }
    }

    fn handle_dialled(&mut self, peer: PeerId, result: Result<(), DialError>) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.attempts.ended();
        if let Err(e) = result
            && known.link.is_none()
        {
            let retry_in = known.attempts.failed();
            if e.is_routine() {
                tracing::debug!(%peer, "bulk dial: {e}");
            } else {
                tracing::info!(%peer, "bulk dial failed ({e}); trying again in {retry_in:?}");
            }
        }
    }

    fn handle_presences(&mut self, from: PeerId, presences: Vec<Presence>) {
        for presence in presences {
            let peer = presence.peer;
            if peer == self.presence.peer {
                continue;
            }
            let Some(known) = self.know(peer) else { continue };
            if peer == from {
                known.set_presence(presence);
                self.introduce(peer);
            } else if known.link.is_none() {
                // Of a linked peer we know more than a third one does.
                known.heard = Instant::now();
                known.set_presence(presence);
                self.pursue(peer);
            }
        }
    }

    /// Tells all others where this new neighbour is.
    fn introduce(&self, peer: PeerId) {
        let Some(known) = self.peers.get(&peer) else { return };
        let Some(presence) = known.seen_presence() else { return };
        let bytes = Bytes::from(presence::encode([&presence]));
        for (other, link) in self.peers.iter().filter_map(|(id, p)| Some((id, p.link.as_ref()?))) {
            if *other != peer {
                // A full queue delays the meeting until one of them hears of the other elsewhere.
                let _ = link.send(Kind::Presence, bytes.clone());
            }
        }
    }

    // Timers.

    fn handle_timers(&mut self) {
        let now = Instant::now();
        self.peers.retain(|_, known| !known.is_forgotten(now));
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.pursue(peer);
            self.keep_control(peer, now);
        }
        for token in 0..self.bootstrap.len() {
            self.keep_bootstrap(token, now);
        }
    }

    /// Dials the peer's bulk plane if there is no link and the time has come.
    fn pursue(&mut self, peer: PeerId) {
        let own_host = self.presence.host;
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.link.is_some() || known.is_barred() || !known.attempts.is_due() {
            return;
        }
        let addrs = known.bulk_candidates(&own_host);
        if addrs.is_empty() {
            return;
        }
        if !std::mem::replace(&mut known.announced, true) {
            // For people; a driver too busy for it hears of the connection anyway.
            let _ = self.events.try_send(NetEvent::Discovered { peer, addrs: addrs.clone() });
        }
        known.attempts.begin();
        let (bulk, reports) = (Arc::clone(&self.shared.bulk), self.shared.reports.clone());
        tokio::spawn(async move {
            let result = match bulk.dial(peer, &addrs).await {
                Ok(proven) => {
                    let _ = reports.send(Report::Proven(Box::new(proven))).await;
                    Ok(())
                }
                Err(e) => Err(e),
            };
            let _ = reports.send(Report::Dialled { peer, result }).await;
        });
    }

    /// Each linked pair keeps a TCP control connection.
    fn keep_control(&mut self, peer: PeerId, now: Instant) {
        let own_host = self.presence.host;
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.link.is_none() || known.has_tcp() || !known.control_attempts.is_due_at(now) {
            return;
        }
        let addrs = known.control_candidates(&own_host);
        if addrs.is_empty() {
            return;
        }
        known.control_attempts.failed();
        let addrs = addrs.into_iter().map(|addr| address::multiaddr(addr, false)).collect();
        self.command(Command::Dial { peer: Some(peer), addrs, token: None });
    }

    /// Looks for a member at a bootstrap address for as long as nobody from there is connected.
    fn keep_bootstrap(&mut self, token: usize, now: Instant) {
        let bootstrap = &mut self.bootstrap[token];
        let connected = bootstrap.peer.and_then(|peer| self.peers.get(&peer));
        let connected = connected.is_some_and(|p| p.link.is_some() || !p.control.is_empty());
        if connected || bootstrap.own || bootstrap.pending > 0 {
            return;
        }
        if !bootstrap.attempts.is_due_at(now) {
            return;
        }
        bootstrap.pending = 1;
        let (addr, reports) = (bootstrap.addr.clone(), self.shared.reports.clone());
        tokio::spawn(async move {
            let result = addr.resolve().await.map_err(|e| e.to_string());
            let _ = reports.send(Report::Resolved { token, result }).await;
        });
    }

    // Helpers.

    /// The state of a peer, new if it was unknown; `None` for this node itself and when too many
    /// are known.
    fn know(&mut self, peer: PeerId) -> Option<&mut Peer> {
        if peer == self.presence.peer {
            return None;
        }
        if !self.peers.contains_key(&peer) {
            if self.peers.len() >= limits::PEERS_MAX {
                tracing::warn!(%peer, "not admitted: {} peers are known already", self.peers.len());
                return None;
            }
            let mut known = Peer::new();
            known.attempts.start_after(head_start(self.presence.peer, peer));
            self.peers.insert(peer, known);
        }
        self.peers.get_mut(&peer)
    }

    async fn event(&self, event: NetEvent) {
        // It fails when the driver is gone, which the loop notices.
        let _ = self.events.send(event).await;
    }

    fn command(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.shared.control.try_send(command)
        {
            tracing::warn!(?command, "the control plane is too busy");
        }
    }
}

/// Of two peers, the lower dials first.
fn head_start(own: PeerId, peer: PeerId) -> Duration {
    if own < peer { Duration::ZERO } else { limits::HEAD_START }
}

/// Whether nobody listens at `addr` although its machine answers. Asked several times: a dying
/// process closes its sockets one by one, the listening one not necessarily first.
async fn refuses(addr: SocketAddr) -> bool {
    const PAUSES_MS: [u64; 7] = [0, 2, 10, 30, 100, 300, 600];
    for pause in PAUSES_MS {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let attempt = tokio::time::timeout(limits::PROBE_TIME_MAX, TcpStream::connect(addr)).await;
        let refused = match attempt {
            // A connection with itself: the port was free, and the system happened to choose it for
            // our end.
            Ok(Ok(stream)) => stream.local_addr().ok() == Some(addr),
            Ok(Err(e)) => e.kind() == std::io::ErrorKind::ConnectionRefused,
            Err(_) => return false,
        };
        if refused {
            return true;
        }
    }
    false
}
