//! Chains of elementwise operations in one pass over memory.
//!
//! A [`Chain`] is a short postfix program. It is executed on blocks that stay in the first-level
//! cache, one vectorized loop an instruction, so a chain of any length reads its inputs once and
//! writes its result once.

use crate::op::ELEMENTS_PER_TASK;
use crate::primitive::lanes::larger;
use crate::primitive::math;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::scratch;
use crate::primitive::simd::{Simd, simd};

/// Elements in a block: with a stack of eight, 16 KiB.
const BLOCK: usize = 512;
/// The deepest stack a chain may use.
pub const DEPTH_MAX: usize = 16;
/// The longest chain.
pub const LEN_MAX: usize = 256;
/// The most inputs.
pub const INPUTS_MAX: usize = 16;

/// An operation on one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Unary {
    Neg,
    Abs,
    Exp,
    Ln,
    Tanh,
    Sigmoid,
    Relu,
    Erf,
    Sqrt,
    /// One divided by the square root.
    Rsqrt,
    /// One divided by the value.
    Recip,
    Square,
}

/// An operation on two values `a` (pushed first) and `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// NaN if either is.
    Max,
    /// NaN if either is.
    Min,
    /// `a` to the power of `b`.
    Pow,
    /// One if `a < b`, else zero.
    Less,
    /// One if `a <= b`, else zero.
    LessEqual,
    /// One if equal, else zero.
    Equal,
}

/// An instruction of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// Pushes an input.
    Input(u8),
    /// Pushes a number.
    Const(f32),
    /// Replaces the top of the stack.
    Unary(Unary),
    /// Replaces the two topmost values.
    Binary(Binary),
    /// Replaces the top `x` by `x * scale + offset`.
    Affine {
        /// Factor.
        scale: f32,
        /// Summand.
        offset: f32,
    },
    /// Replaces condition, `a` and `b` (pushed in this order) by `a` where the condition is not
    /// zero, else by `b`.
    Select,
    /// Pushes the top once more.
    Dup,
}

/// How an input meets the elements of the result.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// One element each.
    Full(&'a [f32]),
    /// Repeated: a vector over the last axis, or over several last axes.
    Row(&'a [f32]),
    /// Each element stands for `repeat` neighbours: a vector over the first axes.
    Column {
        /// The elements.
        data: &'a [f32],
        /// Elements of the result for each.
        repeat: usize,
    },
    /// One number.
    Scalar(f32),
}

/// Why a chain is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// More than [`LEN_MAX`] instructions.
    #[error("a chain of {0} instructions is longer than {LEN_MAX}")]
    TooLong(usize),
    /// More than [`DEPTH_MAX`] values at once.
    #[error("instruction {0} makes the stack deeper than {DEPTH_MAX}")]
    TooDeep(usize),
    /// An instruction without its operands.
    #[error("instruction {0} finds too few operands")]
    Underflow(usize),
    /// An input beyond the largest.
    #[error("instruction {0} reads an input beyond {INPUTS_MAX}")]
    Input(usize),
    /// The chain does not end with one value.
    #[error("the chain ends with {0} values instead of one")]
    Result(usize),
}

/// A checked chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    code: Vec<Instr>,
    inputs: usize,
    depth: usize,
}

impl Chain {
    /// Checks `code`: each instruction has its operands, and one value is left.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn new(code: Vec<Instr>) -> Result<Self, ChainError> {
        if code.len() > LEN_MAX {
            return Err(ChainError::TooLong(code.len()));
        }
        let (mut depth, mut deepest, mut inputs) = (0usize, 0usize, 0usize);
        for (at, instr) in code.iter().enumerate() {
            let (takes, leaves) = match *instr {
                Instr::Input(index) => {
                    if usize::from(index) >= INPUTS_MAX {
                        return Err(ChainError::Input(at));
                    }
                    inputs = inputs.max(usize::from(index) + 1);
                    (0, 1)
                }
                Instr::Const(_) => (0, 1),
                Instr::Unary(_) | Instr::Affine { .. } => (1, 1),
                Instr::Binary(_) => (2, 1),
                Instr::Select => (3, 1),
                Instr::Dup => (1, 2),
            };
            depth = depth.checked_sub(takes).ok_or(ChainError::Underflow(at))? + leaves;
            deepest = deepest.max(depth);
            if depth > DEPTH_MAX {
                return Err(ChainError::TooDeep(at));
            }
        }
        if depth != 1 {
            return Err(ChainError::Result(depth));
        }
        Ok(Self { code, inputs, depth: deepest })
    }

    /// The instructions.
    pub fn code(&self) -> &[Instr] {
        &self.code
    }

    /// How many inputs are read: one more than the largest index.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Computes `out`, or adds to it if `add`.
    ///
    /// # Panics
    /// If inputs are missing or do not fit the length of `out`.
    pub fn run(&self, pool: &Pool, inputs: &[Input<'_>], out: &mut [f32], add: bool) {
        let len = out.len();
        assert!(inputs.len() >= self.inputs, "{} inputs of {}", inputs.len(), self.inputs);
        for input in inputs {
            let fits = match *input {
                Input::Full(data) => data.len() == len,
                Input::Row(data) => len == 0 || !data.is_empty() && len.is_multiple_of(data.len()),
                Input::Column { data, repeat } => data.len() * repeat == len,
                Input::Scalar(_) => true,
            };
            assert!(fits, "an input does not fit {len} elements");
        }
        let chunks = Chunks::new(out, ELEMENTS_PER_TASK);
        pool.for_parts(chunks.count(), chunks, |task, out| {
            scratch::with(self.depth * BLOCK, |stack| {
                for (index, out) in out.chunks_mut(BLOCK).enumerate() {
                    let begin = task * ELEMENTS_PER_TASK + index * BLOCK;
                    self.block(inputs, begin, stack, out, add);
                }
            });
        });
    }

    fn block(
        &self,
        inputs: &[Input<'_>],
        begin: usize,
        stack: &mut [f32],
        out: &mut [f32],
        add: bool,
    ) {
        let len = out.len();
        // The stack's top is the row before `top`.
        let mut top = 0;
        for instr in &self.code {
            let (below, above) = stack.split_at_mut(top * BLOCK);
            // The `n`-th row from the top.
            let last = |n: usize| (top - n) * BLOCK;
            match *instr {
                Instr::Input(index) => {
                    load(inputs[usize::from(index)], begin, &mut above[..len]);
                    top += 1;
                }
                Instr::Const(x) => {
                    above[..len].fill(x);
                    top += 1;
                }
                Instr::Dup => {
                    above[..len].copy_from_slice(&below[last(1)..][..len]);
                    top += 1;
                }
                Instr::Unary(op) => unary(op, &mut below[last(1)..][..len]),
                Instr::Affine { scale, offset } => {
                    affine(&mut below[last(1)..][..len], scale, offset);
                }
                Instr::Binary(op) => {
                    let (a, b) = below[last(2)..].split_at_mut(BLOCK);
                    binary(op, &mut a[..len], &b[..len]);
                    top -= 1;
                }
                Instr::Select => {
                    let (condition, rest) = below[last(3)..].split_at_mut(BLOCK);
                    let (a, b) = rest.split_at(BLOCK);
                    select(&mut condition[..len], &a[..len], &b[..len]);
                    top -= 2;
                }
            }
        }
        if add {
            out.iter_mut().zip(&*stack).for_each(|(out, &x)| *out += x);
        } else {
            out.copy_from_slice(&stack[..len]);
        }
    }
}

/// Elements `begin..` of an input.
fn load(input: Input<'_>, begin: usize, out: &mut [f32]) {
    match input {
        Input::Full(data) => out.copy_from_slice(&data[begin..begin + out.len()]),
        Input::Scalar(x) => out.fill(x),
        Input::Row(data) => {
            let (mut from, mut rest) = (begin % data.len(), out);
            while !rest.is_empty() {
                let len = rest.len().min(data.len() - from);
                let (now, later) = rest.split_at_mut(len);
                now.copy_from_slice(&data[from..from + len]);
                (from, rest) = (0, later);
            }
        }
        Input::Column { data, repeat } => {
            let (mut index, mut used, mut rest) = (begin / repeat, begin % repeat, out);
            while !rest.is_empty() {
                let len = rest.len().min(repeat - used);
                let (now, later) = rest.split_at_mut(len);
                now.fill(data[index]);
                (index, used, rest) = (index + 1, 0, later);
            }
        }
    }
}

#[inline(always)]
fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
    x.iter_mut().for_each(|x| *x = f(*x));
}

#[inline(always)]
fn map2(a: &mut [f32], b: &[f32], f: impl Fn(f32, f32) -> f32) {
    a.iter_mut().zip(b).for_each(|(a, &b)| *a = f(*a, b));
}

/// `a` to the power of `b`, for `a` of either sign. Integers are exact powers of the sign.
fn pow(a: f32, b: f32) -> f32 {
    libm::powf(a, b)
}

#[inline(always)]
fn flag(condition: bool) -> f32 {
    if condition { 1.0 } else { 0.0 }
}

#[inline(always)]
fn apply<S: Simd>(op: Unary, x: &mut [f32]) {
    match op {
        Unary::Neg => map(x, |x| -x),
        Unary::Abs => map(x, f32::abs),
        Unary::Exp => map(x, math::exp::<S>),
        Unary::Ln => map(x, math::ln::<S>),
        Unary::Tanh => map(x, math::tanh::<S>),
        Unary::Sigmoid => map(x, math::sigmoid::<S>),
        Unary::Relu => map(x, |x| if x < 0.0 { 0.0 } else { x }),
        Unary::Erf => map(x, math::erf::<S>),
        Unary::Sqrt => map(x, f32::sqrt),
        Unary::Rsqrt => map(x, |x| 1.0 / x.sqrt()),
        Unary::Recip => map(x, |x| 1.0 / x),
        Unary::Square => map(x, |x| x * x),
    }
}

simd! {
    fn unary[S](op: Unary, x: &mut [f32]) {
        apply::<S>(op, x);
    }

    fn affine[S](x: &mut [f32], scale: f32, offset: f32) {
        map(x, |x| x * scale + offset);
    }

    fn binary[S](op: Binary, a: &mut [f32], b: &[f32]) {
        match op {
            Binary::Add => map2(a, b, |a, b| a + b),
            Binary::Sub => map2(a, b, |a, b| a - b),
            Binary::Mul => map2(a, b, |a, b| a * b),
            Binary::Div => map2(a, b, |a, b| a / b),
            Binary::Max => map2(a, b, larger),
            Binary::Min => map2(a, b, |a, b| -larger(-a, -b)),
            Binary::Pow => map2(a, b, pow),
            Binary::Less => map2(a, b, |a, b| flag(a < b)),
            Binary::LessEqual => map2(a, b, |a, b| flag(a <= b)),
            Binary::Equal => map2(a, b, |a, b| flag(a == b)),
        }
    }

    fn select[S](condition: &mut [f32], a: &[f32], b: &[f32]) {
        for ((c, &a), &b) in condition.iter_mut().zip(a).zip(b) {
            *c = if *c != 0.0 { a } else { b };
        }
    }
}
