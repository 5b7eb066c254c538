//! N peers in virtual time: real state machines, random delays, random deaths. Gradients are whole
//! numbers, so that sums are exact and a lost or doubled micro-batch shows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::ops::Range;

use super::*;
use crate::ledger::{Ledger, LedgerHeader};

const BUCKETS: [u64; 3] = [5, 0, 131];
const ITEMS: u32 = 7;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Message {
        from: usize,
        from_life: u64,
        to: usize,
        index: u64,
    },
    Computed {
        node: usize,
        life: u64,
        order: u64,
        bucket: usize,
    },
    State {
        node: usize,
        life: u64,
        step: u64,
    },
    Applied {
        node: usize,
        life: u64,
        step: u64,
    },
    Lost {
        node: usize,
        who: usize,
        life: u64,
        certain: bool,
    },
    Connect {
        a: usize,
        b: usize,
    },
    Kill {
        node: usize,
    },
    Restart {
        node: usize,
    },
    Leave {
        node: usize,
    },
    /// Cuts all links between the nodes below `at` and the others.
    Cut {
        at: usize,
    },
    Heal,
}

#[derive(Clone, Debug)]
enum Packet {
    Message(Message),
    Piece(PieceHeader, Vec<f32>),
}

struct Node {
    peer: Peer,
    life: u64,
    alive: bool,
    ended: bool,
    local: Vec<Vec<f32>>,
    reduced: Vec<Vec<f32>>,
    kept: BTreeMap<PieceHeader, Vec<f32>>,
    /// Committed steps and, for each, the sum over the reduced gradient.
    state: (u64, Vec<f32>),
    orders: VecDeque<(OrderId, Step, Vec<Range<u32>>, bool)>,
    connected: BTreeSet<usize>,
}

/// Attempt and next view of each node, under its life.
type Commits = BTreeMap<(usize, u64), (Digest, View)>;

struct Sim {
    rng: u64,
    now: u64,
    seq: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    packets: BTreeMap<u64, Packet>,
    /// Earliest arrival of the next message on an ordered stream.
    stream: BTreeMap<(usize, usize), u64>,
    nodes: Vec<Node>,
    /// By step.
    commits: BTreeMap<u64, Commits>,
    ledger: Ledger,
    geometry: JobGeometry,
    notices: Vec<(usize, Notice)>,
    eval_losses: BTreeMap<u64, Option<f64>>,
    history: VecDeque<String>,
    cut: Option<usize>,
}

/// A failing run prints what led to it.
impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in &self.history {
                eprintln!("{line}");
            }
        }
    }
}

fn id(node: usize) -> PeerId {
    PeerId::from_bytes([node as u8 + 1; 32])
}

fn gradient(step: u64, item: u32, bucket: usize, index: u64) -> f32 {
    ((step * 31 + u64::from(item) * 7 + bucket as u64 * 3 + index) % 64) as f32
}

impl Sim {
    fn new(nodes: usize, steps: u64, seed: u64) -> Self {
        let geometry = JobGeometry {
            job: JobId::from_bytes([7; 32]),
            micro_batches: ITEMS,
            steps,
            bucket_lens: BUCKETS.to_vec(),
            eval_every: 4,
            eval_items: 3,
            members_min: nodes as u32,
        };
        let header =
            LedgerHeader { job: geometry.job, first: Step(0), items: ITEMS, samples_per_item: 4 };
        let mut sim = Self {
            rng: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            packets: BTreeMap::new(),
            stream: BTreeMap::new(),
            nodes: Vec::new(),
            commits: BTreeMap::new(),
            ledger: Ledger::new(header).expect("a plausible header"),
            geometry: geometry.clone(),
            notices: Vec::new(),
            eval_losses: BTreeMap::new(),
            history: VecDeque::new(),
            cut: None,
        };
        for node in 0..nodes {
            let peer = if node == 0 {
                Peer::found(id(0), Incarnation(1), geometry.clone(), Step(0))
            } else {
                Peer::join(id(node), Incarnation(1), geometry.clone())
            };
            sim.nodes.push(Node::new(peer, 1));
        }
        sim.nodes[0].state = (0, vec![0.0]);
        for a in 0..nodes {
            for b in 0..a {
                sim.at(0, Event::Connect { a, b });
            }
        }
        sim
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let nodes = self.nodes.len();
        (0..nodes).flat_map(move |a| (0..nodes).map(move |b| (a, b))).filter(|(a, b)| a != b)
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.is_some_and(|at| (a < at) != (b < at))
    }

    fn random(&mut self, bound: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng % bound
    }

    fn note(&mut self, node: usize, what: impl std::fmt::Debug) {
        if self.history.len() == 200 {
            self.history.pop_front();
        }
        self.history.push_back(format!("{:>6} node {node}: {what:?}", self.now));
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.seq += 1;
        self.queue.push(Reverse((self.now + delay, self.seq, event)));
    }

    fn run(&mut self) {
        for node in 0..self.nodes.len() {
            self.drain(node);
        }
        for _ in 0..400_000 {
            let Some(Reverse((time, _, event))) = self.queue.pop() else { return };
            self.now = time;
            if let Event::Lost { node, .. } | Event::Kill { node } | Event::Restart { node } =
                &event
            {
                self.note(*node, &event);
            }
            self.handle(event);
            for node in 0..self.nodes.len() {
                self.drain(node);
            }
        }
        panic!("no end in sight: the swarm lives but does not finish");
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Message { from, from_life, to, index } => {
                let packet = self.packets.remove(&index).expect("each packet arrives once");
                let receiver = &self.nodes[to];
                let linked = receiver.connected.contains(&from);
                let cut = self.is_cut(from, to);
                let receiver = &mut self.nodes[to];
                if !receiver.alive || !linked || cut || self.nodes[from].life != from_life {
                    return;
                }
                let receiver = &mut self.nodes[to];
                match packet {
                    Packet::Message(message) => receiver.peer.handle_message(id(from), message),
                    Packet::Piece(header, data) => {
                        let elements = data.len();
                        receiver.kept.insert(header, data);
                        match receiver.peer.handle_piece(id(from), header, elements) {
                            Ok(PieceVerdict::Keep) => {}
                            Ok(PieceVerdict::Stale) => {
                                receiver.kept.remove(&header);
                            }
                            Err(error) => panic!("an honest piece was refused: {error}"),
                        }
                    }
                }
            }
            Event::Computed { node, life, order, bucket } => {
                if self.nodes[node].alive && self.nodes[node].life == life {
                    self.computed(node, order, bucket);
                }
            }
            Event::State { node, life, step } => {
                if self.nodes[node].alive && self.nodes[node].life == life {
                    self.fetch(node, step);
                }
            }
            Event::Applied { node, life, step } => {
                if self.nodes[node].alive && self.nodes[node].life == life {
                    let sum = self.nodes[node].state.1[0];
                    let digest = Digest::from_bytes([sum as u8; 32]);
                    self.nodes[node].peer.handle_applied(Step(step), vec![digest]);
                }
            }
            Event::Lost { node, who, life, certain } => {
                let known = self.nodes[node].connected.contains(&who);
                if self.nodes[node].alive && known && self.nodes[who].life <= life {
                    self.nodes[node].connected.remove(&who);
                    self.nodes[node].peer.handle_lost(id(who), certain);
                }
            }
            Event::Connect { a, b } => {
                if self.nodes[a].alive && self.nodes[b].alive && !self.is_cut(a, b) {
                    for (x, y) in [(a, b), (b, a)] {
                        if self.nodes[x].connected.insert(y) {
                            self.nodes[x].peer.handle_connected(id(y));
                        }
                    }
                }
            }
            Event::Kill { node } => self.kill(node),
            Event::Restart { node } => self.restart(node),
            Event::Leave { node } => self.nodes[node].peer.leave(),
            Event::Cut { at } => {
                self.cut = Some(at);
                for (node, who) in self.pairs().filter(|(a, b)| (*a < at) != (*b < at)) {
                    let (delay, life) = (1 + self.random(60), self.nodes[who].life);
                    self.at(delay, Event::Lost { node, who, life, certain: false });
                }
            }
            Event::Heal => {
                self.cut = None;
                for (a, b) in self.pairs().filter(|(a, b)| a < b) {
                    self.at(1, Event::Connect { a, b });
                }
            }
        }
    }

    fn kill(&mut self, node: usize) {
        if !self.nodes[node].alive || self.nodes[node].ended {
            return;
        }
        self.nodes[node].alive = false;
        let life = self.nodes[node].life;
        for other in 0..self.nodes.len() {
            let delay = 1 + self.random(40);
            if other != node {
                self.at(delay, Event::Lost { node: other, who: node, life, certain: true });
            }
        }
    }

    fn restart(&mut self, node: usize) {
        if self.nodes[node].alive {
            return;
        }
        let life = self.nodes[node].life + 1;
        let peer = Peer::join(id(node), Incarnation(life), self.geometry.clone());
        self.nodes[node] = Node::new(peer, life);
        for other in 0..self.nodes.len() {
            // A new connection replaces the old one only after the loss of the old was seen.
            if other != node && self.nodes[other].alive {
                if self.nodes[other].connected.remove(&node) {
                    self.nodes[other].peer.handle_lost(id(node), true);
                }
                self.at(1, Event::Connect { a: node, b: other });
            }
        }
    }

    /// The node's order is computed bucket by bucket; after the last, the order is done.
    fn computed(&mut self, node: usize, order: u64, bucket: usize) {
        let n = &mut self.nodes[node];
        let (front, step, work, fresh) = n.orders.front().expect("an order is running").clone();
        assert_eq!(front.0, order);
        if bucket < n.local.len() {
            if fresh {
                n.local[bucket].fill(0.0);
            }
            for item in work.iter().cloned().flatten().filter(|item| *item < ITEMS) {
                for (index, value) in n.local[bucket].iter_mut().enumerate() {
                    *value += gradient(step.0, item, bucket, index as u64);
                }
            }
            n.peer.handle_bucket_ready(front, bucket);
            let life = n.life;
            let delay = 1 + self.random(10);
            self.at(delay, Event::Computed { node, life, order, bucket: bucket + 1 });
            return;
        }
        let items: Vec<u32> = work.iter().cloned().flatten().collect();
        let micro_batches = self.geometry.items(step).train;
        let evaluated = items.iter().filter(|item| **item >= micro_batches).count();
        let n = &mut self.nodes[node];
        let report = OrderReport {
            train_loss: (items.len() - evaluated) as f64,
            eval_loss: evaluated as f64 * 2.0,
            us_per_microbatch: Some(1000 + node as u32 * 500),
        };
        n.orders.pop_front();
        n.peer.handle_computed(front, &report);
        self.next_order(node);
    }

    fn next_order(&mut self, node: usize) {
        let Some((order, ..)) = self.nodes[node].orders.front() else { return };
        let (order, life) = (order.0, self.nodes[node].life);
        let delay = 1 + self.random(30);
        self.at(delay, Event::Computed { node, life, order, bucket: 0 });
    }

    fn fetch(&mut self, node: usize, step: u64) {
        let source =
            self.nodes.iter().find(|n| n.alive && n.state.0 == step && !n.state.1.is_empty());
        match source.map(|n| n.state.clone()) {
            Some(state) => {
                self.nodes[node].state = state;
                self.nodes[node].peer.handle_state(Step(step));
            }
            None => {
                let life = self.nodes[node].life;
                self.at(5, Event::State { node, life, step });
            }
        }
    }

    fn drain(&mut self, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        while let Some(output) = self.nodes[node].peer.poll_output() {
            let life = self.nodes[node].life;
            if let Output::Compute { .. } | Output::Notice(_) | Output::FetchState { .. } = &output
            {
                self.note(node, &output);
            }
            match output {
                Output::Send { to, message } => self.transmit(node, to, Packet::Message(message)),
                Output::SendLocal { forward, range } => {
                    let data =
                        self.nodes[node].local[forward.header.bucket as usize][range].to_vec();
                    self.transmit(node, forward.to, Packet::Piece(forward.header, data));
                }
                Output::Reduce { header, range, forward, complete } => {
                    let n = &mut self.nodes[node];
                    let mut data = n.kept.remove(&header).expect("bytes are kept until used");
                    let bucket = header.bucket as usize;
                    for (value, own) in data.iter_mut().zip(&n.local[bucket][range.clone()]) {
                        *value += own;
                    }
                    if complete {
                        n.reduced[bucket][range].copy_from_slice(&data);
                    }
                    self.transmit(node, forward.to, Packet::Piece(forward.header, data));
                }
                Output::Store { header, range, forward } => {
                    let n = &mut self.nodes[node];
                    let data = n.kept.remove(&header).expect("bytes are kept until used");
                    n.reduced[header.bucket as usize][range].copy_from_slice(&data);
                    if let Some(forward) = forward {
                        self.transmit(node, forward.to, Packet::Piece(forward.header, data));
                    }
                }
                Output::Reduced { .. } => {}
                Output::Discard(header) => drop(self.nodes[node].kept.remove(&header)),
                Output::DropAttempt(attempt) => {
                    self.nodes[node].kept.retain(|header, _| header.attempt != attempt);
                }
                Output::Compute { order, step, work, fresh } => {
                    self.nodes[node].orders.push_back((order, step, work, fresh));
                    if self.nodes[node].orders.len() == 1 {
                        self.next_order(node);
                    }
                }
                Output::FetchState { step, .. } => {
                    let delay = 1 + self.random(60);
                    self.at(delay, Event::State { node, life, step: step.0 });
                }
                Output::Commit(commit) => self.commit(node, &commit),
                Output::Notice(notice) => self.notices.push((node, notice)),
                Output::NewIncarnation(incarnation) => assert!(incarnation.0 > 1),
                Output::Left | Output::Finished => {
                    self.nodes[node].ended = true;
                    self.nodes[node].alive = false;
                    for other in 0..self.nodes.len() {
                        if other != node {
                            self.at(1, Event::Lost { node: other, who: node, life, certain: true });
                        }
                    }
                }
            }
        }
    }

    fn transmit(&mut self, from: usize, to: PeerId, packet: Packet) {
        let to = to.as_bytes()[0] as usize - 1;
        if !self.nodes[from].connected.contains(&to) {
            return;
        }
        let mut time = self.now + 1 + self.random(25);
        if matches!(packet, Packet::Message(_)) {
            let earliest = self.stream.entry((from, to)).or_default();
            time = time.max(*earliest + 1);
            *earliest = time;
        }
        self.seq += 1;
        let index = self.seq;
        self.packets.insert(index, packet);
        let from_life = self.nodes[from].life;
        let event = Event::Message { from, from_life, to, index };
        self.at(time - self.now, event);
    }

    /// The oracle: every commit of a step is the same, and its gradient is that of all items.
    fn commit(&mut self, node: usize, commit: &Commit) {
        let members: Vec<_> = commit.next_view.peers().collect();
        self.note(node, ("commit", commit.step, &commit.entry, members));
        let n = &mut self.nodes[node];
        let step = commit.step.0;
        assert_eq!(n.state.0, step, "node {node} commits in order");
        let mut sum = Vec::new();
        if commit.apply {
            for (bucket, len) in BUCKETS.iter().enumerate() {
                let buffer = if commit.alone { &n.local[bucket] } else { &n.reduced[bucket] };
                for index in 0..*len {
                    let want: f32 =
                        (0..ITEMS).map(|item| gradient(step, item, bucket, index)).sum();
                    assert_eq!(
                        buffer[index as usize], want,
                        "node {node} step {step} bucket {bucket} element {index}"
                    );
                    sum.push(want);
                }
            }
        }
        let total = n.state.1[0] + sum.iter().sum::<f32>();
        n.state = (step + 1, vec![total]);
        let life = n.life;
        let first = !self.commits.contains_key(&step);
        let commits = self.commits.entry(step).or_default();
        for ((other, other_life), (attempt, view)) in commits.iter() {
            assert_eq!(*attempt, commit.entry.attempt, "step {step}: one attempt is committed");
            // The view of a node that died at once, or was cut off, is nobody's view any more.
            let apart = self.cut.is_some_and(|at| (node < at) != (*other < at));
            let other = &self.nodes[*other];
            let acts = matches!(other.peer.hello().role, Role::Member | Role::Idle);
            if other.alive && other.life == *other_life && acts && !apart {
                assert_eq!(*view, commit.next_view, "step {step}: one next view");
            }
        }
        commits.insert((node, life), (commit.entry.attempt, commit.next_view.clone()));
        if first && commit.apply {
            self.ledger.append(&commit.entry).expect("each micro-batch counts once");
        }
        if let Some(loss) = commit.eval_loss {
            self.eval_losses.insert(step, Some(loss));
        }
        if let Some(loss) = commit.train_loss {
            assert_eq!(loss, 1.0, "step {step}: reported losses belong to the reported items");
        }
        if commit.apply {
            let delay = 1 + self.random(10);
            self.at(delay, Event::Applied { node, life, step });
        }
    }

    fn finished(&self) -> usize {
        self.nodes.iter().filter(|n| n.ended).count()
    }
}

impl Node {
    fn new(peer: Peer, life: u64) -> Self {
        let zeros = || BUCKETS.iter().map(|len| vec![0.0; *len as usize]).collect::<Vec<_>>();
        Self {
            peer,
            life,
            alive: true,
            ended: false,
            local: zeros(),
            reduced: zeros(),
            kept: BTreeMap::new(),
            state: (0, Vec::new()),
            orders: VecDeque::new(),
            connected: BTreeSet::new(),
        }
    }
}

fn check(nodes: usize, steps: u64, seed: u64, faults: impl FnOnce(&mut Sim)) -> Sim {
    let mut sim = Sim::new(nodes, steps, seed);
    faults(&mut sim);
    sim.run();
    assert!(sim.commits.contains_key(&steps), "seed {seed}: the closing round was reached");
    for node in &sim.nodes {
        assert!(node.kept.is_empty() || node.ended || !node.alive, "no bytes are left over");
    }
    sim
}

#[test]
fn a_lone_founder_trains_to_the_end() {
    let sim = check(1, 5, 1, |_| {});
    assert_eq!(sim.finished(), 1);
    assert_eq!(sim.eval_losses.keys().copied().collect::<Vec<_>>(), [0, 4, 5]);
}

#[test]
fn groups_of_every_small_size_commit_the_sum_of_all_micro_batches() {
    for nodes in 2..=8 {
        for seed in 0..10 {
            let sim = check(nodes, 6, seed, |_| {});
            assert_eq!(sim.finished(), nodes, "{nodes} nodes, seed {seed}");
            assert!(sim.notices.is_empty(), "{:?}", sim.notices);
        }
    }
}

#[test]
fn a_death_at_any_moment_loses_and_doubles_nothing() {
    for nodes in 2..=5 {
        for seed in 0..300 {
            let sim = check(nodes, 6, seed, |sim| {
                // Before the others hold the state, the founder's death is the job's.
                let victim = sim.random(nodes as u64) as usize;
                let when = if victim == 0 { 250 } else { 50 } + sim.random(800);
                sim.at(when, Event::Kill { node: victim });
            });
            assert!(sim.finished() >= nodes - 1, "{nodes} nodes, seed {seed}");
        }
    }
}

#[test]
fn two_deaths_close_together_lose_and_double_nothing() {
    for nodes in 3..=6 {
        for seed in 0..300 {
            let sim = check(nodes, 6, seed, |sim| {
                let when = 250 + sim.random(700);
                let gap = sim.random(60);
                let first = sim.random(nodes as u64) as usize;
                sim.at(when, Event::Kill { node: first });
                sim.at(when + gap, Event::Kill { node: (first + 1) % nodes });
            });
            assert!(sim.finished() >= nodes - 2, "{nodes} nodes, seed {seed}");
        }
    }
}

#[test]
fn a_killed_node_joins_again_and_contributes() {
    for seed in 0..300 {
        let sim = check(3, 14, seed, |sim| {
            let when = 200 + sim.random(400);
            let pause = 5 + sim.random(300);
            sim.at(when, Event::Kill { node: 1 });
            sim.at(when + pause, Event::Restart { node: 1 });
        });
        assert_eq!(sim.finished(), 3, "seed {seed}");
    }
}

#[test]
fn nodes_that_die_and_return_all_the_time_do_not_disturb_the_result() {
    for seed in 0..150 {
        let sim = check(4, 30, seed, |sim| {
            for round in 0..8 {
                let node = 1 + sim.random(3) as usize;
                let when = 150 + round * 250 + sim.random(200);
                let pause = 5 + sim.random(200);
                sim.at(when, Event::Kill { node });
                sim.at(when + pause, Event::Restart { node });
            }
        });
        assert!(sim.finished() >= 1, "seed {seed}");
    }
}

#[test]
fn a_leaver_finishes_its_step_and_the_others_go_on_without_redoing_anything() {
    for seed in 0..50 {
        let sim = check(3, 8, seed, |sim| sim.at(300, Event::Leave { node: 2 }));
        assert_eq!(sim.finished(), 3, "seed {seed}");
        let redone = sim.notices.iter().any(|(_, n)| matches!(n, Notice::Redo { .. }));
        assert!(!redone, "seed {seed}: {:?}", sim.notices);
    }
}

#[test]
fn after_a_partition_only_the_larger_side_goes_on_and_the_other_joins_again() {
    for (nodes, at) in [(3, 1), (3, 2), (5, 2), (5, 3), (4, 2), (2, 1)] {
        for seed in 0..60 {
            let sim = check(nodes, 30, seed, |sim| {
                let when = 300 + sim.random(400);
                sim.at(when, Event::Cut { at });
                let heal = when + 300 + sim.random(400);
                sim.at(heal, Event::Heal);
            });
            assert_eq!(sim.finished(), nodes, "{nodes} nodes cut at {at}, seed {seed}");
        }
    }
}
