//! The proof that every sample counted exactly once (design invariant 4).
//!
//! Each committed step is one [`LedgerEntry`]: who computed which of its micro-batches. A [`Ledger`] takes an
//! entry only if it is of the next step and its shares tile all micro-batches; [`audit`] does the same with the
//! lines of a file, later and anywhere.
//!
//! The text form is one line of ASCII for the header and one for each entry. A share that a survivor did again
//! for a peer that died in the step has a `+`:
//!
//! ```text
//! p2ptrain-ledger v1 job=9f…e1 first=0 items=8 samples=4
//! step=0 epoch=1 attempt=07…aa shares=1a…42:0..4;2b…07:4..8
//! step=1 epoch=1 attempt=5c…10 shares=1a…42:0..4;+1a…42:4..8
//! ```

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use bincode::{Decode, Encode};
use thiserror::Error;

use crate::id::{Digest, JobId, PeerId, Step};
use crate::limits;
use crate::order;

/// What a ledger is of: its first line.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LedgerHeader {
    /// The job.
    pub job: JobId,
    /// The first step in the ledger.
    pub first: Step,
    /// Micro-batches of a step.
    pub items: u32,
    /// Samples of a micro-batch.
    pub samples_per_item: u32,
}

/// What one peer did in one step.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Share {
    /// The peer.
    pub peer: PeerId,
    /// Whether it did this again for a peer that died in the step.
    pub redone: bool,
    /// The micro-batches.
    pub ranges: Vec<Range<u32>>,
}

/// A committed step.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LedgerEntry {
    /// The step.
    pub step: Step,
    /// Epoch of the view in which it was committed.
    pub epoch: u64,
    /// Digest of the attempt that committed it.
    pub attempt: Digest,
    /// Who computed what.
    pub shares: Vec<Share>,
}

/// Why an entry or a line does not belong into a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// A line has another form than it should.
    #[error("expected {expected}, got {got:?}")]
    Syntax {
        /// What should be there.
        expected: &'static str,
        /// What is there; the start of it, where it is long.
        got: String,
    },
    /// A line is too long.
    #[error("line of {got} bytes, at most {limit} are allowed")]
    LineTooLong {
        /// Bytes allowed.
        limit: usize,
        /// Bytes there.
        got: usize,
    },
    /// A number is outside of what is allowed.
    #[error("{field} is {got}, allowed is 1 to {max}")]
    Range {
        /// The header's field.
        field: &'static str,
        /// The largest allowed number.
        max: u32,
        /// The number there.
        got: u32,
    },
    /// A step is missing or repeated.
    #[error("step {got} is not the next, expected step {expected}")]
    StepOrder {
        /// The step after the last.
        expected: Step,
        /// The entry's.
        got: Step,
    },
    /// There are more shares than members can have done.
    #[error("step {step} has {got} shares, at most {limit} are allowed")]
    TooManyShares {
        /// The step.
        step: Step,
        /// Shares allowed.
        limit: usize,
        /// Shares there.
        got: usize,
    },
    /// A share is of micro-batches that the step does not have, or runs backwards.
    #[error("step {step}: {peer:#} counts micro-batches {range:?}, the step has 0..{items}")]
    OutOfRange {
        /// The step.
        step: Step,
        /// The peer.
        peer: PeerId,
        /// The range of its share.
        range: Range<u32>,
        /// Micro-batches of a step.
        items: u32,
    },
    /// Nobody counts some samples.
    #[error(
        "step {step} lost micro-batches {items:?} (samples {samples:?}): nobody counts them; before them \
         comes {}, after them {}",
        Neighbour(.before),
        Neighbour(.after)
    )]
    Lost {
        /// The step.
        step: Step,
        /// The first gap.
        items: Range<u32>,
        /// Its positions in the sample sequence.
        samples: Range<u64>,
        /// Whose share ends where the gap begins.
        before: Option<PeerId>,
        /// Whose share begins where the gap ends.
        after: Option<PeerId>,
    },
    /// Two shares count the same samples.
    #[error(
        "step {step} doubled micro-batches {items:?} (samples {samples:?}): both {first:#} and {second:#} \
         count them"
    )]
    Doubled {
        /// The step.
        step: Step,
        /// The first overlap.
        items: Range<u32>,
        /// Its positions in the sample sequence.
        samples: Range<u64>,
        /// A peer that counts them.
        first: PeerId,
        /// The peer that counts them too, possibly the same.
        second: PeerId,
    },
    /// Positions in the sample sequence exceed 64 bits.
    #[error("step {step} is beyond the end of the sample sequence")]
    StepTooLarge {
        /// The step.
        step: Step,
    },
}

/// A line of a ledger is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("ledger line {line}: {cause}")]
pub struct AuditError {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong.
    #[source]
    pub cause: LedgerError,
}

/// What a ledger proves; `{}` prints it for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Steps committed.
    pub steps: u64,
    /// Samples counted, each once.
    pub samples: u64,
    /// Samples by peer.
    pub samples_by_peer: BTreeMap<PeerId, u64>,
    /// Samples of peers beyond [`limits::LEDGER_PEERS_MAX`].
    pub samples_of_others: u64,
    /// Shares done again for peers that died.
    pub redone_shares: u64,
    /// Samples of those.
    pub redone_samples: u64,
    /// Steps with such shares.
    pub redone_steps: u64,
}

/// The running check of a job's ledger. It holds sums, not entries: write those where they last.
#[derive(Clone, Debug)]
pub struct Ledger {
    header: LedgerHeader,
    next: Step,
    report: AuditReport,
}

impl LedgerHeader {
    /// Checks the numbers.
    pub fn verify(&self) -> Result<(), LedgerError> {
        let numbers = [
            ("items", self.items, limits::ITEMS_MAX),
            ("samples", self.samples_per_item, u32::MAX),
        ];
        match numbers.into_iter().find(|&(_, got, max)| !(1..=max).contains(&got)) {
            None => Ok(()),
            Some((field, got, max)) => Err(LedgerError::Range { field, max, got }),
        }
    }

    /// Positions in the sample sequence that a step covers; `None` beyond 64 bits.
    pub fn sample_range(&self, step: Step) -> Option<Range<u64>> {
        self.samples_of(step, 0..self.items)
    }

    /// Positions in the sample sequence that micro-batches of a step cover. `None` beyond 64 bits, or where
    /// the range is empty or not within the step.
    pub fn samples_of(&self, step: Step, items: Range<u32>) -> Option<Range<u64>> {
        let of = |item| order::item_positions(step, self.items, self.samples_per_item, item);
        let (first, last) = (of(items.start)?, of(items.end.checked_sub(1)?)?);
        (first.start < last.end).then_some(first.start..last.end)
    }
}

impl LedgerEntry {
    /// Checks that the shares tile all micro-batches: none lost, none doubled.
    pub fn verify(&self, header: &LedgerHeader) -> Result<(), LedgerError> {
        let (step, items) = (self.step, header.items);
        let (limit, got) = (limits::LEDGER_SHARES_MAX, self.shares.len());
        if got > limit {
            return Err(LedgerError::TooManyShares { step, limit, got });
        }
        let samples = |range: &Range<u32>| {
            header.samples_of(step, range.clone()).ok_or(LedgerError::StepTooLarge { step })
        };
        samples(&(0..items))?;
        let mut sorted = Vec::new();
        for share in &self.shares {
            for range in &share.ranges {
                if range.is_empty() || range.end > items {
                    let (peer, range) = (share.peer, range.clone());
                    return Err(LedgerError::OutOfRange { step, peer, range, items });
                }
                sorted.push((range.start, range.end, share.peer));
            }
        }
        sorted.sort_unstable();
        let (mut end, mut before) = (0, None);
        for &(start, next_end, peer) in &sorted {
            if let Some(first) = before.filter(|_| start < end) {
                let items = start..end.min(next_end);
                let samples = samples(&items)?;
                return Err(LedgerError::Doubled { step, items, samples, first, second: peer });
            }
            if start > end {
                let (items, after) = (end..start, Some(peer));
                let samples = samples(&items)?;
                return Err(LedgerError::Lost { step, items, samples, before, after });
            }
            (end, before) = (next_end, Some(peer));
        }
        if end < items {
            let (items, after) = (end..items, None);
            let samples = samples(&items)?;
            return Err(LedgerError::Lost { step, items, samples, before, after });
        }
        Ok(())
    }
}

impl Ledger {
    /// An empty ledger.
    pub fn new(header: LedgerHeader) -> Result<Self, LedgerError> {
        header.verify()?;
        Ok(Self { next: header.first, header, report: AuditReport::default() })
    }

    /// What the ledger is of.
    pub fn header(&self) -> &LedgerHeader {
        &self.header
    }

    /// The step whose entry comes next.
    pub fn next_step(&self) -> Step {
        self.next
    }

    /// What the entries so far prove.
    pub fn report(&self) -> &AuditReport {
        &self.report
    }

    /// Takes the entry of the next step, if its shares tile the step's micro-batches. An error changes nothing.
    pub fn append(&mut self, entry: &LedgerEntry) -> Result<(), LedgerError> {
        if entry.step != self.next {
            return Err(LedgerError::StepOrder { expected: self.next, got: entry.step });
        }
        entry.verify(&self.header)?;
        let samples_per_item = u64::from(self.header.samples_per_item);
        for share in &entry.shares {
            let items: u64 =
                share.ranges.iter().map(|range| u64::from(range.end - range.start)).sum();
            self.report.count(share, items * samples_per_item);
        }
        self.report.steps += 1;
        self.report.redone_steps += u64::from(entry.shares.iter().any(|share| share.redone));
        self.next = entry.step.next();
        Ok(())
    }
}

/// Checks the lines of a ledger, its header first, and says what they prove.
pub fn audit<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> Result<AuditReport, AuditError> {
    let mut ledger: Option<Ledger> = None;
    for (line, text) in (1..).zip(lines) {
        let text = text.as_ref();
        let checked = match &mut ledger {
            None => LedgerHeader::parse_line(text).and_then(Ledger::new).map(|l| ledger = Some(l)),
            Some(ledger) => LedgerEntry::parse_line(text).and_then(|entry| ledger.append(&entry)),
        };
        checked.map_err(|cause| AuditError { line, cause })?;
    }
    let Some(ledger) = ledger else {
        let cause = LedgerError::Syntax { expected: "a ledger's first line", got: String::new() };
        return Err(AuditError { line: 1, cause });
    };
    Ok(ledger.report)
}

impl AuditReport {
    fn count(&mut self, share: &Share, samples: u64) {
        // Sums of u64 positions that were checked: they only saturate where the sequence ends.
        let add = |sum: &mut u64| *sum = sum.saturating_add(samples);
        add(&mut self.samples);
        let known = self.samples_by_peer.contains_key(&share.peer);
        if known || self.samples_by_peer.len() < limits::LEDGER_PEERS_MAX {
            add(self.samples_by_peer.entry(share.peer).or_default());
        } else {
            add(&mut self.samples_of_others);
        }
        if share.redone {
            self.redone_shares += 1;
            add(&mut self.redone_samples);
        }
    }

    /// Peers that counted samples, without those beyond [`limits::LEDGER_PEERS_MAX`].
    pub fn peers(&self) -> BTreeSet<PeerId> {
        self.samples_by_peer.keys().copied().collect()
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, samples, redone_steps, redone_shares, redone_samples, .. } = self;
        write!(f, "{steps} steps, {samples} samples, each counted exactly once")?;
        for (peer, samples) in &self.samples_by_peer {
            write!(f, "\n  {peer}: {samples} samples")?;
        }
        if self.samples_of_others > 0 {
            write!(f, "\n  others: {} samples", self.samples_of_others)?;
        }
        write!(
            f,
            "\n  done again for peers that died: {redone_samples} samples in {redone_shares} shares of \
             {redone_steps} steps"
        )
    }
}

/// A peer beside a gap.
struct Neighbour<'a>(&'a Option<PeerId>);

impl fmt::Display for Neighbour<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => write!(f, "{peer:#}"),
            None => f.write_str("nobody"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(id: u8) -> PeerId {
        PeerId::from_bytes([id; 32])
    }

    fn header() -> LedgerHeader {
        LedgerHeader { job: JobId::of_job(b"job"), first: Step(10), items: 8, samples_per_item: 4 }
    }

    fn share(id: u8, ranges: &[Range<u32>]) -> Share {
        Share { peer: peer(id), redone: false, ranges: ranges.to_vec() }
    }

    fn entry(step: u64, shares: Vec<Share>) -> LedgerEntry {
        LedgerEntry { step: Step(step), epoch: 1, attempt: Digest::of("test", &step), shares }
    }

    fn check_refused(shares: Vec<Share>, expected: &str) {
        let mut ledger = Ledger::new(header()).expect("plausible");
        let error = ledger.append(&entry(10, shares)).expect_err(expected);
        // Peers in full are too long to read here.
        let text = error.to_string();
        let short =
            (1..9).fold(text, |text, id| text.replace(&peer(id).to_hex(), &format!("P{id}")));
        assert_eq!(short, expected);
        assert_eq!(ledger.next_step(), Step(10));
        assert_eq!(ledger.report(), &AuditReport::default());
    }

    #[test]
    fn steps_that_tile_are_counted_by_peer() {
        let mut ledger = Ledger::new(header()).expect("plausible");
        ledger.append(&entry(10, vec![share(1, &[0..5]), share(2, &[5..8])])).expect("tiles");
        let redone = Share { redone: true, ..share(1, &[5..6, 7..8]) };
        let shares = vec![redone, share(1, &[0..5]), share(2, &[6..7])];
        ledger.append(&entry(11, shares)).expect("tiles");
        assert_eq!(ledger.next_step(), Step(12));
        assert_eq!(
            ledger.report().to_string(),
            "2 steps, 64 samples, each counted exactly once\n  01010101: 48 samples\n  \
             02020202: 16 samples\n  done again for peers that died: 8 samples in 1 shares of 1 steps"
        );
        assert_eq!(ledger.report().peers(), [peer(1), peer(2)].into());
    }

    #[test]
    fn lost_samples_are_named_with_their_neighbours() {
        check_refused(
            vec![share(1, &[0..3]), share(2, &[5..8])],
            "step 10 lost micro-batches 3..5 (samples 332..340): nobody counts them; before them comes \
             P1, after them P2",
        );
        check_refused(
            vec![share(2, &[1..7])],
            "step 10 lost micro-batches 0..1 (samples 320..324): nobody counts them; before them comes \
             nobody, after them P2",
        );
        check_refused(
            vec![share(2, &[0..7])],
            "step 10 lost micro-batches 7..8 (samples 348..352): nobody counts them; before them comes \
             P2, after them nobody",
        );
        check_refused(
            vec![],
            "step 10 lost micro-batches 0..8 (samples 320..352): nobody counts them; before them comes \
             nobody, after them nobody",
        );
    }

    #[test]
    fn doubled_samples_are_named_with_both_peers() {
        check_refused(
            vec![share(1, &[0..4]), share(2, &[2..8])],
            "step 10 doubled micro-batches 2..4 (samples 328..336): both P1 and P2 count them",
        );
        check_refused(
            vec![share(1, &[0..8]), Share { redone: true, ..share(1, &[6..7]) }],
            "step 10 doubled micro-batches 6..7 (samples 344..348): both P1 and P1 count them",
        );
    }

    #[test]
    fn ranges_outside_of_the_step_are_refused() {
        let text = "step 10: P1 counts micro-batches 0..9, the step has 0..8";
        check_refused(vec![share(1, &[0..9])], text);
        let text = "step 10: P1 counts micro-batches 5..2, the step has 0..8";
        let backwards = Range { start: 5, end: 2 };
        check_refused(vec![share(1, &[0..8, backwards])], text);
        let many = vec![share(1, &[]); limits::LEDGER_SHARES_MAX + 1];
        check_refused(many, "step 10 has 513 shares, at most 512 are allowed");
    }

    #[test]
    fn steps_come_in_order_without_gaps_or_repetition() {
        let mut ledger = Ledger::new(header()).expect("plausible");
        let whole = |step| entry(step, vec![share(1, &[0..8])]);
        let refused = |got| LedgerError::StepOrder { expected: Step(10), got: Step(got) };
        assert_eq!(ledger.append(&whole(11)), Err(refused(11)));
        assert_eq!(ledger.append(&whole(9)), Err(refused(9)));
        ledger.append(&whole(10)).expect("next");
        assert!(matches!(ledger.append(&whole(10)), Err(LedgerError::StepOrder { .. })));
        let mut last = Ledger::new(LedgerHeader { first: Step(u64::MAX / 16), ..header() })
            .expect("plausible");
        let beyond = LedgerError::StepTooLarge { step: Step(u64::MAX / 16) };
        assert_eq!(last.append(&whole(u64::MAX / 16)), Err(beyond));
    }

    #[test]
    fn headers_with_impossible_numbers_are_refused() {
        let error = Ledger::new(LedgerHeader { items: 0, ..header() }).map(|_| ());
        let (field, max) = ("items", limits::ITEMS_MAX);
        assert_eq!(error, Err(LedgerError::Range { field, max, got: 0 }));
        assert!(LedgerHeader { samples_per_item: 0, ..header() }.verify().is_err());
    }

    #[test]
    fn samples_of_a_step_follow_those_of_the_step_before() {
        let header = header();
        assert_eq!(header.sample_range(Step(0)), Some(0..32));
        assert_eq!(header.sample_range(Step(1)), Some(32..64));
        assert_eq!(header.samples_of(Step(1), 2..3), Some(40..44));
        assert_eq!(header.samples_of(Step(1), 2..9), None);
        assert_eq!(header.samples_of(Step(1), 0..0), None);
        assert_eq!(header.sample_range(Step(u64::MAX)), None);
    }

    fn lines() -> Vec<String> {
        let redone = Share { redone: true, ..share(1, &[5..6, 7..8]) };
        vec![
            header().to_line(),
            entry(10, vec![share(1, &[0..5]), share(2, &[5..8])]).to_line(),
            entry(11, vec![share(1, &[0..5]), redone, share(2, &[6..7])]).to_line(),
        ]
    }

    fn check_audit_refused(change: impl FnOnce(&mut Vec<String>), expected: &str) {
        let mut lines = lines();
        change(&mut lines);
        assert_eq!(audit(&lines).expect_err(expected).to_string(), expected);
    }

    #[test]
    fn an_audit_of_the_lines_gives_the_same_report() {
        let report = audit(lines()).expect("tiles");
        assert_eq!((report.steps, report.samples, report.redone_samples), (2, 64, 8));
        assert_eq!(audit(&lines()[..1]), Ok(AuditReport::default()));
    }

    #[test]
    fn an_audit_names_the_line_that_is_wrong() {
        let text = "ledger line 2: step 11 is not the next, expected step 10";
        check_audit_refused(|lines| drop(lines.remove(1)), text);
        check_audit_refused(
            |lines| lines[2].truncate(15),
            "ledger line 3: expected step=… epoch=… attempt=… shares=…, got \
             \"step=11 epoch=1\"",
        );
        check_audit_refused(
            |lines| lines[1] = lines[1].replace("5..8", "5..+8"),
            "ledger line 2: expected the end of a range, got \"+8\"",
        );
        check_audit_refused(
            |lines| lines[1] = lines[1].replace("0..5", "0..05"),
            "ledger line 2: expected the end of a range, got \"05\"",
        );
        check_audit_refused(
            |lines| lines[0] = lines[0].replace("v1", "v2"),
            "ledger line 1: expected p2ptrain-ledger v1 job=… first=… items=… samples=…, got \
             \"p2ptrain-ledger v2 job=587ddb0e03b4fcbb2…\"",
        );
        check_audit_refused(Vec::clear, "ledger line 1: expected a ledger's first line, got \"\"");
        check_audit_refused(
            |lines| lines[1].push_str(&" ".repeat(limits::LEDGER_LINE_BYTES_MAX)),
            "ledger line 2: line of 1048811 bytes, at most 1048576 are allowed",
        );
    }

    fn some_entry() -> impl Strategy<Value = LedgerEntry> {
        let ranges =
            prop::collection::vec((any::<u32>(), any::<u32>()).prop_map(|(a, b)| a..b), 0..4);
        let share = (any::<u8>(), any::<bool>(), ranges).prop_map(|(id, redone, ranges)| Share {
            peer: peer(id),
            redone,
            ranges,
        });
        (any::<u64>(), any::<u64>(), prop::collection::vec(share, 0..5))
            .prop_map(|(step, epoch, shares)| LedgerEntry { epoch, ..entry(step, shares) })
    }

    proptest! {
        #[test]
        fn entries_come_back_from_their_lines(entry in some_entry()) {
            prop_assert_eq!(LedgerEntry::parse_line(&entry.to_line()), Ok(entry));
        }

        #[test]
        fn a_line_that_parses_is_the_only_form_of_its_entry(
            line in "step=[0-9+]{0,3} epoch=[01]{1,2} attempt=[0a]{63,64} shares=[+01]{0,1}(0{64}:[0-9.,]{0,5})?"
        ) {
            if let Ok(entry) = LedgerEntry::parse_line(&line) {
                prop_assert_eq!(entry.to_line(), line);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(line in "\\PC{0,120}") {
            let _ = LedgerEntry::parse_line(&line);
            let _ = LedgerHeader::parse_line(&line);
        }

        #[test]
        fn entries_are_accepted_exactly_where_they_count_each_item_once(
            ranges in prop::collection::vec((0_u32..9, 0_u32..9), 0..5)
        ) {
            let ranges: Vec<Range<u32>> = ranges.into_iter().map(|(a, b)| a..b).collect();
            let once = (0..9).all(|item| {
                ranges.iter().filter(|range| range.contains(&item)).count() == usize::from(item < 8)
            });
            let sound = ranges.iter().all(|range| !range.is_empty());
            let shares = (0..).zip(ranges).map(|(id, range)| share(id, &[range])).collect();
            prop_assert_eq!(entry(10, shares).verify(&header()).is_ok(), once && sound);
        }
    }
}
