//! What the hub knows of one peer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::swarm::ConnectionId;

use crate::net::{
    LossCause,
    bulk::{handshake::Proven, link::Link},
    control::Agent,
    limits,
    presence::Presence,
};

/// One peer, connected or sought.
pub(super) struct Peer {
    pub(super) link: Option<Arc<Link>>,
    /// Takes over when the link's last events are delivered.
    pub(super) successor: Option<Box<Proven>>,
    /// Why the link is being closed, where its own end won't say.
    pub(super) cause: Option<LossCause>,
    pub(super) control: BTreeMap<ConnectionId, ControlConnection>,
    pub(super) agent: Option<Agent>,
    pub(super) presence: Option<Presence>,
    bulk_addrs: Vec<SocketAddr>,
    pub(super) attempts: Attempts,
    pub(super) control_attempts: Attempts,
    /// Last sign of life, or last word of a third one.
    pub(super) heard: Instant,
    /// The driver was told that this peer exists.
    pub(super) announced: bool,
    pub(super) violations: u32,
    pub(super) barred_until: Option<Instant>,
}

/// A control connection with a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlConnection {
    pub(super) remote: SocketAddr,
    pub(super) tcp: bool,
    pub(super) dialled: bool,
}

/// When to try next: at once, then after pauses that double.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    running: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            link: None,
            successor: None,
            cause: None,
            control: BTreeMap::new(),
            agent: None,
            presence: None,
            bulk_addrs: Vec::new(),
            attempts: Attempts::default(),
            control_attempts: Attempts::default(),
            heard: Instant::now(),
            announced: false,
            violations: 0,
            barred_until: None,
        }
    }

    pub(super) fn has_tcp(&self) -> bool {
        self.control.values().any(|connection| connection.tcp)
    }

    pub(super) fn is_barred(&self) -> bool {
        self.barred_until.is_some_and(|until| Instant::now() < until)
    }

    /// Neither connected nor heard of for long.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        self.link.is_none()
            && self.control.is_empty()
            && !self.attempts.running
            && !self.is_barred()
            && now.duration_since(self.heard) > limits::SEEK_TIME_MAX
    }

    /// Where the peer's bulk plane may be, most direct first.
    pub(super) fn bulk_candidates(&self, own_host: &[u8; 16]) -> Vec<SocketAddr> {
        let mut addrs = Vec::new();
        if let Some(presence) = &self.presence {
            addrs.extend(presence.candidates(own_host, presence.bulk_port));
        }
        if let Some(agent) = self.agent {
            let ips = self.control.values().map(|connection| connection.remote.ip());
            addrs.extend(ips.map(|ip| SocketAddr::new(ip, agent.bulk_port)));
        }
        addrs.extend(&self.bulk_addrs);
        distinct(addrs)
    }

    /// Where the peer's control plane may listen on TCP.
    pub(super) fn control_candidates(&self, own_host: &[u8; 16]) -> Vec<SocketAddr> {
        let mut addrs = Vec::new();
        if let Some(presence) = &self.presence {
            addrs.extend(presence.candidates(own_host, presence.control_port));
            let seen = self.link.as_ref().map(|link| link.remote().ip());
            addrs.extend(seen.map(|ip| SocketAddr::new(ip, presence.control_port)));
        }
        distinct(addrs)
    }

    /// Where to try whether the process behind a closed connection still listens; TCP only.
    pub(super) fn probe_addr(&self, closed: &ControlConnection) -> Option<SocketAddr> {
        if !closed.tcp {
            return None;
        }
        if closed.dialled {
            return Some(closed.remote);
        }
        let port = self.agent.map(|agent| agent.control_port);
        let port = port.or_else(|| self.presence.as_ref().map(|p| p.control_port))?;
        Some(SocketAddr::new(closed.remote.ip(), port))
    }

    pub(super) fn set_presence(&mut self, presence: Presence) {
        let older = |known: &Presence| known.incarnation > presence.incarnation;
        if !self.presence.as_ref().is_some_and(older) {
            self.presence = Some(presence);
        }
    }

    /// The peer's presence with the address under which this node sees it, which the peer itself
    /// may not know.
    pub(super) fn seen_presence(&self) -> Option<Presence> {
        let mut presence = self.presence.clone()?;
        let seen: Option<IpAddr> = self.link.as_ref().map(|link| link.remote().ip());
        if let Some(ip) = seen
            && !ip.is_loopback()
            && !presence.ips.contains(&ip)
            && presence.ips.len() < limits::ADDRS_MAX
        {
            presence.ips.push(ip);
        }
        Some(presence)
    }

    pub(super) fn add_bulk_addrs(&mut self, addrs: Vec<SocketAddr>) {
        self.heard = Instant::now();
        // The newest come first and push out the oldest.
        let known = std::mem::take(&mut self.bulk_addrs);
        self.bulk_addrs = distinct(addrs.into_iter().chain(known).collect());
    }

    /// Forgets where the peer was, so that it isn't dialled again.
    pub(super) fn forget_addrs(&mut self) {
        self.agent = None;
        self.presence = None;
        self.bulk_addrs.clear();
    }

    /// The peer broke the format: leave it alone, longer each time.
    pub(super) fn bar(&mut self) {
        self.violations = self.violations.saturating_add(2).min(20);
        let pause = limits::VIOLATION_PAUSE * (self.violations / 2);
        self.barred_until = Some(Instant::now() + pause);
    }
}

impl Attempts {
    pub(super) fn begin(&mut self) {
        self.running = true;
    }

    pub(super) fn ended(&mut self) {
        self.running = false;
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    pub(super) fn retry_now(&mut self) {
        self.not_before = None;
    }

    pub(super) fn start_after(&mut self, pause: Duration) {
        self.failures = 0;
        self.not_before = Some(Instant::now() + pause);
    }

    /// Returns the pause before the next attempt. Pauses differ by up to a quarter, so that two
    /// peers that fail together don't try together for ever.
    pub(super) fn failed(&mut self) -> Duration {
        let doubled = limits::BACKOFF_FIRST.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        let pause = doubled.min(limits::BACKOFF_LAST).mul_f64(rand::random_range(0.75..1.0));
        self.not_before = Some(Instant::now() + pause);
        pause
    }

    pub(super) fn is_due(&self) -> bool {
        self.is_due_at(Instant::now())
    }

    pub(super) fn is_due_at(&self, now: Instant) -> bool {
        !self.running && self.not_before.is_none_or(|not_before| now >= not_before)
    }
}

fn distinct(addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut out: Vec<SocketAddr> = Vec::new();
    for addr in addrs {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if !out.contains(&addr) && out.len() < limits::ADDRS_MAX {
            out.push(addr);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_last_and_start_over_after_success() {
        let mut attempts = Attempts::default();
        assert!(attempts.is_due());
        let pauses: Vec<Duration> = (0..12).map(|_| attempts.failed()).collect();
        assert!(pauses[0] <= limits::BACKOFF_FIRST);
        assert!(pauses.windows(2).take(4).all(|w| w[0] < w[1]), "{pauses:?}");
        assert!(pauses[11] <= limits::BACKOFF_LAST && pauses[11] * 2 > limits::BACKOFF_LAST);
        assert!(!attempts.is_due());
        attempts.succeeded();
        assert!(attempts.is_due());
    }

    #[test]
    fn addresses_are_bounded_and_the_newest_stay() {
        let addr = |port| SocketAddr::from(([10, 0, 0, 7], port));
        let mut peer = Peer::new();
        peer.add_bulk_addrs((1..=20).map(addr).collect());
        peer.add_bulk_addrs(vec![addr(99), addr(3)]);
        let candidates = peer.bulk_candidates(&[0; 16]);
        assert_eq!(candidates.len(), limits::ADDRS_MAX);
        assert_eq!(candidates[..3], [addr(99), addr(3), addr(1)]);
    }
}
