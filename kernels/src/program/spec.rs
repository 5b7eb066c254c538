//! The executable specification of programs: what each operator accepts and yields, and what makes
//! a whole program valid. It runs in the builder, after every pass and after decoding.

use std::collections::BTreeSet;

use thiserror::Error;

use super::{Init, Node, Program, Type, Value};
use crate::dtype::DType;
use crate::shape::Shape;

mod infer;

pub use infer::infer;

/// Most inputs of a node.
pub const NODE_INPUTS_MAX: usize = 8;
/// Most outputs of a node.
pub const NODE_OUTPUTS_MAX: usize = 3;
/// Most nodes of a program.
pub const NODES_MAX: usize = 1 << 14;
/// Most parameters.
pub const PARAMS_MAX: usize = 1 << 14;
/// Most blocks.
pub const BLOCKS_MAX: usize = 1 << 12;
/// Most inputs and most outputs of a program.
pub const ENDS_MAX: usize = 64;
/// Most bytes of a name.
pub const NAME_BYTES_MAX: usize = 200;
/// Most elements of all parameters.
pub const PARAM_ELEMENTS_MAX: usize = 1 << 36;
/// Most instructions of a fused chain.
pub const FUSED_CODE_MAX: usize = 32;
/// Largest side of a pooling window.
pub const POOL_KERNEL_MAX: usize = 1 << 10;
/// Deepest stack of a fused chain.
pub const FUSED_STACK_MAX: usize = 8;

/// Why a program is not valid.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SpecError {
    /// A node breaks its operator's specification.
    #[error("node {node} ({op} of {inputs}): {issue}")]
    Node {
        /// Index of the node.
        node: usize,
        /// Its operator.
        op: &'static str,
        /// Types of its inputs.
        inputs: String,
        /// What is wrong.
        issue: Issue,
    },
    /// A node, output or gradient refers to a value that does not exist (yet).
    #[error("{by} refers to {value:?}, which does not exist before it")]
    UnknownValue {
        /// Who refers.
        by: String,
        /// To what.
        value: Value,
    },
    /// More items than a program may have.
    #[error("{found} {what}, at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A name is empty, too long, has a character outside `[A-Za-z0-9_.-]`, does not start with a
    /// letter, or is used twice.
    #[error("{what} name {name:?} is malformed or used twice")]
    Name {
        /// Of what.
        what: &'static str,
        /// The name, shortened.
        name: String,
    },
    /// A parameter's declaration is not valid.
    #[error("parameter {name}: {problem}")]
    Param {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A block's declaration is not valid.
    #[error("block {block}: length {len}, but its parameters have {found} elements")]
    BlockLen {
        /// Its index.
        block: usize,
        /// What it declares.
        len: usize,
        /// What its parameters sum to.
        found: usize,
    },
    /// An input's shape is out of bounds.
    #[error("input {name}: shape {shape} is out of bounds")]
    Input {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Shape,
    },
    /// The output `loss` is not a floating-point scalar.
    #[error("output loss must be f32[], is {found}")]
    Loss {
        /// What it is.
        found: Type,
    },
    /// A gradient's type is not its parameter's.
    #[error("gradient of {name} is {found}, must be {expected}")]
    Gradient {
        /// The parameter.
        name: String,
        /// The gradient's type.
        found: Type,
        /// The parameter's type.
        expected: Type,
    },
}

/// What is wrong with a node.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Issue {
    /// Wrong number of inputs.
    #[error("takes {expected} inputs, has {found}")]
    InputCount {
        /// What the operator takes.
        expected: &'static str,
        /// What the node has.
        found: usize,
    },
    /// Wrong element type.
    #[error("input {input} must be {expected}")]
    DType {
        /// Which input.
        input: usize,
        /// What the operator takes.
        expected: DType,
    },
    /// Wrong shape.
    #[error("input {input}: {expected}")]
    Shape {
        /// Which input.
        input: usize,
        /// What the operator takes.
        expected: &'static str,
    },
    /// An attribute is out of range.
    #[error("attribute {name}: {expected}")]
    Attribute {
        /// Which.
        name: &'static str,
        /// What is allowed.
        expected: &'static str,
    },
    /// An output would be too large.
    #[error("output shape {shape} is out of bounds")]
    TooLarge {
        /// Its shape.
        shape: Shape,
    },
    /// The declared outputs are not what the operator yields.
    #[error("declares outputs {found}, yields {expected}")]
    Outputs {
        /// Declared.
        found: String,
        /// Yielded.
        expected: String,
    },
    /// The block does not exist.
    #[error("block {block} does not exist")]
    Block {
        /// Its index.
        block: usize,
    },
}

impl Program {
    /// Checks everything that an executor relies on. Costs time linear in the program and
    /// allocates nothing that depends on declared sizes.
    pub fn verify(&self) -> Result<(), SpecError> {
        self.verify_counts()?;
        self.verify_names()?;
        self.verify_params()?;
        for input in &self.inputs {
            if input.shape.checked_elements().is_none() {
                return Err(SpecError::Input {
                    name: input.name.clone(),
                    shape: input.shape.clone(),
                });
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for &value in &node.inputs {
                self.verify_reference(value, index, || format!("node {index}"))?;
            }
            self.verify_node(index, node)?;
        }
        for output in &self.outputs {
            self.verify_reference(output.value, self.nodes.len(), || {
                format!("output {}", output.name)
            })?;
            let found = self.type_of(output.value);
            if output.name == super::LOSS && found != Type::f32([]) {
                return Err(SpecError::Loss { found });
            }
        }
        for grad in &self.grads {
            let by = || format!("gradient of parameter {}", grad.param);
            self.verify_reference(Value::Param(grad.param), 0, by)?;
            self.verify_reference(grad.value, self.nodes.len(), by)?;
            let (found, expected) =
                (self.type_of(grad.value), self.type_of(Value::Param(grad.param)));
            if found != expected {
                let name = self.params[grad.param as usize].name.clone();
                return Err(SpecError::Gradient { name, found, expected });
            }
        }
        Ok(())
    }

    fn verify_counts(&self) -> Result<(), SpecError> {
        let counts = [
            ("blocks", self.blocks.len(), BLOCKS_MAX),
            ("parameters", self.params.len(), PARAMS_MAX),
            ("inputs", self.inputs.len(), ENDS_MAX),
            ("nodes", self.nodes.len(), NODES_MAX),
            ("outputs", self.outputs.len(), ENDS_MAX),
            ("gradients", self.grads.len(), NODES_MAX),
        ];
        for (what, found, max) in counts {
            if found > max {
                return Err(SpecError::TooMany { what, found, max });
            }
        }
        Ok(())
    }

    fn verify_names(&self) -> Result<(), SpecError> {
        let check = |what: &'static str, name: &str, seen: &mut BTreeSet<String>| {
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
            let rest =
                name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
            let fits = name.len() <= NAME_BYTES_MAX;
            if first && rest && fits && seen.insert(name.to_owned()) {
                return Ok(());
            }
            Err(SpecError::Name { what, name: name.chars().take(40).collect() })
        };
        check("program", &self.name, &mut BTreeSet::new())?;
        let mut seen = BTreeSet::new();
        for block in &self.blocks {
            check("block", &block.name, &mut seen)?;
        }
        let mut seen = BTreeSet::new();
        for param in &self.params {
            check("parameter", &param.name, &mut seen)?;
        }
        for input in &self.inputs {
            check("input", &input.name, &mut seen)?;
        }
        let mut seen = BTreeSet::new();
        for output in &self.outputs {
            check("output", &output.name, &mut seen)?;
        }
        Ok(())
    }

    fn verify_params(&self) -> Result<(), SpecError> {
        let mut lens = vec![0usize; self.blocks.len()];
        let mut total = 0usize;
        for param in &self.params {
            let fail = |problem| Err(SpecError::Param { name: param.name.clone(), problem });
            let Some(elements) = param.shape.checked_elements() else {
                return fail("its shape is out of bounds");
            };
            let Some(len) = lens.get_mut(param.block) else {
                return fail("its block does not exist");
            };
            if param.offset != *len {
                return fail("it does not follow the one before it in its block");
            }
            let finite = match param.init {
                Init::Zeros | Init::Ones => true,
                Init::Normal { std: scale } | Init::Uniform { bound: scale } => {
                    scale.is_finite() && scale >= 0.0 && scale.to_bits() != (-0.0f32).to_bits()
                }
            };
            if !finite {
                return fail("its initial scale is not a finite, positive number");
            }
            // Each parameter is at most ELEMENTS_MAX and there are at most PARAMS_MAX: no overflow.
            *len += elements;
            total += elements;
            if total > PARAM_ELEMENTS_MAX {
                return fail("all parameters together are too large");
            }
        }
        for (block, (info, &found)) in self.blocks.iter().zip(&lens).enumerate() {
            if info.len != found {
                return Err(SpecError::BlockLen { block, len: info.len, found });
            }
        }
        Ok(())
    }

    /// A value exists before node `before`.
    fn verify_reference(
        &self,
        value: Value,
        before: usize,
        by: impl Fn() -> String,
    ) -> Result<(), SpecError> {
        let exists = match value {
            Value::Param(index) => (index as usize) < self.params.len(),
            Value::Input(index) => (index as usize) < self.inputs.len(),
            Value::Node(node, slot) => {
                (node as usize) < before
                    && usize::from(slot) < self.nodes[node as usize].outputs.len()
            }
        };
        if exists { Ok(()) } else { Err(SpecError::UnknownValue { by: by(), value }) }
    }

    /// A node whose inputs exist follows its operator's specification.
    pub(crate) fn verify_node(&self, index: usize, node: &Node) -> Result<(), SpecError> {
        let count = node.inputs.len();
        let inputs: Vec<Type> =
            node.inputs.iter().take(NODE_INPUTS_MAX).map(|&value| self.type_of(value)).collect();
        let check = || {
            if count > NODE_INPUTS_MAX {
                return Err(Issue::InputCount { expected: "at most 8", found: count });
            }
            if node.block >= self.blocks.len() {
                return Err(Issue::Block { block: node.block });
            }
            let expected = infer(&node.op, &inputs)?;
            if expected != node.outputs {
                return Err(Issue::Outputs {
                    found: types(&node.outputs),
                    expected: types(&expected),
                });
            }
            Ok(())
        };
        check().map_err(|issue| SpecError::Node {
            node: index,
            op: node.op.name(),
            inputs: types(&inputs),
            issue,
        })
    }
}

/// Types for messages: a bounded list.
pub(crate) fn types(list: &[Type]) -> String {
    let mut words: Vec<String> = list.iter().take(NODE_INPUTS_MAX).map(Type::to_string).collect();
    if list.len() > words.len() {
        words.push("...".to_owned());
    }
    format!("({})", words.join(", "))
}
