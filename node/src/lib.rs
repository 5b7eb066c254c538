//! Node.

pub mod checkpoint;
pub mod data;
pub mod job;
