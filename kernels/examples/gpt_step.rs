//! Measures training steps of a GPT on this machine: time, memory, and where the time goes.
//!
//! `cargo run --release -p p2ptrain-kernels --example gpt_step -- [threads] [f32|bf16] [steps]`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use p2ptrain_kernels::model::{GptConfig, gpt};
use p2ptrain_kernels::optim::{AdamW, adamw};
use p2ptrain_kernels::primitive::pool::Pool;
use p2ptrain_kernels::{Executor, Input, Params, Precision, init_params};

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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let threads = words.next().map_or(Ok(2), |word| word.parse())?;
    let precision = match words.next().as_deref() {
        Some("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };
    let steps: u32 = words.next().map_or(Ok(5), |word| word.parse())?;

    let program = gpt(&CONFIG, BATCH)?;
    let mut executor = Executor::new(&program, threads, precision)?;
    let mut params = init_params(&program, 1);
    let zeros = Params::zeros(&program);
    let (mut grads, mut m, mut v) = (zeros.blocks.clone(), zeros.clone(), zeros.clone());
    let len = BATCH * CONFIG.block_size;
    let tokens: Vec<i32> = (0..len).map(|place| (place * 31 % CONFIG.vocab) as i32).collect();
    let targets: Vec<i32> = tokens.iter().map(|&token| (token + 31) % 8192).collect();
    let inputs = [Input::I32(&tokens), Input::I32(&targets)];
    let pool = Pool::new(threads);
    let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    let (mut compute, mut optimize) = (Vec::new(), Vec::new());
    for step in 0..=steps {
        if step == 1 {
            executor.profile(true);
        }
        let started = Instant::now();
        let loss = executor.step(&params, &inputs, &mut grads, &mut |_, _| ())?;
        let middle = Instant::now();
        for info in program.params() {
            let p = params.param_mut(info);
            let g = &grads[info.block][info.range()];
            let (m, v) = (m.param_mut(info), v.param_mut(info));
            let count = u64::from(step) + 1;
            adamw(&pool, p, g, m, v, 1.0, 1e-3, info.decay, count, &adam);
        }
        grads.iter_mut().for_each(|block| block.fill(0.0));
        if step > 0 {
            compute.push(middle - started);
            optimize.push(middle.elapsed());
        }
        println!("step {step}: loss {loss:.4}");
    }
    compute.sort();
    optimize.sort();
    let flops = executor.train_program().map_or(0, |program| program.flops());
    let median = compute[compute.len() / 2];
    println!("{} parameters, {threads} threads, {precision:?}", program.param_elements());
    println!(
        "forward and backward {median:?} (median), optimizer {:?}",
        optimize[optimize.len() / 2]
    );
    println!(
        "{:.1} GFLOP/s of {:.1} GFLOP",
        flops as f64 / median.as_secs_f64() / 1e9,
        flops as f64 / 1e9
    );
    println!("memory besides parameters and gradients: {} MB", executor.memory_bytes() / 1_000_000);
    print_profile(&executor, steps);
    Ok(())
}

fn print_profile(executor: &Executor, steps: u32) {
    let mut sums: BTreeMap<String, (Duration, u64, u32)> = BTreeMap::new();
    for timing in executor.timings() {
        let entry = sums.entry(format!("{} {}", timing.op, timing.shape)).or_default();
        entry.0 += timing.total / steps;
        entry.1 += timing.flops;
        entry.2 += 1;
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|(_, (time, _, _))| std::cmp::Reverse(*time));
    for (name, (time, flops, count)) in rows {
        let rate = flops as f64 / time.as_secs_f64() / 1e9;
        println!("{:8.2} ms  {count:3} x {name:50} {rate:6.1} GFLOP/s", time.as_secs_f64() * 1e3);
    }
}
