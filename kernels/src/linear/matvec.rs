//! Products of a few rows with weights that are read once from memory, as in decoding: the time is that of streaming
//! the weights, so they may be stored small and are widened in registers; sums are in the type of the activations.
//!
//! Small weights are loaded as words of 32 bits, which hold 2 or 4 of them, and every lane widens its own: the first of each
//! word, then the second, and so on. The activations are laid out to match, once for all channels.
#![allow(unsafe_code)] // loads of words, and tasks that write disjoint channels of one output

use crate::shared::SharedMut;
use crate::simd::{Real, dispatch};
use crate::team;
use half::{bf16, f16};
use pulp::{Simd, WithSimd};
use std::borrow::Cow;
use std::marker::PhantomData;

/// Most rows of `x` for which this beats a matrix product.
pub(super) const FEW_ROWS: usize = 4;
/// Bytes of weights that one task streams at least.
const TASK_BYTES: usize = 1 << 15;
/// Weight rows that share each load of `x`.
const ROWS: usize = 4;
/// Fewest bytes between a weight and the one asked for when it is read.
const AHEAD: usize = 6 << 10;
/// Most weights of one load: 4 in each of 16 words.
const MOST_LOADED: usize = 64;

const _: () = assert!(cfg!(target_endian = "little"), "the first weight of a word is its lowest");

/// A stored weight that widens to activations of type `T`.
pub(super) trait Weight<T: Real>: Copy + Send + Sync {
    /// How many weights are loaded into one lane.
    const PACKED: usize;
    /// A weight of 0.
    const ZERO: Self;
    /// What a load gives.
    type Loaded<S: Simd>: Copy;

    fn widen(self) -> T;

    /// Loads the first `PACKED` · lanes of `weights`, which must have as many.
    fn load<S: Simd>(s: S, weights: &[Self]) -> Self::Loaded<S>;

    /// Weight `i` of each lane.
    fn unpack<S: Simd>(s: S, loaded: Self::Loaded<S>, i: usize) -> T::V<S>;
}

impl<T: Real> Weight<T> for T {
    const PACKED: usize = 1;
    const ZERO: T = T::ZERO;
    type Loaded<S: Simd> = T::V<S>;

    #[inline(always)]
    fn widen(self) -> T {
        self
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, weights: &[T]) -> T::V<S> {
        T::load(s, weights)
    }

    #[inline(always)]
    fn unpack<S: Simd>(_: S, loaded: T::V<S>, _: usize) -> T::V<S> {
        loaded
    }
}

/// As many words as a register has lanes.
#[inline(always)]
fn words<S: Simd, W>(_: S, weights: &[W]) -> S::u32s {
    assert!(size_of_val(weights) >= size_of::<S::u32s>());
    // SAFETY: the slice is long enough, and every bit pattern is a word.
    unsafe { weights.as_ptr().cast::<S::u32s>().read_unaligned() }
}

impl Weight<f32> for bf16 {
    const PACKED: usize = 2;
    const ZERO: bf16 = bf16::ZERO;
    type Loaded<S: Simd> = S::u32s;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, weights: &[bf16]) -> S::u32s {
        words(s, weights)
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, words: S::u32s, i: usize) -> S::f32s {
        s.transmute_f32s_u32s(match i {
            0 => s.wrapping_dyn_shl_u32s(words, s.splat_u32s(16)),
            _ => s.and_u32s(words, s.splat_u32s(0xffff_0000)),
        })
    }
}

impl Weight<f32> for f16 {
    const PACKED: usize = 2;
    const ZERO: f16 = f16::ZERO;
    type Loaded<S: Simd> = S::u32s;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, weights: &[f16]) -> S::u32s {
        words(s, weights)
    }

    /// Exact for all finite values: the fields move to their places in an f32, and a product corrects the exponent's
    /// bias, which makes normal numbers of subnormal ones too.
    #[inline(always)]
    fn unpack<S: Simd>(s: S, words: S::u32s, i: usize) -> S::f32s {
        const BIAS: f32 = f32::from_bits((127 + 112) << 23);
        // the weight in the upper half of its word
        let half = match i {
            0 => s.wrapping_dyn_shl_u32s(words, s.splat_u32s(16)),
            _ => words,
        };
        let magnitude = s.wrapping_dyn_shr_u32s(s.and_u32s(half, s.splat_u32s(0x7fff_0000)), s.splat_u32s(3));
        let magnitude = s.mul_f32s(s.transmute_f32s_u32s(magnitude), s.splat_f32s(BIAS));
        let sign = s.and_u32s(half, s.splat_u32s(0x8000_0000));
        s.transmute_f32s_u32s(s.or_u32s(s.transmute_u32s_f32s(magnitude), sign))
    }
}

/// The bits of an `i8`: candle has no such type, so that tensors hold them as U8.
impl Weight<f32> for u8 {
    const PACKED: usize = 4;
    const ZERO: u8 = 0;
    type Loaded<S: Simd> = S::u32s;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self as i8)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, weights: &[u8]) -> S::u32s {
        words(s, weights)
    }

    /// The byte, with its sign flipped, becomes the low bits of a number around 2^23, whose exponent and offset are then
    /// taken off: exact.
    #[inline(always)]
    fn unpack<S: Simd>(s: S, words: S::u32s, i: usize) -> S::f32s {
        const EXPONENT: u32 = 0x4b00_0000;
        let byte = match i {
            0 => words,
            _ => s.wrapping_dyn_shr_u32s(words, s.splat_u32s(8 * i as u32)),
        };
        let bits = s.xor_u32s(s.and_u32s(byte, s.splat_u32s(0xff)), s.splat_u32s(EXPONENT | 0x80));
        s.sub_f32s(s.transmute_f32s_u32s(bits), s.splat_f32s(8_388_608.0 + 128.0))
    }
}

/// Lays `x` out as weights `W` are unpacked: blocks of `PACKED` · lanes, in each first what meets the first weights of
/// all lanes. The last block is filled up with zeros.
struct Arrange<'a, T, W>(&'a [T], PhantomData<W>);

impl<'a, T: Real, W: Weight<T>> WithSimd for Arrange<'a, T, W> {
    type Output = Cow<'a, [T]>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Cow<'a, [T]> {
        let lanes = T::lanes::<S>();
        if W::PACKED == 1 {
            return Cow::Borrowed(self.0);
        }
        let block = W::PACKED * lanes;
        let mut out = vec![T::default(); self.0.len().next_multiple_of(block)];
        for (i, &x) in self.0.iter().enumerate() {
            let (start, within) = (i / block * block, i % block);
            out[start + within % W::PACKED * lanes + within / W::PACKED] = x;
        }
        Cow::Owned(out)
    }
}

/// A linear map with stored weights.
#[derive(Clone, Copy)]
pub(super) struct Map<'a, T, W> {
    /// `[out][in]`.
    pub(super) weight: &'a [W],
    /// `[out]`.
    pub(super) scales: Option<&'a [T]>,
    /// `[out]`.
    pub(super) bias: Option<&'a [T]>,
    pub(super) d_in: usize,
}

/// The parts of `y[r][o] = scales[o] · Σ_i x[r][i] weight[o][i] + bias[o]` for each of at most [`FEW_ROWS`] rows `r` of
/// `x`, row-major. Every output is one sum in one order, so the number of threads does not change it.
pub(super) fn forward<T: Real, W: Weight<T>>(x: &[T], map: Map<'_, T, W>, parts: &[usize]) -> Vec<Vec<T>> {
    let d_in = map.d_in;
    let (rows, d_out) = (x.len() / d_in, map.weight.len() / d_in);
    assert!(map.weight.len() == d_out * d_in && x.len() == rows * d_in, "shapes do not fit");
    if rows == 0 {
        return vec![Vec::new(); parts.len()];
    }
    let arranged: Vec<Cow<'_, [T]>> =
        x.chunks_exact(d_in).map(|x| dispatch(Arrange::<T, W>(x, PhantomData))).collect();
    let mut by_channel = vec![T::default(); rows * d_out]; // [channel][row]
    let shared = SharedMut::new(&mut by_channel);
    let channels = (TASK_BYTES / (d_in * size_of::<W>())).max(1).next_multiple_of(ROWS);
    team::for_each(d_out.div_ceil(channels), |task| {
        let first = task * channels;
        let count = channels.min(d_out - first);
        // SAFETY: these channels belong to this task alone.
        let y = unsafe { shared.range(first * rows, count * rows) };
        dispatch(Task { x: &arranged, map, first, y });
    });
    let mut outputs = Vec::with_capacity(parts.len());
    let mut rest = &by_channel[..];
    for part in parts {
        let (of_part, behind) = rest.split_at(part * rows);
        rest = behind;
        outputs.push(match rows {
            1 => of_part.to_vec(),
            _ => (0..rows).flat_map(|r| of_part[r..].iter().step_by(rows).copied()).collect(),
        });
    }
    outputs
}

/// Channels from `first` on of one product.
struct Task<'a, T: Real, W> {
    /// Each row, as [`Arrange`] lays it out.
    x: &'a [Cow<'a, [T]>],
    map: Map<'a, T, W>,
    first: usize,
    /// `[channel][row]`.
    y: &'a mut [T],
}

impl<T: Real, W: Weight<T>> WithSimd for Task<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, map, first, y } = self;
        let (rows, d_in) = (x.len(), map.d_in);
        let channels = y.len() / rows;
        let weight = &map.weight[first * d_in..(first + channels) * d_in];
        let whole = channels / ROWS * ROWS;
        for k in (0..whole).step_by(ROWS) {
            let weight = &weight[k * d_in..(k + ROWS) * d_in];
            for (r, x) in x.iter().enumerate() {
                let sums = dots::<S, T, W, ROWS>(s, x, weight, d_in);
                for i in 0..ROWS {
                    y[(k + i) * rows + r] = sums[i];
                }
            }
        }
        for k in whole..channels {
            for (r, x) in x.iter().enumerate() {
                y[k * rows + r] = dots::<S, T, W, 1>(s, x, &weight[k * d_in..(k + 1) * d_in], d_in)[0];
            }
        }
        if let Some(scales) = map.scales {
            for (y, scale) in y.chunks_exact_mut(rows).zip(&scales[first..]) {
                y.iter_mut().for_each(|y| *y *= *scale);
            }
        }
        if let Some(bias) = map.bias {
            for (y, bias) in y.chunks_exact_mut(rows).zip(&bias[first..]) {
                y.iter_mut().for_each(|y| *y += *bias);
            }
        }
    }
}

/// Asks for the cache line at an address that need not be ours. Rows are too short for the machine to foresee them.
#[inline(always)]
fn prefetch<W>(address: *const W) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address can make fail.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The products of `x`, laid out, with `R` rows of `d_in` weights.
#[inline(always)]
fn dots<S: Simd, T: Real, W: Weight<T>, const R: usize>(s: S, x: &[T], weight: &[W], d_in: usize) -> [T; R] {
    let lanes = T::lanes::<S>();
    let block = W::PACKED * lanes;
    assert!(weight.len() == R * d_in && x.len() >= d_in);
    let mut sums = [T::vzero(s); R];
    let whole = d_in / block * block;
    // the next rows, or later ones where these are short
    let ahead = (R * d_in).max(AHEAD / size_of::<W>());
    let mut at = 0;
    while at < whole {
        let x = &x[at..at + block];
        let mut loaded = [W::load(s, &weight[at..at + block]); R];
        prefetch(weight.as_ptr().wrapping_add(ahead + at));
        for k in 1..R {
            loaded[k] = W::load(s, &weight[k * d_in + at..k * d_in + at + block]);
            prefetch(weight.as_ptr().wrapping_add(ahead + k * d_in + at));
        }
        for i in 0..W::PACKED {
            let v = T::load(s, &x[i * lanes..(i + 1) * lanes]);
            for k in 0..R {
                sums[k] = T::vfma(s, W::unpack(s, loaded[k], i), v, sums[k]);
            }
        }
        at += block;
    }
    if whole < d_in {
        let (x, left) = (&x[whole..], d_in - whole);
        for k in 0..R {
            let mut last = [W::ZERO; MOST_LOADED];
            last[..left].copy_from_slice(&weight[k * d_in + whole..k * d_in + d_in]);
            let loaded = W::load(s, &last[..block]);
            for i in 0..W::PACKED {
                let v = T::load(s, &x[(i * lanes).min(x.len())..]);
                sums[k] = T::vfma(s, W::unpack(s, loaded, i), v, sums[k]);
            }
        }
    }
    // Not `map`, whose closure would be compiled without the instructions that it needs.
    let mut out = [T::default(); R];
    for k in 0..R {
        out[k] = T::reduce_sum(s, sums[k]);
    }
    out
}
