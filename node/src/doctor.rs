//! `p2ptrain doctor`: looks at this machine and says in words what it finds and what to do.
//!
//! It starts no node and changes nothing; a probe file in the node's folder is removed at once.

pub(crate) mod machine;
mod network;
mod storage;

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

/// What to examine.
#[derive(Clone, Debug)]
pub struct Question {
    /// The node's folder.
    pub dir: PathBuf,
    /// Port of the control connections; 0 for any.
    pub port: u16,
    /// UDP port of the gradient connections; 0 for any.
    pub bulk_port: u16,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One finding a subject.
    pub findings: Vec<Finding>,
}

/// What was found about one subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The subject, in one word or two.
    pub subject: &'static str,
    /// How good or bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What to do about it.
    #[serde(rename = "try", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The figures, for programs.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// To know about.
    Note,
    /// It works, slower or with fewer possibilities.
    Warn,
    /// A node cannot run.
    Bad,
}

/// Examines this machine. Takes less than a second.
pub fn examine(question: &Question) -> Report {
    let mut findings = vec![machine::processor(), machine::memory(), machine::graphics()];
    findings.extend([storage::folder(&question.dir), storage::clock()]);
    findings.push(network::ports(question.port, question.bulk_port));
    findings.push(network::addresses());
    findings.push(network::buffers());
    findings.push(network::segmentation());
    findings.push(network::discovery());
    Report { findings }
}

impl Report {
    /// True where a node can run.
    pub fn sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Bad)
    }

    /// The report for people.
    pub fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let (mark, code) = match finding.verdict {
                Verdict::Good => ("ok  ", "32"),
                Verdict::Note => ("note", "36"),
                Verdict::Warn => ("warn", "33"),
                Verdict::Bad => ("BAD ", "31;1"),
            };
            let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{mark}  {:<11} {}", finding.subject, folded(&finding.text));
            if let Some(advice) = &finding.advice {
                let _ = writeln!(out, "      {:<11} try: {}", "", folded(advice));
            }
        }
        let count = |verdict| self.findings.iter().filter(|f| f.verdict == verdict).count();
        let last = match (count(Verdict::Bad), count(Verdict::Warn)) {
            (0, 0) => "This machine can take part.".to_owned(),
            (0, warnings) => format!("This machine can take part; {warnings} to look at."),
            (bad, _) => format!("A node cannot run here until {bad} above marked BAD are mended."),
        };
        out + "\n" + &last
    }
}

impl Finding {
    fn new(subject: &'static str, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { subject, verdict, text: text.into(), advice: None, data: Value::Null }
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    fn data(mut self, data: Value) -> Self {
        self.data = data;
        self
    }
}

/// Breaks long text at words, aligned below its start.
fn folded(text: &str) -> String {
    const WIDTH: usize = 80;
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > WIDTH {
            out.push_str("\n                  ");
            column = 0;
        }
        if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_finding_is_named_and_makes_the_report_unsound() {
        let good = Finding::new("processor", Verdict::Good, "2 cores");
        let bad = Finding::new("folder", Verdict::Bad, "cannot be written").advice("use --dir");
        let report = Report { findings: vec![good.clone(), bad] };
        assert!(!report.sound());
        let text = report.text(false);
        assert!(text.contains("BAD   folder      cannot be written\n"), "{text}");
        assert!(text.contains("try: use --dir"), "{text}");
        assert!(
            Report { findings: vec![good] }.text(false).ends_with("This machine can take part.")
        );
    }

    #[test]
    fn this_machine_is_examined_without_escape_codes_and_in_json() {
        let dir = tempfile::tempdir().expect("temporary folder is writable");
        let report = examine(&Question { dir: dir.path().join("node"), port: 0, bulk_port: 0 });
        assert!(report.findings.len() >= 10);
        assert!(!report.text(false).contains('\x1b'));
        let json = serde_json::to_value(&report).expect("a report is plain data");
        assert_eq!(json["findings"][0]["subject"], "processor");
        assert_eq!(std::fs::read_dir(dir.path()).expect("exists").count(), 0, "nothing is left");
    }
}
