//! The real driver in simulated networks.

mod determinism;
mod faults;
mod partitions;
mod speed;
