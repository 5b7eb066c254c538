//! Attention with several heads, fused: scores exist only in tiles.
//!
//! For each head and block of queries the forward pass runs over the blocks of keys with an online
//! softmax, and keeps the logarithm of the sum of exponentials. The backward pass computes the
//! scores again from it. Blocks that causality hides are skipped. Each task is one head of one
//! sequence.

use crate::primitive::pool::Pool;
use crate::primitive::scratch;
use crate::primitive::simd::{Simd, simd};

mod backward;
mod forward;
mod parts;

use parts::{In, OutRows};

/// Shape and kind of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Positions in each.
    pub tokens: usize,
    /// Heads of each position.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Whether a position sees only itself and those before.
    pub causal: bool,
    /// What scores are multiplied by, usually `1 / sqrt(head_dim)`. Positive.
    pub scale: f32,
}

/// Rows of queries, keys or values inside a larger tensor: the row of a token `t` of sequence `b`
/// begins at `offset + (b * tokens + t) * stride` and holds the heads one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The tensor.
    pub data: &'a [f32],
    /// Where the first row begins.
    pub offset: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// The inputs.
#[derive(Clone, Copy, Debug)]
pub struct Qkv<'a> {
    /// Queries.
    pub q: Rows<'a>,
    /// Keys.
    pub k: Rows<'a>,
    /// Values.
    pub v: Rows<'a>,
}

impl<'a> Qkv<'a> {
    /// Queries, keys and values side by side: `[batch, tokens, 3, heads, head_dim]`.
    pub fn packed(shape: &Attention, data: &'a [f32]) -> Self {
        let width = shape.width();
        let rows = |index| Rows { data, offset: index * width, stride: 3 * width };
        Self { q: rows(0), k: rows(1), v: rows(2) }
    }

    /// Three tensors `[batch, tokens, heads, head_dim]`.
    pub fn split(shape: &Attention, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Self {
        let rows = |data| Rows { data, offset: 0, stride: shape.width() };
        Self { q: rows(q), k: rows(k), v: rows(v) }
    }
}

/// Where the gradients go. All of it is overwritten.
pub enum Gradients<'a> {
    /// `[batch, tokens, 3, heads, head_dim]`
    Packed(&'a mut [f32]),
    /// Three tensors `[batch, tokens, heads, head_dim]`
    Split {
        /// Of the queries.
        dq: &'a mut [f32],
        /// Of the keys.
        dk: &'a mut [f32],
        /// Of the values.
        dv: &'a mut [f32],
    },
}

impl Attention {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    fn is_empty(&self) -> bool {
        self.rows() * self.width() == 0
    }
}

/// `y[b, t, h] = softmax(scale * q k^T) v`, as `[batch, tokens, heads, head_dim]`, and
/// `lse[b, h, t]`, the logarithm of the sum of the exponentials of the scores.
pub fn fwd(pool: &Pool, shape: &Attention, qkv: Qkv<'_>, y: &mut [f32], lse: &mut [f32]) {
    let width = shape.width();
    assert!(y.len() == shape.rows() * width && lse.len() == shape.rows() * shape.heads);
    check(shape, qkv);
    if shape.is_empty() {
        return;
    }
    let y = OutRows::new(y, 0, width);
    let lse = OutRows::new(lse, 0, 1);
    pool.run(shape.batch * shape.heads, &|task| {
        let head = Head::new(shape, task);
        scratch::with(forward::scratch_len(shape), |scratch| {
            forward::head(forward::Task {
                shape: *shape,
                q: head.input(qkv.q),
                k: head.input(qkv.k),
                v: head.input(qkv.v),
                y: head.output(&y),
                // SAFETY: each head of each sequence has its own run of `tokens` sums.
                lse: unsafe { lse.slice(task * shape.tokens, shape.tokens) },
                scratch,
            });
        });
    });
}

/// The gradients of [`fwd`], from its results `y` and `lse` and the gradient `dy`.
pub fn bwd(
    pool: &Pool,
    shape: &Attention,
    qkv: Qkv<'_>,
    y: &[f32],
    lse: &[f32],
    dy: &[f32],
    gradients: Gradients<'_>,
) {
    let width = shape.width();
    assert!(y.len() == shape.rows() * width && lse.len() == shape.rows() * shape.heads);
    assert_eq!(dy.len(), y.len());
    check(shape, qkv);
    if shape.is_empty() {
        return;
    }
    let (dq, dk, dv) = match gradients {
        Gradients::Packed(out) => {
            assert_eq!(out.len(), 3 * y.len());
            let all = OutRows::new(out, 0, 3 * width);
            (all.at(0), all.at(width), all.at(2 * width))
        }
        Gradients::Split { dq, dk, dv } => {
            assert!(dq.len() == y.len() && dk.len() == y.len() && dv.len() == y.len());
            (OutRows::new(dq, 0, width), OutRows::new(dk, 0, width), OutRows::new(dv, 0, width))
        }
    };
    let rows = |data| Rows { data, offset: 0, stride: width };
    pool.run(shape.batch * shape.heads, &|task| {
        let head = Head::new(shape, task);
        scratch::with(backward::scratch_len(shape), |scratch| {
            backward::head(backward::Task {
                shape: *shape,
                q: head.input(qkv.q),
                k: head.input(qkv.k),
                v: head.input(qkv.v),
                y: head.input(rows(y)),
                dy: head.input(rows(dy)),
                lse: &lse[task * shape.tokens..][..shape.tokens],
                dq: head.output(&dq),
                dk: head.output(&dk),
                dv: head.output(&dv),
                scratch,
            });
        });
    });
}

fn check(shape: &Attention, qkv: Qkv<'_>) {
    assert!(shape.scale > 0.0, "scale of {shape:?}");
    if shape.is_empty() {
        return;
    }
    for rows in [qkv.q, qkv.k, qkv.v] {
        let end = rows.offset + (shape.rows() - 1) * rows.stride + shape.width();
        assert!(rows.data.len() >= end && rows.stride >= shape.width(), "rows of {shape:?}");
    }
}

/// One head of one sequence.
struct Head {
    first_row: usize,
    tokens: usize,
    column: usize,
    dim: usize,
}

impl Head {
    fn new(shape: &Attention, task: usize) -> Self {
        Self {
            first_row: task / shape.heads * shape.tokens,
            tokens: shape.tokens,
            column: task % shape.heads * shape.head_dim,
            dim: shape.head_dim,
        }
    }

    fn input<'a>(&self, rows: Rows<'a>) -> In<'a> {
        let begin = rows.offset + self.first_row * rows.stride + self.column;
        let end = begin + (self.tokens - 1) * rows.stride + self.dim;
        In { data: &rows.data[begin..end], stride: rows.stride }
    }

    fn output<'a>(&self, rows: &OutRows<'a>) -> OutRows<'a> {
        rows.at(self.first_row * rows.stride() + self.column)
    }
}
