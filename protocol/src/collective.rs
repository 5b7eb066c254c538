//! The ring all-reduce of one bucket on one rank, without the data.
//!
//! The caller owns two buffers of the bucket, its own gradient (`local`, which stays as it is, so that a
//! failed attempt can be repeated) and the result (`out`), and does what [`RingAllReduce::poll_output`] says:
//!
//! ```text
//! SendLocal           send local[range] to the next rank
//! ReduceThenForward   sum = payload[..] + local[range], element by element; send sum to the next rank;
//!                     where `complete`, out[range] = sum
//! StoreThenForward    out[range] = payload[..]; send the payload to the next rank, where there is a `forward`
//! KeepLocal           out[range] = local[range] (a ring of one)
//! Done                nothing comes any more; out is the same on every rank, bit for bit
//! ```
//!
//! For each chunk the ring fixes the order of the sum (from its first rank around to its last), so the result
//! does not depend on the order in which pieces arrive.
//!
//! A piece that arrives before the own gradient is ready is *held*: the caller keeps its payload under its
//! [`PieceId`], and gets the output for it after [`RingAllReduce::handle_local_ready`]. Each piece is accepted
//! once, so what is held is bounded by the bucket's length.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use bincode::{Decode, Encode};
use thiserror::Error;

use crate::limits;
use crate::schedule::{self, OpKind};

/// Half of an all-reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Phase {
    /// Chunks travel and are summed.
    Reduce,
    /// Sums travel and are stored.
    Gather,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reduce => "reduce",
            Self::Gather => "gather",
        })
    }
}

/// A piece of a bucket in flight, unique within one all-reduce and receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct PieceId {
    /// The half of the all-reduce.
    pub phase: Phase,
    /// How far its chunk has travelled in this phase, from 0.
    pub hop: u16,
    /// The chunk of the bucket.
    pub chunk: u16,
    /// The piece of the chunk.
    pub piece: u32,
}

impl fmt::Display for PieceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, hop, chunk, piece } = self;
        write!(f, "piece {piece} of chunk {chunk} ({phase}, hop {hop})")
    }
}

/// Why a ring can't be set up, or a piece is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CollectiveError {
    /// The rank is none of the ring, or the ring has no or too many ranks.
    #[error("rank {rank} of a ring of {ranks}; allowed are rings of 1 to {limit}")]
    Ring {
        /// The rank.
        rank: u16,
        /// The ring's size.
        ranks: u16,
        /// Ranks allowed.
        limit: usize,
    },
    /// The bucket is too long.
    #[error("bucket of {got} elements, at most {limit} are allowed")]
    Bucket {
        /// Elements allowed.
        limit: usize,
        /// Elements there.
        got: usize,
    },
    /// Pieces are empty or too long.
    #[error("pieces of {got} elements, allowed are 1 to {limit}")]
    PieceLength {
        /// Elements allowed.
        limit: usize,
        /// Elements asked for.
        got: usize,
    },
    /// The piece comes from a rank that sends nothing to this one.
    #[error("{piece} comes from rank {got}, expected rank {expected}")]
    WrongSender {
        /// The piece.
        piece: PieceId,
        /// The rank before this one.
        expected: u16,
        /// The sender.
        got: u16,
    },
    /// The ring has no such hop.
    #[error("{piece} is beyond the last hop; the ring has {hops}")]
    HopOutOfRange {
        /// The piece.
        piece: PieceId,
        /// Hops of a phase.
        hops: u16,
    },
    /// Another chunk arrives at this rank in this hop.
    #[error("{piece} is of the wrong chunk, expected chunk {expected}")]
    WrongChunk {
        /// The piece.
        piece: PieceId,
        /// The chunk that arrives in this hop.
        expected: u16,
    },
    /// The chunk has no such piece.
    #[error("{piece} is beyond the last; the chunk has {pieces}")]
    PieceOutOfRange {
        /// The piece.
        piece: PieceId,
        /// Pieces of the chunk.
        pieces: u32,
    },
    /// The payload has the wrong length.
    #[error("{piece} has {got} elements, expected {expected}")]
    WrongLength {
        /// The piece.
        piece: PieceId,
        /// Elements of the piece.
        expected: usize,
        /// Elements of the payload.
        got: usize,
    },
    /// The piece has been accepted before.
    #[error("{piece} arrives twice")]
    Duplicate {
        /// The piece.
        piece: PieceId,
    },
    /// The piece claims to be a whole sum, but this rank has not added its share yet.
    #[error("{piece} can't be a whole sum: this rank has not added its share")]
    Premature {
        /// The piece.
        piece: PieceId,
    },
    /// The all-reduce is over.
    #[error("{piece} arrives after the end of its all-reduce")]
    Finished {
        /// The piece.
        piece: PieceId,
    },
}

/// When the output for an accepted piece comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It can be polled now.
    Now,
    /// It can be polled once the local gradient is ready: keep the payload.
    AfterLocalReady,
}

/// Where a piece goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The receiving rank.
    pub to: u16,
    /// The piece's id there.
    pub piece: PieceId,
}

/// What the caller must do, see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a piece of the own gradient.
    SendLocal {
        /// Where to, and under which id.
        forward: Forward,
        /// Elements of the bucket.
        range: Range<usize>,
    },
    /// Add the own gradient to a received piece and send the sum.
    ReduceThenForward {
        /// The received piece.
        piece: PieceId,
        /// Elements of the bucket.
        range: Range<usize>,
        /// Where the sum goes.
        forward: Forward,
        /// Whether the sum counts all ranks: then it is part of the result.
        complete: bool,
    },
    /// Store a received piece as part of the result and send it on.
    StoreThenForward {
        /// The received piece.
        piece: PieceId,
        /// Elements of the bucket.
        range: Range<usize>,
        /// Where it goes; nowhere at its last rank.
        forward: Option<Forward>,
    },
    /// The own gradient is the result.
    KeepLocal {
        /// Elements of the bucket.
        range: Range<usize>,
    },
    /// The result is complete, and everything that others need has been output.
    Done,
}

/// The all-reduce of one bucket on one rank of a ring.
#[derive(Clone, Debug)]
pub struct RingAllReduce {
    rank: u16,
    ranks: u16,
    len: usize,
    piece_len: usize,
    /// Pieces of the longest chunk.
    pieces_max: u32,
    /// Bit (phase, hop, piece): accepted.
    accepted: Vec<u64>,
    /// Pieces that have not arrived yet.
    missing: u64,
    local_ready: bool,
    /// Accepted before the local gradient was ready, in order of arrival.
    held: Vec<PieceId>,
    outputs: VecDeque<Output>,
    done: bool,
}

impl RingAllReduce {
    /// An all-reduce of `len` elements in pieces of [`limits::PIECE_ELEMENTS_MAX`].
    pub fn new(rank: u16, ranks: u16, len: usize) -> Result<Self, CollectiveError> {
        Self::with_pieces(rank, ranks, len, limits::PIECE_ELEMENTS_MAX)
    }

    /// An all-reduce in pieces of at most `piece_len` elements. All ranks must use the same.
    pub fn with_pieces(
        rank: u16,
        ranks: u16,
        len: usize,
        piece_len: usize,
    ) -> Result<Self, CollectiveError> {
        if rank >= ranks || usize::from(ranks) > limits::MEMBERS_MAX {
            return Err(CollectiveError::Ring { rank, ranks, limit: limits::MEMBERS_MAX });
        }
        if len > limits::BUCKET_ELEMENTS_MAX {
            return Err(CollectiveError::Bucket { limit: limits::BUCKET_ELEMENTS_MAX, got: len });
        }
        if !(1..=limits::PIECE_ELEMENTS_MAX).contains(&piece_len) {
            let limit = limits::PIECE_ELEMENTS_MAX;
            return Err(CollectiveError::PieceLength { limit, got: piece_len });
        }
        let mut ring = Self {
            rank,
            ranks,
            len,
            piece_len,
            pieces_max: 0,
            accepted: Vec::new(),
            missing: 0,
            local_ready: false,
            held: Vec::new(),
            outputs: VecDeque::new(),
            done: false,
        };
        // Chunk 0 is a longest one.
        ring.pieces_max = ring.pieces_of(0);
        let bits = 2 * u64::from(ring.hops()) * u64::from(ring.pieces_max);
        ring.accepted = vec![0; bits.div_ceil(64) as usize];
        ring.missing = [OpKind::Reduce, OpKind::Copy]
            .into_iter()
            .flat_map(|kind| (0..ring.hops()).map(move |hop| (kind, hop)))
            .map(|(kind, hop)| {
                u64::from(ring.pieces_of(schedule::ring_chunk(ranks, rank, hop, kind)))
            })
            .sum();
        Ok(ring)
    }

    /// The own rank.
    pub fn rank(&self) -> u16 {
        self.rank
    }

    /// The ring's size.
    pub fn ranks(&self) -> u16 {
        self.ranks
    }

    /// Elements of the bucket.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the bucket has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the own gradient has been given.
    pub fn is_local_ready(&self) -> bool {
        self.local_ready
    }

    /// Whether [`Output::Done`] has been polled.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Pieces that this rank still waits for.
    pub fn missing_pieces(&self) -> u64 {
        self.missing
    }

    /// The elements of the bucket that a piece holds, whoever sends it; `None` if there is no such piece.
    pub fn range_of(&self, piece: PieceId) -> Option<Range<usize>> {
        let exists = piece.hop < self.hops()
            && piece.chunk < self.ranks
            && piece.piece < self.pieces_of(piece.chunk);
        exists.then(|| self.piece_range(piece.chunk, piece.piece))
    }

    /// The own gradient is complete in `local`. A repeated call changes nothing.
    pub fn handle_local_ready(&mut self) {
        if std::mem::replace(&mut self.local_ready, true) {
            return;
        }
        if self.ranks == 1 {
            if self.len > 0 {
                self.outputs.push_back(Output::KeepLocal { range: 0..self.len });
            }
            return;
        }
        let (to, chunk) = (schedule::ring_next(self.ranks, self.rank), self.rank);
        for piece in 0..self.pieces_of(chunk) {
            let range = self.piece_range(chunk, piece);
            let piece = PieceId { phase: Phase::Reduce, hop: 0, chunk, piece };
            self.outputs.push_back(Output::SendLocal { forward: Forward { to, piece }, range });
        }
        for piece in std::mem::take(&mut self.held) {
            let output = self.output_for(piece);
            self.outputs.push_back(output);
        }
    }

    /// A piece with a payload of `elements` elements has arrived from rank `from`. On an error the piece
    /// changes nothing and its payload must not be used.
    pub fn handle_piece(
        &mut self,
        from: u16,
        piece: PieceId,
        elements: usize,
    ) -> Result<Accepted, CollectiveError> {
        let bit = self.check_piece(from, piece, elements)?;
        self.accepted[bit / 64] |= 1 << (bit % 64);
        self.missing -= 1;
        if !self.local_ready {
            self.held.push(piece);
            return Ok(Accepted::AfterLocalReady);
        }
        let output = self.output_for(piece);
        self.outputs.push_back(output);
        Ok(Accepted::Now)
    }

    /// The next thing to do. Poll until `None` after each `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if self.local_ready && self.missing == 0 && !std::mem::replace(&mut self.done, true) {
            return Some(Output::Done);
        }
        None
    }

    /// Checks a piece; returns its bit in `accepted`.
    fn check_piece(
        &self,
        from: u16,
        piece: PieceId,
        elements: usize,
    ) -> Result<usize, CollectiveError> {
        let PieceId { phase, hop, chunk, piece: index } = piece;
        let hops = self.hops();
        if hop >= hops {
            return Err(CollectiveError::HopOutOfRange { piece, hops });
        }
        let expected = schedule::ring_previous(self.ranks, self.rank);
        if from != expected {
            return Err(CollectiveError::WrongSender { piece, expected, got: from });
        }
        let kind = match phase {
            Phase::Reduce => OpKind::Reduce,
            Phase::Gather => OpKind::Copy,
        };
        let expected = schedule::ring_chunk(self.ranks, self.rank, hop, kind);
        if chunk != expected {
            return Err(CollectiveError::WrongChunk { piece, expected });
        }
        let pieces = self.pieces_of(chunk);
        if index >= pieces {
            return Err(CollectiveError::PieceOutOfRange { piece, pieces });
        }
        let expected = self.piece_range(chunk, index).len();
        if elements != expected {
            return Err(CollectiveError::WrongLength { piece, expected, got: elements });
        }
        if self.missing == 0 {
            return Err(CollectiveError::Finished { piece });
        }
        let bit = self.bit(phase, hop, index);
        if self.is_accepted(bit) {
            return Err(CollectiveError::Duplicate { piece });
        }
        if phase == Phase::Gather && !self.has_contributed(chunk, index) {
            return Err(CollectiveError::Premature { piece });
        }
        Ok(bit)
    }

    /// Whether this rank's share is in the sum of a piece that some rank can have completed.
    fn has_contributed(&self, chunk: u16, piece: u32) -> bool {
        // The hop in which the chunk comes to be reduced; the own chunk starts here and never comes.
        let hop = (self.ranks + self.rank - 1 - chunk) % self.ranks;
        let started_here = chunk == self.rank;
        self.local_ready && (started_here || self.is_accepted(self.bit(Phase::Reduce, hop, piece)))
    }

    /// What to do with an accepted piece.
    fn output_for(&self, piece: PieceId) -> Output {
        let to = schedule::ring_next(self.ranks, self.rank);
        let range = self.piece_range(piece.chunk, piece.piece);
        let last = piece.hop + 1 == self.hops();
        let forward = |phase, hop| Forward { to, piece: PieceId { phase, hop, ..piece } };
        match piece.phase {
            Phase::Reduce => {
                let forward = if last {
                    forward(Phase::Gather, 0)
                } else {
                    forward(Phase::Reduce, piece.hop + 1)
                };
                Output::ReduceThenForward { piece, range, forward, complete: last }
            }
            Phase::Gather => {
                let forward = (!last).then(|| forward(Phase::Gather, piece.hop + 1));
                Output::StoreThenForward { piece, range, forward }
            }
        }
    }

    /// Hops of a phase.
    fn hops(&self) -> u16 {
        self.ranks - 1
    }

    fn pieces_of(&self, chunk: u16) -> u32 {
        // At most BUCKET_ELEMENTS_MAX, which fits into u32.
        schedule::chunk_bounds(self.len, self.ranks, chunk).len().div_ceil(self.piece_len) as u32
    }

    fn piece_range(&self, chunk: u16, piece: u32) -> Range<usize> {
        let bounds = schedule::chunk_bounds(self.len, self.ranks, chunk);
        let start = bounds.start + piece as usize * self.piece_len;
        start..bounds.end.min(start + self.piece_len)
    }

    fn bit(&self, phase: Phase, hop: u16, piece: u32) -> usize {
        let phase = match phase {
            Phase::Reduce => 0,
            Phase::Gather => usize::from(self.hops()),
        };
        (phase + usize::from(hop)) * self.pieces_max as usize + piece as usize
    }

    fn is_accepted(&self, bit: usize) -> bool {
        self.accepted[bit / 64] >> (bit % 64) & 1 == 1
    }
}
