//! `p2ptrain bench`: training steps of this machine alone, by the computation and the update of a
//! node, without network.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use p2ptrain_kernels::{Executor, Input, Params, Program};
use serde_json::{Value, json};

use super::export::initial_params;
use crate::checkpoint::{self, Alias};
use crate::cli::{
    BenchArgs, BenchKind, BenchPrecision, ExitKind, Global, Hint as _, Output, UsageError,
    human_bytes, human_number,
};
use crate::data::{Samples, Source, Store};
use crate::job::{
    self, BatchSpec, GptSpec, JobFile, JobSpec, ModelSpec, OptimizerSpec, Precision, ScheduleKind,
    ScheduleSpec,
};
use crate::optimizer::Optimizer;
use crate::profile;
use crate::runtime::prepare::{precision_of, program_of};
use crate::state::TrainState;

/// Steps before the measurement: caches and lazily built tables.
const WARMUP_STEPS: u64 = 2;
/// Tokens of a file of batches.
const BATCHES_BYTES_MAX: u64 = 4 << 30;

/// Measures one part of the trainer.
///
/// # Errors
/// The job, the weights or the batches can't be used, or the result can't be written.
pub(super) async fn bench(global: &Global, args: &BenchArgs) -> anyhow::Result<ExitKind> {
    let BenchKind::Step = args.kind;
    let mut file = match &args.job {
        Some(path) => job::parse(path).map_err(|error| UsageError(error.to_string()))?,
        None => JobFile { spec: default_job(), ..JobFile::new([] as [PathBuf; 0]) },
    };
    match args.precision {
        Some(BenchPrecision::F32) => file.spec.precision = Precision::F32,
        Some(BenchPrecision::Bf16) => file.spec.precision = Precision::Bf16,
        None => {}
    }
    file.init = args.init.clone().or(file.init);
    let threads = args.threads.map_or_else(profile::usable_cores, usize::from);
    let stores = tempfile::tempdir().context("cannot make a temporary folder for the data")?;
    let batches = Batches::of(&file, args.batches.as_deref(), stores.path())?;
    let program = program_of(&file.spec)?;
    let params = initial_params(&file, &program)?;
    let mut dump = match &args.dump {
        Some(folder) => Some(Dump::new(folder, &file.spec, &program, &params)?),
        None => None,
    };
    let mut trainer = Trainer::new(&file.spec, &program, params, threads)?;
    let losses = args.losses || dump.is_some();
    let warmup = if losses { 0 } else { WARMUP_STEPS };
    let mut figures = Figures::default();
    for step in 0..warmup + u64::from(args.steps) {
        let mut fill = |item: u32, tokens: &mut [i32], targets: &mut [i32]| {
            batches.fill(&file.spec, step, item, tokens, targets)?;
            dump.as_mut().map_or(Ok(()), |dump| dump.add(&file.spec, tokens, targets))
        };
        let timed = trainer.step(&mut fill)?;
        if step >= warmup {
            figures.add(&timed);
        }
    }
    if let Some(dump) = dump {
        dump.finish()?;
    }
    let value = figures.json(&file.spec, &trainer, threads, losses);
    Output::new(global).result(&figures.text(&file.spec, &value, losses), &value)?;
    Ok(ExitKind::Success)
}

/// The model of the comparison with PyTorch (`docs/bench/d384.toml`).
fn default_job() -> JobSpec {
    let lr = 3e-4;
    JobSpec {
        name: "d384".to_owned(),
        model: ModelSpec::Gpt(GptSpec {
            vocab: 8192,
            block_size: 256,
            layers: 6,
            heads: 6,
            width: 384,
            bias: true,
            tied: true,
        }),
        batch: BatchSpec { global: 8, micro: 8 },
        optimizer: OptimizerSpec { lr, ..OptimizerSpec::adamw() },
        schedule: ScheduleSpec::of(ScheduleKind::Constant, 1000, lr),
        clip: None,
        ..JobSpec::default()
    }
}

/// Training on this machine alone: what the compute thread of a node does, without messages.
pub(super) struct Trainer {
    micro_batches: u32,
    executor: Executor,
    optimizer: Optimizer,
    state: TrainState,
    gradients: Vec<Vec<f32>>,
    tokens: Vec<i32>,
    targets: Vec<i32>,
}

/// Writes tokens and targets of a micro-batch, both `[micro, block_size]`.
pub(super) type Fill<'f> = dyn FnMut(u32, &mut [i32], &mut [i32]) -> anyhow::Result<()> + 'f;

/// One step.
pub(super) struct Timed {
    /// Mean over the micro-batches.
    pub(super) loss: f64,
    /// Forward and backward, samples included.
    pub(super) compute: Duration,
    /// The update.
    pub(super) apply: Duration,
}

impl Trainer {
    pub(super) fn new(
        job: &JobSpec,
        program: &Program,
        params: Params,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let executor = Executor::new(program, threads, precision_of(job))?;
        let len = job.batch.micro as usize * job.model.block_size() as usize;
        Ok(Self {
            micro_batches: job.batch.micro_batches(),
            executor,
            optimizer: Optimizer::new(job, program, threads),
            state: TrainState::new(params, Optimizer::has_second_moment(job)),
            gradients: Params::zeros(program).blocks,
            tokens: vec![0; len],
            targets: vec![0; len],
        })
    }

    /// A whole step.
    pub(super) fn step(&mut self, fill: &mut Fill<'_>) -> anyhow::Result<Timed> {
        let started = Instant::now();
        self.gradients.iter_mut().for_each(|block| block.fill(0.0));
        let mut loss = 0.0;
        for item in 0..self.micro_batches {
            loss += f64::from(self.micro_batch(item, fill)?);
        }
        let compute = started.elapsed();
        let scale = 1.0 / self.micro_batches as f32;
        let _ = self.optimizer.apply(&mut self.state, &self.gradients, scale);
        let apply = started.elapsed() - compute;
        Ok(Timed { loss: loss / f64::from(self.micro_batches), compute, apply })
    }

    /// Forward and backward of one micro-batch, added to the gradients; the loss.
    pub(super) fn micro_batch(&mut self, item: u32, fill: &mut Fill<'_>) -> anyhow::Result<f32> {
        fill(item, &mut self.tokens, &mut self.targets)?;
        let inputs = [Input::I32(&self.tokens), Input::I32(&self.targets)];
        let params = &self.state.params;
        Ok(self.executor.step(params, &inputs, &mut self.gradients, &mut |_, _| ())?)
    }

    /// The update alone, by the gradients that are there.
    pub(super) fn apply(&mut self) -> Duration {
        let started = Instant::now();
        let _ = self.optimizer.apply(&mut self.state, &self.gradients, 1.0);
        started.elapsed()
    }

    /// Floating-point operations of the products of a micro-batch.
    pub(super) fn flops(&self) -> u64 {
        self.executor.train_program().map_or(0, Program::flops)
    }

    /// Bytes of the executor: activations and packing buffers.
    pub(super) fn executor_bytes(&self) -> usize {
        self.executor.memory_bytes()
    }
}

/// Where the samples come from.
enum Batches {
    /// Tokens of whole steps, from a file.
    File(Vec<i32>),
    /// The job's data.
    Data(Samples),
    /// Random ones.
    Random,
}

impl Batches {
    fn of(file: &JobFile, path: Option<&Path>, stores: &Path) -> anyhow::Result<Self> {
        if let Some(path) = path {
            return Ok(Self::File(read_batches(path, &file.spec)?));
        }
        if file.data.files.is_empty() {
            return Ok(Self::Random);
        }
        let store = Store::build(stores, &Source::open(&file.data)?, &mut |_| ())?;
        Ok(Self::Data(Samples::new(Arc::new(store), &file.spec)?))
    }

    fn fill(
        &self,
        job: &JobSpec,
        step: u64,
        item: u32,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> anyhow::Result<()> {
        let micro = job.batch.micro as usize;
        let first = step * u64::from(job.batch.global) + u64::from(item) * micro as u64;
        let width = job.model.block_size() as usize;
        match self {
            Self::File(all) => {
                let rows = all.len() / (width + 1);
                for row in 0..micro {
                    let at = (first as usize + row) % rows * (width + 1);
                    let sample = &all[at..][..width + 1];
                    tokens[row * width..][..width].copy_from_slice(&sample[..width]);
                    targets[row * width..][..width].copy_from_slice(&sample[1..]);
                }
            }
            Self::Data(samples) => {
                samples.samples(first..first + micro as u64, tokens, targets)?;
            }
            Self::Random => {
                fill_random(job.model.vocab(), width, first, tokens, targets);
            }
        }
        Ok(())
    }
}

/// Random samples, the same for the same positions.
pub(super) fn fill_random(
    vocab: u32,
    width: usize,
    first: u64,
    tokens: &mut [i32],
    targets: &mut [i32],
) {
    // Knuth's multiplier and a shift mix well enough for tokens that nobody learns from.
    let token = |row: usize, column: usize| {
        let place = (first + row as u64).wrapping_mul(1 << 32).wrapping_add(column as u64);
        let mixed = (place ^ place >> 31).wrapping_mul(0x5851_f42d_4c95_7f2d);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 33) % u64::from(vocab)) as i32
    };
    for (place, (input, target)) in tokens.iter_mut().zip(targets).enumerate() {
        let (row, column) = (place / width, place % width);
        (*input, *target) = (token(row, column), token(row, column + 1));
    }
}

/// Tokens of a file of whole steps, all of which the model knows.
fn read_batches(path: &Path, job: &JobSpec) -> anyhow::Result<Vec<i32>> {
    let read = || format!("cannot read the batches {}", path.display());
    let bytes = path.metadata().with_context(read)?.len();
    anyhow::ensure!(
        bytes <= BATCHES_BYTES_MAX,
        "{} has {bytes} bytes, at most {BATCHES_BYTES_MAX} are read",
        path.display()
    );
    let bytes = fs::read(path).with_context(read)?;
    let step = job.batch.global as usize * (job.model.block_size() as usize + 1);
    let form = || {
        format!(
            "the model takes {step} tokens of 4 bytes a step: {} samples of {} and one more",
            job.batch.global,
            job.model.block_size()
        )
    };
    if bytes.is_empty() || !bytes.len().is_multiple_of(4 * step) {
        let text =
            format!("{} has {} bytes, which are no whole steps", path.display(), bytes.len());
        return Err(anyhow::Error::msg(text)).hint(form());
    }
    let (quads, _) = bytes.as_chunks::<4>();
    let tokens: Vec<i32> = quads.iter().map(|quad| i32::from_le_bytes(*quad)).collect();
    let vocab = job.model.vocab() as i32;
    if let Some(at) = tokens.iter().position(|token| !(0..vocab).contains(token)) {
        let text = format!(
            "{}: token {at} is {}, the model knows 0 to {}",
            path.display(),
            tokens[at],
            vocab - 1
        );
        return Err(anyhow::Error::msg(text));
    }
    Ok(tokens)
}

/// What another trainer needs for the same steps.
struct Dump {
    path: PathBuf,
    batches: fs::File,
}

impl Dump {
    fn new(
        folder: &Path,
        job: &JobSpec,
        program: &Program,
        params: &Params,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let aliases = Alias::of_model(&job.model);
        let about = checkpoint::export_metadata(job, p2ptrain_protocol::id::Step(0));
        let weights = folder.join("init.safetensors");
        checkpoint::export(&weights, &params.blocks, program.params(), &aliases, &about)?;
        let path = folder.join("batches.i32");
        let batches =
            fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, batches })
    }

    fn add(&mut self, job: &JobSpec, tokens: &[i32], targets: &[i32]) -> anyhow::Result<()> {
        let width = job.model.block_size() as usize;
        let mut bytes = Vec::with_capacity(4 * (tokens.len() + tokens.len() / width));
        for (tokens, targets) in tokens.chunks(width).zip(targets.chunks(width)) {
            let sample = tokens.iter().chain(targets.last());
            bytes.extend(sample.flat_map(|token| token.to_le_bytes()));
        }
        let written = self.batches.write_all(&bytes);
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn finish(self) -> anyhow::Result<()> {
        self.batches.sync_all().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// What was measured.
#[derive(Default)]
struct Figures {
    steps: Vec<Duration>,
    applies: Vec<Duration>,
    losses: Vec<f64>,
}

impl Figures {
    fn add(&mut self, timed: &Timed) {
        self.steps.push(timed.compute + timed.apply);
        self.applies.push(timed.apply);
        self.losses.push(timed.loss);
    }

    fn json(&self, job: &JobSpec, trainer: &Trainer, threads: usize, losses: bool) -> Value {
        let median = median(&self.steps);
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
        let tokens = f64::from(job.batch.global) * f64::from(job.model.block_size());
        let flops = trainer.flops() as f64 * f64::from(job.batch.micro_batches());
        let rate = |amount: f64| amount / median.as_secs_f64().max(1e-9);
        let mut value = json!({
            "trainer": concat!("p2ptrain ", env!("CARGO_PKG_VERSION")),
            "job": job.name,
            "precision": match job.precision {
                Precision::F32 => "f32",
                Precision::Bf16 => "bf16",
            },
            "threads": threads,
            "steps": self.steps.len(),
            "step_ms_median": ms(median),
            "step_ms_min": ms(self.steps.iter().min().copied().unwrap_or_default()),
            "step_ms_max": ms(self.steps.iter().max().copied().unwrap_or_default()),
            "apply_ms_median": ms(self::median(&self.applies)),
            "tokens_per_s": (rate(tokens) * 10.0).round() / 10.0,
            "gflops_per_s": (rate(flops / 1e9) * 10.0).round() / 10.0,
            "rss_peak_bytes": rss_peak_bytes(),
            "executor_bytes": trainer.executor_bytes(),
            "loss_last": self.losses.last(),
        });
        if losses {
            value["losses"] = json!(self.losses);
        }
        value
    }

    fn text(&self, job: &JobSpec, value: &Value, losses: bool) -> String {
        let mut lines = Vec::new();
        if losses {
            let line = |(step, loss): (usize, &f64)| format!("step {step}: loss {loss:.6}");
            lines.extend(self.losses.iter().enumerate().map(line));
        }
        let parameters = match &job.model {
            ModelSpec::Gpt(gpt) => gpt.parameters(),
        };
        lines.push(format!(
            "{}: {} parameters, {} threads, {}",
            job.name,
            human_number(parameters),
            value["threads"],
            value["precision"].as_str().unwrap_or_default(),
        ));
        lines.push(format!(
            "step {} ms (median; fastest {}, slowest {}; update {})",
            value["step_ms_median"],
            value["step_ms_min"],
            value["step_ms_max"],
            value["apply_ms_median"],
        ));
        lines.push(format!(
            "{} tokens/s, {} GFLOP/s, peak memory {}",
            value["tokens_per_s"],
            value["gflops_per_s"],
            human_bytes(value["rss_peak_bytes"].as_u64().unwrap_or_default()),
        ));
        lines.join("\n")
    }
}

/// The upper of the two in the middle, where there are two; zero of none.
pub(super) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The most memory that this process has held, in bytes; 0 where the system does not tell.
fn rss_peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_samples_are_windows_of_one_sequence_and_repeat() {
        let (mut tokens, mut targets) = (vec![0; 32], vec![0; 32]);
        fill_random(50, 16, 3, &mut tokens, &mut targets);
        assert_eq!(tokens[1..16], targets[..15]);
        assert_ne!(tokens[..16], tokens[16..]);
        assert!(tokens.iter().chain(&targets).all(|token| (0..50).contains(token)));
        let (mut again, mut ends) = (vec![0; 16], vec![0; 16]);
        fill_random(50, 16, 4, &mut again, &mut ends);
        assert_eq!((&again[..], &ends[..]), (&tokens[16..], &targets[16..]));
    }

    #[test]
    fn the_median_is_a_time_that_was_measured() {
        let times: Vec<_> = [5, 1, 9].map(Duration::from_millis).to_vec();
        assert_eq!(median(&times), Duration::from_millis(5));
        assert_eq!(median(&[]), Duration::ZERO);
    }

    #[test]
    fn the_peak_of_memory_is_known_here() {
        assert!(rss_peak_bytes() > 1 << 20);
    }
}
