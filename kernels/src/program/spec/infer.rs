//! What each operator accepts and yields.

use super::{FUSED_CODE_MAX, FUSED_STACK_MAX, Issue, NODE_INPUTS_MAX, POOL_KERNEL_MAX};
use crate::dtype::DType;
use crate::program::Type;
use crate::program::op::{BinaryKind, Epilogue, Instr, Op, UnaryKind, Window};
use crate::shape::Shape;

/// Types that an operator yields for inputs of these types, or why it refuses them. Total: any
/// attribute values and any (bounded) input types are allowed.
pub fn infer(op: &Op, inputs: &[Type]) -> Result<Vec<Type>, Issue> {
    let outputs = Infer { inputs }.infer(op)?;
    for output in &outputs {
        if output.shape.checked_elements().is_none() {
            return Err(Issue::TooLarge { shape: output.shape.clone() });
        }
    }
    Ok(outputs)
}

struct Infer<'a> {
    inputs: &'a [Type],
}

impl Infer<'_> {
    fn infer(&self, op: &Op) -> Result<Vec<Type>, Issue> {
        match op {
            Op::Constant { value, shape } => {
                self.floats("0", 0..=0)?;
                require_attribute(canonical(*value), "value", "a finite number, not -0")?;
                Ok(vec![Type::f32(shape.clone())])
            }
            Op::Embedding | Op::EmbeddingGrad { .. } => self.embedding(op),
            Op::Linear { epilogue } => self.linear(*epilogue),
            Op::MatMul { ta, tb } => self.matmul(*ta, *tb),
            Op::MatMulGeluGrad { kind } => self.matmul_gelu_grad(*kind),
            Op::LayerNorm { .. } | Op::LayerNormGrad | Op::RmsNorm { .. } | Op::RmsNormGrad => {
                self.norm(op)
            }
            Op::Unary(kind) => {
                self.floats("1", 1..=1)?;
                check_unary(*kind)?;
                Ok(vec![self.inputs[0].clone()])
            }
            Op::Binary(_) => {
                self.floats("2", 2..=2)?;
                let shape = self.shape(0).broadcast(self.shape(1));
                let shape = shape.ok_or(Issue::Shape { input: 1, expected: "must broadcast" })?;
                Ok(vec![Type::f32(shape)])
            }
            Op::Fused(code) => self.fused(code),
            Op::Attention { heads, .. } | Op::AttentionGrad { heads, .. } => {
                self.attention(op, *heads)
            }
            Op::Softmax => {
                self.floats("1", 1..=1)?;
                self.require(0, self.shape(0).rank() >= 1, "must have an axis")?;
                Ok(vec![self.inputs[0].clone()])
            }
            Op::SoftmaxGrad => {
                self.floats("2", 2..=2)?;
                self.require(0, self.shape(0).rank() >= 1, "must have an axis")?;
                self.same(1, 0)?;
                Ok(vec![self.inputs[0].clone()])
            }
            Op::CrossEntropy | Op::CrossEntropyGrad => self.cross_entropy(op),
            Op::LinearCrossEntropy | Op::LinearCrossEntropyGrad => self.linear_cross_entropy(op),
            Op::Reshape { .. }
            | Op::Permute { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Concat { .. }
            | Op::Broadcast { .. } => self.movement(op),
            Op::Reduce { axes, keep, .. } => self.reduce(axes, *keep),
            Op::Cast { to } => {
                self.count("1", 1..=1)?;
                self.dtype(0, DType::I32)?;
                require_attribute(*to == DType::F32, "to", "f32")?;
                Ok(vec![Type::f32(self.shape(0).clone())])
            }
            Op::Conv2d(_) | Op::Conv2dGrad(_) | Op::Pool2d { .. } | Op::Pool2dGrad { .. } => {
                self.image(op)
            }
        }
    }

    fn embedding(&self, op: &Op) -> Result<Vec<Type>, Issue> {
        self.count("2", 2..=2)?;
        let (index, float) = if *op == Op::Embedding { (1, 0) } else { (0, 1) };
        self.dtype(index, DType::I32)?;
        self.dtype(float, DType::F32)?;
        let (tokens, data) = (self.shape(index), self.shape(float));
        match op {
            Op::EmbeddingGrad { rows } => {
                require_attribute(*rows > 0, "rows", "at least 1")?;
                let fits = data.rank() == tokens.rank() + 1 && data[..tokens.rank()] == tokens[..];
                self.require(1, fits, "must be the tokens' shape and one axis more")?;
                Ok(vec![Type::f32([*rows, data.last()])])
            }
            _ => {
                self.require(0, data.rank() == 2, "must be a matrix")?;
                let dims: Vec<usize> = tokens.iter().copied().chain([data[1]]).collect();
                Ok(vec![Type::f32(dims)])
            }
        }
    }

    fn linear(&self, epilogue: Epilogue) -> Result<Vec<Type>, Issue> {
        let residual = usize::from(epilogue == Epilogue::Residual);
        match epilogue {
            Epilogue::Residual => self.floats("3 or 4", 3..=4)?,
            _ => self.floats("2 or 3", 2..=3)?,
        }
        let (x, w) = (self.shape(0), self.shape(1));
        self.require(0, x.rank() >= 1, "must have an axis")?;
        self.require(1, w.rank() == 2 && w[1] == x.last(), "must be [N,K] for x [..,K]")?;
        if self.inputs.len() == 3 + residual {
            self.require(2, self.shape(2)[..] == w[..1], "must be [N]")?;
        }
        let dims: Vec<usize> = x[..x.rank() - 1].iter().copied().chain([w[0]]).collect();
        let output = Type::f32(dims);
        if residual == 1 {
            let last = self.inputs.len() - 1;
            self.require(last, self.inputs[last] == output, "must have the result's shape")?;
        }
        Ok(match epilogue {
            Epilogue::None | Epilogue::Residual => vec![output],
            Epilogue::GeluErf | Epilogue::GeluTanh => vec![output.clone(), output],
        })
    }

    fn matmul(&self, ta: bool, tb: bool) -> Result<Vec<Type>, Issue> {
        self.floats("2", 2..=2)?;
        let (a, b) = (self.shape(0), self.shape(1));
        self.require(0, a.rank() >= 2, "must have two axes")?;
        self.require(1, b.rank() >= 2, "must have two axes")?;
        let (lead_a, lead_b) = (&a[..a.rank() - 2], &b[..b.rank() - 2]);
        let fits = if lead_b.is_empty() { !ta || lead_a.is_empty() } else { lead_a == lead_b };
        self.require(1, fits, "must be a matrix or have a's leading axes")?;
        let pair = |shape: &Shape, transposed: bool| {
            let (row, column) = (shape[shape.rank() - 2], shape[shape.rank() - 1]);
            if transposed { (column, row) } else { (row, column) }
        };
        let ((m, k), (kb, n)) = (pair(a, ta), pair(b, tb));
        self.require(1, k == kb, "its inner dimension must be a's")?;
        let dims: Vec<usize> = lead_a.iter().copied().chain([m, n]).collect();
        Ok(vec![Type::f32(dims)])
    }

    fn matmul_gelu_grad(&self, kind: BinaryKind) -> Result<Vec<Type>, Issue> {
        self.floats("3", 3..=3)?;
        let allowed = matches!(kind, BinaryKind::GeluErfGrad | BinaryKind::GeluTanhGrad);
        require_attribute(allowed, "kind", "gelu_erf_grad or gelu_tanh_grad")?;
        let (a, b) = (self.shape(0), self.shape(1));
        self.require(0, a.rank() >= 1, "must have an axis")?;
        self.require(1, b.rank() == 2 && b[0] == a.last(), "must be [N,K] for a [..,N]")?;
        let dims: Vec<usize> = a[..a.rank() - 1].iter().copied().chain([b[1]]).collect();
        let output = Type::f32(dims);
        self.require(2, self.inputs[2] == output, "must have the result's shape")?;
        Ok(vec![output])
    }

    fn norm(&self, op: &Op) -> Result<Vec<Type>, Issue> {
        let (expected, range) = match op {
            Op::LayerNorm { .. } => ("2 or 3", 2..=3),
            Op::LayerNormGrad => ("5 or 6", 5..=6),
            Op::RmsNorm { .. } => ("2", 2..=2),
            _ => ("4 or 5", 4..=5),
        };
        self.floats(expected, range)?;
        if let Op::LayerNorm { eps } | Op::RmsNorm { eps } = op {
            let allowed = eps.is_finite() && *eps > 0.0;
            require_attribute(allowed, "eps", "a finite, positive number")?;
        }
        let x = self.shape(0);
        self.require(0, x.rank() >= 1, "must have an axis")?;
        let vector = Shape::from([x.last()]);
        let statistics = Shape::from([x.rows()]);
        self.require(1, *self.shape(1) == vector, "must be [C] for x [..,C]")?;
        let (y, c, r) = (self.inputs[0].clone(), Type::f32(vector), Type::f32(statistics));
        match op {
            Op::LayerNorm { .. } => {
                if self.inputs.len() == 3 {
                    self.require(2, *self.shape(2) == c.shape, "must be [C] for x [..,C]")?;
                }
                Ok(vec![y, r.clone(), r])
            }
            Op::RmsNorm { .. } => Ok(vec![y, r]),
            Op::LayerNormGrad => {
                self.require(2, *self.shape(2) == r.shape, "must be [rows]")?;
                self.require(3, *self.shape(3) == r.shape, "must be [rows]")?;
                (4..self.inputs.len()).try_for_each(|input| self.same(input, 0))?;
                Ok(vec![y, c.clone(), c])
            }
            _ => {
                self.require(2, *self.shape(2) == r.shape, "must be [rows]")?;
                (3..self.inputs.len()).try_for_each(|input| self.same(input, 0))?;
                Ok(vec![y, c])
            }
        }
    }

    fn fused(&self, code: &[Instr]) -> Result<Vec<Type>, Issue> {
        self.floats("1 to 8", 1..=NODE_INPUTS_MAX)?;
        let problem = |expected| Err(Issue::Attribute { name: "code", expected });
        if code.len() > FUSED_CODE_MAX {
            return problem("at most 32 instructions");
        }
        let mut used = [false; NODE_INPUTS_MAX];
        let mut depth = 0usize;
        for instr in code {
            match instr {
                Instr::Input(place) => {
                    if usize::from(*place) >= self.inputs.len() {
                        return problem("reads an input that the node has not");
                    }
                    used[usize::from(*place)] = true;
                    depth += 1;
                }
                Instr::Unary(kind) => {
                    check_unary(*kind)?;
                    if depth < 1 {
                        return problem("pops from an empty stack");
                    }
                }
                Instr::Binary(_) => {
                    if depth < 2 {
                        return problem("pops from an empty stack");
                    }
                    depth -= 1;
                }
            }
            if depth > FUSED_STACK_MAX {
                return problem("needs a stack of at most 8");
            }
        }
        if depth != 1 {
            return problem("must leave one value");
        }
        if used[..self.inputs.len()].contains(&false) {
            return problem("must read every input");
        }
        let mut shape = Shape::scalar();
        for (input, ty) in self.inputs.iter().enumerate() {
            shape = shape
                .broadcast(&ty.shape)
                .ok_or(Issue::Shape { input, expected: "must broadcast" })?;
        }
        Ok(vec![Type::f32(shape)])
    }

    fn attention(&self, op: &Op, heads: usize) -> Result<Vec<Type>, Issue> {
        let grad = matches!(op, Op::AttentionGrad { .. });
        let (expected, count) = if grad { ("4", 4) } else { ("1", 1) };
        self.floats(expected, count..=count)?;
        let qkv = self.shape(0);
        self.require(0, qkv.rank() == 3 && qkv[2].is_multiple_of(3), "must be [B,T,3C]")?;
        let width = qkv[2] / 3;
        let divides = heads > 0 && width.is_multiple_of(heads);
        require_attribute(divides, "heads", "a divisor of the width C")?;
        let y = Type::f32([qkv[0], qkv[1], width]);
        let lse = Type::f32([qkv[0], heads, qkv[1]]);
        if !grad {
            return Ok(vec![y, lse]);
        }
        self.require(1, *self.shape(1) == y.shape, "must be [B,T,C]")?;
        self.require(2, *self.shape(2) == lse.shape, "must be [B,H,T]")?;
        self.require(3, *self.shape(3) == y.shape, "must be [B,T,C]")?;
        Ok(vec![self.inputs[0].clone()])
    }

    fn cross_entropy(&self, op: &Op) -> Result<Vec<Type>, Issue> {
        let grad = *op == Op::CrossEntropyGrad;
        let (expected, count) = if grad { ("3", 3) } else { ("2", 2) };
        self.count(expected, count..=count)?;
        self.dtype(0, DType::F32)?;
        self.dtype(1, DType::I32)?;
        let (logits, targets) = (self.shape(0), self.shape(1));
        let fits = logits.rank() >= 1 && logits[..logits.rank() - 1] == targets[..];
        self.require(1, fits, "must be [..] for logits [..,V]")?;
        if !grad {
            return Ok(vec![Type::f32([])]);
        }
        self.dtype(2, DType::F32)?;
        self.require(2, self.shape(2).rank() == 0, "must be a scalar")?;
        Ok(vec![self.inputs[0].clone()])
    }

    fn linear_cross_entropy(&self, op: &Op) -> Result<Vec<Type>, Issue> {
        let grad = *op == Op::LinearCrossEntropyGrad;
        let (expected, count) = if grad { ("4", 4) } else { ("3", 3) };
        self.count(expected, count..=count)?;
        self.dtype(0, DType::F32)?;
        self.dtype(1, DType::F32)?;
        self.dtype(2, DType::I32)?;
        let (x, w, targets) = (self.shape(0), self.shape(1), self.shape(2));
        self.require(0, x.rank() >= 1, "must have an axis")?;
        self.require(1, w.rank() == 2 && w[1] == x.last(), "must be [V,K] for x [..,K]")?;
        self.require(2, targets[..] == x[..x.rank() - 1], "must be [..] for x [..,K]")?;
        if !grad {
            return Ok(vec![Type::f32([])]);
        }
        self.dtype(3, DType::F32)?;
        self.require(3, self.shape(3).rank() == 0, "must be a scalar")?;
        Ok(vec![self.inputs[0].clone(), self.inputs[1].clone(), Type::f32([])])
    }

    fn movement(&self, op: &Op) -> Result<Vec<Type>, Issue> {
        if let Op::Concat { axis } = op {
            return self.concat(*axis);
        }
        self.count("1", 1..=1)?;
        let x = self.shape(0);
        let dtype = self.inputs[0].dtype;
        if let Op::Reshape { shape } = op {
            let fits = shape.checked_elements() == Some(x.elements());
            require_attribute(fits, "shape", "as many elements as the input")?;
            return Ok(vec![Type { dtype, shape: shape.clone() }]);
        }
        self.dtype(0, DType::F32)?;
        let mut dims = x.dims().to_vec();
        match op {
            Op::Permute { axes } => {
                let mut sorted = axes.clone();
                sorted.sort_unstable();
                let fits = sorted.iter().copied().eq(0..x.rank());
                require_attribute(fits, "axes", "a permutation of the input's axes")?;
                dims = axes.iter().map(|&axis| x[axis]).collect();
            }
            Op::Slice { axis, start, end } => {
                require_attribute(*axis < x.rank(), "axis", "an axis of the input")?;
                require_attribute(start < end, "start", "less than end")?;
                require_attribute(*end <= x[*axis], "end", "at most the axis's dimension")?;
                dims[*axis] = end - start;
            }
            Op::Pad { axis, before, after } => {
                require_attribute(*axis < x.rank(), "axis", "an axis of the input")?;
                let sum = before.checked_add(*after).and_then(|n| n.checked_add(x[*axis]));
                let sum = sum.ok_or(Issue::Attribute { name: "before", expected: "bounded" })?;
                dims[*axis] = sum;
            }
            Op::Broadcast { shape } => {
                let fits = shape.checked_elements().is_some()
                    && x.broadcast(shape).as_ref() == Some(shape);
                require_attribute(fits, "shape", "a shape that the input broadcasts to")?;
                dims = shape.dims().to_vec();
            }
            _ => unreachable!("movement is called for movement operators only"),
        }
        Ok(vec![Type::f32(dims)])
    }

    fn concat(&self, axis: usize) -> Result<Vec<Type>, Issue> {
        self.floats("1 to 8", 1..=NODE_INPUTS_MAX)?;
        let first = self.shape(0);
        require_attribute(axis < first.rank(), "axis", "an axis of the inputs")?;
        let mut dims = first.dims().to_vec();
        for input in 1..self.inputs.len() {
            let shape = self.shape(input);
            let fits = shape.rank() == first.rank()
                && (0..first.rank()).all(|other| other == axis || shape[other] == first[other]);
            self.require(input, fits, "must differ from the first along the axis only")?;
            dims[axis] += shape[axis];
        }
        Ok(vec![Type::f32(dims)])
    }

    fn reduce(&self, axes: &[usize], keep: bool) -> Result<Vec<Type>, Issue> {
        self.floats("1", 1..=1)?;
        let x = self.shape(0);
        let ascending = axes.windows(2).all(|pair| pair[0] < pair[1]);
        let fits = !axes.is_empty() && ascending && axes.iter().all(|&axis| axis < x.rank());
        require_attribute(fits, "axes", "axes of the input, ascending, at least one")?;
        let dims: Vec<usize> = if keep {
            (0..x.rank()).map(|axis| if axes.contains(&axis) { 1 } else { x[axis] }).collect()
        } else {
            (0..x.rank()).filter(|axis| !axes.contains(axis)).map(|axis| x[axis]).collect()
        };
        Ok(vec![Type::f32(dims)])
    }

    fn image(&self, op: &Op) -> Result<Vec<Type>, Issue> {
        let (expected, range) = match op {
            Op::Conv2d(_) => ("2 or 3", 2..=3),
            Op::Conv2dGrad(_) => ("3", 3..=3),
            Op::Pool2d { .. } => ("1", 1..=1),
            _ => ("2", 2..=2),
        };
        self.floats(expected, range)?;
        let bias = usize::from(matches!(op, Op::Conv2d(_)) && self.inputs.len() == 3);
        for input in 0..self.inputs.len() - bias {
            self.require(input, self.shape(input).rank() == 4, "must have four axes")?;
        }
        let a = self.shape(0);
        match op {
            Op::Conv2d(window) => {
                let w = self.shape(1);
                self.require(1, w[1] == a[1], "must be [O,C,KH,KW] for x [N,C,H,W]")?;
                if self.inputs.len() == 3 {
                    self.require(2, self.shape(2)[..] == w[..1], "must be [O]")?;
                }
                let (h, v) = (windows(window, a[2], w[2])?, windows(window, a[3], w[3])?);
                Ok(vec![Type::f32([a[0], w[0], h, v])])
            }
            Op::Conv2dGrad(window) => {
                let (w, dy) = (self.shape(1), self.shape(2));
                self.require(1, w[1] == a[1], "must be [O,C,KH,KW] for x [N,C,H,W]")?;
                let (h, v) = (windows(window, a[2], w[2])?, windows(window, a[3], w[3])?);
                self.require(2, dy[..] == [a[0], w[0], h, v], "must be the convolution's output")?;
                let bias = Type::f32([w[0]]);
                Ok(vec![self.inputs[0].clone(), self.inputs[1].clone(), bias])
            }
            Op::Pool2d { kernel, window, .. } | Op::Pool2dGrad { kernel, window, .. } => {
                let half = window.padding.checked_mul(2).is_some_and(|twice| twice <= *kernel);
                require_attribute(half, "padding", "at most half the kernel")?;
                let bounded = *kernel <= POOL_KERNEL_MAX;
                require_attribute(bounded, "kernel", "at most 1024")?;
                let (h, v) = (windows(window, a[2], *kernel)?, windows(window, a[3], *kernel)?);
                let output = Type::f32([a[0], a[1], h, v]);
                if matches!(op, Op::Pool2d { .. }) {
                    return Ok(vec![output]);
                }
                self.require(1, *self.shape(1) == output.shape, "must be the pooling's output")?;
                Ok(vec![self.inputs[0].clone()])
            }
            _ => unreachable!("image is called for image operators only"),
        }
    }

    fn shape(&self, input: usize) -> &Shape {
        &self.inputs[input].shape
    }

    fn count(
        &self,
        expected: &'static str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<(), Issue> {
        let found = self.inputs.len();
        if range.contains(&found) { Ok(()) } else { Err(Issue::InputCount { expected, found }) }
    }

    fn dtype(&self, input: usize, expected: DType) -> Result<(), Issue> {
        if self.inputs[input].dtype == expected {
            return Ok(());
        }
        Err(Issue::DType { input, expected })
    }

    /// So many inputs, all of them floating point.
    fn floats(
        &self,
        expected: &'static str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<(), Issue> {
        self.count(expected, range)?;
        (0..self.inputs.len()).try_for_each(|input| self.dtype(input, DType::F32))
    }

    fn require(&self, input: usize, holds: bool, expected: &'static str) -> Result<(), Issue> {
        if holds { Ok(()) } else { Err(Issue::Shape { input, expected }) }
    }

    fn same(&self, input: usize, other: usize) -> Result<(), Issue> {
        let expected = "must have the shape of the value it belongs to";
        self.require(input, self.shape(input) == self.shape(other), expected)
    }
}

fn require_attribute(holds: bool, name: &'static str, expected: &'static str) -> Result<(), Issue> {
    if holds { Ok(()) } else { Err(Issue::Attribute { name, expected }) }
}

/// Negative zero is refused so that equal programs have equal bytes.
fn canonical(value: f32) -> bool {
    value.is_finite() && value.to_bits() != (-0.0f32).to_bits()
}

fn check_unary(kind: UnaryKind) -> Result<(), Issue> {
    match kind {
        UnaryKind::Scale(value) | UnaryKind::Offset(value) => {
            require_attribute(canonical(value), "kind", "a finite number, not -0")
        }
        _ => Ok(()),
    }
}

fn windows(window: &Window, len: usize, kernel: usize) -> Result<usize, Issue> {
    require_attribute(window.stride > 0, "stride", "at least 1")?;
    require_attribute(kernel > 0, "kernel", "at least 1")?;
    require_attribute(len > 0, "height", "at least 1")?;
    let count = window.count(len, kernel);
    count.ok_or(Issue::Attribute { name: "kernel", expected: "at most the padded image" })
}
