//! Backward: the gradients of the states that leave the chunks, from the last chunk to the first, then all gradients of
//! each chunk on its own. What tokens or heads share is summed up in an order that depends on the shapes alone.
#![allow(unsafe_code)] // units write disjoint parts of the shared outputs

use super::backward_chunk::ChunkGradients;
use super::{Chunk, Plan, Scan, Steps, Unit, multiply};
use crate::matrix::{Matrix, MatrixMut};
use crate::shared::SharedMut;
use crate::simd::{Real, dispatch};
use crate::ssd::Dims;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Gradients in the shapes of the inputs.
pub(in crate::ssd) struct Gradients<T> {
    pub(in crate::ssd) x: Vec<T>,
    pub(in crate::ssd) dt: Vec<T>,
    pub(in crate::ssd) a: Vec<T>,
    pub(in crate::ssd) b: Vec<T>,
    pub(in crate::ssd) c: Vec<T>,
    pub(in crate::ssd) d: Option<Vec<T>>,
    pub(in crate::ssd) z: Option<Vec<T>>,
    pub(in crate::ssd) dt_bias: Option<Vec<T>>,
    pub(in crate::ssd) initial_state: Option<Vec<T>>,
    pub(in crate::ssd) into_state: Option<Vec<T>>,
    pub(in crate::ssd) into_output: Option<Vec<T>>,
}

/// Where units leave their gradients. B and C have one copy for each share of a group's heads; A, D and `dt_bias` one for
/// each chunk.
#[derive(Clone, Copy)]
pub(super) struct Places<'a, T> {
    pub(super) x: SharedMut<'a, T>,
    pub(super) dt: SharedMut<'a, T>,
    /// `(chunks, H)`.
    pub(super) a: SharedMut<'a, T>,
    /// `(shares, B, L, G, N)`.
    pub(super) b: SharedMut<'a, T>,
    pub(super) c: SharedMut<'a, T>,
    /// `(chunks, H, P)`.
    pub(super) d: Option<SharedMut<'a, T>>,
    pub(super) z: Option<SharedMut<'a, T>>,
    /// `(chunks, H)`.
    pub(super) dt_bias: Option<SharedMut<'a, T>>,
    pub(super) weights: Option<(SharedMut<'a, T>, SharedMut<'a, T>)>,
}

/// What passes between chunks.
#[derive(Clone, Copy)]
pub(super) struct Passed<'a, T> {
    /// `(chunks, H, P, N)`: the state before each chunk.
    pub(super) states: &'a [T],
    /// `(chunks, H, P, N)`: the gradient of the state after each chunk.
    pub(super) grads: &'a [T],
    /// `(chunks, H)`: the gradient of the decay over the whole chunk, times that decay.
    pub(super) whole: &'a [T],
    /// The gradient of the output, if the loss depends on it.
    pub(super) dy: Option<&'a [T]>,
    /// Whether the loss depends on the last states.
    pub(super) from_last: bool,
}

impl<T: Real> Passed<'_, T> {
    /// Whether a gradient other than zero comes from behind a chunk.
    pub(super) fn has_grad(&self, plan: &Plan, chunk: usize) -> bool {
        let is_last = plan.of_segment[plan.chunks[chunk].segment].end == chunk + 1;
        self.from_last || !is_last
    }
}

/// Gradients given those of the output and of the last states; `None` stands for zero.
pub(in crate::ssd) fn backward<T: Real>(
    scan: &Scan<'_, T>,
    states: &[T],
    dy: Option<&[T]>,
    dlast: Option<&[T]>,
) -> Gradients<T> {
    let plan = Plan::new(scan);
    let Dims { h, p, n, .. } = scan.dims;
    let state = h * p * n;
    let zeros = |len: usize| vec![T::default(); len];

    let mut grads = zeros(plan.chunks.len() * state);
    let mut whole = zeros(plan.chunks.len() * h);
    let mut initial = scan.initial_state.map(|initial| zeros(initial.len()));
    if let Some(dy) = dy {
        let grads = SharedMut::new(&mut grads);
        plan.units.par_iter().for_each(|unit| {
            let chunk = &plan.chunks[unit.chunk];
            if scan.has_state(chunk) {
                dispatch(Readers { scan, plan: &plan, grads, dy, unit, chunk });
            }
        });
    }
    {
        let (grads, whole) = (SharedMut::new(&mut grads), SharedMut::new(&mut whole));
        let initial = initial.as_mut().map(|x| SharedMut::new(x));
        (0..scan.segments.len() * h).into_par_iter().for_each(|i| {
            let (segment, head) = (i / h, i % h);
            dispatch(Passing { scan, plan: &plan, states, grads, whole, initial, dlast, segment, head });
        });
    }
    let passed = Passed { states, grads: &grads, whole: &whole, dy, from_last: dlast.is_some() };

    let (mut x, mut dt) = (zeros(scan.x.len()), zeros(scan.dt.len()));
    let (mut b, mut c) = (zeros(plan.shares * scan.b.len()), zeros(plan.shares * scan.c.len()));
    let mut a = zeros(plan.chunks.len() * h);
    let mut d = scan.d.map(|_| zeros(plan.chunks.len() * h * p));
    let mut dt_bias = scan.dt_bias.map(|_| zeros(plan.chunks.len() * h));
    let mut z = scan.z.map(|_| zeros(scan.x.len()));
    let mut into_state = scan.weights.map(|_| zeros(scan.dt.len()));
    let mut into_output = into_state.clone();
    let places = Places {
        x: SharedMut::new(&mut x),
        dt: SharedMut::new(&mut dt),
        a: SharedMut::new(&mut a),
        b: SharedMut::new(&mut b),
        c: SharedMut::new(&mut c),
        d: d.as_mut().map(|x| SharedMut::new(x)),
        z: z.as_mut().map(|x| SharedMut::new(x)),
        dt_bias: dt_bias.as_mut().map(|x| SharedMut::new(x)),
        weights: into_state
            .as_mut()
            .zip(into_output.as_mut())
            .map(|(a, b)| (SharedMut::new(a), SharedMut::new(b))),
    };
    plan.units.par_iter().for_each(|unit| {
        let chunk = &plan.chunks[unit.chunk];
        dispatch(ChunkGradients { scan, plan: &plan, passed, places, unit, chunk });
    });

    let d = d.map(|d| {
        let channels = sum_parts(&d, h * p);
        match scan.dims.d_per_channel {
            true => channels,
            false => channels.chunks_exact(p).map(sum).collect(),
        }
    });
    Gradients {
        x,
        dt,
        a: sum_parts(&a, h),
        b: join_shares(b, scan.b.len()),
        c: join_shares(c, scan.c.len()),
        d,
        z,
        dt_bias: dt_bias.map(|x| sum_parts(&x, h)),
        initial_state: initial,
        into_state,
        into_output,
    }
}

fn sum<T: Real>(x: &[T]) -> T {
    x.iter().fold(T::default(), |sum, &x| sum + x)
}

/// The sum of consecutive vectors of `len`.
fn sum_parts<T: Real>(parts: &[T], len: usize) -> Vec<T> {
    let mut out = vec![T::default(); len];
    for part in parts.chunks_exact(len) {
        out.iter_mut().zip(part).for_each(|(out, &x)| *out += x);
    }
    out
}

/// The same for few long vectors, in place.
fn join_shares<T: Real>(mut parts: Vec<T>, len: usize) -> Vec<T> {
    let (out, others) = parts.split_at_mut(len);
    for other in others.chunks_exact(len) {
        out.par_iter_mut().with_min_len(1 << 14).zip(other).for_each(|(out, &x)| *out += x);
    }
    parts.truncate(len);
    parts
}

/// The gradient of a unit's output before the gate, `(len, width)`.
#[inline(always)]
pub(super) fn ungated<S: Simd, T: Real>(
    s: S,
    scan: &Scan<'_, T>,
    chunk: &Chunk,
    block: &std::ops::Range<usize>,
    dy: &[T],
    out: &mut [T],
) {
    let Dims { h, p, .. } = scan.dims;
    let (width, lanes) = (block.len() * p, T::lanes::<S>());
    for i in 0..chunk.len {
        let from = (scan.token(chunk, i) * h + block.start) * p;
        let (dy, out) = (&dy[from..from + width], &mut out[i * width..(i + 1) * width]);
        match scan.z {
            None => out.copy_from_slice(dy),
            Some(z) => {
                let z = &z[from..from + width];
                for ((dy, z), out) in dy.chunks(lanes).zip(z.chunks(lanes)).zip(out.chunks_mut(lanes)) {
                    let z = T::load(s, z);
                    let gate = T::vmul(s, z, T::sigmoid(s, z));
                    T::store(s, out, T::vmul(s, T::load(s, dy), gate));
                }
            }
        }
    }
}

/// The gradient that a chunk's readers give to the state before it, left where that of the state after it will stand.
struct Readers<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    grads: SharedMut<'a, T>,
    dy: &'a [T],
    unit: &'a Unit,
    chunk: &'a Chunk,
}

impl<T: Real> WithSimd for Readers<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, grads, dy, unit, chunk } = self;
        let Dims { h, p, n, .. } = scan.dims;
        let mut steps = Steps::new(chunk.len, plan.lanes);
        let mut scaled = Vec::new();
        for block in scan.blocks(&unit.heads) {
            let width = block.len() * p;
            scaled.resize(chunk.len * width, T::default());
            let scaled = &mut scaled[..chunk.len * width];
            ungated(s, scan, chunk, &block, dy, scaled);
            for head in block.clone() {
                steps.fill(s, scan, chunk, head);
                let column = (head - block.start) * p;
                super::forward::decay_rows(s, &steps, scaled, (chunk.len, width), column..column + p);
            }
            // SAFETY: these heads' gradients of this chunk belong to this unit alone.
            let grad = unsafe { grads.range((unit.chunk * h + block.start) * p * n, width * n) };
            multiply(
                MatrixMut::new(grad, width, n),
                Matrix::new(scaled, chunk.len, width).t(),
                scan.coefficient(scan.c, chunk, unit.group),
                false,
            );
        }
    }
}

/// Turns what each chunk gives to the state before it into the gradient of the state after it, for one head of one
/// segment, from the last chunk to the first.
struct Passing<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    states: &'a [T],
    grads: SharedMut<'a, T>,
    whole: SharedMut<'a, T>,
    initial: Option<SharedMut<'a, T>>,
    dlast: Option<&'a [T]>,
    segment: usize,
    head: usize,
}

impl<T: Real> WithSimd for Passing<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, states, grads, whole, initial, dlast, segment, head } = self;
        let Dims { h, p, n, .. } = scan.dims;
        let (size, lanes) = (p * n, T::lanes::<S>());
        let at = (segment * h + head) * size;
        let mut grad = match dlast {
            Some(dlast) => dlast[at..at + size].to_vec(),
            None => vec![T::default(); size],
        };
        for index in plan.of_segment[segment].clone().rev() {
            let chunk = &plan.chunks[index];
            let mut steps = Steps::new(chunk.len, plan.lanes);
            steps.fill(s, scan, chunk, head);
            let decay = T::splat(s, steps.whole(chunk));
            let from = (index * h + head) * size;
            // SAFETY: this head's gradients of this segment's chunks belong to this task alone.
            let kept = unsafe { grads.range(from, size) };
            let mut product = T::vzero(s);
            for i in (0..size).step_by(lanes) {
                let end = (i + lanes).min(size);
                let (before, after) = (T::load(s, &kept[i..end]), T::load(s, &grad[i..end]));
                let decayed = T::vmul(s, decay, after);
                product = T::vfma(s, T::load(s, &states[from + i..from + end]), decayed, product);
                T::store(s, &mut kept[i..end], after);
                T::store(s, &mut grad[i..end], T::vadd(s, decayed, before));
            }
            // SAFETY: as above.
            let whole = unsafe { whole.range(index * h + head, 1) };
            whole[0] = T::reduce_sum(s, product);
        }
        if let Some(initial) = initial {
            // SAFETY: this head's initial state of this segment belongs to this task alone.
            unsafe { initial.range(at, size) }.copy_from_slice(&grad);
        }
    }
}
