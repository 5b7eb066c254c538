//! Integration tests of the crate, one module a subject.

mod all_reduce;
mod training;
mod wire_forms;
