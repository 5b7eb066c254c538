//! The two number types of the reference.

use std::ops::{Add, Div, Mul, Sub};

/// Floating point as the reference needs it. Functions are libm's: the same on every CPU.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Negative infinity.
    const LOWEST: Self;

    /// The nearest value.
    fn of(value: f64) -> Self;
    /// The exact value.
    fn to_f64(self) -> f64;
    /// The larger; `self` where `other` is not a number.
    fn max(self, other: Self) -> Self;
    /// `e^self`
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($type:ty, $exp:path, $ln:path, $tanh:path, $erf:path, $sqrt:path) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LOWEST: Self = Self::NEG_INFINITY;

            fn of(value: f64) -> Self {
                value as Self
            }

            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            fn max(self, other: Self) -> Self {
                if other > self { other } else { self }
            }

            fn exp(self) -> Self {
                $exp(self)
            }

            fn ln(self) -> Self {
                $ln(self)
            }

            fn tanh(self) -> Self {
                $tanh(self)
            }

            fn erf(self) -> Self {
                $erf(self)
            }

            fn sqrt(self) -> Self {
                $sqrt(self)
            }
        }
    };
}

real!(f32, libm::expf, libm::logf, libm::tanhf, libm::erff, libm::sqrtf);
real!(f64, libm::exp, libm::log, libm::tanh, libm::erf, libm::sqrt);
