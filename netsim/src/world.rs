//! The loop over the events of a run.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use p2ptrain_node::driver::{Driver, Event};
use p2ptrain_node::effect::End;
use p2ptrain_protocol::id::{Incarnation, PeerId, Step};
use p2ptrain_protocol::peer::{Message, Notice, OrderReport, Peer, PieceHeader, Role};
use p2ptrain_protocol::wire::{self, Kind};

use crate::clock::Clock;
use crate::fabric::{Fabric, Session};
use crate::fault::Fault;
use crate::node::{Effect, Node, Outbox, State, Work};
use crate::oracle::{Oracle, Violation};
use crate::random::Random;
use crate::scenario::{Failure, Outcome, Scenario};

/// Events that a failure shows.
const HISTORY_LINES: usize = 60;
/// Bytes of a piece on the wire beside its payload.
const PIECE_HEAD_BYTES: usize = 80;
/// Pause before a node tries again to connect, or to fetch a state that its source is still writing.
const RETRY_US: u64 = 5_000;
/// The worker's time to give back a buffer that needed no computation.
const IDLE_BUCKET_US: u64 = 1;

/// What happens in virtual time. `life` is that of the node's process: events of a dead one are void.
#[derive(Debug)]
enum Happening {
    Start { node: usize },
    Connect { a: usize, b: usize },
    Lost { node: usize, other: usize, session: Session, certain: bool },
    Packet { from: usize, to: usize, session: Session, packet: Packet },
    Worker { node: usize, life: u64, progress: Progress },
    Fetch { node: usize, life: u64, step: Step, from: Vec<usize> },
    Fault(Fault),
}

#[derive(Debug)]
enum Packet {
    Message(Vec<u8>),
    Piece(PieceHeader, Bytes),
}

/// What the worker has reached.
#[derive(Clone, Copy, Debug)]
enum Progress {
    Bucket(usize),
    Computed,
    Applied,
}

/// A run.
pub(crate) struct World {
    scenario: Scenario,
    clock: Clock<Happening>,
    fabric: Fabric,
    nodes: Vec<Node>,
    oracle: Oracle,
    random: Random,
    trace: blake3::Hasher,
    history: VecDeque<String>,
    events: u64,
    notices: Vec<(usize, Notice)>,
    /// Moments of kills after which nothing was committed yet, with the dead node.
    open_kills: Vec<(u64, usize)>,
    kill_to_commit_us: Vec<u64>,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let cuts = scenario.faults.iter().any(|(_, fault)| matches!(fault, Fault::Cut { .. }));
        let mut clock = Clock::new();
        for (node, spec) in scenario.nodes.iter().enumerate() {
            clock.at(spec.starts_us, Happening::Start { node });
        }
        for (at_us, fault) in &scenario.faults {
            clock.at(*at_us, Happening::Fault(*fault));
        }
        let geometry = &scenario.geometry;
        let nodes = scenario
            .nodes
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let (me, life) = (peer_id(index), Incarnation(1));
                let (peer, state) = match index {
                    0 => {
                        let state = State::initial();
                        (Peer::found(me, life, geometry.clone(), Step(0)), Some(state))
                    }
                    _ => (Peer::join(me, life, geometry.clone()), None),
                };
                let us = u64::from(spec.us_per_microbatch);
                Node { alive: false, ..Node::new(Driver::new(peer), us, state) }
            })
            .collect();
        Self {
            fabric: Fabric::new(scenario.link, &scenario.links),
            oracle: Oracle::new(geometry.clone(), cuts),
            random: Random::new(scenario.seed),
            clock,
            nodes,
            trace: blake3::Hasher::new(),
            history: VecDeque::new(),
            events: 0,
            notices: Vec::new(),
            open_kills: Vec::new(),
            kill_to_commit_us: Vec::new(),
            scenario,
        }
    }

    pub(crate) fn run(mut self) -> Result<Outcome, Box<Failure>> {
        match self.run_to_the_end() {
            Ok(()) => Ok(Outcome {
                trace: *self.trace.finalize().as_bytes(),
                virtual_us: self.clock.now_us(),
                events: self.events,
                steps: self.oracle.steps(),
                ledger: self.oracle.ledger().clone(),
                ends: self.nodes.iter().map(|node| node.end).collect(),
                notices: self.notices,
                kill_to_commit_us: self.kill_to_commit_us,
            }),
            Err(violation) => Err(Box::new(Failure {
                seed: self.scenario.seed,
                virtual_us: self.clock.now_us(),
                violation,
                history: self.history.into(),
            })),
        }
    }

    fn run_to_the_end(&mut self) -> Result<(), Violation> {
        let mut faults = self.scenario.faults.len();
        let mut starts = self.nodes.len();
        while let Some(happening) = self.clock.next() {
            self.events += 1;
            self.record(&happening);
            faults -= usize::from(matches!(happening, Happening::Fault(_)));
            starts -= usize::from(matches!(happening, Happening::Start { .. }));
            self.handle(happening)?;
            let over = faults == 0 && starts == 0 && self.nodes.iter().all(|node| !node.alive);
            if over {
                break;
            }
            if self.clock.now_us() > self.scenario.limit_us {
                return Err(self.stuck());
            }
        }
        // Who starts after the end finds nobody to join.
        let finished = self.nodes.iter().any(|node| node.end == Some(End::Finished));
        let waits = |node: &Node| finished && node.driver.peer().hello().role == Role::Joining;
        let all_ended = self.nodes.iter().all(|node| !node.alive || waits(node));
        if all_ended || self.scenario.may_stall { Ok(()) } else { Err(self.stuck()) }
    }

    fn stuck(&self) -> Violation {
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| node.describe(index));
        Violation::Stuck { nodes: nodes.collect() }
    }

    /// Adds an event to the trace, and to what a failure shows.
    fn record(&mut self, happening: &Happening) {
        let now_us = self.clock.now_us();
        self.trace.update(&now_us.to_le_bytes());
        let line = match happening {
            Happening::Packet { from, to, packet: Packet::Message(bytes), .. } => {
                self.trace.update(bytes);
                let text = wire::decode::<Message>(Kind::Step, bytes)
                    .map_or_else(|error| error.to_string(), |message| format!("{message:?}"));
                format!("{from} to {to}: {}", text.chars().take(160).collect::<String>())
            }
            Happening::Packet { from, to, packet: Packet::Piece(header, payload), .. } => {
                self.trace.update(payload);
                format!(
                    "{from} to {to}: step {} bucket {} {}",
                    header.step, header.bucket, header.piece
                )
            }
            other => format!("{other:?}"),
        };
        self.trace.update(line.as_bytes());
        if self.history.len() == HISTORY_LINES {
            self.history.pop_front();
        }
        self.history.push_back(format!("{now_us} {line}"));
    }

    fn handle(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Start { node } => self.start(node),
            Happening::Connect { a, b } => self.connect(a, b),
            Happening::Lost { node, other, session, certain } => {
                if !self.fabric.drop_end(node, other, session) {
                    return Ok(());
                }
                self.seek(node, other);
                self.event(node, Event::Lost { peer: peer_id(other), certain })
            }
            Happening::Packet { from, to, session, packet } => {
                if !self.fabric.delivers(from, to, session) {
                    return Ok(());
                }
                let from = peer_id(from);
                match packet {
                    Packet::Message(bytes) => {
                        let message = wire::decode(Kind::Step, &bytes)
                            .map_err(|error| Violation::Wire(error.to_string()))?;
                        self.event(to, Event::Message { from, message })
                    }
                    Packet::Piece(header, payload) => {
                        self.event(to, Event::Piece { from, header, payload })
                    }
                }
            }
            Happening::Worker { node, life, progress } => {
                if self.lives(node, life) {
                    self.worked(node, progress)
                } else {
                    Ok(())
                }
            }
            Happening::Fetch { node, life, step, from } => {
                if self.lives(node, life) {
                    self.fetch(node, step, from)
                } else {
                    Ok(())
                }
            }
            Happening::Fault(fault) => self.fault(fault),
        }
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].alive && self.nodes[node].life == life
    }

    fn start(&mut self, node: usize) -> Result<(), Violation> {
        self.nodes[node].alive = true;
        let mut outbox = Outbox::default();
        self.nodes[node].driver.start(&mut outbox);
        self.perform(node, outbox)?;
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.seek(node, other);
        }
        Ok(())
    }

    /// Lets a node try to connect with another soon.
    fn seek(&mut self, node: usize, other: usize) {
        let delay_us = self.random.within(500..=RETRY_US);
        self.clock.after(delay_us, Happening::Connect { a: node, b: other });
    }

    fn connect(&mut self, a: usize, b: usize) -> Result<(), Violation> {
        if !self.nodes[a].alive || !self.nodes[b].alive || self.fabric.is_cut(a, b) {
            return Ok(());
        }
        let held = (self.fabric.session(a, b), self.fabric.session(b, a));
        match held {
            (Some(one), Some(other)) if one == other => return Ok(()),
            (None, None) => {}
            // An end that still holds an earlier connection learns of its end by the new one.
            _ => {
                self.replaced(a, b)?;
                self.replaced(b, a)?;
            }
        }
        let lives = [self.nodes[a].life, self.nodes[b].life];
        if self.fabric.connect(a, b, lives).is_some() {
            self.event(a, Event::Connected(peer_id(b)))?;
            self.event(b, Event::Connected(peer_id(a)))?;
        }
        Ok(())
    }

    /// The other side of a connection has ended it, as the new one shows.
    fn replaced(&mut self, node: usize, other: usize) -> Result<(), Violation> {
        let Some(session) = self.fabric.session(node, other) else { return Ok(()) };
        // Another life on the other side: the process with which the connection was is gone.
        let certain = self.fabric.other_life(node, other) != Some(self.nodes[other].life);
        self.fabric.drop_end(node, other, session);
        self.event(node, Event::Lost { peer: peer_id(other), certain })
    }

    fn event(&mut self, node: usize, event: Event) -> Result<(), Violation> {
        if !self.nodes[node].alive {
            return Ok(());
        }
        let mut outbox = Outbox::default();
        self.nodes[node].driver.handle(event, &mut outbox);
        self.perform(node, outbox)
    }

    fn perform(&mut self, node: usize, outbox: Outbox) -> Result<(), Violation> {
        for effect in outbox.0 {
            match effect {
                Effect::Send { to, message } => {
                    let bytes = wire::try_encode(Kind::Step, &message)
                        .map_err(|error| Violation::Wire(error.to_string()))?;
                    self.send(node, to, bytes.len(), Packet::Message(bytes));
                }
                Effect::SendPiece { to, header, payload } => {
                    let bytes = payload.len() + PIECE_HEAD_BYTES;
                    self.send(node, to, bytes, Packet::Piece(header, payload));
                }
                Effect::Refuse { peer, reason } => {
                    return Err(Violation::Refused { node, peer, reason });
                }
                Effect::Compute(order) => self.enqueue(node, Work::Compute(order)),
                Effect::Apply(order) => self.enqueue(node, Work::Apply(order)),
                Effect::FetchState { step, from } => {
                    let from = from.iter().map(index_of).collect();
                    self.fetch_later(node, step, from, self.transfer_us());
                }
                Effect::Committed(commit) => {
                    let (nodes, life) = (&self.nodes, self.nodes[node].life);
                    let living = |node: usize, life| nodes[node].alive && nodes[node].life == life;
                    self.oracle.committed(node, life, &commit, living)?;
                    self.count_kills(node);
                }
                Effect::Notice(notice) => {
                    if let Notice::Violation { peer, what } = notice {
                        return Err(Violation::Refused { node, peer, reason: what });
                    }
                    self.notices.push((node, notice));
                }
                Effect::Ended(end) => self.end(node, end),
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: PeerId, bytes: usize, packet: Packet) {
        let (to, now_us) = (index_of(&to), self.clock.now_us());
        let ordered = matches!(packet, Packet::Message(_));
        let sent = self.fabric.send(from, to, bytes, ordered, now_us, &mut self.random);
        if let Some((at_us, session)) = sent {
            self.clock.at(at_us, Happening::Packet { from, to, session, packet });
        }
    }

    fn enqueue(&mut self, node: usize, work: Work) {
        self.nodes[node].queue.push_back(work);
        self.next_work(node);
    }

    /// Schedules the progress of the work at the front of the queue. Backward passes the blocks from the last
    /// to the first, in the last two thirds of the last micro-batch.
    fn next_work(&mut self, node: usize) {
        let apply_us = self.scenario.apply_us;
        let train = self.scenario.geometry.micro_batches;
        let machine = &mut self.nodes[node];
        let (life, item_us) = (machine.life, machine.item_us());
        if machine.busy {
            return;
        }
        let Some(work) = machine.queue.front() else { return };
        machine.busy = true;
        let mut after = |delay_us: u64, progress| {
            self.clock.after(delay_us, Happening::Worker { node, life, progress });
        };
        let order = match work {
            Work::Apply(_) => return after(apply_us, Progress::Applied),
            Work::Compute(order) => order,
        };
        let closing = order.step.0 >= self.scenario.geometry.steps;
        let items = order.work.iter().cloned().flatten();
        let (mut trained, mut evaluated) = (0, 0);
        for item in items {
            let training = !closing && item < train;
            trained += u64::from(training);
            evaluated += u64::from(!training);
        }
        let buckets = order.gradients.len() as u64;
        let backward_us = if trained > 0 { item_us * 2 / 3 } else { buckets * IDLE_BUCKET_US };
        let forward_us = if trained > 0 { trained * item_us - backward_us } else { 0 };
        for passed in 1..=buckets {
            let bucket = (buckets - passed) as usize;
            after(forward_us + backward_us * passed / buckets, Progress::Bucket(bucket));
        }
        after(forward_us + backward_us + evaluated * item_us / 3, Progress::Computed);
    }

    fn worked(&mut self, node: usize, progress: Progress) -> Result<(), Violation> {
        let micro_batches = self.scenario.geometry.micro_batches;
        let closing = |step: Step| step.0 >= self.scenario.geometry.steps;
        let machine = &mut self.nodes[node];
        let work = machine.queue.front_mut().expect("progress is that of the work at the front");
        let event = match (work, progress) {
            (Work::Compute(order), Progress::Bucket(bucket)) => {
                let mut gradient = std::mem::take(&mut order.gradients[bucket]);
                if !closing(order.step) {
                    add_gradient(&mut gradient, order.step, bucket, &order.work, micro_batches);
                }
                Event::BucketReady { order: order.order, bucket, gradient }
            }
            (Work::Compute(order), Progress::Computed) => {
                let items = || order.work.iter().cloned().flatten();
                let training = |item: &u32| !closing(order.step) && *item < micro_batches;
                let trained = items().filter(training).count();
                let report = OrderReport {
                    train_loss: trained as f64,
                    eval_loss: 2.0 * (items().count() - trained) as f64,
                    us_per_microbatch: (trained > 0)
                        .then(|| u32::try_from(machine.us_per_microbatch * machine.percent / 100))
                        .and_then(Result::ok),
                };
                Event::Computed { order: order.order, report }
            }
            (Work::Apply(order), Progress::Applied) => {
                let step = order.step;
                let gradients = std::mem::take(&mut order.gradients);
                let exact = |bucket, element| exact_sum(step, bucket, element, micro_batches);
                self.oracle.applies(node, step, &gradients, exact)?;
                let state = machine.state.as_mut().expect("a member that commits has a state");
                if state.step != step {
                    return Err(Violation::Order { node, expected: state.step, got: step });
                }
                state.apply(&gradients);
                self.oracle.applied(node, step, state.digest)?;
                let compare = self.scenario.compare_every;
                let compared = compare > 0 && state.step.0.is_multiple_of(compare);
                let blocks = if compared { gradients.len() } else { 0 };
                let block_digests = vec![state.digest; blocks];
                Event::Applied { step, block_digests, gradients }
            }
            (work, progress) => unreachable!("{progress:?} of {work:?}"),
        };
        if matches!(progress, Progress::Computed | Progress::Applied) {
            machine.queue.pop_front();
            machine.busy = false;
        }
        self.event(node, event)?;
        self.next_work(node);
        Ok(())
    }

    /// How long the whole state takes over a link.
    fn transfer_us(&self) -> u64 {
        let bits = 8 * self.scenario.state_bytes;
        2 * self.scenario.link.latency_us + bits * 1_000_000 / self.scenario.link.bits_per_s.max(1)
    }

    fn fetch_later(&mut self, node: usize, step: Step, from: Vec<usize>, delay_us: u64) {
        let life = self.nodes[node].life;
        self.clock.after(delay_us, Happening::Fetch { node, life, step, from });
    }

    /// A transfer ends: the state is there if its source still is. Otherwise the next source is asked.
    fn fetch(&mut self, node: usize, step: Step, mut from: Vec<usize>) -> Result<(), Violation> {
        if self.nodes[node].driver.peer().step() != Some(step) {
            return Ok(());
        }
        let Some(&source) = from.first() else {
            return self.event(node, Event::StateFailed(step));
        };
        let reachable = self.nodes[source].alive && self.fabric.session(node, source).is_some();
        match self.nodes[source].state {
            Some(state) if reachable && state.step == step => {
                self.nodes[node].state = Some(state);
                self.oracle.fetched(node, self.nodes[node].life, step, state.digest)?;
                self.event(node, Event::StateFetched(step))
            }
            // It is still applying the step before.
            Some(state) if reachable && state.step < step => {
                self.fetch_later(node, step, from, RETRY_US);
                Ok(())
            }
            _ => {
                from.remove(0);
                let delay_us = self.transfer_us();
                self.fetch_later(node, step, from, delay_us);
                Ok(())
            }
        }
    }

    fn fault(&mut self, fault: Fault) -> Result<(), Violation> {
        match fault {
            Fault::Kill { node } => self.kill(node),
            Fault::Restart { node } => {
                if !self.nodes[node].alive && self.nodes[node].end.is_none() {
                    let (life, geometry) =
                        (self.nodes[node].life + 1, self.scenario.geometry.clone());
                    let peer = Peer::join(peer_id(node), Incarnation(life << 20), geometry);
                    self.nodes[node].restart(Driver::new(peer));
                    return self.start(node);
                }
            }
            Fault::Cut { a, b } => {
                self.fabric.cut(a, b);
                for (node, other) in [(a, b), (b, a)] {
                    if let Some(session) = self.fabric.session(node, other) {
                        let delay_us = self.random.within(self.scenario.cut_seen_us.clone());
                        let certain = false;
                        self.clock
                            .after(delay_us, Happening::Lost { node, other, session, certain });
                    }
                }
            }
            Fault::Heal { a, b } => {
                self.fabric.heal(a, b);
                self.seek(a, b);
            }
            Fault::Slow { node, percent } => self.nodes[node].percent = u64::from(percent),
            Fault::Leave { node } => return self.event(node, Event::Leave),
        }
        Ok(())
    }

    fn kill(&mut self, node: usize) {
        let own_life = self.nodes[node].life;
        let survives = self.nodes.iter().enumerate().any(|(index, other)| {
            let holds =
                other.alive && other.state.is_some() && other.driver.peer().view().is_some();
            index != node && holds && self.oracle.outlives((index, other.life), (node, own_life))
        });
        if !self.nodes[node].alive || !survives {
            return;
        }
        self.nodes[node].alive = false;
        self.open_kills.push((self.clock.now_us(), node));
        self.hang_up(node);
    }

    fn end(&mut self, node: usize, end: End) {
        self.nodes[node].alive = false;
        self.nodes[node].end = Some(end);
        self.hang_up(node);
    }

    /// The process is gone: its own ends go with it, and the others notice.
    fn hang_up(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if let Some(session) = self.fabric.session(node, other) {
                self.fabric.drop_end(node, other, session);
            }
            if let Some(session) = self.fabric.session(other, node) {
                let delay_us = self.random.within(self.scenario.death_seen_us.clone());
                // Over a cut link nobody can tell death from silence.
                let certain = !self.fabric.is_cut(node, other);
                let lost = Happening::Lost { node: other, other: node, session, certain };
                self.clock.after(delay_us, lost);
            }
        }
    }

    fn count_kills(&mut self, node: usize) {
        let now_us = self.clock.now_us();
        let open = std::mem::take(&mut self.open_kills);
        let (own, others): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, dead)| *dead == node);
        self.kill_to_commit_us.extend(others.iter().map(|(at_us, _)| now_us - at_us));
        self.open_kills = own;
    }
}

/// The gradient of one micro-batch: whole numbers that differ in everything.
fn gradient(step: Step, item: u32, bucket: usize, element: usize) -> f32 {
    ((step.0 * 31 + u64::from(item) * 7 + bucket as u64 * 3 + element as u64) % 64) as f32
}

fn add_gradient(out: &mut [f32], step: Step, bucket: usize, work: &[Range<u32>], items: u32) {
    for item in work.iter().cloned().flatten().filter(|item| *item < items) {
        for (element, value) in out.iter_mut().enumerate() {
            *value += gradient(step, item, bucket, element);
        }
    }
}

fn exact_sum(step: Step, bucket: usize, element: usize, items: u32) -> f32 {
    (0..items).map(|item| gradient(step, item, bucket, element)).sum()
}

/// Ids in an order of their own, so that the founder has not always the smallest.
fn peer_id(node: usize) -> PeerId {
    let node = node as u8;
    let mut bytes = [node; 32];
    bytes[0] = node.wrapping_mul(0x9d) ^ 0x5a;
    PeerId::from_bytes(bytes)
}

fn index_of(peer: &PeerId) -> usize {
    usize::from(peer.as_bytes()[31])
}
