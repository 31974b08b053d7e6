//! State space duality on the CPU: matrix products for each chunk of tokens and each group of heads.
//!
//! Work is cut into *units* of one chunk × the heads of one group, which rayon spreads over the cores; if there are few,
//! the heads of a group are shared out to several units. What passes between the chunks of a segment, the state or its
//! gradient, is worked out between two rounds of units by a short pass over segments × heads. How work is cut depends on
//! the shapes alone, never on the number of threads, so results are the same bits on any machine of one instruction set.
//!
//! Matrices of tokens × tokens are kept by columns, `[s][t]` with the reading token t last: one register then holds many
//! readers of one token, and the part above the diagonal is the beginning of each row.

use super::Dims;
use crate::matrix::{self, Matrix, MatrixMut};
use crate::segments::Segment;
use crate::simd::{Real, dispatch};
use gemm::Parallelism;
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::ops::Range;

mod backward;
mod backward_chunk;
mod forward;

pub(super) use backward::backward;
pub(super) use forward::forward;

/// Channels that are worked on at once: their values for one chunk stay in the second-level cache.
const BLOCK_CHANNELS: usize = 256;
/// Columns of a triangular matrix that one product takes; it computes the half square above their diagonal in vain.
/// A multiple of every register's lanes.
const TRIANGLE: usize = 32;
/// Units that we want at least.
const ENOUGH_UNITS: usize = 16;
/// Decays are no faster than 2 to this power for one token, which is nothing in f32 and in f64; keeps sums small.
const FASTEST: f64 = -16_000.0;

/// The arguments of a scan as slices; shapes as in [`super::Ssd`].
pub(super) struct Scan<'a, T> {
    pub(super) x: &'a [T],
    pub(super) dt: &'a [T],
    pub(super) a: &'a [T],
    pub(super) b: &'a [T],
    pub(super) c: &'a [T],
    pub(super) d: Option<&'a [T]>,
    pub(super) z: Option<&'a [T]>,
    pub(super) dt_bias: Option<&'a [T]>,
    pub(super) initial_state: Option<&'a [T]>,
    /// Into the state, and into a token's own output.
    pub(super) weights: Option<(&'a [T], &'a [T])>,
    pub(super) segments: &'a [Segment],
    pub(super) dims: Dims,
    pub(super) softplus: bool,
    pub(super) dt_limit: Option<(T, T)>,
    pub(super) reverse: bool,
    pub(super) chunk: usize,
}

/// Steps `start .. start + len` of a segment, counted in scan order.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    segment: usize,
    start: usize,
    len: usize,
}

/// Some heads of one group over one chunk.
#[derive(Clone, Debug)]
struct Unit {
    chunk: usize,
    group: usize,
    heads: Range<usize>,
    /// Which share of the group's heads this is.
    share: usize,
}

/// How one scan is cut.
struct Plan {
    chunks: Vec<Chunk>,
    /// The chunks of each segment.
    of_segment: Vec<Range<usize>>,
    units: Vec<Unit>,
    /// Units that share one group of heads.
    shares: usize,
    lanes: usize,
}

struct LaneCount<T>(PhantomData<T>);

impl<T: Real> WithSimd for LaneCount<T> {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        T::lanes::<S>()
    }
}

impl Plan {
    fn new<T: Real>(scan: &Scan<'_, T>) -> Self {
        let (mut chunks, mut of_segment) = (Vec::new(), Vec::new());
        for (segment, s) in scan.segments.iter().enumerate() {
            let first = chunks.len();
            let starts = (0..s.len()).step_by(scan.chunk);
            chunks.extend(starts.map(|start| Chunk { segment, start, len: scan.chunk.min(s.len() - start) }));
            of_segment.push(first..chunks.len());
        }
        let Dims { h, g, .. } = scan.dims;
        let in_group = h / g;
        let wanted = ENOUGH_UNITS.div_ceil((chunks.len() * g).max(1)).min(in_group);
        let step = in_group.div_ceil(wanted);
        let mut units = Vec::new();
        for chunk in 0..chunks.len() {
            for group in 0..g {
                let heads = (0..in_group)
                    .step_by(step)
                    .map(|first| group * in_group + first..group * in_group + (first + step).min(in_group));
                units.extend(heads.enumerate().map(|(share, heads)| Unit { chunk, group, heads, share }));
            }
        }
        let lanes = dispatch(LaneCount::<T>(PhantomData));
        Self { chunks, of_segment, units, shares: in_group.div_ceil(step), lanes }
    }

    /// Rows of matrices of tokens × tokens are this long, with a chunk's length to begin with.
    fn stride(&self, len: usize) -> usize {
        len.next_multiple_of(self.lanes)
    }
}

impl<T: Real> Scan<'_, T> {
    /// Row-major token index of scan step `step` of a chunk.
    #[inline(always)]
    fn token(&self, chunk: &Chunk, step: usize) -> usize {
        let s = &self.segments[chunk.segment];
        let step = chunk.start + step;
        let position = if self.reverse { s.end - 1 - step } else { s.start + step };
        s.row * self.dims.len + position
    }

    /// Some rows of a chunk, in scan order, of a tensor whose tokens have `width` values: `columns` of them.
    fn some_rows<'a>(
        &self,
        x: &'a [T],
        chunk: &Chunk,
        steps: Range<usize>,
        width: usize,
        columns: Range<usize>,
    ) -> Matrix<'a, T> {
        let stride = if self.reverse { -(width as isize) } else { width as isize };
        let first = self.token(chunk, steps.start) * width + columns.start;
        Matrix::strided(x, first, (steps.len(), stride), columns.len())
    }

    /// B or C of one group over a chunk.
    fn coefficient<'a>(&self, x: &'a [T], chunk: &Chunk, group: usize) -> Matrix<'a, T> {
        self.some_coefficient(x, chunk, 0..chunk.len, group)
    }

    fn some_coefficient<'a>(
        &self,
        x: &'a [T],
        chunk: &Chunk,
        steps: Range<usize>,
        group: usize,
    ) -> Matrix<'a, T> {
        let Dims { g, n, .. } = self.dims;
        self.some_rows(x, chunk, steps, g * n, group * n..(group + 1) * n)
    }

    /// Whether a state other than zero enters a chunk.
    fn has_state(&self, chunk: &Chunk) -> bool {
        chunk.start > 0 || self.initial_state.is_some()
    }

    /// Consecutive heads whose channels are worked on at once.
    fn blocks(&self, heads: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let step = (BLOCK_CHANNELS / self.dims.p).max(1);
        let end = heads.end;
        heads.clone().step_by(step).map(move |first| first..(first + step).min(end))
    }
}

/// `out = a·b` or `out += a·b` on this thread.
fn multiply<T: Real>(out: MatrixMut<'_, T>, a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool) {
    matrix::multiply(out, a, b, add, Parallelism::None);
}

/// Step sizes, weights and decays of one head over one chunk. The vectors have one value for each step and are padded to
/// whole registers, without a further decay.
struct Steps<T> {
    /// δ.
    delta: Vec<T>,
    /// The derivative of δ by `dt`; before it is filled, `dt + dt_bias`.
    slope: Vec<T>,
    /// The weight with which a token enters the state.
    into_state: Vec<T>,
    /// The weight with which it enters its own output.
    into_output: Vec<T>,
    /// log₂ of the decay from the chunk's beginning until behind the step, and what rounding it lost.
    log: Vec<T>,
    log_rest: Vec<T>,
    /// That decay.
    from_start: Vec<T>,
    /// The decay from behind the step to the chunk's end.
    to_end: Vec<T>,
}

impl<T: Real> Steps<T> {
    fn new(len: usize, lanes: usize) -> Self {
        let zeros = || vec![T::default(); len.next_multiple_of(lanes)];
        Self {
            delta: zeros(),
            slope: zeros(),
            into_state: zeros(),
            into_output: zeros(),
            log: zeros(),
            log_rest: zeros(),
            from_start: zeros(),
            to_end: zeros(),
        }
    }

    /// The decay over the whole chunk.
    fn whole(&self, chunk: &Chunk) -> T {
        self.from_start[chunk.len - 1]
    }

    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, scan: &Scan<'_, T>, chunk: &Chunk, head: usize) {
        let (lanes, len, heads) = (T::lanes::<S>(), chunk.len, scan.dims.h);
        let at = |step: usize| scan.token(chunk, step) * heads + head;
        let bias = scan.dt_bias.map_or(T::default(), |bias| bias[head]);
        for step in 0..len {
            self.slope[step] = scan.dt[at(step)] + bias;
        }
        let one = T::splat(s, T::from_f64(1.0));
        for (slope, delta) in self.slope.chunks_exact_mut(lanes).zip(self.delta.chunks_exact_mut(lanes)) {
            let raw = T::load(s, slope);
            let (value, derivative) = match scan.softplus {
                true => (T::softplus(s, raw), T::sigmoid(s, raw)),
                false => (raw, one),
            };
            T::store(s, delta, value);
            T::store(s, slope, derivative);
        }
        if let Some((lo, hi)) = scan.dt_limit {
            for (delta, slope) in self.delta.iter_mut().zip(&mut self.slope) {
                // NaN is neither.
                if *delta < lo || *delta > hi {
                    *delta = if *delta < lo { lo } else { hi };
                    *slope = T::default();
                }
            }
        }
        match scan.weights {
            Some((into_state, into_output)) => {
                for step in 0..len {
                    self.into_state[step] = into_state[at(step)];
                    self.into_output[step] = into_output[at(step)];
                }
            }
            None => {
                self.into_state[..len].copy_from_slice(&self.delta[..len]);
                self.into_output[..len].copy_from_slice(&self.delta[..len]);
            }
        }
        let rate = scan.a[head] * T::from_f64(std::f64::consts::LOG2_E);
        let fastest = T::from_f64(FASTEST);
        let (mut log, mut rest) = (T::default(), T::default());
        for step in 0..len {
            let decay = self.delta[step] * rate;
            let decay = if decay < fastest { fastest } else { decay };
            // The sum, and exactly what its rounding loses.
            let sum = log + decay;
            let part = sum - log;
            rest += (log - (sum - part)) + (decay - part);
            log = sum;
            (self.log[step], self.log_rest[step]) = (log, rest);
        }
        self.log[len..].fill(log);
        self.log_rest[len..].fill(rest);
        let (end, end_rest) = (T::splat(s, log), T::splat(s, rest));
        for i in (0..self.log.len()).step_by(lanes) {
            let (log, rest) = (T::load(s, &self.log[i..]), T::load(s, &self.log_rest[i..]));
            T::store(s, &mut self.from_start[i..], T::vexp2(s, T::vadd(s, log, rest)));
            let left = T::vadd(s, T::vsub(s, end, log), T::vsub(s, end_rest, rest));
            T::store(s, &mut self.to_end[i..], T::vexp2(s, left));
        }
    }

    /// The decays from behind step `step` until behind each later step, in `out`: the register that holds `step` and
    /// those after it. Values before the step, and its own, mean nothing.
    #[inline(always)]
    fn decays<S: Simd>(&self, s: S, step: usize, mut each: impl FnMut(usize, T::V<S>)) {
        let lanes = T::lanes::<S>();
        let (here, here_rest) = (T::splat(s, self.log[step]), T::splat(s, self.log_rest[step]));
        for t in (step / lanes * lanes..self.log.len()).step_by(lanes) {
            let (log, rest) = (T::load(s, &self.log[t..]), T::load(s, &self.log_rest[t..]));
            let difference = T::vadd(s, T::vsub(s, log, here), T::vsub(s, rest, here_rest));
            each(t, T::vexp2(s, difference));
        }
    }
}

/// `out[i] = x[i] · factor`.
#[inline(always)]
fn scale<S: Simd, T: Real>(s: S, x: &[T], factor: T, out: &mut [T]) {
    let lanes = T::lanes::<S>();
    let factor = T::splat(s, factor);
    for (x, out) in x.chunks(lanes).zip(out.chunks_mut(lanes)) {
        T::store(s, out, T::vmul(s, T::load(s, x), factor));
    }
}

/// `C·Bᵀ` by columns: row s holds `B_s·C_t` for every t from the last multiple of [`TRIANGLE`] on.
fn products<T: Real>(scan: &Scan<'_, T>, chunk: &Chunk, group: usize, stride: usize, out: &mut [T]) {
    let len = chunk.len;
    for s0 in (0..len).step_by(TRIANGLE) {
        let s1 = (s0 + TRIANGLE).min(len);
        multiply(
            MatrixMut::strided(out, s0 * stride + s0, (s1 - s0, stride as isize), len - s0),
            scan.some_coefficient(scan.b, chunk, s0..s1, group),
            scan.some_coefficient(scan.c, chunk, s0..len, group).t(),
            false,
        );
    }
}
