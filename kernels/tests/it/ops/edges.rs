//! Shapes of zero and one, large ones, wrong indices, and what each operator promises beside its
//! values.

use super::{assert_close, on_threads, random};
use p2ptrain_kernels::op::dropout::{self, Dropout};
use p2ptrain_kernels::op::elementwise::{Binary, Chain, ChainError, Input, Instr, Unary};
use p2ptrain_kernels::op::gelu::{self, Form};
use p2ptrain_kernels::op::reduce::{self, Kind};
use p2ptrain_kernels::op::{
    IndexError, embedding, layer_norm, rms_norm, softmax, softmax_xent, transpose,
};
use p2ptrain_kernels::primitive::pool::Pool;

#[test]
fn empty_inputs_are_nothing_to_do() {
    let pool = Pool::new(2);
    layer_norm::fwd(&pool, &[], &[1.0], None, 1e-5, &mut [], &mut [], &mut []);
    layer_norm::fwd(&pool, &[], &[], None, 1e-5, &mut [], &mut [0.0; 3], &mut [0.0; 3]);
    let mut dgamma = [7.0];
    layer_norm::bwd(&pool, &[], &[1.0], &[], &[], &[], &mut [], false, &mut dgamma, None);
    rms_norm::fwd(&pool, &[], &[1.0], 1e-5, &mut [], &mut []);
    rms_norm::bwd(&pool, &[], &[1.0], &[], &[], &mut [], false, &mut dgamma);
    assert_eq!(dgamma, [7.0]);
    gelu::fwd(&pool, Form::Exact, &[], &mut []);
    softmax::fwd(&pool, 3, &[], &mut []);
    softmax_xent::fwd_bwd(&pool, &mut [], &[], 1.0, &mut []).expect("no target is wrong");
    embedding::fwd(&pool, 4, &[], None, &[], &mut []).expect("no id is wrong");
    embedding::bwd(&pool, 4, &[], &[], &mut []).expect("no id is wrong");
    dropout::apply(&pool, &Dropout { seed: 1, node: 1, rate: 0.5 }, &[], &[], &mut []);
    transpose::permute(&pool, &[3, 0, 2], &[2, 0, 1], &[], &mut []);
    let mut out = [1.0; 3];
    reduce::first_axis(&pool, Kind::Sum, &[], &mut out, false);
    assert_eq!(out, [0.0; 3]);
    reduce::last_axis(&pool, Kind::Max, &[], &mut out);
    assert_eq!(out, [f32::NEG_INFINITY; 3]);
    assert_eq!(reduce::all(&pool, Kind::Sum, &[]), 0.0);
    assert!(reduce::all(&pool, Kind::Mean, &[]).is_nan());
}

#[test]
fn a_wrong_index_is_refused_with_its_place() {
    let pool = Pool::new(2);
    let table = random(1, 4 * 3);
    let mut y = [0.0; 6];
    for (ids, position, index) in [([0, 4], 1, 4), ([-1, 0], 0, -1), ([0, i32::MIN], 1, i32::MIN)] {
        let error = IndexError { position, index, bound: 4 };
        assert_eq!(embedding::fwd(&pool, 3, &table, None, &ids, &mut y), Err(error));
        let mut dtable = table.clone();
        assert_eq!(embedding::bwd(&pool, 3, &y, &ids, &mut dtable), Err(error));
        assert_eq!(dtable, table, "nothing is written");
    }
    let mut logits = random(1, 2 * 5);
    let error = IndexError { position: 1, index: 5, bound: 5 };
    let result = softmax_xent::fwd_bwd(&pool, &mut logits, &[-1, 5], 1.0, &mut [0.0; 2]);
    assert_eq!(result, Err(error));
    assert_eq!(logits, random(1, 2 * 5), "nothing is written");
    assert_eq!(error.to_string(), "index 5 at position 1 is not in 0..5");
}

#[test]
fn large_logits_neither_overflow_nor_vanish() {
    let pool = Pool::new(2);
    let mut logits = [1e4, -1e4, 0.0, f32::MAX, 0.0, -f32::MAX];
    let mut losses = [0.0; 2];
    softmax_xent::fwd_bwd(&pool, &mut logits, &[0, 0], 1.0, &mut losses).expect("classes");
    assert_eq!(losses, [0.0, 0.0]);
    assert_eq!(logits, [0.0; 6]);
    let mut logits = [0.0, 200.0];
    let mut losses = [0.0];
    softmax_xent::fwd_bwd(&pool, &mut logits, &[0], 1.0, &mut losses).expect("classes");
    assert_eq!(losses, [200.0]);
    assert_eq!(logits, [-1.0, 1.0]);
}

#[test]
fn reductions_are_exact_on_integers_of_any_length() {
    for len in [1, 2, 15, 16, 17, 1000, 33_000, 100_001] {
        let x: Vec<f32> = (0..len).map(|index| ((index * 7) % 13) as f32 - 6.0).collect();
        let sum: f32 = x.iter().sum();
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let got = on_threads(|pool| {
            let [mut row, mut column] = [[0.0]; 2];
            reduce::last_axis(pool, Kind::Sum, &x, &mut row);
            reduce::first_axis(pool, Kind::Sum, &x, &mut column, false);
            let max = reduce::all(pool, Kind::Max, &x);
            [row[0], column[0], reduce::all(pool, Kind::Sum, &x), max]
        });
        assert_eq!(got, [sum, sum, sum, max]);
    }
}

#[test]
fn a_maximum_is_nan_if_an_element_is() {
    let pool = Pool::new(1);
    for place in [0, 3, 16, 39] {
        let mut x = random(1, 40);
        x[place] = f32::NAN;
        assert!(reduce::all(&pool, Kind::Max, &x).is_nan());
        let mut columns = [0.0; 8];
        reduce::first_axis(&pool, Kind::Max, &x, &mut columns, false);
        assert!(columns[place % 8].is_nan());
    }
}

#[test]
fn a_chain_broadcasts_rows_columns_and_scalars() {
    // (a * row + column) where it is less than the limit, else e^scalar, times 2 minus 1.
    let code = vec![
        Instr::Input(0),
        Instr::Input(1),
        Instr::Binary(Binary::Mul),
        Instr::Input(2),
        Instr::Binary(Binary::Add),
        Instr::Dup,
        Instr::Const(0.25),
        Instr::Binary(Binary::Less),
        Instr::Input(3),
        Instr::Unary(Unary::Exp),
        Instr::Input(0),
        Instr::Select,
        Instr::Binary(Binary::Sub),
        Instr::Affine { scale: 2.0, offset: -1.0 },
    ];
    let chain = Chain::new(code).expect("a good chain");
    assert_eq!(chain.inputs(), 4);
    for (rows, columns) in [(1, 1), (3, 7), (40, 1300), (1300, 40)] {
        let (a, row, column) = (random(1, rows * columns), random(2, columns), random(3, rows));
        let inputs = [
            Input::Full(&a),
            Input::Row(&row),
            Input::Column { data: &column, repeat: columns },
            Input::Scalar(0.5),
        ];
        let got = on_threads(|pool| {
            let mut out = vec![10.0; a.len()];
            chain.run(pool, &inputs, &mut out, true);
            out
        });
        let expected: Vec<f32> = (0..a.len())
            .map(|index| {
                let x = a[index] * row[index % columns] + column[index / columns];
                let other = if x < 0.25 { 0.5f32.exp() } else { a[index] };
                10.0 + 2.0 * (x - other) - 1.0
            })
            .collect();
        assert_close("chain", &got, &expected, 1e-6);
    }
}

#[test]
fn a_bad_chain_is_refused() {
    let check = |code: Vec<Instr>, error| assert_eq!(Chain::new(code), Err(error));
    check(vec![], ChainError::Result(0));
    check(vec![Instr::Const(1.0); 2], ChainError::Result(2));
    check(vec![Instr::Const(1.0), Instr::Binary(Binary::Add)], ChainError::Underflow(1));
    check(vec![Instr::Dup], ChainError::Underflow(0));
    check(vec![Instr::Input(16)], ChainError::Input(0));
    check(vec![Instr::Const(1.0); 17], ChainError::TooDeep(16));
    check(vec![Instr::Const(1.0); 257], ChainError::TooLong(257));
}

#[test]
fn permuted_axes_are_where_their_indices_say() {
    let shape = [3, 4, 5, 2];
    let x: Vec<f32> = (0..120).map(|index| index as f32).collect();
    for axes in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [0, 2, 1, 3], [2, 3, 0, 1]] {
        let y = on_threads(|pool| {
            let mut y = vec![-1.0; 120];
            transpose::permute(pool, &shape, &axes, &x, &mut y);
            y
        });
        let lens = axes.map(|axis| shape[axis]);
        for (index, &value) in y.iter().enumerate() {
            let mut rest = index;
            let mut place = [0; 4];
            for axis in (0..4).rev() {
                place[axes[axis]] = rest % lens[axis];
                rest /= lens[axis];
            }
            let from = place.iter().zip(shape).fold(0, |from, (&place, len)| from * len + place);
            assert_eq!(value, x[from], "{axes:?} at {index}");
        }
    }
    let pool = Pool::new(2);
    let (rows, columns) = (301, 207);
    let x = random(1, rows * columns);
    let (mut y, mut back) = (x.clone(), x.clone());
    transpose::permute(&pool, &[rows, columns], &[1, 0], &x, &mut y);
    assert_eq!(y[rows], x[1]);
    transpose::permute(&pool, &[columns, rows], &[1, 0], &y, &mut back);
    assert_eq!(back, x);
}

#[test]
fn dropout_depends_on_the_sample_and_not_on_who_computes_it() {
    let len = 70_001;
    let dropout = Dropout { seed: 5, node: 3, rate: 0.25 };
    let x = vec![1.0; 2 * len];
    let both = on_threads(|pool| {
        let mut y = x.clone();
        dropout::apply(pool, &dropout, &[17, 4], &x, &mut y);
        y
    });
    let pool = Pool::new(2);
    let mut alone = vec![0.0; len];
    dropout::apply(&pool, &dropout, &[4], &x[..len], &mut alone);
    assert!(both[len..] == alone, "the same sample gets the same mask");
    assert!(both[..len] != alone, "another sample gets another mask");
    let kept = alone.iter().filter(|&&y| y != 0.0).count() as f32 / len as f32;
    assert!((kept - 0.75).abs() < 0.01, "{kept}");
    assert!(alone.iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
    for (rate, expected) in [(0.0, 1.0), (1.0, 0.0)] {
        dropout::apply(&pool, &Dropout { rate, ..dropout }, &[4], &x[..len], &mut alone);
        assert!(alone.iter().all(|&y| y == expected));
    }
}
