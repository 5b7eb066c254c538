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
            let level = limit(detect());
            LEVEL.store(level as u8, Ordering::Relaxed);
            level
        }
    }
}

/// The variable that keeps the kernels from using more than `portable`, `avx2` or `avx512`, to test
/// those versions, or to measure what the others gain.
const LIMIT: &str = "P2PTRAIN_SIMD";

fn limit(level: Level) -> Level {
    let limit = match std::env::var(LIMIT).as_deref() {
        Ok("portable") => Level::Portable,
        Ok("avx2") => Level::Avx2,
        Ok("avx512") => Level::Avx512,
        _ => Level::Avx512Bf16,
    };
    level.min(limit)
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

    /// Copies a block of `lanes` rows (at `from`, every `stride`) and [`LANES`](Self::LANES) steps
    /// to columns: step `s` of row `i` goes to `to + s * width + i`. With `PAIRS` a step is two
    /// floats, rounded to a pair of bfloat16.
    ///
    /// # Safety
    /// `from + i * stride` is readable for the steps of each row `i < lanes`, and `to + s * width`
    /// writable for `lanes` floats for each step `s`. `lanes` is at most `LANES`.
    #[inline(always)]
    unsafe fn transpose<const PAIRS: bool>(
        from: *const f32,
        stride: usize,
        lanes: usize,
        to: *mut f32,
        width: usize,
    ) {
        for lane in 0..lanes {
            for step in 0..Self::LANES {
                // SAFETY: inside the row and the column, as the caller promises.
                unsafe {
                    let row = from.add(lane * stride);
                    *to.add(step * width + lane) = if PAIRS {
                        bf16_pair(*row.add(2 * step), *row.add(2 * step + 1))
                    } else {
                        *row.add(step)
                    };
                }
            }
        }
    }

    /// Loads the first `count` lanes; the others are zero.
    ///
    /// # Safety
    /// `p` is readable for `count <= LANES` floats.
    unsafe fn load_first(p: *const f32, count: usize) -> Self::V;
    /// Stores the first `count` lanes.
    ///
    /// # Safety
    /// `p` is writable for `count <= LANES` floats.
    unsafe fn store_first(p: *mut f32, v: Self::V, count: usize);
    /// Pairs of `low` and `high`, each rounded to bfloat16.
    fn round_pairs(low: Self::V, high: Self::V) -> Self::V;

    /// The sum of sixteen lanes by halving, the same bits at each level.
    #[inline(always)]
    fn sum(lanes: [f32; 16]) -> f32 {
        halve(lanes, |a, b| a + b)
    }

    /// The maximum of sixteen lanes. A NaN is lost or not.
    #[inline(always)]
    fn max(lanes: [f32; 16]) -> f32 {
        halve(lanes, |a, b| if a > b { a } else { b })
    }
}

/// Combines lanes pairwise: 16 to 8 to 4 to 2 to 1.
#[inline(always)]
pub(crate) fn halve<T: Copy>(mut lanes: [T; 16], combine: impl Fn(T, T) -> T) -> T {
    let mut width = lanes.len() / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// [`halve`] from eight lanes on, with vector instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! halve_eight {
    ($eight:expr, $four:ident, $two:ident, $one:ident) => {{
        let eight = $eight;
        let four = $four(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        let two = $two(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($one(two, _mm_shuffle_ps(two, two, 1)))
    }};
}

/// Asks for the cache line of an address, which need not exist.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    // SAFETY: a prefetch reads nothing and faults nowhere; SSE is in the baseline of x86-64.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// A float rounded to bfloat16 (to nearest, ties to even), in the upper half of the word.
#[inline(always)]
pub(crate) fn bf16_round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN must not round to infinity.
    (if x.is_nan() { bits | 0x0040_0000 } else { rounded }) & 0xffff_0000
}

/// Two floats as a pair of bfloat16 in one word, `low` in the lower half.
#[inline(always)]
pub(crate) fn bf16_pair(low: f32, high: f32) -> f32 {
    f32::from_bits(bf16_round(high) | (bf16_round(low) >> 16))
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

    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> Self::V {
        let mut lanes = [0.0; 4];
        // SAFETY: `count` floats are readable as the caller promises, and a plain array of
        // `LANES` floats is loaded.
        unsafe {
            p.copy_to_nonoverlapping(lanes.as_mut_ptr(), count);
            Self::load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, count: usize) {
        let mut lanes = [0.0; 4];
        // SAFETY: as in `load_first`.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            p.copy_from_nonoverlapping(lanes.as_ptr(), count);
        }
    }

    #[inline(always)]
    fn round_pairs(low: Self::V, high: Self::V) -> Self::V {
        std::array::from_fn(|lane| bf16_pair(low[lane], high[lane]))
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

    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> Self::V {
        let mut lanes = [0.0; 8];
        // SAFETY: `count` floats are readable as the caller promises, and a plain array of
        // `LANES` floats is loaded.
        unsafe {
            p.copy_to_nonoverlapping(lanes.as_mut_ptr(), count);
            Self::load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, count: usize) {
        let mut lanes = [0.0; 8];
        // SAFETY: as in `load_first`.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            p.copy_from_nonoverlapping(lanes.as_ptr(), count);
        }
    }

    #[inline(always)]
    fn sum(lanes: [f32; 16]) -> f32 {
        // SAFETY: both halves lie in the array; features as in `splat`.
        unsafe {
            let p = lanes.as_ptr();
            let eight = _mm256_add_ps(Self::load(p), Self::load(p.add(8)));
            halve_eight!(eight, _mm_add_ps, _mm_add_ps, _mm_add_ss)
        }
    }

    #[inline(always)]
    fn max(lanes: [f32; 16]) -> f32 {
        // SAFETY: as in `sum`.
        unsafe {
            let p = lanes.as_ptr();
            let eight = _mm256_max_ps(Self::load(p), Self::load(p.add(8)));
            halve_eight!(eight, _mm_max_ps, _mm_max_ps, _mm_max_ss)
        }
    }

    #[inline(always)]
    fn round_pairs(low: Self::V, high: Self::V) -> Self::V {
        // SAFETY: plain 32-byte vectors on both sides.
        unsafe {
            let low = std::mem::transmute::<__m256, [f32; 8]>(low);
            let high = std::mem::transmute::<__m256, [f32; 8]>(high);
            std::mem::transmute::<[f32; 8], __m256>(std::array::from_fn(|lane| {
                bf16_pair(low[lane], high[lane])
            }))
        }
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

    #[inline(always)]
    unsafe fn transpose<const PAIRS: bool>(
        from: *const f32,
        stride: usize,
        lanes: usize,
        to: *mut f32,
        width: usize,
    ) {
        // SAFETY: rows and columns are inside what the caller promises; masked lanes are not
        // written. Features as in `splat`.
        unsafe {
            let zero = _mm512_setzero_ps();
            let mut rows = [zero; 16];
            for (lane, row) in rows.iter_mut().enumerate().take(lanes) {
                let p = from.add(lane * stride);
                *row = if PAIRS {
                    Self::round_neighbours(Self::load(p), Self::load(p.add(16)))
                } else {
                    Self::load(p)
                };
            }
            for (step, column) in transpose_16(rows).into_iter().enumerate() {
                Self::store_first(to.add(step * width), column, lanes);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> Self::V {
        // SAFETY: masked lanes are not read; features as in `splat`.
        unsafe { _mm512_maskz_loadu_ps(((1_u32 << count) - 1) as u16, p) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, count: usize) {
        // SAFETY: masked lanes are not written; features as in `splat`.
        unsafe { _mm512_mask_storeu_ps(p, ((1_u32 << count) - 1) as u16, v) }
    }

    #[inline(always)]
    fn sum(lanes: [f32; 16]) -> f32 {
        // SAFETY: the array is one vector; features as in `splat`.
        unsafe {
            let v = Self::load(lanes.as_ptr());
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
            halve_eight!(eight, _mm_add_ps, _mm_add_ps, _mm_add_ss)
        }
    }

    #[inline(always)]
    fn max(lanes: [f32; 16]) -> f32 {
        // SAFETY: as in `sum`.
        unsafe {
            let v = Self::load(lanes.as_ptr());
            let eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
            halve_eight!(eight, _mm_max_ps, _mm_max_ps, _mm_max_ss)
        }
    }

    #[inline(always)]
    fn round_pairs(low: Self::V, high: Self::V) -> Self::V {
        // SAFETY: features as in `splat`; the bfloat16 instruction only where `BF16` says so.
        unsafe {
            let (low, high) = (Self::rounded(low), Self::rounded(high));
            let high = _mm512_slli_epi32(high, 16);
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl<const BF16: bool> Avx512<BF16> {
    /// Each float rounded to bfloat16, in the lower half of its word.
    ///
    /// # Safety
    /// The features of the level are enabled.
    #[inline(always)]
    unsafe fn rounded(x: __m512) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            if BF16 {
                let half = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                return _mm512_cvtepu16_epi32(half);
            }
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, bias);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
            _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16)
        }
    }

    /// The 32 floats of two vectors as 16 pairs of neighbours.
    ///
    /// # Safety
    /// The features of the level are enabled.
    #[inline(always)]
    unsafe fn round_neighbours(first: __m512, second: __m512) -> __m512 {
        // SAFETY: as the caller promises; plain 64-byte vectors on both sides of the cast.
        unsafe {
            if BF16 {
                let pairs = _mm512_cvtne2ps_pbh(second, first);
                return std::mem::transmute::<__m512bh, __m512>(pairs);
            }
            let low = _mm512_cvtepi32_epi16(Self::rounded(first));
            let high = _mm512_cvtepi32_epi16(Self::rounded(second));
            let both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
            _mm512_castsi512_ps(both)
        }
    }
}

/// Transposes a block of 16 by 16.
///
/// # Safety
/// AVX-512 F is enabled.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose_16(rows: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: as the caller promises; casts between plain 64-byte vectors.
    unsafe {
        let zero = _mm512_setzero_ps();
        // Blocks of 2 by 2, then of 4 by 4 inside each quarter of the vectors.
        let mut pairs = [zero; 16];
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let mut quads = [zero; 16];
        for i in 0..4 {
            for half in 0..2 {
                let (a, b) = (pairs[4 * i + half], pairs[4 * i + 2 + half]);
                let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                quads[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                quads[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
        }
        // `quads[4 i + s]` holds, in quarter `q`, step `4 q + s` of rows `4 i..4 i + 4`.
        let mut columns = [zero; 16];
        for s in 0..4 {
            let [a, b, c, d] = [quads[s], quads[4 + s], quads[8 + s], quads[12 + s]];
            let ab_low = _mm512_shuffle_f32x4(a, b, 0b01_00_01_00);
            let ab_high = _mm512_shuffle_f32x4(a, b, 0b11_10_11_10);
            let cd_low = _mm512_shuffle_f32x4(c, d, 0b01_00_01_00);
            let cd_high = _mm512_shuffle_f32x4(c, d, 0b11_10_11_10);
            columns[s] = _mm512_shuffle_f32x4(ab_low, cd_low, 0b10_00_10_00);
            columns[4 + s] = _mm512_shuffle_f32x4(ab_low, cd_low, 0b11_01_11_01);
            columns[8 + s] = _mm512_shuffle_f32x4(ab_high, cd_high, 0b10_00_10_00);
            columns[12 + s] = _mm512_shuffle_f32x4(ab_high, cd_high, 0b11_01_11_01);
        }
        columns
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut x = 1u32;
        for _ in 0..200_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(x);
            let expected = half::bf16::from_f32(value);
            if value.is_nan() {
                assert!(f32::from_bits(bf16_round(value)).is_nan());
            } else {
                assert_eq!((bf16_round(value) >> 16) as u16, expected.to_bits(), "{value}");
            }
        }
    }
}
