//! Cross-entropy on the CPU. Rows are divided into groups, the tasks of rayon, and every group goes through its rows in
//! tiles:
//!
//! 1. logits of a tile of rows and a tile of classes, by a matrix product; the row's largest and Σ exp(logit - largest);
//! 2. the same logits become softmax minus one-hot, and two products add that to the gradients.
//!
//! Where all classes fit one tile, both steps are one, and no logit is computed twice. Else the first step runs over
//! all tiles of classes before the second does. The gradient of the weights is summed in each group apart and then over
//! the groups in order: the number of groups does not depend on that of threads, so neither does any bit.

use crate::matrix::{Matrix, multiply_on_one_core as multiply};
use crate::simd::{Real, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Most groups of rows.
const GROUPS: usize = 16;
/// Rows of a tile: enough for a product to be worth packing its operands.
const ROWS: usize = 128;
/// Weights in a tile of classes.
const WEIGHTS: usize = 1 << 18;

/// Classes in a tile.
fn classes_of_tile(d: usize, classes: usize) -> usize {
    (WEIGHTS / d).clamp(256, 1 << 13).min(classes)
}

/// What all tasks see.
struct Problem<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    targets: &'a [u32],
    d: usize,
    classes: usize,
    tile: usize,
}

/// One group's rows, with its share of what is computed.
struct Group<'a, T> {
    x: &'a [T],
    targets: &'a [u32],
    dx: &'a mut [T],
    /// Largest logit of each row so far.
    largest: Vec<T>,
    /// Σ exp(logit - largest) of each row so far.
    sum: Vec<T>,
    /// Logit of the target of each row.
    chosen: Vec<T>,
    dweight: Vec<T>,
    logits: Vec<T>,
}

/// The gradients of the mean loss, in the shapes of `x` and `weight`.
pub(super) struct Gradients<T> {
    pub(super) x: Vec<T>,
    pub(super) weight: Vec<T>,
}

/// The mean loss and, if asked for, its gradients.
pub(super) fn forward<T: Real>(
    x: &[T],
    weight: &[T],
    targets: &[u32],
    d: usize,
    with_gradients: bool,
) -> (f64, Option<Gradients<T>>) {
    let (rows, classes) = (targets.len(), weight.len() / d);
    let problem = Problem { x, weight, targets, d, classes, tile: classes_of_tile(d, classes) };
    let size = rows.div_ceil(GROUPS).next_multiple_of(ROWS);
    let mut dx = vec![T::default(); if with_gradients { x.len() } else { 0 }];
    let mut dx_parts: Vec<&mut [T]> = match with_gradients {
        true => dx.chunks_mut(size * d).collect(),
        false => (0..rows.div_ceil(size)).map(|_| &mut [][..]).collect(),
    };
    let mut groups: Vec<Group<'_, T>> = dx_parts
        .iter_mut()
        .enumerate()
        .map(|(i, dx)| problem.group(i * size, size.min(rows - i * size), dx, with_gradients))
        .collect();

    let tiles: Vec<usize> = (0..classes).step_by(problem.tile).collect();
    let mut dweight = vec![T::default(); if with_gradients { weight.len() } else { 0 }];
    if !with_gradients || tiles.len() > 1 {
        groups.par_iter_mut().for_each(|group| {
            for &class in &tiles {
                problem.run(group, class, Step { count: true, differentiate: false });
            }
        });
    }
    if with_gradients {
        for &class in &tiles {
            let step = Step { count: tiles.len() == 1, differentiate: true };
            groups.par_iter_mut().for_each(|group| problem.run(group, class, step));
            let of_tile = &mut dweight[class * d..(class + problem.tile).min(classes) * d];
            of_tile.par_chunks_mut(1 << 12).enumerate().for_each(|(i, out)| {
                for group in &groups {
                    let part = &group.dweight[i << 12..];
                    out.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
                }
            });
        }
    }
    let loss: f64 = groups.iter().map(Group::loss).sum();
    drop(groups);
    (loss / rows as f64, with_gradients.then_some(Gradients { x: dx, weight: dweight }))
}

#[derive(Clone, Copy)]
struct Step {
    /// Whether the tile's logits are still to be counted into the rows' largest and sum.
    count: bool,
    differentiate: bool,
}

impl<T: Real> Group<'_, T> {
    fn loss(&self) -> f64 {
        let rows = self.largest.iter().zip(&self.sum).zip(&self.chosen);
        rows.map(|((largest, sum), chosen)| largest.to_f64() - chosen.to_f64() + sum.to_f64().ln()).sum()
    }
}

impl<'a, T: Real> Problem<'a, T> {
    fn group<'g>(&self, first: usize, rows: usize, dx: &'g mut [T], with_gradients: bool) -> Group<'g, T>
    where
        'a: 'g,
    {
        Group {
            x: &self.x[first * self.d..(first + rows) * self.d],
            targets: &self.targets[first..first + rows],
            dx,
            largest: vec![T::from_f64(f64::NEG_INFINITY); rows],
            sum: vec![T::default(); rows],
            chosen: vec![T::default(); rows],
            dweight: vec![T::default(); if with_gradients { self.tile * self.d } else { 0 }],
            logits: vec![T::default(); ROWS * self.tile],
        }
    }

    /// All rows of a group against the tile of classes that starts at `class`.
    fn run(&self, group: &mut Group<'_, T>, class: usize, step: Step) {
        let (d, tile) = (self.d, self.tile.min(self.classes - class));
        let weight = Matrix::new(&self.weight[class * d..(class + tile) * d], tile, d);
        let scale = T::from_f64(1.0 / self.targets.len() as f64);
        for start in (0..group.targets.len()).step_by(ROWS) {
            let rows = ROWS.min(group.targets.len() - start);
            let x = Matrix::new(&group.x[start * d..(start + rows) * d], rows, d);
            let logits = &mut group.logits[..rows * tile];
            multiply(logits, x, weight.t(), false);
            for (row, logits) in logits.chunks_exact_mut(tile).enumerate() {
                let row = start + row;
                let target = (group.targets[row] as usize).checked_sub(class).filter(|&target| target < tile);
                if step.count {
                    let (largest, sum) = (&mut group.largest[row], &mut group.sum[row]);
                    if let Some(target) = target {
                        group.chosen[row] = logits[target];
                    }
                    dispatch(Count { logits, largest, sum, keep_terms: step.differentiate });
                }
                if step.differentiate {
                    let factor = scale / group.sum[row];
                    let largest = (!step.count).then_some(group.largest[row]);
                    dispatch(Softmax { logits, largest, factor });
                    if let Some(target) = target {
                        logits[target] -= scale;
                    }
                }
            }
            if step.differentiate {
                let grad = Matrix::new(logits, rows, tile);
                multiply(&mut group.dx[start * d..(start + rows) * d], grad, weight, class > 0);
                multiply(&mut group.dweight[..tile * d], grad.t(), x, start > 0);
            }
        }
    }
}

/// Counts logits into the row's largest and sum; leaves exp(logit - largest) in their place if asked to.
struct Count<'a, T> {
    logits: &'a mut [T],
    largest: &'a mut T,
    sum: &'a mut T,
    keep_terms: bool,
}

impl<T: Real> WithSimd for Count<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let largest = largest_of(self.logits, *self.largest);
        let shift = T::splat(s, largest);
        let log2e = T::splat(s, T::from_f64(std::f64::consts::LOG2_E));
        let lanes = T::lanes::<S>();
        let mut sum = T::vzero(s);
        let mut chunks = self.logits.chunks_exact_mut(lanes);
        for chunk in &mut chunks {
            let term = T::vexp2(s, T::vmul(s, T::vsub(s, T::load(s, chunk), shift), log2e));
            sum = T::vadd(s, sum, term);
            if self.keep_terms {
                T::store(s, chunk, term);
            }
        }
        let mut rest = T::default();
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            let terms = T::vexp2(s, T::vmul(s, T::vsub(s, T::load(s, tail), shift), log2e));
            let mut kept = vec_of(tail);
            T::store(s, &mut kept[..tail.len()], terms);
            kept[..tail.len()].iter().for_each(|&term| rest += term);
            if self.keep_terms {
                tail.copy_from_slice(&kept[..tail.len()]);
            }
        }
        let of_these = T::reduce_sum(s, sum) + rest;
        // What was summed before was shifted by a smaller maximum.
        let before = match *self.sum == T::default() {
            true => T::default(),
            false => *self.sum * T::from_f64((self.largest.to_f64() - largest.to_f64()).exp()),
        };
        *self.sum = before + of_these;
        *self.largest = largest;
    }
}

/// Room for fewer elements than the widest register has.
#[inline(always)]
fn vec_of<T: Real>(tail: &[T]) -> [T; 32] {
    debug_assert!(tail.len() <= 32);
    [T::default(); 32]
}

/// The largest of `values` and `start`. A NaN is passed over here; it shows in the sum.
#[inline(always)]
fn largest_of<T: Real>(values: &[T], start: T) -> T {
    let mut lanes = [start; 32];
    let mut chunks = values.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let larger = |a: T, &x: &T| if x > a { x } else { a };
    let rest = chunks.remainder().iter().fold(start, larger);
    lanes.iter().fold(rest, larger)
}

/// Turns logits, or with `largest` absent exp(logit - largest), into their share of the row's gradient.
struct Softmax<'a, T> {
    logits: &'a mut [T],
    largest: Option<T>,
    factor: T,
}

impl<T: Real> WithSimd for Softmax<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let factor = T::splat(s, self.factor);
        let Some(largest) = self.largest else {
            for chunk in self.logits.chunks_mut(T::lanes::<S>()) {
                let scaled = T::vmul(s, T::load(s, chunk), factor);
                T::store(s, chunk, scaled);
            }
            return;
        };
        let shift = T::splat(s, largest);
        let log2e = T::splat(s, T::from_f64(std::f64::consts::LOG2_E));
        for chunk in self.logits.chunks_mut(T::lanes::<S>()) {
            let term = T::vexp2(s, T::vmul(s, T::vsub(s, T::load(s, chunk), shift), log2e));
            T::store(s, chunk, T::vmul(s, term, factor));
        }
    }
}
