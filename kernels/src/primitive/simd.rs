//! The vector width, chosen at run time.
//!
//! The crate is compiled for the baseline of its target. [`simd!`] wraps a function so that its
//! body is compiled once for each [`Level`] with that level's processor features enabled, and
//! picks the version that this processor can execute. Inside, plain loops vectorize to the
//! level's width, and explicit kernels use the level's vector type through [`Simd`].

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::sync::atomic::{AtomicU8, Ordering};

/// A set of processor features for which the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Level {
    /// What every processor of the target has.
    Portable = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 (F, BW, CD, DQ, VL).
    Avx512 = 3,
    /// AVX-512 with products of bfloat16 pairs.
    Avx512Bf16 = 4,
}

/// The best level of this processor.
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: AtomicU8 = AtomicU8::new(0);
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        4 => Level::Avx512Bf16,
        _ => {
            let level = detect();
            LEVEL.store(level as u8, Ordering::Relaxed);
            level
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512, avx512 && is_x86_feature_detected!("avx512bf16")) {
        (_, _, true) => Level::Avx512Bf16,
        (_, true, _) => Level::Avx512,
        (true, _, _) => Level::Avx2,
        _ => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// The vectors of one level. All functions are inlined into a function that has the level's
/// features enabled, and must only be called from there.
pub(crate) trait Simd: Copy + 'static {
    /// A vector of [`LANES`](Self::LANES) floats.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;

    /// A vector with `x` in all lanes.
    fn splat(x: f32) -> Self::V;
    /// Loads from any alignment.
    ///
    /// # Safety
    /// `p` is readable for `LANES` floats.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Stores to any alignment.
    ///
    /// # Safety
    /// `p` is writable for `LANES` floats.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `a + b` in each lane.
    fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c` in each lane.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Treats each lane as a pair of bfloat16 and adds the pair's two products to `c`.
    fn dot2(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a * b + c`, fused where the level has the instruction.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// The baseline: arrays of four floats, which compilers keep in one register of any target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: as the caller promises; the read permits any alignment.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: as the caller promises; the write permits any alignment.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn dot2(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|lane| {
            let (a, b) = (a[lane].to_bits(), b[lane].to_bits());
            let high = f32::from_bits(a & 0xffff_0000) * f32::from_bits(b & 0xffff_0000);
            let low = f32::from_bits(a << 16) * f32::from_bits(b << 16);
            c[lane] + high + low
        })
    }

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        // SAFETY: this level's functions run only where its features were detected.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: readable as the caller promises; features as in `splat`.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: writable as the caller promises; features as in `splat`.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: features as in `splat`.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: features as in `splat`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn dot2(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: features as in `splat`.
        unsafe {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
            let low = |v| _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 16));
            let c = _mm256_fmadd_ps(_mm256_and_ps(a, mask), _mm256_and_ps(b, mask), c);
            _mm256_fmadd_ps(low(a), low(b), c)
        }
    }

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// AVX-512; `BF16` tells whether the processor multiplies pairs of bfloat16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

#[cfg(target_arch = "x86_64")]
impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        // SAFETY: this level's functions run only where its features were detected.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: readable as the caller promises; features as in `splat`.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: writable as the caller promises; features as in `splat`.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: features as in `splat`.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: features as in `splat`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn dot2(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: features as in `splat`; the bfloat16 instruction only where `BF16` says so. The
        // casts are between plain 64-byte vectors.
        unsafe {
            if BF16 {
                let pairs = |v: __m512| std::mem::transmute::<__m512, __m512bh>(v);
                return _mm512_dpbf16_ps(c, pairs(a), pairs(b));
            }
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let high = |v| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask));
            let low = |v| _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 16));
            let c = _mm512_fmadd_ps(high(a), high(b), c);
            _mm512_fmadd_ps(low(a), low(b), c)
        }
    }

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Defines functions whose body is compiled for every [`Level`] and chosen at run time.
///
/// `fn name[S](arguments) -> Result { body }`: inside the body `S` is the level's [`Simd`]. Helpers
/// called in the body must be `#[inline(always)]` to be compiled with it.
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident
        [$s:ident $(, const $c:ident: $ct:ty)*]
        ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<$s: $crate::primitive::simd::Simd $(, const $c: $ct)*>(
                $($arg: $ty),*
            ) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::primitive::simd::{Avx2, Avx512, Level, level};

                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512_bf16<$(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<Avx512<true> $(, $c)*>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512<$(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<Avx512<false> $(, $c)*>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<$(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<Avx2 $(, $c)*>($($arg),*)
                }
                match level() {
                    // SAFETY: `level` has detected these features on this processor.
                    Level::Avx512Bf16 => return unsafe { avx512_bf16::<$($c),*>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx512 => return unsafe { avx512::<$($c),*>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2::<$($c),*>($($arg),*) },
                    Level::Portable => {}
                }
            }
            body::<$crate::primitive::simd::Portable $(, $c)*>($($arg),*)
        }
    )*};
}
pub(crate) use simd;
