//! Times of the operators at the shapes of one GPT training step (V8192 T256 d384 L6, 6 heads,
//! batch 8), on two threads.
//!
//! `cargo bench -p p2ptrain-kernels -- [--threads N] [FILTER]` prints for each operator and shape
//! the minimum and the median in milliseconds, and the rate. `pytorch_ops.py` beside this file
//! prints PyTorch's in the same form.

use std::hint::black_box;
use std::time::{Duration, Instant};

use p2ptrain_kernels::op::attention::{self, Attention, Gradients, Qkv};
use p2ptrain_kernels::op::gelu::{self, Form};
use p2ptrain_kernels::op::matmul::{self, Matrix, Scratch, Size, Store};
use p2ptrain_kernels::op::{embedding, layer_norm, reduce, softmax_xent};
use p2ptrain_kernels::optim::{self, AdamW};
use p2ptrain_kernels::primitive::pool::Pool;

const ROWS: usize = 2048;
const WIDTH: usize = 384;
const VOCAB: usize = 8192;

fn main() {
    let mut bench = Bench::from_arguments();
    products(&mut bench);
    attention(&mut bench);
    rows(&mut bench);
    optimizer(&mut bench);
}

/// Prints one line for each closure that the filter admits.
struct Bench {
    pool: Pool,
    filter: String,
}

impl Bench {
    fn from_arguments() -> Self {
        let (mut threads, mut filter) = (2, String::new());
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--threads" => {
                    let value = arguments.next().and_then(|value| value.parse().ok());
                    threads = value.expect("--threads takes a number");
                }
                _ => filter = argument,
            }
        }
        Self { pool: Pool::new(threads), filter }
    }

    /// Times `f` for about half a second; `work` operations or bytes per call give a rate in `unit`
    /// of 10⁹ per second.
    fn time(&mut self, name: &str, work: f64, unit: &str, mut f: impl FnMut(&Pool)) {
        if !name.contains(&self.filter) {
            return;
        }
        f(&self.pool);
        f(&self.pool);
        let mut times = Vec::new();
        let begin = Instant::now();
        let cpu = cpu_seconds();
        while times.len() < 7 || begin.elapsed() < Duration::from_millis(500) {
            let start = Instant::now();
            f(&self.pool);
            times.push(start.elapsed().as_secs_f64());
        }
        let cpu = (cpu_seconds() - cpu) / times.len() as f64 * 1e3;
        times.sort_by(f64::total_cmp);
        let (min, median) = (times[0], times[times.len() / 2]);
        println!(
            "{name:34} min {:8.3} ms  median {:8.3} ms  {:7.1} {unit}  cpu {cpu:8.3} ms",
            min * 1e3,
            median * 1e3,
            work / min * 1e-9
        );
    }
}

/// Seconds of the processor that the calling thread has used, where the system tells. On a loaded
/// machine this is steadier than the clock, for one thread.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
    nanoseconds.unwrap_or(0.0) * 1e-9
}

fn data(len: usize) -> Vec<f32> {
    (0..len).map(|index| ((index * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// The three products of each linear layer: `y = x wᵀ`, `dx = dy w`, `dw += dyᵀ x`.
fn products(bench: &mut Bench) {
    let mut scratch = Scratch::default();
    for (name, inputs, outputs) in [
        ("qkv", WIDTH, 3 * WIDTH),
        ("proj", WIDTH, WIDTH),
        ("up", WIDTH, 4 * WIDTH),
        ("down", 4 * WIDTH, WIDTH),
        ("head", WIDTH, VOCAB),
    ] {
        let (x, w) = (data(ROWS * inputs), data(outputs * inputs));
        let (mut y, mut dx, mut dw) =
            (data(ROWS * outputs), vec![0.0; x.len()], vec![0.0; w.len()]);
        let dy = data(ROWS * outputs);
        let work = 2.0 * (ROWS * inputs * outputs) as f64;
        let forward = Size { m: ROWS, n: outputs, k: inputs };
        let back = Size { m: ROWS, n: inputs, k: outputs };
        let weight = Size { m: outputs, n: inputs, k: ROWS };
        for (kind, product) in [("f32", matmul::f32 as Product), ("bf16", matmul::bf16)] {
            let plain = Matrix::plain;
            bench.time(&format!("{kind} {name} y"), work, "GFLOP/s", |pool| {
                let w = Matrix::transposed(&w);
                product(pool, &mut scratch, forward, plain(&x), w, &mut y, Store::Set);
            });
            bench.time(&format!("{kind} {name} dx"), work, "GFLOP/s", |pool| {
                product(pool, &mut scratch, back, plain(&dy), plain(&w), &mut dx, Store::Set);
            });
            bench.time(&format!("{kind} {name} dw"), work, "GFLOP/s", |pool| {
                let dy = Matrix::transposed(&dy);
                product(pool, &mut scratch, weight, dy, plain(&x), &mut dw, Store::Add);
            });
        }
        bench.time(&format!("gemm-crate {name} y"), work, "GFLOP/s", |pool| {
            gemm_by_rows(pool, forward, (&x, false), (&w, true), &mut y);
        });
        bench.time(&format!("gemm-crate {name} dx"), work, "GFLOP/s", |pool| {
            gemm_by_rows(pool, back, (&dy, false), (&w, false), &mut dx);
        });
        bench.time(&format!("gemm-crate {name} dw"), work, "GFLOP/s", |pool| {
            gemm_by_rows(pool, weight, (&dy, true), (&x, false), &mut dw);
        });
    }
}

type Product = fn(&Pool, &mut Scratch, Size, Matrix<'_>, Matrix<'_>, &mut [f32], Store<'_>);

/// The `gemm` crate, one call on each of two halves of the rows.
fn gemm_by_rows(pool: &Pool, size: Size, a: (&[f32], bool), b: (&[f32], bool), c: &mut [f32]) {
    use p2ptrain_kernels::primitive::pool::Chunks;
    let Size { m, n, k } = size;
    let rows = m.div_ceil(pool.threads());
    let strides = |transposed: bool, rows: usize, columns: usize| {
        if transposed { (rows as isize, 1) } else { (1, columns as isize) }
    };
    let chunks = Chunks::new(c, rows * n);
    pool.for_parts(chunks.count(), chunks, |task, c| {
        let (a_column, a_row) = strides(a.1, m, k);
        let (b_column, b_row) = strides(b.1, k, n);
        // SAFETY: the strides describe the slices, and each task has its own rows of `C`.
        unsafe {
            gemm::gemm(
                c.len() / n,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.0.as_ptr().offset((task * rows) as isize * a_row),
                a_column,
                a_row,
                b.0.as_ptr(),
                b_column,
                b_row,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
}

fn attention(bench: &mut Bench) {
    let shape =
        Attention { batch: 8, tokens: 256, heads: 6, head_dim: 64, causal: true, scale: 0.125 };
    let qkv = data(ROWS * 3 * WIDTH);
    let (mut y, mut lse) = (vec![0.0; ROWS * WIDTH], vec![0.0; ROWS * 6]);
    let dy = data(ROWS * WIDTH);
    let mut dqkv = vec![0.0; qkv.len()];
    // Products of the visible half of the scores: two forward, five backward.
    let work = (48 * 256 * 256 * 64) as f64;
    let packed = Qkv::packed(&shape, &qkv);
    bench.time("attention fwd", 2.0 * work, "GFLOP/s", |pool| {
        attention::fwd(pool, &shape, packed, &mut y, &mut lse);
    });
    attention::fwd(&bench.pool, &shape, packed, &mut y, &mut lse);
    bench.time("attention bwd", 5.0 * work, "GFLOP/s", |pool| {
        let gradients = Gradients::Packed(&mut dqkv);
        attention::bwd(pool, &shape, packed, &y, &lse, &dy, gradients);
    });
}

fn rows(bench: &mut Bench) {
    let x = data(ROWS * WIDTH);
    let (gamma, beta) = (data(WIDTH), data(WIDTH));
    let (mut y, mut mean, mut rstd) = (x.clone(), vec![0.0; ROWS], vec![0.0; ROWS]);
    let bytes = 4.0 * x.len() as f64;
    bench.time("layer_norm fwd", 2.0 * bytes, "GB/s", |pool| {
        layer_norm::fwd(pool, &x, &gamma, Some(&beta), 1e-5, &mut y, &mut mean, &mut rstd);
    });
    layer_norm::fwd(&bench.pool, &x, &gamma, Some(&beta), 1e-5, &mut y, &mut mean, &mut rstd);
    let dy = data(x.len());
    let (mut dgamma, mut dbeta) = (gamma.clone(), beta.clone());
    bench.time("layer_norm bwd", 3.0 * bytes, "GB/s", |pool| {
        let (gamma, mean, rstd) = (&gamma, &mean, &rstd);
        let dbeta = Some(&mut dbeta[..]);
        layer_norm::bwd(pool, &x, gamma, mean, rstd, &dy, &mut y, false, &mut dgamma, dbeta);
    });
    let hidden = data(4 * x.len());
    let mut out = hidden.clone();
    let bytes = 4.0 * hidden.len() as f64;
    let dhidden = data(hidden.len());
    for (name, form) in [("tanh", Form::Tanh), ("erf", Form::Exact)] {
        bench.time(&format!("gelu {name} fwd"), 2.0 * bytes, "GB/s", |pool| {
            gelu::fwd(pool, form, &hidden, &mut out);
        });
        bench.time(&format!("gelu {name} bwd"), 3.0 * bytes, "GB/s", |pool| {
            gelu::bwd(pool, form, &hidden, &dhidden, &mut out);
        });
    }
    let mut column = vec![0.0; 4 * WIDTH];
    bench.time("column sums", bytes, "GB/s", |pool| {
        reduce::first_axis(pool, reduce::Kind::Sum, &hidden, &mut column, true);
    });
    drop((hidden, dhidden, out));
    let mut logits = data(ROWS * VOCAB);
    let targets: Vec<i32> = (0..ROWS).map(|row| (row * 31 % VOCAB) as i32).collect();
    let mut losses = vec![0.0; ROWS];
    bench.time("softmax_xent fwd+bwd", 8.0 * logits.len() as f64, "GB/s", |pool| {
        softmax_xent::fwd_bwd(pool, &mut logits, &targets, 1.0, &mut losses).expect("targets");
    });
    bench.time("softmax_xent fwd", 4.0 * logits.len() as f64, "GB/s", |pool| {
        softmax_xent::fwd(pool, &logits, &targets, &mut losses).expect("targets");
    });
    drop(logits);
    let mut table = data(VOCAB * WIDTH);
    let bytes = 4.0 * x.len() as f64;
    bench.time("embedding fwd", 2.0 * bytes, "GB/s", |pool| {
        embedding::fwd(pool, WIDTH, &table, None, &targets, &mut y).expect("ids");
    });
    bench.time("embedding bwd", 3.0 * bytes, "GB/s", |pool| {
        embedding::bwd(pool, WIDTH, &dy, &targets, &mut table).expect("ids");
    });
    black_box((y, table));
}

fn optimizer(bench: &mut Bench) {
    let len = 13_900_000;
    let (mut p, g, mut m, mut v) = (data(len), data(len), vec![0.0; len], vec![0.0; len]);
    let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    bench.time("adamw 13.9M", 28.0 * len as f64, "GB/s", |pool| {
        optim::adamw(pool, &mut p, &g, &mut m, &mut v, 0.5, 1e-3, true, 10, &adam);
    });
    bench.time("sgd 13.9M", 20.0 * len as f64, "GB/s", |pool| {
        optim::sgd_momentum(pool, &mut p, &g, &mut m, 0.5, 1e-3, 0.9, false, 0.1, true);
    });
    bench.time("grad_norm_sq 13.9M", 4.0 * len as f64, "GB/s", |pool| {
        black_box(optim::grad_norm_sq(pool, &[&g]));
    });
}
