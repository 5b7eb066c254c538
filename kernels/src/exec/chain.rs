//! Elementwise operators as chains of the kernel library.

use crate::op::elementwise::{Binary, Chain, Input, Instr as Code, Unary};
use crate::passes::code_of;
use crate::primitive::pool::Pool;
use crate::program::reference::{Data, Operand};
use crate::program::spec::NODE_INPUTS_MAX;
use crate::program::{BinaryKind, Instr, Op, UnaryKind};
use crate::shape::Shape;

/// `1 / sqrt(2)`
const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// `1 / sqrt(2 pi)`
const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
/// `sqrt(2 / pi)`
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The cubic coefficient of gelu's approximation.
const GELU_CUBE: f32 = 0.044_715;

/// An elementwise node ready to run.
#[derive(Debug)]
pub(super) struct ElementChain {
    chain: Chain,
    access: Vec<Access>,
    /// Whether the result is added to what the output holds, which is the node's other input.
    add: bool,
}

/// How an input meets the output's elements.
#[derive(Debug, Clone, Copy)]
enum Access {
    Full,
    Row,
    Column(usize),
    Scalar,
}

impl ElementChain {
    /// `None` where the operator is not elementwise, or broadcasts in a way that only the
    /// reference can.
    pub(super) fn new(
        op: &Op,
        shapes: &[&Shape],
        output: &Shape,
        in_place: Option<usize>,
    ) -> Option<Self> {
        let code = code_of(op)?;
        let access: Vec<Access> =
            shapes.iter().map(|shape| access(shape, output)).collect::<Option<_>>()?;
        if let Some(place) = in_place {
            // Only a sum works in place: the other summand is added to the output.
            debug_assert_eq!(*op, Op::Binary(BinaryKind::Add));
            let chain = Chain::new(vec![Code::Input(1 - place as u8)]).ok()?;
            return Some(Self { chain, access, add: true });
        }
        let chain = Chain::new(translate(&code)?).ok()?;
        Some(Self { chain, access, add: false })
    }

    pub(super) fn run(&self, pool: &Pool, operands: &[Operand<'_, f32>], output: &mut [f32]) {
        let mut inputs = [Input::Scalar(0.0); NODE_INPUTS_MAX];
        for ((input, operand), access) in inputs.iter_mut().zip(operands).zip(&self.access) {
            let Data::Real(data) = operand.data else {
                unreachable!("the specification asks for floating-point inputs")
            };
            if data.is_empty() {
                // The input that the output's storage holds.
                continue;
            }
            *input = match access {
                Access::Full => Input::Full(data),
                Access::Row => Input::Row(data),
                Access::Column(repeat) => Input::Column { data, repeat: *repeat },
                Access::Scalar => Input::Scalar(data[0]),
            };
        }
        self.chain.run(pool, &inputs, output, self.add);
    }
}

fn access(shape: &Shape, output: &Shape) -> Option<Access> {
    let lead = output.rank() - shape.rank();
    let padded = |axis: usize| if axis < lead { 1 } else { shape[axis - lead] };
    let elements = shape.elements();
    if elements == output.elements() {
        return Some(Access::Full);
    }
    if elements == 1 {
        return Some(Access::Scalar);
    }
    // Axes of one element in the output do not matter to either form.
    let rank = output.rank();
    let same = |axis: usize| padded(axis) == output[axis];
    let first = (0..rank).find(|&axis| !same(axis))?;
    let last = (0..rank).rev().find(|&axis| !same(axis))?;
    if (0..=last).all(|axis| padded(axis) == 1) {
        return Some(Access::Row);
    }
    if (first..rank).all(|axis| padded(axis) == 1) {
        return Some(Access::Column(output[first..].iter().product()));
    }
    None
}

/// Translates a postfix chain. The library's instructions are smaller, and some of ours need an
/// operand twice, so that the code goes through a tree.
fn translate(code: &[Instr]) -> Option<Vec<Code>> {
    let mut stack: Vec<Vec<Code>> = Vec::new();
    for instr in code {
        match instr {
            Instr::Input(place) => stack.push(vec![Code::Input(*place)]),
            Instr::Unary(kind) => {
                let x = stack.pop()?;
                stack.push(unary(*kind, x));
            }
            Instr::Binary(kind) => {
                let b = stack.pop()?;
                let a = stack.pop()?;
                stack.push(binary(*kind, a, b)?);
            }
        }
        if stack.last().is_some_and(|code| code.len() > crate::op::elementwise::LEN_MAX) {
            return None;
        }
    }
    stack.pop()
}

fn unary(kind: UnaryKind, mut code: Vec<Code>) -> Vec<Code> {
    let simple = |unary| Code::Unary(unary);
    let affine = |scale, offset| Code::Affine { scale, offset };
    let half = [affine(0.5, 0.5), Code::Binary(Binary::Mul)];
    match kind {
        UnaryKind::Neg => code.push(simple(Unary::Neg)),
        UnaryKind::Exp => code.push(simple(Unary::Exp)),
        UnaryKind::Log => code.push(simple(Unary::Ln)),
        UnaryKind::Tanh => code.push(simple(Unary::Tanh)),
        UnaryKind::Sigmoid => code.push(simple(Unary::Sigmoid)),
        UnaryKind::Relu => code.push(simple(Unary::Relu)),
        UnaryKind::Sqrt => code.push(simple(Unary::Sqrt)),
        UnaryKind::Rsqrt => code.push(simple(Unary::Rsqrt)),
        UnaryKind::Scale(factor) => code.push(affine(factor, 0.0)),
        UnaryKind::Offset(offset) => code.push(affine(1.0, offset)),
        UnaryKind::GeluErf => {
            code.extend([Code::Dup, affine(FRAC_1_SQRT_2, 0.0), simple(Unary::Erf)]);
            code.extend(half);
        }
        UnaryKind::GeluTanh => {
            code.extend([Code::Dup, Code::Dup, simple(Unary::Square)]);
            code.extend([affine(SQRT_2_OVER_PI * GELU_CUBE, SQRT_2_OVER_PI)]);
            code.extend([Code::Binary(Binary::Mul), simple(Unary::Tanh)]);
            code.extend(half);
        }
    }
    code
}

fn binary(kind: BinaryKind, a: Vec<Code>, b: Vec<Code>) -> Option<Vec<Code>> {
    let join = |operation| {
        let mut code = a.clone();
        code.extend(&b);
        code.push(Code::Binary(operation));
        code
    };
    Some(match kind {
        BinaryKind::Add => join(Binary::Add),
        BinaryKind::Sub => join(Binary::Sub),
        BinaryKind::Mul => join(Binary::Mul),
        BinaryKind::Div => join(Binary::Div),
        BinaryKind::Max => join(Binary::Max),
        BinaryKind::Min => join(Binary::Min),
        BinaryKind::Equal => join(Binary::Equal),
        BinaryKind::Less => join(Binary::Less),
        BinaryKind::ReluGrad => {
            let mut code = vec![Code::Const(0.0)];
            code.extend(a);
            code.push(Code::Binary(Binary::Less));
            code.extend(b);
            code.extend([Code::Const(0.0), Code::Select]);
            code
        }
        BinaryKind::GeluErfGrad => {
            let affine = |scale, offset| Code::Affine { scale, offset };
            let mut code = a.clone();
            code.extend([affine(FRAC_1_SQRT_2, 0.0), Code::Unary(Unary::Erf), affine(0.5, 0.5)]);
            code.extend(a);
            code.extend([Code::Dup, Code::Unary(Unary::Square), affine(-0.5, 0.0)]);
            code.extend([Code::Unary(Unary::Exp), affine(FRAC_1_SQRT_2PI, 0.0)]);
            code.extend([Code::Binary(Binary::Mul), Code::Binary(Binary::Add)]);
            code.extend(b);
            code.push(Code::Binary(Binary::Mul));
            code
        }
        // Has a kernel of its own, and is left out of fused chains.
        BinaryKind::GeluTanhGrad => return None,
    })
}
