//! Integration tests of the crate, one module a subject.

mod exec;
mod exec_random;
mod gpt;
mod ops;
mod program;
