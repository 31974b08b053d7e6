//! Backward: gradients of every input, without the states of more than one chunk at a time.
//!
//! With g the gradient of y and dh that of the state, scanning from the last step to the first:
//!
//! ```text
//! dh += g·C        dC = Σ_d g·h         dx = Σ_n dh·B      dB = Σ_d dh·x
//! q = dh·a·h₋₁     dδ = Σ_n q·A + dx·u  dA += q·δ          dh ← dh·a
//! ```
//!
//! where a = exp(δA), x = δ·u. dB and dC add up over channels: each line sums its own, block by block of steps, and
//! after each block the lines' sums are added in a fixed order. No atomics, no dependence on the number of threads.
#![allow(unsafe_code)] // lines write disjoint columns of the shared gradients

use super::{Ahead, Coefficient, Group, Plan, Scan, Span, Stage, Tile, for_state_blocks};
use crate::shared::{SharedMut, written};
use crate::simd::{Real, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Steps between two additions of the lines' dB and dC.
const BLOCK_STEPS: usize = 512;
/// Lines in flight at once, which bounds the memory of their dB and dC.
const WAVE_LINES: usize = 64;
/// States whose decays and values of one chunk are kept together.
const STATE_BLOCK: usize = 8;

/// Gradients in the shapes of the inputs.
pub(in crate::selective_scan) struct Gradients<T> {
    pub(in crate::selective_scan) u: Vec<T>,
    pub(in crate::selective_scan) delta: Vec<T>,
    pub(in crate::selective_scan) a: Vec<T>,
    pub(in crate::selective_scan) b: Vec<T>,
    pub(in crate::selective_scan) c: Vec<T>,
    pub(in crate::selective_scan) d: Option<Vec<T>>,
    pub(in crate::selective_scan) z: Option<Vec<T>>,
    pub(in crate::selective_scan) delta_bias: Option<Vec<T>>,
    pub(in crate::selective_scan) initial_state: Option<Vec<T>>,
}

/// Gradients given those of the output (`dy`) and of the last state (`dlast`); `None` stands for zero.
pub(in crate::selective_scan) fn backward<T: Real>(
    scan: &Scan<'_, T>,
    chunk_states: &[T],
    dy: Option<&[T]>,
    dlast: Option<&[T]>,
) -> Gradients<T> {
    let plan = Plan::new(scan);
    let like = |x: &[T]| vec![T::default(); x.len()];
    let zeros = if dy.is_none() { like(scan.u) } else { Vec::new() };
    let input = Input { scan, plan: &plan, chunk_states, dy: dy.unwrap_or(&zeros), dlast };
    let (mut u, mut delta, mut z) = (scan.per_token(), scan.per_token(), scan.z.map(|_| scan.per_token()));
    let out = Outputs {
        u: SharedMut::new(&mut u),
        delta: SharedMut::new(&mut delta),
        z: z.as_deref_mut().map(SharedMut::new),
    };
    let mut sums = Sums {
        a: like(scan.a),
        b: like(scan.b),
        c: like(scan.c),
        d: scan.d.map(like),
        delta_bias: scan.delta_bias.map(like),
        initial_state: scan.initial_state.map(like),
    };
    let ends = input.span_ends();
    let wave = WAVE_LINES.div_ceil(plan.groups.len());
    for (i, spans) in plan.spans.chunks(wave).enumerate() {
        input.wave(spans, &ends[i * wave..], &out, &mut sums);
    }
    let Sums { a, b, c, d, delta_bias, initial_state } = sums;
    // SAFETY: groups are all channels, spans all steps of all segments, and their lines have written a row for each.
    let (u, delta, z) = unsafe { (written(u), written(delta), z.map(|z| written(z))) };
    Gradients { u, delta, a, b, c, d, z, delta_bias, initial_state }
}

/// Gradients to which lines add.
struct Sums<T> {
    a: Vec<T>,
    b: Vec<T>,
    c: Vec<T>,
    d: Option<Vec<T>>,
    delta_bias: Option<Vec<T>>,
    initial_state: Option<Vec<T>>,
}

struct Input<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    /// `(chunks, N, D)`.
    chunk_states: &'a [T],
    dy: &'a [T],
    dlast: Option<&'a [T]>,
}

/// What one line carries from block to block and adds up. Everything is `[tile][n][lane]` or `[tile][lane]`.
struct Line<T> {
    span: Span,
    group: Group,
    /// Gradient of the state before the steps done so far.
    dh: Vec<T>,
    /// Gradient of A: Σ δ·q, where q is the gradient of δ·A.
    da: Vec<T>,
    /// Gradients of B and C where they are constant, else empty.
    db_constant: Vec<T>,
    dc_constant: Vec<T>,
    dd: Vec<T>,
    dbias: Vec<T>,
    /// Sums over this line's channels for the present block, `[step][n]`.
    db: Vec<T>,
    dc: Vec<T>,
}

impl<T: Real> Input<'_, T> {
    /// Gradient of the state after each span, `[tile][n][lane]`.
    fn span_ends(&self) -> Vec<Vec<T>> {
        let Self { scan, plan, .. } = *self;
        let size = scan.dims.n * plan.lanes;
        let parts: Vec<(Vec<T>, Vec<T>)> = if plan.is_cut() {
            (0..plan.spans.len() * plan.tiles.len())
                .into_par_iter()
                .map(|i| {
                    let (span, tile) = (plan.spans[i / plan.tiles.len()], i % plan.tiles.len());
                    let group = plan.groups.iter().find(|g| (g.first..g.end).contains(&tile)).copied();
                    let group = group.expect("every tile belongs to a group");
                    dispatch(SpanEffect { input: self, span, tile: plan.tiles[tile], group })
                })
                .collect()
        } else {
            Vec::new()
        };
        let mut ends = vec![Vec::new(); plan.spans.len()];
        for (i, span) in plan.spans.iter().enumerate().rev() {
            let mut end = vec![T::default(); plan.tiles.len() * size];
            for (t, &tile) in plan.tiles.iter().enumerate() {
                let out = &mut end[t * size..(t + 1) * size];
                if span.end < scan.segments[span.segment].len() {
                    let (start, decay) = &parts[(i + 1) * plan.tiles.len() + t];
                    let after: &[T] = &ends[i + 1][t * size..(t + 1) * size];
                    for (k, x) in out.iter_mut().enumerate() {
                        *x = decay[k] * after[k] + start[k];
                    }
                } else if let Some(dlast) = self.dlast {
                    let whole = scan.dims.d * scan.dims.n;
                    let of_segment = &dlast[span.segment * whole..(span.segment + 1) * whole];
                    scan.load_tile(of_segment, tile, plan.lanes, out);
                }
            }
            ends[i] = end;
        }
        ends
    }

    /// Runs all lines of some spans and adds their parts to the gradients.
    fn wave(&self, spans: &[Span], ends: &[Vec<T>], out: &Outputs<'_, T>, grads: &mut Sums<T>) {
        let Self { scan, plan, .. } = *self;
        let (n, lanes) = (scan.dims.n, plan.lanes);
        let size = n * lanes;
        let block = BLOCK_STEPS.next_multiple_of(scan.chunk);
        let mut lines: Vec<Line<T>> = Vec::with_capacity(spans.len() * plan.groups.len());
        for (&span, end) in spans.iter().zip(ends) {
            for &group in &plan.groups {
                let tiles = group.end - group.first;
                let rows = block.min(span.end - span.start) * n;
                let zeros = |len: usize| vec![T::default(); len];
                let unless = |constant: bool, len: usize| zeros(if constant { 0 } else { len });
                lines.push(Line {
                    span,
                    group,
                    dh: end[group.first * size..group.end * size].to_vec(),
                    da: zeros(tiles * size),
                    db_constant: unless(scan.dims.b_groups > 0, tiles * size),
                    dc_constant: unless(scan.dims.c_groups > 0, tiles * size),
                    dd: zeros(tiles * lanes),
                    dbias: zeros(tiles * lanes),
                    db: unless(scan.dims.b_groups == 0, rows),
                    dc: unless(scan.dims.c_groups == 0, rows),
                });
            }
        }
        let rounds = spans.iter().map(|s| (s.end - s.start).div_ceil(block)).max().unwrap_or(0);
        for round in 0..rounds {
            lines.par_iter_mut().for_each(|line| {
                if let Some((first, end)) = block_of(line.span, block, round) {
                    dispatch(Block { input: self, out, line, first, end });
                }
            });
            let (db, dc) = (SharedMut::new(&mut grads.b), SharedMut::new(&mut grads.c));
            lines.par_chunks(plan.groups.len()).for_each(|lines| {
                let span = lines[0].span;
                let Some((first, end)) = block_of(span, block, round) else { return };
                for line in lines {
                    let g = line.group;
                    self.add_rows(&line.db, db, span, first..end, scan.dims.b_groups, g.b_group);
                    self.add_rows(&line.dc, dc, span, first..end, scan.dims.c_groups, g.c_group);
                }
            });
        }
        lines.iter().for_each(|line| self.fold(line, grads));
    }

    /// Adds one line's sums for a block of steps to the gradient of B or C. Constant coefficients have none.
    fn add_rows(
        &self,
        sums: &[T],
        to: SharedMut<'_, T>,
        span: Span,
        steps: std::ops::Range<usize>,
        groups: usize,
        group: usize,
    ) {
        if groups == 0 {
            return;
        }
        let n = self.scan.dims.n;
        let rows = self.scan.rows(span.segment, steps.start, groups, group);
        for (i, sums) in sums.chunks_exact(n).take(steps.len()).enumerate() {
            // SAFETY: tokens of one span are added to by one task at a time.
            let row = unsafe { to.range(rows.start(i), n) };
            row.iter_mut().zip(sums).for_each(|(x, &y)| *x += y);
        }
    }

    /// Adds what a finished line summed over its steps.
    fn fold(&self, line: &Line<T>, grads: &mut Sums<T>) {
        let Self { scan, plan, .. } = *self;
        let (n, d, lanes) = (scan.dims.n, scan.dims.d, plan.lanes);
        let size = n * lanes;
        let add_tile = |values: &[T], t: usize, tile: Tile, out: &mut [T]| {
            let values = &values[t * size..(t + 1) * size];
            for (lane, row) in out[tile.start * n..][..tile.width * n].chunks_exact_mut(n).enumerate() {
                row.iter_mut().enumerate().for_each(|(i, x)| *x += values[i * lanes + lane]);
            }
        };
        for (t, &tile) in plan.tiles[line.group.first..line.group.end].iter().enumerate() {
            add_tile(&line.da, t, tile, &mut grads.a);
            if scan.dims.b_groups == 0 {
                add_tile(&line.db_constant, t, tile, &mut grads.b);
            }
            if scan.dims.c_groups == 0 {
                add_tile(&line.dc_constant, t, tile, &mut grads.c);
            }
            for (out, values) in [(&mut grads.d, &line.dd), (&mut grads.delta_bias, &line.dbias)] {
                let Some(out) = out else { continue };
                let values = &values[t * lanes..][..tile.width];
                out[tile.start..][..tile.width].iter_mut().zip(values).for_each(|(x, &y)| *x += y);
            }
            if let Some(out) = &mut grads.initial_state
                && line.span.start == 0
            {
                let segment = &mut out[line.span.segment * d * n..][..d * n];
                add_tile(&line.dh, t, tile, segment);
            }
        }
    }
}

/// Steps of the `round`-th block of a span, counted from its end.
fn block_of(span: Span, block: usize, round: usize) -> Option<(usize, usize)> {
    let blocks = (span.end - span.start).div_ceil(block);
    let first = span.start + blocks.checked_sub(round + 1)? * block;
    Some((first, (first + block).min(span.end)))
}

/// What one span adds to the gradient of the state before it, and the factor on the gradient that enters at its end.
struct SpanEffect<'a, T> {
    input: &'a Input<'a, T>,
    span: Span,
    tile: Tile,
    group: Group,
}

impl<T: Real> WithSimd for SpanEffect<'_, T> {
    type Output = (Vec<T>, Vec<T>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Self::Output {
        let Self { input, span, tile, group } = self;
        let Input { scan, plan, .. } = *input;
        let (n, lanes) = (scan.dims.n, plan.lanes);
        let a2 = scan.a_log2e(tile, lanes);
        let c_constant = scan.constant(scan.c, scan.dims.c_groups, tile, lanes);
        let mut dh = vec![T::default(); n * lanes];
        let mut stage = Stage::new(scan.chunk.min(span.end - span.start), lanes);
        let mut total_dt = T::vzero(s);
        for first in (span.start..span.end).step_by(scan.chunk).rev() {
            let steps = scan.chunk.min(span.end - first);
            stage.fill(s, scan, span.segment, first, steps, tile);
            input.stage_gradient(s, &mut stage.x, span.segment, first, steps, tile);
            for dt in stage.dt[..steps * lanes].chunks_exact(lanes) {
                total_dt = T::vadd(s, total_dt, T::load(s, dt));
            }
            let rows = scan.rows(span.segment, first, scan.dims.c_groups, group.c_group);
            let c = Coefficient { data: scan.c, rows, constant: &c_constant };
            for state in 0..n {
                let lane = state * lanes..(state + 1) * lanes;
                let decay = T::load(s, &a2[lane.clone()]);
                let mut value = T::load(s, &dh[lane.clone()]);
                for i in (0..steps).rev() {
                    let (dt, g) = (T::load(s, &stage.dt[i * lanes..]), T::load(s, &stage.x[i * lanes..]));
                    let c = c.lanes::<S, true>(s, c.row::<1, true>(i, state), state, 0);
                    let a = T::vexp2(s, T::vmul(s, dt, decay));
                    value = T::vmul(s, a, T::vfma(s, g, c, value));
                }
                T::store(s, &mut dh[lane], value);
            }
        }
        let mut decay = a2;
        for x in decay.chunks_exact_mut(lanes) {
            let a = T::vexp2(s, T::vmul(s, total_dt, T::load(s, x)));
            T::store(s, x, a);
        }
        (dh, decay)
    }
}

impl<T: Real> Input<'_, T> {
    /// Fills `g` with the gradient of y before the gate.
    #[inline(always)]
    fn stage_gradient<S: Simd>(
        &self,
        s: S,
        g: &mut [T],
        segment: usize,
        first: usize,
        steps: usize,
        tile: Tile,
    ) {
        let lanes = T::lanes::<S>();
        for i in 0..steps {
            let at = self.scan.token(segment, first + i) * self.scan.dims.d + tile.start;
            let mut dy = T::load(s, &self.dy[at..at + tile.width]);
            if let Some(z) = self.scan.z {
                let z = T::load(s, &z[at..at + tile.width]);
                dy = T::gate(s, dy, z);
            }
            T::store(s, &mut g[i * lanes..(i + 1) * lanes], dy);
        }
    }
}

/// Gradients of which lines write disjoint columns.
struct Outputs<'a, T> {
    u: SharedMut<'a, MaybeUninit<T>>,
    delta: SharedMut<'a, MaybeUninit<T>>,
    z: Option<SharedMut<'a, MaybeUninit<T>>>,
}

/// Steps `first .. end` of one line.
struct Block<'a, T> {
    input: &'a Input<'a, T>,
    out: &'a Outputs<'a, T>,
    line: &'a mut Line<T>,
    first: usize,
    end: usize,
}

/// Buffers for one chunk of one tile.
struct Scratch<T> {
    stage: Stage<T>,
    /// Gradient of y before the gate, `[step][lane]`.
    g: Vec<T>,
    /// Gradient of x and, over ln 2, of δ through the decay; `[step][lane]`.
    dx: Vec<T>,
    ddt: Vec<T>,
    /// State before the chunk, `[n][lane]`.
    start: Vec<T>,
    /// Decay, and state before each step; `[step][state of the block][lane]`.
    decay: Vec<T>,
    before: Vec<T>,
    /// Sums over tiles, `[step][n][lane]`, or `[n][lane]` of a constant coefficient.
    db: Vec<T>,
    dc: Vec<T>,
}

impl<T: Real> WithSimd for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { input, out, line, first: block_first, end } = self;
        let Input { scan, plan, .. } = *input;
        let (n, lanes) = (scan.dims.n, plan.lanes);
        let size = n * lanes;
        let tiles = &plan.tiles[line.group.first..line.group.end];
        let (segment, group) = (line.span.segment, line.group);
        let a2: Vec<Vec<T>> = tiles.iter().map(|&t| scan.a_log2e(t, lanes)).collect();
        let constant = |x, groups| -> Vec<Vec<T>> {
            tiles.iter().map(|&t| scan.constant(x, groups, t, lanes)).collect()
        };
        let (b_constant, c_constant) =
            (constant(scan.b, scan.dims.b_groups), constant(scan.c, scan.dims.c_groups));
        let any_constant = scan.dims.b_groups == 0 || scan.dims.c_groups == 0;
        let capacity = scan.chunk.min(end - block_first);
        let zeros = |len: usize| vec![T::default(); len];
        let mut scratch = Scratch {
            stage: Stage::new(capacity, lanes),
            g: zeros(capacity * lanes),
            dx: zeros(capacity * lanes),
            ddt: zeros(capacity * lanes),
            start: zeros(size),
            decay: zeros(capacity * STATE_BLOCK.min(n) * lanes),
            before: zeros(capacity * STATE_BLOCK.min(n) * lanes),
            db: zeros(capacity * size),
            dc: zeros(capacity * size),
        };
        for first in (block_first..end).step_by(scan.chunk).rev() {
            let steps = scan.chunk.min(end - first);
            let chunk = plan.first_chunk[segment] + first / scan.chunk;
            let b_rows = scan.rows(segment, first, scan.dims.b_groups, group.b_group);
            let c_rows = scan.rows(segment, first, scan.dims.c_groups, group.c_group);
            scratch.db[..steps * size].fill(T::default());
            scratch.dc[..steps * size].fill(T::default());
            for (t, &tile) in tiles.iter().enumerate() {
                scratch.stage.fill(s, scan, segment, first, steps, tile);
                input.stage_gradient(s, &mut scratch.g, segment, first, steps, tile);
                scratch.dx[..steps * lanes].fill(T::default());
                scratch.ddt[..steps * lanes].fill(T::default());
                for (i, row) in scratch.start.chunks_exact_mut(lanes).enumerate() {
                    let at = (chunk * n + i) * scan.dims.d + tile.start;
                    row[..tile.width].copy_from_slice(&input.chunk_states[at..at + tile.width]);
                    row[tile.width..].fill(T::default());
                }
                let b = Coefficient { data: scan.b, rows: b_rows, constant: &b_constant[t] };
                let c = Coefficient { data: scan.c, rows: c_rows, constant: &c_constant[t] };
                let ahead = (first > block_first).then(|| {
                    let [u, delta] = [&out.u, &out.delta].map(|x| x.as_ptr().cast());
                    let z = scan.z.map_or(u, <[T]>::as_ptr);
                    let dz = out.z.as_ref().map_or(u, |z| z.as_ptr().cast());
                    let arrays = [scan.u.as_ptr(), scan.delta.as_ptr(), z, input.dy.as_ptr(), u, delta, dz];
                    Ahead::new(scan, arrays, segment, first - scan.chunk, tile)
                });
                let state = t * size..(t + 1) * size;
                let (dh, da) = (&mut line.dh[state.clone()], &mut line.da[state.clone()]);
                if any_constant {
                    for_state_blocks!(n, [1], |k, NB| {
                        states::<S, T, NB, true>(s, &mut scratch, steps, &a2[t], dh, da, b, c, ahead, k)
                    });
                    for (sum, part, is_constant) in [
                        (&mut line.db_constant, &mut scratch.db, scan.dims.b_groups == 0),
                        (&mut line.dc_constant, &mut scratch.dc, scan.dims.c_groups == 0),
                    ] {
                        if is_constant {
                            sum[state.clone()].iter_mut().zip(&part[..size]).for_each(|(x, &y)| *x += y);
                            part[..size].fill(T::default());
                        }
                    }
                } else {
                    for_state_blocks!(n, [8, 4, 2, 1], |k, NB| {
                        states::<S, T, NB, false>(s, &mut scratch, steps, &a2[t], dh, da, b, c, ahead, k)
                    });
                }
                let dd = &mut line.dd[t * lanes..(t + 1) * lanes];
                let dbias = &mut line.dbias[t * lanes..(t + 1) * lanes];
                finish(s, input, out, &scratch, segment, first, steps, tile, dd, dbias);
            }
            let row = (first - block_first) * n;
            for (sums, parts) in [(&mut line.db, &scratch.db), (&mut line.dc, &scratch.dc)] {
                if !sums.is_empty() {
                    let sums = &mut sums[row..row + steps * n];
                    for (sum, part) in sums.iter_mut().zip(parts.chunks_exact(lanes)) {
                        *sum = T::reduce_sum(s, T::load(s, part));
                    }
                }
            }
        }
    }
}

/// Recomputes states `first .. first + NB` over the chunk and runs their gradients back through it.
#[inline(always)]
fn states<S: Simd, T: Real, const NB: usize, const CONSTANT: bool>(
    s: S,
    scratch: &mut Scratch<T>,
    steps: usize,
    a2: &[T],
    dh: &mut [T],
    da: &mut [T],
    b: Coefficient<'_, T>,
    c: Coefficient<'_, T>,
    ahead: Option<Ahead<T, 7>>,
    first: usize,
) {
    let lanes = T::lanes::<S>();
    let size = a2.len();
    let Scratch { stage, g, dx, ddt, start, decay, before, db, dc } = scratch;
    let mut a_log2e = [T::vzero(s); NB];
    let mut state = [T::vzero(s); NB];
    for k in 0..NB {
        let at = (first + k) * lanes;
        a_log2e[k] = T::load(s, &a2[at..at + lanes]);
        state[k] = T::load(s, &start[at..at + lanes]);
    }
    for i in 0..steps {
        if let Some(ahead) = ahead.filter(|_| first == 0) {
            ahead.fetch(i);
        }
        let at = i * lanes..(i + 1) * lanes;
        let (dt, x) = (T::load(s, &stage.dt[at.clone()]), T::load(s, &stage.x[at.clone()]));
        let (b_row, c_row) = (b.row::<NB, CONSTANT>(i, first), c.row::<NB, CONSTANT>(i, first));
        let mut y = [T::load(s, &stage.y[at.clone()]), T::vzero(s)];
        let kept = i * NB * lanes..(i + 1) * NB * lanes;
        let (decay, before) = (&mut decay[kept.clone()], &mut before[kept]);
        for k in 0..NB {
            let lane = k * lanes..(k + 1) * lanes;
            let a = T::vexp2(s, T::vmul(s, dt, a_log2e[k]));
            T::store(s, &mut decay[lane.clone()], a);
            T::store(s, &mut before[lane], state[k]);
            let bx = T::vmul(s, x, b.lanes::<S, CONSTANT>(s, b_row, first, k));
            state[k] = T::vfma(s, a, state[k], bx);
            y[k % 2] = T::vfma(s, state[k], c.lanes::<S, CONSTANT>(s, c_row, first, k), y[k % 2]);
        }
        T::store(s, &mut stage.y[at], T::vadd(s, y[0], y[1]));
    }

    let mut dstate = [T::vzero(s); NB];
    let mut da_sum = [T::vzero(s); NB];
    for k in 0..NB {
        let at = (first + k) * lanes;
        dstate[k] = T::load(s, &dh[at..at + lanes]);
        da_sum[k] = T::load(s, &da[at..at + lanes]);
    }
    let stride = |constant: &[T]| if constant.is_empty() { size } else { 0 };
    let (db_stride, dc_stride) = (stride(b.constant), stride(c.constant));
    for i in (0..steps).rev() {
        let at = i * lanes..(i + 1) * lanes;
        let (dt, x) = (T::load(s, &stage.dt[at.clone()]), T::load(s, &stage.x[at.clone()]));
        let gradient = T::load(s, &g[at.clone()]);
        let (b_row, c_row) = (b.row::<NB, CONSTANT>(i, first), c.row::<NB, CONSTANT>(i, first));
        let kept = i * NB * lanes..(i + 1) * NB * lanes;
        let (decay, before) = (&decay[kept.clone()], &before[kept]);
        let db = &mut db[i * db_stride + first * lanes..][..NB * lanes];
        let dc = &mut dc[i * dc_stride + first * lanes..][..NB * lanes];
        let mut dx_sum = [T::load(s, &dx[at.clone()]), T::vzero(s)];
        let mut ddt_sum = [T::load(s, &ddt[at.clone()]), T::vzero(s)];
        for k in 0..NB {
            let lane = k * lanes..(k + 1) * lanes;
            let grad = T::vfma(s, gradient, c.lanes::<S, CONSTANT>(s, c_row, first, k), dstate[k]);
            let dc_sum = T::vfma(s, gradient, state[k], T::load(s, &dc[lane.clone()]));
            T::store(s, &mut dc[lane.clone()], dc_sum);
            let db_sum = T::vfma(s, grad, x, T::load(s, &db[lane.clone()]));
            T::store(s, &mut db[lane.clone()], db_sum);
            dx_sum[k % 2] = T::vfma(s, grad, b.lanes::<S, CONSTANT>(s, b_row, first, k), dx_sum[k % 2]);
            state[k] = T::load(s, &before[lane.clone()]);
            dstate[k] = T::vmul(s, grad, T::load(s, &decay[lane]));
            let q = T::vmul(s, dstate[k], state[k]);
            ddt_sum[k % 2] = T::vfma(s, q, a_log2e[k], ddt_sum[k % 2]);
            da_sum[k] = T::vfma(s, q, dt, da_sum[k]);
        }
        T::store(s, &mut dx[at.clone()], T::vadd(s, dx_sum[0], dx_sum[1]));
        T::store(s, &mut ddt[at], T::vadd(s, ddt_sum[0], ddt_sum[1]));
    }
    for k in 0..NB {
        let at = (first + k) * lanes;
        T::store(s, &mut dh[at..at + lanes], dstate[k]);
        T::store(s, &mut da[at..at + lanes], da_sum[k]);
    }
}

/// Turns the gradients of δ, δ·u and y of one chunk of one tile into those of u, delta, z, D and the bias.
#[inline(always)]
fn finish<S: Simd, T: Real>(
    s: S,
    input: &Input<'_, T>,
    out: &Outputs<'_, T>,
    scratch: &Scratch<T>,
    segment: usize,
    first: usize,
    steps: usize,
    tile: Tile,
    dd: &mut [T],
    dbias: &mut [T],
) {
    let lanes = T::lanes::<S>();
    let scan = input.scan;
    let skip = T::load_or_zero(s, scan.d, tile.start..tile.start + tile.width);
    let bias = T::load_or_zero(s, scan.delta_bias, tile.start..tile.start + tile.width);
    let ln2 = T::splat(s, T::from_f64(std::f64::consts::LN_2));
    let (mut dd_sum, mut dbias_sum) = (T::load(s, dd), T::load(s, dbias));
    for i in 0..steps {
        let lane = i * lanes..(i + 1) * lanes;
        let at = scan.token(segment, first + i) * scan.dims.d + tile.start;
        let columns = at..at + tile.width;
        let u = T::load(s, &scan.u[columns.clone()]);
        let g = T::load(s, &scratch.g[lane.clone()]);
        let dx = T::load(s, &scratch.dx[lane.clone()]);
        let dt = T::load(s, &scratch.stage.dt[lane.clone()]);
        let du = T::vfma(s, dx, dt, T::vmul(s, skip, g));
        let mut ddelta = T::vfma(s, dx, u, T::vmul(s, T::load(s, &scratch.ddt[lane.clone()]), ln2));
        if scan.softplus {
            let raw = T::vadd(s, T::load(s, &scan.delta[columns.clone()]), bias);
            ddelta = T::vmul(s, ddelta, T::sigmoid(s, raw));
        }
        dd_sum = T::vfma(s, g, u, dd_sum);
        dbias_sum = T::vadd(s, dbias_sum, ddelta);
        // SAFETY: these columns of this token's row belong to this line alone.
        unsafe {
            T::put(s, out.u.range(at, tile.width), du);
            T::put(s, out.delta.range(at, tile.width), ddelta);
        }
        if let (Some(z), Some(dz)) = (scan.z, &out.z) {
            let (_, slope) = T::silu_and_slope(s, T::load(s, &z[columns.clone()]));
            let dy = T::load(s, &input.dy[columns]);
            let y = T::load(s, &scratch.stage.y[lane]);
            // SAFETY: as above.
            T::put(s, unsafe { dz.range(at, tile.width) }, T::vmul(s, dy, T::vmul(s, y, slope)));
        }
    }
    T::store(s, dd, dd_sum);
    T::store(s, dbias, dbias_sum);
}
