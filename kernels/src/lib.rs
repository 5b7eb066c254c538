//! Programs, automatic differentiation, operators and their execution for p2ptrain.
//!
//! In the order in which a model passes through them:
//!
//! - [`dtype`], [`shape`]: element types and bounded dimensions of values,
//! - [`program`]: the static graph with its builder, executable specification, text form, binary
//!   form and identity, and a plain reference interpreter that defines what it means,
//! - [`model`]: programs of built-in models, initial parameters, text generation,
//! - [`grad`]: differentiation by one table of rules; the backward is nodes of the same program,
//! - [`passes`]: rewriting a program into an equal, faster one,
//! - [`memory`]: the lifetime plan, from values to offsets in one arena,
//! - [`exec`]: the executor: one training step, evaluation, logits,
//! - [`op`]: the operators' kernels on slices, one module an operator,
//! - [`optim`]: optimizer steps, bit-identical on every CPU,
//! - [`primitive`]: the thread pool, vector helpers and random numbers beneath.

pub mod dtype;
pub mod exec;
pub mod grad;
pub mod memory;
pub mod model;
pub mod op;
pub mod optim;
pub mod passes;
pub mod primitive;
pub mod program;
pub mod shape;

pub use exec::{ExecError, Executor, Input, Precision};
pub use model::{Params, init_params};
pub use program::Program;
