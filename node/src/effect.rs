//! What the driver asks of the world. The node answers over sockets, threads and files; a simulator
//! answers in virtual time.

use std::ops::Range;

use bytes::Bytes;
use p2ptrain_protocol::id::{Incarnation, PeerId, Step};
use p2ptrain_protocol::peer::{Commit, Message, Notice, OrderId, PieceHeader};

/// The effects of one job's driver. All return at once; what follows comes back as an
/// [`Event`](crate::driver::Event).
pub trait Effects {
    /// Sends a message on the ordered stream to `to`. Nothing happens if there is no connection.
    fn send(&mut self, to: PeerId, message: Message);

    /// Sends a piece of a gradient: little-endian f32.
    fn send_piece(&mut self, to: PeerId, header: PieceHeader, payload: Bytes);

    /// A bucket of the step is reduced. For traces.
    fn reduced(&mut self, _step: Step, _bucket: u32) {}

    /// Breaks the connection with a peer that violates the protocol.
    fn refuse(&mut self, peer: PeerId, reason: String);

    /// Computes work items, after those ordered before.
    fn compute(&mut self, order: ComputeOrder);

    /// Fetches parameters and optimizer state as they are before `step`.
    fn fetch_state(&mut self, step: Step, from: Vec<PeerId>);

    /// Applies a committed step to parameters and optimizer state, after the orders before it.
    fn apply(&mut self, order: ApplyOrder);

    /// Tells people and the ledger.
    fn committed(&mut self, commit: &Commit);

    /// Tells people.
    fn notice(&mut self, notice: Notice);

    /// The peer speaks as a newer incarnation from here on.
    fn new_incarnation(&mut self, incarnation: Incarnation);

    /// The job ended for this peer.
    fn ended(&mut self, end: End);
}

/// How a job ended for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are committed.
    Finished,
    /// The peer left, as it wished.
    Left,
}

/// Work items to compute.
#[derive(Debug)]
pub struct ComputeOrder {
    /// Echoed by the events.
    pub order: OrderId,
    /// The step whose samples and parameters are meant.
    pub step: Step,
    /// Work items: micro-batches below `micro_batches`, held-out batches from there on.
    pub work: Vec<Range<u32>>,
    /// Micro-batches of the step.
    pub micro_batches: u32,
    /// One gradient buffer a bucket. The order adds to them; after its last micro-batch has passed
    /// a bucket's block, the buffer comes back with that bucket's event.
    pub gradients: Vec<Vec<f32>>,
}

/// A committed gradient to apply.
#[derive(Debug)]
pub struct ApplyOrder {
    /// The step.
    pub step: Step,
    /// The sum of the gradients of the step's micro-batches, by bucket.
    pub gradients: Vec<Vec<f32>>,
}
