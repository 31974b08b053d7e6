//! Forward: outputs, last states, and the state before each chunk.
#![allow(unsafe_code)] // units write disjoint parts of the shared outputs

use super::{Chunk, Plan, Scan, Steps, TRIANGLE, Unit, multiply, products, scale};
use crate::matrix::{Matrix, MatrixMut};
use crate::shared::SharedMut;
use crate::simd::{Real, dispatch};
use crate::ssd::Dims;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// What forward computes.
pub(in crate::ssd) struct Forward<T> {
    /// `(B, L, H, P)`.
    pub(in crate::ssd) y: Vec<T>,
    /// `(segments, H, P, N)`; empty unless asked for.
    pub(in crate::ssd) last_state: Vec<T>,
    /// `(chunks, H, P, N)`: the state before each chunk.
    pub(in crate::ssd) chunk_states: Vec<T>,
}

/// Runs the scan.
pub(in crate::ssd) fn forward<T: Real>(scan: &Scan<'_, T>, with_state: bool) -> Forward<T> {
    let plan = Plan::new(scan);
    let Dims { h, p, n, .. } = scan.dims;
    let state = h * p * n;
    let mut chunk_states = vec![T::default(); plan.chunks.len() * state];
    let mut last_state = vec![T::default(); if with_state { scan.segments.len() * state } else { 0 }];
    let mut y = vec![T::default(); scan.x.len()];
    let (states, last) = (SharedMut::new(&mut chunk_states), SharedMut::new(&mut last_state));
    plan.units.par_iter().for_each(|unit| {
        let chunk = &plan.chunks[unit.chunk];
        let is_last = plan.of_segment[chunk.segment].end == unit.chunk + 1;
        if with_state || !is_last {
            dispatch(Summary { scan, plan: &plan, states, unit, chunk });
        }
    });
    (0..scan.segments.len() * h).into_par_iter().for_each(|i| {
        let (segment, head) = (i / h, i % h);
        dispatch(Passing { scan, plan: &plan, states, last: with_state.then_some(last), segment, head });
    });
    let (states, out) = (&chunk_states[..], SharedMut::new(&mut y));
    plan.units.par_iter().for_each(|unit| {
        dispatch(Outputs { scan, plan: &plan, states, out, unit, chunk: &plan.chunks[unit.chunk] });
    });
    Forward { y, last_state, chunk_states }
}

/// What a chunk adds to a zero state, left where the state before it will stand.
struct Summary<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    states: SharedMut<'a, T>,
    unit: &'a Unit,
    chunk: &'a Chunk,
}

impl<T: Real> WithSimd for Summary<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, states, unit, chunk } = self;
        let Dims { h, p, n, .. } = scan.dims;
        let mut steps = Steps::new(chunk.len, plan.lanes);
        let mut scaled = Vec::new();
        for block in scan.blocks(&unit.heads) {
            let width = block.len() * p;
            scaled.resize(chunk.len * width, T::default());
            for head in block.clone() {
                steps.fill(s, scan, chunk, head);
                for i in 0..chunk.len {
                    let from = (scan.token(chunk, i) * h + head) * p;
                    let to = i * width + (head - block.start) * p;
                    let factor = steps.into_state[i] * steps.to_end[i];
                    scale(s, &scan.x[from..from + p], factor, &mut scaled[to..to + p]);
                }
            }
            // SAFETY: these heads' states of this chunk belong to this unit alone.
            let state = unsafe { states.range((unit.chunk * h + block.start) * p * n, width * n) };
            let x = Matrix::new(&scaled[..chunk.len * width], chunk.len, width);
            multiply(
                MatrixMut::new(state, width, n),
                x.t(),
                scan.coefficient(scan.b, chunk, unit.group),
                false,
            );
        }
    }
}

/// Turns what each chunk adds into the state before it, for one head of one segment.
struct Passing<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    states: SharedMut<'a, T>,
    last: Option<SharedMut<'a, T>>,
    segment: usize,
    head: usize,
}

impl<T: Real> WithSimd for Passing<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, states, last, segment, head } = self;
        let Dims { h, p, n, .. } = scan.dims;
        let (size, lanes) = (p * n, T::lanes::<S>());
        let at = (segment * h + head) * size;
        let mut state = match scan.initial_state {
            Some(initial) => initial[at..at + size].to_vec(),
            None => vec![T::default(); size],
        };
        for index in plan.of_segment[segment].clone() {
            let chunk = &plan.chunks[index];
            // SAFETY: this head's states of this segment's chunks belong to this task alone.
            let kept = unsafe { states.range((index * h + head) * size, size) };
            let mut steps = Steps::new(chunk.len, plan.lanes);
            steps.fill(s, scan, chunk, head);
            let whole = T::splat(s, steps.whole(chunk));
            for (kept, state) in kept.chunks_mut(lanes).zip(state.chunks_mut(lanes)) {
                let (added, before) = (T::load(s, kept), T::load(s, state));
                T::store(s, kept, before);
                T::store(s, state, T::vfma(s, whole, before, added));
            }
        }
        if let Some(last) = last {
            // SAFETY: this head's last state of this segment belongs to this task alone.
            unsafe { last.range(at, size) }.copy_from_slice(&state);
        }
    }
}

/// The outputs of one unit.
struct Outputs<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    /// Before each chunk.
    states: &'a [T],
    out: SharedMut<'a, T>,
    unit: &'a Unit,
    chunk: &'a Chunk,
}

impl<T: Real> WithSimd for Outputs<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, states, out, unit, chunk } = self;
        let Dims { h, p, .. } = scan.dims;
        let (len, stride) = (chunk.len, plan.stride(chunk.len));
        let mut cb = vec![T::default(); len * stride];
        products(scan, chunk, unit.group, stride, &mut cb);
        let mut mixing = vec![T::default(); len * stride];
        let mut steps = Steps::new(len, plan.lanes);
        let mut y = Vec::new();
        for block in scan.blocks(&unit.heads) {
            let width = block.len() * p;
            y.resize(len * width, T::default());
            let y = &mut y[..len * width];
            carried(scan, chunk, unit, states, &block, y);
            for head in block.clone() {
                steps.fill(s, scan, chunk, head);
                mixing_columns(s, &steps, len, stride, &cb, &mut mixing, None);
                let column = (head - block.start) * p;
                if scan.has_state(chunk) {
                    decay_rows(s, &steps, y, (len, width), column..column + p);
                }
                mix(scan, chunk, head, (&mixing, stride), y, (width, column));
            }
            for i in 0..len {
                for head in block.clone() {
                    let at = (scan.token(chunk, i) * h + head) * p;
                    let from = i * width + (head - block.start) * p;
                    // SAFETY: these heads of this token belong to this unit alone.
                    let to = unsafe { out.range(at, p) };
                    finish(s, scan, head, at, &y[from..from + p], to);
                }
            }
        }
    }
}

/// `C·Hᵀ`, what every step of a chunk would read of the state before it if nothing decayed: `(len, width)`.
#[inline(always)]
pub(super) fn carried<T: Real>(
    scan: &Scan<'_, T>,
    chunk: &Chunk,
    unit: &Unit,
    states: &[T],
    block: &Range<usize>,
    out: &mut [T],
) {
    let Dims { h, p, n, .. } = scan.dims;
    let width = block.len() * p;
    if !scan.has_state(chunk) {
        out.fill(T::default());
        return;
    }
    let first = (unit.chunk * h + block.start) * p * n;
    multiply(
        MatrixMut::new(out, chunk.len, width),
        scan.coefficient(scan.c, chunk, unit.group),
        Matrix::new(&states[first..first + width * n], width, n).t(),
        false,
    );
}

/// Multiplies `columns` of each row of `x` by the decay from the chunk's beginning.
#[inline(always)]
pub(super) fn decay_rows<S: Simd, T: Real>(
    s: S,
    steps: &Steps<T>,
    x: &mut [T],
    (len, width): (usize, usize),
    columns: Range<usize>,
) {
    let lanes = T::lanes::<S>();
    for i in 0..len {
        let decay = T::splat(s, steps.from_start[i]);
        for x in x[i * width..][columns.clone()].chunks_mut(lanes) {
            let decayed = T::vmul(s, T::load(s, x), decay);
            T::store(s, x, decayed);
        }
    }
}

/// The matrix of one head by columns: `mixing[s][t]` is what step t reads of the input of step s. With `decays` the
/// decays between the two are kept as well, zero on the diagonal.
#[inline(always)]
pub(super) fn mixing_columns<S: Simd, T: Real>(
    s: S,
    steps: &Steps<T>,
    len: usize,
    stride: usize,
    cb: &[T],
    mixing: &mut [T],
    mut decays: Option<&mut [T]>,
) {
    for step in 0..len {
        let row = step * stride..(step + 1) * stride;
        let (cb, mixing) = (&cb[row.clone()], &mut mixing[row.clone()]);
        let weight = T::splat(s, steps.into_state[step]);
        let block = step / TRIANGLE * TRIANGLE;
        match decays.as_deref_mut() {
            Some(decays) => {
                let decays = &mut decays[row];
                steps.decays(s, step, |t, decay| {
                    T::store(s, &mut decays[t..], decay);
                    T::store(
                        s,
                        &mut mixing[t..],
                        T::vmul(s, T::vmul(s, T::load(s, &cb[t..]), decay), weight),
                    );
                });
                decays[block..=step].fill(T::default());
            }
            None => steps.decays(s, step, |t, decay| {
                T::store(s, &mut mixing[t..], T::vmul(s, T::vmul(s, T::load(s, &cb[t..]), decay), weight));
            }),
        }
        mixing[block..step].fill(T::default());
        mixing[step] = cb[step] * steps.into_output[step];
    }
}

/// Adds the matrix of one head times its inputs to columns of `y`.
#[inline(always)]
pub(super) fn mix<T: Real>(
    scan: &Scan<'_, T>,
    chunk: &Chunk,
    head: usize,
    (mixing, stride): (&[T], usize),
    y: &mut [T],
    (width, column): (usize, usize),
) {
    let Dims { h, p, .. } = scan.dims;
    let len = chunk.len;
    for s0 in (0..len).step_by(TRIANGLE) {
        let s1 = (s0 + TRIANGLE).min(len);
        multiply(
            MatrixMut::strided(y, s0 * width + column, (len - s0, width as isize), p),
            Matrix::strided(mixing, s0 * stride + s0, (s1 - s0, stride as isize), len - s0).t(),
            scan.some_rows(scan.x, chunk, s0..s1, h * p, head * p..(head + 1) * p),
            true,
        );
    }
}

/// Skip and gate of one head at one token, whose channels begin at `at`.
#[inline(always)]
fn finish<S: Simd, T: Real>(s: S, scan: &Scan<'_, T>, head: usize, at: usize, y: &[T], out: &mut [T]) {
    let (p, lanes) = (scan.dims.p, T::lanes::<S>());
    for i in (0..p).step_by(lanes) {
        let end = (i + lanes).min(p);
        let mut value = T::load(s, &y[i..end]);
        if let Some(d) = scan.d {
            let x = T::load(s, &scan.x[at + i..at + end]);
            value = T::vfma(s, skip(s, scan, d, head, i..end), x, value);
        }
        if let Some(z) = scan.z {
            let z = T::load(s, &z[at + i..at + end]);
            value = T::vmul(s, value, T::vmul(s, z, T::sigmoid(s, z)));
        }
        T::store(s, &mut out[i..end], value);
    }
}

/// D of some channels of a head.
#[inline(always)]
pub(super) fn skip<S: Simd, T: Real>(
    s: S,
    scan: &Scan<'_, T>,
    d: &[T],
    head: usize,
    channels: Range<usize>,
) -> T::V<S> {
    match scan.dims.d_per_channel {
        true => T::load(s, &d[head * scan.dims.p..][channels]),
        false => T::splat(s, d[head]),
    }
}
