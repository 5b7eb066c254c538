//! How the demo's end is told.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::proof::{Absence, Account, Proof};
use crate::cli::{human_duration, human_number};
use crate::status::clean;

/// Characters of a line of the model's text.
const SAMPLE_CHARS_MAX: usize = 76;
const SAMPLE_LINES_MAX: usize = 12;

/// The end of a demo; `{}` prints it for people.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Seconds from the first committed step to the last.
    seconds: f32,
    /// The text that was trained on.
    text: String,
    /// The demo's folder.
    folder: PathBuf,
    #[serde(flatten)]
    proof: Proof,
    /// What does not hold. Empty in a sound run.
    #[serde(skip)]
    pub(super) failures: Vec<String>,
}

impl Report {
    pub(super) fn new(proof: Proof, text: String, seconds: f32, folder: &Path) -> Self {
        let failures = proof.failures.clone();
        Self { seconds, text, folder: folder.to_owned(), proof, failures }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proof, .. } = self;
        writeln!(f)?;
        row(f, "text", &self.text)?;
        let nodes = if proof.nodes == 1 { "1 node" } else { &format!("{} nodes", proof.nodes) };
        let training = format!(
            "{nodes}, {:.1} million parameters in {}, {} steps of {} samples in {}",
            proof.parameters as f64 / 1e6,
            proof.precision,
            human_number(proof.steps),
            proof.samples_per_step,
            human_duration(self.seconds),
        );
        row(f, "training", &training)?;
        let loss = |loss: Option<f32>| loss.map_or("?".to_owned(), |loss| format!("{loss:.3}"));
        let losses = format!(
            "{} nats per byte; untrained {}",
            loss(proof.held_out_loss),
            loss(proof.untrained_loss)
        );
        row(f, "held-out loss", &losses)?;
        if let Some(kill) = &proof.kill {
            row_of_kill(f, kill)?;
        }
        if let Some(account) = &proof.account {
            row_of_account(f, account)?;
        }
        let roots = &proof.replicas.roots;
        let replicas = match (roots.values().next(), proof.replicas.equal) {
            (Some(root), true) => {
                let root: String = root.chars().take(12).collect();
                format!("{} of {} nodes hold the same final state {root}", roots.len(), proof.nodes)
            }
            _ => "NOT EQUAL".to_owned(),
        };
        row(f, "replicas", &replicas)?;
        if let Some(path) = &proof.checkpoint {
            row(f, "checkpoint", &path.display().to_string())?;
        }
        row(f, "logs", &format!("{}/*/node.log", self.folder.display()))?;
        if let Some(sample) = &proof.sample {
            writeln!(f, "\nThe model continues {:?}:", proof.prompt)?;
            for line in sample.lines().take(SAMPLE_LINES_MAX) {
                writeln!(f, "  {}", clean(line, SAMPLE_CHARS_MAX).trim_end())?;
            }
        }
        if self.failures.is_empty() {
            write!(f, "\nThe demo is done: everything holds.")
        } else {
            write!(f, "\nThe demo FAILED:")?;
            self.failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "{name:<14} {value}")
}

fn row_of_kill(f: &mut fmt::Formatter<'_>, kill: &Absence) -> fmt::Result {
    let story = &kill.story;
    let next = story.next_commit_s.map_or("no commit after it".to_owned(), |seconds| {
        format!("next commit {seconds:.2} s later (a step took {:.2} s)", story.step_s)
    });
    let text = format!("{} after step {}; {next}", story.node, story.step_before);
    row(f, "killed", &text)?;
    let back = match (kill.back_at_step, story.back_s) {
        (Some(step), Some(seconds)) => format!(
            "step {}, {} after its start; {} steps went on without it",
            step + 1,
            human_duration(seconds),
            kill.steps_without
        ),
        (Some(step), None) => format!("step {}", step + 1),
        (None, _) => "not before the end of this short training".to_owned(),
    };
    row(f, "back", &back)
}

fn row_of_account(f: &mut fmt::Formatter<'_>, account: &Account) -> fmt::Result {
    let text = format!(
        "{} steps, {} samples: {} lost, {} doubled, {} done again",
        human_number(account.steps),
        human_number(account.samples),
        account.lost,
        account.doubled,
        account.redone_samples
    );
    row(f, "account", &text)?;
    let by_node: Vec<String> = account
        .samples_by_node
        .iter()
        .map(|(name, samples)| format!("{name} {}", human_number(*samples)))
        .collect();
    row(f, "", &by_node.join(", "))
}
