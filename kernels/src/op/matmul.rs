//! Matrix products, `C = A B` or `C += A B` with either operand stored transposed.
//!
//! Operands are packed into panels that the register tile reads in order: all of `B` (and a small
//! `A`) once by all threads, a large `A` by the task that needs the rows. Tasks are tiles of `C`;
//! `k` is never divided among threads, and tile sizes are functions of the shape and of the
//! processor's vectors, so results are the same for every number of threads.

use crate::op::gelu::{self, Form};
use crate::primitive::pool::{Pool, Shared};
use crate::primitive::scratch::{self, Buffer};

mod block;
mod pack;

/// The size of a product: `C` is `m` by `n`, and `k` products are summed in each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Columns of `A` and rows of `B`.
    pub k: usize,
}

/// An operand.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The elements, row-major.
    pub data: &'a [f32],
    /// Whether `data` holds the transposed matrix.
    pub transposed: bool,
}

impl<'a> Matrix<'a> {
    /// A matrix stored as it is used.
    pub fn plain(data: &'a [f32]) -> Self {
        Self { data, transposed: false }
    }

    /// A matrix whose transpose is stored.
    pub fn transposed(data: &'a [f32]) -> Self {
        Self { data, transposed: true }
    }
}

/// What becomes of the product `P`. Rows of additional slices are those of `C`.
pub enum Store<'a> {
    /// `C = P`
    Set,
    /// `C += P`
    Add,
    /// `C = P + bias`, with one bias for each of the `n` columns.
    Bias(&'a [f32]),
    /// `C = P + bias` and `activated = gelu(C)`; without a bias, `C = P`.
    Gelu {
        /// One for each of the `n` columns.
        bias: Option<&'a [f32]>,
        /// `m` by `n`, overwritten.
        activated: &'a mut [f32],
        /// Which GELU.
        form: Form,
    },
    /// `C = P * gelu'(x)`: the gradient through the activation that the product's input had.
    GeluGrad {
        /// What the activation was applied to, `m` by `n`.
        x: &'a [f32],
        /// Which GELU.
        form: Form,
    },
    /// `C = P + bias + residual`; without a bias, `C = P + residual`.
    Residual {
        /// One for each of the `n` columns.
        bias: Option<&'a [f32]>,
        /// `m` by `n`.
        residual: &'a [f32],
    },
}

/// Memory for packed operands. It grows to the largest product and is used again.
#[derive(Default)]
pub struct Scratch {
    a: Buffer,
    b: Buffer,
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.b.bytes()
    }
}

/// The product in single precision.
///
/// # Panics
/// If a slice does not have the length that `size` says.
pub fn f32(
    pool: &Pool,
    scratch: &mut Scratch,
    size: Size,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    store: Store<'_>,
) {
    multiply::<false>(pool, scratch, size, a, b, c, store);
}

/// The product of operands rounded to bfloat16 (to nearest, ties to even), summed in single
/// precision. Uses the processor's instruction where there is one; other processors compute the
/// same up to the rounding of the sum.
///
/// # Panics
/// If a slice does not have the length that `size` says.
pub fn bf16(
    pool: &Pool,
    scratch: &mut Scratch,
    size: Size,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    store: Store<'_>,
) {
    multiply::<true>(pool, scratch, size, a, b, c, store);
}

/// Rows of `C` in a task that packs its own rows of `A`, and steps of `k` in a block: together the
/// packed rows take a quarter of a megabyte, which the second-level cache keeps.
const TASK_ROWS: usize = 112;
const BLOCK_STEPS: usize = 512;
/// With fewer row tiles than this the columns are divided as well.
const TASKS_MIN: usize = 16;

fn multiply<const PAIRS: bool>(
    pool: &Pool,
    scratch: &mut Scratch,
    size: Size,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    store: Store<'_>,
) {
    let Size { m, n, k } = size;
    assert_eq!(a.data.len(), m * k, "A of {size:?}");
    assert_eq!(b.data.len(), k * n, "B of {size:?}");
    assert_eq!(c.len(), m * n, "C of {size:?}");
    if m == 0 || n == 0 {
        return;
    }
    let epilogue = Epilogue::new(store, size);
    let plan = Plan::new(PAIRS, size);
    let a = pack::Source { data: a.data, lanes: m, steps: k, by_step: a.transposed };
    let b = pack::Source { data: b.data, lanes: n, steps: k, by_step: !b.transposed };
    let b_packed = scratch.b.take(plan.steps * plan.n_padded());
    pack::all::<PAIRS>(pool, b, &plan, plan.nr, b_packed);
    let a_shared = (plan.column_tasks > 1).then(|| {
        let packed = scratch.a.take(plan.steps * plan.m_padded());
        pack::all::<PAIRS>(pool, a, &plan, plan.mr, packed);
        &*packed
    });
    let b_packed = &*b_packed;
    let out = block::Out { c: c.as_mut_ptr(), row_c: n, rows: m, columns: n };
    pool.run(plan.row_tasks * plan.column_tasks, &|task| {
        let rows = range(task / plan.column_tasks, plan.task_rows, m);
        let columns = range(task % plan.column_tasks, plan.task_columns, n);
        let own_len = if a_shared.is_some() { 0 } else { plan.block_steps * plan.task_rows };
        scratch::with(own_len, |own| {
            for (index, steps) in plan.blocks().enumerate() {
                let a_panels = match a_shared {
                    Some(packed) => {
                        &packed[steps.start * plan.m_padded()..][rows.start * steps.len()..]
                    }
                    None => {
                        pack::panels::<PAIRS>(a, rows.clone(), steps.clone(), plan.mr, own);
                        &*own
                    }
                };
                let b_panels = &b_packed[steps.start * plan.n_padded()..];
                let first = index == 0;
                let last = steps.end == plan.steps;
                block::multiply::<PAIRS>(block::Block {
                    a: a_panels,
                    b: &b_panels[columns.start * steps.len()..],
                    steps: steps.len(),
                    rows: rows.clone(),
                    columns: columns.clone(),
                    out: &out,
                    add: !first || matches!(epilogue, Epilogue::Add),
                    epilogue: last.then_some(&epilogue),
                });
            }
        });
    });
}

fn range(index: usize, len: usize, end: usize) -> std::ops::Range<usize> {
    (index * len).min(end)..((index + 1) * len).min(end)
}

/// How a product is cut. A function of the size and of the processor's vectors.
struct Plan {
    mr: usize,
    nr: usize,
    size: Size,
    /// Steps of `k` in all: pairs where elements are packed in pairs, and at least one.
    steps: usize,
    block_steps: usize,
    task_rows: usize,
    task_columns: usize,
    row_tasks: usize,
    column_tasks: usize,
}

impl Plan {
    fn new(pairs: bool, size: Size) -> Self {
        let (mr, nr) = block::tile_size();
        let steps = if pairs { size.k.div_ceil(2) } else { size.k }.max(1);
        let block_steps = steps.div_ceil(steps.div_ceil(BLOCK_STEPS));
        let tiles = size.m.div_ceil(mr);
        let tiles_max = (TASK_ROWS / mr).max(1);
        let task_tiles = tiles.div_ceil(tiles.div_ceil(tiles_max));
        let row_tasks = tiles.div_ceil(task_tiles);
        let panels = size.n.div_ceil(nr);
        let column_tasks = if row_tasks < TASKS_MIN { TASKS_MIN.div_ceil(row_tasks) } else { 1 };
        let task_panels = panels.div_ceil(column_tasks.min(panels));
        Self {
            mr,
            nr,
            size,
            steps,
            block_steps,
            task_rows: task_tiles * mr,
            task_columns: task_panels * nr,
            row_tasks,
            column_tasks: panels.div_ceil(task_panels),
        }
    }

    fn m_padded(&self) -> usize {
        self.size.m.next_multiple_of(self.mr)
    }

    fn n_padded(&self) -> usize {
        self.size.n.next_multiple_of(self.nr)
    }

    fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        (0..self.steps.div_ceil(self.block_steps))
            .map(|index| range(index, self.block_steps, self.steps))
    }
}

/// [`Store`] as the tasks share it.
enum Epilogue<'a> {
    Set,
    Add,
    Bias(&'a [f32]),
    Gelu { bias: Option<&'a [f32]>, activated: Shared<'a, f32>, form: Form },
    GeluGrad { x: &'a [f32], form: Form },
    Residual { bias: Option<&'a [f32]>, residual: &'a [f32] },
}

impl<'a> Epilogue<'a> {
    fn new(store: Store<'a>, size: Size) -> Self {
        let check_bias = |bias: Option<&[f32]>| {
            assert!(bias.is_none_or(|bias| bias.len() == size.n), "bias of {size:?}");
        };
        let check = |len| assert_eq!(len, size.m * size.n, "second matrix of {size:?}");
        match store {
            Store::Set => Self::Set,
            Store::Add => Self::Add,
            Store::Bias(bias) => {
                check_bias(Some(bias));
                Self::Bias(bias)
            }
            Store::Gelu { bias, activated, form } => {
                check_bias(bias);
                check(activated.len());
                Self::Gelu { bias, activated: Shared::new(activated), form }
            }
            Store::GeluGrad { x, form } => {
                check(x.len());
                Self::GeluGrad { x, form }
            }
            Store::Residual { bias, residual } => {
                check_bias(bias);
                check(residual.len());
                Self::Residual { bias, residual }
            }
        }
    }

    /// Applies to columns `column..` of row `row`, whose products `c` holds.
    #[inline(always)]
    fn apply(&self, c: &mut [f32], row: usize, column: usize, width: usize) {
        let at = row * width + column;
        let add = |c: &mut [f32], x: &[f32]| c.iter_mut().zip(x).for_each(|(c, x)| *c += x);
        let add_bias = |c: &mut [f32], bias: Option<&[f32]>| {
            if let Some(bias) = bias {
                add(c, &bias[column..]);
            }
        };
        match self {
            Self::Set | Self::Add => {}
            Self::Bias(bias) => add_bias(c, Some(bias)),
            Self::Gelu { bias, activated, form } => {
                add_bias(c, *bias);
                // SAFETY: only this task has this tile.
                let y = unsafe { activated.run(at, c.len()) };
                gelu::fwd_slice(*form, c, y);
            }
            Self::GeluGrad { x, form } => gelu::scale_by_grad(*form, &x[at..at + c.len()], c),
            Self::Residual { bias, residual } => {
                add_bias(c, *bias);
                add(c, &residual[at..]);
            }
        }
    }
}
