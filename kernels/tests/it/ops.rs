//! Operators against plain references, finite differences and stored PyTorch values, for shapes of
//! zero, one, odd and more than a vector, on one, two and three threads.

mod attention;
mod differences;
mod edges;
mod levels;
mod matmul;
mod pytorch;

use p2ptrain_kernels::primitive::philox::philox;
use p2ptrain_kernels::primitive::pool::Pool;

/// Uniform numbers in -1..1, a function of the seed.
fn random(seed: u32, len: usize) -> Vec<f32> {
    (0..len)
        .map(|index| {
            let word = philox([seed, 7], [index as u32, 0, 0, 0])[0];
            (word >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Computes on one, two and three threads, requires the same bits, and returns the result.
fn on_threads<T: PartialEq + std::fmt::Debug>(compute: impl Fn(&Pool) -> T) -> T {
    let results: Vec<T> = (1..=3).map(|threads| compute(&Pool::new(threads))).collect();
    assert!(results[0] == results[1] && results[0] == results[2], "threads change the result");
    results.into_iter().next().expect("three results")
}

/// Requires `|got - expected| <= tolerance * (1 + |expected|)` everywhere.
#[track_caller]
fn assert_close(name: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{name}: length");
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= tolerance * (1.0 + expected.abs()) || got == expected,
            "{name}[{index}]: {got}, expected {expected}"
        );
    }
}

/// Requires that `gradient` is the derivative of `loss` at `x`, by central differences.
#[track_caller]
fn assert_gradient(
    name: &str,
    x: &[f32],
    gradient: &[f32],
    step: f32,
    tolerance: f32,
    loss: impl Fn(&[f32]) -> f64,
) {
    for index in 0..x.len() {
        let shifted = |by: f32| {
            let mut x = x.to_vec();
            x[index] += by;
            (loss(&x), f64::from(x[index]))
        };
        let ((above, high), (below, low)) = (shifted(step), shifted(-step));
        let expected = ((above - below) / (high - low)) as f32;
        let error = (gradient[index] - expected).abs();
        assert!(
            error <= tolerance * (1.0 + expected.abs()),
            "{name}[{index}]: {}, by differences {expected}",
            gradient[index]
        );
    }
}

/// The inner product in double precision: a scalar loss whose gradient is `weights`.
fn weigh(y: &[f32], weights: &[f32]) -> f64 {
    y.iter().zip(weights).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
}
