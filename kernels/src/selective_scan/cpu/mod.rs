//! The selective scan on the CPU: one vector lane for each channel, the states of a channel in registers.
//!
//! Work is cut into *lines* of segments × channel groups, which rayon spreads over the cores; channels of a group share
//! the tokens' rows of B and C. If there are few lines, segments are also cut along L into *spans*: a first pass finds
//! what each span adds to the state, a short serial pass joins them, a second pass computes the outputs. Spans, and the
//! groups whose sums are added, depend on the shapes alone, never on the number of threads, so results are the same bits on
//! any machine of one instruction set.

use super::Dims;
use crate::segments::Segment;
use crate::shared::unwritten_if;
use crate::simd::{Real, dispatch, prefetch};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

mod backward;
mod forward;
mod step;

pub(super) use backward::backward;
pub(super) use forward::forward;

/// Channels of a line at most: their staged values for one chunk stay in the second-level cache.
const GROUP_CHANNELS: usize = 128;
/// Lines that we want at least before cutting segments along L is worth its second pass.
const ENOUGH_LINES: usize = 8;
/// Lines for each thread that are enough to keep all of them busy to the end.
const LINES_PER_THREAD: usize = 4;
/// Spans are no shorter than this many tokens.
const MIN_SPAN: usize = 1024;

/// The arguments of a scan as slices; shapes as in [`super::SelectiveScan`].
pub(super) struct Scan<'a, T> {
    pub(super) u: &'a [T],
    pub(super) delta: &'a [T],
    pub(super) a: &'a [T],
    pub(super) b: &'a [T],
    pub(super) c: &'a [T],
    pub(super) d: Option<&'a [T]>,
    pub(super) z: Option<&'a [T]>,
    pub(super) delta_bias: Option<&'a [T]>,
    pub(super) initial_state: Option<&'a [T]>,
    pub(super) segments: &'a [Segment],
    pub(super) dims: Dims,
    pub(super) softplus: bool,
    pub(super) reverse: bool,
    pub(super) chunk: usize,
}

/// Channels `start .. start + width`, at most one vector, all of one B group and one C group.
#[derive(Clone, Copy, Debug)]
struct Tile {
    start: usize,
    width: usize,
}

/// Tiles `first .. end` of the plan, all of one B group and one C group.
#[derive(Clone, Copy, Debug)]
struct Group {
    first: usize,
    end: usize,
    b_group: usize,
    c_group: usize,
}

/// Steps `start .. end` of segment `segment`, counted in scan order.
#[derive(Clone, Copy, Debug)]
struct Span {
    segment: usize,
    start: usize,
    end: usize,
}

/// How one scan is cut into lines.
struct Plan {
    lanes: usize,
    tiles: Vec<Tile>,
    groups: Vec<Group>,
    spans: Vec<Span>,
    /// Index of the first kept state of each segment.
    first_chunk: Vec<usize>,
    /// Number of kept states.
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
        let Dims { d, b_groups, c_groups, .. } = scan.dims;
        let lanes = dispatch(LaneCount::<T>(PhantomData));
        // Channels that share both a B group and a C group come in runs of `run`.
        let (b_run, c_run) = (d / b_groups.max(1), d / c_groups.max(1));
        let mut borders: Vec<usize> = (0..d).step_by(b_run).chain((0..d).step_by(c_run)).collect();
        borders.push(d);
        borders.sort_unstable();
        borders.dedup();

        let lines = |channels: usize| scan.segments.len() * d.div_ceil(channels);
        let mut group_channels = GROUP_CHANNELS.max(lanes);
        while group_channels > lanes && lines(group_channels) < 2 * ENOUGH_LINES {
            group_channels /= 2;
        }
        let (mut tiles, mut groups) = (Vec::new(), Vec::new());
        for run in borders.windows(2) {
            for start in (run[0]..run[1]).step_by(group_channels) {
                let end = (start + group_channels).min(run[1]);
                let first = tiles.len();
                tiles.extend(
                    (start..end).step_by(lanes).map(|start| Tile { start, width: lanes.min(end - start) }),
                );
                groups.push(Group {
                    first,
                    end: tiles.len(),
                    b_group: start / b_run,
                    c_group: start / c_run,
                });
            }
        }

        let lines = scan.segments.len() * groups.len();
        let cuts = if lines < ENOUGH_LINES { (2 * ENOUGH_LINES).div_ceil(lines.max(1)) } else { 1 };
        let (mut spans, mut first_chunk, mut chunks) = (Vec::new(), Vec::new(), 0);
        for (segment, s) in scan.segments.iter().enumerate() {
            let span = s.len().div_ceil(cuts).max(MIN_SPAN).next_multiple_of(scan.chunk);
            let starts = (0..s.len()).step_by(span);
            spans.extend(starts.map(|start| Span { segment, start, end: (start + span).min(s.len()) }));
            if s.is_empty() {
                spans.push(Span { segment, start: 0, end: 0 });
            }
            first_chunk.push(chunks);
            chunks += s.len().div_ceil(scan.chunk);
        }
        Self { lanes, tiles, groups, spans, first_chunk, chunks }
    }

    /// Joins neighbouring groups of the same B and C groups, as long as every thread keeps a few lines: longer pieces of
    /// each token's row are read at a time. The spans stay, and with them every bit of what a line computes.
    fn widen(&mut self, threads: usize) {
        let most = GROUP_CHANNELS.div_ceil(self.lanes);
        while self.spans.len() * self.groups.len() >= 2 * LINES_PER_THREAD * threads {
            let narrow = self.groups.len();
            let pairs = self.groups.chunks(2).flat_map(|pair| match *pair {
                [a, b] if (a.b_group, a.c_group) == (b.b_group, b.c_group) && b.end - a.first <= most => {
                    vec![Group { end: b.end, ..a }]
                }
                _ => pair.to_vec(),
            });
            self.groups = pairs.collect();
            if self.groups.len() == narrow {
                break;
            }
        }
    }

    /// Whether some segment has more than one span.
    fn is_cut(&self) -> bool {
        self.spans.iter().any(|s| s.start > 0)
    }
}

/// Where the rows of consecutive scan steps lie: row `i` starts at `first + i · stride`.
#[derive(Clone, Copy)]
struct Rows {
    first: isize,
    stride: isize,
}

impl Rows {
    #[inline(always)]
    fn start(self, step: usize) -> usize {
        (self.first + step as isize * self.stride) as usize
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

    /// Rows of a coefficient of `groups` groups, from scan step `step` on. Constant coefficients have no rows.
    fn rows(&self, segment: usize, step: usize, groups: usize, group: usize) -> Rows {
        let n = self.dims.n;
        self.rows_of(segment, step, groups * n, group * n)
    }

    /// Rows of a tile's channels in `(B, L, D)`, from scan step `step` on.
    #[inline(always)]
    fn channels(&self, segment: usize, step: usize, tile: Tile) -> Rows {
        self.rows_of(segment, step, self.dims.d, tile.start)
    }

    /// Rows from column `column` of tokens of `width` elements, from scan step `step` on.
    #[inline(always)]
    fn rows_of(&self, segment: usize, step: usize, width: usize, column: usize) -> Rows {
        let first = (self.token(segment, step) * width + column) as isize;
        let width = width as isize;
        Rows { first, stride: if self.reverse { -width } else { width } }
    }

    /// Copies `(D, N)` values of a tile, `x[start + lane, n]`, to lane order, `[n][lane]`.
    fn load_tile(&self, x: &[T], tile: Tile, lanes: usize, out: &mut [T]) {
        let n = self.dims.n;
        for (lane, row) in x[tile.start * n..(tile.start + tile.width) * n].chunks_exact(n).enumerate() {
            for (i, &value) in row.iter().enumerate() {
                out[i * lanes + lane] = value;
            }
        }
    }

    /// The reverse of [`Scan::load_tile`]; `x` begins at the tile's first channel.
    fn store_tile(&self, values: &[T], lanes: usize, x: &mut [MaybeUninit<T>]) {
        let n = self.dims.n;
        for (lane, row) in x.chunks_exact_mut(n).enumerate() {
            for (i, value) in row.iter_mut().enumerate() {
                value.write(values[i * lanes + lane]);
            }
        }
    }

    /// Room for an output `(B, L, D)`, of which tokens of no segment are zero and those of segments are still to be
    /// written.
    fn per_token(&self) -> Vec<MaybeUninit<T>> {
        let tokens: usize = self.segments.iter().map(Segment::len).sum();
        unwritten_if(tokens * self.dims.d == self.u.len(), self.u.len())
    }

    /// `A` of a tile in lane order, times log₂ e so that exp(δA) = 2^(δ·this).
    fn a_log2e(&self, tile: Tile, lanes: usize) -> Vec<T> {
        let mut a = vec![T::default(); self.dims.n * lanes];
        self.load_tile(self.a, tile, lanes, &mut a);
        let log2e = T::from_f64(std::f64::consts::LOG2_E);
        a.iter_mut().for_each(|x| *x *= log2e);
        a
    }

    /// A constant coefficient of a tile in lane order; empty if the coefficient varies with the token.
    fn constant(&self, x: &[T], groups: usize, tile: Tile, lanes: usize) -> Vec<T> {
        if groups > 0 {
            return Vec::new();
        }
        let mut out = vec![T::default(); self.dims.n * lanes];
        self.load_tile(x, tile, lanes, &mut out);
        out
    }

    /// The state before a segment's first step, of one tile in lane order.
    fn state_before(&self, segment: usize, tile: Tile, lanes: usize) -> Vec<T> {
        let mut h = vec![T::default(); self.dims.n * lanes];
        if let Some(h0) = self.initial_state {
            let size = self.dims.d * self.dims.n;
            self.load_tile(&h0[segment * size..(segment + 1) * size], tile, lanes, &mut h);
        }
        h
    }
}

/// The memory of a chunk to come, in `K` arrays `(B, L, D)`. Its rows lie so far apart that no machine fetches them by
/// itself, and waiting for them would take a third of the time.
#[derive(Clone, Copy)]
struct Ahead<T, const K: usize> {
    /// Where the tile's part of the first step lies in each array.
    first: [*const T; K],
    stride: isize,
    width: usize,
}

impl<T: Real, const K: usize> Ahead<T, K> {
    fn new(scan: &Scan<'_, T>, arrays: [*const T; K], segment: usize, step: usize, tile: Tile) -> Self {
        let Rows { first, stride } = scan.channels(segment, step, tile);
        Self { first: arrays.map(|base| base.wrapping_offset(first)), stride, width: tile.width }
    }

    /// Asks for the parts of step `step`. They need not begin at a cache line: both lines that one may lie across.
    #[inline(always)]
    fn fetch(self, step: usize) {
        for first in self.first {
            let part = first.wrapping_offset(step as isize * self.stride);
            prefetch(part);
            prefetch(part.wrapping_add(self.width));
        }
    }
}

/// Values of one coefficient (B or C) for the states of one tile.
#[derive(Clone, Copy)]
struct Coefficient<'a, T> {
    /// The whole tensor; read if the coefficient varies with the token.
    data: &'a [T],
    rows: Rows,
    /// In lane order; not empty if the coefficient is constant.
    constant: &'a [T],
}

impl<T: Real> Coefficient<'_, T> {
    /// The values of scan step `step` for states `first .. first + NB`; empty if the coefficient is constant, which it may
    /// be with `CONSTANT`. Without, the compiler knows the length, and its loops over states have no checks.
    #[inline(always)]
    fn row<const NB: usize, const CONSTANT: bool>(&self, step: usize, first: usize) -> &[T] {
        if CONSTANT && !self.constant.is_empty() {
            return &[];
        }
        let start = self.rows.start(step) + first;
        &self.data[start..start + NB]
    }

    /// The value for state `first + k` in every lane, given its step's [`Coefficient::row`]. `CONSTANT` says that this
    /// coefficient may be constant, so that scans where none is pay for no test.
    #[inline(always)]
    fn lanes<S: Simd, const CONSTANT: bool>(&self, s: S, row: &[T], first: usize, k: usize) -> T::V<S> {
        if CONSTANT && !self.constant.is_empty() {
            T::load(s, &self.constant[(first + k) * T::lanes::<S>()..])
        } else {
            T::splat(s, row[k])
        }
    }
}

/// The staged inputs of one chunk of one tile: `[step][lane]` each.
struct Stage<T> {
    /// δ.
    dt: Vec<T>,
    /// δ·u.
    x: Vec<T>,
    /// y before the gate.
    y: Vec<T>,
}

impl<T: Real> Stage<T> {
    fn new(steps: usize, lanes: usize) -> Self {
        let zeros = || vec![T::default(); steps * lanes];
        Self { dt: zeros(), x: zeros(), y: zeros() }
    }

    /// Fills the stage with `steps` steps from `first` on: δ, δ·u and D·u.
    #[inline(always)]
    fn fill<S: Simd>(
        &mut self,
        s: S,
        scan: &Scan<'_, T>,
        segment: usize,
        first: usize,
        steps: usize,
        tile: Tile,
    ) {
        let lanes = T::lanes::<S>();
        let bias = T::load_or_zero(s, scan.delta_bias, tile.start..tile.start + tile.width);
        let skip = T::load_or_zero(s, scan.d, tile.start..tile.start + tile.width);
        let rows = scan.channels(segment, first, tile);
        let (dts, xs) = (self.dt.chunks_exact_mut(lanes), self.x.chunks_exact_mut(lanes));
        let staged = dts.zip(xs).zip(self.y.chunks_exact_mut(lanes)).take(steps);
        for (i, ((dt, x), y)) in staged.enumerate() {
            let at = rows.start(i);
            let u = T::load(s, &scan.u[at..at + tile.width]);
            let raw = T::vadd(s, T::load(s, &scan.delta[at..at + tile.width]), bias);
            let delta = if scan.softplus { T::softplus(s, raw) } else { raw };
            T::store(s, dt, delta);
            T::store(s, x, T::vmul(s, delta, u));
            T::store(s, y, T::vmul(s, skip, u));
        }
    }
}

/// Runs `$body` for blocks of `$size` consecutive states from `$first` on, which together are all `$n` states.
macro_rules! for_state_blocks {
    ($n:expr, [$($nb:literal),*], |$first:ident, $size:ident| $body:expr) => {{
        let mut $first = 0;
        $(
            while $n - $first >= $nb {
                const $size: usize = $nb;
                $body;
                $first += $nb;
            }
        )*
    }};
}
use for_state_blocks;

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups join as long as threads have lines enough, never across groups of B, and spans stay.
    #[test]
    fn groups_join_within_groups_of_b() {
        let dims = Dims { len: 64, d: 512, n: 1, b_groups: 2, c_groups: 1 };
        let segments = [Segment { row: 0, start: 0, end: 64 }];
        let x = vec![0f32; dims.len * dims.d];
        let scan = Scan {
            u: &x,
            delta: &x,
            a: &x[..dims.d],
            b: &x[..dims.len * 2],
            c: &x[..dims.len],
            d: None,
            z: None,
            delta_bias: None,
            initial_state: None,
            segments: &segments,
            dims,
            softplus: false,
            reverse: false,
            chunk: 32,
        };
        let narrow = Plan::new(&scan);
        let channels =
            |plan: &Plan, g: &Group| plan.tiles[g.first..g.end].iter().map(|tile| tile.width).sum::<usize>();
        for (threads, fewest) in [(1, 4), (2, 8), (1000, narrow.groups.len())] {
            let mut plan = Plan::new(&scan);
            plan.widen(threads);
            assert!(plan.groups.len() >= fewest, "{threads} threads have {} lines", plan.groups.len());
            assert_eq!(plan.groups.len() < narrow.groups.len(), threads < 1000);
            let mut at = 0;
            for group in &plan.groups {
                let first = plan.tiles[group.first].start;
                let width = channels(&plan, group);
                assert!(first == at && width <= GROUP_CHANNELS && first / 256 == (first + width - 1) / 256);
                assert_eq!(group.b_group, first / 256);
                at += width;
            }
            assert_eq!((at, plan.spans.len()), (dims.d, narrow.spans.len()));
        }
    }
}
