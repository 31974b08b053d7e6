//! The causal convolution on the CPU: one vector lane for each channel, tokens cut into blocks for the cores.
//!
//! Backward runs from the last token to the first with the gradients of the last K pre-activations in a ring, so that
//! nothing of size `(B, L, D)` is stored in between. Each block sums its own weight gradient; the blocks' sums are added
//! in order.
#![allow(unsafe_code)] // blocks write disjoint rows of the shared output

use crate::segments::Segment;
use crate::shared::{SharedMut, unwritten_if, written};
use crate::simd::{Real, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Tokens of one task.
const BLOCK_STEPS: usize = 256;

/// The arguments as slices; shapes as in [`super::CausalConv1d`].
pub(super) struct Conv<'a, T> {
    pub(super) x: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) bias: Option<&'a [T]>,
    pub(super) initial_state: Option<&'a [T]>,
    pub(super) segments: &'a [Segment],
    pub(super) len: usize,
    pub(super) d: usize,
    pub(super) silu: bool,
    pub(super) reverse: bool,
}

/// Steps `first .. end` of a segment, in scan order.
#[derive(Clone, Copy)]
struct Block {
    segment: usize,
    first: usize,
    end: usize,
}

impl<T: Real> Conv<'_, T> {
    /// Room for an output `(B, L, D)`, of which tokens of no segment are zero and those of segments are still to be
    /// written.
    fn per_token(&self) -> Vec<MaybeUninit<T>> {
        let tokens: usize = self.segments.iter().map(Segment::len).sum();
        unwritten_if(tokens * self.d == self.x.len(), self.x.len())
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        for (segment, s) in self.segments.iter().enumerate() {
            let firsts = (0..s.len()).step_by(BLOCK_STEPS);
            blocks.extend(firsts.map(|first| Block {
                segment,
                first,
                end: (first + BLOCK_STEPS).min(s.len()),
            }));
        }
        blocks
    }

    /// Offset in `x` of scan step `step` of a segment.
    #[inline(always)]
    fn token(&self, segment: usize, step: usize) -> usize {
        let s = &self.segments[segment];
        let position = if self.reverse { s.end - 1 - step } else { s.start + step };
        (s.row * self.len + position) * self.d
    }

    /// The inputs that scan step `step` sees, oldest first; `zeros` stands for tokens before the segment.
    #[inline(always)]
    fn window<'a, const K: usize>(&'a self, segment: usize, step: usize, zeros: &'a [T]) -> [&'a [T]; K] {
        let mut rows = [zeros; K];
        for (k, row) in rows.iter_mut().enumerate() {
            if let Some(step) = (step + k + 1).checked_sub(K) {
                let at = self.token(segment, step);
                *row = &self.x[at..at + self.d];
            } else if let Some(state) = self.initial_state {
                let at = (segment * (K - 1) + step + k) * self.d;
                *row = &state[at..at + self.d];
            }
        }
        rows
    }

    /// The weight as `(K, D)`.
    fn taps(&self, width: usize) -> Vec<T> {
        let mut taps = vec![T::default(); self.weight.len()];
        for (channel, row) in self.weight.chunks_exact(width).enumerate() {
            row.iter().enumerate().for_each(|(k, &w)| taps[k * self.d + channel] = w);
        }
        taps
    }
}

/// Calls `$f::<T, K>` for the width at hand.
macro_rules! with_width {
    ($width:expr, $f:ident ( $($arg:expr),* )) => {
        match $width {
            1 => $f::<T, 1>($($arg),*),
            2 => $f::<T, 2>($($arg),*),
            3 => $f::<T, 3>($($arg),*),
            4 => $f::<T, 4>($($arg),*),
            5 => $f::<T, 5>($($arg),*),
            6 => $f::<T, 6>($($arg),*),
            7 => $f::<T, 7>($($arg),*),
            _ => $f::<T, 8>($($arg),*),
        }
    };
}

/// The output `(B, L, D)`.
pub(super) fn forward<T: Real>(conv: &Conv<'_, T>, width: usize) -> Vec<T> {
    with_width!(width, forward_width(conv))
}

fn forward_width<T: Real, const K: usize>(conv: &Conv<'_, T>) -> Vec<T> {
    let mut y = conv.per_token();
    let taps = conv.taps(K);
    let zeros = vec![T::default(); conv.d];
    let out = SharedMut::new(&mut y);
    conv.blocks()
        .into_par_iter()
        .for_each(|block| dispatch(Forward::<T, K> { conv, taps: &taps, zeros: &zeros, out, block }));
    // SAFETY: the blocks are all steps of all segments.
    unsafe { written(y) }
}

struct Forward<'a, T, const K: usize> {
    conv: &'a Conv<'a, T>,
    taps: &'a [T],
    zeros: &'a [T],
    out: SharedMut<'a, MaybeUninit<T>>,
    block: Block,
}

impl<T: Real, const K: usize> WithSimd for Forward<'_, T, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { conv, taps, zeros, out, block } = self;
        let lanes = T::lanes::<S>();
        for step in block.first..block.end {
            let window = conv.window::<K>(block.segment, step, zeros);
            // SAFETY: this token's row belongs to this block alone.
            let y = unsafe { out.range(conv.token(block.segment, step), conv.d) };
            for start in (0..conv.d).step_by(lanes) {
                let columns = start..(start + lanes).min(conv.d);
                let mut value = pre_activation::<S, T, K>(s, conv, taps, &window, columns.clone());
                if conv.silu {
                    value = T::vmul(s, value, T::sigmoid(s, value));
                }
                T::put(s, &mut y[columns], value);
            }
        }
    }
}

/// bias + Σ_k weight[k] · window[k] for some channels.
#[inline(always)]
fn pre_activation<S: Simd, T: Real, const K: usize>(
    s: S,
    conv: &Conv<'_, T>,
    taps: &[T],
    window: &[&[T]; K],
    columns: std::ops::Range<usize>,
) -> T::V<S> {
    let mut sum = match conv.bias {
        Some(bias) => T::load(s, &bias[columns.clone()]),
        None => T::vzero(s),
    };
    for k in 0..K {
        let tap = T::load(s, &taps[k * conv.d..][columns.clone()]);
        sum = T::vfma(s, tap, T::load(s, &window[k][columns.clone()]), sum);
    }
    sum
}

/// The last K-1 tokens of each segment, `(segments, K-1, D)`.
pub(super) fn last_state<T: Real>(conv: &Conv<'_, T>, width: usize) -> Vec<T> {
    let keep = width - 1;
    let mut out = vec![T::default(); conv.segments.len() * keep * conv.d];
    for (i, row) in out.chunks_exact_mut(conv.d).enumerate() {
        let (segment, k) = (i / keep, i % keep);
        if let Some(step) = (conv.segments[segment].len() + k).checked_sub(keep) {
            let at = conv.token(segment, step);
            row.copy_from_slice(&conv.x[at..at + conv.d]);
        } else if let Some(state) = conv.initial_state {
            let at = (segment * keep + conv.segments[segment].len() + k) * conv.d;
            row.copy_from_slice(&state[at..at + conv.d]);
        }
    }
    out
}

/// Gradients in the shapes of the inputs.
pub(super) struct Gradients<T> {
    pub(super) x: Vec<T>,
    pub(super) weight: Vec<T>,
    pub(super) bias: Option<Vec<T>>,
    pub(super) initial_state: Option<Vec<T>>,
}

/// Gradients given those of the output and of the last state; `None` stands for zero.
pub(super) fn backward<T: Real>(
    conv: &Conv<'_, T>,
    width: usize,
    dy: Option<&[T]>,
    dlast: Option<&[T]>,
) -> Gradients<T> {
    let zeros = vec![T::default(); if dy.is_none() { conv.x.len() } else { 0 }];
    with_width!(width, backward_width(conv, dy.unwrap_or(&zeros), dlast))
}

fn backward_width<T: Real, const K: usize>(
    conv: &Conv<'_, T>,
    dy: &[T],
    dlast: Option<&[T]>,
) -> Gradients<T> {
    let d = conv.d;
    let taps = conv.taps(K);
    let zeros = vec![T::default(); d];
    let mut dx = conv.per_token();
    let mut dstate = vec![MaybeUninit::new(T::default()); conv.segments.len() * (K - 1) * d];
    let blocks = conv.blocks();
    let (out, out_state) = (SharedMut::new(&mut dx), SharedMut::new(&mut dstate));
    // Each block's gradient of the taps, (K, D), and of the bias, (D).
    let sums: Vec<Vec<T>> = blocks
        .par_iter()
        .map(|&block| {
            let mut sums = vec![T::default(); (K + 1) * d];
            let task = Backward::<T, K> {
                conv,
                taps: &taps,
                zeros: &zeros,
                dy,
                out,
                out_state,
                sums: &mut sums,
                block,
            };
            dispatch(task);
            sums
        })
        .collect();
    // SAFETY: the blocks are all steps of all segments; the state's gradient was cleared.
    let (mut dx, mut dstate) = unsafe { (written(dx), written(dstate)) };
    let mut total = vec![T::default(); (K + 1) * d];
    for sums in &sums {
        total.iter_mut().zip(sums).for_each(|(x, &y)| *x += y);
    }
    let mut weight = vec![T::default(); conv.weight.len()];
    for (channel, row) in weight.chunks_exact_mut(K).enumerate() {
        row.iter_mut().enumerate().for_each(|(k, w)| *w = total[k * d + channel]);
    }
    if let Some(dlast) = dlast {
        for (i, row) in dlast.chunks_exact(d).enumerate() {
            let (segment, k) = (i / (K - 1), i % (K - 1));
            let len = conv.segments[segment].len();
            let to = match (len + k).checked_sub(K - 1) {
                Some(step) => &mut dx[conv.token(segment, step)..][..d],
                None => &mut dstate[(segment * (K - 1) + len + k) * d..][..d],
            };
            to.iter_mut().zip(row).for_each(|(x, &y)| *x += y);
        }
    }
    Gradients {
        x: dx,
        weight,
        bias: conv.bias.map(|_| total[K * d..].to_vec()),
        initial_state: conv.initial_state.map(|_| dstate),
    }
}

struct Backward<'a, T, const K: usize> {
    conv: &'a Conv<'a, T>,
    taps: &'a [T],
    zeros: &'a [T],
    dy: &'a [T],
    out: SharedMut<'a, MaybeUninit<T>>,
    out_state: SharedMut<'a, MaybeUninit<T>>,
    sums: &'a mut [T],
    block: Block,
}

impl<T: Real, const K: usize> WithSimd for Backward<'_, T, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { conv, taps, zeros, dy, out, out_state, sums, block } = self;
        let (d, lanes) = (conv.d, T::lanes::<S>());
        let Block { segment, first, end } = block;
        let len = conv.segments[segment].len();
        // Gradient of the pre-activation of step i lies in slot i % K.
        let mut ring = vec![T::default(); K * d];
        for step in (first..(end + K - 1).min(len)).rev() {
            let window = conv.window::<K>(segment, step, zeros);
            let at = conv.token(segment, step);
            let slot = (step % K) * d;
            for start in (0..d).step_by(lanes) {
                let columns = start..(start + lanes).min(d);
                let mut g = T::load(s, &dy[at..at + d][columns.clone()]);
                if conv.silu {
                    let pre = pre_activation::<S, T, K>(s, conv, taps, &window, columns.clone());
                    g = T::vmul(s, g, T::silu_and_slope(s, pre).1);
                }
                T::store(s, &mut ring[slot..slot + d][columns.clone()], g);
                if step < end {
                    for k in 0..K {
                        let sum = &mut sums[k * d..(k + 1) * d][columns.clone()];
                        let x = T::load(s, &window[k][columns.clone()]);
                        let value = T::vfma(s, g, x, T::load(s, sum));
                        T::store(s, sum, value);
                    }
                    let sum = &mut sums[K * d..][columns];
                    let value = T::vadd(s, g, T::load(s, sum));
                    T::store(s, sum, value);
                }
            }
            if step < end {
                // SAFETY: this token's row belongs to this block alone.
                let dx = unsafe { out.range(at, d) };
                input_gradient::<S, T, K>(s, taps, &ring, step as isize, len, dx);
            }
        }
        if first == 0 {
            // Tokens of the initial state are steps -(K-1) .. 0.
            for k in 0..K - 1 {
                let step = k as isize - (K as isize - 1);
                // SAFETY: only a segment's first block reaches its initial state.
                let dx = unsafe { out_state.range((segment * (K - 1) + k) * d, d) };
                input_gradient::<S, T, K>(s, taps, &ring, step, len, dx);
            }
        }
    }
}

/// dx_step = Σ_j weight[K-1-j] · dpre_{step+j}, over the steps that exist.
#[inline(always)]
fn input_gradient<S: Simd, T: Real, const K: usize>(
    s: S,
    taps: &[T],
    ring: &[T],
    step: isize,
    len: usize,
    dx: &mut [MaybeUninit<T>],
) {
    let (d, lanes) = (dx.len(), T::lanes::<S>());
    for start in (0..d).step_by(lanes) {
        let columns = start..(start + lanes).min(d);
        let mut sum = T::vzero(s);
        for j in 0..K {
            let later = step + j as isize;
            if later >= 0 && (later as usize) < len {
                let slot = (later as usize % K) * d;
                let g = T::load(s, &ring[slot..slot + d][columns.clone()]);
                let tap = T::load(s, &taps[(K - 1 - j) * d..(K - j) * d][columns.clone()]);
                sum = T::vfma(s, tap, g, sum);
            }
        }
        T::put(s, &mut dx[columns], sum);
    }
}
