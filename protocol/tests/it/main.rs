//! Integration tests of the crate, one module a subject.
#![allow(clippy::single_range_in_vec_init, reason = "shares are lists of ranges, often of one")]

mod all_reduce;
mod training;
mod wire_forms;
