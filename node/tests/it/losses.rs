//! Real drivers, programs and optimizers; only the network is a queue. Whoever takes part, the
//! losses are those of a run alone, and replicas are equal bit for bit.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use p2ptrain_kernels::model::{GptConfig, gpt};
use p2ptrain_kernels::{Executor, Input, Precision, Program, init_params};
use p2ptrain_node::driver::{Driver, Event};
use p2ptrain_node::effect::{ApplyOrder, ComputeOrder, Effects, End};
use p2ptrain_node::job::JobSpec;
use p2ptrain_node::optimizer::Optimizer;
use p2ptrain_node::state::TrainState;
use p2ptrain_protocol::id::{Incarnation, JobId, PeerId, Step};
use p2ptrain_protocol::peer::{
    Commit, JobGeometry, Message, Notice, OrderReport, Peer, PieceHeader,
};

const BATCH: usize = 2;
const TIME: usize = 16;
const MICRO_BATCHES: u32 = 8;

fn config() -> GptConfig {
    GptConfig {
        vocab: 64,
        block_size: TIME,
        layers: 2,
        heads: 2,
        width: 32,
        bias: true,
        tied: true,
    }
}

/// Tokens with something to learn, a function of the position alone.
fn tokens(position: u64) -> (Vec<i32>, Vec<i32>) {
    let at = |index: u64| ((position * 5 + index * index / 3 + (index % 4) * 7) % 64) as i32;
    let row = |offset: u64| {
        (0..(BATCH * TIME) as u64).map(|index| at(index + offset)).collect::<Vec<_>>()
    };
    (row(0), row(1))
}

enum Sent {
    Message(Message),
    Piece(PieceHeader, Bytes),
}

/// What a node's effects have asked for.
#[derive(Default)]
struct Wishes {
    sent: Vec<(PeerId, Sent)>,
    events: VecDeque<Event>,
    compute: VecDeque<ComputeOrder>,
    apply: Option<ApplyOrder>,
    fetch: Option<Step>,
    commits: Vec<Commit>,
    ended: bool,
}

impl Effects for Wishes {
    fn send(&mut self, to: PeerId, message: Message) {
        self.sent.push((to, Sent::Message(message)));
    }

    fn send_piece(&mut self, to: PeerId, header: PieceHeader, payload: Bytes) {
        self.sent.push((to, Sent::Piece(header, payload)));
    }

    fn refuse(&mut self, peer: PeerId, reason: String) {
        panic!("{peer} was refused: {reason}");
    }

    fn compute(&mut self, order: ComputeOrder) {
        self.compute.push_back(order);
    }

    fn fetch_state(&mut self, step: Step, _from: Vec<PeerId>) {
        self.fetch = Some(step);
    }

    fn apply(&mut self, order: ApplyOrder) {
        self.apply = Some(order);
    }

    fn committed(&mut self, commit: &Commit) {
        self.commits.push(commit.clone());
    }

    fn notice(&mut self, _notice: Notice) {}

    fn new_incarnation(&mut self, _incarnation: Incarnation) {}

    fn ended(&mut self, _end: End) {
        self.ended = true;
    }
}

struct Node {
    id: PeerId,
    driver: Driver,
    wishes: Wishes,
    executor: Executor,
    optimizer: Optimizer,
    state: TrainState,
    us_per_microbatch: u32,
    alive: bool,
}

struct Swarm {
    nodes: Vec<Node>,
}

impl Swarm {
    /// A swarm of nodes that claim these speeds.
    fn new(job: &JobSpec, speeds: &[u32]) -> Self {
        let program = gpt(&config(), BATCH).expect("a small model is valid");
        let geometry = JobGeometry {
            job: JobId::from_bytes([1; 32]),
            micro_batches: MICRO_BATCHES,
            steps: job.steps,
            bucket_lens: program.blocks().iter().map(|block| block.len as u64).collect(),
            eval_every: 0,
            eval_items: 0,
            members_min: speeds.len() as u32,
        };
        let node = |(index, speed): (usize, &u32)| {
            let id = PeerId::from_bytes([index as u8 + 1; 32]);
            let peer = match index {
                0 => Peer::found(id, Incarnation(1), geometry.clone(), Step(0)),
                _ => Peer::join(id, Incarnation(1), geometry.clone()),
            };
            Node::new(id, peer, &program, job, *speed)
        };
        let nodes = speeds.iter().enumerate().map(node).collect();
        let mut swarm = Self { nodes };
        for a in 0..speeds.len() {
            let node = &mut swarm.nodes[a];
            node.driver.start(&mut node.wishes);
            for b in (0..speeds.len()).filter(|b| *b != a) {
                let other = swarm.nodes[b].id;
                swarm.nodes[a].wishes.events.push_back(Event::Connected(other));
            }
        }
        swarm
    }

    /// Runs to the end; `at_commit` may kill nodes.
    fn run(&mut self, mut at_commit: impl FnMut(&Commit) -> Option<usize>) {
        while self.nodes.iter().any(|node| node.alive && !node.wishes.ended) {
            let mut moved = false;
            for index in 0..self.nodes.len() {
                moved |= self.turn(index, &mut at_commit);
            }
            assert!(moved, "the swarm stands still");
        }
    }

    fn turn(&mut self, index: usize, at_commit: &mut impl FnMut(&Commit) -> Option<usize>) -> bool {
        if !self.nodes[index].alive || self.nodes[index].wishes.ended {
            return false;
        }
        let before = self.nodes[index].wishes.commits.len();
        let moved = self.nodes[index].turn();
        let commits = self.nodes[index].wishes.commits[before..].to_vec();
        let from = self.nodes[index].id;
        for (to, sent) in std::mem::take(&mut self.nodes[index].wishes.sent) {
            let receiver = self.nodes.iter_mut().find(|node| node.id == to).expect("known");
            receiver.wishes.events.push_back(match sent {
                Sent::Message(message) => Event::Message { from, message },
                Sent::Piece(header, payload) => Event::Piece { from, header, payload },
            });
        }
        if let Some(step) = self.nodes[index].wishes.fetch.take() {
            let source = self.nodes.iter().find(|node| node.alive && node.state.step == step);
            self.nodes[index].state = source.expect("somebody has the state").state.clone();
            self.nodes[index].wishes.events.push_back(Event::StateFetched(step));
        }
        for victim in commits.iter().filter_map(at_commit) {
            self.nodes[victim].alive = false;
            let peer = self.nodes[victim].id;
            for node in self.nodes.iter_mut().filter(|node| node.id != peer) {
                node.wishes.events.push_back(Event::Lost { peer, certain: true });
            }
        }
        moved
    }

    fn losses(&self, node: usize) -> Vec<f64> {
        self.nodes[node].wishes.commits.iter().filter_map(|commit| commit.train_loss).collect()
    }

    fn assert_equal_replicas(&self) {
        let alive: Vec<_> = self.nodes.iter().filter(|node| node.alive).collect();
        for node in &alive[1..] {
            assert!(node.state == alive[0].state, "replicas differ");
        }
    }
}

impl Node {
    fn new(id: PeerId, peer: Peer, program: &Program, job: &JobSpec, speed: u32) -> Self {
        Self {
            id,
            driver: Driver::new(peer),
            wishes: Wishes::default(),
            executor: Executor::new(program, 1, Precision::F32).expect("a small model runs"),
            optimizer: Optimizer::new(job, program, 1),
            state: TrainState::new(init_params(program, 5), true),
            us_per_microbatch: speed,
            alive: true,
        }
    }

    /// Does one thing; whether there was one.
    fn turn(&mut self) -> bool {
        let event = if let Some(event) = self.wishes.events.pop_front() {
            event
        } else if let Some(order) = self.wishes.compute.pop_front() {
            self.compute(order)
        } else if let Some(ApplyOrder { step, gradients }) = self.wishes.apply.take() {
            let scale = 1.0 / MICRO_BATCHES as f32;
            self.optimizer.apply(&mut self.state, &gradients, scale);
            let block_digests = self.state.block_digests();
            Event::Applied { step, block_digests, gradients }
        } else {
            return false;
        };
        self.driver.handle(event, &mut self.wishes);
        true
    }

    fn compute(&mut self, order: ComputeOrder) -> Event {
        let ComputeOrder { order, step, work, mut gradients, .. } = order;
        let mut report = OrderReport::default();
        let items: Vec<u32> = work.into_iter().flatten().collect();
        for item in &items {
            let (inputs, targets) = tokens(step.0 * u64::from(MICRO_BATCHES) + u64::from(*item));
            let inputs = [Input::I32(&inputs), Input::I32(&targets)];
            let loss = self
                .executor
                .step(&self.state.params, &inputs, &mut gradients, &mut |_, _| ())
                .expect("the inputs fit");
            report.train_loss += f64::from(loss);
        }
        report.us_per_microbatch = (!items.is_empty()).then_some(self.us_per_microbatch);
        for (bucket, gradient) in gradients.into_iter().enumerate() {
            let event = Event::BucketReady { order, bucket, gradient };
            self.driver.handle(event, &mut self.wishes);
        }
        Event::Computed { order, report }
    }
}

fn job(steps: u64) -> JobSpec {
    let mut job = JobSpec { steps, ..JobSpec::default() };
    job.optimizer.lr = 3e-3;
    job
}

fn run_with(speeds: &[u32], steps: u64) -> Swarm {
    let mut swarm = Swarm::new(&job(steps), speeds);
    swarm.run(|_| None);
    swarm.assert_equal_replicas();
    swarm
}

fn assert_close(what: &str, losses: &[f64], alone: &[f64]) {
    assert_eq!(losses.len(), alone.len(), "{what}");
    for (step, (loss, want)) in losses.iter().zip(alone).enumerate() {
        let error = (loss - want).abs() / want;
        assert!(error < 1e-4, "{what}, step {step}: {loss} instead of {want} ({error:.1e})");
    }
}

#[test]
fn losses_of_unequal_peers_are_those_of_a_run_alone_for_200_steps() {
    let alone = run_with(&[1000], 200);
    let losses = alone.losses(0);
    assert!(losses[199] < losses[0] * 0.5, "it learns: {} to {}", losses[0], losses[199]);
    for speeds in [&[1000, 3000][..], &[1000, 2000, 4000], &[1000, 1500, 2500, 4000, 8000]] {
        let swarm = run_with(speeds, 200);
        assert_close(&format!("{} peers", speeds.len()), &swarm.losses(0), &losses);
    }
}

#[test]
fn a_peer_that_dies_in_a_step_changes_nothing_but_the_rounding() {
    let alone = run_with(&[1000], 40);
    let mut swarm = Swarm::new(&job(40), &[1000, 2000, 4000]);
    let mut killed = false;
    swarm.run(|commit| {
        (commit.step == Step(17) && !std::mem::replace(&mut killed, true)).then_some(1)
    });
    swarm.assert_equal_replicas();
    assert_close("two survivors of three", &swarm.losses(0), &alone.losses(0));
    let shares: BTreeMap<_, usize> = swarm.nodes[0].wishes.commits[18]
        .entry
        .shares
        .iter()
        .map(|share| (share.peer, share.ranges.len()))
        .collect();
    assert!(!shares.contains_key(&swarm.nodes[1].id), "the dead peer did nothing of step 18");
}

#[test]
fn two_runs_of_the_same_swarm_are_equal_bit_for_bit() {
    let (one, two) = (run_with(&[1000, 2000, 4000], 20), run_with(&[1000, 2000, 4000], 20));
    assert!(one.nodes[2].state == two.nodes[2].state);
}
