//! The real driver of a node in simulated networks and virtual time.
//!
//! [`p2ptrain_node::driver::Driver`] is synchronous and knows no clock. Here it runs with effects that put events
//! into a queue of virtual time instead of opening sockets and threads: hours of a swarm in seconds, and
//! the same run again from the same [`Scenario`] and seed, message by message.
//!
//! Gradients are whole numbers, so that sums are exact in any order: a lost or doubled micro-batch shows
//! in the first element.
//!
//! | Module | What |
//! |---|---|
//! | [`scenario`] | what to simulate: nodes, links, job, faults; and what came of it |
//! | [`fault`] | what goes wrong, and when |
//! | [`link`] | how long bytes take |
//! | [`oracle`] | what must be true whatever goes wrong; knows neither workload nor faults |
//! | `clock` | the queue of virtual time |
//! | `fabric` | connections: who hears whom, in which order |
//! | `node` | one simulated machine: driver, worker, state |
//! | `world` | the loop over events |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod clock;
mod fabric;
pub mod fault;
pub mod link;
mod node;
pub mod oracle;
mod random;
pub mod scenario;
mod world;

pub use self::fault::Fault;
pub use self::link::LinkSpec;
pub use self::oracle::Violation;
pub use self::scenario::{Failure, NodeSpec, Outcome, Scenario};
