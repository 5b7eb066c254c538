//! What the node shows of itself, built from what the protocol and the network know.

use std::collections::BTreeMap;
use std::time::Instant;

use p2ptrain_protocol::id::PeerId;
use p2ptrain_protocol::peer::{Attempt, Peer};
use p2ptrain_protocol::view::AdvertTable;

use crate::job::JobSpec;
use crate::net::{LinkStats, NetHandle};
use crate::status::{LinkStatus, PeerKind, PeerStatus, Slice, StepMs};

/// Remembers what rates are computed from.
pub(super) struct Board {
    me: PeerId,
    name: String,
    traffic: BTreeMap<PeerId, Traffic>,
    lost: BTreeMap<PeerId, String>,
    pub(super) timing: Timing,
}

/// Where the time of the step under way has gone so far.
pub(super) struct Timing {
    committed: Instant,
    pub(super) compute_us: u64,
    pub(super) apply_us: u64,
}

struct Traffic {
    at: Instant,
    sent_bytes: u64,
    received_bytes: u64,
    link: LinkStatus,
    /// The highest rate seen in one direction: what the link can do at least.
    peak_bits_per_s: u64,
}

impl Board {
    pub(super) fn new(me: PeerId, name: &str) -> Self {
        let timing = Timing { committed: Instant::now(), compute_us: 0, apply_us: 0 };
        let (traffic, lost) = (BTreeMap::new(), BTreeMap::new());
        Self { me, name: name.to_owned(), traffic, lost, timing }
    }

    /// The name that `peer` gave itself, or its short id.
    pub(super) fn name_of(&self, peer: &PeerId, adverts: &AdvertTable) -> String {
        if *peer == self.me {
            return self.name.clone();
        }
        adverts.advert(peer).map_or_else(|| peer.short(), |advert| advert.name.clone())
    }

    pub(super) fn note_lost(&mut self, peer: PeerId, why: &str) {
        self.lost.insert(peer, why.to_owned());
    }

    pub(super) fn note_connected(&mut self, peer: &PeerId) {
        self.lost.remove(peer);
    }

    /// The highest rate seen on the link with `peer`; 1 before anything was seen.
    pub(super) fn bits_per_s(&self, peer: &PeerId) -> u64 {
        self.traffic.get(peer).map_or(1, |traffic| traffic.peak_bits_per_s.max(1))
    }

    /// The split of the step that was just committed; starts the clock of the next.
    pub(super) fn end_step(&mut self) -> StepMs {
        let total = self.timing.committed.elapsed().as_secs_f32() * 1e3;
        let compute = self.timing.compute_us as f32 / 1e3;
        let apply = self.timing.apply_us as f32 / 1e3;
        let exchange_wait = (total - compute - apply).max(0.0);
        self.timing = Timing { committed: Instant::now(), compute_us: 0, apply_us: 0 };
        StepMs { total, compute, exchange_wait, apply }
    }

    /// The peers' lines, this node first.
    pub(super) fn peers(
        &mut self,
        net: &NetHandle,
        adverts: &AdvertTable,
        job: Option<(&JobSpec, &Peer)>,
    ) -> Vec<PeerStatus> {
        let links: BTreeMap<PeerId, LinkStats> =
            net.links().into_iter().map(|link| (link.peer, link)).collect();
        let mut known: Vec<PeerId> = links.keys().chain(self.lost.keys()).copied().collect();
        if let Some(view) = job.and_then(|(_, peer)| peer.view()) {
            known.extend(view.peers());
        }
        known.retain(|peer| *peer != self.me);
        known.sort_unstable();
        known.dedup();
        known.insert(0, self.me);
        known
            .into_iter()
            .map(|peer| {
                let link = links.get(&peer).map(|link| self.rates(link));
                self.peer(peer, link, adverts, job)
            })
            .collect()
    }

    fn peer(
        &self,
        peer: PeerId,
        link: Option<LinkStatus>,
        adverts: &AdvertTable,
        job: Option<(&JobSpec, &Peer)>,
    ) -> PeerStatus {
        let member = job.and_then(|(_, p)| p.view()).and_then(|view| view.member(&peer));
        let attempt = job.and_then(|(_, p)| p.attempt());
        let in_group = attempt.is_none_or(|attempt| attempt.group().contains(&peer));
        let (kind, state) = match (member, self.lost.get(&peer)) {
            (Some(_), None) if peer == self.me => (PeerKind::Itself, String::new()),
            (Some(member), _) if in_group && !member.synced => {
                (PeerKind::Joining, "fetches the state".to_owned())
            }
            (Some(_), _) if in_group => (PeerKind::Member, String::new()),
            (_, Some(why)) => (PeerKind::Lost, why.clone()),
            _ if peer == self.me => (PeerKind::Itself, "not a member yet".to_owned()),
            _ => (PeerKind::Known, "connected".to_owned()),
        };
        let samples_per_s = member.filter(|m| m.us_per_microbatch > 0 && in_group).and_then(|m| {
            let (spec, _) = job?;
            Some(spec.batch.micro as f32 * 1e6 / m.us_per_microbatch as f32)
        });
        PeerStatus {
            name: self.name_of(&peer, adverts),
            id: peer.short(),
            kind,
            slice: attempt.and_then(|attempt| slice(attempt, &peer, job?.0)),
            samples_per_s,
            link,
            state,
        }
    }

    /// Rates since the last look, but not more often than each second.
    fn rates(&mut self, link: &LinkStats) -> LinkStatus {
        let rtt_ms = link.rtt.as_secs_f32() * 1e3;
        let traffic = self.traffic.entry(link.peer).or_insert_with(|| Traffic {
            at: Instant::now(),
            sent_bytes: link.sent_bytes,
            received_bytes: link.received_bytes,
            link: LinkStatus { rtt_ms, in_mb_per_s: 0.0, out_mb_per_s: 0.0 },
            peak_bits_per_s: 0,
        });
        let seconds = traffic.at.elapsed().as_secs_f32();
        if seconds >= 1.0 {
            let rate = |now: u64, then: u64| now.saturating_sub(then) as f32 / 1e6 / seconds;
            traffic.link = LinkStatus {
                rtt_ms,
                in_mb_per_s: rate(link.received_bytes, traffic.received_bytes),
                out_mb_per_s: rate(link.sent_bytes, traffic.sent_bytes),
            };
            let peak = traffic.link.in_mb_per_s.max(traffic.link.out_mb_per_s) * 8e6;
            traffic.peak_bits_per_s = traffic.peak_bits_per_s.max(peak as u64);
            traffic.at = Instant::now();
            traffic.sent_bytes = link.sent_bytes;
            traffic.received_bytes = link.received_bytes;
        }
        traffic.link
    }
}

fn slice(attempt: &Attempt, peer: &PeerId, job: &JobSpec) -> Option<Slice> {
    let of = job.batch.micro_batches();
    let range = attempt.shares().get(peer)?.first().filter(|range| range.start < of)?;
    Some(Slice { first: range.start, end: range.end.min(of), of })
}
