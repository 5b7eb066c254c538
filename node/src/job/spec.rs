//! The types of a job, their defaults, and the canonical bytes that travel.

use std::path::PathBuf;

use bincode::{Decode, Encode};
use p2ptrain_protocol::id::{Digest, JobId};

use super::check::limits::SPEC_BYTES_MAX;
use super::error::SpecError;

const MAGIC: [u8; 4] = *b"p2pj";
/// Version of the canonical bytes. Any change of the types below raises it.
const VERSION: u16 = 1;

/// A whole `job.toml`: what travels, and what stays on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct JobFile {
    /// What travels and identifies the job.
    pub spec: JobSpec,
    /// Where the training text lies on this machine.
    pub data: DataSpec,
    /// Folder of the checkpoints; the node's own folder where absent.
    pub checkpoint_folder: Option<PathBuf>,
    /// A safetensors file with the initial weights; drawn from the seed where absent.
    pub init: Option<PathBuf>,
}

impl JobFile {
    /// A job with every default over the given files.
    pub fn new(files: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let files = files.into_iter().map(Into::into).collect();
        Self {
            spec: JobSpec::default(),
            data: DataSpec { files, ..DataSpec::default() },
            checkpoint_folder: None,
            init: None,
        }
    }
}

/// Where the training text lies, and how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSpec {
    /// Files, folders (read recursively) or glob patterns.
    pub files: Vec<PathBuf>,
    /// How each file is read.
    pub format: DataFormat,
    /// The field of a JSONL record that holds the text.
    pub field: String,
}

impl Default for DataSpec {
    fn default() -> Self {
        Self { files: Vec::new(), format: DataFormat::Auto, field: "text".to_owned() }
    }
}

/// How a data file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// `.jsonl` and `.ndjson` files as JSONL, everything else as text.
    Auto,
    /// The bytes of the file.
    Text,
    /// One JSON object a line.
    Jsonl,
}

/// A training job as every peer sees it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct JobSpec {
    /// A name for people; part of the id.
    pub name: String,
    /// The model.
    pub model: ModelSpec,
    /// Sizes of the batches.
    pub batch: BatchSpec,
    /// Number of optimizer steps.
    pub steps: u64,
    /// The optimizer.
    pub optimizer: OptimizerSpec,
    /// The learning rate over the steps.
    pub schedule: ScheduleSpec,
    /// Largest global norm of the gradient; `None` leaves it alone.
    pub clip: Option<f64>,
    /// Arithmetic of the matrix products.
    pub precision: Precision,
    /// Seed of the initial weights and of the sample order.
    pub seed: u64,
    /// Share of the data held out for evaluation, in millionths.
    pub held_out_ppm: u32,
    /// Evaluation on held-out data.
    pub eval: EvalSpec,
    /// How often the state is saved.
    pub checkpoint: CheckpointSpec,
    /// Training waits until this many members are there.
    pub min_peers: u32,
    /// Root id of the data manifest. Filled in when the job is submitted; where the file names it,
    /// other data is refused.
    pub data_root: Option<Digest>,
    /// blake3 of the initial weights where they come from a file. Peers then fetch the state
    /// instead of drawing it from the seed.
    pub init_digest: Option<Digest>,
}

/// The model.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ModelSpec {
    /// A GPT with nanoGPT's layout and names.
    Gpt(GptSpec),
}

impl ModelSpec {
    /// Tokens of one sample.
    pub fn block_size(&self) -> u32 {
        let Self::Gpt(gpt) = self;
        gpt.block_size
    }

    /// Number of different tokens.
    pub fn vocab(&self) -> u32 {
        let Self::Gpt(gpt) = self;
        gpt.vocab
    }
}

/// Arguments of the GPT.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GptSpec {
    /// Number of different tokens.
    pub vocab: u32,
    /// Tokens of one sample (T).
    pub block_size: u32,
    /// Transformer layers.
    pub layers: u32,
    /// Attention heads; divides `width`.
    pub heads: u32,
    /// Width of the residual stream (C).
    pub width: u32,
    /// Whether linear layers and layer norms have a bias.
    pub bias: bool,
    /// Whether the output layer shares the weights of the token embedding.
    pub tied: bool,
}

impl GptSpec {
    /// Number of parameters, tied weights counted once.
    pub fn parameters(&self) -> u64 {
        let [vocab, block, layers, width] =
            [self.vocab, self.block_size, self.layers, self.width].map(u64::from);
        let bias = u64::from(self.bias);
        let norm = width * (1 + bias);
        let layer = 12 * width * width + bias * 9 * width + 2 * norm;
        let tables = if self.tied { vocab } else { 2 * vocab };
        (tables + block) * width + layers * layer + norm
    }
}

/// Sizes of the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BatchSpec {
    /// Samples of one optimizer step over all peers.
    pub global: u32,
    /// Samples that one peer computes at once; divides `global`.
    pub micro: u32,
}

impl BatchSpec {
    /// Micro-batches of one step.
    pub fn micro_batches(&self) -> u32 {
        self.global / self.micro.max(1)
    }
}

/// The optimizer with its decay groups.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct OptimizerSpec {
    /// Which optimizer, and its constants.
    pub kind: OptimizerKind,
    /// The learning rate at its highest.
    pub lr: f64,
    /// Decoupled weight decay for AdamW; an L2 term for SGD.
    pub weight_decay: f64,
    /// Which parameters decay at all.
    pub decay: DecayRule,
    /// Parameters whose name matches one of these patterns (`*`, `?`, `[...]`) never decay.
    pub no_decay: Vec<String>,
}

impl OptimizerSpec {
    /// Whether the parameter of this name and number of dimensions decays.
    pub fn decays(&self, name: &str, dimensions: usize) -> bool {
        let by_shape = match self.decay {
            DecayRule::Matrices => dimensions >= 2,
            DecayRule::All => true,
        };
        // A pattern that does not parse matches nothing: `check` has refused it before.
        let excepted = |pattern: &String| {
            glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(name))
        };
        by_shape && !self.no_decay.iter().any(excepted)
    }
}

/// Which parameters decay before `no_decay` takes some out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum DecayRule {
    /// Those of two dimensions and more: no bias, no norm.
    Matrices,
    /// All of them.
    All,
}

/// Which optimizer, and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Momentum; 0 keeps no state.
        momentum: f64,
        /// Nesterov's form of it.
        nesterov: bool,
    },
}

/// The learning rate over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct ScheduleSpec {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps over which the rate rises from near 0 to `lr`.
    pub warmup: u64,
    /// Rate at the last step; `lr` itself for a constant rate.
    pub min_lr: f64,
}

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ScheduleKind {
    /// Stays at `lr`.
    Constant,
    /// Falls in a line to `min_lr`.
    Linear,
    /// Falls along half a cosine to `min_lr`.
    Cosine,
}

/// Arithmetic of the matrix products; weights and optimizer state are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// Operands rounded to bfloat16, sums in f32.
    Bf16,
}

/// Evaluation on held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EvalSpec {
    /// Steps between evaluations; 0 for none.
    pub every: u64,
    /// Micro-batches of one evaluation.
    pub batches: u32,
}

/// How often the state is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CheckpointSpec {
    /// Steps between checkpoints; 0 for none but the last.
    pub every: u64,
    /// Checkpoints kept.
    pub keep: u32,
}

impl Default for JobSpec {
    fn default() -> Self {
        let optimizer = OptimizerSpec::adamw();
        let steps = 1000;
        Self {
            name: "job".to_owned(),
            model: ModelSpec::Gpt(GptSpec::default()),
            batch: BatchSpec { global: 32, micro: 4 },
            steps,
            schedule: ScheduleSpec::of(ScheduleKind::Cosine, steps, optimizer.lr),
            optimizer,
            clip: Some(1.0),
            precision: Precision::F32,
            seed: 1,
            held_out_ppm: 50_000,
            eval: EvalSpec { every: 100, batches: 8 },
            checkpoint: CheckpointSpec { every: 100, keep: 3 },
            min_peers: 1,
            data_root: None,
            init_digest: None,
        }
    }
}

impl Default for GptSpec {
    fn default() -> Self {
        Self {
            vocab: 256,
            block_size: 256,
            layers: 4,
            heads: 4,
            width: 256,
            bias: true,
            tied: true,
        }
    }
}

impl OptimizerSpec {
    /// AdamW with its defaults.
    pub fn adamw() -> Self {
        Self {
            kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 },
            lr: 1e-3,
            weight_decay: 0.1,
            decay: DecayRule::Matrices,
            no_decay: Vec::new(),
        }
    }

    /// SGD with its defaults.
    pub fn sgd() -> Self {
        Self {
            kind: OptimizerKind::Sgd { momentum: 0.9, nesterov: false },
            lr: 0.05,
            weight_decay: 0.0,
            decay: DecayRule::Matrices,
            no_decay: Vec::new(),
        }
    }
}

impl ScheduleSpec {
    /// The defaults of this kind for a job of so many steps.
    pub fn of(kind: ScheduleKind, steps: u64, lr: f64) -> Self {
        let (warmup, min_lr) = match kind {
            ScheduleKind::Constant => (0, lr),
            ScheduleKind::Linear => ((steps / 10).min(100), 0.0),
            ScheduleKind::Cosine => ((steps / 10).min(100), lr / 10.0),
        };
        Self { kind, warmup, min_lr }
    }
}

impl JobSpec {
    /// The canonical bytes: equal jobs give equal bytes on every machine.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let body = bincode::encode_to_vec(self, codec())
            .expect("encoding plain data into memory cannot fail");
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads canonical bytes, from a peer or a file, and checks every bound.
    pub fn decode(bytes: &[u8]) -> Result<Self, SpecError> {
        if bytes.len() > SPEC_BYTES_MAX {
            return Err(SpecError::TooLarge { bytes: bytes.len(), bytes_max: SPEC_BYTES_MAX });
        }
        let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(SpecError::NotASpec);
        };
        let Some((version, body)) = rest.split_first_chunk::<2>() else {
            return Err(SpecError::NotASpec);
        };
        if *magic != MAGIC {
            return Err(SpecError::NotASpec);
        }
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(SpecError::Version { found: version, supported: VERSION });
        }
        let (spec, used): (Self, usize) = bincode::decode_from_slice(body, codec())
            .map_err(|error| SpecError::Malformed { reason: error.to_string() })?;
        if used != body.len() {
            return Err(SpecError::Trailing { bytes: body.len() - used });
        }
        let violations = spec.check();
        if violations.is_empty() { Ok(spec) } else { Err(SpecError::Refused { violations }) }
    }

    /// The id of the job: a hash of the canonical bytes.
    pub fn id(&self) -> JobId {
        JobId::of_job(&self.encode())
    }
}

fn codec() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<SPEC_BYTES_MAX>()
}
