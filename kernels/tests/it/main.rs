//! Integration tests of the crate, one module a subject.

<<<<<<< HEAD
mod exec;
mod gpt;
mod program;
=======
mod ops;
>>>>>>> ops
