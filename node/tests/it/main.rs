//! Integration tests of the crate, one module a subject.

mod cli;
mod dashboard;
mod ipc;
