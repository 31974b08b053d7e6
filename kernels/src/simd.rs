//! Vectors of the instruction set that the machine has, for `f32` and `f64` alike.
//!
//! Kernels are written once, generic over the element ([`Real`]) and over pulp's `Simd`; [`dispatch`] picks
//! AVX-512, AVX2+FMA, NEON or scalar code when it runs. Elementary functions of `f32` are polynomials evaluated in
//! vector registers, with their error stated; those of `f64` call the standard library lane by lane, because `f64`
//! is here for checking, not for speed.
#![allow(unsafe_code)] // unaligned vector loads and stores behind slice bounds checks

use candle_core::WithDType;
use pulp::{Arch, Simd, WithSimd};
use std::mem::MaybeUninit;
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use {
    pulp::{cast, x86::V4},
    std::{any::TypeId, arch::x86_64::__m512, mem::transmute_copy},
};

/// Runs `op` with the widest instruction set of this machine.
pub(crate) fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    Arch::new().dispatch(op)
}

/// Asks for the cache line of `x`, which will be needed some thousand cycles later.
#[inline(always)]
pub(crate) fn prefetch<T>(x: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing and may be any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(x.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// An element type (`f32` or `f64`) with its vector `V<S>` on instruction set `S`.
pub(crate) trait Real: WithDType + Default {
    /// A register of `LANES` elements.
    type V<S: Simd>: Copy + Send + Sync;
    const ZERO: Self;

    fn lanes<S: Simd>() -> usize;
    fn splat<S: Simd>(s: S, x: Self) -> Self::V<S>;
    fn vadd<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    fn vsub<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    fn vmul<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    fn vdiv<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// `a·b + c`, fused where the machine can.
    fn vfma<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
    fn vabs<S: Simd>(s: S, a: Self::V<S>) -> Self::V<S>;
    fn reduce_sum<S: Simd>(s: S, a: Self::V<S>) -> Self;
    /// 2^x; for `f32` the relative error is below 2.3e-7 where the result is a normal number. Without AVX-512, smaller
    /// results are 2^-126 and larger ones 2^127.
    fn vexp2<S: Simd>(s: S, x: Self::V<S>) -> Self::V<S>;
    /// Sine and cosine of 2π·x; for `f32` with |x| below 2^21 the error is below 6e-7 beside that of 2π·x itself.
    fn vsin_cos_turns<S: Simd>(s: S, x: Self::V<S>) -> (Self::V<S>, Self::V<S>);
    /// ln(1 + e) for e in [0, 1]; for `f32` the relative error is below 4e-7.
    fn ln_1p_unit<S: Simd>(s: S, e: Self::V<S>) -> Self::V<S>;
    fn partial_load<S: Simd>(s: S, x: &[Self]) -> Self::V<S>;
    fn partial_store<S: Simd>(s: S, x: &mut [Self], v: Self::V<S>);

    /// Loads the first `lanes()` elements of `x`, or all of a shorter `x` with zeros behind them.
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self]) -> Self::V<S> {
        if x.len() >= Self::lanes::<S>() {
            // SAFETY: `x` holds at least as many elements as `V<S>`, whose every bit pattern is valid.
            unsafe { x.as_ptr().cast::<Self::V<S>>().read_unaligned() }
        } else {
            Self::partial_load(s, x)
        }
    }

    /// [`Real::load`] of a part of `x`; zeros if there is no `x`.
    #[inline(always)]
    fn load_or_zero<S: Simd>(s: S, x: Option<&[Self]>, part: Range<usize>) -> Self::V<S> {
        match x {
            Some(x) => Self::load(s, &x[part]),
            None => Self::vzero(s),
        }
    }

    /// Stores to the first `lanes()` elements of `x`, or to all of a shorter `x`.
    #[inline(always)]
    fn store<S: Simd>(s: S, x: &mut [Self], v: Self::V<S>) {
        if x.len() >= Self::lanes::<S>() {
            // SAFETY: `x` has room for a whole `V<S>`.
            unsafe { x.as_mut_ptr().cast::<Self::V<S>>().write_unaligned(v) }
        } else {
            Self::partial_store(s, x, v)
        }
    }

    /// [`Real::store`] to elements that hold nothing yet.
    #[inline(always)]
    fn put<S: Simd>(s: S, x: &mut [MaybeUninit<Self>], v: Self::V<S>) {
        if x.len() >= Self::lanes::<S>() {
            // SAFETY: `x` has room for a whole `V<S>`.
            unsafe { x.as_mut_ptr().cast::<Self::V<S>>().write_unaligned(v) }
        } else {
            let mut lanes = [Self::ZERO; 16];
            Self::store(s, &mut lanes[..Self::lanes::<S>()], v);
            x.write_copy_of_slice(&lanes[..x.len()]);
        }
    }

    #[inline(always)]
    fn vzero<S: Simd>(s: S) -> Self::V<S> {
        Self::splat(s, Self::default())
    }

    /// 1 / (1 + e^-x).
    #[inline(always)]
    fn sigmoid<S: Simd>(s: S, x: Self::V<S>) -> Self::V<S> {
        let one = Self::splat(s, Self::from_f64(1.0));
        let minus_log2e = Self::splat(s, Self::from_f64(-std::f64::consts::LOG2_E));
        let e = Self::vexp2(s, Self::vmul(s, x, minus_log2e));
        Self::vdiv(s, one, Self::vadd(s, one, e))
    }

    /// y·x·σ(x), a value behind its gate.
    #[inline(always)]
    fn gate<S: Simd>(s: S, y: Self::V<S>, x: Self::V<S>) -> Self::V<S> {
        let one = Self::splat(s, Self::from_f64(1.0));
        let minus_log2e = Self::splat(s, Self::from_f64(-std::f64::consts::LOG2_E));
        let e = Self::vexp2(s, Self::vmul(s, x, minus_log2e));
        // The gate first: y·x alone may overflow where the gate is closed.
        Self::vmul(s, y, Self::vdiv(s, x, Self::vadd(s, one, e)))
    }

    /// ln(1 + e^x) without overflow: max(x, 0) + ln(1 + e^-|x|).
    #[inline(always)]
    fn softplus<S: Simd>(s: S, x: Self::V<S>) -> Self::V<S> {
        let minus_log2e = Self::splat(s, Self::from_f64(-std::f64::consts::LOG2_E));
        let half = Self::splat(s, Self::from_f64(0.5));
        let magnitude = Self::vabs(s, x);
        let e = Self::vexp2(s, Self::vmul(s, magnitude, minus_log2e));
        // max(x, 0) as x/2 + |x|/2, because the machine's max(NaN, 0) is 0.
        let positive = Self::vfma(s, half, magnitude, Self::vmul(s, half, x));
        Self::vadd(s, positive, Self::ln_1p_unit(s, e))
    }

    /// x·σ(x) and its derivative σ(x)·(1 + x·(1 - σ(x))).
    #[inline(always)]
    fn silu_and_slope<S: Simd>(s: S, x: Self::V<S>) -> (Self::V<S>, Self::V<S>) {
        let one = Self::splat(s, Self::from_f64(1.0));
        let sig = Self::sigmoid(s, x);
        let slope = Self::vmul(s, sig, Self::vfma(s, x, Self::vsub(s, one, sig), one));
        (Self::vmul(s, x, sig), slope)
    }
}

/// Minimax coefficients of (2^f - 1)/f on [-1/2, 1/2], relative to 2^f: error 9.2e-8. 2^0 = 1 holds exactly, so slowly
/// decaying states keep their precision over long sequences.
#[allow(clippy::excessive_precision)] // fewer digits would read as ln 2, which the first is not
const EXP2_F32: [f32; 5] = [6.931_469_8e-1, 2.402_224_2e-1, 5.550_733_7e-2, 9.671_513e-3, 1.326_472_6e-3];

/// 2^f for f in [-1/2, 1/2].
#[inline(always)]
fn exp2_fraction<S: Simd>(s: S, f: S::f32s) -> S::f32s {
    let [c1, c2, c3, c4, c5] = EXP2_F32.map(|c| s.splat_f32s(c));
    let p = s.mul_add_e_f32s(s.mul_add_e_f32s(c5, f, c4), f, c3);
    let p = s.mul_add_e_f32s(s.mul_add_e_f32s(p, f, c2), f, c1);
    s.mul_add_e_f32s(p, f, s.splat_f32s(1.0))
}

/// [`Real::vexp2`] by the instructions that AVX-512 has for whole parts and exponents: eight instead of twelve.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn exp2_avx512(s: V4, x: __m512) -> __m512 {
    // x less its nearest integer; 0 for infinities.
    let f = s.avx512dq._mm512_reduce_ps::<8>(x);
    let p: __m512 = cast(exp2_fraction(s, cast(f)));
    s.avx512f._mm512_scalef_ps(p, s.avx512f._mm512_sub_ps(x, f))
}

/// Minimax coefficients of (ln(1 + e) - e)/e² on [0, 1], in pairs of an even and an odd power, relative to ln(1 + e): error
/// 3.3e-8.
const LN_1P_F32: [[f32; 2]; 4] = [
    [-0.499_996_48, 0.333_213_24],
    [-0.248_571_63, 0.191_536_56],
    [-0.137_538_03, 0.079_204_55],
    [-0.030_065_801, 0.005_364_826_4],
];

/// Taylor's coefficients of sin(y)/y and cos(y) in y², cut where |y| ≤ π/2 leaves an error below 1e-8.
const SIN_F32: [f32; 7] = [
    1.0,
    -1.0 / 6.0,
    1.0 / 120.0,
    -1.0 / 5_040.0,
    1.0 / 362_880.0,
    -1.0 / 39_916_800.0,
    1.0 / 6_227_020_800.0,
];
const COS_F32: [f32; 7] =
    [1.0, -1.0 / 2.0, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0, 1.0 / 479_001_600.0];

impl Real for f32 {
    type V<S: Simd> = S::f32s;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn lanes<S: Simd>() -> usize {
        S::F32_LANES
    }
    #[inline(always)]
    fn splat<S: Simd>(s: S, x: Self) -> S::f32s {
        s.splat_f32s(x)
    }
    #[inline(always)]
    fn vadd<S: Simd>(s: S, a: S::f32s, b: S::f32s) -> S::f32s {
        s.add_f32s(a, b)
    }
    #[inline(always)]
    fn vsub<S: Simd>(s: S, a: S::f32s, b: S::f32s) -> S::f32s {
        s.sub_f32s(a, b)
    }
    #[inline(always)]
    fn vmul<S: Simd>(s: S, a: S::f32s, b: S::f32s) -> S::f32s {
        s.mul_f32s(a, b)
    }
    #[inline(always)]
    fn vdiv<S: Simd>(s: S, a: S::f32s, b: S::f32s) -> S::f32s {
        s.div_f32s(a, b)
    }
    #[inline(always)]
    fn vfma<S: Simd>(s: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        s.mul_add_e_f32s(a, b, c)
    }
    #[inline(always)]
    fn vabs<S: Simd>(s: S, a: S::f32s) -> S::f32s {
        // pulp's own is a call in the middle of a loop, which spills every register.
        s.max_f32s(a, s.sub_f32s(s.splat_f32s(0.0), a))
    }
    #[inline(always)]
    fn reduce_sum<S: Simd>(s: S, a: S::f32s) -> Self {
        s.reduce_sum_f32s(a)
    }

    #[inline(always)]
    fn vexp2<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if TypeId::of::<S>() == TypeId::of::<V4>() {
            // SAFETY: `S` is `V4`, which has no bytes, and its `f32s` are the sixteen of a `__m512`.
            return unsafe {
                let y = exp2_avx512(transmute_copy(&s), transmute_copy(&x));
                transmute_copy::<__m512, S::f32s>(&y)
            };
        }
        // Adding 1.5·2^23 leaves round(x) in the low mantissa bits; shifted by 23 it is the exponent to add.
        let magic = s.splat_f32s(12_582_912.0);
        // Of max(a, b) and min(a, b) with a NaN, vector units take b, so that this order lets NaN through.
        let x = s.min_f32s(s.splat_f32s(127.0), s.max_f32s(s.splat_f32s(-126.0), x));
        let shifted = s.add_f32s(x, magic);
        let f = s.sub_f32s(x, s.sub_f32s(shifted, magic));
        let exponent = s.wrapping_dyn_shl_u32s(s.transmute_u32s_f32s(shifted), s.splat_u32s(23));
        s.transmute_f32s_u32s(s.add_u32s(s.transmute_u32s_f32s(exp2_fraction(s, f)), exponent))
    }

    #[inline(always)]
    fn vsin_cos_turns<S: Simd>(s: S, x: S::f32s) -> (S::f32s, S::f32s) {
        // Whole turns go, as in `vexp2`; of half of what is left, within a quarter turn, both by their series.
        let magic = s.splat_f32s(12_582_912.0);
        let turn = s.sub_f32s(x, s.sub_f32s(s.add_f32s(x, magic), magic));
        let half = s.mul_f32s(turn, s.splat_f32s(std::f32::consts::PI));
        let square = s.mul_f32s(half, half);
        let (mut sin, mut cos) = (s.splat_f32s(SIN_F32[6]), s.splat_f32s(COS_F32[6]));
        for i in (0..6).rev() {
            sin = s.mul_add_e_f32s(sin, square, s.splat_f32s(SIN_F32[i]));
            cos = s.mul_add_e_f32s(cos, square, s.splat_f32s(COS_F32[i]));
        }
        let sin = s.mul_f32s(sin, half);
        let twice = s.add_f32s(sin, sin);
        // sin 2y = 2 sin y cos y, cos 2y = 1 - 2 sin² y
        (s.mul_f32s(twice, cos), s.sub_f32s(s.splat_f32s(1.0), s.mul_f32s(twice, sin)))
    }

    #[inline(always)]
    fn ln_1p_unit<S: Simd>(s: S, e: S::f32s) -> S::f32s {
        // ln(1 + e) = e + e² (even powers + e · odd powers): two short chains and no division.
        let square = s.mul_f32s(e, e);
        let [mut even, mut odd] = LN_1P_F32[3].map(|c| s.splat_f32s(c));
        for [c_even, c_odd] in [LN_1P_F32[2], LN_1P_F32[1], LN_1P_F32[0]] {
            even = s.mul_add_e_f32s(even, square, s.splat_f32s(c_even));
            odd = s.mul_add_e_f32s(odd, square, s.splat_f32s(c_odd));
        }
        s.mul_add_e_f32s(square, s.mul_add_e_f32s(odd, e, even), e)
    }

    #[inline(always)]
    fn partial_load<S: Simd>(s: S, x: &[Self]) -> S::f32s {
        s.partial_load_f32s(x)
    }
    #[inline(always)]
    fn partial_store<S: Simd>(s: S, x: &mut [Self], v: S::f32s) {
        s.partial_store_f32s(x, v);
    }
}

/// Applies `f` to every lane of `v`.
#[inline(always)]
fn map_f64<S: Simd>(s: S, mut v: S::f64s, f: impl Fn(f64) -> f64) -> S::f64s {
    let mut lanes = [0f64; 16];
    let lanes = &mut lanes[..S::F64_LANES];
    f64::store(s, lanes, v);
    lanes.iter_mut().for_each(|x| *x = f(*x));
    v = f64::load(s, lanes);
    v
}

impl Real for f64 {
    type V<S: Simd> = S::f64s;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn lanes<S: Simd>() -> usize {
        S::F64_LANES
    }
    #[inline(always)]
    fn splat<S: Simd>(s: S, x: Self) -> S::f64s {
        s.splat_f64s(x)
    }
    #[inline(always)]
    fn vadd<S: Simd>(s: S, a: S::f64s, b: S::f64s) -> S::f64s {
        s.add_f64s(a, b)
    }
    #[inline(always)]
    fn vsub<S: Simd>(s: S, a: S::f64s, b: S::f64s) -> S::f64s {
        s.sub_f64s(a, b)
    }
    #[inline(always)]
    fn vmul<S: Simd>(s: S, a: S::f64s, b: S::f64s) -> S::f64s {
        s.mul_f64s(a, b)
    }
    #[inline(always)]
    fn vdiv<S: Simd>(s: S, a: S::f64s, b: S::f64s) -> S::f64s {
        s.div_f64s(a, b)
    }
    #[inline(always)]
    fn vfma<S: Simd>(s: S, a: S::f64s, b: S::f64s, c: S::f64s) -> S::f64s {
        s.mul_add_e_f64s(a, b, c)
    }
    #[inline(always)]
    fn vabs<S: Simd>(s: S, a: S::f64s) -> S::f64s {
        s.max_f64s(a, s.sub_f64s(s.splat_f64s(0.0), a))
    }
    #[inline(always)]
    fn reduce_sum<S: Simd>(s: S, a: S::f64s) -> Self {
        s.reduce_sum_f64s(a)
    }
    #[inline(always)]
    fn vexp2<S: Simd>(s: S, x: S::f64s) -> S::f64s {
        map_f64(s, x, f64::exp2)
    }
    #[inline(always)]
    fn vsin_cos_turns<S: Simd>(s: S, x: S::f64s) -> (S::f64s, S::f64s) {
        let angle = |x: f64| (x - x.round()) * std::f64::consts::TAU;
        (map_f64(s, x, |x| angle(x).sin()), map_f64(s, x, |x| angle(x).cos()))
    }

    #[inline(always)]
    fn ln_1p_unit<S: Simd>(s: S, e: S::f64s) -> S::f64s {
        map_f64(s, e, f64::ln_1p)
    }
    #[inline(always)]
    fn partial_load<S: Simd>(s: S, x: &[Self]) -> S::f64s {
        s.partial_load_f64s(x)
    }
    #[inline(always)]
    fn partial_store<S: Simd>(s: S, x: &mut [Self], v: S::f64s) {
        s.partial_store_f64s(x, v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map<'a>(&'a mut [f32], u8);
    impl WithSimd for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for chunk in self.0.chunks_mut(f32::lanes::<S>()) {
                let x = f32::load(s, chunk);
                let y = match self.1 {
                    0 => f32::vexp2(s, x),
                    1 => f32::softplus(s, x),
                    2 => f32::sigmoid(s, x),
                    3 => f32::silu_and_slope(s, x).1,
                    4 => f32::vsin_cos_turns(s, x).0,
                    5 => f32::ln_1p_unit(s, x),
                    7 => f32::gate(s, f32::splat(s, 1e30), x),
                    _ => f32::vsin_cos_turns(s, x).1,
                };
                f32::store(s, chunk, y);
            }
        }
    }

    fn check(which: u8, lo: f64, hi: f64, tolerance: f64, exact: impl Fn(f64) -> f64) {
        let n = 400_003;
        let x: Vec<f32> = (0..n).map(|i| (lo + (hi - lo) * i as f64 / n as f64) as f32).collect();
        for scalar in [false, true] {
            let mut y = x.clone();
            if scalar {
                Map(&mut y, which).with_simd(pulp::Scalar);
            } else {
                dispatch(Map(&mut y, which));
            }
            for (&x, &y) in x.iter().zip(&y) {
                let want = exact(f64::from(x));
                let error = (f64::from(y) - want).abs() / want.abs().max(1e-30);
                assert!(error < tolerance, "function {which} at {x}: {y}, expected {want}, error {error:e}");
            }
        }
    }

    #[test]
    fn elementary_functions_are_within_their_stated_error() {
        check(0, -125.0, 126.9, 2.3e-7, f64::exp2);
        check(5, 1e-6, 1.0, 4e-7, f64::ln_1p);
        check(1, -80.0, 100.0, 4e-6, |x| x.exp().ln_1p().max(x));
        check(2, -80.0, 80.0, 4e-6, |x| 1.0 / (1.0 + (-x).exp()));
    }

    #[test]
    fn sines_and_cosines_are_within_their_stated_error() {
        let absolute = |which, exact: fn(f64) -> f64| {
            let turns = |x: f64| (x - x.round()) * std::f64::consts::TAU;
            for (lo, hi) in [(-1.0, 1.0), (-300.0, 500.0)] {
                let n = 100_003;
                let mut x: Vec<f32> =
                    (0..n).map(|i| (lo + (hi - lo) * f64::from(i) / f64::from(n)) as f32).collect();
                let exact: Vec<f64> = x.iter().map(|x| exact(turns(f64::from(*x)))).collect();
                dispatch(Map(&mut x, which));
                for (got, want) in x.iter().zip(exact) {
                    assert!((f64::from(*got) - want).abs() < 6e-7, "{got}, expected {want}");
                }
            }
        };
        absolute(4, f64::sin);
        absolute(6, f64::cos);
        let mut x = [f32::NAN];
        dispatch(Map(&mut x, 4));
        assert!(x[0].is_nan());
    }

    #[test]
    fn extremes_are_defined() {
        let inputs = [f32::NEG_INFINITY, -1e30, 0.0, 1.0, f32::NAN, 1e30, f32::INFINITY];
        for scalar in [false, true] {
            let mut x = inputs;
            if scalar {
                Map(&mut x, 0).with_simd(pulp::Scalar);
            } else {
                dispatch(Map(&mut x, 0));
            }
            assert!((0.0..1.2e-38).contains(&x[0]) && (0.0..1.2e-38).contains(&x[1]));
            assert_eq!((x[2], x[3]), (1.0, 2.0));
            assert!(scalar || x[4].is_nan());
            assert!(x[5] > 1.7e38 && x[6] > 1.7e38);
        }
        let mut closed = [-1e20f32, -1e30, f32::NAN];
        dispatch(Map(&mut closed, 7));
        assert_eq!(&closed[..2], [0.0, 0.0]);
        assert!(closed[2].is_nan());
        let mut y = [1e30f32, -1e30, 0.0];
        dispatch(Map(&mut y, 1));
        assert_eq!(y[0], 1e30);
        assert!(y[1] >= 0.0 && y[1] < 1.3e-38);
        assert!((y[2] - std::f32::consts::LN_2).abs() < 1e-7);
    }

    #[test]
    fn softplus_of_nan_is_nan() {
        let mut x = [f32::NAN];
        dispatch(Map(&mut x, 1));
        assert!(x[0].is_nan());
        let mut x = [f32::NAN];
        Map(&mut x, 1).with_simd(pulp::Scalar);
        assert!(x[0].is_nan());
    }
}
