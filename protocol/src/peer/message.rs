//! What members of a job tell each other on the ordered message stream of the bulk plane.

use std::collections::BTreeSet;
use std::ops::Range;

use bincode::{Decode, Encode};

use crate::id::{Digest, Incarnation, JobId, PeerId, Step};
use crate::view::{News, View};

/// One message of the ordered stream between two peers. `wire` frames it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// First message of a connection, and again whenever the sender's own state changes.
    Hello(Hello),
    /// The sender has the program and the data and wants to become a member.
    JoinRequest(JoinRequest),
    /// A member tells a newcomer that the view of `step` contains it.
    Admit(Admit),
    /// The sender holds the reduced gradient of every bucket of this attempt.
    Barrier(Barrier),
    /// The sender's position in a round of agreement after a loss.
    Status(Status),
    /// The sender takes this incarnation of the receiver for lost: it must join as a newer one.
    Fenced(Incarnation),
    /// The sender committed the last step and needs nothing more from anybody.
    Done(JobId),
}

/// Who the sender is for this job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Role {
    /// Runs no job.
    Idle,
    /// Holds the state of a job and waits for members.
    Founder,
    /// Wants to become a member.
    Joining,
    /// Member of the job's view.
    Member,
    /// Member of a group that may not go on (design invariant 3).
    Stalled,
}

/// The sender's state, for discovery of jobs and for healing after a partition.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The sender's incarnation: grows with each start of the process and each fencing.
    pub incarnation: Incarnation,
    /// The job that the sender runs, if any.
    pub job: Option<JobId>,
    /// What the sender is in it.
    pub role: Role,
    /// The step that the sender works on.
    pub step: Step,
}

/// A newcomer's request, sent to every peer that it is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JoinRequest {
    /// The job to join.
    pub job: JobId,
    /// The newcomer's incarnation.
    pub incarnation: Incarnation,
    /// Its measured time for one micro-batch, in microseconds; 0 when it has not measured yet.
    pub us_per_microbatch: u32,
    /// Whom the newcomer is connected to. It must reach all members, and all who join with it.
    pub reaches: BTreeSet<PeerId>,
}

/// The news of an admission.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Admit {
    /// The job.
    pub job: JobId,
    /// The first step of which the newcomer is a member.
    pub step: Step,
    /// The view of that step.
    pub view: View,
}

/// What a member did in a step, for the loss display, the planner and the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Report {
    /// The work items whose gradient is in the sender's contribution.
    pub work: Vec<Range<u32>>,
    /// Sum of the micro-batches' mean training losses, as the bits of an f64.
    pub train_loss_bits: u64,
    /// Sum of the held-out losses of the evaluation items, as the bits of an f64.
    pub eval_loss_bits: u64,
    /// blake3 of each block's parameters after the previous commit; empty at most steps.
    pub block_digests: Vec<Digest>,
}

/// "I hold the reduced gradient": when all members of the group have said so, the step commits.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Barrier {
    /// The step.
    pub step: Step,
    /// The attempt: digest of (job, step, view, members lost since).
    pub attempt: Digest,
    /// Membership news; all members merge the same set.
    pub news: News,
    /// What the sender did.
    pub report: Report,
}

/// A peer incarnation that is gone, or is believed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Lost {
    /// The peer.
    pub peer: PeerId,
    /// The incarnation that was lost; later ones are not concerned.
    pub incarnation: Incarnation,
    /// Whether its process is known to be gone (refused, reset, goodbye), so that it can't be
    /// training on the other side of a partition.
    pub certain: bool,
}

/// A survivor's position when members were lost. Survivors with equal `lost` sets decide together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    /// The step that the sender works on; a higher one than the receiver's says that the sender
    /// committed the receiver's step.
    pub step: Step,
    /// The view of that step.
    pub view: View,
    /// Whether the sender has begun that step. Before, its word counts for the step before only.
    pub begun: bool,
    /// All losses that the sender knows of among the members of that view.
    pub lost: BTreeSet<Lost>,
    /// Whether the sender holds the reduced gradient of the attempt named by `attempt`.
    pub holds: bool,
    /// The attempt that the sender was in when it learned of the loss.
    pub attempt: Digest,
    /// News and report for the case that the step is committed from here.
    pub news: News,
    /// What the sender did so far in this step.
    pub report: Report,
}
