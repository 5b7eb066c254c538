//! The control plane: a libp2p swarm in one task.
//!
//! With a swarm secret, the Noise handshake of TCP connections carries a prologue derived from it:
//! the handshake fails unless both sides know the secret, so a stranger gets no further than the
//! peer's id. QUIC connections have no such place; [`gate`] lets only peers use them that have
//! proven membership elsewhere.

mod gate;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use bytes::Bytes;
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder, connection_limits,
    futures::StreamExt,
    gossipsub, identify, mdns, noise, ping,
    swarm::{
        ConnectionId, DialError, NetworkBehaviour, SwarmEvent,
        behaviour::toggle::Toggle,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};
use p2ptrain_protocol::id::Incarnation;
use tokio::sync::mpsc;

use self::gate::Gate;
use super::{
    NetConfig, NetError, NetEvent, Port, SwarmAccess, Topic, address,
    hub::Report,
    limits,
    seal::{self, SealError, Sealer},
};
use crate::identity::{self, PeerId};

/// Identify's name of the protocol family.
const PROTOCOL: &str = "p2ptrain/1";
const AGENT: &str = concat!("p2ptrain/", env!("CARGO_PKG_VERSION"));
/// What the protobuf around a gossip message may add: ids, signature, topic.
const GOSSIP_ENVELOPE_BYTES_MAX: usize = 1024;

/// What the hub and the handle ask for. Given with `try_send`: a busy swarm loses commands, which
/// are repeated or lossy.
#[derive(Debug)]
pub(super) enum Command {
    Publish {
        topic: Topic,
        bytes: Bytes,
    },
    /// Dials all addresses; of an unnamed peer each by itself.
    Dial {
        peer: Option<PeerId>,
        addrs: Vec<Multiaddr>,
        token: Option<usize>,
    },
    /// A bulk handshake has proven that the peer is a member, in this incarnation.
    Met {
        peer: PeerId,
        incarnation: Incarnation,
    },
    /// The bulk link with the peer is gone.
    Parted {
        peer: PeerId,
    },
    Shutdown,
}

/// What a peer says about itself by identify: the ports that aren't part of the connection's
/// address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) incarnation: Incarnation,
    pub(super) control_port: u16,
    pub(super) bulk_port: u16,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    // First, so that refused peers reach none of the others.
    gate: Gate,
    limits: connection_limits::Behaviour,
    gossip: gossipsub::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

struct Control {
    swarm: Swarm<Behaviour>,
    sealer: Sealer,
    topics: BTreeMap<Topic, gossipsub::IdentTopic>,
    dials: BTreeMap<ConnectionId, usize>,
    events: mpsc::Sender<NetEvent>,
    reports: mpsc::Sender<Report>,
}

/// Keys by which the control planes of one swarm know each other.
struct Keys {
    gossip: [u8; 32],
    topic: [u8; 32],
    prologue: Vec<u8>,
}

/// Binds the ports and starts the task. Returns the port and where commands go.
pub(super) fn start(
    config: &NetConfig,
    bulk_port: u16,
    events: mpsc::Sender<NetEvent>,
    reports: mpsc::Sender<Report>,
) -> Result<(u16, mpsc::Sender<Command>), NetError> {
    let keys = Keys::of(&config.access);
    let own = config.identity.peer_id();
    let mut swarm = build(config, &keys)?;
    let port = listen(&mut swarm, config, bulk_port)?;
    let topics = subscribe(&mut swarm, &keys)?;
    // Identify is told the ports once they are known; it speaks first when a connection is up.
    let agent = Agent { incarnation: config.incarnation, control_port: port, bulk_port };
    let identify = identify::Config::new(PROTOCOL.to_owned(), config.identity.keypair().public())
        .with_agent_version(agent.to_string())
        .with_hide_listen_addrs(true);
    swarm.behaviour_mut().identify = identify::Behaviour::new(identify);

    let (commands, inbox) = mpsc::channel(limits::REPORTS_QUEUED_MAX);
    let sealer = Sealer::new(&keys.gossip, own, config.incarnation);
    let control = Control { swarm, sealer, topics, dials: BTreeMap::new(), events, reports };
    tokio::spawn(control.run(inbox));
    Ok((port, commands))
}

impl Control {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => {
                    // The hub outlives this task, except when all is over.
                    if let Some(report) = self.handle_event(event)
                        && self.reports.send(report).await.is_err()
                    {
                        return;
                    }
                }
                command = commands.recv() => match command {
                    None | Some(Command::Shutdown) => return,
                    Some(command) => self.handle_command(command),
                },
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Publish { topic, bytes } => self.publish(topic, &bytes),
            Command::Dial { peer, addrs, token } => self.dial(peer, addrs, token),
            Command::Met { peer, incarnation } => {
                self.sealer.met(peer, incarnation);
                if let Some(peer) = identity::to_libp2p(peer) {
                    self.swarm.behaviour_mut().gate.prove(peer);
                }
            }
            Command::Parted { peer } => self.sealer.parted(peer),
            // The loop ends before it gets here.
            Command::Shutdown => {}
        }
    }

    fn publish(&mut self, topic: Topic, bytes: &[u8]) {
        let name = &self.topics[&topic];
        let sealed = self.sealer.seal(&name.to_string(), bytes);
        match self.swarm.behaviour_mut().gossip.publish(name.clone(), sealed) {
            Ok(_) | Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => {}
            Err(e) => tracing::debug!("publishing on {}: {e}", topic.name()),
        }
    }

    fn dial(&mut self, peer: Option<PeerId>, addrs: Vec<Multiaddr>, token: Option<usize>) {
        let options: Vec<DialOpts> = match peer.map(identity::to_libp2p) {
            Some(Some(peer)) => vec![
                DialOpts::peer_id(peer)
                    .condition(PeerCondition::NotDialing)
                    .addresses(addrs)
                    .allocate_new_port()
                    .build(),
            ],
            Some(None) => Vec::new(),
            None => addrs
                .into_iter()
                .map(|addr| DialOpts::unknown_peer_id().address(addr).allocate_new_port().build())
                .collect(),
        };
        for options in options {
            let id = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => drop(token.map(|token| self.dials.insert(id, token))),
                Err(e) => {
                    let report = Report::DialFailed { token, reason: reason(&e) };
                    // A hub too busy to hear of it finds out by its own timer.
                    let _ = self.reports.try_send(report);
                }
            }
        }
    }

    fn handle_event(&mut self, event: SwarmEvent<BehaviourEvent>) -> Option<Report> {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let peer = identity::from_libp2p(&peer_id)?;
                let (remote, tcp) = address::socket_addr(endpoint.get_remote_address())?;
                if tcp {
                    self.swarm.behaviour_mut().gate.prove(peer_id);
                }
                Some(Report::Opened {
                    peer,
                    connection: connection_id,
                    remote,
                    tcp,
                    dialled: endpoint.is_dialer(),
                    token: self.dials.remove(&connection_id),
                })
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                let peer = identity::from_libp2p(&peer_id)?;
                tracing::debug!(%peer, "control connection closed: {cause:?}");
                Some(Report::Closed { peer, connection: connection_id })
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer),
                error: DialError::WrongPeerId { address, .. },
                connection_id,
            } if !self.dials.contains_key(&connection_id) => Some(Report::Replaced {
                peer: identity::from_libp2p(&peer)?,
                at: address::socket_addr(&address)?.0,
            }),
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                let token = self.dials.remove(&connection_id);
                Some(Report::DialFailed { token, reason: reason(&error) })
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::info!("control connection from {send_back_addr} refused: {error}");
                None
            }
            SwarmEvent::Behaviour(event) => self.handle_behaviour(event),
            _ => None,
        }
    }

    fn handle_behaviour(&mut self, event: BehaviourEvent) -> Option<Report> {
        match event {
            BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => {
                let acceptance = self.handle_gossip(&propagation_source, message);
                self.swarm.behaviour_mut().gossip.report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    acceptance,
                );
                None
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                let peer = identity::from_libp2p(&peer_id)?;
                let Some(agent) = Agent::parse(&info.agent_version) else {
                    let software = info.agent_version;
                    tracing::warn!(%peer, software, "control peer runs other software");
                    return None;
                };
                Some(Report::Identified { peer, agent })
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                let mut peers = BTreeMap::<PeerId, Vec<Multiaddr>>::new();
                for (peer, addr) in found {
                    // Unknown peers have to prove themselves by TCP; see the gate.
                    let tcp = address::socket_addr(&addr).is_some_and(|(_, tcp)| tcp);
                    if let Some(peer) = identity::from_libp2p(&peer).filter(|_| tcp) {
                        peers.entry(peer).or_default().push(addr);
                    }
                }
                Some(Report::Found { peers })
            }
            _ => None,
        }
    }

    fn handle_gossip(
        &mut self,
        via: &libp2p::PeerId,
        message: gossipsub::Message,
    ) -> gossipsub::MessageAcceptance {
        use gossipsub::MessageAcceptance::{Accept, Ignore, Reject};
        let topic = self.topics.iter().find(|(_, name)| name.hash() == message.topic);
        let source = message.source.as_ref().and_then(identity::from_libp2p);
        let (Some((topic, name)), Some(source)) = (topic, source) else { return Reject };
        match self.sealer.open(&name.to_string(), source, &message.data) {
            Ok(bytes) => {
                let event = NetEvent::Gossip { from: source, topic: *topic, bytes: bytes.into() };
                // Gossip may get lost; it must not hold up the swarm while the driver is busy.
                if self.events.try_send(event).is_err() {
                    tracing::debug!(%source, "gossip dropped: the driver is busy");
                }
                Accept
            }
            Err(error @ SealError::Forged) => {
                tracing::warn!(%source, %via, "gossip rejected: {error}");
                Reject
            }
            Err(error) => {
                tracing::info!(%source, %via, "gossip ignored: {error}");
                Ignore
            }
        }
    }
}

impl Agent {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        words.next()?.strip_prefix("p2ptrain/")?;
        let agent = Self {
            incarnation: Incarnation(words.next()?.strip_prefix("run=")?.parse().ok()?),
            control_port: words.next()?.strip_prefix("control=")?.parse().ok()?,
            bulk_port: words.next()?.strip_prefix("bulk=")?.parse().ok()?,
        };
        // Later versions may say more.
        Some(agent)
    }
}

impl std::fmt::Display for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { incarnation, control_port, bulk_port } = self;
        write!(f, "{AGENT} run={incarnation} control={control_port} bulk={bulk_port}")
    }
}

impl Keys {
    fn of(access: &SwarmAccess) -> Self {
        match access {
            SwarmAccess::Secret(secret) => Self {
                gossip: secret.gossip_key(),
                topic: secret.topic_key(),
                prologue: secret.control_prologue().to_vec(),
            },
            // The gate keeps everybody else out, so nothing here needs to be secret.
            SwarmAccess::AllowList(_) => Self {
                gossip: blake3::derive_key("p2ptrain gossip by allow-list v1", &[]),
                topic: blake3::derive_key("p2ptrain topics by allow-list v1", &[]),
                prologue: Vec::new(),
            },
        }
    }
}

fn build(config: &NetConfig, keys: &Keys) -> Result<Swarm<Behaviour>, NetError> {
    let setup = |e: &dyn std::fmt::Display| NetError::Control(e.to_string());
    let prologue = keys.prologue.clone();
    let swarm = SwarmBuilder::with_existing_identity(config.identity.keypair())
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            move |key: &libp2p::identity::Keypair| -> Result<noise::Config, noise::Error> {
                Ok(noise::Config::new(key)?.with_prologue(prologue))
            },
            yamux::Config::default,
        )
        .map_err(|e| setup(&e))?
        .with_quic()
        .with_behaviour(|_| behaviour(config))
        .map_err(|e| setup(&e))?
        // A control connection stays for as long as both processes live: its end is how their death
        // is noticed.
        .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(u64::MAX / 4)))
        .build();
    Ok(swarm)
}

type Setup<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn behaviour(config: &NetConfig) -> Setup<Behaviour> {
    let keypair = config.identity.keypair();
    let allowed = match &config.access {
        SwarmAccess::Secret(_) => None,
        SwarmAccess::AllowList(peers) => {
            Some(peers.iter().filter_map(|peer| identity::to_libp2p(*peer)).collect())
        }
    };
    let connection_limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits::CONTROL_PENDING_MAX))
        .with_max_pending_outgoing(Some(limits::CONTROL_PENDING_MAX))
        .with_max_established(Some(limits::CONTROL_CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(limits::CONTROL_CONNECTIONS_PER_PEER_MAX));
    let gossip_config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(
            limits::GOSSIP_BYTES_MAX + seal::OVERHEAD_BYTES + GOSSIP_ENVELOPE_BYTES_MAX,
        )
        .heartbeat_initial_delay(Duration::from_millis(100))
        .heartbeat_interval(Duration::from_millis(500))
        .build()?;
    let gossip = gossipsub::Behaviour::new(
        gossipsub::MessageAuthenticity::Signed(keypair.clone()),
        gossip_config,
    )?;
    let identify = identify::Config::new(PROTOCOL.to_owned(), keypair.public());
    let mdns = (config.mdns && !config.listen.is_loopback()).then(|| {
        let query = mdns::Config { query_interval: Duration::from_secs(60), ..Default::default() };
        mdns::tokio::Behaviour::new(query, keypair.public().to_peer_id())
    });
    let mdns = match mdns {
        Some(Ok(mdns)) => Some(mdns),
        Some(Err(e)) => {
            tracing::warn!("no discovery on the local network (mDNS): {e}");
            None
        }
        None => None,
    };
    Ok(Behaviour {
        gate: Gate::new(allowed),
        limits: connection_limits::Behaviour::new(connection_limits),
        gossip,
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(5))),
        mdns: Toggle::from(mdns),
    })
}

fn subscribe(
    swarm: &mut Swarm<Behaviour>,
    keys: &Keys,
) -> Result<BTreeMap<Topic, gossipsub::IdentTopic>, NetError> {
    let setup = |e: &dyn std::fmt::Display| NetError::Control(e.to_string());
    let mut topics = BTreeMap::new();
    let mut scores = gossipsub::PeerScoreParams {
        // All peers of a machine share its address.
        ip_colocation_factor_weight: 0.0,
        ..Default::default()
    };
    for topic in Topic::ALL {
        let name = blake3::keyed_hash(&keys.topic, topic.name().as_bytes()).to_hex();
        let name = gossipsub::IdentTopic::new(&name[..32]);
        let rule = gossipsub::TopicScoreParams {
            // Topics are quiet for long: only what is wrong counts, not what is missing.
            mesh_message_deliveries_weight: 0.0,
            mesh_failure_penalty_weight: 0.0,
            invalid_message_deliveries_weight: -10.0,
            ..Default::default()
        };
        scores.topics.insert(name.hash(), rule);
        swarm.behaviour_mut().gossip.subscribe(&name).map_err(|e| setup(&e))?;
        topics.insert(topic, name);
    }
    swarm
        .behaviour_mut()
        .gossip
        .with_peer_score(scores, gossipsub::PeerScoreThresholds::default())
        .map_err(|e| setup(&e))?;
    Ok(topics)
}

fn listen(
    swarm: &mut Swarm<Behaviour>,
    config: &NetConfig,
    bulk_port: u16,
) -> Result<u16, NetError> {
    match config.control_port {
        Port::Require(0) | Port::Any => listen_anywhere(swarm, config.listen, bulk_port),
        Port::Prefer(port) => listen_on(swarm, config.listen, port)
            .or_else(|_| listen_anywhere(swarm, config.listen, bulk_port)),
        Port::Require(port) => listen_on(swarm, config.listen, port),
    }
}

fn listen_anywhere(
    swarm: &mut Swarm<Behaviour>,
    listen: IpAddr,
    bulk_port: u16,
) -> Result<u16, NetError> {
    /// Another program may take the UDP port of a free TCP port; not again and again.
    const ATTEMPTS: usize = 16;
    let mut result = Err(NetError::Control("no free port found".to_owned()));
    for _ in 0..ATTEMPTS {
        let free = TcpListener::bind(SocketAddr::new(listen, 0)).and_then(|l| l.local_addr());
        let free = free.map_err(|e| NetError::of_bind("control (TCP)", listen, 0, e))?.port();
        if free != bulk_port {
            result = listen_on(swarm, listen, free);
        }
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Listens on TCP and on UDP at the same port.
fn listen_on(swarm: &mut Swarm<Behaviour>, listen: IpAddr, port: u16) -> Result<u16, NetError> {
    let addr = SocketAddr::new(listen, port);
    // libp2p's listeners share ports with other processes of this user (SO_REUSEPORT), who would
    // then get some of our connections. Binding without that option first shows whether the port is
    // ours alone.
    TcpListener::bind(addr).map_err(|e| NetError::of_bind("control (TCP)", listen, port, e))?;
    UdpSocket::bind(addr).map_err(|e| NetError::of_bind("control (UDP)", listen, port, e))?;
    for quic in [false, true] {
        let plane = if quic { "control (UDP)" } else { "control (TCP)" };
        swarm.listen_on(address::multiaddr(addr, quic)).map_err(|e| match e {
            libp2p::TransportError::Other(e) => NetError::of_bind(plane, listen, port, e),
            libp2p::TransportError::MultiaddrNotSupported(a) => {
                NetError::Control(format!("{a} can't be listened on"))
            }
        })?;
    }
    Ok(port)
}

/// The innermost reason of a failed dial, for people.
fn reason(error: &DialError) -> String {
    let innermost = |error: &dyn std::error::Error| {
        let (mut text, mut next) = (error.to_string(), error.source());
        while let Some(error) = next {
            (text, next) = (error.to_string(), error.source());
        }
        text
    };
    match error {
        DialError::Transport(errors) => {
            let Some((_, error)) = errors.first() else { return "no answer".to_owned() };
            let text = innermost(error);
            if text.contains("decrypt") {
                "the peer there belongs to another swarm (the secrets differ)".to_owned()
            } else {
                text
            }
        }
        DialError::Denied { cause } => innermost(cause),
        DialError::LocalPeerId { .. } => "this node itself".to_owned(),
        DialError::WrongPeerId { obtained, .. } => match identity::from_libp2p(obtained) {
            Some(peer) => format!("another peer answers there: {peer}"),
            None => "another peer answers there".to_owned(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use libp2p::futures::FutureExt;

    use super::*;
    use crate::{
        identity::Identity,
        net::{self, NetHandle},
        swarm_key::SwarmSecret,
    };

    const PATIENCE: Duration = Duration::from_secs(10);

    fn config() -> NetConfig {
        NetConfig {
            access: SwarmAccess::Secret(SwarmSecret::from_bytes([1; 32])),
            listen: IpAddr::from([127, 0, 0, 1]),
            control_port: Port::Any,
            bulk_port: Port::Any,
            mdns: false,
            ..NetConfig::default()
        }
    }

    /// A libp2p peer whose gossip a test writes by hand, connected with `victim`.
    async fn rogue(keys: &Keys, victim: &NetHandle) -> (Swarm<Behaviour>, Identity) {
        let config = config();
        let mut swarm = build(&config, keys).expect("builds");
        subscribe(&mut swarm, keys).expect("subscribes");
        let addr = address::multiaddr(victim.local_addrs().control[0], false);
        swarm.dial(addr).expect("dials");
        (swarm, config.identity)
    }

    /// Publishes until somebody is subscribed.
    async fn publish(swarm: &mut Swarm<Behaviour>, topic: &gossipsub::IdentTopic, bytes: &[u8]) {
        let publishing = async {
            loop {
                let gossip = &mut swarm.behaviour_mut().gossip;
                if gossip.publish(topic.clone(), bytes).is_ok() {
                    return;
                }
                swarm.select_next_some().await;
            }
        };
        tokio::time::timeout(PATIENCE, publishing).await.expect("somebody subscribes");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn gossip_that_is_forged_or_replayed_goes_nowhere() {
        let (victim, mut events) = net::start(config()).await.expect("starts");
        let keys = Keys::of(&config().access);
        let (mut swarm, identity) = rogue(&keys, &victim).await;
        let name = blake3::keyed_hash(&keys.topic, Topic::Job.name().as_bytes()).to_hex();
        let topic = gossipsub::IdentTopic::new(&name[..32]);
        let own = identity.peer_id();
        let mut sealer = Sealer::new(&keys.gossip, own, Incarnation(1));
        let (first, second) =
            (sealer.seal(&topic.to_string(), b"one"), sealer.seal(&topic.to_string(), b"two"));
        let forged = Sealer::new(&[9; 32], own, Incarnation(1)).seal(&topic.to_string(), b"bad");
        for bytes in [&b""[..], b"noise", &forged, &first, &first, &first[..30], &second] {
            publish(&mut swarm, &topic, bytes).await;
        }
        let mut heard = Vec::new();
        while heard.len() < 2 {
            tokio::select! {
                _ = swarm.select_next_some() => {}
                event = events.recv() => {
                    if let NetEvent::Gossip { from, bytes, .. } = event.expect("runs") {
                        assert_eq!(from, own);
                        heard.push(bytes);
                    }
                }
                () = tokio::time::sleep(PATIENCE) => panic!("heard only {heard:?}"),
            }
        }
        assert_eq!(heard, ["one", "two"]);
        assert!(
            events
                .recv()
                .now_or_never()
                .is_none_or(|e| !matches!(e, Some(NetEvent::Gossip { .. })))
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stranger_gets_no_control_connection_by_tcp_or_quic() {
        let (victim, _events) = net::start(config()).await.expect("starts");
        let other = Keys { prologue: Vec::new(), ..Keys::of(&config().access) };
        let (mut swarm, _) = rogue(&other, &victim).await;
        let addr = address::multiaddr(victim.local_addrs().control[0], true);
        swarm.behaviour_mut().gate.prove(identity::to_libp2p(victim.peer_id()).expect("a key"));
        swarm.dial(addr).expect("dials");
        let mut ended = 0;
        let watching = async {
            while ended < 2 {
                match swarm.select_next_some().await {
                    SwarmEvent::OutgoingConnectionError { .. }
                    | SwarmEvent::ConnectionClosed { .. } => ended += 1,
                    SwarmEvent::Behaviour(
                        BehaviourEvent::Identify(identify::Event::Received { .. })
                        | BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. }),
                    ) => panic!("the stranger was told something"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, watching).await.expect("both are refused");
    }

    #[test]
    fn agents_parse_back_and_other_software_is_told_apart() {
        let agent = Agent { incarnation: Incarnation(7), control_port: 1, bulk_port: 2 };
        assert_eq!(Agent::parse(&agent.to_string()), Some(agent));
        assert_eq!(Agent::parse(&format!("{agent} more=1")), Some(agent));
        for text in ["", "p2ptrain/1", "kubo/0.1 run=1 control=1 bulk=2", "p2ptrain/1 run=x"] {
            assert_eq!(Agent::parse(text), None, "{text}");
        }
    }
}
