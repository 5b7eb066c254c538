//! The rules of a job: bounds of each field, and what must fit together.
//!
//! They are the same for the user's file, where each violation is shown at its line, and for bytes
//! from a peer, where nothing of the job is used before all rules hold.

use std::fmt;

use super::spec::{JobSpec, ModelSpec, OptimizerKind, ScheduleKind};

/// Bounds of a job's fields.
pub mod limits {
    /// Bytes of an encoded job.
    pub const SPEC_BYTES_MAX: usize = 64 * 1024;
    /// Bytes of a job file.
    pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
    /// Bytes of the job's name.
    pub const NAME_BYTES_MAX: usize = p2ptrain_protocol::limits::NAME_BYTES_MAX;
    /// The smallest vocabulary: one token for each byte.
    pub const VOCAB_MIN: u32 = 256;
    /// The largest vocabulary: tokens are stored in 16 bits.
    pub const VOCAB_MAX: u32 = 65_536;
    /// Tokens of one sample.
    pub const BLOCK_SIZE_MAX: u32 = 65_536;
    /// Layers of the model.
    pub const LAYERS_MAX: u32 = 512;
    /// Heads of one layer.
    pub const HEADS_MAX: u32 = 512;
    /// Width of the model.
    pub const WIDTH_MAX: u32 = 32_768;
    /// Parameters of the model.
    pub const PARAMETERS_MAX: u64 = 5_000_000_000;
    /// Samples of one step.
    pub const GLOBAL_BATCH_MAX: u32 = 1 << 20;
    /// Samples of one micro-batch.
    pub const MICRO_BATCH_MAX: u32 = 4096;
    /// Micro-batches of one step: the plan shares these out.
    pub const MICRO_BATCHES_MAX: u32 = 65_536;
    /// Tokens of one micro-batch.
    pub const MICRO_TOKENS_MAX: u64 = 1 << 22;
    /// Optimizer steps.
    pub const STEPS_MAX: u64 = 1_000_000_000;
    /// Patterns of `optimizer.no_decay`.
    pub const PATTERNS_MAX: usize = 64;
    /// Bytes of one of them.
    pub const PATTERN_BYTES_MAX: usize = 256;
    /// Largest held-out share, in millionths.
    pub const HELD_OUT_PPM_MAX: u32 = 500_000;
    /// Micro-batches of one evaluation.
    pub const EVAL_BATCHES_MAX: u32 = 65_536;
    /// Checkpoints kept.
    pub const KEEP_MAX: u32 = 10_000;
    /// Members that a job may wait for.
    pub const MIN_PEERS_MAX: u32 = p2ptrain_protocol::limits::MEMBERS_MAX as u32;

    const _: () = assert!(
        PATTERNS_MAX * (PATTERN_BYTES_MAX + 8) + NAME_BYTES_MAX + 1024 < SPEC_BYTES_MAX,
        "every job within the bounds must fit into its encoded size"
    );
    const _: () = assert!(
        STEPS_MAX.checked_mul(GLOBAL_BATCH_MAX as u64).is_some(),
        "every sample position must fit into u64"
    );
}

use limits::*;

/// One rule that a job breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The fields involved; the first is the one to change.
    pub fields: Vec<&'static str>,
    /// The value found.
    pub value: String,
    /// What is wrong.
    pub message: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.fields.first().copied().unwrap_or_default();
        write!(f, "{field} = {}: {} (allowed: {})", self.value, self.message, self.allowed)
    }
}

impl JobSpec {
    /// All rules that this job breaks; none for a good job.
    pub fn check(&self) -> Vec<Violation> {
        let mut rules = Rules::default();
        self.check_top(&mut rules);
        self.check_model(&mut rules);
        self.check_batch(&mut rules);
        self.check_optimizer(&mut rules);
        self.check_schedule(&mut rules);
        rules.0
    }

    fn check_top(&self, rules: &mut Rules) {
        if self.name.is_empty()
            || self.name.len() > NAME_BYTES_MAX
            || self.name.chars().any(char::is_control)
        {
            rules.broken(
                &["name"],
                // The name is shown in terminals: never print control characters raw.
                format!("{:?}", self.name.chars().take(64).collect::<String>()),
                "is empty, too long or has control characters",
                format!("1 to {NAME_BYTES_MAX} bytes of printable text"),
            );
        }
        rules.range("steps", self.steps, 1, STEPS_MAX);
        if let Some(clip) = self.clip {
            rules.real("clip", clip, clip > 0.0 && clip <= 1e9, "a number above 0, or 0 for none");
        }
        rules.range("min_peers", self.min_peers, 1, MIN_PEERS_MAX);
        if self.held_out_ppm > HELD_OUT_PPM_MAX {
            rules.broken(
                &["data.held_out"],
                self.held_out_ppm as f64 / 1e6,
                "is out of range",
                "a fraction from 0 (none) to 0.5",
            );
        }
        if self.held_out_ppm == 0 && self.eval.every > 0 {
            rules.broken(
                &["eval.every", "data.held_out"],
                self.eval.every,
                "there is nothing to evaluate on: data.held_out is 0",
                "eval.every = 0, or data.held_out above 0",
            );
        }
        rules.range("eval.every", self.eval.every, 0, STEPS_MAX);
        rules.range("eval.batches", self.eval.batches, 1, EVAL_BATCHES_MAX);
        rules.range("checkpoint.every", self.checkpoint.every, 0, STEPS_MAX);
        rules.range("checkpoint.keep", self.checkpoint.keep, 1, KEEP_MAX);
    }

    fn check_model(&self, rules: &mut Rules) {
        let ModelSpec::Gpt(gpt) = &self.model;
        let mut good = true;
        if gpt.vocab < VOCAB_MIN || gpt.vocab > VOCAB_MAX {
            good = false;
            rules.broken(
                &["model.vocab"],
                gpt.vocab,
                "is out of range: tokens are bytes, and are stored in 16 bits",
                format!("{VOCAB_MIN} to {VOCAB_MAX}"),
            );
        }
        good &= rules.range("model.block_size", gpt.block_size, 1, BLOCK_SIZE_MAX);
        good &= rules.range("model.layers", gpt.layers, 1, LAYERS_MAX);
        let width = rules.range("model.width", gpt.width, 1, WIDTH_MAX);
        let heads = rules.range("model.heads", gpt.heads, 1, HEADS_MAX);
        if width && heads && !gpt.width.is_multiple_of(gpt.heads) {
            rules.broken(
                &["model.heads", "model.width"],
                gpt.heads,
                format!("does not divide model.width = {}", gpt.width),
                format!("a divisor of the width: {}", divisors(gpt.width, HEADS_MAX)),
            );
        }
        if good && width && gpt.parameters() > PARAMETERS_MAX {
            rules.broken(
                &["model.width", "model.layers", "model.vocab"],
                gpt.width,
                format!("the model has {} parameters", gpt.parameters()),
                format!("at most {PARAMETERS_MAX} parameters"),
            );
        }
    }

    fn check_batch(&self, rules: &mut Rules) {
        let global = rules.range("batch.global", self.batch.global, 1, GLOBAL_BATCH_MAX);
        let micro = rules.range("batch.micro", self.batch.micro, 1, MICRO_BATCH_MAX);
        if !(global && micro) {
            return;
        }
        let batch = self.batch;
        if !batch.global.is_multiple_of(batch.micro) {
            rules.broken(
                &["batch.micro", "batch.global"],
                batch.micro,
                format!("does not divide batch.global = {}", batch.global),
                format!("a divisor of the global batch: {}", divisors(batch.global, 4096)),
            );
        } else if batch.micro_batches() > MICRO_BATCHES_MAX {
            rules.broken(
                &["batch.micro", "batch.global"],
                batch.micro,
                format!("a step has {} micro-batches", batch.micro_batches()),
                format!("at most {MICRO_BATCHES_MAX} micro-batches a step"),
            );
        }
        let block_size = self.model.block_size();
        let tokens = u64::from(batch.micro) * u64::from(block_size);
        if block_size <= BLOCK_SIZE_MAX && tokens > MICRO_TOKENS_MAX {
            rules.broken(
                &["batch.micro", "model.block_size"],
                batch.micro,
                format!("a micro-batch has {tokens} tokens"),
                format!("micro * block_size of at most {MICRO_TOKENS_MAX}"),
            );
        }
    }

    fn check_optimizer(&self, rules: &mut Rules) {
        let optimizer = &self.optimizer;
        let lr = optimizer.lr;
        rules.real("optimizer.lr", lr, lr > 0.0 && lr <= 100.0, "a number above 0, up to 100");
        let decay = optimizer.weight_decay;
        rules.real(
            "optimizer.weight_decay",
            decay,
            (0.0..=100.0).contains(&decay),
            "a number from 0 to 100",
        );
        match optimizer.kind {
            OptimizerKind::AdamW { beta1, beta2, eps } => {
                for beta in [beta1, beta2] {
                    let good = (0.0..1.0).contains(&beta);
                    rules.real("optimizer.betas", beta, good, "two numbers from 0 to below 1");
                }
                let good = eps > 0.0 && eps <= 1.0;
                rules.real("optimizer.eps", eps, good, "a number above 0, up to 1");
            }
            OptimizerKind::Sgd { momentum, nesterov } => {
                let good = (0.0..1.0).contains(&momentum);
                rules.real("optimizer.momentum", momentum, good, "a number from 0 to below 1");
                if nesterov && momentum == 0.0 {
                    rules.broken(
                        &["optimizer.nesterov", "optimizer.momentum"],
                        "true",
                        "needs a momentum, and optimizer.momentum is 0",
                        "nesterov = false, or a momentum above 0",
                    );
                }
            }
        }
        if optimizer.no_decay.len() > PATTERNS_MAX {
            let count = optimizer.no_decay.len();
            let allowed = format!("at most {PATTERNS_MAX} patterns");
            rules.broken(&["optimizer.no_decay"], count, "has too many patterns", allowed);
        }
        for pattern in optimizer.no_decay.iter().take(PATTERNS_MAX) {
            if pattern.len() > PATTERN_BYTES_MAX || glob::Pattern::new(pattern).is_err() {
                let shown: String = pattern.chars().take(64).collect();
                rules.broken(
                    &["optimizer.no_decay"],
                    format!("{shown:?}"),
                    format!("{shown:?} is no pattern"),
                    format!(
                        "names of parameters with `*`, `?` and `[...]`, \
                         up to {PATTERN_BYTES_MAX} bytes each"
                    ),
                );
            }
        }
    }

    fn check_schedule(&self, rules: &mut Rules) {
        let schedule = &self.schedule;
        if schedule.warmup > self.steps {
            rules.broken(
                &["schedule.warmup", "steps"],
                schedule.warmup,
                format!("is longer than the job: steps = {}", self.steps),
                format!("0 to {} steps", self.steps),
            );
        }
        let (min_lr, lr) = (schedule.min_lr, self.optimizer.lr);
        if schedule.kind == ScheduleKind::Constant {
            // One job has one form, and so one id.
            if min_lr.to_bits() != lr.to_bits() {
                let message = format!("a constant rate ends at optimizer.lr = {lr}");
                rules.broken(&["schedule.min_lr", "optimizer.lr"], min_lr, message, lr.to_string());
            }
        } else if !(0.0..=lr).contains(&min_lr) {
            rules.broken(
                &["schedule.min_lr", "optimizer.lr"],
                min_lr,
                format!("is below 0 or above optimizer.lr = {lr}"),
                format!("0 to {lr}"),
            );
        }
    }
}

#[derive(Default)]
struct Rules(Vec<Violation>);

impl Rules {
    fn broken(
        &mut self,
        fields: &[&'static str],
        value: impl ToString,
        message: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        self.0.push(Violation {
            fields: fields.to_vec(),
            value: value.to_string(),
            message: message.into(),
            allowed: allowed.into(),
        });
    }

    /// Whether the value lies within the bounds.
    fn range(
        &mut self,
        field: &'static str,
        value: impl Into<u64>,
        min: u64,
        max: impl Into<u64>,
    ) -> bool {
        let (value, max) = (value.into(), max.into());
        let good = (min..=max).contains(&value);
        if !good {
            let allowed = format!("a whole number from {min} to {max}");
            self.broken(&[field], value, "is out of range", allowed);
        }
        good
    }

    fn real(&mut self, field: &'static str, value: f64, good: bool, allowed: &str) {
        if !(good && value.is_finite()) {
            self.broken(&[field], value, "is out of range", allowed);
        }
    }
}

fn divisors(n: u32, max: u32) -> String {
    let all: Vec<String> =
        (1..=n.min(max)).filter(|d| n.is_multiple_of(*d)).map(|d| d.to_string()).collect();
    let shown = 12;
    match all.len() {
        0..=12 => all.join(", "),
        more => format!("{}, ... ({} more)", all[..shown].join(", "), more - shown),
    }
}
