//! Collectives as data: which rank sends which chunk to whom, in which round.
//!
//! A schedule is a plain list that can be printed, checked and simulated. [`check`] is its executable
//! specification. [`crate::collective`] executes the same schedule for one rank.

use std::ops::Range;

use thiserror::Error;

use crate::limits;

/// What the receiver of a chunk does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    /// Adds its own to it.
    Reduce,
    /// Takes it as the result.
    Copy,
}

/// One chunk sent from one rank to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op {
    /// What a rank sends in a round depends on what it received in earlier rounds only.
    pub round: u16,
    /// The sending rank.
    pub from: u16,
    /// The receiving rank.
    pub to: u16,
    /// The chunk.
    pub chunk: u16,
    /// What the receiver does.
    pub kind: OpKind,
}

/// The ring all-reduce of `n` ranks on `n` chunks, sorted by round and sender.
///
/// In the first n-1 rounds each chunk travels once around the ring and is summed: chunk c starts at rank c,
/// and is complete at rank c-1. In the other n-1 rounds the sums travel around. Each rank sends and receives
/// one chunk a round, 2(n-1)/n of the data in all.
///
/// ```
/// use p2ptrain_protocol::schedule::{check, ring};
///
/// assert_eq!(ring(3).len(), 12);
/// assert_eq!(check(3, &ring(3)), Ok(()));
/// ```
pub fn ring(n: u16) -> Vec<Op> {
    if n < 2 {
        return Vec::new();
    }
    let mut ops = Vec::with_capacity(2 * usize::from(n) * usize::from(n - 1));
    for (phase, kind) in [OpKind::Reduce, OpKind::Copy].into_iter().enumerate() {
        for hop in 0..n - 1 {
            for from in 0..n {
                let to = ring_next(n, from);
                // What the receiver gets is what its neighbour sends.
                let chunk = ring_chunk(n, to, hop, kind);
                ops.push(Op { round: phase as u16 * (n - 1) + hop, from, to, chunk, kind });
            }
        }
    }
    ops
}

/// The rank to which `rank` sends. Precondition: `rank < n`.
pub(crate) fn ring_next(n: u16, rank: u16) -> u16 {
    if rank + 1 == n { 0 } else { rank + 1 }
}

/// The rank from which `rank` receives. Precondition: `rank < n`.
pub(crate) fn ring_previous(n: u16, rank: u16) -> u16 {
    if rank == 0 { n - 1 } else { rank - 1 }
}

/// The chunk that `rank` receives in a hop of a phase. Precondition: `rank < n`, `hop < n - 1`.
pub(crate) fn ring_chunk(n: u16, rank: u16, hop: u16, kind: OpKind) -> u16 {
    let (n, rank, hop) = (u32::from(n), u32::from(rank), u32::from(hop));
    let chunk = match kind {
        OpKind::Reduce => (rank + n - 1 - hop) % n,
        OpKind::Copy => (rank + n - hop) % n,
    };
    // Less than n, which is a u16.
    chunk as u16
}

/// The elements of chunk `chunk` where `len` elements are cut into `n` chunks, whose lengths differ by at
/// most one. A chunk beyond the last is empty.
pub fn chunk_bounds(len: usize, n: u16, chunk: u16) -> Range<usize> {
    if chunk >= n {
        return len..len;
    }
    let (n, chunk) = (usize::from(n), usize::from(chunk));
    let (short, longer) = (len / n, len % n);
    let start = chunk * short + chunk.min(longer);
    start..start + short + usize::from(chunk < longer)
}

/// Why a list of operations is no all-reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ScheduleError {
    /// There are more ranks than a view has members.
    #[error("{got} ranks, at most {limit} are allowed")]
    TooManyRanks {
        /// Ranks allowed.
        limit: usize,
        /// Ranks there.
        got: u16,
    },
    /// A rank or chunk does not exist, or a rank sends to itself.
    #[error("{0:?} is outside of {1} ranks")]
    OutOfRange(Op, u16),
    /// Rounds go backwards.
    #[error("{0:?} comes after a later round")]
    Order(Op),
    /// A rank has more than one operation of a direction in a round.
    #[error("{0:?} is the second of its rank in the round")]
    Busy(Op),
    /// A sum would count a rank twice.
    #[error("{0:?} adds the share of a rank twice")]
    Doubled(Op),
    /// What is copied is no complete sum.
    #[error("{0:?} copies an incomplete sum")]
    Incomplete(Op),
    /// In the end a rank lacks a complete chunk.
    #[error("rank {rank} ends without the whole of chunk {chunk}")]
    Missing {
        /// The rank.
        rank: u16,
        /// The chunk.
        chunk: u16,
    },
}

/// The specification of an all-reduce: run in rounds, every sum counts each rank once, every copy is of a
/// complete sum, no rank sends or receives twice in a round, and all ranks end with all sums.
pub fn check(n: u16, ops: &[Op]) -> Result<(), ScheduleError> {
    let ranks = usize::from(n);
    if ranks > limits::MEMBERS_MAX {
        return Err(ScheduleError::TooManyRanks { limit: limits::MEMBERS_MAX, got: n });
    }
    // held[rank][chunk]: whose shares its sum counts.
    let own = |rank: usize| vec![(0..ranks).map(|other| other == rank).collect::<Vec<_>>(); ranks];
    let mut held: Vec<Vec<Vec<bool>>> = (0..ranks).map(own).collect();
    if let Some(pair) = ops.windows(2).find(|pair| pair[0].round > pair[1].round) {
        return Err(ScheduleError::Order(pair[1]));
    }
    for round in ops.chunk_by(|a, b| a.round == b.round) {
        // All of a round send what they held before it.
        let before = held.clone();
        let (mut sends, mut receives) = (vec![false; ranks], vec![false; ranks]);
        for &op in round {
            if op.from >= n || op.to >= n || op.chunk >= n || op.from == op.to {
                return Err(ScheduleError::OutOfRange(op, n));
            }
            let (from, to) = (usize::from(op.from), usize::from(op.to));
            let chunk = usize::from(op.chunk);
            if std::mem::replace(&mut sends[from], true)
                || std::mem::replace(&mut receives[to], true)
            {
                return Err(ScheduleError::Busy(op));
            }
            let (sent, target) = (&before[from][chunk], &mut held[to][chunk]);
            match op.kind {
                OpKind::Reduce if sent.iter().zip(&*target).any(|(a, b)| *a && *b) => {
                    return Err(ScheduleError::Doubled(op));
                }
                OpKind::Reduce => target.iter_mut().zip(sent).for_each(|(a, b)| *a |= *b),
                OpKind::Copy if sent.contains(&false) => {
                    return Err(ScheduleError::Incomplete(op));
                }
                OpKind::Copy => target.clone_from(sent),
            }
        }
    }
    for rank in 0..n {
        for chunk in 0..n {
            if held[usize::from(rank)][usize::from(chunk)].contains(&false) {
                return Err(ScheduleError::Missing { rank, chunk });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ring_meets_the_specification_for_one_to_eight_ranks_and_more() {
        for n in (0..=8).chain([13, 32]) {
            assert_eq!(check(n, &ring(n)), Ok(()), "{n} ranks");
            let ops = usize::from(n) * 2 * usize::from(n.saturating_sub(1));
            assert_eq!(ring(n).len(), ops);
        }
    }

    #[test]
    fn each_link_carries_its_share_of_the_data_and_no_other_link_is_used() {
        for n in 2..=8_u16 {
            let len = 8 * 7 * 6 * 5 * usize::from(n);
            let mut sent = vec![0; usize::from(n)];
            for op in ring(n) {
                assert_eq!(op.to, (op.from + 1) % n);
                sent[usize::from(op.from)] += chunk_bounds(len, n, op.chunk).len();
            }
            let expected = 2 * usize::from(n - 1) * len / usize::from(n);
            assert_eq!(sent, vec![expected; usize::from(n)], "{n} ranks");
        }
    }

    /// Any single change of a small ring is noticed: the specification is not vacuous.
    #[test]
    fn every_mutation_of_a_ring_is_refused() {
        for n in 2..=4_u16 {
            let ring = ring(n);
            for at in 0..ring.len() {
                let mut without = ring.clone();
                without.remove(at);
                assert!(check(n, &without).is_err(), "{n} ranks without {:?}", ring[at]);
                let mutations = [
                    Op { chunk: (ring[at].chunk + 1) % n, ..ring[at] },
                    Op { to: (ring[at].to + 1) % n, ..ring[at] },
                    Op { from: (ring[at].from + 1) % n, ..ring[at] },
                    Op { chunk: n, ..ring[at] },
                    Op {
                        kind: match ring[at].kind {
                            OpKind::Reduce => OpKind::Copy,
                            OpKind::Copy => OpKind::Reduce,
                        },
                        ..ring[at]
                    },
                ];
                for mutation in mutations {
                    let mut changed = ring.clone();
                    changed[at] = mutation;
                    assert!(check(n, &changed).is_err(), "{n} ranks with {mutation:?}");
                }
            }
        }
        let mut reversed = ring(3);
        reversed.reverse();
        assert!(matches!(check(3, &reversed), Err(ScheduleError::Order(_))));
        assert!(matches!(check(u16::MAX, &[]), Err(ScheduleError::TooManyRanks { .. })));
    }

    proptest! {
        #[test]
        fn chunks_tile_any_length_evenly(len in 0_usize..100_000, n in 1_u16..300) {
            let mut end = 0;
            for chunk in 0..n {
                let bounds = chunk_bounds(len, n, chunk);
                prop_assert_eq!(bounds.start, end);
                prop_assert!(bounds.len().abs_diff(len / usize::from(n)) <= 1);
                end = bounds.end;
            }
            prop_assert_eq!(end, len);
            prop_assert!(chunk_bounds(len, n, n).is_empty());
        }
    }
}
