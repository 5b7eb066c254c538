//! From an operator to its kernel.

use super::Precision;
use super::chain::ElementChain;
use super::compile::Out;
use crate::op::attention::{self, Attention, Gradients, Qkv};
use crate::op::conv2d::{self, Conv2d};
use crate::op::gelu::Form;
use crate::op::matmul::{self, Matrix, Scratch, Size, Store};
use crate::op::pool2d::{self, Pool2d};
use crate::op::{embedding, gelu, layer_norm, reduce, rms_norm, softmax, softmax_xent, transpose};
use crate::primitive::pool::Pool;
use crate::program::reference::{self, Data, Operand};
use crate::program::spec::NODE_OUTPUTS_MAX;
use crate::program::{
    BinaryKind, Epilogue, Node, Op, PoolKind, Program, ReduceKind, UnaryKind, Window,
};
use crate::shape::Shape;

/// Elements of logits that the joined head holds at a time: 16 MiB.
const HEAD_CHUNK_ELEMENTS: usize = 1 << 22;
/// Fewest rows of such a chunk, so that products stay efficient.
const HEAD_CHUNK_ROWS_MIN: usize = 64;

/// What kernels compute with.
pub(super) struct Machine<'a> {
    pub(super) pool: &'a Pool,
    pub(super) scratch: &'a mut Scratch,
    pub(super) precision: Precision,
}

/// One run of a node.
pub(super) struct Call<'a, 'b> {
    pub(super) node: &'a Node,
    /// Empty where the first output's storage holds the input.
    pub(super) inputs: &'a [Operand<'b, f32>],
    pub(super) in_place: Option<usize>,
    /// Whether anything reads the first output.
    pub(super) first_read: bool,
    pub(super) chain: Option<&'a ElementChain>,
    pub(super) scratch: &'a mut [f32],
    pub(super) outputs: &'a mut [Out<'b>],
}

impl<'b> Call<'_, 'b> {
    fn real(&self, place: usize) -> &'b [f32] {
        match self.inputs[place].data {
            Data::Real(data) => data,
            Data::Index(_) => unreachable!("the specification asks for a floating-point input"),
        }
    }

    fn index(&self, place: usize) -> &'b [i32] {
        match self.inputs[place].data {
            Data::Index(data) => data,
            Data::Real(_) => unreachable!("the specification asks for an index input"),
        }
    }

    fn shape(&self, place: usize) -> &'b Shape {
        self.inputs[place].shape
    }

    /// The input that the first output includes, if the node has it.
    fn base(&self, place: usize) -> Base<'b> {
        match self.in_place {
            Some(_) => Base::InOutput,
            None if self.inputs.len() > place => Base::Elsewhere(self.real(place)),
            None => Base::Nothing,
        }
    }
}

/// What a gradient is added to.
enum Base<'a> {
    Nothing,
    InOutput,
    Elsewhere(&'a [f32]),
}

impl Base<'_> {
    /// Brings the base into the output and says whether the kernel adds to it.
    fn prepare(&self, output: &mut [f32]) -> bool {
        match self {
            Self::Nothing => return false,
            Self::InOutput => {}
            Self::Elsewhere(base) => output.copy_from_slice(base),
        }
        true
    }
}

/// Elements that a node needs while it runs.
pub(super) fn scratch_len(program: &Program, node: &Node) -> usize {
    let shape = |place: usize| program.type_of(node.inputs[place]).shape;
    match node.op {
        Op::CrossEntropy | Op::CrossEntropyGrad => shape(1).elements(),
        Op::LinearCrossEntropy | Op::LinearCrossEntropyGrad => {
            let (rows, vocab) = (shape(2).elements(), shape(1)[0]);
            head_chunk_rows(rows, vocab) * vocab + rows
        }
        _ => 0,
    }
}

fn head_chunk_rows(rows: usize, vocab: usize) -> usize {
    (HEAD_CHUNK_ELEMENTS / vocab).max(HEAD_CHUNK_ROWS_MIN).min(rows)
}

const CHECKED: &str = "indices were checked before the run";

impl Machine<'_> {
    /// Runs a node by its kernel, or by the reference where it has none.
    pub(super) fn run(&mut self, call: Call<'_, '_>) {
        let pool = self.pool;
        match &call.node.op {
            Op::Embedding => {
                let (table, ids) = (call.real(0), call.index(1));
                let width = call.shape(0).last();
                embedding::fwd(pool, width, table, None, ids, call.outputs[0].data).expect(CHECKED);
            }
            Op::EmbeddingGrad { .. } => {
                let (ids, dy) = (call.index(0), call.real(1));
                let width = call.shape(1).last();
                let table = overwritten(&mut call.outputs[0]);
                embedding::bwd(pool, width, dy, ids, table).expect(CHECKED);
            }
            Op::Linear { epilogue } => self.linear(*epilogue, call),
            Op::MatMul { ta, tb } => self.matmul(*ta, *tb, call),
            Op::MatMulGeluGrad { kind } => {
                let (n, k) = (call.shape(1)[1], call.shape(1)[0]);
                let size = Size { m: call.shape(0).elements() / k, n, k };
                let form = match kind {
                    BinaryKind::GeluTanhGrad => Form::Tanh,
                    _ => Form::Exact,
                };
                let (a, b) = (Matrix::plain(call.real(0)), Matrix::plain(call.real(1)));
                let store = Store::GeluGrad { x: call.real(2), form };
                self.multiply(size, a, b, call.outputs[0].data, store);
            }
            Op::LayerNorm { .. } | Op::RmsNorm { .. } | Op::LayerNormGrad | Op::RmsNormGrad => {
                self.norm(call);
            }
            Op::Unary(_) | Op::Binary(_) | Op::Fused(_) | Op::Broadcast { .. } => {
                self.elementwise(call);
            }
            Op::Attention { heads, causal } => {
                let shape = attention_shape(call.shape(0), *heads, *causal);
                let qkv = Qkv::packed(&shape, call.real(0));
                let (y, lse) = two(call.outputs);
                attention::fwd(pool, &shape, qkv, y.data, lse.data);
            }
            Op::AttentionGrad { heads, causal } => {
                let shape = attention_shape(call.shape(0), *heads, *causal);
                let qkv = Qkv::packed(&shape, call.real(0));
                let (y, lse, dy) = (call.real(1), call.real(2), call.real(3));
                let out = Gradients::Packed(call.outputs[0].data);
                attention::bwd(pool, &shape, qkv, y, lse, dy, out);
            }
            Op::Softmax => {
                let width = call.shape(0).last();
                softmax::fwd(pool, width, call.real(0), call.outputs[0].data);
            }
            Op::SoftmaxGrad => {
                let (y, dy, width) = (call.real(0), call.real(1), call.shape(0).last());
                softmax::bwd(pool, width, y, dy, call.outputs[0].data);
            }
            Op::Permute { axes } => {
                let (x, shape) = (call.real(0), call.shape(0));
                transpose::permute(pool, shape, axes, x, call.outputs[0].data);
            }
            Op::CrossEntropy => {
                let (logits, targets) = (call.real(0), call.index(1));
                let losses = &mut call.scratch[..targets.len()];
                softmax_xent::fwd(pool, logits, targets, losses).expect(CHECKED);
                call.outputs[0].data[0] = mean_loss(pool, losses, targets);
            }
            Op::CrossEntropyGrad => {
                let (targets, dloss) = (call.index(1), call.real(2)[0]);
                if call.in_place.is_none() {
                    call.outputs[0].data.copy_from_slice(call.real(0));
                }
                let losses = &mut call.scratch[..targets.len()];
                let scale = dloss / counted(targets);
                let logits = &mut *call.outputs[0].data;
                softmax_xent::fwd_bwd(pool, logits, targets, scale, losses).expect(CHECKED);
            }
            Op::LinearCrossEntropy => self.head(call),
            Op::LinearCrossEntropyGrad => self.head_grad(call),
            Op::Reduce { kind, axes, .. } => self.reduce(*kind, axes, call),
            Op::Conv2d(window) | Op::Conv2dGrad(window) => self.convolution(*window, call),
            Op::Pool2d { kind: PoolKind::Mean, kernel, window } => {
                let shape = pool_shape(call.shape(0), *kernel, *window);
                pool2d::mean_fwd(pool, &shape, call.real(0), call.outputs[0].data);
            }
            Op::Pool2dGrad { kind: PoolKind::Mean, kernel, window } => {
                let shape = pool_shape(call.shape(0), *kernel, *window);
                pool2d::mean_bwd(pool, &shape, call.real(1), call.outputs[0].data);
            }
            _ => fall_back(call),
        }
    }

    fn convolution(&mut self, window: Window, call: Call<'_, '_>) {
        let (x, w) = (call.shape(0), call.shape(1));
        let shape = Conv2d {
            batch: x[0],
            channels: x[1],
            height: x[2],
            width: x[3],
            filters: w[0],
            kernel: [w[2], w[3]],
            stride: [window.stride; 2],
            padding: [window.padding; 2],
            dilation: [1; 2],
            groups: 1,
        };
        let (x, w) = (call.real(0), call.real(1));
        if matches!(call.node.op, Op::Conv2d(_)) {
            let bias = (call.inputs.len() == 3).then(|| call.real(2));
            let y = &mut *call.outputs[0].data;
            return conv2d::fwd(self.pool, self.scratch, &shape, x, w, bias, y);
        }
        let dy = call.real(2);
        let first_read = call.first_read;
        let [dx, dw, dbias] = call.outputs else { unreachable!("has three outputs") };
        // Images have no gradient that anybody reads.
        let dx = first_read.then_some(&mut *dx.data);
        let (dw, dbias) = (overwritten(dw), Some(overwritten(dbias)));
        conv2d::bwd(self.pool, self.scratch, &shape, x, w, dy, dx, dw, dbias);
    }

    fn multiply(
        &mut self,
        size: Size,
        a: Matrix<'_>,
        b: Matrix<'_>,
        c: &mut [f32],
        store: Store<'_>,
    ) {
        match self.precision {
            Precision::F32 => matmul::f32(self.pool, self.scratch, size, a, b, c, store),
            Precision::Bf16 => matmul::bf16(self.pool, self.scratch, size, a, b, c, store),
        }
    }

    fn linear(&mut self, epilogue: Epilogue, call: Call<'_, '_>) {
        let (x, w) = (call.real(0), call.real(1));
        let residual = usize::from(epilogue == Epilogue::Residual);
        let bias = (call.inputs.len() == 3 + residual).then(|| call.real(2));
        let (n, k) = (call.shape(1)[0], call.shape(1)[1]);
        let size = Size { m: x.len() / k, n, k };
        let (a, b) = (Matrix::plain(x), Matrix::transposed(w));
        let form = match epilogue {
            Epilogue::None => {
                let store = bias.map_or(Store::Set, Store::Bias);
                return self.multiply(size, a, b, call.outputs[0].data, store);
            }
            Epilogue::Residual => {
                let residual = call.real(call.inputs.len() - 1);
                let store = Store::Residual { bias, residual };
                return self.multiply(size, a, b, call.outputs[0].data, store);
            }
            Epilogue::GeluErf => Form::Exact,
            Epilogue::GeluTanh => Form::Tanh,
        };
        let (activated, before) = two(call.outputs);
        let store = Store::Gelu { bias, activated: activated.data, form };
        self.multiply(size, a, b, before.data, store);
    }

    fn matmul(&mut self, ta: bool, tb: bool, call: Call<'_, '_>) {
        let (a, b) = (call.shape(0), call.shape(1));
        let batches: usize = if b.rank() == 2 { 1 } else { b[..b.rank() - 2].iter().product() };
        let shape = &call.node.outputs[0].shape;
        let n = shape.last();
        let m = shape.rows() / batches;
        let k = a.elements() / batches / m;
        let size = Size { m, n, k };
        for batch in 0..batches {
            let a = Matrix { data: &call.real(0)[batch * m * k..][..m * k], transposed: ta };
            let b = Matrix { data: &call.real(1)[batch * k * n..][..k * n], transposed: tb };
            let store = if call.outputs[0].add { Store::Add } else { Store::Set };
            self.multiply(size, a, b, &mut call.outputs[0].data[batch * m * n..][..m * n], store);
        }
    }

    fn norm(&mut self, call: Call<'_, '_>) {
        let pool = self.pool;
        let (x, gamma) = (call.real(0), call.real(1));
        match call.node.op {
            Op::LayerNorm { eps } => {
                let beta = (call.inputs.len() == 3).then(|| call.real(2));
                let [y, mean, rstd] = call.outputs else { unreachable!("has three outputs") };
                layer_norm::fwd(pool, x, gamma, beta, eps, y.data, mean.data, rstd.data);
            }
            Op::RmsNorm { eps } => {
                let (y, rstd) = two(call.outputs);
                rms_norm::fwd(pool, x, gamma, eps, y.data, rstd.data);
            }
            Op::LayerNormGrad => {
                let (mean, rstd, dy) = (call.real(2), call.real(3), call.real(4));
                let base = call.base(5);
                let [dx, dgamma, dbeta] = call.outputs else { unreachable!("has three outputs") };
                let add = base.prepare(dx.data);
                let (dgamma, dbeta) = (overwritten(dgamma), overwritten(dbeta));
                let dbeta = Some(dbeta);
                layer_norm::bwd(pool, x, gamma, mean, rstd, dy, dx.data, add, dgamma, dbeta);
            }
            _ => {
                let (rstd, dy) = (call.real(2), call.real(3));
                let base = call.base(4);
                let (dx, dgamma) = two(call.outputs);
                let add = base.prepare(dx.data);
                rms_norm::bwd(pool, x, gamma, rstd, dy, dx.data, add, overwritten(dgamma));
            }
        }
    }

    fn elementwise(&mut self, call: Call<'_, '_>) {
        let pool = self.pool;
        let same = call.inputs.iter().all(|input| *input.shape == call.node.outputs[0].shape);
        match call.node.op {
            Op::Unary(UnaryKind::GeluErf) => {
                gelu::fwd(pool, Form::Exact, call.real(0), call.outputs[0].data);
            }
            Op::Unary(UnaryKind::GeluTanh) => {
                gelu::fwd(pool, Form::Tanh, call.real(0), call.outputs[0].data);
            }
            Op::Binary(BinaryKind::GeluErfGrad) if same => {
                gelu::bwd(pool, Form::Exact, call.real(0), call.real(1), call.outputs[0].data);
            }
            Op::Binary(BinaryKind::GeluTanhGrad) if same => {
                gelu::bwd(pool, Form::Tanh, call.real(0), call.real(1), call.outputs[0].data);
            }
            _ => match call.chain {
                Some(chain) => chain.run(pool, call.inputs, call.outputs[0].data),
                None => fall_back(call),
            },
        }
    }

    /// The loss of the joined head, in chunks of rows.
    fn head(&mut self, call: Call<'_, '_>) {
        let (x, w, targets) = (call.real(0), call.real(1), call.index(2));
        let (vocab, width) = (call.shape(1)[0], call.shape(1)[1]);
        let rows = head_chunk_rows(targets.len(), vocab);
        let (logits, losses) = call.scratch.split_at_mut(rows * vocab);
        let losses = &mut losses[..targets.len()];
        for start in (0..targets.len()).step_by(rows) {
            let range = start..(start + rows).min(targets.len());
            let logits = &mut logits[..range.len() * vocab];
            let x = &x[range.start * width..range.end * width];
            let size = Size { m: range.len(), n: vocab, k: width };
            self.multiply(size, Matrix::plain(x), Matrix::transposed(w), logits, Store::Set);
            let losses = &mut losses[range.clone()];
            softmax_xent::fwd(self.pool, logits, &targets[range], losses).expect(CHECKED);
        }
        call.outputs[0].data[0] = mean_loss(self.pool, losses, targets);
    }

    /// Loss and gradients of the joined head, in chunks of rows: logits become their own gradient.
    fn head_grad(&mut self, call: Call<'_, '_>) {
        let (x, w, targets, dloss) = (call.real(0), call.real(1), call.index(2), call.real(3)[0]);
        let (vocab, width) = (call.shape(1)[0], call.shape(1)[1]);
        let rows = head_chunk_rows(targets.len(), vocab);
        let scale = dloss / counted(targets);
        let (logits, losses) = call.scratch.split_at_mut(rows * vocab);
        let losses = &mut losses[..targets.len()];
        let [dx, dw, loss] = call.outputs else { unreachable!("has three outputs") };
        let dw = overwritten(dw);
        for start in (0..targets.len()).step_by(rows) {
            let range = start..(start + rows).min(targets.len());
            let len = range.len();
            let logits = &mut logits[..len * vocab];
            let part = range.start * width..range.end * width;
            let (x, dx) = (Matrix::plain(&x[part.clone()]), &mut dx.data[part]);
            let size = Size { m: len, n: vocab, k: width };
            self.multiply(size, x, Matrix::transposed(w), logits, Store::Set);
            let losses = &mut losses[range.clone()];
            softmax_xent::fwd_bwd(self.pool, logits, &targets[range], scale, losses)
                .expect(CHECKED);
            let size = Size { m: vocab, n: width, k: len };
            self.multiply(size, Matrix::transposed(logits), x, dw, Store::Add);
            let size = Size { m: len, n: width, k: vocab };
            self.multiply(size, Matrix::plain(logits), Matrix::plain(w), dx, Store::Set);
        }
        loss.data[0] = mean_loss(self.pool, losses, targets);
    }

    fn reduce(&mut self, kind: ReduceKind, axes: &[usize], call: Call<'_, '_>) {
        let kind = match kind {
            ReduceKind::Sum => reduce::Kind::Sum,
            ReduceKind::Mean => reduce::Kind::Mean,
            ReduceKind::Max => reduce::Kind::Max,
        };
        let (x, rank) = (call.real(0), call.shape(0).rank());
        let out = &mut call.outputs[0];
        if axes.len() == rank && !out.add {
            out.data[0] = reduce::all(self.pool, kind, x);
        } else if axes.iter().copied().eq(0..axes.len()) {
            reduce::first_axis(self.pool, kind, x, out.data, out.add);
        } else if axes.iter().copied().eq(rank - axes.len()..rank) {
            reduce::last_axis(self.pool, kind, x, out.data);
        } else {
            fall_back(call);
        }
    }
}

/// The output, zeroed unless it is to be added to: for kernels that always add.
fn overwritten<'a>(out: &'a mut Out<'_>) -> &'a mut [f32] {
    if !out.add {
        out.data.fill(0.0);
    }
    out.data
}

fn two<'a, 'b>(outputs: &'a mut [Out<'b>]) -> (&'a mut Out<'b>, &'a mut Out<'b>) {
    let [first, second] = outputs else { unreachable!("the operator has two outputs") };
    (first, second)
}

fn pool_shape(x: &Shape, kernel: usize, window: Window) -> Pool2d {
    Pool2d {
        planes: x[0] * x[1],
        height: x[2],
        width: x[3],
        kernel: [kernel; 2],
        stride: [window.stride; 2],
        padding: [window.padding; 2],
    }
}

fn attention_shape(qkv: &Shape, heads: usize, causal: bool) -> Attention {
    let head_dim = qkv[2] / 3 / heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention { batch: qkv[0], tokens: qkv[1], heads, head_dim, causal, scale }
}

/// Number of targets that count, at least 1 so that a batch without any has loss 0.
fn counted(targets: &[i32]) -> f32 {
    targets.iter().filter(|&&target| target >= 0).count().max(1) as f32
}

fn mean_loss(pool: &Pool, losses: &[f32], targets: &[i32]) -> f32 {
    reduce::all(pool, reduce::Kind::Sum, losses) / counted(targets)
}

fn fall_back(call: Call<'_, '_>) {
    let node = call.node;
    let count = call.outputs.len();
    let mut shapes = [&node.outputs[0].shape; NODE_OUTPUTS_MAX];
    shapes.iter_mut().zip(&node.outputs).for_each(|(shape, ty)| *shape = &ty.shape);
    let mut slices: [&mut [f32]; NODE_OUTPUTS_MAX] = Default::default();
    for (slice, out) in slices.iter_mut().zip(call.outputs.iter_mut()) {
        debug_assert!(!out.add, "the plan adds only where a kernel does");
        *slice = &mut *out.data;
    }
    reference::evaluate(&node.op, call.inputs, &shapes[..count], &mut slices[..count]);
}
