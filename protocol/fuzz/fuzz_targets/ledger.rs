//! The text of a ledger: any lines are audited to a report or an error, and what parses prints the
//! same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_protocol::ledger::{self, LedgerEntry, LedgerHeader};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = ledger::audit(text.lines());
    for line in text.lines() {
        if let Ok(header) = LedgerHeader::parse_line(line) {
            assert_eq!(LedgerHeader::parse_line(&header.to_line()), Ok(header));
        }
        if let Ok(entry) = LedgerEntry::parse_line(line) {
            assert_eq!(LedgerEntry::parse_line(&entry.to_line()), Ok(entry));
        }
    }
});
