//! Gradients against finite differences of the forward pass.

use super::{assert_gradient, random, weigh};
use p2ptrain_kernels::op::conv2d::{self, Conv2d};
use p2ptrain_kernels::op::embedding;
use p2ptrain_kernels::op::gelu::{self, Form};
use p2ptrain_kernels::op::matmul::{self, Matrix, Scratch, Size, Store};
use p2ptrain_kernels::op::pool2d::{self, Pool2d};
use p2ptrain_kernels::op::{layer_norm, rms_norm, softmax, softmax_xent};
use p2ptrain_kernels::primitive::pool::Pool;

const STEP: f32 = 1e-2;
const TOLERANCE: f32 = 2e-3;

#[test]
fn layer_norm() {
    let pool = Pool::new(2);
    for (rows, columns) in [(2, 3), (3, 17)] {
        let (x, gamma, beta) = (random(1, rows * columns), random(2, columns), random(3, columns));
        let dy = random(4, x.len());
        let forward = |x: &[f32], gamma: &[f32], beta: &[f32]| {
            let (mut y, mut mean, mut rstd) = (x.to_vec(), vec![0.0; rows], vec![0.0; rows]);
            layer_norm::fwd(&pool, x, gamma, Some(beta), 1e-2, &mut y, &mut mean, &mut rstd);
            (y, mean, rstd)
        };
        let (_, mean, rstd) = forward(&x, &gamma, &beta);
        let (mut dx, mut dgamma, mut dbeta) = (x.clone(), vec![0.0; columns], vec![0.0; columns]);
        let out = Some(&mut dbeta[..]);
        layer_norm::bwd(&pool, &x, &gamma, &mean, &rstd, &dy, &mut dx, false, &mut dgamma, out);
        let loss = |x: &[f32], gamma: &[f32], beta: &[f32]| weigh(&forward(x, gamma, beta).0, &dy);
        assert_gradient("dx", &x, &dx, 1e-3, 5e-3, |x| loss(x, &gamma, &beta));
        assert_gradient("dgamma", &gamma, &dgamma, STEP, TOLERANCE, |g| loss(&x, g, &beta));
        assert_gradient("dbeta", &beta, &dbeta, STEP, TOLERANCE, |b| loss(&x, &gamma, b));
    }
}

#[test]
fn rms_norm() {
    let pool = Pool::new(2);
    let (rows, columns) = (3, 17);
    let (x, gamma, dy) = (random(1, rows * columns), random(2, columns), random(3, rows * columns));
    let forward = |x: &[f32], gamma: &[f32]| {
        let (mut y, mut rstd) = (x.to_vec(), vec![0.0; rows]);
        rms_norm::fwd(&pool, x, gamma, 1e-3, &mut y, &mut rstd);
        (y, rstd)
    };
    let rstd = forward(&x, &gamma).1;
    let (mut dx, mut dgamma) = (x.clone(), vec![0.0; columns]);
    rms_norm::bwd(&pool, &x, &gamma, &rstd, &dy, &mut dx, false, &mut dgamma);
    assert_gradient("dx", &x, &dx, STEP, TOLERANCE, |x| weigh(&forward(x, &gamma).0, &dy));
    assert_gradient("dgamma", &gamma, &dgamma, STEP, TOLERANCE, |g| weigh(&forward(&x, g).0, &dy));
}

#[test]
fn gelu() {
    let pool = Pool::new(1);
    let x: Vec<f32> = (-40..=40).map(|x| x as f32 / 8.0).collect();
    let dy = random(1, x.len());
    for form in [Form::Exact, Form::Tanh] {
        let mut dx = x.clone();
        gelu::bwd(&pool, form, &x, &dy, &mut dx);
        assert_gradient("dx", &x, &dx, STEP, TOLERANCE, |x| {
            let mut y = x.to_vec();
            gelu::fwd(&pool, form, x, &mut y);
            weigh(&y, &dy)
        });
    }
}

#[test]
fn softmax_of_rows() {
    let pool = Pool::new(2);
    let (x, dy) = (random(1, 4 * 19), random(2, 4 * 19));
    let forward = |x: &[f32]| {
        let mut y = x.to_vec();
        softmax::fwd(&pool, 19, x, &mut y);
        y
    };
    let mut dx = x.clone();
    softmax::bwd(&pool, 19, &forward(&x), &dy, &mut dx);
    assert_gradient("dx", &x, &dx, STEP, TOLERANCE, |x| weigh(&forward(x), &dy));
}

#[test]
fn cross_entropy() {
    let pool = Pool::new(2);
    let x: Vec<f32> = random(1, 3 * 21).iter().map(|x| 3.0 * x).collect();
    let targets = [20, -1, 0];
    let (mut dx, mut losses) = (x.clone(), [0.0; 3]);
    softmax_xent::fwd_bwd(&pool, &mut dx, &targets, 0.5, &mut losses).expect("classes");
    assert_gradient("dx", &x, &dx, STEP, TOLERANCE, |x| {
        let mut losses = [0.0; 3];
        softmax_xent::fwd(&pool, x, &targets, &mut losses).expect("classes");
        weigh(&losses, &[0.5; 3])
    });
}

#[test]
fn embedding_table() {
    let pool = Pool::new(2);
    let (columns, ids) = (5, [3, 0, 3, 1]);
    let (table, dy) = (random(1, 4 * columns), random(2, ids.len() * columns));
    let mut dtable = vec![0.0; table.len()];
    embedding::bwd(&pool, columns, &dy, &ids, &mut dtable).expect("rows");
    assert_gradient("dtable", &table, &dtable, STEP, TOLERANCE, |table| {
        let mut y = dy.clone();
        embedding::fwd(&pool, columns, table, None, &ids, &mut y).expect("rows");
        weigh(&y, &dy)
    });
}

#[test]
fn linear_layer_with_activation() {
    let pool = Pool::new(2);
    let (m, n, k) = (5, 7, 6);
    let (x, w, bias, dy) = (random(1, m * k), random(2, n * k), random(3, n), random(4, m * n));
    let scratch = || Scratch::default();
    let forward = |x: &[f32], w: &[f32], bias: &[f32]| {
        let (mut before, mut y) = (dy.clone(), dy.clone());
        let store = Store::Gelu { bias: Some(bias), activated: &mut y, form: Form::Exact };
        let (x, w) = (Matrix::plain(x), Matrix::transposed(w));
        matmul::f32(&pool, &mut scratch(), Size { m, n, k }, x, w, &mut before, store);
        (before, y)
    };
    let before = forward(&x, &w, &bias).0;
    let mut dbefore = dy.clone();
    gelu::bwd(&pool, Form::Exact, &before, &dy, &mut dbefore);
    let (mut dx, mut dw) = (x.clone(), w.clone());
    let size = Size { m, n: k, k: n };
    let operands = (Matrix::plain(&dbefore), Matrix::plain(&w));
    matmul::f32(&pool, &mut scratch(), size, operands.0, operands.1, &mut dx, Store::Set);
    let size = Size { m: n, n: k, k: m };
    let operands = (Matrix::transposed(&dbefore), Matrix::plain(&x));
    matmul::f32(&pool, &mut scratch(), size, operands.0, operands.1, &mut dw, Store::Set);
    let loss = |x: &[f32], w: &[f32], bias: &[f32]| weigh(&forward(x, w, bias).1, &dy);
    assert_gradient("dx", &x, &dx, STEP, TOLERANCE, |x| loss(x, &w, &bias));
    assert_gradient("dw", &w, &dw, STEP, TOLERANCE, |w| loss(&x, w, &bias));
}

#[test]
fn convolution() {
    let pool = Pool::new(2);
    let shape = Conv2d {
        batch: 1,
        channels: 2,
        height: 5,
        width: 4,
        filters: 4,
        kernel: [3, 2],
        stride: [2, 1],
        padding: [1, 1],
        dilation: [1, 2],
        groups: 2,
    };
    let places: usize = shape.output().iter().product();
    let (x, w, dy) = (random(1, 40), random(2, 24), random(3, 4 * places));
    let forward = |x: &[f32], w: &[f32]| {
        let mut y = dy.clone();
        conv2d::fwd(&pool, &mut Scratch::default(), &shape, x, w, None, &mut y);
        weigh(&y, &dy)
    };
    let (mut dx, mut dw) = (x.clone(), vec![0.0; w.len()]);
    let out = Some(&mut dx[..]);
    conv2d::bwd(&pool, &mut Scratch::default(), &shape, &x, &w, &dy, out, &mut dw, None);
    assert_gradient("dx", &x, &dx, STEP, TOLERANCE, |x| forward(x, &w));
    assert_gradient("dw", &w, &dw, STEP, TOLERANCE, |w| forward(&x, w));
}

#[test]
fn windows() {
    let pool = Pool::new(2);
    let shape =
        Pool2d { planes: 2, height: 5, width: 6, kernel: [2, 3], stride: [2, 2], padding: [1, 0] };
    let places: usize = shape.output().iter().product();
    // Far apart, so that a step does not change which one is the largest.
    let x: Vec<f32> = (0..60).map(|index| ((index * 37) % 60) as f32 / 6.0).collect();
    let dy = random(1, 2 * places);
    let (mut y, mut dx, mut pixels) = (dy.clone(), x.clone(), vec![0; dy.len()]);
    pool2d::max_fwd(&pool, &shape, &x, &mut y, &mut pixels);
    pool2d::max_bwd(&pool, &shape, &dy, &pixels, &mut dx);
    assert_gradient("max", &x, &dx, STEP, TOLERANCE, |x| {
        let (mut y, mut pixels) = (dy.clone(), pixels.clone());
        pool2d::max_fwd(&pool, &shape, x, &mut y, &mut pixels);
        weigh(&y, &dy)
    });
    pool2d::mean_bwd(&pool, &shape, &dy, &mut dx);
    assert_gradient("mean", &x, &dx, STEP, TOLERANCE, |x| {
        let mut y = dy.clone();
        pool2d::mean_fwd(&pool, &shape, x, &mut y);
        weigh(&y, &dy)
    });
}
