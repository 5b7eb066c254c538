//! What the state machine says: what to send, compute, commit and tell.

use std::ops::Range;

use crate::collective::PieceId;
use crate::id::{Digest, Incarnation, PeerId, Step};
use crate::ledger::LedgerEntry;
use crate::view::{View, ViewChange};

use super::{Message, OrderId};

/// Names one piece of one bucket in one attempt. Travels before the piece's bytes, and is the key
/// under which the caller keeps them until an output asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct PieceHeader {
    /// The step; pieces of past steps are stale.
    pub step: Step,
    /// The attempt: a digest of job, step, view and losses, so that differing views never mix.
    pub attempt: Digest,
    /// The bucket.
    pub bucket: u32,
    /// Which piece of it, in which hop of the ring.
    pub piece: PieceId,
}

/// Where a piece goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Receiver.
    pub to: PeerId,
    /// The piece's name there.
    pub header: PieceHeader,
}

/// What [`Peer::handle_piece`](super::Peer::handle_piece) says of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceVerdict {
    /// Keep the bytes under the header; an output will name it or discard it.
    Keep,
    /// The piece belongs to a step or an attempt that is over. Drop it.
    Stale,
}

/// What a finished order of computation reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OrderReport {
    /// Sum of the mean losses of the order's micro-batches.
    pub train_loss: f64,
    /// Sum of the mean losses of the order's evaluation items.
    pub eval_loss: f64,
    /// Measured time of one micro-batch, in microseconds; `None` if the order held none.
    pub us_per_microbatch: Option<u32>,
}

/// A committed step.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The step. Its update uses learning rate and sample positions of this number.
    pub step: Step,
    /// The attempt that succeeded, and who did which micro-batches in it. The closing round, which
    /// has none, is not for the ledger.
    pub entry: LedgerEntry,
    /// Whether there is an update to apply (not in the closing round).
    pub apply: bool,
    /// Whether this peer was alone, so that its own gradient is the reduced one.
    pub alone: bool,
    /// Mean training loss of the reported micro-batches.
    pub train_loss: Option<f64>,
    /// Mean held-out loss of the parameters before this step's update, if it was evaluated.
    pub eval_loss: Option<f64>,
    /// What changed in the membership, with reasons.
    pub changes: Vec<ViewChange>,
    /// The view of the next step.
    pub next_view: View,
}

/// Something that a person wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Members were lost inside a step and the others do their work.
    Redo {
        /// The step.
        step: Step,
        /// Who was lost.
        lost: Vec<PeerId>,
        /// Micro-batches that are done again.
        items: u32,
    },
    /// Survivors found that all hold the result: nothing had to be done again.
    CommittedAfterLoss {
        /// The step.
        step: Step,
        /// Who was lost.
        lost: Vec<PeerId>,
    },
    /// The group may not go on; why, and what it waits for.
    Stalled {
        /// The step.
        step: Step,
        /// The reason, for people.
        reason: String,
    },
    /// This peer was taken for lost; it joins again as a new incarnation.
    Fenced {
        /// The step at which it was.
        step: Step,
    },
    /// Parameters differ between replicas: the named peers join again with fresh state.
    Diverged {
        /// The step whose commit left different parameters.
        step: Step,
        /// The first block that differs.
        block: u32,
        /// The peers in the minority.
        peers: Vec<PeerId>,
    },
    /// A peer sent what the protocol does not allow.
    Violation {
        /// The sender.
        peer: PeerId,
        /// What was wrong.
        what: String,
    },
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a message on the ordered stream.
    Send {
        /// Receiver.
        to: PeerId,
        /// The message.
        message: Message,
    },
    /// Send `local[range]` of a bucket.
    SendLocal {
        /// Where to, and the name there.
        forward: Forward,
        /// Elements of the bucket.
        range: Range<usize>,
    },
    /// Add `local[range]` to the bytes kept under `header` and send the sum. Where it is `complete`
    /// the sum is `reduced[range]`.
    Reduce {
        /// The key of the bytes, used up by this.
        header: PieceHeader,
        /// Elements of the bucket.
        range: Range<usize>,
        /// Where the sum goes.
        forward: Forward,
        /// Whether the sum counts the whole group.
        complete: bool,
    },
    /// Store the bytes kept under `header` as `reduced[range]`, and send them on.
    Store {
        /// The key of the bytes, used up by this.
        header: PieceHeader,
        /// Elements of the bucket.
        range: Range<usize>,
        /// Where they go; nowhere at the last rank.
        forward: Option<Forward>,
    },
    /// The bucket is reduced: nothing of it is on its way to this peer any more.
    Reduced {
        /// The step.
        step: Step,
        /// The bucket.
        bucket: u32,
    },
    /// Drop the bytes kept under this header.
    Discard(PieceHeader),
    /// Drop all bytes kept for this attempt.
    DropAttempt(Digest),
    /// Compute work items and report each bucket and the end under this order's id. Bytes of an
    /// earlier order of the step stay in the gradient unless `fresh`.
    Compute {
        /// Echoed by the events.
        order: OrderId,
        /// The step.
        step: Step,
        /// Items; micro-batches below [`Items::train`](super::Items::train), evaluation above.
        work: Vec<Range<u32>>,
        /// Start from zero gradients.
        fresh: bool,
    },
    /// Fetch parameters and optimizer state as they are before `step`, from any of these peers.
    FetchState {
        /// Committed steps of the state.
        step: Step,
        /// Who has it.
        from: Vec<PeerId>,
    },
    /// The step is committed: apply the reduced gradient, then call [`Peer::handle_applied`](super::Peer::handle_applied).
    Commit(Box<Commit>),
    /// The peer's incarnation changed; use it in adverts.
    NewIncarnation(Incarnation),
    /// Tell the user.
    Notice(Notice),
    /// This peer is no longer a member, as it wished.
    Left,
    /// The job is finished and every other member knows it too.
    Finished,
}
