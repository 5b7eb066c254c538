//! `p2ptrain ledger`: the audit of the account of samples.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use p2ptrain_protocol::ledger::{AuditReport, LedgerHeader, audit};
use p2ptrain_protocol::limits::LEDGER_LINE_BYTES_MAX;
use serde_json::{Value, json};
use walkdir::WalkDir;

use crate::cli::{ExitKind, Global, Hint as _, LedgerArgs, Output, human_number};

/// Ledgers of one audit; a folder with more is surely not meant.
const FILES_MAX: usize = 100_000;
/// Ranges of steps shown for a job.
const RANGES_SHOWN: usize = 8;

/// Audits ledgers: exit status 1 where samples were lost or doubled.
///
/// # Errors
/// There is no ledger, or one cannot be read.
pub(super) async fn ledger(global: &Global, args: &LedgerArgs) -> anyhow::Result<ExitKind> {
    let root = args.folder.clone().unwrap_or_else(|| global.node_dir());
    let audits: Vec<Audit> =
        find(&root)?.iter().map(|path| Audit::of(path)).collect::<Result<_, _>>()?;
    let sound = audits.iter().all(|audit| audit.result.is_ok());
    let steps = steps_by_job(&audits);
    let mut lines: Vec<String> = audits.iter().map(Audit::text).collect();
    lines.extend(steps.iter().map(|(job, ranges)| job_text(job, ranges)));
    if !sound {
        let wrong = audits.iter().filter(|audit| audit.result.is_err()).count();
        lines.push(format!("{wrong} of {} ledgers are wrong", audits.len()));
    }
    let jobs: Vec<Value> = steps
        .iter()
        .map(|(job, ranges)| {
            let steps: Vec<[u64; 2]> = ranges.iter().map(|it| [it.start, it.end]).collect();
            json!({ "job": job, "steps": steps })
        })
        .collect();
    let files: Vec<Value> = audits.iter().map(Audit::json).collect();
    let value = json!({ "sound": sound, "files": files, "jobs": jobs });
    Output::new(global).result(&lines.join("\n"), &value)?;
    Ok(if sound { ExitKind::Success } else { ExitKind::Failure })
}

/// The file itself, or the ledgers below a folder, by path.
fn find(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let metadata = root
        .metadata()
        .with_context(|| format!("cannot read {}", root.display()))
        .hint("name a ledger, or the folder of a node")?;
    if !metadata.is_dir() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in WalkDir::new(root).sort_by_file_name() {
        let entry = entry.with_context(|| format!("cannot read all of {}", root.display()))?;
        let name = entry.file_name().as_encoded_bytes();
        let named = name.starts_with(b"ledger-") && name.ends_with(b".txt");
        if named && entry.file_type().is_file() {
            anyhow::ensure!(
                found.len() < FILES_MAX,
                "{} has more than {FILES_MAX} ledgers",
                root.display()
            );
            found.push(entry.into_path());
        }
    }
    if found.is_empty() {
        let error = anyhow::anyhow!("there is no ledger below {}", root.display());
        return Err(error).hint("name a ledger, or the folder of a node that has trained");
    }
    Ok(found)
}

/// What one file proves.
struct Audit {
    path: PathBuf,
    header: Option<LedgerHeader>,
    result: Result<AuditReport, String>,
    /// The last line has no end: the node was stopped while it wrote. It does not count.
    cut_short: bool,
}

impl Audit {
    fn of(path: &Path) -> anyhow::Result<Self> {
        let read = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(read)?;
        anyhow::ensure!(
            file.metadata().with_context(read)?.is_file(),
            "{} is no file",
            path.display()
        );
        let mut lines = Lines { reader: BufReader::new(file), cut_short: false, failed: None };
        let mut header = None;
        let mut first = true;
        let result = audit(lines.by_ref().inspect(|line| {
            if std::mem::take(&mut first) {
                header = LedgerHeader::parse_line(line).ok();
            }
        }));
        if let Some(error) = lines.failed {
            return Err(error).with_context(read);
        }
        let result = result.map_err(|error| error.to_string());
        Ok(Self { path: path.to_owned(), header, result, cut_short: lines.cut_short })
    }

    fn text(&self) -> String {
        let path = self.path.display();
        let mut text = match &self.result {
            Ok(report) => format!("{path}: {report}"),
            Err(error) => format!("{path}: WRONG, {error}"),
        };
        if self.cut_short {
            text.push_str("\n  the last line is unfinished and was left out");
        }
        text
    }

    fn json(&self) -> Value {
        let header = self.header.as_ref();
        let mut value = json!({
            "path": self.path.display().to_string(),
            "sound": self.result.is_ok(),
            "job": header.map(|header| header.job.to_hex()),
            "first": header.map(|header| header.first.0),
            "cut_short": self.cut_short,
            "error": self.result.as_ref().err(),
        });
        if let Ok(report) = &self.result {
            let by_peer: BTreeMap<String, u64> =
                report.samples_by_peer.iter().map(|(peer, n)| (peer.to_hex(), *n)).collect();
            let figures = json!({
                "steps": report.steps,
                "samples": report.samples,
                "samples_by_peer": by_peer,
                "redone_steps": report.redone_steps,
                "redone_shares": report.redone_shares,
                "redone_samples": report.redone_samples,
            });
            if let (Value::Object(all), Value::Object(more)) = (&mut value, figures) {
                all.extend(more);
            }
        }
        value
    }
}

/// Lines of bounded length, without their ends.
struct Lines {
    reader: BufReader<File>,
    cut_short: bool,
    failed: Option<io::Error>,
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        // Longer lines arrive cut and are refused for their length.
        let limit = LEDGER_LINE_BYTES_MAX as u64 + 2;
        let mut line = Vec::new();
        if let Err(error) = self.reader.by_ref().take(limit).read_until(b'\n', &mut line) {
            self.failed = Some(error);
            return None;
        }
        if line.is_empty() {
            return None;
        }
        if line.pop_if(|byte| *byte == b'\n').is_none() && (line.len() as u64) < limit {
            self.cut_short = true;
            return None;
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

/// The steps that sound ledgers of each job cover, as ranges that do not touch.
fn steps_by_job(audits: &[Audit]) -> BTreeMap<String, Vec<Range<u64>>> {
    let mut jobs: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
    for audit in audits {
        if let (Some(header), Ok(report)) = (&audit.header, &audit.result) {
            let (first, steps) = (header.first.0, report.steps);
            jobs.entry(header.job.to_hex()).or_default().push(first..first + steps);
        }
    }
    for ranges in jobs.values_mut() {
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges.drain(..) {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        *ranges = joined;
    }
    jobs
}

fn job_text(job: &str, ranges: &[Range<u64>]) -> String {
    let count: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let shown: Vec<String> =
        ranges.iter().take(RANGES_SHOWN).map(|it| format!("{}..{}", it.start, it.end)).collect();
    let more = if ranges.len() > RANGES_SHOWN { ", ..." } else { "" };
    let count = human_number(count);
    format!("job {}: {count} committed steps on record, {}{more}", &job[..8], shown.join(", "))
}
