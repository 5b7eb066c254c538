//! Elementary functions in single precision, without branches so that loops over them vectorize.
//!
//! The polynomials are minimax fits made for these intervals. Errors are at most two units in the
//! last place, except where a function says otherwise.

use super::simd::Simd;

/// Above this, the exponential is infinite; below the negative one, zero.
const EXP_MAX: f32 = 88.722_84;
const EXP_MIN: f32 = -87.336_54;
/// Adding and subtracting this rounds a float of moderate size to the nearest integer.
const ROUND: f32 = 12_582_912.0;
/// The bits of one.
const ONE: u32 = 0x3f80_0000;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x`. Results below the smallest normal number are zero.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    let clamped = if x < EXP_MIN { EXP_MIN } else { x };
    let clamped = if clamped > EXP_MAX { EXP_MAX } else { clamped };
    let rounded = S::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = S::mul_add(n, -LN2_HIGH, clamped);
    let r = S::mul_add(n, -LN2_LOW, r);
    let p = exp_polynomial::<S>(r);
    // The integer sits in the low bits of `rounded`; 2^127 doubled stands in for 2^128.
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let result = p * power(half) * power(n.wrapping_sub(half));
    let result = if x < EXP_MIN { 0.0 } else { result };
    let result = if x > EXP_MAX { f32::INFINITY } else { result };
    if x.is_nan() { x } else { result }
}

/// `e^x` for arguments up to 88, as those of a softmax, which are at most zero up to rounding: it
/// need not scale twice and treats no special case but NaN and results that underflow to zero.
#[inline(always)]
pub(crate) fn exp_small<S: Simd>(x: f32) -> f32 {
    let clamped = if x < EXP_MIN { EXP_MIN } else { x };
    let rounded = S::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = S::mul_add(n, -LN2_HIGH, clamped);
    let r = S::mul_add(n, -LN2_LOW, r);
    let p = exp_polynomial::<S>(r);
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(ONE));
    if x < EXP_MIN { 0.0 } else { p * power }
}

/// `e^r` for `|r|` up to `ln(2) / 2`.
#[inline(always)]
fn exp_polynomial<S: Simd>(r: f32) -> f32 {
    let p = 1.395_050_2e-3;
    let p = S::mul_add(p, r, 8.368_897e-3);
    let p = S::mul_add(p, r, 4.166_620_6e-2);
    let p = S::mul_add(p, r, 1.666_652e-1);
    let p = S::mul_add(p, r, 5e-1);
    S::mul_add(p * r, r, r) + 1.0
}

/// Natural logarithm. Subnormal arguments count as zero.
#[inline(always)]
pub(crate) fn ln<S: Simd>(x: f32) -> f32 {
    // Split into 2^n * m with m in [sqrt(1/2), sqrt(2)).
    let bits = x.to_bits() as i32;
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let n = (shifted >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3) as u32);
    let f = m - 1.0;
    let p = 6.915_147e-2;
    let p = S::mul_add(p, f, -1.178_969_6e-1);
    let p = S::mul_add(p, f, 1.187_301_6e-1);
    let p = S::mul_add(p, f, -1.238_437e-1);
    let p = S::mul_add(p, f, 1.421_865_5e-1);
    let p = S::mul_add(p, f, -1.666_925e-1);
    let p = S::mul_add(p, f, 2.000_222_7e-1);
    let p = S::mul_add(p, f, -2.499_998_7e-1);
    let p = S::mul_add(p, f, 3.333_331e-1);
    let square = f * f;
    let tail = S::mul_add(n, LN2_LOW, p * f * square);
    let result = S::mul_add(n, LN2_HIGH, S::mul_add(-0.5, square, tail) + f);
    let result = if x < f32::MIN_POSITIVE { f32::NEG_INFINITY } else { result };
    let result = if x == f32::INFINITY { x } else { result };
    if x.is_nan() || x < 0.0 { f32::NAN } else { result }
}

/// Hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: f32) -> f32 {
    let a = x.abs();
    let square = x * x;
    let p = -5.672_422e-3;
    let p = S::mul_add(p, square, 2.060_314_7e-2);
    let p = S::mul_add(p, square, -5.372_523e-2);
    let p = S::mul_add(p, square, 1.333_118_6e-1);
    let p = S::mul_add(p, square, -3.333_326_3e-1);
    let small = S::mul_add(p * square, a, a);
    let large = 1.0 - 2.0 / (exp::<S>(2.0 * a) + 1.0);
    (if a < 0.625 { small } else { large }).copysign(x)
}

/// Logistic function.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

/// Error function.
#[inline(always)]
pub(crate) fn erf<S: Simd>(x: f32) -> f32 {
    let a = x.abs();
    let square = x * x;
    let p = 7.889_119e-5;
    let p = S::mul_add(p, square, -8.020_841e-4);
    let p = S::mul_add(p, square, 5.189_535e-3);
    let p = S::mul_add(p, square, -2.685_444_5e-2);
    let p = S::mul_add(p, square, 1.128_36e-1);
    let p = S::mul_add(p, square, -3.761_262_7e-1);
    // 2/sqrt(pi) = 1 + 0.128…: the split keeps the last bit.
    let small = S::mul_add(S::mul_add(p, square, 0.128_379_17), a, a);
    // 1 - exp(-q(a)), which has reached one at 4.
    let b = if a > 4.0 { 4.0 } else { a };
    let q = -1.855_749_5e-4;
    let q = S::mul_add(q, b, 2.939_616_3e-3);
    let q = S::mul_add(q, b, -2.180_535_3e-2);
    let q = S::mul_add(q, b, 1.030_374_4e-1);
    let q = S::mul_add(q, b, 6.382_256e-1);
    let q = S::mul_add(q, b, 1.127_040_1);
    let q = S::mul_add(q, b, 3.537_082e-4);
    let large = 1.0 - exp::<S>(-q);
    let result = (if a < 1.0 { small } else { large }).copysign(x);
    if x.is_nan() { x } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitive::simd::simd;

    simd! {
        fn map_exp[S](x: &mut [f32]) { x.iter_mut().for_each(|x| *x = exp::<S>(*x)); }
        fn map_exp_small[S](x: &mut [f32]) { x.iter_mut().for_each(|x| *x = exp_small::<S>(*x)); }
        fn map_ln[S](x: &mut [f32]) { x.iter_mut().for_each(|x| *x = ln::<S>(*x)); }
        fn map_tanh[S](x: &mut [f32]) { x.iter_mut().for_each(|x| *x = tanh::<S>(*x)); }
        fn map_erf[S](x: &mut [f32]) { x.iter_mut().for_each(|x| *x = erf::<S>(*x)); }
    }

    /// The largest error in units of the last place of the exact result over `range`.
    fn ulps(map: fn(&mut [f32]), exact: fn(f64) -> f64, low: f32, high: f32) -> f64 {
        let count = 400_000;
        let x: Vec<f32> =
            (0..=count).map(|i| low + (high - low) * (i as f32 / count as f32)).collect();
        let mut y = x.clone();
        map(&mut y);
        let error = |(&x, &y): (&f32, &f32)| {
            let exact = exact(f64::from(x));
            let unit = f64::from(((exact as f32).abs().to_bits() + 1).max(0x0080_0000));
            let unit = f64::from(f32::from_bits(unit as u32)) - f64::from((exact as f32).abs());
            (f64::from(y) - exact).abs() / unit.max(1e-45)
        };
        x.iter().zip(&y).map(error).fold(0.0, f64::max)
    }

    fn check(name: &str, error: f64, limit: f64) {
        assert!(error <= limit, "{name}: {error} units in the last place, allowed {limit}");
    }

    #[test]
    fn errors_are_within_two_units_in_the_last_place() {
        check("exp", ulps(map_exp, libm::exp, -87.3, 88.7), 2.0);
        check("exp near 0", ulps(map_exp, libm::exp, -1.0, 1.0), 2.0);
        check("exp small", ulps(map_exp_small, libm::exp, -87.3, 80.0), 2.0);
        check("ln", ulps(map_ln, libm::log, 1e-3, 0.5), 2.0);
        check("ln", ulps(map_ln, libm::log, 0.5, 2.0), 2.0);
        check("ln", ulps(map_ln, libm::log, 2.0, 1e6), 2.0);
        check("tanh", ulps(map_tanh, libm::tanh, -10.0, 10.0), 2.0);
        check("erf", ulps(map_erf, libm::erf, -5.0, 5.0), 2.0);
    }

    #[test]
    fn special_values_are_those_of_the_standard_library() {
        let inf = f32::INFINITY;
        let mut x = [0.0, -0.0, inf, -inf, f32::NAN, 1000.0, -1000.0];
        map_exp(&mut x);
        assert_eq!(x[..4], [1.0, 1.0, inf, 0.0]);
        assert!(x[4].is_nan());
        assert_eq!(x[5..], [inf, 0.0]);
        let mut x = [0.0, -0.0, -inf, -1000.0, f32::NAN];
        map_exp_small(&mut x);
        assert_eq!(x[..4], [1.0, 1.0, 0.0, 0.0]);
        assert!(x[4].is_nan());
        let mut x = [0.0, 1.0, inf, -1.0, f32::NAN];
        map_ln(&mut x);
        assert_eq!(x[..3], [-inf, 0.0, inf]);
        assert!(x[3].is_nan() && x[4].is_nan());
        for map in [map_tanh, map_erf] {
            let mut x = [0.0, -0.0, inf, -inf, f32::NAN, 50.0, 1e-30];
            map(&mut x);
            assert_eq!(x[..4], [0.0, 0.0, 1.0, -1.0]);
            assert!(x[1].is_sign_negative() && x[4].is_nan());
            assert_eq!(x[5], 1.0);
            assert!(x[6] > 0.0 && x[6] < 2e-30);
        }
    }
}
