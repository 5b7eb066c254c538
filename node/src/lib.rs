//! The p2ptrain node: what the `p2ptrain` command is made of.
//!
//! In the order in which a command passes through them:
//!
//! - [`cli`]: the commands, their options and how errors are shown,
//! - [`logging`]: the bounded log file in the node's folder,
//! - [`doctor`] and [`profile`]: what this machine is, and whether it can take part,
//! - [`status`]: what a node tells about itself, updated by the driver,
//! - [`ipc`]: the local socket by which the other commands reach a running node,
//! - [`dashboard`]: the live display of a status, or its plain lines.

pub mod cli;
pub mod dashboard;
pub mod doctor;
pub mod ipc;
pub mod logging;
pub mod profile;
pub mod status;
