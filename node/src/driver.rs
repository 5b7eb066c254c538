//! The one loop of a job: events go into the protocol, its outputs become effects.
//!
//! Gradients move by ownership: the worker fills a bucket's buffer and gives it up; the driver
//! keeps it untouched until the commit, for the case that the step has to be exchanged again, and
//! reduces into a second set of buffers. No lock is shared with the computation.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use p2ptrain_protocol::id::{Digest, PeerId, Step};
use p2ptrain_protocol::limits;
use p2ptrain_protocol::peer::{
    Message, OrderId, OrderReport, Output, Peer, PieceHeader, PieceVerdict,
};

use crate::effect::{ApplyOrder, ComputeOrder, Effects, End};

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A connection is up, authenticated on both sides.
    Connected(PeerId),
    /// A peer is gone; `certain` if its process is.
    Lost {
        /// Who.
        peer: PeerId,
        /// Whether the process is known to be gone.
        certain: bool,
    },
    /// A message of the ordered stream.
    Message {
        /// Sender.
        from: PeerId,
        /// The message.
        message: Message,
    },
    /// A piece of a gradient.
    Piece {
        /// Sender.
        from: PeerId,
        /// Its name.
        header: PieceHeader,
        /// Little-endian f32.
        payload: Bytes,
    },
    /// An order's gradient of a bucket is complete.
    BucketReady {
        /// The order.
        order: OrderId,
        /// The bucket.
        bucket: usize,
        /// Its buffer.
        gradient: Vec<f32>,
    },
    /// An order is done.
    Computed {
        /// The order.
        order: OrderId,
        /// Losses and time.
        report: OrderReport,
    },
    /// State is in place.
    StateFetched(Step),
    /// State could not be had from anybody.
    StateFailed(Step),
    /// A commit is applied.
    Applied {
        /// The step.
        step: Step,
        /// Digests of each block's parameters, at the steps where replicas are compared.
        block_digests: Vec<Digest>,
        /// The gradient buffers, to be used again.
        gradients: Vec<Vec<f32>>,
    },
    /// The user wants to leave at the end of the step.
    Leave,
}

/// One job on one peer.
#[derive(Debug)]
pub struct Driver {
    peer: Peer,
    /// This peer's own gradient, by bucket; empty while the worker has it.
    local: Vec<Vec<f32>>,
    /// The reduced gradient, by bucket.
    reduced: Vec<Vec<f32>>,
    /// Received pieces that wait for their turn.
    kept: BTreeMap<PieceHeader, Bytes>,
    /// Orders that wait until the buffers are back.
    waiting: VecDeque<Waiting>,
    /// The order that the worker has.
    running: Option<OrderId>,
    connected: BTreeSet<PeerId>,
    /// What goes to members that are not connected yet. Newcomers of one step are admitted as soon as
    /// the members reach them, and may still have to reach each other.
    held: BTreeMap<PeerId, Vec<Parcel>>,
}

#[derive(Debug)]
enum Parcel {
    Message(Message),
    Piece(PieceHeader, Bytes),
}

#[derive(Debug)]
struct Waiting {
    order: OrderId,
    step: Step,
    work: Vec<std::ops::Range<u32>>,
    fresh: bool,
}

impl Driver {
    /// Drives `peer`.
    pub fn new(peer: Peer) -> Self {
        let buckets = peer.geometry().bucket_lens.len();
        Self {
            peer,
            local: vec![Vec::new(); buckets],
            reduced: vec![Vec::new(); buckets],
            kept: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: None,
            connected: BTreeSet::new(),
            held: BTreeMap::new(),
        }
    }

    /// The protocol's state, for display.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Starts: performs what the protocol wants at its beginning.
    pub fn start(&mut self, effects: &mut impl Effects) {
        self.drain(effects);
    }

    /// Takes in one event and performs all that follows from it.
    pub fn handle(&mut self, event: Event, effects: &mut impl Effects) {
        match event {
            Event::Connected(peer) => {
                self.peer.handle_connected(peer);
                self.connected.insert(peer);
                self.drain(effects);
                for parcel in self.held.remove(&peer).unwrap_or_default() {
                    self.send(peer, parcel, effects);
                }
            }
            Event::Lost { peer, certain } => {
                self.connected.remove(&peer);
                self.held.remove(&peer);
                self.peer.handle_lost(peer, certain);
            }
            Event::Message { from, message } => self.peer.handle_message(from, message),
            Event::Piece { from, header, payload } => self.piece(from, header, payload, effects),
            Event::BucketReady { order, bucket, gradient } => {
                self.local[bucket] = gradient;
                self.peer.handle_bucket_ready(order, bucket);
            }
            Event::Computed { order, report } => {
                self.running = None;
                self.peer.handle_computed(order, &report);
            }
            Event::StateFetched(step) => self.peer.handle_state(step),
            Event::StateFailed(step) => self.peer.handle_state_failed(step),
            Event::Applied { step, block_digests, gradients } => {
                for (bucket, gradient) in gradients.into_iter().enumerate() {
                    // A lone peer's own gradient went away with the apply; others' reduced one.
                    let lone = self.local[bucket].is_empty();
                    let slot = if lone { &mut self.local } else { &mut self.reduced };
                    slot[bucket] = gradient;
                }
                self.peer.handle_applied(step, block_digests);
            }
            Event::Leave => self.peer.leave(),
        }
        self.drain(effects);
    }

    fn piece(
        &mut self,
        from: PeerId,
        header: PieceHeader,
        payload: Bytes,
        effects: &mut impl Effects,
    ) {
        if payload.len() > limits::PIECE_BYTES_MAX || !payload.len().is_multiple_of(4) {
            let reason = format!(
                "a piece of {} bytes; expected a multiple of 4 up to {}",
                payload.len(),
                limits::PIECE_BYTES_MAX
            );
            effects.refuse(from, reason);
            return;
        }
        if self.kept.contains_key(&header) {
            effects.refuse(from, format!("piece {:?} came twice", header.piece));
            return;
        }
        let elements = payload.len() / 4;
        self.kept.insert(header, payload);
        match self.peer.handle_piece(from, header, elements) {
            Ok(PieceVerdict::Keep) => {}
            Ok(PieceVerdict::Stale) => drop(self.kept.remove(&header)),
            Err(error) => {
                self.kept.remove(&header);
                effects.refuse(from, error.to_string());
            }
        }
    }

    fn drain(&mut self, effects: &mut impl Effects) {
        while let Some(output) = self.peer.poll_output() {
            match output {
                Output::Send { to, message } => self.send(to, Parcel::Message(message), effects),
                Output::SendLocal { forward, range } => {
                    let values = &self.local[forward.header.bucket as usize][range];
                    let payload = Bytes::copy_from_slice(bytemuck::cast_slice(values));
                    self.send(forward.to, Parcel::Piece(forward.header, payload), effects);
                }
                Output::Reduce { header, range, forward, complete } => {
                    let bucket = header.bucket as usize;
                    let payload = self.take_kept(&header);
                    let sum = add_le(&payload, &self.local[bucket][range.clone()]);
                    if complete {
                        copy_le(&mut self.reduced_bucket(bucket)[range], &sum);
                    }
                    self.send(forward.to, Parcel::Piece(forward.header, sum), effects);
                }
                Output::Store { header, range, forward } => {
                    let payload = self.take_kept(&header);
                    copy_le(&mut self.reduced_bucket(header.bucket as usize)[range], &payload);
                    if let Some(forward) = forward {
                        self.send(forward.to, Parcel::Piece(forward.header, payload), effects);
                    }
                }
                Output::Reduced { step, bucket } => effects.reduced(step, bucket),
                Output::Discard(header) => drop(self.kept.remove(&header)),
                Output::DropAttempt(attempt) => {
                    self.kept.retain(|header, _| header.attempt != attempt);
                    let stale = |parcel: &Parcel| matches!(parcel, Parcel::Piece(header, _) if header.attempt == attempt);
                    self.held.values_mut().for_each(|held| held.retain(|p| !stale(p)));
                }
                Output::Compute { order, step, work, fresh } => {
                    self.waiting.push_back(Waiting { order, step, work, fresh });
                }
                Output::FetchState { step, from } => effects.fetch_state(step, from),
                Output::Commit(commit) => {
                    effects.committed(&commit);
                    if commit.apply {
                        let source = if commit.alone { &mut self.local } else { &mut self.reduced };
                        let gradients = source.iter_mut().map(std::mem::take).collect();
                        effects.apply(ApplyOrder { step: commit.step, gradients });
                    }
                }
                Output::NewIncarnation(incarnation) => effects.new_incarnation(incarnation),
                Output::Notice(notice) => effects.notice(notice),
                Output::Left => effects.ended(End::Left),
                Output::Finished => effects.ended(End::Finished),
            }
        }
        self.next_order(effects);
        let view = self.peer.view();
        self.held.retain(|peer, _| view.is_some_and(|view| view.contains(peer)));
    }

    /// Sends, or holds what goes to a member of the view that is not connected yet.
    fn send(&mut self, to: PeerId, parcel: Parcel, effects: &mut impl Effects) {
        let member = || self.peer.view().is_some_and(|view| view.contains(&to));
        if !self.connected.contains(&to) && member() {
            self.held.entry(to).or_default().push(parcel);
            return;
        }
        match parcel {
            Parcel::Message(message) => effects.send(to, message),
            Parcel::Piece(header, payload) => effects.send_piece(to, header, payload),
        }
    }

    /// Hands the next order to the worker once it has given back the buffers of the last.
    fn next_order(&mut self, effects: &mut impl Effects) {
        if self.running.is_some() {
            return;
        }
        let Some(next) = self.waiting.pop_front() else { return };
        let lens = &self.peer.geometry().bucket_lens;
        let mut gradients: Vec<Vec<f32>> = self.local.iter_mut().map(std::mem::take).collect();
        for (gradient, len) in gradients.iter_mut().zip(lens) {
            if next.fresh || gradient.len() as u64 != *len {
                gradient.clear();
                gradient.resize(*len as usize, 0.0);
            }
        }
        self.running = Some(next.order);
        effects.compute(ComputeOrder {
            order: next.order,
            step: next.step,
            work: next.work,
            micro_batches: self.peer.geometry().items(next.step).train,
            gradients,
        });
    }

    fn take_kept(&mut self, header: &PieceHeader) -> Bytes {
        self.kept.remove(header).expect("the protocol names pieces that it was given, once each")
    }

    fn reduced_bucket(&mut self, bucket: usize) -> &mut [f32] {
        let len = self.peer.geometry().bucket_lens[bucket] as usize;
        self.reduced[bucket].resize(len, 0.0);
        &mut self.reduced[bucket]
    }
}

/// `out = payload`; both have the length that the protocol has checked.
fn copy_le(out: &mut [f32], payload: &[u8]) {
    bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(payload);
}

/// `payload + local` as little-endian f32, in one pass.
fn add_le(payload: &[u8], local: &[f32]) -> Bytes {
    let mut sum = vec![0u8; payload.len()];
    for ((sum, theirs), own) in sum.chunks_exact_mut(4).zip(payload.chunks_exact(4)).zip(local) {
        let theirs = f32::from_le_bytes(theirs.try_into().expect("chunks of four"));
        sum.copy_from_slice(&(theirs + own).to_le_bytes());
    }
    Bytes::from(sum)
}

// Pieces and state travel as the bytes of f32 in memory.
#[cfg(target_endian = "big")]
compile_error!("p2ptrain's wire format is little-endian; big-endian machines need a conversion");
