//! What must be true of every run, whatever the work and whatever goes wrong.
//!
//! The oracle sees what each node commits and applies. It does not know which faults there were, with one
//! exception: whether links were cut, since then a node that is cut off may hold a view of the next step
//! that the others don't. Even so no step may be committed in two ways.

use std::collections::BTreeMap;
use std::fmt;

use p2ptrain_protocol::id::{Digest, PeerId, Step};
use p2ptrain_protocol::ledger::{AuditReport, Ledger, LedgerEntry, LedgerHeader};
use p2ptrain_protocol::peer::{Commit, JobGeometry};
use p2ptrain_protocol::view::View;

/// What was not true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A node committed another step than its next.
    Order {
        /// The node.
        node: usize,
        /// Its next step.
        expected: Step,
        /// The step that it committed.
        got: Step,
    },
    /// Two nodes committed a step in different ways.
    Split {
        /// The step.
        step: Step,
        /// The node that differs from those before it.
        node: usize,
        /// What differs.
        what: String,
    },
    /// A gradient is not the sum over the step's micro-batches.
    Gradient {
        /// The step.
        step: Step,
        /// The node.
        node: usize,
        /// Bucket, element, value there, value expected.
        what: String,
    },
    /// The shares of a step do not tile its micro-batches.
    Ledger(String),
    /// Replicas differ after a step.
    Diverged {
        /// The step.
        step: Step,
        /// The node that differs from those before it.
        node: usize,
    },
    /// A node refused what an honest node sent.
    Refused {
        /// The node that refuses.
        node: usize,
        /// The sender.
        peer: PeerId,
        /// Its reason.
        reason: String,
    },
    /// A message does not survive its encoding.
    Wire(String),
    /// Nothing happens any more, or not in time, and living nodes have not finished.
    Stuck {
        /// Where each node is, for people.
        nodes: Vec<String>,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order { node, expected, got } => {
                write!(f, "node {node} committed {got}, its next step is {expected}")
            }
            Self::Split { step, node, what } => {
                write!(f, "node {node} committed step {step} with another {what}")
            }
            Self::Gradient { step, node, what } => {
                write!(f, "node {node} applies a wrong gradient in step {step}: {what}")
            }
            Self::Ledger(error) => write!(f, "the ledger is not exact: {error}"),
            Self::Diverged { step, node } => {
                write!(f, "node {node} holds other parameters than the rest after step {step}")
            }
            Self::Refused { node, peer, reason } => {
                write!(f, "node {node} refused the honest {peer}: {reason}")
            }
            Self::Wire(error) => write!(f, "a message does not survive its encoding: {error}"),
            Self::Stuck { nodes } => write!(f, "no progress:\n  {}", nodes.join("\n  ")),
        }
    }
}

/// What a committed step was at the first node that committed it.
#[derive(Clone, Debug)]
struct Committed {
    entry: LedgerEntry,
    /// The next view by the node and life that hold it.
    views: BTreeMap<(usize, u64), View>,
    /// Parameters after the step, once a node has applied it.
    state: Option<Digest>,
}

/// The oracle of one run.
#[derive(Debug)]
pub(crate) struct Oracle {
    geometry: JobGeometry,
    /// Whether a node that lives may hold a view that the others don't.
    links_cut: bool,
    steps: BTreeMap<Step, Committed>,
    ledger: Ledger,
    /// The next step of each node and life.
    next: BTreeMap<(usize, u64), Step>,
}

impl Oracle {
    pub(crate) fn new(geometry: JobGeometry, links_cut: bool) -> Self {
        let header = LedgerHeader {
            job: geometry.job,
            first: Step(0),
            items: geometry.micro_batches,
            samples_per_item: 1,
        };
        let ledger = Ledger::new(header).expect("the scenario checks the number of micro-batches");
        Self { geometry, links_cut, steps: BTreeMap::new(), ledger, next: BTreeMap::new() }
    }

    /// Committed steps.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.len() as u64
    }

    pub(crate) fn ledger(&self) -> &AuditReport {
        self.ledger.report()
    }

    /// Whether all that `dying` committed stays in the world with `heir`. In one group it always does: what one has
    /// committed, all hold. Where links were cut, the other may be the one that could not go on.
    pub(crate) fn outlives(&self, heir: (usize, u64), dying: (usize, u64)) -> bool {
        let next = |of| self.next.get(&of).copied().unwrap_or(Step(0));
        !self.links_cut || next(heir) >= next(dying)
    }

    /// A node has the state before `step` in place and will commit that step first.
    pub(crate) fn fetched(
        &mut self,
        node: usize,
        life: u64,
        step: Step,
        state: Digest,
    ) -> Result<(), Violation> {
        self.next.insert((node, life), step);
        match step.0.checked_sub(1).and_then(|last| self.steps.get(&Step(last))) {
            Some(last) if last.state.is_some_and(|known| known != state) => {
                Err(Violation::Diverged { step: Step(step.0 - 1), node })
            }
            _ => Ok(()),
        }
    }

    /// A node commits; `living` says whether a node still runs that life.
    pub(crate) fn committed(
        &mut self,
        node: usize,
        life: u64,
        commit: &Commit,
        living: impl Fn(usize, u64) -> bool,
    ) -> Result<(), Violation> {
        let (step, got) = (commit.step, commit.step);
        let expected = self.next.entry((node, life)).or_insert(Step(0));
        if *expected != got {
            return Err(Violation::Order { node, expected: *expected, got });
        }
        *expected = step.next();
        let split = |what: &str| Err(Violation::Split { step, node, what: what.to_owned() });
        let Some(known) = self.steps.get_mut(&step) else {
            let views = BTreeMap::from([((node, life), commit.next_view.clone())]);
            self.steps.insert(step, Committed { entry: commit.entry.clone(), views, state: None });
            return if commit.apply { self.count(commit) } else { Ok(()) };
        };
        if known.entry.attempt != commit.entry.attempt {
            return split("attempt");
        }
        if known.entry != commit.entry {
            return split("ledger entry");
        }
        // A node may die, and its view with it, after it committed and before the others did.
        known.views.retain(|&(node, life), _| living(node, life));
        let same = known.views.values().all(|view| *view == commit.next_view);
        known.views.insert((node, life), commit.next_view.clone());
        if !same && !self.links_cut {
            return split("next view");
        }
        Ok(())
    }

    /// A node applies a gradient; `value` is the exact sum of an element over all micro-batches.
    pub(crate) fn applies(
        &self,
        node: usize,
        step: Step,
        gradients: &[Vec<f32>],
        value: impl Fn(usize, usize) -> f32,
    ) -> Result<(), Violation> {
        let wrong = |what| Err(Violation::Gradient { step, node, what });
        let lens: Vec<u64> = gradients.iter().map(|gradient| gradient.len() as u64).collect();
        if lens != self.geometry.bucket_lens {
            return wrong(format!("buckets of {lens:?} elements"));
        }
        for (bucket, gradient) in gradients.iter().enumerate() {
            for (element, got) in gradient.iter().enumerate() {
                let expected = value(bucket, element);
                if *got != expected {
                    return wrong(format!(
                        "bucket {bucket}, element {element}: {got} instead of {expected}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A node has applied a step and holds these parameters.
    pub(crate) fn applied(
        &mut self,
        node: usize,
        step: Step,
        state: Digest,
    ) -> Result<(), Violation> {
        let Some(committed) = self.steps.get_mut(&step) else {
            return Err(Violation::Ledger(format!("step {step} is applied and not committed")));
        };
        if *committed.state.get_or_insert(state) != state {
            return Err(Violation::Diverged { step, node });
        }
        Ok(())
    }

    fn count(&mut self, commit: &Commit) -> Result<(), Violation> {
        self.ledger.append(&commit.entry).map_err(|error| Violation::Ledger(error.to_string()))
    }
}
