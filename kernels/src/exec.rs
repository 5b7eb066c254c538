//! The executor: runs a program on this machine's CPU with planned memory.

use std::time::{Duration, Instant};

use thiserror::Error;

use crate::dtype::DType;
use crate::grad::{self, GradError};
use crate::model::Params;
use crate::op::matmul::Scratch;
use crate::passes;
use crate::primitive::pool::Pool;
use crate::program::{LOGITS, LOSS, Program, SpecError};
use crate::shape::Shape;

mod arena;
mod chain;
mod compile;
mod kernel;

use arena::Arena;
use compile::Compiled;

/// Precision of matrix products. Parameters, norms, softmax, the loss and all sums are f32 either
/// way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Operands in f32.
    F32,
    /// Operands rounded to bfloat16, products summed in f32.
    Bf16,
}

/// An input of a program, row-major.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Indices.
    I32(&'a [i32]),
    /// Floating point.
    F32(&'a [f32]),
}

/// Why a program cannot be run.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The program breaks the specification.
    #[error("invalid program: {0}")]
    Spec(#[from] SpecError),
    /// The program cannot be differentiated.
    #[error(transparent)]
    Grad(#[from] GradError),
    /// The program has no output of this name.
    #[error("the program has no output {0:?}, or this executor was not made for it")]
    NoOutput(&'static str),
    /// The memory that the program needs cannot be had.
    #[error("the program needs {bytes} bytes of memory, which cannot be had")]
    OutOfMemory {
        /// Bytes needed.
        bytes: usize,
    },
    /// An input is missing.
    #[error("the program takes {expected} inputs, {found} were given")]
    InputCount {
        /// Inputs of the program.
        expected: usize,
        /// Inputs given.
        found: usize,
    },
    /// An input has the wrong type or number of elements.
    #[error("input {name} must hold {expected} elements of {dtype}, holds {found} of {given}")]
    InputForm {
        /// Name of the input.
        name: String,
        /// Elements that the program declares.
        expected: usize,
        /// Type that the program declares.
        dtype: DType,
        /// Elements given.
        found: usize,
        /// Type given.
        given: DType,
    },
    /// An index is out of range.
    #[error("input {name} holds {value} at {position}, allowed are {min}..{end}")]
    Index {
        /// Name of the input.
        name: String,
        /// Place of the element.
        position: usize,
        /// Its value.
        value: i32,
        /// Smallest allowed.
        min: i32,
        /// First not allowed.
        end: usize,
    },
    /// Parameters or gradients do not have the program's layout.
    #[error("{what}: block {block} must hold {expected} elements, holds {found}")]
    BlockLen {
        /// Parameters or gradients.
        what: &'static str,
        /// Which block.
        block: usize,
        /// Elements that the program declares.
        expected: usize,
        /// Elements given.
        found: usize,
    },
}

/// Time that a node has taken, for traces.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Operator.
    pub op: &'static str,
    /// Block of the model.
    pub block: usize,
    /// Shape of the first output.
    pub shape: Shape,
    /// Floating-point operations of one call, where the operator is a product.
    pub flops: u64,
    /// Calls so far.
    pub calls: u32,
    /// Sum over all calls.
    pub total: Duration,
    /// When the last call began, from the beginning of its step.
    pub last_start: Duration,
    /// What the last call took.
    pub last: Duration,
}

/// Runs one program: training steps, evaluation and logits. Memory is planned and allocated when
/// it is made; a step allocates nothing.
#[derive(Debug)]
pub struct Executor {
    train: Option<Compiled>,
    evaluation: Option<Compiled>,
    logits: Option<Compiled>,
    machine: Machine,
}

/// What compiled programs run on.
struct Machine {
    pool: Pool,
    scratch: Scratch,
    precision: Precision,
    arena: Arena,
    profile: bool,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("threads", &self.pool.threads())
            .field("precision", &self.precision)
            .field("arena_len", &self.arena.len())
            .finish_non_exhaustive()
    }
}

impl Executor {
    /// For training, evaluation and logits of a program with an output `loss`. The computation is
    /// the same for any number of threads.
    pub fn new(program: &Program, threads: usize, precision: Precision) -> Result<Self, ExecError> {
        let mut executor = Self::inference(program, threads, precision)?;
        let train = training_program(program)?;
        let train = Compiled::new(train, LOSS)?;
        executor.machine.arena.reserve(train.arena_len())?;
        executor.train = Some(train);
        Ok(executor)
    }

    /// Bytes that [`Executor::new`] would allocate for a program's values, without allocating
    /// them: what to check before a program from elsewhere is run.
    pub fn bytes_needed(program: &Program) -> Result<usize, ExecError> {
        program.verify()?;
        let train = Compiled::new(training_program(program)?, LOSS)?;
        let evaluation = Compiled::new(forward_program(program, LOSS)?, LOSS)?;
        let len = train.arena_len().max(evaluation.arena_len());
        Ok(Arena::bytes_for(len))
    }

    /// For evaluation and logits only, in much less memory.
    pub fn inference(
        program: &Program,
        threads: usize,
        precision: Precision,
    ) -> Result<Self, ExecError> {
        program.verify()?;
        let compile = |output| match program.output(output) {
            Some(_) => Compiled::new(forward_program(program, output)?, output).map(Some),
            None => Ok(None),
        };
        let (evaluation, logits) = (compile(LOSS)?, compile(LOGITS)?);
        let mut machine = Machine {
            pool: Pool::new(threads),
            scratch: Scratch::default(),
            precision,
            arena: Arena::default(),
            profile: false,
        };
        // Logits are held whole only by who asks for them: their memory comes with the first call.
        machine.arena.reserve(evaluation.as_ref().map_or(0, Compiled::arena_len))?;
        Ok(Self { train: None, evaluation, logits, machine })
    }

    /// Forward and backward of one micro-batch. Adds each parameter's gradient of the mean loss to
    /// `grads`, calls `on_block` as soon as a block's gradient is complete (each block once; the
    /// buffer may be taken out, provided one of the same length is there at the next step), and
    /// returns the loss. Nothing is written where an input or buffer is refused.
    pub fn step(
        &mut self,
        params: &Params,
        inputs: &[Input<'_>],
        grads: &mut [Vec<f32>],
        on_block: &mut dyn FnMut(usize, &mut Vec<f32>),
    ) -> Result<f32, ExecError> {
        let compiled = self.train.as_mut().ok_or(ExecError::NoOutput(LOSS))?;
        compiled.check_blocks("gradients", grads)?;
        compiled.run(&mut self.machine, params, inputs, grads, on_block)?;
        Ok(compiled.result(&self.machine)[0])
    }

    /// The loss, forward only.
    pub fn evaluate(&mut self, params: &Params, inputs: &[Input<'_>]) -> Result<f32, ExecError> {
        let compiled = self.evaluation.as_mut().ok_or(ExecError::NoOutput(LOSS))?;
        compiled.run(&mut self.machine, params, inputs, &mut [], &mut |_, _| ())?;
        Ok(compiled.result(&self.machine)[0])
    }

    /// The output `logits`, forward only. Inputs that it does not depend on may be left out at the
    /// end, such as the targets of a language model.
    pub fn logits(&mut self, params: &Params, inputs: &[Input<'_>]) -> Result<&[f32], ExecError> {
        let compiled = self.logits.as_mut().ok_or(ExecError::NoOutput(LOGITS))?;
        self.machine.arena.reserve(compiled.arena_len())?;
        compiled.run(&mut self.machine, params, inputs, &mut [], &mut |_, _| ())?;
        Ok(compiled.result(&self.machine))
    }

    /// Shape of the output `logits`.
    pub fn logits_shape(&self) -> Option<Shape> {
        self.logits.as_ref().map(Compiled::result_shape)
    }

    /// Bytes held besides parameters and gradients: the arena and the products' packing buffers.
    pub fn memory_bytes(&self) -> usize {
        self.machine.arena.bytes() + self.machine.scratch.bytes()
    }

    /// The program that a step runs: forward and backward after all passes.
    pub fn train_program(&self) -> Option<&Program> {
        self.train.as_ref().map(Compiled::program)
    }

    /// Whether steps measure each node from now on.
    pub fn profile(&mut self, on: bool) {
        self.machine.profile = on;
    }

    /// What has been measured of a training step's nodes, in the order in which they run.
    pub fn timings(&self) -> Vec<Timing> {
        self.train.as_ref().map_or_else(Vec::new, Compiled::timings)
    }
}

impl Machine {
    fn start(&self) -> Option<Instant> {
        self.profile.then(Instant::now)
    }
}

/// Forward and backward of the output `loss`, after all passes. A program that has its backward
/// already keeps it.
pub fn training_program(program: &Program) -> Result<Program, ExecError> {
    let forward = passes::keep_outputs(program, &[LOSS])?;
    let both = if program.grads.is_empty() {
        passes::remove_dead(&grad::differentiate(&fuse_forward(&forward)?)?)?
    } else {
        forward
    };
    let both = passes::share_common(&passes::share_head_loss(&both)?)?;
    let both = passes::fuse_norm_sum(&passes::fuse_gelu_grad(&both)?)?;
    Ok(passes::fuse_elementwise(&both)?)
}

/// The forward of one output, after all passes.
fn forward_program(program: &Program, output: &'static str) -> Result<Program, ExecError> {
    let mut forward = program.clone();
    forward.grads.clear();
    let forward = passes::keep_outputs(&forward, &[output])?;
    let forward = fuse_forward(&forward)?;
    Ok(passes::fuse_elementwise(&passes::share_common(&forward)?)?)
}

/// Joins what has a rule for its gradient.
fn fuse_forward(program: &Program) -> Result<Program, SpecError> {
    passes::fuse_head(&passes::fuse_residual(&passes::fuse_gelu(program)?)?)
}
