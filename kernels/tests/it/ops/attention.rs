use super::{assert_close, assert_gradient, on_threads, random, weigh};
use p2ptrain_kernels::op::attention::{self, Attention, Gradients, Qkv};
use p2ptrain_kernels::primitive::pool::Pool;

/// `(batch, tokens, heads, head_dim)` below, at and beyond blocks and vectors.
const SHAPES: [(usize, usize, usize, usize); 9] = [
    (1, 1, 1, 1),
    (2, 3, 2, 5),
    (1, 64, 1, 32),
    (1, 65, 3, 64),
    (2, 130, 2, 16),
    (1, 200, 1, 96),
    (0, 4, 2, 8),
    (1, 0, 1, 8),
    (1, 129, 2, 33),
];

fn shapes() -> impl Iterator<Item = Attention> {
    SHAPES.into_iter().flat_map(|(batch, tokens, heads, head_dim)| {
        [false, true].map(|causal| {
            let scale = 1.0 / (head_dim as f32).sqrt();
            Attention { batch, tokens, heads, head_dim, causal, scale }
        })
    })
}

/// `y` and `lse` in double precision.
fn reference(shape: &Attention, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let Attention { batch, tokens, heads, head_dim, causal, scale } = *shape;
    let width = heads * head_dim;
    let row = |which: usize, b: usize, t: usize, h: usize| {
        &qkv[(b * tokens + t) * 3 * width + which * width + h * head_dim..][..head_dim]
    };
    let mut y = vec![0.0; batch * tokens * width];
    let mut lse = vec![0.0; batch * heads * tokens];
    for (b, h, i) in
        (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..tokens).map(move |i| (b, h, i))))
    {
        let end = if causal { i + 1 } else { tokens };
        let score = |j| weigh(row(0, b, i, h), row(1, b, j, h)) * f64::from(scale);
        let sum: f64 = (0..end).map(|j| score(j).exp()).sum();
        lse[(b * heads + h) * tokens + i] = sum.ln() as f32;
        for d in 0..head_dim {
            let value = (0..end).map(|j| score(j).exp() / sum * f64::from(row(2, b, j, h)[d]));
            y[(b * tokens + i) * width + h * head_dim + d] = value.sum::<f64>() as f32;
        }
    }
    (y, lse)
}

fn forward(pool: &Pool, shape: &Attention, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut y = vec![f32::NAN; qkv.len() / 3];
    let mut lse = vec![f32::NAN; shape.batch * shape.heads * shape.tokens];
    attention::fwd(pool, shape, Qkv::packed(shape, qkv), &mut y, &mut lse);
    (y, lse)
}

fn backward(pool: &Pool, shape: &Attention, qkv: &[f32], dy: &[f32]) -> Vec<f32> {
    let (y, lse) = forward(pool, shape, qkv);
    let mut gradient = vec![f32::NAN; qkv.len()];
    let packed = Qkv::packed(shape, qkv);
    attention::bwd(pool, shape, packed, &y, &lse, dy, Gradients::Packed(&mut gradient));
    gradient
}

fn input(shape: &Attention) -> Vec<f32> {
    let len = shape.batch * shape.tokens * 3 * shape.heads * shape.head_dim;
    random(1, len).iter().map(|x| 2.0 * x).collect()
}

#[test]
fn forward_matches_attention_with_all_scores() {
    for shape in shapes() {
        let qkv = input(&shape);
        let (y, lse) = on_threads(|pool| forward(pool, &shape, &qkv));
        let (expected_y, expected_lse) = reference(&shape, &qkv);
        assert_close(&format!("y {shape:?}"), &y, &expected_y, 3e-6);
        assert_close(&format!("lse {shape:?}"), &lse, &expected_lse, 3e-6);
    }
}

#[test]
fn the_gradient_matches_that_of_all_scores() {
    for shape in shapes() {
        let qkv = input(&shape);
        let dy = random(2, qkv.len() / 3);
        let got = on_threads(|pool| backward(pool, &shape, &qkv, &dy));
        let expected = reference_gradient(&shape, &qkv, &dy);
        assert_close(&format!("{shape:?}"), &got, &expected, 1e-5);
    }
}

#[test]
fn the_gradient_is_the_derivative() {
    for (tokens, head_dim, causal) in [(3, 2, true), (5, 3, false)] {
        let shape = Attention { batch: 1, tokens, heads: 2, head_dim, causal, scale: 0.7 };
        let qkv = input(&shape);
        let dy = random(2, qkv.len() / 3);
        let got = backward(&Pool::new(1), &shape, &qkv, &dy);
        assert_gradient("dqkv", &qkv, &got, 1e-2, 1e-3, |x| weigh(&reference(&shape, x).0, &dy));
    }
}

#[test]
fn split_tensors_give_the_bits_of_packed_ones() {
    let shape =
        Attention { batch: 2, tokens: 70, heads: 2, head_dim: 32, causal: true, scale: 0.2 };
    let width = 64;
    let qkv = input(&shape);
    let dy = random(2, qkv.len() / 3);
    let part = |x: &[f32], which: usize| -> Vec<f32> {
        x.chunks(3 * width).flat_map(|row| row[which * width..][..width].to_vec()).collect()
    };
    let [q, k, v] = [0, 1, 2].map(|which| part(&qkv, which));
    let pool = Pool::new(2);
    let (y, lse) = forward(&pool, &shape, &qkv);
    let split = Qkv::split(&shape, &q, &k, &v);
    let mut y_split = vec![0.0; y.len()];
    let mut lse_split = vec![0.0; lse.len()];
    attention::fwd(&pool, &shape, split, &mut y_split, &mut lse_split);
    assert!(y == y_split && lse == lse_split);
    let packed = backward(&pool, &shape, &qkv, &dy);
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let gradients = Gradients::Split { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    attention::bwd(&pool, &shape, split, &y, &lse, &dy, gradients);
    assert!(part(&packed, 0) == dq && part(&packed, 1) == dk && part(&packed, 2) == dv);
}

/// The gradient by the textbook, in double precision.
fn reference_gradient(shape: &Attention, qkv: &[f32], dy: &[f32]) -> Vec<f32> {
    let Attention { batch, tokens, heads, head_dim: dim, causal, scale } = *shape;
    let width = heads * dim;
    let scale = f64::from(scale);
    let at = |which: usize, b: usize, t: usize, h: usize| {
        (b * tokens + t) * 3 * width + which * width + h * dim
    };
    let mut gradient = vec![0.0f64; qkv.len()];
    for (b, h, i) in
        (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..tokens).map(move |i| (b, h, i))))
    {
        let end = if causal { i + 1 } else { tokens };
        let q = at(0, b, i, h);
        let dy = &dy[(b * tokens + i) * width + h * dim..][..dim];
        let score = |j| weigh(&qkv[q..q + dim], &qkv[at(1, b, j, h)..][..dim]) * scale;
        let exps: Vec<f64> = (0..end).map(|j| score(j).exp()).collect();
        let sum: f64 = exps.iter().sum();
        let dp: Vec<f64> = (0..end).map(|j| weigh(dy, &qkv[at(2, b, j, h)..][..dim])).collect();
        let delta: f64 = (0..end).map(|j| exps[j] / sum * dp[j]).sum();
        for j in 0..end {
            let p = exps[j] / sum;
            let ds = p * (dp[j] - delta) * scale;
            let (k, v) = (at(1, b, j, h), at(2, b, j, h));
            for d in 0..dim {
                gradient[q + d] += ds * f64::from(qkv[k + d]);
                gradient[k + d] += ds * f64::from(qkv[q + d]);
                gradient[v + d] += p * f64::from(dy[d]);
            }
        }
    }
    gradient.iter().map(|&x| x as f32).collect()
}
