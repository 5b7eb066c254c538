//! The p2ptrain node: what the `p2ptrain` command is made of.
//!
//! In the order in which a command, and then a step, passes through them:
//!
//! | Module | What |
//! |---|---|
//! | [`cli`] | the commands, their options and how errors are shown |
//! | [`logging`], [`doctor`], [`profile`] | the log file; what this machine is, and whether it can take part |
//! | [`job`] | `job.toml` and the description that travels to peers |
//! | [`data`] | from files to the samples of a step, on every machine |
//! | [`identity`], [`swarm_key`], [`net`] | who this node is, who may take part, and both planes of the network |
//! | [`driver`], [`effect`] | the one loop of a job: events into the protocol, outputs into effects |
//! | [`worker`], [`state`], [`optimizer`] | the thread that computes, what it trains, and the update |
//! | [`checkpoint`] | state on disk |
//! | [`status`], [`ipc`], [`dashboard`], [`trace`] | what a node tells about itself, to whom and how |
//! | [`runtime`] | all of the above as a running node |
//! | [`commands`] | the commands that run a node or work on its files |

pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod dashboard;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod driver;
pub mod effect;
pub mod identity;
pub mod ipc;
pub mod job;
pub mod logging;
pub mod net;
pub mod optimizer;
pub mod profile;
pub mod request;
pub mod runtime;
pub mod state;
pub mod status;
pub mod swarm_key;
pub mod trace;
pub mod worker;
