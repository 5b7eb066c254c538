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
    let mut line = 0;
    for text in lines {
        line += 1;
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
