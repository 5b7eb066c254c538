//! One simulated machine: the real driver, a worker that takes virtual time, and the state that it trains.

use std::collections::VecDeque;

use bytes::Bytes;
use p2ptrain_node::driver::Driver;
use p2ptrain_node::effect::{ApplyOrder, ComputeOrder, Effects, End};
use p2ptrain_protocol::id::{Digest, Incarnation, PeerId, Step};
use p2ptrain_protocol::peer::{Commit, Message, Notice, PieceHeader};

/// What a driver wanted, in order.
#[derive(Debug)]
pub(crate) enum Effect {
    Send { to: PeerId, message: Message },
    SendPiece { to: PeerId, header: PieceHeader, payload: Bytes },
    Refuse { peer: PeerId, reason: String },
    Compute(ComputeOrder),
    FetchState { step: Step, from: Vec<PeerId> },
    Apply(ApplyOrder),
    Committed(Box<Commit>),
    Notice(Notice),
    Ended(End),
}

/// Collects the effects of one event.
#[derive(Debug, Default)]
pub(crate) struct Outbox(pub(crate) Vec<Effect>);

impl Effects for Outbox {
    fn send(&mut self, to: PeerId, message: Message) {
        self.0.push(Effect::Send { to, message });
    }

    fn send_piece(&mut self, to: PeerId, header: PieceHeader, payload: Bytes) {
        self.0.push(Effect::SendPiece { to, header, payload });
    }

    fn refuse(&mut self, peer: PeerId, reason: String) {
        self.0.push(Effect::Refuse { peer, reason });
    }

    fn compute(&mut self, order: ComputeOrder) {
        self.0.push(Effect::Compute(order));
    }

    fn fetch_state(&mut self, step: Step, from: Vec<PeerId>) {
        self.0.push(Effect::FetchState { step, from });
    }

    fn apply(&mut self, order: ApplyOrder) {
        self.0.push(Effect::Apply(order));
    }

    fn committed(&mut self, commit: &Commit) {
        self.0.push(Effect::Committed(Box::new(commit.clone())));
    }

    fn notice(&mut self, notice: Notice) {
        self.0.push(Effect::Notice(notice));
    }

    fn new_incarnation(&mut self, _incarnation: Incarnation) {}

    fn ended(&mut self, end: End) {
        self.0.push(Effect::Ended(end));
    }
}

/// What the worker does, one after the other.
#[derive(Debug)]
pub(crate) enum Work {
    Compute(ComputeOrder),
    Apply(ApplyOrder),
}

/// Parameters as a hash over everything that was applied to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Applied steps.
    pub(crate) step: Step,
    pub(crate) digest: Digest,
}

impl State {
    pub(crate) fn initial() -> Self {
        Self { step: Step(0), digest: Digest::from_bytes([0; 32]) }
    }

    /// The state after one more step.
    pub(crate) fn apply(&mut self, gradients: &[Vec<f32>]) {
        let mut hasher = blake3::Hasher::new_derive_key("p2ptrain simulated state v1");
        hasher.update(self.digest.as_bytes());
        for gradient in gradients {
            hasher.update(&(gradient.len() as u64).to_le_bytes());
            for value in gradient {
                hasher.update(&value.to_bits().to_le_bytes());
            }
        }
        self.digest = Digest::from_bytes(*hasher.finalize().as_bytes());
        self.step = self.step.next();
    }
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) driver: Driver,
    /// Counts the starts of the process.
    pub(crate) life: u64,
    pub(crate) alive: bool,
    pub(crate) end: Option<End>,
    pub(crate) us_per_microbatch: u64,
    pub(crate) percent: u64,
    pub(crate) state: Option<State>,
    pub(crate) queue: VecDeque<Work>,
    /// Whether the front of the queue is being worked on.
    pub(crate) busy: bool,
}

impl Node {
    pub(crate) fn new(driver: Driver, us_per_microbatch: u64, state: Option<State>) -> Self {
        Self {
            driver,
            life: 1,
            alive: true,
            end: None,
            us_per_microbatch,
            percent: 100,
            state,
            queue: VecDeque::new(),
            busy: false,
        }
    }

    /// The process begins anew, with the same machine under it.
    pub(crate) fn restart(&mut self, driver: Driver) {
        let life = self.life + 1;
        *self = Self { life, ..Self::new(driver, self.us_per_microbatch, None) };
    }

    /// Present time of one micro-batch.
    pub(crate) fn item_us(&self) -> u64 {
        (self.us_per_microbatch * self.percent / 100).max(1)
    }

    /// Where the node is, for people.
    pub(crate) fn describe(&self, index: usize) -> String {
        let doing = match (self.alive, self.end) {
            (_, Some(end)) => format!("ended: {end:?}"),
            (false, None) => "dead".to_owned(),
            (true, None) => {
                let hello = self.driver.peer().hello();
                let members = self.driver.peer().view().map_or(0, |view| view.members.len());
                let lost = self.queue.len();
                format!(
                    "{:?} at {} in a view of {members}, {lost} works queued, state of {:?}",
                    hello.role,
                    hello.step,
                    self.state.map(|state| state.step),
                )
            }
        };
        format!("node {index} (life {}): {doing}", self.life)
    }
}
