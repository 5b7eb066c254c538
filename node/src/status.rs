//! What a node tells about itself: the model behind `status`, `watch`, the display and `--json`.
//!
//! The driver updates a [`StatusHub`]; the local socket and the display read snapshots from it.
//! Everything in here is bounded, so that a status of a month-long run is as small as that of a
//! short one, and every text from another peer passes [`clean`] before it reaches a terminal.

mod curve;
mod hub;
mod number;

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use self::curve::{Curve, CurvePoint};
pub use self::hub::{StatusFeed, StatusHub};

/// Events kept for display; older ones are in the log file.
pub const EVENTS_MAX: usize = 64;
/// Characters of one event's text.
pub const EVENT_CHARS_MAX: usize = 240;
/// Characters of a name of a peer or a node.
pub const NAME_CHARS_MAX: usize = 32;
/// Peers listed in a status. A larger swarm is counted in [`NodeStatus::peers_total`].
pub const PEERS_MAX: usize = 256;
/// Points of a loss curve. When it is full, neighbours are merged, so that it spans the whole run.
pub const CURVE_POINTS_MAX: usize = 512;

/// A snapshot of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Name that the user gave the node.
    pub name: String,
    /// Peer id in full.
    pub peer: String,
    /// Fingerprint of the swarm secret: equal on all members, and useless to a stranger.
    pub swarm: String,
    /// Addresses that others can dial.
    pub addresses: Vec<String>,
    /// Command that another machine runs to join this node, where the driver knows one.
    pub join_command: String,
    /// When the node started, in milliseconds of Unix time.
    pub since_ms: u64,
    /// What the node does at the moment.
    pub phase: Phase,
    /// Why, in words: what it waits for, or why it stopped.
    pub phase_note: String,
    /// The job, as soon as the node has one.
    pub job: Option<JobStatus>,
    /// Members and others known, the node itself first. At most [`PEERS_MAX`].
    pub peers: Vec<PeerStatus>,
    /// Number of peers, listed or not.
    pub peers_total: u32,
    /// The latest events.
    #[serde(skip_serializing_if = "EventLog::is_empty")]
    pub events: EventLog,
    /// Account of the samples.
    pub ledger: LedgerStatus,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointStatus>,
}

impl NodeStatus {
    /// Replaces the list of peers, with names made safe for a terminal and the list cut to
    /// [`PEERS_MAX`].
    pub fn set_peers(&mut self, mut peers: Vec<PeerStatus>) {
        self.peers_total = u32::try_from(peers.len()).unwrap_or(u32::MAX);
        peers.truncate(PEERS_MAX);
        for peer in &mut peers {
            peer.name = clean(&peer.name, NAME_CHARS_MAX);
            peer.state = clean(&peer.state, EVENT_CHARS_MAX);
        }
        self.peers = peers;
    }

    /// Number of listed peers that take part in steps.
    pub fn members(&self) -> usize {
        self.peers.iter().filter(|p| matches!(p.kind, PeerKind::Itself | PeerKind::Member)).count()
    }
}

/// What a node does at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Opens sockets, data and checkpoint.
    #[default]
    Starting,
    /// Has no job, or too few peers for it.
    Waiting,
    /// Fetches the state of a running job.
    Joining,
    /// Takes part in steps.
    Training,
    /// Holds its state and takes no step, as going on could split the run.
    Paused,
    /// Finishes the step and hands over.
    Leaving,
    /// The job's last step is committed.
    Done,
    /// Stopped by an error.
    Failed,
}

impl Phase {
    /// The word shown to users.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Joining => "joining",
            Self::Training => "training",
            Self::Paused => "paused",
            Self::Leaving => "leaving",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Progress of the job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobStatus {
    /// Name in the job file.
    pub name: String,
    /// Job id in hex.
    pub id: String,
    /// Steps committed.
    pub step: u64,
    /// Steps of the whole job.
    pub steps: u64,
    /// Samples of all committed steps.
    pub samples: u64,
    /// Loss of the last step, in nats per token.
    #[serde(with = "number::option")]
    pub loss: Option<f32>,
    /// Loss smoothed over about 20 steps.
    #[serde(with = "number::option")]
    pub loss_smoothed: Option<f32>,
    /// Held-out losses; the first is that of the untrained model, if it was measured.
    pub evals: Vec<CurvePoint>,
    /// Learning rate of the last step.
    #[serde(with = "number")]
    pub lr: f32,
    /// Global gradient norm of the last step, before clipping.
    #[serde(with = "number")]
    pub grad_norm: f32,
    /// Samples per second of the whole swarm, smoothed.
    #[serde(with = "number")]
    pub samples_per_s: f32,
    /// Where the time of a step went, smoothed.
    pub step_ms: StepMs,
    /// Seconds to the end at the present speed.
    #[serde(with = "number::option")]
    pub time_left_s: Option<f32>,
    /// Training loss over the whole run.
    #[serde(skip_serializing_if = "Curve::is_empty")]
    pub curve: Curve,
}

impl JobStatus {
    /// Takes over one committed step: loss curve, smoothed figures and time left.
    pub fn record_step(&mut self, report: &StepReport) {
        self.step = report.step;
        self.samples += report.samples;
        self.loss = Some(report.loss);
        // A loss that is not a number must not hide in the average: the average starts anew after.
        self.loss_smoothed = Some(match self.loss_smoothed {
            Some(old) if old.is_finite() => old + (report.loss - old) * 0.05,
            _ => report.loss,
        });
        self.curve.push(report.step, report.loss);
        self.lr = report.lr;
        self.grad_norm = report.grad_norm;
        self.step_ms.smooth(&report.step_ms);
        if self.step_ms.total > 0.0 {
            self.samples_per_s = report.samples as f32 * 1000.0 / self.step_ms.total;
            let steps_left = self.steps.saturating_sub(self.step);
            self.time_left_s = Some(steps_left as f32 * self.step_ms.total / 1000.0);
        }
    }

    /// Takes over a held-out loss measured at `step`.
    pub fn record_eval(&mut self, step: u64, loss: f32) {
        if self.evals.len() >= CURVE_POINTS_MAX {
            // Keep the first, the untrained loss, and every second of the others.
            let mut index = 0;
            self.evals.retain(|_| {
                index += 1;
                index == 1 || index % 2 == 0
            });
        }
        self.evals.push(CurvePoint { step, loss });
    }

    /// The newest held-out loss.
    pub fn eval_loss(&self) -> Option<f32> {
        self.evals.last().map(|point| point.loss)
    }
}

/// What the driver knows of one committed step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Steps committed, this one included.
    pub step: u64,
    /// Samples in this step.
    pub samples: u64,
    /// Mean loss of the step, in nats per token.
    pub loss: f32,
    /// Learning rate.
    pub lr: f32,
    /// Global gradient norm before clipping.
    pub grad_norm: f32,
    /// Where the time went.
    pub step_ms: StepMs,
}

/// Where the time of a step went, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepMs {
    /// Commit to commit.
    #[serde(with = "number")]
    pub total: f32,
    /// Forward and backward.
    #[serde(with = "number")]
    pub compute: f32,
    /// Waiting for the exchange after the own backward has ended.
    #[serde(with = "number")]
    pub exchange_wait: f32,
    /// Optimizer.
    #[serde(with = "number")]
    pub apply: f32,
}

impl StepMs {
    fn smooth(&mut self, new: &Self) {
        if self.total == 0.0 {
            *self = *new;
            return;
        }
        for (old, new) in [
            (&mut self.total, new.total),
            (&mut self.compute, new.compute),
            (&mut self.exchange_wait, new.exchange_wait),
            (&mut self.apply, new.apply),
        ] {
            *old += (new - *old) * 0.2;
        }
    }
}

/// One peer as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// Name that its user gave it.
    pub name: String,
    /// Short peer id.
    pub id: String,
    /// Its part in the run.
    pub kind: PeerKind,
    /// Micro-batches of the present step.
    pub slice: Option<Slice>,
    /// Samples per second that it computes.
    #[serde(with = "number::option")]
    pub samples_per_s: Option<f32>,
    /// The connection to it; none for the node itself.
    pub link: Option<LinkStatus>,
    /// What it does, in a word or two.
    pub state: String,
}

/// A peer's part in the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// The node that tells the status.
    #[serde(rename = "self")]
    Itself,
    /// Takes part in steps.
    Member,
    /// Fetches the state and will be a member.
    Joining,
    /// Connected without a part in the job.
    #[default]
    Known,
    /// Died or cannot be reached.
    Lost,
}

/// Contiguous micro-batches of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// First micro-batch.
    pub first: u32,
    /// One past the last micro-batch.
    pub end: u32,
    /// Micro-batches of the whole step.
    pub of: u32,
}

/// A measured connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkStatus {
    /// Round trip in milliseconds.
    #[serde(with = "number")]
    pub rtt_ms: f32,
    /// Received, in megabytes (10^6 bytes) per second.
    #[serde(with = "number")]
    pub in_mb_per_s: f32,
    /// Sent, in megabytes (10^6 bytes) per second.
    #[serde(with = "number")]
    pub out_mb_per_s: f32,
}

/// Account of the samples of all committed steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerStatus {
    /// Committed steps.
    pub steps: u64,
    /// Samples counted.
    pub samples: u64,
    /// Samples that a committed step should hold and does not. Always 0 in a sound run.
    pub lost: u64,
    /// Samples counted twice. Always 0 in a sound run.
    pub doubled: u64,
}

/// A checkpoint on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointStatus {
    /// Its folder.
    pub path: String,
    /// Committed steps it holds.
    pub step: u64,
}

/// How an event is to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventLevel {
    /// News.
    #[default]
    Info,
    /// Something got better: a peer came, a checkpoint was written.
    Good,
    /// Something to know about: a peer was lost.
    Warn,
}

/// One line of news.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Number in the order of occurrence, from 0.
    pub seq: u64,
    /// Milliseconds of Unix time.
    pub at_ms: u64,
    /// How it is to be taken.
    pub level: EventLevel,
    /// One line.
    pub text: String,
}

/// The latest [`EVENTS_MAX`] events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventLog {
    next_seq: u64,
    lines: VecDeque<Event>,
}

impl EventLog {
    /// The events kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.lines.iter()
    }

    /// True before the first event.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Events from number `seq` on, oldest first.
    pub fn since(&self, seq: u64) -> impl Iterator<Item = &Event> {
        self.lines.iter().filter(move |event| event.seq >= seq)
    }

    /// Number that the next event will have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Appends an event of the present moment.
    pub fn push(&mut self, level: EventLevel, text: impl AsRef<str>) {
        self.push_at(unix_ms(), level, text);
    }

    /// Appends an event of the moment `at_ms`.
    pub fn push_at(&mut self, at_ms: u64, level: EventLevel, text: impl AsRef<str>) {
        if self.lines.len() >= EVENTS_MAX {
            self.lines.pop_front();
        }
        let text = clean(text.as_ref(), EVENT_CHARS_MAX);
        self.lines.push_back(Event { seq: self.next_seq, at_ms, level, text });
        self.next_seq += 1;
    }
}

/// Makes `text` safe to show: one line of at most `chars_max` characters without control characters,
/// so that a peer's name cannot move the cursor, set a title or reorder the line.
pub fn clean(text: &str, chars_max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(chars_max * 4));
    for (count, character) in text.chars().enumerate() {
        if count == chars_max {
            out.pop();
            out.push('…');
            break;
        }
        let hidden = character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        out.push(if hidden { ' ' } else { character });
    }
    out
}

/// The present moment in milliseconds of Unix time; 0 where the clock is before 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64, loss: f32) -> StepReport {
        let step_ms = StepMs { total: 200.0, compute: 170.0, exchange_wait: 20.0, apply: 10.0 };
        StepReport { step, samples: 64, loss, lr: 1e-3, grad_norm: 1.0, step_ms }
    }

    #[test]
    fn a_step_updates_speed_and_time_left() {
        let mut job = JobStatus { steps: 100, ..JobStatus::default() };
        job.record_step(&report(10, 4.0));
        assert_eq!(job.samples_per_s, 320.0);
        assert_eq!(job.time_left_s, Some(18.0));
        assert_eq!(job.loss_smoothed, Some(4.0));
        job.record_step(&report(11, 3.0));
        assert_eq!(job.loss_smoothed, Some(3.95));
        assert_eq!(job.samples, 128);
    }

    #[test]
    fn a_loss_that_is_not_a_number_survives_json_and_does_not_stay_in_the_average() {
        let mut job = JobStatus { steps: 100, ..JobStatus::default() };
        job.record_step(&report(1, f32::NAN));
        let json = serde_json::to_string(&job).expect("a status is plain data");
        let back: JobStatus = serde_json::from_str(&json).expect("own output parses");
        assert!(back.loss.is_some_and(f32::is_nan), "{json}");
        job.record_step(&report(2, 3.0));
        assert_eq!(job.loss_smoothed, Some(3.0));
    }

    #[test]
    fn events_and_evals_are_bounded_and_keep_what_matters() {
        let mut status = NodeStatus::default();
        for i in 0..1000 {
            status.events.push_at(i, EventLevel::Info, format!("event {i}"));
        }
        assert_eq!(status.events.iter().count(), EVENTS_MAX);
        assert_eq!(
            status.events.since(998).map(|e| e.text.as_str()).collect::<Vec<_>>(),
            ["event 998", "event 999"]
        );

        let mut job = JobStatus::default();
        for step in 0..5000 {
            job.record_eval(step, 9.0);
        }
        assert!(job.evals.len() <= CURVE_POINTS_MAX);
        assert_eq!(job.evals[0].step, 0);
        assert_eq!(job.evals.last().map(|p| p.step), Some(4999));
    }

    #[test]
    fn text_of_a_peer_cannot_carry_escape_codes() {
        assert_eq!(clean("a\x1b[2Jb\nc\u{202e}d", 32), "a [2Jb c d");
        assert_eq!(clean("abcdefgh", 4), "abc…");
        assert_eq!(clean("äöüß", 4), "äöüß");
    }

    #[test]
    fn a_status_survives_json_and_unknown_or_missing_fields() {
        let mut status = NodeStatus { name: "a".into(), ..NodeStatus::default() };
        status.set_peers(vec![PeerStatus {
            kind: PeerKind::Itself,
            slice: Some(Slice { first: 0, end: 5, of: 16 }),
            ..PeerStatus::default()
        }]);
        status.events.push_at(5, EventLevel::Good, "joined");
        let json = serde_json::to_string(&status).expect("a status is plain data");
        assert_eq!(serde_json::from_str::<NodeStatus>(&json).expect("own output parses"), status);
        let other = r#"{"name":"b","from_a_later_version":{"x":1}}"#;
        assert_eq!(
            serde_json::from_str::<NodeStatus>(other).expect("fields are optional").name,
            "b"
        );
    }
}
