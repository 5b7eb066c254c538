//! The real driver in simulated networks.

mod determinism;
mod faults;
mod speed;
