//! Node.

pub mod data;
pub mod job;
