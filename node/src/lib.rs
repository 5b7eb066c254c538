//! Node.
pub mod identity;
pub mod net;
pub mod swarm_key;
