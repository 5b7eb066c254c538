//! The Gaussian error linear unit, `x Φ(x)`, exact or with the approximation by `tanh`.

use crate::op::ELEMENTS_PER_TASK;
use crate::primitive::math;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::simd::{Simd, simd};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `x (1 + erf(x / √2)) / 2`
    Exact,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`
    Tanh,
}

/// `y = gelu(x)`. Slices of equal length.
pub fn fwd(pool: &Pool, form: Form, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let chunks = Chunks::new(y, ELEMENTS_PER_TASK);
    pool.for_parts(chunks.count(), chunks, |task, y| {
        fwd_slice(form, &x[task * ELEMENTS_PER_TASK..][..y.len()], y);
    });
}

/// `dx = dy gelu'(x)`, overwriting `dx`. Slices of equal length.
pub fn bwd(pool: &Pool, form: Form, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dy.len() && x.len() == dx.len());
    let chunks = Chunks::new(dx, ELEMENTS_PER_TASK);
    pool.for_parts(chunks.count(), chunks, |task, dx| {
        let begin = task * ELEMENTS_PER_TASK;
        let end = begin + dx.len();
        dx.copy_from_slice(&dy[begin..end]);
        scale_by_grad(form, &x[begin..end], dx);
    });
}

/// `y = gelu(x)` on the calling thread.
pub(crate) fn fwd_slice(form: Form, x: &[f32], y: &mut [f32]) {
    match form {
        Form::Exact => fwd_exact(x, y),
        Form::Tanh => fwd_tanh(x, y),
    }
}

/// `dy *= gelu'(x)` on the calling thread.
pub(crate) fn scale_by_grad(form: Form, x: &[f32], dy: &mut [f32]) {
    match form {
        Form::Exact => grad_exact(x, dy),
        Form::Tanh => grad_tanh(x, dy),
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
const INV_SQRT_2PI: f32 = 0.398_942_3;

/// `(1 + tanh(u)) / 2` and `(1 - tanh(u)) / 2` for the argument of the approximation. The first is
/// the logistic function of `2u`: one exponential instead of a `tanh`, and no cancellation.
#[inline(always)]
fn tanh_gates<S: Simd>(x: f32) -> (f32, f32) {
    let exp = math::exp::<S>(-2.0 * SQRT_2_OVER_PI * S::mul_add(CUBIC * x * x, x, x));
    let gate = 1.0 / (1.0 + exp);
    // The exponential overflows where the gate has vanished.
    (gate, if exp > 1e30 { 1.0 } else { exp * gate })
}

/// `Φ(x)` and `e^(-x²/2)`.
///
/// The tail `Φ(-|x|)` is the exponential times a polynomial in `t = 1 / (1 + 0.3 |x| / √2)`, a
/// minimax fit with a relative error of 2e-8. So the gradient's density costs nothing more, and
/// negative arguments keep their relative precision.
#[inline(always)]
fn normal_cdf<S: Simd>(x: f32) -> (f32, f32) {
    const SLOPE: f32 = 0.3 * std::f32::consts::FRAC_1_SQRT_2;
    let exp = math::exp_small::<S>(-0.5 * x * x);
    let t = 1.0 / S::mul_add(SLOPE, x.abs(), 1.0);
    let p = -6.470_34e-2;
    let p = S::mul_add(p, t, 2.424_764e-1);
    let p = S::mul_add(p, t, -2.554_511_4e-1);
    let p = S::mul_add(p, t, 2.729_929_7e-1);
    let p = S::mul_add(p, t, -4.665_794e-2);
    let p = S::mul_add(p, t, 1.071_422_2e-1);
    let p = S::mul_add(p, t, 7.426_348e-2);
    let p = S::mul_add(p, t, 8.534_234e-2);
    let p = S::mul_add(p, t, 8.459_506e-2);
    let tail = p * t * exp;
    (if x < 0.0 { tail } else { 1.0 - tail }, exp)
}

simd! {
    fn fwd_exact[S](x: &[f32], y: &mut [f32]) {
        for (&x, y) in x.iter().zip(y) {
            *y = x * normal_cdf::<S>(x).0;
        }
    }

    fn fwd_tanh[S](x: &[f32], y: &mut [f32]) {
        for (&x, y) in x.iter().zip(y) {
            *y = x * tanh_gates::<S>(x).0;
        }
    }

    fn grad_exact[S](x: &[f32], dy: &mut [f32]) {
        for (&x, dy) in x.iter().zip(dy) {
            let (cdf, exp) = normal_cdf::<S>(x);
            *dy *= S::mul_add(x * INV_SQRT_2PI, exp, cdf);
        }
    }

    fn grad_tanh[S](x: &[f32], dy: &mut [f32]) {
        for (&x, dy) in x.iter().zip(dy) {
            let (gate, rest) = tanh_gates::<S>(x);
            let inner = 2.0 * SQRT_2_OVER_PI * S::mul_add(3.0 * CUBIC * x, x, 1.0);
            *dy *= S::mul_add(x * gate * rest, inner, gate);
        }
    }
}
