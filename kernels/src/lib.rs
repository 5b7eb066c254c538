//! Kernels.
pub mod dtype;
pub mod program;
pub mod shape;
