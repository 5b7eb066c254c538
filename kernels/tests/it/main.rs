//! Integration tests of the crate, one module a subject.

mod exec;
mod gpt;
mod ops;
mod program;
