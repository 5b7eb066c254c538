//! Differentiation: one table of rules, from an operator to the nodes of its backward.
//!
//! The backward is appended to the program as ordinary nodes, each in the block of the forward
//! node it belongs to, in reverse order. Contributions to parameters' gradients are listed in
//! [`Program::grads`].

use std::collections::BTreeMap;

use thiserror::Error;

use crate::program::{
    BinaryKind, Builder, Epilogue, Gradient, LOSS, Node, Op, Program, ReduceKind, SpecError,
    UnaryKind, Value,
};
use crate::shape::Shape;

/// Why a program cannot be differentiated.
#[derive(Debug, Error, PartialEq)]
pub enum GradError {
    /// There is no output `loss`, or it is not computed by a node.
    #[error("the program has no output \"loss\" that a node computes")]
    NoLoss,
    /// The program already has gradients.
    #[error("the program already has gradients")]
    Twice,
    /// The loss depends on a parameter through an operator, or an auxiliary output of one, that
    /// has no rule.
    #[error("node {node} ({op}): output {output} has no gradient rule")]
    NoRule {
        /// Index of the node.
        node: usize,
        /// Its operator.
        op: &'static str,
        /// Which output.
        output: usize,
    },
    /// A rule built a node that the specification refuses.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// The program with its backward: gradients of the output `loss` for every parameter that it
/// depends on.
pub fn differentiate(program: &Program) -> Result<Program, GradError> {
    if !program.grads.is_empty() {
        return Err(GradError::Twice);
    }
    let Some(Value::Node(loss, slot)) = program.output(LOSS) else {
        return Err(GradError::NoLoss);
    };
    let forward = program.nodes.len();
    let needed = depends_on_params(program);
    let mut build = Builder::from_program(program.clone());
    build.enter_block(program.nodes[loss as usize].block);
    let one = build.add(Op::Constant { value: 1.0, shape: Shape::scalar() }, &[])?;
    let mut incoming = BTreeMap::from([(Value::Node(loss, slot), one)]);
    let mut grads = Vec::new();
    for index in (0..forward).rev() {
        let node = &program.nodes[index];
        if !needed[index] {
            continue;
        }
        let mut dy = None;
        for output in 0..node.outputs.len() {
            let found = incoming.remove(&Value::Node(index as u32, output as u8));
            if found.is_some() && output > 0 {
                return Err(GradError::NoRule { node: index, op: node.op.name(), output });
            }
            dy = dy.or(found);
        }
        let Some(dy) = dy else { continue };
        build.enter_block(node.block);
        let mut rule = Rule { build: &mut build, node, index: index as u32 };
        let parts = rule.apply(dy)?;
        let parts =
            parts.ok_or(GradError::NoRule { node: index, op: node.op.name(), output: 0 })?;
        for (&input, part) in node.inputs.iter().zip(parts) {
            let Some(part) = part else { continue };
            match input {
                Value::Param(param) => grads.push(Gradient { param, value: part }),
                Value::Node(source, _) if needed[source as usize] => {
                    let sum = match incoming.remove(&input) {
                        Some(other) => build.binary(BinaryKind::Add, other, part)?,
                        None => part,
                    };
                    incoming.insert(input, sum);
                }
                _ => {}
            }
        }
    }
    let mut program = build.finish()?;
    program.grads = grads;
    program.verify()?;
    Ok(program)
}

/// For each block, the last node that contributes to its gradient; `None` where nothing does. When
/// that node has run, the block's gradient is final.
pub fn completion(program: &Program) -> Vec<Option<usize>> {
    let mut last = vec![None; program.blocks.len()];
    for grad in &program.grads {
        let block = program.params[grad.param as usize].block;
        let at = match grad.value {
            Value::Node(node, _) => node as usize,
            Value::Param(_) | Value::Input(_) => 0,
        };
        last[block] = last[block].max(Some(at));
    }
    last
}

/// Whether each node depends on a parameter.
fn depends_on_params(program: &Program) -> Vec<bool> {
    let mut needed: Vec<bool> = Vec::with_capacity(program.nodes.len());
    for node in &program.nodes {
        needed.push(node.inputs.iter().any(|input| match input {
            Value::Param(_) => true,
            Value::Input(_) => false,
            Value::Node(source, _) => needed[*source as usize],
        }));
    }
    needed
}

/// Parts of the gradient, one for each input: `None` for indices and constants.
type Parts = Vec<Option<Value>>;

struct Rule<'a> {
    build: &'a mut Builder,
    node: &'a Node,
    index: u32,
}

impl Rule<'_> {
    /// The table. `None` for operators without a rule: those of the backward itself.
    fn apply(&mut self, dy: Value) -> Result<Option<Parts>, SpecError> {
        let node = self.node;
        let input = |place: usize| node.inputs[place];
        let index = self.index;
        let output = |slot: u8| Value::Node(index, slot);
        let parts = match &node.op {
            Op::Constant { .. } | Op::Cast { .. } => vec![None; node.inputs.len()],
            Op::Embedding => {
                let rows = self.build.shape(input(0))[0];
                vec![Some(self.build.add(Op::EmbeddingGrad { rows }, &[input(1), dy])?), None]
            }
            Op::Linear { epilogue } => self.linear(*epilogue, dy)?,
            Op::MatMul { ta, tb } => self.matmul(*ta, *tb, dy)?,
            Op::LayerNorm { .. } => {
                let inputs = [input(0), input(1), output(1), output(2), dy];
                let grad = self.build.add_node(Op::LayerNormGrad, &inputs)?;
                (0..node.inputs.len() as u8).map(|slot| Some(Value::Node(grad, slot))).collect()
            }
            Op::RmsNorm { .. } => {
                let inputs = [input(0), input(1), output(1), dy];
                let grad = self.build.add_node(Op::RmsNormGrad, &inputs)?;
                (0..2).map(|slot| Some(Value::Node(grad, slot))).collect()
            }
            Op::Unary(kind) => vec![Some(self.unary(*kind, dy)?)],
            Op::Binary(kind) => match self.binary(*kind, dy)? {
                Some(parts) => parts,
                None => return Ok(None),
            },
            Op::Attention { heads, causal } => {
                let op = Op::AttentionGrad { heads: *heads, causal: *causal };
                vec![Some(self.build.add(op, &[input(0), output(0), output(1), dy])?)]
            }
            Op::Softmax => vec![Some(self.build.add(Op::SoftmaxGrad, &[output(0), dy])?)],
            Op::CrossEntropy => {
                let inputs = [input(0), input(1), dy];
                vec![Some(self.build.add(Op::CrossEntropyGrad, &inputs)?), None]
            }
            Op::LinearCrossEntropy => {
                let inputs = [input(0), input(1), input(2), dy];
                let grad = self.build.add_node(Op::LinearCrossEntropyGrad, &inputs)?;
                vec![Some(Value::Node(grad, 0)), Some(Value::Node(grad, 1)), None]
            }
            Op::Reshape { .. }
            | Op::Permute { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Concat { .. }
            | Op::Broadcast { .. } => self.movement(dy)?,
            Op::Reduce { kind, axes, .. } => vec![Some(self.reduce(*kind, axes, dy)?)],
            Op::Conv2d(_) | Op::Pool2d { .. } => self.image(dy)?,
            Op::EmbeddingGrad { .. }
            | Op::MatMulGeluGrad { .. }
            | Op::LayerNormGrad
            | Op::RmsNormGrad
            | Op::Fused(_)
            | Op::AttentionGrad { .. }
            | Op::SoftmaxGrad
            | Op::CrossEntropyGrad
            | Op::LinearCrossEntropyGrad
            | Op::Conv2dGrad(_)
            | Op::Pool2dGrad { .. } => return Ok(None),
        };
        Ok(Some(parts))
    }

    fn linear(&mut self, epilogue: Epilogue, dy: Value) -> Result<Parts, SpecError> {
        let (x, w) = (self.node.inputs[0], self.node.inputs[1]);
        let pre = Value::Node(self.index, 1);
        let whole = match epilogue {
            Epilogue::None | Epilogue::Residual => dy,
            Epilogue::GeluErf => self.build.binary(BinaryKind::GeluErfGrad, pre, dy)?,
            Epilogue::GeluTanh => self.build.binary(BinaryKind::GeluTanhGrad, pre, dy)?,
        };
        let shape = self.build.shape(x);
        let columns = self.build.shape(w)[0];
        let rows = shape.rows();
        let dy = self.build.reshape(whole, [rows, columns])?;
        let flat = self.build.reshape(x, [rows, shape.last()])?;
        // The weight's gradient first: it is what other machines wait for.
        let dw = self.build.add(Op::MatMul { ta: true, tb: false }, &[dy, flat])?;
        let mut parts = vec![None, Some(dw)];
        let residual = usize::from(epilogue == Epilogue::Residual);
        if self.node.inputs.len() == 3 + residual {
            parts.push(Some(self.build.reduce(ReduceKind::Sum, dy, &[0], false)?));
        }
        if epilogue == Epilogue::Residual {
            parts.push(Some(whole));
        }
        // Where the layer has rows, their gradient needs no reshaping; what follows can join it.
        let dy = if shape.rank() >= 2 { whole } else { dy };
        let dx = self.build.add(Op::MatMul { ta: false, tb: false }, &[dy, w])?;
        parts[0] = Some(self.build.reshape(dx, shape)?);
        Ok(parts)
    }

    fn matmul(&mut self, ta: bool, tb: bool, dy: Value) -> Result<Parts, SpecError> {
        let (mut a, b) = (self.node.inputs[0], self.node.inputs[1]);
        let mut dy = dy;
        let shape = self.build.shape(a);
        if self.build.shape(b).rank() == 2 && shape.rank() > 2 {
            let columns = self.build.shape(dy).last();
            a = self.build.reshape(a, [shape.rows(), shape.last()])?;
            dy = self.build.reshape(dy, [shape.rows(), columns])?;
        }
        let mut product = |ta, tb, a, b| self.build.add(Op::MatMul { ta, tb }, &[a, b]);
        let db = if tb { product(true, ta, dy, a)? } else { product(!ta, false, a, dy)? };
        let da = if ta { product(tb, true, b, dy)? } else { product(false, !tb, dy, b)? };
        Ok(vec![Some(self.build.reshape(da, shape)?), Some(db)])
    }

    fn unary(&mut self, kind: UnaryKind, dy: Value) -> Result<Value, SpecError> {
        let (x, y) = (self.node.inputs[0], Value::Node(self.index, 0));
        let build = &mut *self.build;
        match kind {
            UnaryKind::Neg => build.unary(UnaryKind::Neg, dy),
            UnaryKind::Exp => build.binary(BinaryKind::Mul, dy, y),
            UnaryKind::Log => build.binary(BinaryKind::Div, dy, x),
            UnaryKind::Tanh => {
                let once = build.binary(BinaryKind::Mul, dy, y)?;
                let twice = build.binary(BinaryKind::Mul, once, y)?;
                build.binary(BinaryKind::Sub, dy, twice)
            }
            UnaryKind::Sigmoid => {
                let once = build.binary(BinaryKind::Mul, dy, y)?;
                let twice = build.binary(BinaryKind::Mul, once, y)?;
                build.binary(BinaryKind::Sub, once, twice)
            }
            UnaryKind::Relu => build.binary(BinaryKind::ReluGrad, x, dy),
            UnaryKind::Sqrt => {
                let ratio = build.binary(BinaryKind::Div, dy, y)?;
                build.unary(UnaryKind::Scale(0.5), ratio)
            }
            UnaryKind::Rsqrt => {
                let square = build.binary(BinaryKind::Mul, y, y)?;
                let cube = build.binary(BinaryKind::Mul, square, y)?;
                let product = build.binary(BinaryKind::Mul, cube, dy)?;
                build.unary(UnaryKind::Scale(-0.5), product)
            }
            UnaryKind::GeluErf => build.binary(BinaryKind::GeluErfGrad, x, dy),
            UnaryKind::GeluTanh => build.binary(BinaryKind::GeluTanhGrad, x, dy),
            UnaryKind::Scale(factor) => build.unary(UnaryKind::Scale(factor), dy),
            UnaryKind::Offset(_) => Ok(dy),
        }
    }

    fn binary(&mut self, kind: BinaryKind, dy: Value) -> Result<Option<Parts>, SpecError> {
        let (a, b, y) = (self.node.inputs[0], self.node.inputs[1], Value::Node(self.index, 0));
        let build = &mut *self.build;
        let (da, db) = match kind {
            BinaryKind::Add => (dy, dy),
            BinaryKind::Sub => (dy, build.unary(UnaryKind::Neg, dy)?),
            BinaryKind::Mul => {
                (build.binary(BinaryKind::Mul, dy, b)?, build.binary(BinaryKind::Mul, dy, a)?)
            }
            BinaryKind::Div => {
                let da = build.binary(BinaryKind::Div, dy, b)?;
                let product = build.binary(BinaryKind::Mul, da, y)?;
                (da, build.unary(UnaryKind::Neg, product)?)
            }
            BinaryKind::Max | BinaryKind::Min => {
                // Where both are equal each gets half, as in PyTorch.
                let (low, high) = if kind == BinaryKind::Max { (b, a) } else { (a, b) };
                let wins = build.binary(BinaryKind::Less, low, high)?;
                let equal = build.binary(BinaryKind::Equal, a, b)?;
                let half = build.unary(UnaryKind::Scale(0.5), equal)?;
                let share = build.binary(BinaryKind::Add, wins, half)?;
                let da = build.binary(BinaryKind::Mul, dy, share)?;
                (da, build.binary(BinaryKind::Sub, dy, da)?)
            }
            BinaryKind::Equal | BinaryKind::Less => return Ok(Some(vec![None, None])),
            BinaryKind::ReluGrad | BinaryKind::GeluErfGrad | BinaryKind::GeluTanhGrad => {
                return Ok(None);
            }
        };
        Ok(Some(vec![Some(self.unbroadcast(da, a)?), Some(self.unbroadcast(db, b)?)]))
    }

    /// Sums a gradient over the axes along which `like` was broadcast.
    fn unbroadcast(&mut self, grad: Value, like: Value) -> Result<Value, SpecError> {
        let (from, to) = (self.build.shape(grad), self.build.shape(like));
        let lead = from.rank() - to.rank();
        let summed: Vec<usize> = (0..from.rank())
            .filter(|&axis| axis < lead || (to[axis - lead] == 1 && from[axis] != 1))
            .collect();
        if summed.is_empty() {
            return Ok(grad);
        }
        let sum = self.build.reduce(ReduceKind::Sum, grad, &summed, false)?;
        self.build.reshape(sum, to)
    }

    fn movement(&mut self, dy: Value) -> Result<Parts, SpecError> {
        let node = self.node;
        let x = node.inputs[0];
        let shape = self.build.shape(x);
        let part = match &node.op {
            Op::Reshape { .. } => self.build.reshape(dy, shape)?,
            Op::Permute { axes } => {
                let mut inverse = vec![0; axes.len()];
                axes.iter().enumerate().for_each(|(place, &axis)| inverse[axis] = place);
                self.build.add(Op::Permute { axes: inverse }, &[dy])?
            }
            Op::Slice { axis, start, end } => {
                let (before, after) = (*start, shape[*axis] - end);
                self.build.add(Op::Pad { axis: *axis, before, after }, &[dy])?
            }
            Op::Pad { axis, before, .. } => {
                self.build.slice(dy, *axis, *before, before + shape[*axis])?
            }
            Op::Broadcast { .. } => self.unbroadcast(dy, x)?,
            Op::Concat { axis } => {
                let mut start = 0;
                let mut parts = Vec::new();
                for &input in &node.inputs {
                    let end = start + self.build.shape(input)[*axis];
                    parts.push(Some(self.build.slice(dy, *axis, start, end)?));
                    start = end;
                }
                return Ok(parts);
            }
            _ => unreachable!("movement is called for movement operators only"),
        };
        Ok(vec![Some(part)])
    }

    fn reduce(&mut self, kind: ReduceKind, axes: &[usize], dy: Value) -> Result<Value, SpecError> {
        let (x, y) = (self.node.inputs[0], Value::Node(self.index, 0));
        let shape = self.build.shape(x);
        let kept: Vec<usize> = (0..shape.rank())
            .map(|axis| if axes.contains(&axis) { 1 } else { shape[axis] })
            .collect();
        let dy = self.build.reshape(dy, kept.clone())?;
        let count: usize = axes.iter().map(|&axis| shape[axis]).product();
        match kind {
            ReduceKind::Sum => self.build.add(Op::Broadcast { shape }, &[dy]),
            ReduceKind::Mean => {
                let share = self.build.unary(UnaryKind::Scale(1.0 / count as f32), dy)?;
                self.build.add(Op::Broadcast { shape }, &[share])
            }
            ReduceKind::Max => {
                let y = self.build.reshape(y, kept)?;
                let hits = self.build.binary(BinaryKind::Equal, x, y)?;
                let sum = self.build.reduce(ReduceKind::Sum, hits, axes, true)?;
                let share = self.build.binary(BinaryKind::Div, dy, sum)?;
                self.build.binary(BinaryKind::Mul, hits, share)
            }
        }
    }

    fn image(&mut self, dy: Value) -> Result<Parts, SpecError> {
        let node = self.node;
        let x = node.inputs[0];
        match &node.op {
            Op::Conv2d(window) => {
                let inputs = [x, node.inputs[1], dy];
                let grad = self.build.add_node(Op::Conv2dGrad(*window), &inputs)?;
                Ok((0..node.inputs.len() as u8).map(|slot| Some(Value::Node(grad, slot))).collect())
            }
            Op::Pool2d { kind, kernel, window } => {
                let op = Op::Pool2dGrad { kind: *kind, kernel: *kernel, window: *window };
                Ok(vec![Some(self.build.add(op, &[x, dy])?)])
            }
            _ => unreachable!("image is called for image operators only"),
        }
    }
}
