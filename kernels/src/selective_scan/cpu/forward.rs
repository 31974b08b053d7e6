//! Forward: outputs, last states, and the state at the first step of each chunk.
#![allow(unsafe_code)] // lines write disjoint columns of the shared outputs

use super::{Ahead, Coefficient, Group, Plan, Scan, Span, Stage, Tile, for_state_blocks};
use crate::shared::{SharedMut, unwritten, written};
use crate::simd::{Real, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// What forward computes.
pub(in crate::selective_scan) struct Forward<T> {
    /// `(B, L, D)`.
    pub(in crate::selective_scan) y: Vec<T>,
    /// `(segments, D, N)`.
    pub(in crate::selective_scan) last_state: Vec<T>,
    /// `(chunks, N, D)`: the state before each chunk's first step. Empty unless asked for.
    pub(in crate::selective_scan) chunk_states: Vec<T>,
}

/// Runs the scan; `keep` says whether backward will need the states between chunks.
pub(in crate::selective_scan) fn forward<T: Real>(scan: &Scan<'_, T>, keep: bool) -> Forward<T> {
    if !keep && super::step::fits(scan) {
        return super::step::step(scan);
    }
    let mut plan = Plan::new(scan);
    plan.widen(rayon::current_num_threads());
    let (d, n) = (scan.dims.d, scan.dims.n);
    let mut y = scan.per_token();
    let mut last_state = unwritten(scan.segments.len() * d * n);
    let mut chunk_states = unwritten(if keep { plan.chunks * n * d } else { 0 });
    let starts = if plan.is_cut() { Some(span_starts(scan, &plan)) } else { None };
    let out = Outputs {
        y: SharedMut::new(&mut y),
        last_state: SharedMut::new(&mut last_state),
        chunk_states: keep.then(|| SharedMut::new(&mut chunk_states)),
    };
    (0..plan.spans.len() * plan.groups.len()).into_par_iter().for_each(|line| {
        let (span, group) = (line / plan.groups.len(), line % plan.groups.len());
        let start = starts.as_ref().map(|s| &s[span][..]);
        let (span, group) = (plan.spans[span], plan.groups[group]);
        dispatch(Line { scan, plan: &plan, out: &out, start, span, group });
    });
    // SAFETY: groups are all channels, spans all steps of all segments, and their lines have written y, a state at each
    // chunk, and the last state at the end of each segment.
    unsafe { Forward { y: written(y), last_state: written(last_state), chunk_states: written(chunk_states) } }
}

struct Outputs<'a, T> {
    y: SharedMut<'a, MaybeUninit<T>>,
    last_state: SharedMut<'a, MaybeUninit<T>>,
    chunk_states: Option<SharedMut<'a, MaybeUninit<T>>>,
}

/// The state before each span, `[tile][n][lane]`, of segments cut along L.
fn span_starts<T: Real>(scan: &Scan<'_, T>, plan: &Plan) -> Vec<Vec<T>> {
    let size = scan.dims.n * plan.lanes;
    // What a span makes of a zero state, and the factor by which it shrinks the state that enters it.
    let parts: Vec<(Vec<T>, Vec<T>)> = (0..plan.spans.len() * plan.tiles.len())
        .into_par_iter()
        .map(|i| {
            let (span, tile) = (i / plan.tiles.len(), i % plan.tiles.len());
            let group = plan.groups.iter().find(|g| (g.first..g.end).contains(&tile)).copied();
            let group = group.expect("every tile belongs to a group");
            dispatch(SpanEffect { scan, plan, span: plan.spans[span], tile: plan.tiles[tile], group })
        })
        .collect();
    let mut starts: Vec<Vec<T>> = Vec::with_capacity(plan.spans.len());
    for (i, span) in plan.spans.iter().enumerate() {
        let mut start = vec![T::default(); plan.tiles.len() * size];
        for (t, &tile) in plan.tiles.iter().enumerate() {
            let out = &mut start[t * size..(t + 1) * size];
            if span.start == 0 {
                out.copy_from_slice(&scan.state_before(span.segment, tile, plan.lanes));
            } else {
                let (end, decay) = &parts[(i - 1) * plan.tiles.len() + t];
                let before = &starts[i - 1][t * size..(t + 1) * size];
                for (k, x) in out.iter_mut().enumerate() {
                    *x = decay[k] * before[k] + end[k];
                }
            }
        }
        starts.push(start);
    }
    starts
}

/// First pass over one span of one tile.
struct SpanEffect<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    span: Span,
    tile: Tile,
    group: Group,
}

impl<T: Real> WithSimd for SpanEffect<'_, T> {
    type Output = (Vec<T>, Vec<T>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Self::Output {
        let Self { scan, plan, span, tile, group } = self;
        let (n, lanes) = (scan.dims.n, plan.lanes);
        let a2 = scan.a_log2e(tile, lanes);
        let b_constant = scan.constant(scan.b, scan.dims.b_groups, tile, lanes);
        let mut h = vec![T::default(); n * lanes];
        let mut stage = Stage::new(scan.chunk.min(span.end - span.start), lanes);
        let mut total_dt = T::vzero(s);
        for first in (span.start..span.end).step_by(scan.chunk) {
            let steps = scan.chunk.min(span.end - first);
            stage.fill(s, scan, span.segment, first, steps, tile);
            for dt in stage.dt[..steps * lanes].chunks_exact(lanes) {
                total_dt = T::vadd(s, total_dt, T::load(s, dt));
            }
            let rows = scan.rows(span.segment, first, scan.dims.b_groups, group.b_group);
            let b = Coefficient { data: scan.b, rows, constant: &b_constant };
            for state in 0..n {
                let lane = state * lanes..(state + 1) * lanes;
                let decay = T::load(s, &a2[lane.clone()]);
                let mut value = T::load(s, &h[lane.clone()]);
                for i in 0..steps {
                    let (dt, x) = (T::load(s, &stage.dt[i * lanes..]), T::load(s, &stage.x[i * lanes..]));
                    let a = T::vexp2(s, T::vmul(s, dt, decay));
                    let b = b.lanes::<S, true>(s, b.row::<1, true>(i, state), state, 0);
                    value = T::vfma(s, a, value, T::vmul(s, x, b));
                }
                T::store(s, &mut h[lane], value);
            }
        }
        let mut decay = a2;
        for x in decay.chunks_exact_mut(lanes) {
            let a = T::vexp2(s, T::vmul(s, total_dt, T::load(s, x)));
            T::store(s, x, a);
        }
        (h, decay)
    }
}

/// One span of one channel group.
struct Line<'a, T> {
    scan: &'a Scan<'a, T>,
    plan: &'a Plan,
    out: &'a Outputs<'a, T>,
    /// The state before the span, `[tile][n][lane]`; absent if the span is a whole segment.
    start: Option<&'a [T]>,
    span: Span,
    group: Group,
}

impl<T: Real> WithSimd for Line<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, out, start, span, group } = self;
        let (n, d, lanes) = (scan.dims.n, scan.dims.d, plan.lanes);
        let tiles = &plan.tiles[group.first..group.end];
        let size = n * lanes;
        let a2: Vec<Vec<T>> = tiles.iter().map(|&t| scan.a_log2e(t, lanes)).collect();
        let constant = |x, groups| -> Vec<Vec<T>> {
            tiles.iter().map(|&t| scan.constant(x, groups, t, lanes)).collect()
        };
        let (b_constant, c_constant) =
            (constant(scan.b, scan.dims.b_groups), constant(scan.c, scan.dims.c_groups));
        let mut h: Vec<Vec<T>> = match start {
            Some(start) => {
                (group.first..group.end).map(|t| start[t * size..(t + 1) * size].to_vec()).collect()
            }
            None => tiles.iter().map(|&t| scan.state_before(span.segment, t, lanes)).collect(),
        };
        let mut stage = Stage::new(scan.chunk.min(span.end - span.start), lanes);
        for first in (span.start..span.end).step_by(scan.chunk) {
            let steps = scan.chunk.min(span.end - first);
            let b_rows = scan.rows(span.segment, first, scan.dims.b_groups, group.b_group);
            let c_rows = scan.rows(span.segment, first, scan.dims.c_groups, group.c_group);
            for (t, &tile) in tiles.iter().enumerate() {
                if let Some(states) = &out.chunk_states {
                    let chunk = plan.first_chunk[span.segment] + first / scan.chunk;
                    for (i, row) in h[t].chunks_exact(lanes).enumerate() {
                        // SAFETY: these columns of this chunk's row belong to this line alone.
                        let to = unsafe { states.range((chunk * n + i) * d + tile.start, tile.width) };
                        to.write_copy_of_slice(&row[..tile.width]);
                    }
                }
                stage.fill(s, scan, span.segment, first, steps, tile);
                let b = Coefficient { data: scan.b, rows: b_rows, constant: &b_constant[t] };
                let c = Coefficient { data: scan.c, rows: c_rows, constant: &c_constant[t] };
                let next = first + scan.chunk;
                let ahead = (next < span.end).then(|| {
                    let y = out.y.as_ptr().cast();
                    let z = scan.z.map_or(y, <[T]>::as_ptr);
                    let arrays = [scan.u.as_ptr(), scan.delta.as_ptr(), z, y];
                    Ahead::new(scan, arrays, span.segment, next, tile)
                });
                scan_chunk(s, &mut stage, steps, &a2[t], &mut h[t], b, c, ahead);
                let rows = scan.channels(span.segment, first, tile);
                for (i, y) in stage.y.chunks_exact(lanes).take(steps).enumerate() {
                    let at = rows.start(i);
                    let mut y = T::load(s, y);
                    if let Some(z) = scan.z {
                        y = T::gate(s, y, T::load(s, &z[at..at + tile.width]));
                    }
                    // SAFETY: these columns of this token's row belong to this line alone.
                    T::put(s, unsafe { out.y.range(at, tile.width) }, y);
                }
            }
        }
        if span.end == scan.segments[span.segment].len() {
            for (t, &tile) in tiles.iter().enumerate() {
                let start = (span.segment * d + tile.start) * n;
                // SAFETY: these channels of this segment belong to this line alone.
                scan.store_tile(&h[t], lanes, unsafe { out.last_state.range(start, tile.width * n) });
            }
        }
    }
}

/// Advances the states `h` of one tile by the staged steps and adds C·h to the staged y.
#[inline(always)]
fn scan_chunk<S: Simd, T: Real>(
    s: S,
    stage: &mut Stage<T>,
    steps: usize,
    a2: &[T],
    h: &mut [T],
    b: Coefficient<'_, T>,
    c: Coefficient<'_, T>,
    ahead: Option<Ahead<T, 4>>,
) {
    let lanes = T::lanes::<S>();
    let n = h.len() / lanes;
    if b.constant.is_empty() && c.constant.is_empty() {
        // Eight states, their decays and the constants of the exponential fit 32 registers.
        for_state_blocks!(n, [8, 4, 2, 1], |first, NB| {
            scan_block::<S, T, NB, false>(s, stage, steps, a2, h, b, c, ahead.filter(|_| first == 0), first)
        });
    } else {
        for_state_blocks!(n, [1], |first, NB| {
            scan_block::<S, T, NB, true>(s, stage, steps, a2, h, b, c, ahead.filter(|_| first == 0), first)
        });
    }
}

/// [`scan_chunk`] for states `first .. first + NB`, held in registers.
#[inline(always)]
fn scan_block<S: Simd, T: Real, const NB: usize, const CONSTANT: bool>(
    s: S,
    stage: &mut Stage<T>,
    steps: usize,
    a2: &[T],
    h: &mut [T],
    b: Coefficient<'_, T>,
    c: Coefficient<'_, T>,
    ahead: Option<Ahead<T, 4>>,
    first: usize,
) {
    let lanes = T::lanes::<S>();
    let mut decay = [T::vzero(s); NB];
    let mut state = [T::vzero(s); NB];
    for k in 0..NB {
        let at = (first + k) * lanes;
        decay[k] = T::load(s, &a2[at..at + lanes]);
        state[k] = T::load(s, &h[at..at + lanes]);
    }
    let staged = stage.dt.chunks_exact(lanes).zip(stage.x.chunks_exact(lanes));
    for (i, ((dt, x), out)) in staged.zip(stage.y.chunks_exact_mut(lanes)).take(steps).enumerate() {
        if let Some(ahead) = ahead {
            ahead.fetch(i);
        }
        let (dt, x) = (T::load(s, dt), T::load(s, x));
        let (b_row, c_row) = (b.row::<NB, CONSTANT>(i, first), c.row::<NB, CONSTANT>(i, first));
        // Two sums, so that the additions do not wait for each other.
        let mut y = [T::load(s, out), T::vzero(s)];
        for k in 0..NB {
            let a = T::vexp2(s, T::vmul(s, dt, decay[k]));
            let bx = T::vmul(s, x, b.lanes::<S, CONSTANT>(s, b_row, first, k));
            state[k] = T::vfma(s, a, state[k], bx);
            y[k % 2] = T::vfma(s, state[k], c.lanes::<S, CONSTANT>(s, c_row, first, k), y[k % 2]);
        }
        T::store(s, out, T::vadd(s, y[0], y[1]));
    }
    for (k, &v) in state.iter().enumerate() {
        let at = (first + k) * lanes;
        T::store(s, &mut h[at..at + lanes], v);
    }
}
