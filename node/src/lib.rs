//! The p2ptrain node: what the `p2ptrain` command is made of.
pub mod checkpoint;
pub mod data;
pub mod identity;
pub mod job;
pub mod net;
pub mod swarm_key;
