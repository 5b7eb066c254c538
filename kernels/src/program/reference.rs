//! The meaning of programs: each operator in its plainest form, in `f64` or `f32`.
//!
//! Tests hold every fast kernel and every gradient rule against this; the executor falls back to
//! it for operators that have no kernel of their own.

use std::f64::consts::FRAC_1_SQRT_2;

use super::op::{BinaryKind, Epilogue, Instr, Op, ReduceKind, UnaryKind};
use super::spec::{FUSED_STACK_MAX, NODE_INPUTS_MAX};
use super::{Program, Value};
use crate::dtype::DType;
use crate::shape::{RANK_MAX, Shape};

/// `sqrt(2 / pi)`
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
/// `1 / sqrt(2 pi)`
const FRAC_1_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

mod image;
mod real;

pub use real::Real;

/// Contents of a value.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a, T> {
    /// Floating point.
    Real(&'a [T]),
    /// Indices.
    Index(&'a [i32]),
}

/// An input of an operator.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a, T> {
    /// Dimensions.
    pub shape: &'a Shape,
    /// Contents, row-major.
    pub data: Data<'a, T>,
}

impl<'a, T> Operand<'a, T> {
    fn real(&self) -> &'a [T] {
        match self.data {
            Data::Real(data) => data,
            Data::Index(_) => unreachable!("the specification asks for a floating-point input"),
        }
    }

    fn index(&self) -> &'a [i32] {
        match self.data {
            Data::Index(data) => data,
            Data::Real(_) => unreachable!("the specification asks for an index input"),
        }
    }
}

/// An input of a program in the reference's own storage.
#[derive(Debug, Clone)]
pub enum Tensor<T> {
    /// Floating point.
    Real(Vec<T>),
    /// Indices.
    Index(Vec<i32>),
}

/// What a run of a program yields.
#[derive(Debug)]
pub struct Results<T> {
    /// Named results in the program's order.
    pub outputs: Vec<Vec<T>>,
    /// Gradient of each parameter, summed over its contributions; zero where it has none.
    pub grads: Vec<Vec<T>>,
}

/// Runs a verified program. `params` holds one vector a parameter.
pub fn run<T: Real>(program: &Program, params: &[Vec<T>], inputs: &[Tensor<T>]) -> Results<T> {
    let mut run = Run { program, params, inputs, values: Vec::new() };
    for node in &program.nodes {
        let shapes: Vec<Shape> =
            node.inputs.iter().map(|&value| program.type_of(value).shape).collect();
        let operands: Vec<Operand<'_, T>> = node
            .inputs
            .iter()
            .zip(&shapes)
            .map(|(&value, shape)| Operand { shape, data: run.data(value) })
            .collect();
        let mut outputs: Vec<Vec<T>> = node
            .outputs
            .iter()
            .map(|ty| match ty.dtype {
                DType::F32 => vec![T::ZERO; ty.shape.elements()],
                DType::I32 => Vec::new(),
            })
            .collect();
        if node.outputs[0].dtype == DType::F32 {
            let out_shapes: Vec<&Shape> = node.outputs.iter().map(|ty| &ty.shape).collect();
            let mut slices: Vec<&mut [T]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            evaluate(&node.op, &operands, &out_shapes, &mut slices);
        }
        run.values.push(outputs);
    }
    let real = |value| match run.data(value) {
        Data::Real(data) => data.to_vec(),
        Data::Index(data) => data.iter().map(|&index| T::of(f64::from(index))).collect(),
    };
    let outputs = program.outputs.iter().map(|output| real(output.value)).collect();
    let mut grads: Vec<Vec<T>> = params.iter().map(|param| vec![T::ZERO; param.len()]).collect();
    for grad in &program.grads {
        for (sum, part) in grads[grad.param as usize].iter_mut().zip(real(grad.value)) {
            *sum = *sum + part;
        }
    }
    Results { outputs, grads }
}

struct Run<'a, T> {
    program: &'a Program,
    params: &'a [Vec<T>],
    inputs: &'a [Tensor<T>],
    values: Vec<Vec<Vec<T>>>,
}

impl<T> Run<'_, T> {
    fn data(&self, value: Value) -> Data<'_, T> {
        match value {
            Value::Param(index) => Data::Real(&self.params[index as usize]),
            Value::Input(index) => match &self.inputs[index as usize] {
                Tensor::Real(data) => Data::Real(data),
                Tensor::Index(data) => Data::Index(data),
            },
            Value::Node(node, slot) => {
                let info = &self.program.nodes[node as usize];
                if info.outputs[usize::from(slot)].dtype == DType::I32 {
                    // Only a reshape yields indices, and it does not change them.
                    return self.data(info.inputs[0]);
                }
                Data::Real(&self.values[node as usize][usize::from(slot)])
            }
        }
    }
}

/// Evaluates one operator into its outputs, overwriting them. Inputs and outputs must be as
/// [`super::spec::infer`] says, and indices within their bounds. Allocates nothing.
pub fn evaluate<T: Real>(
    op: &Op,
    inputs: &[Operand<'_, T>],
    shapes: &[&Shape],
    outputs: &mut [&mut [T]],
) {
    let real = |place: usize| inputs[place].real();
    let shape = |place: usize| inputs[place].shape;
    match op {
        Op::Constant { value, .. } => outputs[0].fill(T::of(f64::from(*value))),
        Op::Embedding => {
            let (table, width) = (real(0), shapes[0].last());
            for (row, &token) in outputs[0].chunks_exact_mut(width).zip(inputs[1].index()) {
                let start = token as usize * width;
                row.copy_from_slice(&table[start..start + width]);
            }
        }
        Op::EmbeddingGrad { .. } => {
            let width = shapes[0].last();
            outputs[0].fill(T::ZERO);
            for (row, &token) in real(1).chunks_exact(width).zip(inputs[0].index()) {
                add_to(&mut outputs[0][token as usize * width..][..width], row);
            }
        }
        Op::Linear { epilogue } => {
            let residual = usize::from(*epilogue == Epilogue::Residual);
            let bias = (inputs.len() == 3 + residual).then(|| real(2));
            linear(*epilogue, real(0), real(1), bias, shape(0).last(), outputs);
            if residual == 1 {
                add_to(outputs[0], real(inputs.len() - 1));
            }
        }
        Op::MatMul { ta, tb } => {
            let (m, n) = (shapes[0].rows(), shapes[0].last());
            let (a, b) = (shape(0), shape(1));
            let k = if *tb { b.last() } else { b[b.rank() - 2] };
            let batches = if b.rank() == 2 { 1 } else { b[..b.rank() - 2].iter().product() };
            debug_assert!(!ta || batches > 1 || a.rank() == 2 || a.rank() == b.rank());
            let rows = m / batches;
            for batch in 0..batches {
                let a = &real(0)[batch * rows * k..][..rows * k];
                let b = &real(1)[batch * k * n..][..k * n];
                let c = &mut outputs[0][batch * rows * n..][..rows * n];
                product((rows, n, k), (a, *ta), (b, *tb), c);
            }
        }
        Op::MatMulGeluGrad { kind } => {
            let (m, n, k) = (shapes[0].rows(), shapes[0].last(), shape(0).last());
            product((m, n, k), (real(0), false), (real(1), false), outputs[0]);
            for (y, &x) in outputs[0].iter_mut().zip(real(2)) {
                *y = binary(*kind, x, *y);
            }
        }
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => norm(op, inputs, outputs),
        Op::LayerNormGrad | Op::RmsNormGrad => {
            let own = if *op == Op::LayerNormGrad { 5 } else { 4 };
            norm(op, &inputs[..own], outputs);
            if let Some(base) = inputs.get(own) {
                add_to(outputs[0], base.real());
            }
        }
        Op::Unary(_) | Op::Binary(_) | Op::Fused(_) => elementwise(op, inputs, shapes[0], outputs),
        Op::Attention { heads, causal } => attention(*heads, *causal, shape(0), real(0), outputs),
        Op::AttentionGrad { heads, causal } => {
            attention_grad(*heads, *causal, shape(0), [real(0), real(2), real(3)], outputs[0]);
        }
        Op::Softmax => {
            let width = shapes[0].last();
            for (y, x) in outputs[0].chunks_exact_mut(width).zip(real(0).chunks_exact(width)) {
                softmax(x, y);
            }
        }
        Op::SoftmaxGrad => {
            let width = shapes[0].last();
            let rows = real(0).chunks_exact(width).zip(real(1).chunks_exact(width));
            for (dx, (y, dy)) in outputs[0].chunks_exact_mut(width).zip(rows) {
                let mean = dot(y, dy);
                for (place, dx) in dx.iter_mut().enumerate() {
                    *dx = y[place] * (dy[place] - mean);
                }
            }
        }
        Op::CrossEntropy => {
            outputs[0][0] = cross_entropy(real(0), inputs[1].index(), shape(0).last());
        }
        Op::CrossEntropyGrad => {
            let (targets, width) = (inputs[1].index(), shape(0).last());
            outputs[0].copy_from_slice(real(0));
            cross_entropy_grad(outputs[0], targets, width, real(2)[0] / counted(targets));
        }
        Op::LinearCrossEntropy | Op::LinearCrossEntropyGrad => {
            linear_cross_entropy(op, inputs, outputs);
        }
        Op::Reshape { .. } => outputs[0].copy_from_slice(real(0)),
        Op::Cast { .. } => {
            for (y, &x) in outputs[0].iter_mut().zip(inputs[0].index()) {
                *y = T::of(f64::from(x));
            }
        }
        Op::Permute { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Concat { .. }
        | Op::Broadcast { .. } => movement(op, inputs, shapes[0], outputs[0]),
        Op::Reduce { kind, axes, .. } => reduce(*kind, axes, inputs[0], outputs[0]),
        Op::Conv2d(_) | Op::Conv2dGrad(_) | Op::Pool2d { .. } | Op::Pool2dGrad { .. } => {
            image::evaluate(op, inputs, shapes[0], outputs)
        }
    }
}

fn add_to<T: Real>(sum: &mut [T], part: &[T]) {
    for (sum, &part) in sum.iter_mut().zip(part) {
        *sum = *sum + part;
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::ZERO, |sum, (&a, &b)| sum + a * b)
}

/// `c = op(a) op(b)`, where a flag says that the operand is stored transposed.
fn product<T: Real>(
    (m, n, k): (usize, usize, usize),
    (a, ta): (&[T], bool),
    (b, tb): (&[T], bool),
    c: &mut [T],
) {
    for row in 0..m {
        for column in 0..n {
            let mut sum = T::ZERO;
            for inner in 0..k {
                let a = if ta { a[inner * m + row] } else { a[row * k + inner] };
                let b = if tb { b[column * k + inner] } else { b[inner * n + column] };
                sum = sum + a * b;
            }
            c[row * n + column] = sum;
        }
    }
}

fn linear<T: Real>(
    epilogue: Epilogue,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    width: usize,
    outputs: &mut [&mut [T]],
) {
    let (rows, columns) = (x.len() / width, w.len() / width);
    let (first, rest) = outputs.split_first_mut().expect("a linear layer has an output");
    product((rows, columns, width), (x, false), (w, true), first);
    if let Some(bias) = bias {
        first.chunks_exact_mut(columns).for_each(|row| add_to(row, bias));
    }
    let kind = match epilogue {
        Epilogue::None | Epilogue::Residual => return,
        Epilogue::GeluErf => UnaryKind::GeluErf,
        Epilogue::GeluTanh => UnaryKind::GeluTanh,
    };
    rest[0].copy_from_slice(first);
    first.iter_mut().for_each(|y| *y = unary(kind, *y));
}

fn norm<T: Real>(op: &Op, inputs: &[Operand<'_, T>], outputs: &mut [&mut [T]]) {
    let width = inputs[0].shape.last();
    let count = T::of(width as f64);
    let (x, gamma) = (inputs[0].real(), inputs[1].real());
    let rows = x.len() / width;
    match op {
        Op::LayerNorm { eps } | Op::RmsNorm { eps } => {
            let centred = matches!(op, Op::LayerNorm { .. });
            let beta = inputs.get(2).map(Operand::real);
            for row in 0..rows {
                let x = &x[row * width..][..width];
                let sum = x.iter().fold(T::ZERO, |sum, &x| sum + x);
                let mean = if centred { sum / count } else { T::ZERO };
                let square = x.iter().fold(T::ZERO, |sum, &x| sum + (x - mean) * (x - mean));
                let rstd = T::ONE / (square / count + T::of(f64::from(*eps))).sqrt();
                for place in 0..width {
                    let shift = beta.map_or(T::ZERO, |beta| beta[place]);
                    outputs[0][row * width + place] =
                        (x[place] - mean) * rstd * gamma[place] + shift;
                }
                if centred {
                    outputs[1][row] = mean;
                }
                outputs[if centred { 2 } else { 1 }][row] = rstd;
            }
        }
        _ => {
            let centred = *op == Op::LayerNormGrad;
            let (rstd, dy) = (inputs[inputs.len() - 2].real(), inputs[inputs.len() - 1].real());
            outputs[1..].iter_mut().for_each(|output| output.fill(T::ZERO));
            for row in 0..rows {
                let (x, dy) = (&x[row * width..][..width], &dy[row * width..][..width]);
                let mean = if centred { inputs[2].real()[row] } else { T::ZERO };
                let (mut sum, mut sum_x) = (T::ZERO, T::ZERO);
                for place in 0..width {
                    let normal = (x[place] - mean) * rstd[row];
                    sum = sum + dy[place] * gamma[place];
                    sum_x = sum_x + dy[place] * gamma[place] * normal;
                    outputs[1][place] = outputs[1][place] + dy[place] * normal;
                    if centred {
                        outputs[2][place] = outputs[2][place] + dy[place];
                    }
                }
                let shift = if centred { sum / count } else { T::ZERO };
                for place in 0..width {
                    let normal = (x[place] - mean) * rstd[row];
                    outputs[0][row * width + place] =
                        rstd[row] * (dy[place] * gamma[place] - shift - normal * sum_x / count);
                }
            }
        }
    }
}

/// One elementwise function.
pub(crate) fn unary<T: Real>(kind: UnaryKind, x: T) -> T {
    let of = T::of;
    match kind {
        UnaryKind::Neg => T::ZERO - x,
        UnaryKind::Exp => x.exp(),
        UnaryKind::Log => x.ln(),
        UnaryKind::Tanh => x.tanh(),
        UnaryKind::Sigmoid => T::ONE / (T::ONE + (T::ZERO - x).exp()),
        UnaryKind::Relu => x.max(T::ZERO),
        UnaryKind::Sqrt => x.sqrt(),
        UnaryKind::Rsqrt => T::ONE / x.sqrt(),
        UnaryKind::GeluErf => of(0.5) * x * (T::ONE + (x * of(FRAC_1_SQRT_2)).erf()),
        UnaryKind::GeluTanh => of(0.5) * x * (T::ONE + gelu_inner(x).tanh()),
        UnaryKind::Scale(factor) => x * of(f64::from(factor)),
        UnaryKind::Offset(offset) => x + of(f64::from(offset)),
    }
}

/// The argument of tanh in gelu's approximation.
fn gelu_inner<T: Real>(x: T) -> T {
    T::of(SQRT_2_OVER_PI) * (x + T::of(0.044715) * x * x * x)
}

/// One elementwise function of two values.
pub(crate) fn binary<T: Real>(kind: BinaryKind, a: T, b: T) -> T {
    let of = T::of;
    match kind {
        BinaryKind::Add => a + b,
        BinaryKind::Sub => a - b,
        BinaryKind::Mul => a * b,
        BinaryKind::Div => a / b,
        BinaryKind::Max => a.max(b),
        BinaryKind::Min => T::ZERO - (T::ZERO - a).max(T::ZERO - b),
        BinaryKind::Equal => {
            if a == b {
                T::ONE
            } else {
                T::ZERO
            }
        }
        BinaryKind::Less => {
            if a < b {
                T::ONE
            } else {
                T::ZERO
            }
        }
        BinaryKind::ReluGrad => {
            if a > T::ZERO {
                b
            } else {
                T::ZERO
            }
        }
        BinaryKind::GeluErfGrad => {
            let distribution = of(0.5) * (T::ONE + (a * of(FRAC_1_SQRT_2)).erf());
            let density = of(FRAC_1_SQRT_2PI) * (of(-0.5) * a * a).exp();
            b * (distribution + a * density)
        }
        BinaryKind::GeluTanhGrad => {
            let tanh = gelu_inner(a).tanh();
            let inner = of(SQRT_2_OVER_PI) * (T::ONE + of(3.0 * 0.044715) * a * a);
            let slope = of(0.5) * a * (T::ONE - tanh * tanh) * inner;
            b * (of(0.5) * (T::ONE + tanh) + slope)
        }
    }
}

fn elementwise<T: Real>(
    op: &Op,
    inputs: &[Operand<'_, T>],
    shape: &Shape,
    outputs: &mut [&mut [T]],
) {
    let mut strides = [[0; RANK_MAX]; NODE_INPUTS_MAX];
    for (strides, input) in strides.iter_mut().zip(inputs) {
        *strides = broadcast_strides(input.shape, shape);
    }
    let mut walk = Walk::new(shape);
    for place in 0..outputs[0].len() {
        let read = |input: usize| inputs[input].real()[walk.offset(&strides[input])];
        outputs[0][place] = match op {
            Op::Unary(kind) => unary(*kind, read(0)),
            Op::Binary(kind) => binary(*kind, read(0), read(1)),
            Op::Fused(code) => chain(code, read),
            _ => unreachable!("elementwise is called for elementwise operators only"),
        };
        walk.next();
    }
}

/// Runs a verified postfix chain.
pub(crate) fn chain<T: Real>(code: &[Instr], read: impl Fn(usize) -> T) -> T {
    let mut stack = [T::ZERO; FUSED_STACK_MAX];
    let mut depth = 0;
    for instr in code {
        match instr {
            Instr::Input(place) => {
                stack[depth] = read(usize::from(*place));
                depth += 1;
            }
            Instr::Unary(kind) => stack[depth - 1] = unary(*kind, stack[depth - 1]),
            Instr::Binary(kind) => {
                depth -= 1;
                stack[depth - 1] = binary(*kind, stack[depth - 1], stack[depth]);
            }
        }
    }
    stack[0]
}

fn attention<T: Real>(
    heads: usize,
    causal: bool,
    shape: &Shape,
    qkv: &[T],
    outputs: &mut [&mut [T]],
) {
    let (batch, time, width) = (shape[0], shape[1], shape[2] / 3);
    let depth = width / heads;
    let scale = T::ONE / T::of(depth as f64).sqrt();
    for b in 0..batch {
        for h in 0..heads {
            let row = |t: usize, which: usize| {
                &qkv[(b * time + t) * 3 * width + which * width + h * depth..][..depth]
            };
            for t in 0..time {
                let seen = if causal { t + 1 } else { time };
                let score = |s: usize| dot(row(t, 0), row(s, 1)) * scale;
                let top = (0..seen).map(score).fold(T::LOWEST, T::max);
                let sum = (0..seen).fold(T::ZERO, |sum, s| sum + (score(s) - top).exp());
                let y = &mut outputs[0][(b * time + t) * width + h * depth..][..depth];
                y.fill(T::ZERO);
                for s in 0..seen {
                    let weight = (score(s) - top).exp() / sum;
                    for (y, &v) in y.iter_mut().zip(row(s, 2)) {
                        *y = *y + weight * v;
                    }
                }
                outputs[1][(b * heads + h) * time + t] = top + sum.ln();
            }
        }
    }
}

fn attention_grad<T: Real>(
    heads: usize,
    causal: bool,
    shape: &Shape,
    [qkv, lse, dy]: [&[T]; 3],
    dqkv: &mut [T],
) {
    let (batch, time, width) = (shape[0], shape[1], shape[2] / 3);
    let depth = width / heads;
    let scale = T::ONE / T::of(depth as f64).sqrt();
    dqkv.fill(T::ZERO);
    for b in 0..batch {
        for h in 0..heads {
            let at =
                |t: usize, which: usize| (b * time + t) * 3 * width + which * width + h * depth;
            let row = |t: usize, which: usize| &qkv[at(t, which)..][..depth];
            for t in 0..time {
                let seen = if causal { t + 1 } else { time };
                let dy = &dy[(b * time + t) * width + h * depth..][..depth];
                let lse = lse[(b * heads + h) * time + t];
                let weight = |s: usize| (dot(row(t, 0), row(s, 1)) * scale - lse).exp();
                let mean = (0..seen).fold(T::ZERO, |sum, s| sum + weight(s) * dot(dy, row(s, 2)));
                for s in 0..seen {
                    let p = weight(s);
                    let dscore = p * (dot(dy, row(s, 2)) - mean) * scale;
                    for d in 0..depth {
                        let (q, k) = (row(t, 0)[d], row(s, 1)[d]);
                        dqkv[at(s, 2) + d] = dqkv[at(s, 2) + d] + p * dy[d];
                        dqkv[at(t, 0) + d] = dqkv[at(t, 0) + d] + dscore * k;
                        dqkv[at(s, 1) + d] = dqkv[at(s, 1) + d] + dscore * q;
                    }
                }
            }
        }
    }
}

fn softmax<T: Real>(x: &[T], y: &mut [T]) {
    let lse = log_sum_exp(x);
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - lse).exp());
}

fn log_sum_exp<T: Real>(x: &[T]) -> T {
    let top = x.iter().copied().fold(T::LOWEST, T::max);
    top + x.iter().fold(T::ZERO, |sum, &x| sum + (x - top).exp()).ln()
}

/// Number of targets that count, at least 1 so that a batch without any has loss 0.
fn counted<T: Real>(targets: &[i32]) -> T {
    T::of(targets.iter().filter(|&&target| target >= 0).count().max(1) as f64)
}

fn cross_entropy<T: Real>(logits: &[T], targets: &[i32], width: usize) -> T {
    let rows = logits.chunks_exact(width).zip(targets).filter(|(_, target)| **target >= 0);
    let loss = |(row, target): (&[T], &i32)| log_sum_exp(row) - row[*target as usize];
    rows.map(loss).fold(T::ZERO, |sum, loss| sum + loss) / counted(targets)
}

/// Turns logits into their gradient times `scale`, in place.
fn cross_entropy_grad<T: Real>(logits: &mut [T], targets: &[i32], width: usize, scale: T) {
    for (row, &target) in logits.chunks_exact_mut(width).zip(targets) {
        if target < 0 {
            row.fill(T::ZERO);
            continue;
        }
        let lse = log_sum_exp(row);
        row.iter_mut().for_each(|x| *x = (*x - lse).exp() * scale);
        row[target as usize] = row[target as usize] - scale;
    }
}

fn linear_cross_entropy<T: Real>(op: &Op, inputs: &[Operand<'_, T>], outputs: &mut [&mut [T]]) {
    let (x, w, targets) = (inputs[0].real(), inputs[1].real(), inputs[2].index());
    let width = inputs[0].shape.last();
    let vocabulary = inputs[1].shape[0];
    let grad = *op == Op::LinearCrossEntropyGrad;
    let count: T = counted(targets);
    let mut loss = T::ZERO;
    if grad {
        outputs[0].fill(T::ZERO);
        outputs[1].fill(T::ZERO);
    }
    for (row, &target) in targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
        let x = &x[row * width..][..width];
        let logit = |word: usize| dot(x, &w[word * width..][..width]);
        let top = (0..vocabulary).map(logit).fold(T::LOWEST, T::max);
        let sum = (0..vocabulary).fold(T::ZERO, |sum, word| sum + (logit(word) - top).exp());
        loss = loss + top + sum.ln() - logit(target as usize);
        if !grad {
            continue;
        }
        let scale = inputs[3].real()[0] / count;
        for word in 0..vocabulary {
            let hit = if word == target as usize { T::ONE } else { T::ZERO };
            let dlogit = ((logit(word) - top).exp() / sum - hit) * scale;
            let [dx, dw, _] = outputs else { unreachable!("the gradient has three outputs") };
            let (dx, dw) = (&mut dx[row * width..], &mut dw[word * width..]);
            for (place, &x) in x.iter().enumerate() {
                dx[place] = dx[place] + dlogit * w[word * width + place];
                dw[place] = dw[place] + dlogit * x;
            }
        }
    }
    outputs[if grad { 2 } else { 0 }][0] = loss / count;
}

fn movement<T: Real>(op: &Op, inputs: &[Operand<'_, T>], shape: &Shape, output: &mut [T]) {
    let (source, x) = (inputs[0].shape, inputs[0].real());
    // Along an axis, what moves is runs of the elements of the axes inside it.
    let inner = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    match op {
        Op::Permute { axes } => {
            let own = strides_of(source);
            let mut strides = [0; RANK_MAX];
            axes.iter().enumerate().for_each(|(place, &axis)| strides[place] = own[axis]);
            gather(shape, &strides, x, output);
        }
        Op::Broadcast { .. } => gather(shape, &broadcast_strides(source, shape), x, output),
        Op::Slice { axis, start, end } => {
            let inner = inner(*axis);
            let runs = x.chunks_exact(source[*axis] * inner);
            let len = (end - start) * inner;
            for (to, from) in output.chunks_exact_mut(len).zip(runs) {
                to.copy_from_slice(&from[start * inner..][..len]);
            }
        }
        Op::Pad { axis, before, .. } => {
            output.fill(T::ZERO);
            put(inner(*axis), shape[*axis], *before, source[*axis], x, output);
        }
        Op::Concat { axis } => {
            let mut start = 0;
            for input in inputs {
                let len = input.shape[*axis];
                put(inner(*axis), shape[*axis], start, len, input.real(), output);
                start += len;
            }
        }
        _ => unreachable!("movement is called for movement operators only"),
    }
}

/// Writes `x` over the elements `start..start + len` of an axis of `dim` elements.
fn put<T: Real>(inner: usize, dim: usize, start: usize, len: usize, x: &[T], output: &mut [T]) {
    for (to, from) in output.chunks_exact_mut(dim * inner).zip(x.chunks_exact(len * inner)) {
        to[start * inner..][..len * inner].copy_from_slice(from);
    }
}

/// `output[i] = x[i * strides]` for each index of `shape`.
fn gather<T: Real>(shape: &Shape, strides: &[usize; RANK_MAX], x: &[T], output: &mut [T]) {
    let mut walk = Walk::new(shape);
    for y in output {
        *y = x[walk.offset(strides)];
        walk.next();
    }
}

fn reduce<T: Real>(kind: ReduceKind, axes: &[usize], x: Operand<'_, T>, output: &mut [T]) {
    let mut strides = [0; RANK_MAX];
    let mut stride = 1;
    for axis in (0..x.shape.rank()).rev().filter(|axis| !axes.contains(axis)) {
        strides[axis] = stride;
        stride *= x.shape[axis];
    }
    output.fill(if kind == ReduceKind::Max { T::LOWEST } else { T::ZERO });
    let mut walk = Walk::new(x.shape);
    for &x in x.real() {
        let y = &mut output[walk.offset(&strides)];
        *y = if kind == ReduceKind::Max { (*y).max(x) } else { *y + x };
        walk.next();
    }
    if kind == ReduceKind::Mean {
        let count = T::of((x.shape.elements() / output.len()) as f64);
        output.iter_mut().for_each(|y| *y = *y / count);
    }
}

/// A multi-index that counts through a shape in row-major order.
struct Walk<'a> {
    shape: &'a Shape,
    index: [usize; RANK_MAX],
}

impl<'a> Walk<'a> {
    fn new(shape: &'a Shape) -> Self {
        Self { shape, index: [0; RANK_MAX] }
    }

    fn next(&mut self) {
        for axis in (0..self.shape.rank()).rev() {
            self.index[axis] += 1;
            if self.index[axis] < self.shape[axis] {
                return;
            }
            self.index[axis] = 0;
        }
    }

    fn offset(&self, strides: &[usize; RANK_MAX]) -> usize {
        (0..self.shape.rank()).map(|axis| self.index[axis] * strides[axis]).sum()
    }
}

/// Row-major strides without allocation.
fn strides_of(shape: &Shape) -> [usize; RANK_MAX] {
    let mut strides = [0; RANK_MAX];
    let mut stride = 1;
    for axis in (0..shape.rank()).rev() {
        strides[axis] = stride;
        stride *= shape[axis];
    }
    strides
}

/// [`Shape::broadcast_strides`] without allocation.
fn broadcast_strides(shape: &Shape, target: &Shape) -> [usize; RANK_MAX] {
    let own = strides_of(shape);
    let lead = target.rank() - shape.rank();
    let mut strides = [0; RANK_MAX];
    for axis in lead..target.rank() {
        if shape[axis - lead] != 1 {
            strides[axis] = own[axis - lead];
        }
    }
    strides
}
