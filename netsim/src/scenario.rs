//! What to simulate, and what came of it.

use std::collections::BTreeMap;
use std::fmt;

use p2ptrain_node::effect::End;
use p2ptrain_protocol::id::JobId;
use p2ptrain_protocol::ledger::AuditReport;
use p2ptrain_protocol::peer::{JobGeometry, Notice};

use crate::fault::Fault;
use crate::link::LinkSpec;
use crate::oracle::Violation;
use crate::random::Random;
use crate::world::World;

/// One node of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Time of one micro-batch in µs.
    pub us_per_microbatch: u32,
    /// When its process starts, in µs. The first node, which founds the job, starts at 0.
    pub starts_us: u64,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self { us_per_microbatch: 20_000, starts_us: 0 }
    }
}

/// What to simulate. The same scenario gives the same run, on every machine.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub(crate) seed: u64,
    pub(crate) nodes: Vec<NodeSpec>,
    pub(crate) geometry: JobGeometry,
    pub(crate) link: LinkSpec,
    pub(crate) links: BTreeMap<(usize, usize), LinkSpec>,
    pub(crate) faults: Vec<(u64, Fault)>,
    /// How long until a node learns that the process of another is gone.
    pub(crate) death_seen_us: std::ops::RangeInclusive<u64>,
    /// How long until a node learns that another can't be reached.
    pub(crate) cut_seen_us: std::ops::RangeInclusive<u64>,
    /// Steps between comparisons of the replicas; 0 for none.
    pub(crate) compare_every: u64,
    pub(crate) apply_us: u64,
    pub(crate) state_bytes: u64,
    pub(crate) limit_us: u64,
    pub(crate) may_stall: bool,
}

/// What came of a run in which everything was true that must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Digest of all events and messages in order: equal for equal runs.
    pub trace: [u8; 32],
    /// Virtual time at the end.
    pub virtual_us: u64,
    /// Events handled.
    pub events: u64,
    /// Committed steps, the closing round included.
    pub steps: u64,
    /// Account of samples.
    pub ledger: AuditReport,
    /// How each node ended; `None` for those that are dead.
    pub ends: Vec<Option<End>>,
    /// What nodes told people, with the node.
    pub notices: Vec<(usize, Notice)>,
    /// From each kill to the next commit of another node.
    pub kill_to_commit_us: Vec<u64>,
}

/// A run in which something was not true; enough to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// When.
    pub virtual_us: u64,
    /// What.
    pub violation: Violation,
    /// The last events before it.
    pub history: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, virtual_us, violation, history } = self;
        write!(f, "seed {seed}, at {virtual_us} µs: {violation}")?;
        for line in history {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl Scenario {
    /// `nodes` equal nodes on a LAN train a small job of 10 steps; nothing goes wrong.
    pub fn new(seed: u64, nodes: usize) -> Self {
        let geometry = JobGeometry {
            job: JobId::from_bytes([7; 32]),
            micro_batches: 8,
            steps: 10,
            bucket_lens: vec![5, 0, 131, 17],
            eval_every: 4,
            eval_items: 3,
            members_min: nodes as u32,
        };
        Self {
            seed,
            nodes: vec![NodeSpec::default(); nodes],
            geometry,
            link: LinkSpec::LAN,
            links: BTreeMap::new(),
            faults: Vec::new(),
            death_seen_us: 200..=50_000,
            cut_seen_us: 50_000..=2_000_000,
            compare_every: 3,
            apply_us: 3_000,
            state_bytes: 1 << 20,
            limit_us: 600_000_000,
            may_stall: false,
        }
    }

    /// Trains for so many steps.
    pub fn steps(mut self, steps: u64) -> Self {
        self.geometry.steps = steps;
        self
    }

    /// Micro-batches of one step.
    pub fn micro_batches(mut self, micro_batches: u32) -> Self {
        self.geometry.micro_batches = micro_batches.max(1);
        self
    }

    /// Elements of each bucket.
    pub fn buckets(mut self, lens: impl Into<Vec<u64>>) -> Self {
        self.geometry.bucket_lens = lens.into();
        self
    }

    /// The founder waits for so many members.
    pub fn members_min(mut self, members: u32) -> Self {
        self.geometry.members_min = members;
        self
    }

    /// Changes one node.
    pub fn node(mut self, node: usize, spec: NodeSpec) -> Self {
        self.nodes[node] = spec;
        self
    }

    /// All links are of this kind.
    pub fn link(mut self, spec: LinkSpec) -> Self {
        self.link = spec;
        self
    }

    /// The link between two nodes is of this kind, in both directions.
    pub fn link_between(mut self, a: usize, b: usize, spec: LinkSpec) -> Self {
        self.links.insert((a, b), spec);
        self.links.insert((b, a), spec);
        self
    }

    /// Something goes wrong at a moment.
    pub fn fault(mut self, at_us: u64, fault: Fault) -> Self {
        self.faults.push((at_us, fault));
        self
    }

    /// Nodes are killed and start again, `times` times at random moments of `within_us`.
    pub fn random_kills(mut self, times: u64, within_us: u64) -> Self {
        let mut random = Random::new(self.seed ^ 0x6b69_6c6c);
        for _ in 0..times {
            let node = random.below(self.nodes.len() as u64) as usize;
            let at_us = random.below(within_us);
            let pause_us = random.within(1_000..=400_000);
            self.faults.push((at_us, Fault::Kill { node }));
            self.faults.push((at_us + pause_us, Fault::Restart { node }));
        }
        self
    }

    /// Links are cut and heal, `times` times at random moments of `within_us`.
    pub fn random_cuts(mut self, times: u64, within_us: u64) -> Self {
        let mut random = Random::new(self.seed ^ 0x6375_7473);
        for _ in 0..times {
            let a = random.below(self.nodes.len() as u64) as usize;
            let b = (a + 1 + random.below(self.nodes.len() as u64 - 1) as usize) % self.nodes.len();
            let at_us = random.below(within_us);
            let pause_us = random.within(100_000..=4_000_000);
            self.faults.push((at_us, Fault::Cut { a, b }));
            self.faults.push((at_us + pause_us, Fault::Heal { a, b }));
        }
        self
    }

    /// One node is cut off from all others for a while.
    pub fn isolate(mut self, node: usize, span_us: std::ops::Range<u64>) -> Self {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.faults.push((span_us.start, Fault::Cut { a: node, b: other }));
            self.faults.push((span_us.end, Fault::Heal { a: node, b: other }));
        }
        self
    }

    /// A group that may not go on, for want of a quorum, is an outcome and no failure.
    pub fn may_stall(mut self) -> Self {
        self.may_stall = true;
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// Something was not true that must be.
    pub fn run(self) -> Result<Outcome, Box<Failure>> {
        World::new(self).run()
    }
}
