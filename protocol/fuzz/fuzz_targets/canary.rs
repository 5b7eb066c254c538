//! A planted bug inside a decoded value. A fuzzing run that does not find it says nothing about the other
//! targets: `.ci/fuzz` fails if this target survives. The seed is a valid line; one changed digit shows the bug.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_protocol::ledger::LedgerEntry;

fuzz_target!(|data: &[u8]| {
    let Ok(line) = std::str::from_utf8(data) else { return };
    let Ok(entry) = LedgerEntry::parse_line(line) else { return };
    assert!(entry.epoch != 7, "the planted bug: an entry of epoch 7");
});
