//! The scan with complex states on the CPU: one vector lane for each channel, a few states of each in registers.
//!
//! Work is cut into lines of segments × channel groups, which rayon spreads over the cores. How depends on the shapes alone,
//! and sums over lines are added in their order, so that the number of threads changes no bit.
//!
//! With g the gradient of h, scanning from the last step to the first, and everything but x, δ, ω and a complex:
//!
//! ```text
//! g += 2·dy·conj(C)     dC = 2·dy·conj(h)     dx = Re Σ conj(B)·g     dB = x·g
//! p = λ·h₋₁             dδ = Σ a·Re(conj(p) g) + ω·Im(conj(p) g) + u·dx          g ← conj(λ)·g
//! ```
//!
//! where λ = exp(δ(a + iω)) and x = δ·u; gradients of complex numbers are pairs of the gradients of their parts.
#![allow(unsafe_code)] // lines write disjoint columns of the shared outputs

use super::Dims;
use crate::segments::Segment;
use crate::shared::SharedMut;
use crate::simd::{Real, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Channels of a line at most.
const GROUP_CHANNELS: usize = 128;
/// Lines that we want at least.
const ENOUGH_LINES: usize = 16;

/// The arguments of a scan as slices; shapes as in [`super::ComplexScan`].
pub(super) struct Scan<'a, T> {
    pub(super) u: &'a [T],
    pub(super) delta: &'a [T],
    pub(super) a_real: &'a [T],
    pub(super) a_imag: &'a [T],
    pub(super) b: &'a [T],
    pub(super) c: &'a [T],
    pub(super) initial_state: Option<&'a [T]>,
    pub(super) segments: &'a [Segment],
    pub(super) dims: Dims,
    pub(super) reverse: bool,
    pub(super) chunk: usize,
}

/// What forward computes.
pub(super) struct Forward<T> {
    /// `(B, L, D)`.
    pub(super) y: Vec<T>,
    /// `(segments, D, 2·N)`.
    pub(super) last_state: Vec<T>,
    /// `(chunks, 2·N, D)`: the state before each chunk's first step. Empty unless asked for.
    pub(super) chunk_states: Vec<T>,
}

/// Channels `start .. start + width`, at most one vector.
#[derive(Clone, Copy)]
struct Tile {
    start: usize,
    width: usize,
}

/// How a scan is cut into lines: `tiles` in groups of `group`, for each segment.
struct Plan {
    lanes: usize,
    tiles: Vec<Tile>,
    group: usize,
    groups: usize,
    /// Index of the first kept state of each segment.
    first_chunk: Vec<usize>,
    chunks: usize,
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
        let lanes = dispatch(LaneCount::<T>(PhantomData));
        let d = scan.dims.d;
        let tiles: Vec<Tile> =
            (0..d).step_by(lanes).map(|start| Tile { start, width: lanes.min(d - start) }).collect();
        let mut group = GROUP_CHANNELS.div_ceil(lanes);
        while group > 1 && scan.segments.len() * tiles.len().div_ceil(group) < ENOUGH_LINES {
            group /= 2;
        }
        let (mut first_chunk, mut chunks) = (Vec::new(), 0);
        for s in scan.segments {
            first_chunk.push(chunks);
            chunks += s.len().div_ceil(scan.chunk);
        }
        Self { lanes, group, groups: tiles.len().div_ceil(group), tiles, first_chunk, chunks }
    }

    /// The tiles of a group.
    fn of_group(&self, group: usize) -> &[Tile] {
        &self.tiles[group * self.group..self.tiles.len().min((group + 1) * self.group)]
    }
}

impl<T: Real> Scan<'_, T> {
    /// Row-major token index of scan step `step` of a segment.
    #[inline(always)]
    fn token(&self, segment: usize, step: usize) -> usize {
        let s = &self.segments[segment];
        let position = if self.reverse { s.end - 1 - step } else { s.start + step };
        s.row * self.dims.len + position
    }

    /// Values `(D, columns)` of a tile in lane order, `[column][lane]`.
    fn lanes_of(&self, x: &[T], columns: usize, tile: Tile, lanes: usize) -> Vec<T> {
        let mut out = vec![T::default(); columns * lanes];
        let rows = x[tile.start * columns..(tile.start + tile.width) * columns].chunks_exact(columns);
        for (lane, row) in rows.enumerate() {
            for (i, &value) in row.iter().enumerate() {
                out[i * lanes + lane] = value;
            }
        }
        out
    }

    /// The state before a segment's first step, or its gradient after the last, in lane order.
    fn state_of(&self, states: Option<&[T]>, segment: usize, tile: Tile, lanes: usize) -> Vec<T> {
        let columns = 2 * self.dims.n;
        match states {
            Some(states) => {
                let size = self.dims.d * columns;
                self.lanes_of(&states[segment * size..(segment + 1) * size], columns, tile, lanes)
            }
            None => vec![T::default(); columns * lanes],
        }
    }
}

/// The reverse of [`Scan::lanes_of`], added to `out`, which begins at the tile's first channel.
fn add_lanes<T: Real>(values: &[T], lanes: usize, out: &mut [T]) {
    let columns = values.len() / lanes;
    for (lane, row) in out.chunks_exact_mut(columns).enumerate() {
        for (i, out) in row.iter_mut().enumerate() {
            *out += values[i * lanes + lane];
        }
    }
}

/// What does not change along a segment, of one tile in lane order. Coefficients that vary with the token are empty.
struct Constants<T> {
    /// Real part of A times log₂ e.
    decay: Vec<T>,
    /// Imaginary part of A in turns.
    turns: Vec<T>,
    /// `[n][2][lane]`.
    b: Vec<T>,
    c: Vec<T>,
    /// exp(δA) `[n][2][lane]`, if δ is constant.
    lambda: Vec<T>,
}

impl<T: Real> Constants<T> {
    #[inline(always)]
    fn new<S: Simd>(s: S, scan: &Scan<'_, T>, tile: Tile) -> Self {
        let (n, lanes) = (scan.dims.n, T::lanes::<S>());
        let scaled = |x: &[T], by: f64| -> Vec<T> {
            let by = T::from_f64(by);
            scan.lanes_of(x, n, tile, lanes).into_iter().map(|x| x * by).collect()
        };
        let constant = |is: bool, x: &[T]| match is {
            true => scan.lanes_of(x, 2 * n, tile, lanes),
            false => Vec::new(),
        };
        let mut this = Self {
            decay: scaled(scan.a_real, std::f64::consts::LOG2_E),
            turns: scaled(scan.a_imag, 1.0 / std::f64::consts::TAU),
            b: constant(scan.dims.b_constant, scan.b),
            c: constant(scan.dims.c_constant, scan.c),
            lambda: Vec::new(),
        };
        if scan.dims.delta_constant {
            let dt = T::load(s, &scan.delta[tile.start..tile.start + tile.width]);
            let mut lambda = vec![T::default(); 2 * n * lanes];
            for (state, out) in lambda.chunks_exact_mut(2 * lanes).enumerate() {
                let (re, im) = this.lambda(s, state, dt);
                T::store(s, &mut out[..lanes], re);
                T::store(s, &mut out[lanes..], im);
            }
            this.lambda = lambda;
        }
        this
    }

    /// exp(δA) of one state.
    #[inline(always)]
    fn lambda<S: Simd>(&self, s: S, state: usize, dt: T::V<S>) -> (T::V<S>, T::V<S>) {
        let lanes = T::lanes::<S>();
        if !self.lambda.is_empty() {
            return pair(s, &self.lambda, state);
        }
        let at = state * lanes..(state + 1) * lanes;
        let size = T::vexp2(s, T::vmul(s, dt, T::load(s, &self.decay[at.clone()])));
        let (sin, cos) = T::vsin_cos_turns(s, T::vmul(s, dt, T::load(s, &self.turns[at])));
        (T::vmul(s, size, cos), T::vmul(s, size, sin))
    }
}

/// Complex number `i` of `[i][2][lane]`.
#[inline(always)]
fn pair<S: Simd, T: Real>(s: S, x: &[T], i: usize) -> (T::V<S>, T::V<S>) {
    let lanes = T::lanes::<S>();
    let x = &x[2 * i * lanes..2 * (i + 1) * lanes];
    (T::load(s, &x[..lanes]), T::load(s, &x[lanes..]))
}

/// The same, written.
#[inline(always)]
fn set_pair<S: Simd, T: Real>(s: S, x: &mut [T], i: usize, (re, im): (T::V<S>, T::V<S>)) {
    let lanes = T::lanes::<S>();
    let x = &mut x[2 * i * lanes..2 * (i + 1) * lanes];
    T::store(s, &mut x[..lanes], re);
    T::store(s, &mut x[lanes..], im);
}

/// A coefficient of state `state` at `token`: from `constant`, or the same for all channels.
#[inline(always)]
fn coefficient<S: Simd, T: Real>(
    s: S,
    constant: &[T],
    all: &[T],
    n: usize,
    token: usize,
    state: usize,
) -> (T::V<S>, T::V<S>) {
    if !constant.is_empty() {
        return pair(s, constant, state);
    }
    let at = 2 * (token * n + state);
    (T::splat(s, all[at]), T::splat(s, all[at + 1]))
}

/// `z·h + x·b`, all but x complex.
#[inline(always)]
fn step<S: Simd, T: Real>(
    s: S,
    z: (T::V<S>, T::V<S>),
    h: (T::V<S>, T::V<S>),
    x: T::V<S>,
    b: (T::V<S>, T::V<S>),
) -> (T::V<S>, T::V<S>) {
    let turned = product::<S, T>(s, z, h);
    (T::vfma(s, x, b.0, turned.0), T::vfma(s, x, b.1, turned.1))
}

/// The product of complex numbers.
#[inline(always)]
fn product<S: Simd, T: Real>(s: S, a: (T::V<S>, T::V<S>), b: (T::V<S>, T::V<S>)) -> (T::V<S>, T::V<S>) {
    let re = T::vsub(s, T::vmul(s, a.0, b.0), T::vmul(s, a.1, b.1));
    (re, T::vfma(s, a.1, b.0, T::vmul(s, a.0, b.1)))
}

/// `conj(a)·b`.
#[inline(always)]
fn conjugate_product<S: Simd, T: Real>(
    s: S,
    a: (T::V<S>, T::V<S>),
    b: (T::V<S>, T::V<S>),
) -> (T::V<S>, T::V<S>) {
    let im = T::vsub(s, T::vmul(s, a.0, b.1), T::vmul(s, a.1, b.0));
    (T::vfma(s, a.1, b.1, T::vmul(s, a.0, b.0)), im)
}

/// The staged inputs of one chunk of one tile, `[step][lane]` each.
struct Stage<T> {
    dt: Vec<T>,
    /// δ·u.
    x: Vec<T>,
}

impl<T: Real> Stage<T> {
    fn new(steps: usize, lanes: usize) -> Self {
        Self { dt: vec![T::default(); steps * lanes], x: vec![T::default(); steps * lanes] }
    }

    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, scan: &Scan<'_, T>, segment: usize, first: usize, tile: Tile) {
        let lanes = T::lanes::<S>();
        let steps = self.dt.chunks_exact_mut(lanes).zip(self.x.chunks_exact_mut(lanes));
        for (i, (dt, x)) in steps.take(scan.segments[segment].len() - first).enumerate() {
            let at = scan.token(segment, first + i) * scan.dims.d + tile.start;
            let from = if scan.dims.delta_constant { tile.start } else { at };
            let delta = T::load(s, &scan.delta[from..from + tile.width]);
            T::store(s, dt, delta);
            T::store(s, x, T::vmul(s, delta, T::load(s, &scan.u[at..at + tile.width])));
        }
    }
}

/// Runs the scan; `keep` says whether backward will need the states between chunks.
pub(super) fn forward<T: Real>(scan: &Scan<'_, T>, keep: bool) -> Forward<T> {
    let plan = Plan::new(scan);
    let (d, columns) = (scan.dims.d, 2 * scan.dims.n);
    let mut y = vec![T::default(); scan.u.len()];
    let mut last_state = vec![T::default(); scan.segments.len() * d * columns];
    let mut chunk_states = vec![T::default(); if keep { plan.chunks * columns * d } else { 0 }];
    let out = Outputs {
        y: SharedMut::new(&mut y),
        last_state: SharedMut::new(&mut last_state),
        chunk_states: keep.then(|| SharedMut::new(&mut chunk_states)),
    };
    (0..scan.segments.len() * plan.groups).into_par_iter().for_each(|line| {
        let (segment, group) = (line / plan.groups, line % plan.groups);
        dispatch(ForwardLine { scan, plan: &plan, out: &out, segment, group });
    });
    Forward { y, last_state, chunk_states }
}

struct Outputs<'a, T> {
    y: SharedMut<'a, T>,
    last_state: SharedMut<'a, T>,
    chunk_states: Option<SharedMut<'a, T>>,
}

struct ForwardLine<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    out: &'a Outputs<'a, T>,
    segment: usize,
    group: usize,
}

impl<T: Real> WithSimd for ForwardLine<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, out, segment, group } = self;
        let (Dims { d, n, .. }, lanes) = (scan.dims, plan.lanes);
        let len = scan.segments[segment].len();
        let longest = scan.chunk.min(len);
        let mut stage = Stage::new(longest, lanes);
        let mut y = vec![T::default(); longest * lanes];
        for &tile in plan.of_group(group) {
            let constants = Constants::new(s, scan, tile);
            let mut h = scan.state_of(scan.initial_state, segment, tile, lanes);
            for first in (0..len).step_by(scan.chunk) {
                let steps = scan.chunk.min(len - first);
                if let Some(states) = &out.chunk_states {
                    let chunk = plan.first_chunk[segment] + first / scan.chunk;
                    for (i, row) in h.chunks_exact(lanes).enumerate() {
                        // SAFETY: these columns of this chunk's row belong to this line alone.
                        let to = unsafe { states.range((chunk * 2 * n + i) * d + tile.start, tile.width) };
                        to.copy_from_slice(&row[..tile.width]);
                    }
                }
                stage.fill(s, scan, segment, first, tile);
                y[..steps * lanes].fill(T::default());
                let mut state = 0;
                while n - state >= 4 {
                    self.advance::<S, 4>(s, &constants, &stage, &mut y, &mut h, (first, steps), state);
                    state += 4;
                }
                while state < n {
                    self.advance::<S, 1>(s, &constants, &stage, &mut y, &mut h, (first, steps), state);
                    state += 1;
                }
                for (i, y) in y.chunks_exact(lanes).take(steps).enumerate() {
                    let at = scan.token(segment, first + i) * d + tile.start;
                    let twice = T::vadd(s, T::load(s, y), T::load(s, y));
                    // SAFETY: these columns of this token's row belong to this line alone.
                    T::store(s, unsafe { out.y.range(at, tile.width) }, twice);
                }
            }
            let start = (segment * d + tile.start) * 2 * n;
            // SAFETY: these channels of this segment belong to this line alone.
            add_lanes(&h, lanes, unsafe { out.last_state.range(start, tile.width * 2 * n) });
        }
    }
}

impl<T: Real> ForwardLine<'_, T> {
    /// Advances states `from .. from + NB` of one tile by `steps` steps and adds Re(C·h) to `y`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the parts of one inner loop
    fn advance<S: Simd, const NB: usize>(
        &self,
        s: S,
        constants: &Constants<T>,
        stage: &Stage<T>,
        y: &mut [T],
        h: &mut [T],
        (first, steps): (usize, usize),
        from: usize,
    ) {
        let (scan, n, lanes) = (self.scan, self.scan.dims.n, T::lanes::<S>());
        let mut state = [(T::vzero(s), T::vzero(s)); NB];
        for (k, state) in state.iter_mut().enumerate() {
            *state = pair(s, h, from + k);
        }
        for i in 0..steps {
            let at = i * lanes..(i + 1) * lanes;
            let (dt, x) = (T::load(s, &stage.dt[at.clone()]), T::load(s, &stage.x[at.clone()]));
            let token = scan.token(self.segment, first + i);
            let mut sum = T::load(s, &y[at.clone()]);
            for (k, state) in state.iter_mut().enumerate() {
                let lambda = constants.lambda(s, from + k, dt);
                let b = coefficient(s, &constants.b, scan.b, n, token, from + k);
                let c = coefficient(s, &constants.c, scan.c, n, token, from + k);
                *state = step::<S, T>(s, lambda, *state, x, b);
                sum = T::vadd(s, sum, product::<S, T>(s, c, *state).0);
            }
            T::store(s, &mut y[at], sum);
        }
        for (k, &state) in state.iter().enumerate() {
            set_pair(s, h, from + k, state);
        }
    }
}

/// Gradients of u, δ, both parts of A, B, C and the initial state, given those of the output (`dy`) and of the last state
/// (`dlast`); `None` stands for zero.
pub(super) fn backward<T: Real>(
    scan: &Scan<'_, T>,
    chunk_states: &[T],
    dy: Option<&[T]>,
    dlast: Option<&[T]>,
) -> [Option<Vec<T>>; 7] {
    let plan = Plan::new(scan);
    let Dims { d, n, delta_constant, b_constant, c_constant, .. } = scan.dims;
    let like = |x: &[T]| vec![T::default(); x.len()];
    let zeros = if dy.is_none() { like(scan.u) } else { Vec::new() };
    let dy = dy.unwrap_or(&zeros);
    let (mut du, mut ddelta, mut initial) = (like(scan.u), like(scan.delta), scan.initial_state.map(like));
    let shared =
        Shared { u: SharedMut::new(&mut du), delta: (!delta_constant).then(|| SharedMut::new(&mut ddelta)) };
    let lines: Vec<LineGradients<T>> = (0..scan.segments.len() * plan.groups)
        .into_par_iter()
        .map(|line| {
            let (segment, group) = (line / plan.groups, line % plan.groups);
            dispatch(BackwardLine {
                scan,
                plan: &plan,
                chunk_states,
                dy,
                dlast,
                shared: &shared,
                segment,
                group,
            })
        })
        .collect();
    let [mut da_real, mut da_imag, mut db, mut dc] = [scan.a_real, scan.a_imag, scan.b, scan.c].map(like);
    for (line, part) in lines.iter().enumerate() {
        let (segment, group) = (line / plan.groups, line % plan.groups);
        for (&tile, part) in plan.of_group(group).iter().zip(&part.tiles) {
            let channels = |columns: usize| tile.start * columns..(tile.start + tile.width) * columns;
            add_lanes(&part.a_real, plan.lanes, &mut da_real[channels(n)]);
            add_lanes(&part.a_imag, plan.lanes, &mut da_imag[channels(n)]);
            if delta_constant {
                add_lanes(&part.delta, plan.lanes, &mut ddelta[channels(1)]);
            }
            if b_constant {
                add_lanes(&part.b, plan.lanes, &mut db[channels(2 * n)]);
            }
            if c_constant {
                add_lanes(&part.c, plan.lanes, &mut dc[channels(2 * n)]);
            }
            if let Some(initial) = &mut initial {
                let states = &mut initial[segment * d * 2 * n..(segment + 1) * d * 2 * n];
                add_lanes(&part.state, plan.lanes, &mut states[channels(2 * n)]);
            }
        }
        let s = &scan.segments[segment];
        let tokens = (s.row * scan.dims.len + s.start) * 2 * n;
        let add = |sum: &mut [T], part: &[T]| {
            sum[tokens..tokens + part.len()].iter_mut().zip(part).for_each(|(sum, x)| *sum += *x);
        };
        if !b_constant {
            add(&mut db, &part.b);
        }
        if !c_constant {
            add(&mut dc, &part.c);
        }
    }
    [Some(du), Some(ddelta), Some(da_real), Some(da_imag), Some(db), Some(dc), initial]
}

/// Gradients of which each line writes columns of its own.
struct Shared<'a, T> {
    u: SharedMut<'a, T>,
    /// None if δ is constant.
    delta: Option<SharedMut<'a, T>>,
}

/// What one line adds to the other gradients.
struct LineGradients<T> {
    tiles: Vec<TileGradients<T>>,
    /// Sums over the line's channels, `(tokens of the segment, 2·N)`; empty if B and C are constant.
    b: Vec<T>,
    c: Vec<T>,
}

/// In lane order.
struct TileGradients<T> {
    a_real: Vec<T>,
    a_imag: Vec<T>,
    /// Of constant δ, B and C.
    delta: Vec<T>,
    b: Vec<T>,
    c: Vec<T>,
    /// Of the state before the steps done so far.
    state: Vec<T>,
}

struct BackwardLine<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    /// `(chunks, 2·N, D)`.
    chunk_states: &'a [T],
    dy: &'a [T],
    dlast: Option<&'a [T]>,
    shared: &'a Shared<'a, T>,
    segment: usize,
    group: usize,
}

impl<T: Real> WithSimd for BackwardLine<'_, T> {
    type Output = LineGradients<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> LineGradients<T> {
        let Self { scan, plan, chunk_states, dy, dlast, shared, segment, group } = self;
        let (Dims { d, n, b_constant, c_constant, .. }, lanes) = (scan.dims, plan.lanes);
        let len = scan.segments[segment].len();
        let longest = scan.chunk.min(len);
        let zeros = |columns: usize| vec![T::default(); columns * lanes];
        let per_token = |constant: bool| vec![T::default(); if constant { 0 } else { len * 2 * n }];
        let mut line =
            LineGradients { tiles: Vec::new(), b: per_token(b_constant), c: per_token(c_constant) };
        let mut stage = Stage::new(longest, lanes);
        // Of every step: λ, λ·h₋₁; the gradients of x, and of δ where it is not a factor of x.
        let (mut lambdas, mut before) = (zeros(2 * longest), zeros(2 * longest));
        let (mut dx, mut ddt) = (zeros(longest), zeros(longest));
        for &tile in plan.of_group(group) {
            let constants = Constants::new(s, scan, tile);
            let a_real = scan.lanes_of(scan.a_real, n, tile, lanes);
            let a_imag = scan.lanes_of(scan.a_imag, n, tile, lanes);
            let mut grads = TileGradients {
                a_real: zeros(n),
                a_imag: zeros(n),
                delta: zeros(1),
                b: zeros(2 * n),
                c: zeros(2 * n),
                state: scan.state_of(dlast, segment, tile, lanes),
            };
            for first in (0..len).step_by(scan.chunk).rev() {
                let steps = scan.chunk.min(len - first);
                stage.fill(s, scan, segment, first, tile);
                dx.fill(T::default());
                ddt.fill(T::default());
                let chunk = plan.first_chunk[segment] + first / scan.chunk;
                for state in 0..n {
                    let kept = |part: usize| {
                        let at = (chunk * 2 * n + 2 * state + part) * d + tile.start;
                        T::load(s, &chunk_states[at..at + tile.width])
                    };
                    let mut h = (kept(0), kept(1));
                    for i in 0..steps {
                        let at = i * lanes..(i + 1) * lanes;
                        let (dt, x) = (T::load(s, &stage.dt[at.clone()]), T::load(s, &stage.x[at]));
                        let token = scan.token(segment, first + i);
                        let lambda = constants.lambda(s, state, dt);
                        let p = product::<S, T>(s, lambda, h);
                        let b = coefficient(s, &constants.b, scan.b, n, token, state);
                        set_pair(s, &mut lambdas, i, lambda);
                        set_pair(s, &mut before, i, p);
                        h = (T::vfma(s, x, b.0, p.0), T::vfma(s, x, b.1, p.1));
                    }
                    let lane = state * lanes..(state + 1) * lanes;
                    let (a, omega) = (T::load(s, &a_real[lane.clone()]), T::load(s, &a_imag[lane.clone()]));
                    let mut g = pair(s, &grads.state, state);
                    let (mut da, mut domega) = (T::vzero(s), T::vzero(s));
                    let (mut db, mut dc) = ((da, da), (da, da));
                    for i in (0..steps).rev() {
                        let at = i * lanes..(i + 1) * lanes;
                        let (dt, x) = (T::load(s, &stage.dt[at.clone()]), T::load(s, &stage.x[at.clone()]));
                        let token = scan.token(segment, first + i);
                        let from = token * d + tile.start;
                        let dy = T::load(s, &dy[from..from + tile.width]);
                        let dy = T::vadd(s, dy, dy);
                        let b = coefficient(s, &constants.b, scan.b, n, token, state);
                        let c = coefficient(s, &constants.c, scan.c, n, token, state);
                        let (lambda, p) = (pair(s, &lambdas, i), pair(s, &before, i));
                        let h = (T::vfma(s, x, b.0, p.0), T::vfma(s, x, b.1, p.1));
                        let minus_dy = T::vsub(s, T::vzero(s), dy);
                        g = (T::vfma(s, dy, c.0, g.0), T::vfma(s, minus_dy, c.1, g.1));
                        let (of_c, of_b) = (
                            (T::vmul(s, dy, h.0), T::vmul(s, minus_dy, h.1)),
                            (T::vmul(s, x, g.0), T::vmul(s, x, g.1)),
                        );
                        let column = 2
                            * ((token - scan.token(segment, if scan.reverse { len - 1 } else { 0 })) * n
                                + state);
                        match c_constant {
                            true => dc = (T::vadd(s, dc.0, of_c.0), T::vadd(s, dc.1, of_c.1)),
                            false => {
                                line.c[column] += T::reduce_sum(s, of_c.0);
                                line.c[column + 1] += T::reduce_sum(s, of_c.1);
                            }
                        }
                        match b_constant {
                            true => db = (T::vadd(s, db.0, of_b.0), T::vadd(s, db.1, of_b.1)),
                            false => {
                                line.b[column] += T::reduce_sum(s, of_b.0);
                                line.b[column + 1] += T::reduce_sum(s, of_b.1);
                            }
                        }
                        let into_x = T::vfma(s, b.1, g.1, T::vfma(s, b.0, g.0, T::load(s, &dx[at.clone()])));
                        T::store(s, &mut dx[at.clone()], into_x);
                        let q = conjugate_product::<S, T>(s, p, g);
                        da = T::vfma(s, dt, q.0, da);
                        domega = T::vfma(s, dt, q.1, domega);
                        let into_dt =
                            T::vfma(s, omega, q.1, T::vfma(s, a, q.0, T::load(s, &ddt[at.clone()])));
                        T::store(s, &mut ddt[at], into_dt);
                        g = conjugate_product::<S, T>(s, lambda, g);
                    }
                    set_pair(s, &mut grads.state, state, g);
                    for (sum, x) in [(&mut grads.a_real, da), (&mut grads.a_imag, domega)] {
                        let old = T::load(s, &sum[lane.clone()]);
                        T::store(s, &mut sum[lane.clone()], T::vadd(s, old, x));
                    }
                    for (sum, x) in [(&mut grads.b, db), (&mut grads.c, dc)] {
                        let old = pair(s, sum, state);
                        set_pair(s, sum, state, (T::vadd(s, old.0, x.0), T::vadd(s, old.1, x.1)));
                    }
                }
                for i in 0..steps {
                    let at = i * lanes..(i + 1) * lanes;
                    let token = scan.token(segment, first + i) * d + tile.start;
                    let dx = T::load(s, &dx[at.clone()]);
                    let u = T::load(s, &scan.u[token..token + tile.width]);
                    let ddt = T::vfma(s, u, dx, T::load(s, &ddt[at.clone()]));
                    // SAFETY: these columns of this token's row belong to this line alone.
                    let du = unsafe { shared.u.range(token, tile.width) };
                    T::store(s, du, T::vmul(s, T::load(s, &stage.dt[at]), dx));
                    match &shared.delta {
                        // SAFETY: as above.
                        Some(delta) => T::store(s, unsafe { delta.range(token, tile.width) }, ddt),
                        None => {
                            let sum = T::vadd(s, T::load(s, &grads.delta), ddt);
                            T::store(s, &mut grads.delta, sum);
                        }
                    }
                }
            }
            line.tiles.push(grads);
        }
        line
    }
}
