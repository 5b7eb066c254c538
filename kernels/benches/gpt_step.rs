//! One training step (forward, backward, AdamW with clipping) of a GPT: V8192 T256 d384 L6,
//! 6 heads, batch 8, on two threads.
//!
//! `cargo bench -p p2ptrain-kernels --bench gpt_step -- [f32|bf16] [--threads N] [--steps N]
//! [--profile]`. `pytorch_gpt_step.py` beside this file times PyTorch on the same, and
//! `compare_gpt_step.py` runs both by turns.

use std::time::Instant;

use p2ptrain_kernels::model::{GptConfig, gpt};
use p2ptrain_kernels::optim::{AdamW, adamw, grad_norm_sq};
use p2ptrain_kernels::primitive::pool::Pool;
use p2ptrain_kernels::{Executor, Input, Precision, init_params};

const BATCH: usize = 8;
const CONFIG: GptConfig = GptConfig {
    vocab: 8192,
    block_size: 256,
    layers: 6,
    heads: 6,
    width: 384,
    bias: true,
    tied: true,
};

struct Arguments {
    precision: Precision,
    threads: usize,
    steps: usize,
    profile: bool,
}

fn arguments() -> Arguments {
    let mut parsed = Arguments { precision: Precision::F32, threads: 2, steps: 5, profile: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = |name: &str| {
            let value = words.next().and_then(|value| value.parse().ok());
            value.unwrap_or_else(|| panic!("{name} takes a number"))
        };
        match word.as_str() {
            "f32" => parsed.precision = Precision::F32,
            "bf16" => parsed.precision = Precision::Bf16,
            "--threads" => parsed.threads = number("--threads"),
            "--steps" => parsed.steps = number("--steps"),
            "--profile" => parsed.profile = true,
            _ => {}
        }
    }
    parsed
}

fn main() {
    let arguments = arguments();
    let program = gpt(&CONFIG, BATCH).expect("the configuration is valid");
    let mut executor = Executor::new(&program, arguments.threads, arguments.precision)
        .expect("the program fits into memory");
    let pool = Pool::new(arguments.threads);
    let mut params = init_params(&program, 1);
    let zeros = || params.blocks.iter().map(|block| vec![0.0; block.len()]).collect::<Vec<_>>();
    let (mut grads, mut m, mut v) = (zeros(), zeros(), zeros());
    let tokens: Vec<i32> =
        (0..BATCH * CONFIG.block_size).map(|index| (index * 7919 % CONFIG.vocab) as i32).collect();
    let targets: Vec<i32> = tokens.iter().map(|token| (token + 1) % CONFIG.vocab as i32).collect();
    let inputs = [Input::I32(&tokens), Input::I32(&targets)];
    let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    executor.profile(arguments.profile);
    let (mut times, mut cpu) = (Vec::new(), Vec::new());
    let mut loss = 0.0;
    for step in 1..=arguments.steps as u64 + 1 {
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        grads.iter_mut().for_each(|block| block.fill(0.0));
        loss = executor
            .step(&params, &inputs, &mut grads, &mut |_, _| {})
            .expect("the inputs fit the program");
        let blocks: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        let norm = grad_norm_sq(&pool, &blocks).sqrt();
        let scale = (1.0 / norm).min(1.0) as f32;
        for (block, p) in params.blocks.iter_mut().enumerate() {
            let (g, m, v) = (&grads[block], &mut m[block], &mut v[block]);
            adamw(&pool, p, g, m, v, scale, 1e-3, true, step, &adam);
        }
        times.push(start.elapsed().as_secs_f64());
        cpu.push(cpu_seconds() - cpu_start);
    }
    // The first step touches memory for the first time.
    times.remove(0);
    cpu.remove(0);
    times.sort_by(f64::total_cmp);
    cpu.sort_by(f64::total_cmp);
    println!(
        "step {:?} {} threads: min {:.1} ms  median {:.1} ms  cpu {:.1} ms  loss {loss:.4}  memory {} MiB",
        arguments.precision,
        arguments.threads,
        times[0] * 1e3,
        times[times.len() / 2] * 1e3,
        cpu[0] * 1e3,
        executor.memory_bytes() >> 20
    );
    if arguments.profile {
        print_profile(&executor);
    }
}

/// Seconds of the processor that the calling thread has used, where the system tells. On a loaded
/// machine this is steadier than the clock, for one thread.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
    nanoseconds.unwrap_or(0.0) * 1e-9
}

/// Time of each kind of node, the longest first.
fn print_profile(executor: &Executor) {
    let mut kinds: Vec<(String, f64, f64)> = Vec::new();
    for timing in executor.timings() {
        let name = format!("{} {:?}", timing.op, timing.shape);
        let (time, flops) = (timing.total.as_secs_f64(), timing.flops as f64);
        let calls = f64::from(timing.calls.max(1));
        match kinds.iter_mut().find(|kind| kind.0 == name) {
            Some(kind) => {
                kind.1 += time / calls;
                kind.2 += flops;
            }
            None => kinds.push((name, time / calls, flops)),
        }
    }
    kinds.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (name, time, flops) in kinds {
        println!("{:9.3} ms  {:7.1} GFLOP/s  {name}", time * 1e3, flops / time * 1e-9);
    }
}
