//! Kernels.
pub mod op;
pub mod optim;
pub mod primitive;
