//! A quick measurement of this machine, for its advert: what it can compute per second, the memory
//! it can give, and how busy it is. It takes about a third of a second.

use std::fs;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::doctor::machine;

/// How long a rate is measured.
const MEASURE: Duration = Duration::from_millis(200);
/// Order of the matrices of the measurement: large enough for the kernels' full speed, and small
/// enough that several products fit into [`MEASURE`] on a slow machine.
const ORDER: usize = 384;
/// Bytes that the bandwidth measurement copies at once: beyond the usual caches.
const COPY_BYTES: usize = 64 << 20;

/// What a machine can do, as measured now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DeviceProfile {
    /// The processor's name.
    pub name: String,
    /// Cores that this process may use, limits of its control group included.
    pub cores: usize,
    /// Threads that the figures were measured with.
    pub threads: usize,
    /// Memory that can be had without pushing others out, limits of its control group included.
    pub memory_bytes: u64,
    /// Floating-point operations per second of an f32 matrix product, with `threads`.
    pub f32_flops_per_s: u64,
    /// Memory bandwidth of a copy with one thread, bytes read and written.
    pub copy_bytes_per_s: u64,
    /// Load average of the last minute, in thousandths of a core.
    pub load_permille: u32,
}

/// Measures this machine. `product` computes `c = a * b` for square row-major f32 matrices of the
/// given order with the kernels and threads that the training will use.
pub fn measure(
    threads: usize,
    mut product: impl FnMut(usize, &[f32], &[f32], &mut [f32]),
) -> DeviceProfile {
    let load_permille = load_permille();
    DeviceProfile {
        name: machine::cpu_name(),
        cores: usable_cores(),
        threads,
        memory_bytes: machine::Memory::read().usable_bytes(),
        f32_flops_per_s: flops_per_s(&mut product),
        copy_bytes_per_s: copy_bytes_per_s(),
        load_permille,
    }
}

/// Cores that this process may use: the system's affinity and the control group's quota.
pub fn usable_cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The best of several rounds, as others on the machine can only make a round slower.
fn flops_per_s(product: &mut impl FnMut(usize, &[f32], &[f32], &mut [f32])) -> u64 {
    let value = |i: usize| (i % 17) as f32 * 0.0625 - 0.5;
    let a: Vec<f32> = (0..ORDER * ORDER).map(value).collect();
    let b: Vec<f32> = (0..ORDER * ORDER).map(|i| value(i * 7)).collect();
    let mut c = vec![0.0; ORDER * ORDER];
    // The first product pays for cold caches, sleeping threads and lazily built tables.
    product(ORDER, &a, &b, &mut c);
    let flops = 2.0 * (ORDER as f64).powi(3);
    best_rate(flops, || product(ORDER, black_box(&a), black_box(&b), black_box(&mut c)))
}

fn copy_bytes_per_s() -> u64 {
    let words = COPY_BYTES / size_of::<u64>();
    let from = vec![1_u64; words];
    let mut to = vec![0_u64; words];
    best_rate(2.0 * COPY_BYTES as f64, || black_box(&mut to).copy_from_slice(black_box(&from)))
}

fn best_rate(work: f64, mut round: impl FnMut()) -> u64 {
    let start = Instant::now();
    let mut best = 0.0_f64;
    while start.elapsed() < MEASURE {
        let before = Instant::now();
        round();
        best = best.max(work / before.elapsed().as_secs_f64().max(1e-9));
    }
    best as u64
}

fn load_permille() -> u32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f32 = text.split_whitespace().next().and_then(|v| v.parse().ok()).unwrap_or(0.0);
    (load * 1000.0).clamp(0.0, 1e9) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_plausible_figures() {
        let mut products = 0;
        let profile = measure(1, |n, a, b, c| {
            products += 1;
            assert_eq!((a.len(), b.len(), c.len()), (n * n, n * n, n * n));
            thread::sleep(Duration::from_millis(10));
        });
        assert!(products > 2);
        // 2 * 384^3 operations in 10 ms are 11 GFLOP/s at most.
        assert!((1..12_000_000_000).contains(&profile.f32_flops_per_s), "{profile:?}");
        assert!(profile.cores >= 1 && profile.memory_bytes > 1 << 20, "{profile:?}");
        assert!(profile.copy_bytes_per_s > 10_000_000, "{profile:?}");
    }
}
