//! All nodes in one picture.

use std::time::{Duration, Instant};

use super::nodes::{Life, Node, Nodes};
use crate::cli::Output;
use crate::dashboard::{Dashboard, Mode};
use crate::status::{
    EventLevel, EventLog, LinkStatus, NodeStatus, PeerKind, PeerStatus, Phase, unix_ms,
};

/// Shortest time between two pictures.
const DRAW_INTERVAL: Duration = Duration::from_millis(90);

/// The demo's display.
#[derive(Debug)]
pub(super) struct Screen {
    dashboard: Dashboard,
    live: bool,
    title: String,
    since_ms: u64,
    events: EventLog,
    /// The witness's next event that is not in `events` yet.
    witness_seq: u64,
    drawn: Option<Instant>,
}

impl Screen {
    pub(super) fn new(output: &Output, peers: usize) -> Self {
        let mode = Mode::of(output);
        let title = match peers {
            1 => "demo of 1 node".to_owned(),
            _ => format!("demo of {peers} nodes"),
        };
        Self {
            dashboard: Dashboard::new(mode),
            live: matches!(mode, Mode::Live { .. }),
            title,
            since_ms: unix_ms(),
            events: EventLog::default(),
            witness_seq: 0,
            drawn: None,
        }
    }

    /// Says what the demo does while no node runs.
    pub(super) fn working(&mut self, what: &str) -> anyhow::Result<()> {
        self.events.push(EventLevel::Info, format!("the demo {what}"));
        let mut status = self.frame();
        status.phase_note = what.to_owned();
        if self.drawn.is_some() {
            // The last picture of the nodes stays.
            return Ok(());
        }
        self.dashboard.draw(&status, &self.title)?;
        Ok(())
    }

    /// Tells news of the demo's own doing; they also stay above a live display.
    pub(super) fn tell(&mut self, level: EventLevel, text: &str) -> anyhow::Result<()> {
        self.events.push(level, text);
        if self.live {
            let seconds = unix_ms().saturating_sub(self.since_ms) as f64 / 1000.0;
            self.dashboard.note(&format!("{seconds:8.1} s  {text}"))?;
        }
        self.drawn = None;
        Ok(())
    }

    /// Draws the nodes, if the last picture is not too recent.
    pub(super) fn draw(&mut self, nodes: &Nodes) -> anyhow::Result<()> {
        if self.drawn.is_some_and(|at| at.elapsed() < DRAW_INTERVAL) {
            return Ok(());
        }
        self.drawn = Some(Instant::now());
        let witness = nodes.witness();
        if let Some(witness) = &witness {
            for event in witness.events.since(self.witness_seq) {
                self.events.push_at(event.at_ms, event.level, &event.text);
            }
            self.witness_seq = witness.events.next_seq();
        }
        let mut status = NodeStatus { ..self.frame() };
        if let Some(witness) = witness {
            status.phase = witness.phase;
            status.phase_note = witness.phase_note;
            status.job = witness.job;
            status.ledger = witness.ledger;
            status.checkpoint = witness.checkpoint;
        }
        status.set_peers(nodes.iter().map(line).collect());
        self.dashboard.draw(&status, &self.title)?;
        Ok(())
    }

    pub(super) fn finish(self) -> std::io::Result<()> {
        self.dashboard.finish()
    }

    fn frame(&self) -> NodeStatus {
        NodeStatus {
            name: "demo".to_owned(),
            since_ms: self.since_ms,
            events: self.events.clone(),
            ..NodeStatus::default()
        }
    }
}

/// A node's line: what it tells of itself, and its part of the links.
fn line(node: &Node) -> PeerStatus {
    let told = node.status();
    let own = told.as_ref().and_then(|status| status.peers.first());
    let mut line = PeerStatus {
        name: node.name.clone(),
        id: own.map_or_else(String::new, |own| own.id.clone()),
        ..PeerStatus::default()
    };
    (line.kind, line.state) = match (&node.life, &told) {
        (Life::Unborn, _) => (PeerKind::Known, "waits for the first".to_owned()),
        (Life::Killed, _) => (PeerKind::Lost, "killed".to_owned()),
        (Life::TooLate, _) => (PeerKind::Lost, "came too late".to_owned()),
        (Life::Ended, _) => (PeerKind::Member, "done".to_owned()),
        (Life::Running(_), None) => (PeerKind::Known, "starts".to_owned()),
        (Life::Running(_), Some(status)) => state(status),
    };
    let (true, Some(status), Some(own)) = (node.contributes(), &told, own) else { return line };
    line.slice = own.slice;
    line.samples_per_s = own.samples_per_s;
    line.link = link(status);
    line
}

fn state(status: &NodeStatus) -> (PeerKind, String) {
    let waits = status.peers.first().is_none_or(|own| own.slice.is_none());
    match status.phase {
        Phase::Training if waits => (PeerKind::Member, "no share yet".to_owned()),
        Phase::Training => (PeerKind::Member, String::new()),
        Phase::Joining => (PeerKind::Joining, "joins".to_owned()),
        Phase::Waiting => (PeerKind::Known, "waits for others".to_owned()),
        phase => (PeerKind::Known, phase.word().to_owned()),
    }
}

/// All links of a node together: the longest round trip, the sums of the rates.
fn link(status: &NodeStatus) -> Option<LinkStatus> {
    let links = status.peers.iter().skip(1).filter_map(|peer| peer.link);
    links.reduce(|a, b| LinkStatus {
        rtt_ms: a.rtt_ms.max(b.rtt_ms),
        in_mb_per_s: a.in_mb_per_s + b.in_mb_per_s,
        out_mb_per_s: a.out_mb_per_s + b.out_mb_per_s,
    })
}
