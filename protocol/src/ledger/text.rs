//! The text form of a ledger: one line for the header, one for each entry.

use std::fmt::Write;
use std::ops::Range;
use std::str::FromStr;

use super::{LedgerEntry, LedgerError, LedgerHeader, Share};
use crate::id::Step;
use crate::limits;

const FIRST_WORDS: &str = "p2ptrain-ledger v1";
/// Bytes of a wrong text that an error shows.
const SHOWN_BYTES_MAX: usize = 40;

impl LedgerHeader {
    /// The first line of a ledger, without its end.
    pub fn to_line(&self) -> String {
        let Self { job, first, items, samples_per_item } = self;
        format!("{FIRST_WORDS} job={job:#} first={first} items={items} samples={samples_per_item}")
    }

    /// The header in a first line.
    pub fn parse_line(line: &str) -> Result<Self, LedgerError> {
        check_length(line)?;
        let syntax = || syntax("p2ptrain-ledger v1 job=… first=… items=… samples=…", line);
        let fields = line.strip_prefix(FIRST_WORDS).ok_or_else(syntax)?;
        let fields = fields.strip_prefix(' ').ok_or_else(syntax)?;
        let [job, first, items, samples] =
            fields_of(fields, ["job", "first", "items", "samples"]).ok_or_else(syntax)?;
        let header = Self {
            job: parse("a job in 64 hex characters", job)?,
            first: Step(number("a step", first)?),
            items: number("a number of micro-batches", items)?,
            samples_per_item: number("a number of samples", samples)?,
        };
        header.verify()?;
        Ok(header)
    }
}

impl LedgerEntry {
    /// The line of a step, without its end.
    pub fn to_line(&self) -> String {
        let Self { step, epoch, attempt, shares } = self;
        let mut line = format!("step={step} epoch={epoch} attempt={attempt:#} shares=");
        for (i, share) in shares.iter().enumerate() {
            let separator = if i > 0 { ";" } else { "" };
            let redone = if share.redone { "+" } else { "" };
            // Writing into a string can't fail.
            let _ = write!(line, "{separator}{redone}{:#}:", share.peer);
            for (i, range) in share.ranges.iter().enumerate() {
                let separator = if i > 0 { "," } else { "" };
                let _ = write!(line, "{separator}{}..{}", range.start, range.end);
            }
        }
        line
    }

    /// The entry in a line. Whether its shares tile the step is checked by [`verify`](Self::verify).
    pub fn parse_line(line: &str) -> Result<Self, LedgerError> {
        check_length(line)?;
        let [step, epoch, attempt, shares] =
            fields_of(line, ["step", "epoch", "attempt", "shares"])
                .ok_or_else(|| syntax("step=… epoch=… attempt=… shares=…", line))?;
        let step = Step(number("a step", step)?);
        let got = if shares.is_empty() { 0 } else { 1 + shares.matches(';').count() };
        let limit = limits::LEDGER_SHARES_MAX;
        if got > limit {
            return Err(LedgerError::TooManyShares { step, limit, got });
        }
        Ok(Self {
            step,
            epoch: number("an epoch", epoch)?,
            attempt: parse("a digest in 64 hex characters", attempt)?,
            shares: split(shares, ';').map(share).collect::<Result<_, _>>()?,
        })
    }
}

fn share(text: &str) -> Result<Share, LedgerError> {
    let (peer, ranges) =
        text.split_once(':').ok_or_else(|| syntax("a share PEER:FROM..TO,…", text))?;
    let (redone, peer) = match peer.strip_prefix('+') {
        Some(peer) => (true, peer),
        None => (false, peer),
    };
    let peer = parse("a peer in 64 hex characters", peer)?;
    let ranges = split(ranges, ',').map(range).collect::<Result<_, _>>()?;
    Ok(Share { peer, redone, ranges })
}

fn range(text: &str) -> Result<Range<u32>, LedgerError> {
    let (start, end) = text.split_once("..").ok_or_else(|| syntax("a range FROM..TO", text))?;
    Ok(number("the start of a range", start)?..number("the end of a range", end)?)
}

/// The values of `name=value` fields that stand in this order with single spaces between them.
fn fields_of<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Option<[&'a str; N]> {
    let mut fields = text.split(' ');
    let mut values = [""; N];
    for (value, name) in values.iter_mut().zip(names) {
        *value = fields.next()?.strip_prefix(name)?.strip_prefix('=')?;
    }
    fields.next().is_none().then_some(values)
}

/// The parts of a list, none of an empty one.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    text.split(separator).filter(move |_| !text.is_empty())
}

/// A number of digits alone: the form of every value is unique, so no `+1` and no `01`.
fn number<T: FromStr>(expected: &'static str, text: &str) -> Result<T, LedgerError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return Err(syntax(expected, text));
    }
    parse(expected, text)
}

fn parse<T: FromStr>(expected: &'static str, text: &str) -> Result<T, LedgerError> {
    text.parse().map_err(|_| syntax(expected, text))
}

fn check_length(line: &str) -> Result<(), LedgerError> {
    let (limit, got) = (limits::LEDGER_LINE_BYTES_MAX, line.len());
    if got > limit { Err(LedgerError::LineTooLong { limit, got }) } else { Ok(()) }
}

fn syntax(expected: &'static str, got: &str) -> LedgerError {
    let got = match got.char_indices().find(|&(at, _)| at >= SHOWN_BYTES_MAX) {
        Some((at, _)) => format!("{}…", &got[..at]),
        None => got.to_owned(),
    };
    LedgerError::Syntax { expected, got }
}
