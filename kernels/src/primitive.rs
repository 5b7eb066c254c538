//! The sub-operator library: what every operator is composed of.
//!
//! - [`pool`]: fixed threads, and the division of work and of output slices among them,
//! - `simd`: run-time choice of the vector width, and the vector type that explicit kernels use,
//! - `math`: exponential, logarithm, error function and so on, branch-free so that they vectorize,
//! - `lanes`: sums and maxima in a fixed order,
//! - `tile`: the register-blocked product that matrix products and attention are built from,
//! - `scratch`: memory of each thread that grows once and is used again,
//! - [`philox`]: random numbers that are a function of their position.

pub mod philox;
pub mod pool;

pub(crate) mod lanes;
pub(crate) mod math;
pub(crate) mod scratch;
pub(crate) mod simd;
pub(crate) mod tile;
