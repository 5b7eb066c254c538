//! A job that takes as long as the user wishes, on slow machines and fast ones.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use p2ptrain_kernels::{Executor, Input, Params, init_params};
use p2ptrain_protocol::id::Digest;

use crate::job::{
    BatchSpec, CheckpointSpec, EvalSpec, GptSpec, JobSpec, ModelSpec, OptimizerSpec, Precision,
    ScheduleKind, ScheduleSpec,
};
use crate::runtime::prepare::{precision_of, program_of};

/// How long each precision is measured.
const MEASURE: Duration = Duration::from_millis(700);
/// Time of a step's computation that hides the exchange well and still shows something happening.
const STEP_S: f64 = 0.3;
/// Bytes of gradient that a core can send and receive in a second, encrypted, over loopback.
const EXCHANGE_BYTES_PER_S: f64 = 300e6;
/// Parameters that a core updates in a second.
const UPDATES_PER_S: f64 = 300e6;
/// Fewer steps than this teach a model of this size nothing: a smaller model is taken.
const STEPS_WANTED: u64 = 40;
const STEPS_MIN: u64 = 16;
const STEPS_MAX: u64 = 1_000_000;
/// Sequences of a micro-batch.
const MICRO: u32 = 2;
const MICRO_BATCHES_MIN: u32 = 8;
const MICRO_BATCHES_MAX: u32 = 64;
const LEARNING_RATE: f64 = 1.2e-3;

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) peers: usize,
    /// Threads of each.
    pub(super) threads: usize,
    pub(super) cores: usize,
    pub(super) seconds: u32,
    /// The text.
    pub(super) root: Digest,
}

/// The model of the demo, about 3 million parameters, and a small one for slow machines and short
/// demos.
fn models() -> [GptSpec; 2] {
    let usual = GptSpec { block_size: 128, ..GptSpec::default() };
    let small = GptSpec { block_size: 64, layers: 2, width: 128, ..usual.clone() };
    [usual, small]
}

/// Measures this machine and chooses model, precision, batch and number of steps.
pub(super) fn choose(wish: &Wish) -> anyhow::Result<JobSpec> {
    let [usual, small] = models();
    let spec = plan(wish, usual)?;
    if spec.steps >= STEPS_WANTED {
        return Ok(spec);
    }
    tracing::info!(steps = spec.steps, "too few steps: the demo takes the small model");
    plan(wish, small)
}

fn plan(wish: &Wish, model: GptSpec) -> anyhow::Result<JobSpec> {
    let mut spec = JobSpec { model: ModelSpec::Gpt(model), ..JobSpec::default() };
    spec.batch = BatchSpec { global: MICRO, micro: MICRO };
    let f32_rate = measure(wish, &spec)?;
    spec.precision = Precision::Bf16;
    let bf16_rate = measure(wish, &spec)?;
    // The rounding costs a little of what a step learns, so it must gain something.
    let rate = if bf16_rate > 1.1 * f32_rate {
        bf16_rate
    } else {
        spec.precision = Precision::F32;
        f32_rate
    };
    tracing::info!(f32_rate, bf16_rate, "micro-batches per second");
    Ok(fit(wish, spec, rate))
}

/// Fits batch and steps to `rate`, the micro-batches that all peers together compute in a second.
fn fit(wish: &Wish, mut spec: JobSpec, rate: f64) -> JobSpec {
    let ModelSpec::Gpt(model) = &spec.model;
    let parameters = model.parameters() as f64;
    let peers = wish.peers as f64;
    let cores = (wish.cores as f64).min(peers * wish.threads as f64).max(1.0);
    let least = MICRO_BATCHES_MIN.max(2 * wish.peers as u32);
    let most = MICRO_BATCHES_MAX.max(least);
    let micro_batches = ((STEP_S * rate) as u32).clamp(least, most);
    let exchange_s = parameters * 4.0 * 2.0 * (peers - 1.0) / EXCHANGE_BYTES_PER_S / cores;
    let update_s = parameters * peers / UPDATES_PER_S / cores;
    let step_s = f64::from(micro_batches) / rate + exchange_s + update_s;
    let steps = (f64::from(wish.seconds) / step_s) as u64;
    let steps = steps.clamp(STEPS_MIN, STEPS_MAX);

    spec.name = "demo".to_owned();
    spec.batch = BatchSpec { global: micro_batches * MICRO, micro: MICRO };
    spec.steps = steps;
    spec.optimizer = OptimizerSpec { lr: LEARNING_RATE, ..OptimizerSpec::adamw() };
    spec.schedule = ScheduleSpec::of(ScheduleKind::Cosine, steps, LEARNING_RATE);
    spec.eval = EvalSpec { every: (steps / 6).max(1), batches: micro_batches.min(16) };
    spec.checkpoint = CheckpointSpec { every: 0, keep: 1 };
    spec.min_peers = wish.peers as u32;
    spec.data_root = Some(wish.root);
    spec
}

/// Micro-batches per second of all peers together, each on its own threads at the same time.
fn measure(wish: &Wish, spec: &JobSpec) -> anyhow::Result<f64> {
    let program = program_of(spec)?;
    let params = init_params(&program, spec.seed);
    let zeros = Params::zeros(&program);
    let tokens: Vec<i32> = (0..spec.batch.micro * spec.model.block_size())
        .map(|place| (place * 31 % spec.model.vocab()) as i32)
        .collect();
    let inputs = [Input::I32(&tokens), Input::I32(&tokens)];
    let ready = Barrier::new(wish.peers);
    let one = || -> anyhow::Result<f64> {
        let mut executor = Executor::new(&program, wish.threads, precision_of(spec));
        let mut gradients = zeros.blocks.clone();
        // The first step pays for cold caches and sleeping threads.
        let first = executor
            .as_mut()
            .map(|executor| executor.step(&params, &inputs, &mut gradients, &mut |_, _| ()));
        // All wait here, also those that failed: otherwise the others would wait for ever.
        ready.wait();
        drop(first);
        let mut executor = executor?;
        let (start, mut steps) = (Instant::now(), 0.0);
        while start.elapsed() < MEASURE {
            executor.step(&params, &inputs, &mut gradients, &mut |_, _| ())?;
            steps += 1.0;
        }
        Ok(steps / start.elapsed().as_secs_f64())
    };
    thread::scope(|scope| {
        let peers: Vec<_> = (0..wish.peers).map(|_| scope.spawn(one)).collect();
        let rates = peers
            .into_iter()
            .map(|peer| peer.join().map_err(|_| anyhow::anyhow!("the measurement panicked"))?);
        rates.sum::<anyhow::Result<f64>>().context("cannot measure a training step")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(peers: usize, seconds: u32) -> Wish {
        let root = Digest::from_bytes([0; 32]);
        Wish { peers, threads: 1, cores: 2, seconds, root }
    }

    fn spec_of(peers: usize, seconds: u32, rate: f64) -> JobSpec {
        let [usual, _] = models();
        let spec = JobSpec { model: ModelSpec::Gpt(usual), ..JobSpec::default() };
        fit(&wish(peers, seconds), spec, rate)
    }

    #[test]
    fn the_usual_model_has_about_three_million_parameters() {
        let [usual, small] = models();
        assert!((3_000_000..3_500_000).contains(&usual.parameters()), "{}", usual.parameters());
        assert!(small.parameters() < 600_000);
    }

    #[test]
    fn every_number_of_peers_and_every_speed_gives_a_valid_job() {
        for peers in 1..=16 {
            for seconds in [5, 60, 86_400] {
                for rate in [0.01, 1.0, 30.0, 1e6] {
                    let spec = spec_of(peers, seconds, rate);
                    let violations = spec.check();
                    assert!(violations.is_empty(), "{peers} {seconds} {rate}: {violations:?}");
                    assert!(spec.batch.micro_batches() >= 2 * peers as u32);
                }
            }
        }
    }

    #[test]
    fn a_longer_demo_and_a_faster_machine_take_more_steps() {
        let steps = |seconds, rate| spec_of(3, seconds, rate).steps;
        assert!(steps(120, 30.0) > steps(60, 30.0) && steps(60, 60.0) > steps(60, 20.0));
    }
}
