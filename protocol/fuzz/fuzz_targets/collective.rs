//! A rank of the ring takes any pieces in any order: it refuses what does not belong, never panics,
//! and is done exactly when every piece has come once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_protocol::collective::{Output, Phase, PieceId, RingAllReduce};

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk::<4>() else { return };
    let [rank, ranks, len, ready_after] = head.map(u16::from);
    let Ok(mut ring) = RingAllReduce::with_pieces(rank, ranks, usize::from(len), 3) else { return };
    let before = if rank == 0 { ranks - 1 } else { rank - 1 };
    let mut done = false;
    let poll = |ring: &mut RingAllReduce, done: &mut bool| {
        while let Some(output) = ring.poll_output() {
            *done |= output == Output::Done;
        }
    };
    for (index, &[kind, hop, chunk, piece]) in rest.as_chunks::<4>().0.iter().enumerate() {
        if index == usize::from(ready_after) {
            ring.handle_local_ready();
        }
        let phase = if kind & 1 == 0 { Phase::Reduce } else { Phase::Gather };
        let piece = PieceId { phase, hop: hop.into(), chunk: chunk.into(), piece: piece.into() };
        // Most pieces come from the right rank with the right length, so that some are accepted.
        let from = if kind & 6 == 6 { u16::from(kind) } else { before };
        let right_len = ring.range_of(piece).map_or(0, |range| range.len());
        let elements = if kind & 24 == 24 { usize::from(kind) } else { right_len };
        let missing = ring.missing_pieces();
        let accepted = ring.handle_piece(from, piece, elements).is_ok();
        assert_eq!(ring.missing_pieces(), missing - u64::from(accepted));
        poll(&mut ring, &mut done);
    }
    ring.handle_local_ready();
    poll(&mut ring, &mut done);
    assert_eq!(done, ring.missing_pieces() == 0);
});
