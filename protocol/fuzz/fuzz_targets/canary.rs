//! A planted bug behind the envelope and inside a decoded value. A fuzzing run that does not find it
//! says nothing about the other targets: `.ci/fuzz` fails if this target survives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_protocol::ledger::LedgerEntry;
use p2ptrain_protocol::wire::{self, Kind};

fuzz_target!(|data: &[u8]| {
    let Ok(entry) = wire::decode::<LedgerEntry>(Kind::Ledger, data) else { return };
    assert!(entry.shares.len() != 1, "the planted bug: an entry of one share");
});
