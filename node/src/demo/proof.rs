//! What must hold at the end, read from what the nodes have written: not from what they say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use p2ptrain_kernels::model::{self, Sampling};
use p2ptrain_kernels::{Executor, Params};
use p2ptrain_protocol::id::PeerId;
use p2ptrain_protocol::ledger::{self, LedgerEntry};
use serde::Serialize;

use super::kill::Story;
use super::nodes::Final;
use crate::checkpoint::{self, Folder, Info};
use crate::job::{JobSpec, ModelSpec};
use crate::runtime::prepare::{gpt_config, precision_of};

/// The held-out loss must fall to this share of the untrained one.
const LEARNED: f32 = 0.9;
/// What the model continues, and by how many bytes.
const PROMPT: &str = "fn ";
const SAMPLE_BYTES: usize = 240;
/// A node that was killed must be back if there was so much time for it.
const RETURN_MAX_S: f32 = 20.0;
/// Bytes of a ledger that are read.
const LEDGER_BYTES_MAX: u64 = 1 << 30;

/// What was found, and what is wrong.
#[derive(Debug, Default, Serialize)]
pub(super) struct Proof {
    /// What does not hold, in words. Empty in a sound run.
    pub(super) failures: Vec<String>,
    pub(super) nodes: usize,
    pub(super) parameters: u64,
    pub(super) precision: &'static str,
    pub(super) steps: u64,
    pub(super) samples_per_step: u32,
    pub(super) untrained_loss: Option<f32>,
    pub(super) held_out_loss: Option<f32>,
    pub(super) kill: Option<Absence>,
    pub(super) account: Option<Account>,
    pub(super) replicas: Replicas,
    pub(super) checkpoint: Option<PathBuf>,
    pub(super) prompt: &'static str,
    pub(super) sample: Option<String>,
}

/// The kill, with what the account of samples says of it.
#[derive(Debug, Serialize)]
pub(super) struct Absence {
    #[serde(flatten)]
    pub(super) story: Story,
    /// Steps that were committed without the node.
    pub(super) steps_without: u64,
    /// The step from which the node counts again.
    pub(super) back_at_step: Option<u64>,
}

/// The audit of the witness's ledger.
#[derive(Debug, Default, Serialize)]
pub(super) struct Account {
    /// Whose ledger.
    pub(super) witness: String,
    pub(super) steps: u64,
    pub(super) samples: u64,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// Samples that survivors computed again in the step of the kill.
    pub(super) redone_samples: u64,
    pub(super) samples_by_node: BTreeMap<String, u64>,
    /// Nodes whose own ledgers say the same of the steps that they saw.
    pub(super) confirmed_by: Vec<String>,
}

/// The nodes' final parameters.
#[derive(Debug, Default, Serialize)]
pub(super) struct Replicas {
    pub(super) equal: bool,
    /// Root digest of the state, of each node that has one.
    pub(super) roots: BTreeMap<String, String>,
}

/// Looks at everything. Never fails: what can't be read is a failure of the run.
pub(super) fn collect(
    spec: &JobSpec,
    witness: usize,
    finals: &[Final],
    story: Option<Story>,
) -> Proof {
    let ModelSpec::Gpt(gpt) = &spec.model;
    let mut proof = Proof {
        nodes: finals.len(),
        parameters: gpt.parameters(),
        precision: match spec.precision {
            crate::job::Precision::F32 => "f32",
            crate::job::Precision::Bf16 => "bf16",
        },
        steps: spec.steps,
        samples_per_step: spec.batch.global,
        prompt: PROMPT,
        ..Proof::default()
    };
    let witness = &finals[witness];
    proof.learned(witness);
    let entries = match proof.audit(spec, witness, finals) {
        Ok(entries) => entries,
        Err(error) => {
            proof.failures.push(format!("the account of samples: {error:#}"));
            Vec::new()
        }
    };
    if let Some(story) = story {
        proof.absence(story, finals, &entries);
    }
    proof.compare(spec, finals);
    if let Err(error) = proof.write_sample(spec, witness) {
        proof.failures.push(format!("no text from the final checkpoint: {error:#}"));
    }
    proof
}

impl Proof {
    fn learned(&mut self, witness: &Final) {
        let evals = witness.status.as_ref().and_then(|status| status.job.as_ref());
        let evals = evals.map_or(&[][..], |job| &job.evals);
        let at = |step| evals.iter().find(|point| point.step == step).map(|point| point.loss);
        self.untrained_loss = at(0);
        self.held_out_loss = at(self.steps);
        match (self.untrained_loss, self.held_out_loss) {
            (Some(before), Some(after)) if after < before * LEARNED => {}
            (Some(before), Some(after)) => self.failures.push(format!(
                "the model did not learn: held-out loss {after:.3}, untrained {before:.3}"
            )),
            (None, _) => self.failures.push("the untrained loss was not measured".to_owned()),
            (_, None) => self.failures.push("the final held-out loss was not measured".to_owned()),
        }
    }

    /// Audits the witness's ledger, and compares it with those of the others.
    fn audit(
        &mut self,
        spec: &JobSpec,
        witness: &Final,
        finals: &[Final],
    ) -> anyhow::Result<Vec<LedgerEntry>> {
        let names = names_of(finals);
        let files = ledgers(&witness.dir)?;
        let [lines] = files.as_slice() else {
            anyhow::bail!("{} has {} ledgers, not one of all steps", witness.name, files.len());
        };
        let report = ledger::audit(lines)?;
        let entries = entries(lines)?;
        let (steps, samples) = (spec.steps, spec.steps * u64::from(spec.batch.global));
        let mut account = Account {
            witness: witness.name.clone(),
            steps: report.steps,
            samples: report.samples,
            // The audit refuses a ledger in which samples of a step are missing or counted twice.
            lost: samples.saturating_sub(report.samples),
            doubled: report.samples.saturating_sub(samples),
            redone_samples: report.redone_samples,
            ..Account::default()
        };
        for (peer, samples) in &report.samples_by_peer {
            let name = names.get(peer).cloned().unwrap_or_else(|| peer.short());
            account.samples_by_node.insert(name, *samples);
        }
        let begins_at = entries.first().map_or(0, |entry| entry.step.0);
        if (begins_at, report.steps, report.samples) != (0, steps, samples) {
            self.failures.push(format!(
                "the account of samples holds {} steps from step {begins_at} and {} samples; \
                 the run has {steps} steps and {samples} samples",
                report.steps, report.samples
            ));
        }
        for node in finals.iter().filter(|node| node.name != witness.name) {
            match confirms(node, &entries) {
                Ok(()) => account.confirmed_by.push(node.name.clone()),
                Err(error) => {
                    self.failures.push(format!("the account of {}: {error:#}", node.name));
                }
            }
        }
        self.account = Some(account);
        Ok(entries)
    }

    fn absence(&mut self, story: Story, finals: &[Final], entries: &[LedgerEntry]) {
        let names = names_of(finals);
        let is_victim = |peer: &PeerId| names.get(peer).is_some_and(|name| *name == story.node);
        let counts = |entry: &&LedgerEntry| entry.shares.iter().any(|share| is_victim(&share.peer));
        let after = || entries.iter().filter(|entry| entry.step.0 >= story.step_before);
        let steps_without = after().filter(|entry| !counts(entry)).count() as u64;
        let first_without = after().find(|entry| !counts(entry)).map(|entry| entry.step);
        let back = first_without
            .and_then(|first| after().filter(|entry| entry.step > first).find(counts))
            .map(|entry| entry.step.0);
        let alone_s = steps_without as f32 * story.step_s;
        if story.next_commit_s.is_none() {
            self.failures.push(format!("no commit was seen after {} was killed", story.node));
        } else if back.is_none() && first_without.is_some() && alone_s > RETURN_MAX_S {
            self.failures.push(format!("{} did not come back", story.node));
        }
        self.kill = Some(Absence { story, steps_without, back_at_step: back });
    }

    /// Compares the final states of all nodes that were there at the end.
    fn compare(&mut self, spec: &JobSpec, finals: &[Final]) {
        for node in finals.iter().filter(|node| !node.too_late) {
            match final_checkpoint(node, spec.steps) {
                Ok((path, info)) => {
                    self.replicas.roots.insert(node.name.clone(), info.manifest.root.to_hex());
                    self.checkpoint.get_or_insert(path);
                }
                Err(error) => {
                    self.failures.push(format!("no final checkpoint of {}: {error:#}", node.name));
                }
            }
        }
        let mut roots = self.replicas.roots.values();
        let first = roots.next();
        self.replicas.equal = first.is_some() && roots.all(|root| Some(root) == first);
        if first.is_some() && !self.replicas.equal {
            self.failures.push("the nodes' final parameters differ".to_owned());
        }
    }

    fn write_sample(&mut self, spec: &JobSpec, witness: &Final) -> anyhow::Result<()> {
        let (path, _) = final_checkpoint(witness, spec.steps)?;
        let checkpoint = checkpoint::load(&path, None)?;
        self.checkpoint = Some(path);
        let params = Params { blocks: checkpoint.state.params };
        let program = model::gpt(&gpt_config(spec), 1)?;
        let threads = crate::profile::usable_cores();
        let mut executor = Executor::inference(&program, threads, precision_of(spec))?;
        let prompt: Vec<i32> = PROMPT.bytes().map(i32::from).collect();
        let sampling = Sampling { temperature: 0.8, top_k: 40, seed: spec.seed };
        let tokens = model::generate(&mut executor, &params, &prompt, SAMPLE_BYTES, &sampling)?;
        let bytes: Vec<u8> =
            tokens.iter().map(|token| u8::try_from(*token).unwrap_or(b'?')).collect();
        self.sample = Some(format!("{PROMPT}{}", String::from_utf8_lossy(&bytes)));
        Ok(())
    }
}

/// Names by peer id, as far as the nodes have told them.
fn names_of(finals: &[Final]) -> BTreeMap<PeerId, String> {
    let of = |node: &Final| {
        let peer = node.status.as_ref()?.peer.parse().ok()?;
        Some((peer, node.name.clone()))
    };
    finals.iter().filter_map(of).collect()
}

/// A node's ledgers: the lines of each, in the order of their first steps.
fn ledgers(dir: &Path) -> anyhow::Result<Vec<Vec<String>>> {
    let job = job_folder(dir)?;
    let mut paths: Vec<PathBuf> = fs::read_dir(&job)
        .with_context(|| format!("cannot read {}", job.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ledger-") && name.ends_with(".txt")
        })
        .collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let at = || format!("cannot read {}", path.display());
        let bytes = fs::metadata(path).with_context(at)?.len();
        anyhow::ensure!(bytes <= LEDGER_BYTES_MAX, "{} is too large", path.display());
        let text = fs::read_to_string(path).with_context(at)?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    paths.iter().map(read).collect()
}

/// The entries of a ledger's lines, its header left out.
fn entries(lines: &[String]) -> anyhow::Result<Vec<LedgerEntry>> {
    let entries = lines.iter().skip(1).map(|line| LedgerEntry::parse_line(line));
    Ok(entries.collect::<Result<_, _>>()?)
}

/// Whether what a node wrote of the steps that it saw is what the witness wrote.
fn confirms(node: &Final, witness: &[LedgerEntry]) -> anyhow::Result<()> {
    for mut lines in ledgers(&node.dir)? {
        // A node that was killed may have been in the middle of a line.
        if lines.last().is_some_and(|line| LedgerEntry::parse_line(line).is_err()) {
            lines.pop();
        }
        if lines.len() < 2 {
            continue;
        }
        ledger::audit(&lines)?;
        for entry in entries(&lines)? {
            let same = witness.iter().find(|other| other.step == entry.step);
            anyhow::ensure!(
                same == Some(&entry),
                "it differs from the witness's at {}",
                entry.step
            );
        }
    }
    Ok(())
}

/// A node's checkpoint of the last step.
fn final_checkpoint(node: &Final, steps: u64) -> anyhow::Result<(PathBuf, Info)> {
    let folder = Folder::open(&job_folder(&node.dir)?.join("checkpoints"))?;
    let (entries, damaged) = folder.list()?;
    if let Some(entry) = entries.into_iter().find(|entry| entry.step.0 == steps) {
        let info = checkpoint::inspect(&entry.path)?;
        return Ok((entry.path, info));
    }
    match damaged.into_iter().next() {
        Some(error) => Err(error.into()),
        None => anyhow::bail!("there is none in {}", folder.path().display()),
    }
}

/// The folder of the only job that a node of the demo has.
fn job_folder(dir: &Path) -> anyhow::Result<PathBuf> {
    let jobs = dir.join("jobs");
    let entries = fs::read_dir(&jobs).with_context(|| format!("cannot read {}", jobs.display()))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    match (folders.pop(), folders.is_empty()) {
        (Some(folder), true) => Ok(folder),
        (None, _) => anyhow::bail!("there is no job in {}", jobs.display()),
        _ => anyhow::bail!("there are several jobs in {}", jobs.display()),
    }
}
