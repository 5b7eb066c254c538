//! The program: a static graph of operators with shapes.
//!
//! A program is plain data. It is made by [`builder`], checked by [`Program::verify`] (the
//! executable specification, in [`spec`]), travels in [`binary`] form, is read by people in
//! [`text`] form, and its meaning is [`mod@reference`].

use bincode::{Decode, Encode};

use crate::dtype::DType;
use crate::shape::Shape;

pub mod binary;
pub mod builder;
pub mod op;
pub mod reference;
pub mod spec;
pub mod text;

pub use binary::DecodeError;
pub use builder::Builder;
pub use op::{BinaryKind, Epilogue, Instr, Op, PoolKind, ReduceKind, UnaryKind, Window};
pub use spec::SpecError;
pub use text::ParseError;

/// Name of the output that training minimizes: a scalar.
pub const LOSS: &str = "loss";
/// Name of the output that generation reads.
pub const LOGITS: &str = "logits";

/// A static graph: parameters, inputs, nodes in topological order, outputs, and the gradients
/// that differentiation added.
///
/// Fields are private, so that a program from outside has passed [`Program::verify`].
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Program {
    pub(crate) name: String,
    pub(crate) blocks: Vec<BlockInfo>,
    pub(crate) params: Vec<ParamInfo>,
    pub(crate) inputs: Vec<InputInfo>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) grads: Vec<Gradient>,
}

/// A block of the model: the unit of gradient exchange. Its parameters lie back to back, in
/// declaration order, in one flat buffer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BlockInfo {
    /// Name for people.
    pub name: String,
    /// Elements of the flat buffer.
    pub len: usize,
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct ParamInfo {
    /// Unique name, PyTorch's where the model has one.
    pub name: String,
    /// Block that holds it.
    pub block: usize,
    /// First element in the block's flat buffer.
    pub offset: usize,
    /// Dimensions, row-major.
    pub shape: Shape,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Initial distribution.
    pub init: Init,
}

impl ParamInfo {
    /// Elements of the block's flat buffer that hold this parameter.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.shape.elements()
    }
}

/// Initial distribution of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean zero.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Uniform between `-bound` and `bound`.
    Uniform {
        /// Half the width.
        bound: f32,
    },
}

/// An input of a program.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct InputInfo {
    /// Unique name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Shape,
}

/// Reference to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Value {
    /// A parameter, by index.
    Param(u32),
    /// An input, by index.
    Input(u32),
    /// Output `.1` of node `.0`.
    Node(u32, u8),
}

/// An application of an operator.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Node {
    /// The operator with its attributes.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// Types of what it yields.
    pub outputs: Vec<Type>,
    /// Model block it belongs to.
    pub block: usize,
}

/// Element type and dimensions of a value.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Shape,
}

impl Type {
    /// A floating-point type.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        Self { dtype: DType::F32, shape: shape.into() }
    }

    /// An index type.
    pub fn i32(shape: impl Into<Shape>) -> Self {
        Self { dtype: DType::I32, shape: shape.into() }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

/// A named result.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Output {
    /// Unique name.
    pub name: String,
    /// The value.
    pub value: Value,
}

/// A contribution to a parameter's gradient. A parameter that is used several times has several,
/// and its gradient is their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Gradient {
    /// Index of the parameter.
    pub param: u32,
    /// Value of the parameter's shape.
    pub value: Value,
}

impl Program {
    /// Name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Parameters in declaration order.
    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// Blocks in forward order.
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.blocks
    }

    /// Inputs in the order in which they are passed.
    pub fn inputs(&self) -> &[InputInfo] {
        &self.inputs
    }

    /// Named results.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Nodes in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Contributions to gradients; empty before differentiation.
    pub fn grads(&self) -> &[Gradient] {
        &self.grads
    }

    /// Number of parameters' elements.
    pub fn param_elements(&self) -> usize {
        self.blocks.iter().map(|block| block.len).sum()
    }

    /// The named output.
    pub fn output(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|output| output.name == name).map(|output| output.value)
    }

    /// Type of a value of this program.
    ///
    /// # Panics
    /// If the value is not of this program.
    pub fn type_of(&self, value: Value) -> Type {
        match value {
            Value::Param(index) => Type::f32(self.params[index as usize].shape.clone()),
            Value::Input(index) => {
                let input = &self.inputs[index as usize];
                Type { dtype: input.dtype, shape: input.shape.clone() }
            }
            Value::Node(node, slot) => self.nodes[node as usize].outputs[usize::from(slot)].clone(),
        }
    }

    /// Floating-point operations of one run, products only: what throughput is measured in.
    pub fn flops(&self) -> u64 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(self.node_flops(node)))
    }

    /// Floating-point operations of one node's products.
    pub fn node_flops(&self, node: &Node) -> u64 {
        let shape = |place: usize| self.type_of(node.inputs[place]).shape;
        // Products of bounded shapes may exceed 64 bits.
        let product =
            |factors: &[usize]| factors.iter().fold(1u64, |n, &m| n.saturating_mul(m as u64));
        let result = node.outputs.first().map_or(0, |ty| ty.shape.elements());
        match &node.op {
            Op::Linear { .. } | Op::MatMulGeluGrad { .. } => product(&[2, result, shape(0).last()]),
            Op::MatMul { ta, .. } => {
                let a = shape(0);
                product(&[2, result, if *ta { a[a.rank() - 2] } else { a.last() }])
            }
            Op::Attention { causal, .. } | Op::AttentionGrad { causal, .. } => {
                let qkv = shape(0);
                // Two products forward, five backward; causality hides half of each.
                let products = if matches!(node.op, Op::Attention { .. }) { 2 } else { 5 };
                let full = product(&[2, products, qkv[0], qkv[1], qkv[1], qkv[2] / 3]);
                if *causal { full / 2 } else { full }
            }
            Op::LinearCrossEntropy => product(&[2, shape(0).elements(), shape(1)[0]]),
            Op::LinearCrossEntropyGrad => product(&[6, shape(0).elements(), shape(1)[0]]),
            Op::Conv2d(_) => product(&[2, result, shape(1)[1..].iter().product()]),
            Op::Conv2dGrad(_) => product(&[4, shape(2).elements(), shape(1)[1..].iter().product()]),
            _ => 0,
        }
    }
}
