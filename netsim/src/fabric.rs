//! Connections between nodes: who hears whom, and in which order.
//!
//! Each end of a connection is told of its end on its own, at its own time. What was sent on a connection
//! arrives only while the receiver still holds that connection. Messages keep their order, pieces of
//! gradients do not: they travel on several streams.

use std::collections::{BTreeMap, BTreeSet};

use crate::link::{Line, LinkSpec};
use crate::random::Random;

/// Names one connection; a later connection of the same pair has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Session(pub(crate) u64);

#[derive(Debug)]
pub(crate) struct Fabric {
    spec: LinkSpec,
    lines: BTreeMap<(usize, usize), Line>,
    /// The connection that the first holds with the second, and the life of the second.
    ends: BTreeMap<(usize, usize), (Session, u64)>,
    /// When the last message of an ordered stream arrives.
    stream_us: BTreeMap<(usize, usize), u64>,
    /// Pairs without a way between them, the lower first.
    cut: BTreeSet<(usize, usize)>,
    sessions: u64,
}

impl Fabric {
    pub(crate) fn new(spec: LinkSpec, exceptions: &BTreeMap<(usize, usize), LinkSpec>) -> Self {
        let lines = exceptions.iter().map(|(pair, spec)| (*pair, Line::new(*spec))).collect();
        Self {
            spec,
            lines,
            ends: BTreeMap::new(),
            stream_us: BTreeMap::new(),
            cut: BTreeSet::new(),
            sessions: 0,
        }
    }

    /// The connection that `node` holds with `other`.
    pub(crate) fn session(&self, node: usize, other: usize) -> Option<Session> {
        self.ends.get(&(node, other)).map(|(session, _)| *session)
    }

    /// The life of `other` with which `node` is connected.
    pub(crate) fn other_life(&self, node: usize, other: usize) -> Option<u64> {
        self.ends.get(&(node, other)).map(|(_, life)| *life)
    }

    /// Connects a pair unless something is in the way or an end still holds an earlier connection.
    pub(crate) fn connect(&mut self, a: usize, b: usize, lives: [u64; 2]) -> Option<Session> {
        let busy = self.session(a, b).is_some() || self.session(b, a).is_some();
        if busy || self.is_cut(a, b) {
            return None;
        }
        self.sessions += 1;
        let session = Session(self.sessions);
        self.ends.insert((a, b), (session, lives[1]));
        self.ends.insert((b, a), (session, lives[0]));
        Some(session)
    }

    /// `node` lets go of its end of a connection with `other`; whether it held this one.
    pub(crate) fn drop_end(&mut self, node: usize, other: usize, session: Session) -> bool {
        let held = self.session(node, other) == Some(session);
        if held {
            self.ends.remove(&(node, other));
        }
        held
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    pub(crate) fn heal(&mut self, a: usize, b: usize) {
        self.cut.remove(&(a.min(b), a.max(b)));
    }

    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// When a message that is sent now arrives, and on which connection. `None`: there is none.
    pub(crate) fn send(
        &mut self,
        from: usize,
        to: usize,
        bytes: usize,
        ordered: bool,
        now_us: u64,
        random: &mut Random,
    ) -> Option<(u64, Session)> {
        let session = self.session(from, to)?;
        let line = self.lines.entry((from, to)).or_insert_with(|| Line::new(self.spec));
        let mut at_us = line.arrival_us(now_us, bytes, random);
        if ordered {
            let last_us = self.stream_us.entry((from, to)).or_default();
            at_us = at_us.max(*last_us + 1);
            *last_us = at_us;
        }
        Some((at_us, session))
    }

    /// Whether what was sent on `session` still arrives at `to`.
    pub(crate) fn delivers(&self, from: usize, to: usize, session: Session) -> bool {
        self.session(to, from) == Some(session) && !self.is_cut(from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fabric() -> Fabric {
        Fabric::new(LinkSpec::WIFI, &BTreeMap::new())
    }

    #[test]
    fn messages_keep_their_order_whatever_the_jitter() {
        let mut fabric = fabric();
        let mut random = Random::new(3);
        fabric.connect(0, 1, [1, 1]).expect("nothing is in the way");
        let mut arrivals = |ordered| -> Vec<u64> {
            let send = |_| fabric.send(0, 1, 100, ordered, 0, &mut random).expect("connected").0;
            (0..50).map(send).collect()
        };
        assert!(arrivals(true).is_sorted());
        assert!(!arrivals(false).is_sorted());
    }

    #[test]
    fn what_was_sent_on_an_earlier_connection_does_not_arrive() {
        let mut fabric = fabric();
        let first = fabric.connect(0, 1, [1, 1]).expect("nothing is in the way");
        assert!(fabric.delivers(0, 1, first));
        assert!(fabric.drop_end(1, 0, first));
        assert!(!fabric.delivers(0, 1, first));
        assert_eq!(fabric.connect(0, 1, [1, 1]), None, "the other end has not seen the loss yet");
        assert!(fabric.drop_end(0, 1, first));
        let second = fabric.connect(0, 1, [1, 1]).expect("both ends are free");
        assert!(!fabric.delivers(0, 1, first) && fabric.delivers(0, 1, second));
    }

    #[test]
    fn a_cut_stops_what_is_under_way_and_new_connections() {
        let mut fabric = fabric();
        let session = fabric.connect(0, 1, [1, 1]).expect("nothing is in the way");
        fabric.cut(1, 0);
        assert!(!fabric.delivers(0, 1, session));
        fabric.drop_end(0, 1, session);
        fabric.drop_end(1, 0, session);
        assert_eq!(fabric.connect(0, 1, [1, 1]), None);
        fabric.heal(0, 1);
        assert!(fabric.connect(0, 1, [1, 1]).is_some());
    }
}
