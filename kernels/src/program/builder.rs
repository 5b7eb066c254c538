//! Building programs, with shapes inferred and checked at each node.

use super::op::{BinaryKind, Epilogue, Op, ReduceKind, UnaryKind};
use super::spec::{SpecError, infer, types};
use super::{BlockInfo, Init, InputInfo, Node, Output, ParamInfo, Program, Type, Value};
use crate::shape::Shape;

/// Builds a program node by node. Each method that adds a node returns its first output, or names
/// the node and the shapes that do not fit.
#[derive(Debug)]
pub struct Builder {
    program: Program,
    block: usize,
}

impl Builder {
    /// An empty program.
    pub fn new(name: &str) -> Self {
        Self {
            program: Program {
                name: name.to_owned(),
                blocks: Vec::new(),
                params: Vec::new(),
                inputs: Vec::new(),
                nodes: Vec::new(),
                outputs: Vec::new(),
                grads: Vec::new(),
            },
            block: 0,
        }
    }

    /// Continues another program. Nodes are added to its first block until
    /// [`Builder::enter_block`].
    pub(crate) fn from_program(program: Program) -> Self {
        Self { program, block: 0 }
    }

    /// Starts a block: what follows belongs to it. Returns its index.
    pub fn begin_block(&mut self, name: &str) -> usize {
        self.block = self.program.blocks.len();
        self.program.blocks.push(BlockInfo { name: name.to_owned(), len: 0 });
        self.block
    }

    /// Returns to a block that exists.
    pub fn enter_block(&mut self, block: usize) {
        self.block = block;
    }

    /// The program so far.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Shape of a value of this program.
    pub fn shape(&self, value: Value) -> Shape {
        self.program.type_of(value).shape
    }

    /// Declares a parameter of the current block.
    pub fn param(
        &mut self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
        decay: bool,
    ) -> Result<Value, SpecError> {
        let shape = shape.into();
        let fail = |problem| SpecError::Param { name: name.to_owned(), problem };
        let elements =
            shape.checked_elements().ok_or_else(|| fail("its shape is out of bounds"))?;
        let block = self.program.blocks.get_mut(self.block);
        let block = block.ok_or_else(|| fail("its block does not exist"))?;
        let offset = block.len;
        block.len =
            offset.checked_add(elements).ok_or_else(|| fail("its shape is out of bounds"))?;
        let name = name.to_owned();
        let index = self.program.params.len() as u32;
        self.program.params.push(ParamInfo { name, block: self.block, offset, shape, decay, init });
        Ok(Value::Param(index))
    }

    /// Declares an input.
    pub fn input(&mut self, name: &str, ty: Type) -> Result<Value, SpecError> {
        if ty.shape.checked_elements().is_none() {
            return Err(SpecError::Input { name: name.to_owned(), shape: ty.shape });
        }
        let index = self.program.inputs.len() as u32;
        let name = name.to_owned();
        self.program.inputs.push(InputInfo { name, dtype: ty.dtype, shape: ty.shape });
        Ok(Value::Input(index))
    }

    /// Adds a node and returns its first output.
    pub fn add(&mut self, op: Op, inputs: &[Value]) -> Result<Value, SpecError> {
        let node = self.add_node(op, inputs)?;
        Ok(Value::Node(node, 0))
    }

    /// Adds a node and returns its index.
    pub fn add_node(&mut self, op: Op, inputs: &[Value]) -> Result<u32, SpecError> {
        let index = self.program.nodes.len();
        let kinds: Vec<Type> = inputs.iter().map(|&value| self.program.type_of(value)).collect();
        let outputs = infer(&op, &kinds).map_err(|issue| SpecError::Node {
            node: index,
            op: op.name(),
            inputs: types(&kinds),
            issue,
        })?;
        let block = self.block;
        self.program.nodes.push(Node { op, inputs: inputs.to_vec(), outputs, block });
        Ok(index as u32)
    }

    /// Names a result.
    pub fn output(&mut self, name: &str, value: Value) {
        self.program.outputs.push(Output { name: name.to_owned(), value });
    }

    /// The verified program.
    pub fn finish(self) -> Result<Program, SpecError> {
        self.program.verify()?;
        Ok(self.program)
    }

    /// `x w^T + b`, as PyTorch's `nn.Linear` keeps its weight.
    pub fn linear(&mut self, x: Value, w: Value, b: Option<Value>) -> Result<Value, SpecError> {
        let inputs: Vec<Value> = [x, w].into_iter().chain(b).collect();
        self.add(Op::Linear { epilogue: Epilogue::None }, &inputs)
    }

    /// Normalization over the last axis.
    pub fn layer_norm(
        &mut self,
        x: Value,
        gamma: Value,
        beta: Option<Value>,
        eps: f32,
    ) -> Result<Value, SpecError> {
        let inputs: Vec<Value> = [x, gamma].into_iter().chain(beta).collect();
        self.add(Op::LayerNorm { eps }, &inputs)
    }

    /// An elementwise function.
    pub fn unary(&mut self, kind: UnaryKind, x: Value) -> Result<Value, SpecError> {
        self.add(Op::Unary(kind), &[x])
    }

    /// An elementwise function of two values that broadcast.
    pub fn binary(&mut self, kind: BinaryKind, a: Value, b: Value) -> Result<Value, SpecError> {
        self.add(Op::Binary(kind), &[a, b])
    }

    /// The same elements under another shape; nothing is added where the shape is the same.
    pub fn reshape(&mut self, x: Value, shape: impl Into<Shape>) -> Result<Value, SpecError> {
        let shape = shape.into();
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.add(Op::Reshape { shape }, &[x])
    }

    /// Elements `start..end` of an axis; nothing is added where that is all.
    pub fn slice(
        &mut self,
        x: Value,
        axis: usize,
        start: usize,
        end: usize,
    ) -> Result<Value, SpecError> {
        if start == 0 && self.shape(x).get(axis) == Some(&end) {
            return Ok(x);
        }
        self.add(Op::Slice { axis, start, end }, &[x])
    }

    /// Sum, mean or maximum over axes.
    pub fn reduce(
        &mut self,
        kind: ReduceKind,
        x: Value,
        axes: &[usize],
        keep: bool,
    ) -> Result<Value, SpecError> {
        self.add(Op::Reduce { kind, axes: axes.to_vec(), keep }, &[x])
    }
}
