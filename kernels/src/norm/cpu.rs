//! Normalisation on the CPU: a row at a time, in vectors along the channels, rows spread over the cores.
//!
//! Nothing is saved for backward: a row fits the first-level cache, so its statistics are recomputed there.
#![allow(unsafe_code)] // outputs are not cleared before they are written

use crate::shared::{unwritten, written};
use crate::simd::{Real, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// The arguments as slices; shapes as in [`super::Norm`].
pub(super) struct Norm<'a, T> {
    pub(super) layer: bool,
    pub(super) x: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) bias: Option<&'a [T]>,
    pub(super) residual: Option<&'a [T]>,
    pub(super) z: Option<&'a [T]>,
    pub(super) norm_before_gate: bool,
    pub(super) group: usize,
    pub(super) eps: T,
}

/// Rows of one task: enough to be worth a task, few enough tasks that their weight gradients stay small.
fn rows_of_task(rows: usize) -> usize {
    rows.div_ceil(256).max(16)
}

/// The output and, if asked for, `x + residual`.
pub(super) fn forward<T: Real>(norm: &Norm<'_, T>, with_sum: bool) -> (Vec<T>, Option<Vec<T>>) {
    let d = norm.weight.len();
    let size = rows_of_task(norm.x.len() / d) * d;
    let mut y = unwritten(norm.x.len());
    let mut sum = unwritten(if with_sum { norm.x.len() } else { 0 });
    if with_sum {
        let tasks = y.par_chunks_mut(size).zip(sum.par_chunks_mut(size)).enumerate();
        tasks.for_each(|(i, (y, sum))| dispatch(Forward { norm, first: i * size, y, sum }));
    } else {
        let tasks = y.par_chunks_mut(size).enumerate();
        tasks.for_each(|(i, y)| dispatch(Forward { norm, first: i * size, y, sum: &mut [] }));
    }
    // SAFETY: the tasks are all rows.
    let (y, sum) = unsafe { (written(y), written(sum)) };
    (y, with_sum.then_some(sum))
}

/// Buffers for one row.
struct Row<T> {
    /// x + residual.
    sum: Vec<T>,
    /// Normalised values.
    n: Vec<T>,
}

impl<T: Real> Norm<'_, T> {
    /// Fills `row` for the row that starts at `at`; returns 1/scale of each group.
    #[inline(always)]
    fn normalise<S: Simd>(&self, s: S, at: usize, row: &mut Row<T>, inverse: &mut [T]) {
        let (d, lanes) = (self.weight.len(), T::lanes::<S>());
        for start in (0..d).step_by(lanes) {
            let columns = start..(start + lanes).min(d);
            let mut v = T::load(s, &self.x[at..at + d][columns.clone()]);
            if let Some(residual) = self.residual {
                v = T::vadd(s, v, T::load(s, &residual[at..at + d][columns.clone()]));
            }
            T::store(s, &mut row.sum[columns.clone()], v);
            if let (Some(z), false) = (self.z, self.norm_before_gate) {
                let z = T::load(s, &z[at..at + d][columns.clone()]);
                v = T::vmul(s, v, T::vmul(s, z, T::sigmoid(s, z)));
            }
            T::store(s, &mut row.n[columns], v);
        }
        let size = T::from_f64(self.group as f64);
        for (group, inverse) in row.n.chunks_exact_mut(self.group).zip(inverse) {
            if self.layer {
                let mean = T::splat(s, sum_of(s, group, |v| v) / size);
                for v in group.chunks_mut(lanes) {
                    let centred = T::vsub(s, T::load(s, v), mean);
                    T::store(s, v, centred);
                }
            }
            let square = sum_of(s, group, |v| T::vmul(s, v, v));
            let scale = (square / size + self.eps).to_f64().sqrt();
            *inverse = T::from_f64(1.0 / scale);
            let factor = T::splat(s, *inverse);
            for v in group.chunks_mut(lanes) {
                let scaled = T::vmul(s, T::load(s, v), factor);
                T::store(s, v, scaled);
            }
        }
    }
}

/// Σ f(v) over a slice. Lanes past its end load as zero; `f(0)` must be 0.
#[inline(always)]
fn sum_of<S: Simd, T: Real>(s: S, values: &[T], f: impl Fn(T::V<S>) -> T::V<S>) -> T {
    let mut sum = T::vzero(s);
    for v in values.chunks(T::lanes::<S>()) {
        sum = T::vadd(s, sum, f(T::load(s, v)));
    }
    T::reduce_sum(s, sum)
}

/// Σ a·b over two slices.
#[inline(always)]
fn dot<S: Simd, T: Real>(s: S, a: &[T], b: &[T]) -> T {
    let mut sum = T::vzero(s);
    let lanes = T::lanes::<S>();
    for (a, b) in a.chunks(lanes).zip(b.chunks(lanes)) {
        sum = T::vfma(s, T::load(s, a), T::load(s, b), sum);
    }
    T::reduce_sum(s, sum)
}

/// Rows from element `first` on.
struct Forward<'a, T> {
    norm: &'a Norm<'a, T>,
    first: usize,
    y: &'a mut [MaybeUninit<T>],
    sum: &'a mut [MaybeUninit<T>],
}

impl<T: Real> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { norm, first, y, sum } = self;
        let (d, lanes) = (norm.weight.len(), T::lanes::<S>());
        let mut row = Row { sum: vec![T::default(); d], n: vec![T::default(); d] };
        let mut inverse = vec![T::default(); d / norm.group];
        for (i, y) in y.chunks_exact_mut(d).enumerate() {
            let at = first + i * d;
            norm.normalise(s, at, &mut row, &mut inverse);
            if let Some(sum) = sum.get_mut(i * d..(i + 1) * d) {
                sum.write_copy_of_slice(&row.sum);
            }
            for start in (0..d).step_by(lanes) {
                let columns = start..(start + lanes).min(d);
                let mut v = T::vmul(
                    s,
                    T::load(s, &row.n[columns.clone()]),
                    T::load(s, &norm.weight[columns.clone()]),
                );
                if let Some(bias) = norm.bias {
                    v = T::vadd(s, v, T::load(s, &bias[columns.clone()]));
                }
                if let (Some(z), true) = (norm.z, norm.norm_before_gate) {
                    let z = T::load(s, &z[at..at + d][columns.clone()]);
                    v = T::vmul(s, v, T::vmul(s, z, T::sigmoid(s, z)));
                }
                T::put(s, &mut y[columns], v);
            }
        }
    }
}

/// Gradients in the shapes of the inputs; that of `residual` equals that of `x`.
pub(super) struct Gradients<T> {
    pub(super) x: Vec<T>,
    pub(super) weight: Vec<T>,
    pub(super) bias: Option<Vec<T>>,
    pub(super) z: Option<Vec<T>>,
}

/// Gradients given those of the output and of `x + residual`; `None` stands for zero.
pub(super) fn backward<T: Real>(norm: &Norm<'_, T>, dy: Option<&[T]>, dsum: Option<&[T]>) -> Gradients<T> {
    let d = norm.weight.len();
    let size = rows_of_task(norm.x.len() / d) * d;
    let zeros = vec![T::default(); if dy.is_none() { norm.x.len() } else { 0 }];
    let dy = dy.unwrap_or(&zeros);
    let mut dx = unwritten(norm.x.len());
    let mut dz = unwritten(norm.z.map_or(0, <[T]>::len));
    // Each task's gradients of weight and bias.
    let task = |i: usize, dx: &mut [MaybeUninit<T>], dz: &mut [MaybeUninit<T>]| {
        let mut sums = vec![T::default(); 2 * d];
        dispatch(Backward { norm, first: i * size, dy, dsum, dx, dz, sums: &mut sums });
        sums
    };
    let sums: Vec<Vec<T>> = if norm.z.is_some() {
        let tasks = dx.par_chunks_mut(size).zip(dz.par_chunks_mut(size)).enumerate();
        tasks.map(|(i, (dx, dz))| task(i, dx, dz)).collect()
    } else {
        dx.par_chunks_mut(size).enumerate().map(|(i, dx)| task(i, dx, &mut [])).collect()
    };
    let mut total = vec![T::default(); 2 * d];
    for sums in &sums {
        total.iter_mut().zip(sums).for_each(|(x, &y)| *x += y);
    }
    let bias = total.split_off(d);
    // SAFETY: the tasks are all rows.
    let (dx, dz) = unsafe { (written(dx), written(dz)) };
    Gradients { x: dx, weight: total, bias: norm.bias.map(|_| bias), z: norm.z.map(|_| dz) }
}

/// Rows from element `first` on.
struct Backward<'a, T> {
    norm: &'a Norm<'a, T>,
    first: usize,
    dy: &'a [T],
    dsum: Option<&'a [T]>,
    dx: &'a mut [MaybeUninit<T>],
    dz: &'a mut [MaybeUninit<T>],
    sums: &'a mut [T],
}

impl<T: Real> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { norm, first, dy, dsum, dx, dz, sums } = self;
        let (d, lanes) = (norm.weight.len(), T::lanes::<S>());
        let mut row = Row { sum: vec![T::default(); d], n: vec![T::default(); d] };
        let mut inverse = vec![T::default(); d / norm.group];
        let mut dn = vec![T::default(); d];
        let (dweight, dbias) = sums.split_at_mut(d);
        for (i, dx) in dx.chunks_exact_mut(d).enumerate() {
            let at = first + i * d;
            let gate = |columns: std::ops::Range<usize>| {
                norm.z.map(|z| T::silu_and_slope(s, T::load(s, &z[at..at + d][columns])))
            };
            norm.normalise(s, at, &mut row, &mut inverse);
            for start in (0..d).step_by(lanes) {
                let columns = start..(start + lanes).min(d);
                let n = T::load(s, &row.n[columns.clone()]);
                let weight = T::load(s, &norm.weight[columns.clone()]);
                let mut g = T::load(s, &dy[at..at + d][columns.clone()]);
                if norm.norm_before_gate
                    && let Some((silu, slope)) = gate(columns.clone())
                {
                    let mut y = T::vmul(s, n, weight);
                    if let Some(bias) = norm.bias {
                        y = T::vadd(s, y, T::load(s, &bias[columns.clone()]));
                    }
                    T::put(s, &mut dz[i * d..][columns.clone()], T::vmul(s, g, T::vmul(s, y, slope)));
                    g = T::vmul(s, g, silu);
                }
                let sum = T::vfma(s, g, n, T::load(s, &dweight[columns.clone()]));
                T::store(s, &mut dweight[columns.clone()], sum);
                let sum = T::vadd(s, g, T::load(s, &dbias[columns.clone()]));
                T::store(s, &mut dbias[columns.clone()], sum);
                T::store(s, &mut dn[columns], T::vmul(s, g, weight));
            }
            // dv = (dn - mean(dn) - n·mean(dn·n)) / scale; RMS has no mean(dn).
            let size = T::from_f64(norm.group as f64);
            for (k, &inverse) in inverse.iter().enumerate() {
                let group = k * norm.group..(k + 1) * norm.group;
                let (dn, n) = (&mut dn[group.clone()], &row.n[group]);
                let along = T::splat(s, dot(s, dn, n) / size);
                let mean = if norm.layer { sum_of(s, dn, |v| v) / size } else { T::default() };
                let (mean, inverse) = (T::splat(s, mean), T::splat(s, inverse));
                for (dn, n) in dn.chunks_mut(lanes).zip(n.chunks(lanes)) {
                    let centred = T::vsub(s, T::load(s, dn), mean);
                    let v = T::vsub(s, centred, T::vmul(s, along, T::load(s, n)));
                    T::store(s, dn, T::vmul(s, v, inverse));
                }
            }
            for start in (0..d).step_by(lanes) {
                let columns = start..(start + lanes).min(d);
                let mut v = T::load(s, &dn[columns.clone()]);
                if !norm.norm_before_gate
                    && let Some((silu, slope)) = gate(columns.clone())
                {
                    let sum = T::load(s, &row.sum[columns.clone()]);
                    T::put(s, &mut dz[i * d..][columns.clone()], T::vmul(s, v, T::vmul(s, sum, slope)));
                    v = T::vmul(s, v, silu);
                }
                if let Some(dsum) = dsum {
                    v = T::vadd(s, v, T::load(s, &dsum[at..at + d][columns.clone()]));
                }
                T::put(s, &mut dx[columns], v);
            }
        }
    }
}
