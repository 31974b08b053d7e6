//! All gradients of one unit: the heads of one group, or a share of them, over one chunk.
//!
//! With `M[t, s] = C_t·B_s · e_ts · w_s`, the decays `e_ts = exp(S_t - S_s)` of the segment sums S, the state H before the
//! chunk and the gradient G of the state after it, one head computes
//!
//! ```text
//! y_t = Σ_{s≤t} M[t, s] x_s + exp(S_t) · H C_t            H' = exp(S_Q) H + Σ_s exp(S_Q - S_s) w_s · x_s ⊗ B_s
//! ```
//!
//! The gradient of the decay of step u is the sum of all that passes through that step: `Σ_{t≥u>s} M[t, s] dM[t, s]`, the
//! readers of H from u on, the writers of H' before u, and H' through H. Each is summed with terms of its own only, so
//! that nothing cancels.
#![allow(unsafe_code)] // units write disjoint parts of the shared outputs

use super::backward::{Passed, Places, ungated};
use super::forward::{carried, decay_rows, mix, mixing_columns, skip};
use super::{Chunk, Plan, Scan, Steps, TRIANGLE, Unit, multiply, products, scale};
use crate::matrix::{Matrix, MatrixMut};
use crate::simd::Real;
use crate::ssd::Dims;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// One unit's work.
pub(super) struct ChunkGradients<'a, T> {
    pub(super) scan: &'a Scan<'a, T>,
    pub(super) plan: &'a Plan,
    pub(super) passed: Passed<'a, T>,
    pub(super) places: Places<'a, T>,
    pub(super) unit: &'a Unit,
    pub(super) chunk: &'a Chunk,
}

/// Matrices of tokens × tokens, by columns.
struct Squares<T> {
    stride: usize,
    /// `C·Bᵀ`.
    cb: Vec<T>,
    /// Its gradient, over all heads.
    dcb: Vec<T>,
    /// The matrix of a head, its gradient, and the decays in it.
    mixing: Vec<T>,
    dmixing: Vec<T>,
    decays: Vec<T>,
}

/// Some heads whose channels are worked on at once: `(len, width)` each.
struct Block<T> {
    heads: Range<usize>,
    width: usize,
    /// The gradient of the output before the gate.
    dy: Vec<T>,
    dx: Vec<T>,
    /// What is read of the state: part of the output before the gate.
    read: Vec<T>,
    /// A product on its way.
    scratch: Vec<T>,
}

/// One head, one value for each step.
struct Head<T> {
    steps: Steps<T>,
    /// Gradients of the weights.
    into_state: Vec<T>,
    into_output: Vec<T>,
    /// Gradient of the log of the decay.
    log: Vec<T>,
    /// What the steps read of the state before the chunk, and write to the state after it, times the gradients there.
    reads: Vec<T>,
    writes: Vec<T>,
    /// Σ over the writers so far of `M·dM`, for each reader still to come.
    through: Vec<T>,
}

impl<T: Real> Head<T> {
    fn new(len: usize, lanes: usize) -> Self {
        let zeros = || vec![T::default(); len.next_multiple_of(lanes)];
        Self {
            steps: Steps::new(len, lanes),
            into_state: zeros(),
            into_output: zeros(),
            log: zeros(),
            reads: zeros(),
            writes: zeros(),
            through: zeros(),
        }
    }

    fn clear(&mut self) {
        let Self { into_state, into_output, log, reads, writes, through, .. } = self;
        for x in [into_state, into_output, log, reads, writes, through] {
            x.fill(T::default());
        }
    }
}

impl<T: Real> Block<T> {
    fn resize(&mut self, len: usize, heads: Range<usize>, p: usize) {
        self.width = heads.len() * p;
        self.heads = heads;
        let Self { dy, dx, read, scratch, .. } = self;
        for x in [dy, dx, read, scratch] {
            x.resize(len * self.width, T::default());
        }
    }

    /// Where the values of a head at one step lie.
    #[inline(always)]
    fn at(&self, step: usize, head: usize, p: usize) -> Range<usize> {
        let first = step * self.width + (head - self.heads.start) * p;
        first..first + p
    }
}

impl<T: Real> WithSimd for ChunkGradients<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, plan, passed, unit, chunk, .. } = &self;
        let Dims { p, n, .. } = scan.dims;
        let (len, stride) = (chunk.len, plan.stride(chunk.len));
        let zeros = |len: usize| vec![T::default(); len];
        let square = || zeros(len * stride);
        let mut squares = Squares {
            stride,
            cb: square(),
            dcb: square(),
            mixing: square(),
            dmixing: square(),
            decays: square(),
        };
        products(scan, chunk, unit.group, stride, &mut squares.cb);
        let (mut db, mut dc) = (zeros(len * n), zeros(len * n));
        let mut block = Block {
            heads: 0..0,
            width: 0,
            dy: Vec::new(),
            dx: Vec::new(),
            read: Vec::new(),
            scratch: Vec::new(),
        };
        let most = scan.blocks(&unit.heads).map(|heads| heads.len()).max().unwrap_or(0);
        let mut of_heads: Vec<Head<T>> = (0..most).map(|_| Head::new(len, plan.lanes)).collect();
        for heads in scan.blocks(&unit.heads) {
            block.resize(len, heads.clone(), p);
            for (head, of_head) in heads.clone().zip(&mut of_heads) {
                of_head.clear();
                of_head.steps.fill(s, scan, chunk, head);
            }
            let of_heads = &mut of_heads[..heads.len()];
            match passed.dy {
                Some(dy) => ungated(s, scan, chunk, &heads, dy, &mut block.dy),
                None => block.dy.fill(T::default()),
            }
            self.writers(s, &mut block, of_heads, &mut db);
            self.readers(s, &mut block, of_heads, &mut dc);
            for (head, of_head) in heads.zip(of_heads) {
                if passed.dy.is_some() {
                    let Squares { cb, mixing, decays, .. } = &mut squares;
                    mixing_columns(s, &of_head.steps, len, stride, cb, mixing, Some(decays));
                    self.within(s, head, of_head, &mut squares, &mut block);
                }
                self.store_steps(head, of_head);
            }
            self.store_tokens(s, &block);
        }
        if passed.dy.is_some() {
            self.coefficients(&squares, &mut db, &mut dc);
        }
        self.store_coefficients(&db, &dc);
    }
}

impl<T: Real> ChunkGradients<'_, T> {
    /// States or their gradients of a block's heads: `(width, N)`.
    fn state<'a>(&self, states: &'a [T], block: &Block<T>) -> Matrix<'a, T> {
        let Dims { h, p, n, .. } = self.scan.dims;
        let first = (self.unit.chunk * h + block.heads.start) * p * n;
        Matrix::new(&states[first..first + block.width * n], block.width, n)
    }

    /// What comes back from the state after the chunk: the beginning of dx, and terms of dB.
    #[inline(always)]
    fn writers<S: Simd>(&self, s: S, block: &mut Block<T>, of_heads: &mut [Head<T>], db: &mut [T]) {
        let Self { scan, plan, passed, unit, chunk, .. } = self;
        let Dims { h, p, n, .. } = scan.dims;
        let (len, width) = (chunk.len, block.width);
        if !passed.has_grad(plan, unit.chunk) {
            block.dx.fill(T::default());
            return;
        }
        let grad = self.state(passed.grads, block);
        let b = scan.coefficient(scan.b, chunk, unit.group);
        multiply(MatrixMut::new(&mut block.dx, len, width), b, grad.t(), false);
        for (head, of_head) in block.heads.clone().zip(of_heads) {
            let Head { steps, writes, .. } = of_head;
            for (i, write) in writes[..len].iter_mut().enumerate() {
                let at = block.at(i, head, p);
                let from = (scan.token(chunk, i) * h + head) * p;
                let x = &scan.x[from..from + p];
                *write = dot(s, x, &block.dx[at.clone()]) * steps.to_end[i];
                let factor = steps.into_state[i] * steps.to_end[i];
                scale(s, x, factor, &mut block.scratch[at.clone()]);
                scale_in_place(s, &mut block.dx[at], factor);
            }
        }
        let scaled = Matrix::new(&block.scratch, len, width);
        multiply(MatrixMut::new(db, len, n), scaled, grad, true);
    }

    /// What is read of the state before the chunk, and terms of dC.
    #[inline(always)]
    fn readers<S: Simd>(&self, s: S, block: &mut Block<T>, of_heads: &mut [Head<T>], dc: &mut [T]) {
        let Self { scan, passed, unit, chunk, .. } = self;
        let Dims { p, n, .. } = scan.dims;
        let (len, width) = (chunk.len, block.width);
        if passed.dy.is_none() || !scan.has_state(chunk) {
            block.read.fill(T::default());
            return;
        }
        carried(scan, chunk, unit, passed.states, &block.heads, &mut block.read);
        block.scratch.copy_from_slice(&block.dy);
        for (head, of_head) in block.heads.clone().zip(of_heads) {
            let first = (head - block.heads.start) * p;
            for x in [&mut block.read, &mut block.scratch] {
                decay_rows(s, &of_head.steps, x, (len, width), first..first + p);
            }
            for i in 0..len {
                let at = block.at(i, head, p);
                of_head.reads[i] = dot(s, &block.dy[at.clone()], &block.read[at]);
            }
        }
        let scaled = Matrix::new(&block.scratch, len, width);
        multiply(MatrixMut::new(dc, len, n), scaled, self.state(passed.states, block), true);
    }

    /// What passes from step to step of the chunk, of one head.
    #[inline(always)]
    fn within<S: Simd>(
        &self,
        s: S,
        head: usize,
        of_head: &mut Head<T>,
        squares: &mut Squares<T>,
        block: &mut Block<T>,
    ) {
        let Self { scan, chunk, .. } = self;
        let Dims { h, p, .. } = scan.dims;
        let (len, stride, width) = (chunk.len, squares.stride, block.width);
        let column = (head - block.heads.start) * p;
        if scan.z.is_some() {
            mix(scan, chunk, head, (&squares.mixing, stride), &mut block.read, (width, column));
        }
        for s0 in (0..len).step_by(TRIANGLE) {
            let (s1, at) = ((s0 + TRIANGLE).min(len), s0 * stride + s0);
            let dy = Matrix::strided(&block.dy, s0 * width + column, (len - s0, width as isize), p);
            let rows = (s1 - s0, stride as isize);
            multiply(
                MatrixMut::strided(&mut squares.dmixing, at, rows, len - s0),
                scan.some_rows(scan.x, chunk, s0..s1, h * p, head * p..(head + 1) * p),
                dy.t(),
                false,
            );
            multiply(
                MatrixMut::strided(&mut block.dx, s0 * width + column, (s1 - s0, width as isize), p),
                Matrix::strided(&squares.mixing, at, rows, len - s0),
                dy,
                true,
            );
        }
        let lanes = T::lanes::<S>();
        for step in 0..len {
            let row = step * stride..(step + 1) * stride;
            let (cb, decays) = (&squares.cb[row.clone()], &squares.decays[row.clone()]);
            let (dmixing, dcb) = (&squares.dmixing[row.clone()], &mut squares.dcb[row]);
            let weight = T::splat(s, of_head.steps.into_state[step]);
            // Step by step fewer readers are left; this one has read all that it reads.
            of_head.through[step] = T::default();
            let (mut of_weight, mut of_decay) = (T::vzero(s), T::vzero(s));
            for t in (step / lanes * lanes..stride).step_by(lanes) {
                let of_product = T::vmul(s, T::load(s, &dmixing[t..]), T::load(s, &decays[t..]));
                let term = T::vmul(s, of_product, T::load(s, &cb[t..]));
                of_weight = T::vadd(s, of_weight, term);
                let sum = T::vfma(s, of_product, weight, T::load(s, &dcb[t..]));
                T::store(s, &mut dcb[t..], sum);
                let through = T::vfma(s, term, weight, T::load(s, &of_head.through[t..]));
                of_decay = T::vadd(s, of_decay, through);
                T::store(s, &mut of_head.through[t..], through);
            }
            of_head.into_state[step] = T::reduce_sum(s, of_weight);
            of_head.into_output[step] = dmixing[step] * cb[step];
            dcb[step] += dmixing[step] * of_head.steps.into_output[step];
            if step + 1 < len {
                of_head.log[step + 1] = T::reduce_sum(s, of_decay);
            }
        }
    }

    /// The gradients of one head's step sizes and decay.
    #[inline(always)]
    fn store_steps(&self, head: usize, of_head: &mut Head<T>) {
        let Self { scan, passed, places, unit, chunk, .. } = self;
        let (len, heads) = (chunk.len, scan.dims.h);
        let Head { steps, into_state, into_output, log, reads, writes, .. } = of_head;
        let mut readers = T::default();
        for i in (0..len).rev() {
            readers += reads[i];
            log[i] += readers;
        }
        let mut writers = passed.whole[unit.chunk * heads + head];
        for i in 0..len {
            log[i] += writers;
            writers += steps.into_state[i] * writes[i];
            into_state[i] += writes[i];
        }
        let (mut da, mut dbias) = (T::default(), T::default());
        for i in 0..len {
            let at = scan.token(chunk, i) * heads + head;
            da += steps.delta[i] * log[i];
            let mut ddelta = scan.a[head] * log[i];
            match places.weights {
                // SAFETY: this head at this token belongs to this unit alone.
                Some((state, output)) => unsafe {
                    state.range(at, 1)[0] = into_state[i];
                    output.range(at, 1)[0] = into_output[i];
                },
                None => ddelta += into_state[i] + into_output[i],
            }
            let draw = ddelta * steps.slope[i];
            dbias += draw;
            // SAFETY: as above.
            let dt = unsafe { places.dt.range(at, 1) };
            dt[0] = draw;
        }
        let at = unit.chunk * heads + head;
        // SAFETY: this head of this chunk belongs to this unit alone.
        unsafe {
            places.a.range(at, 1)[0] = da;
            if let Some(bias) = places.dt_bias {
                bias.range(at, 1)[0] = dbias;
            }
        }
    }

    /// The gradients of a block's inputs, gate and skip.
    #[inline(always)]
    fn store_tokens<S: Simd>(&self, s: S, block: &Block<T>) {
        let Self { scan, passed, places, unit, chunk, .. } = self;
        let Dims { h, p, .. } = scan.dims;
        let lanes = T::lanes::<S>();
        for head in block.heads.clone() {
            // SAFETY: this head of this chunk belongs to this unit alone.
            let mut dd = places.d.map(|d| unsafe { d.range((unit.chunk * h + head) * p, p) });
            for i in 0..chunk.len {
                let at = block.at(i, head, p);
                let (dx, dy, read) = (&block.dx[at.clone()], &block.dy[at.clone()], &block.read[at]);
                let token = (scan.token(chunk, i) * h + head) * p;
                // SAFETY: this head at this token belongs to this unit alone.
                let dx_out = unsafe { places.x.range(token, p) };
                for k in (0..p).step_by(lanes) {
                    let part = k..(k + lanes).min(p);
                    let x = T::load(s, &scan.x[token..token + p][part.clone()]);
                    let dy = T::load(s, &dy[part.clone()]);
                    let mut dx = T::load(s, &dx[part.clone()]);
                    let mut y = T::load(s, &read[part.clone()]);
                    if let (Some(d), Some(dd)) = (scan.d, &mut dd) {
                        let d = skip(s, scan, d, head, part.clone());
                        dx = T::vfma(s, d, dy, dx);
                        y = T::vfma(s, d, x, y);
                        let dd = &mut dd[part.clone()];
                        let sum = T::vfma(s, dy, x, T::load(s, dd));
                        T::store(s, dd, sum);
                    }
                    T::store(s, &mut dx_out[part.clone()], dx);
                    if let (Some(z), Some(dz), Some(dy)) = (scan.z, places.z, passed.dy) {
                        let (_, slope) = T::silu_and_slope(s, T::load(s, &z[token..token + p][part.clone()]));
                        let dy = T::load(s, &dy[token..token + p][part.clone()]);
                        // SAFETY: as above.
                        let dz = unsafe { dz.range(token + part.start, part.len()) };
                        T::store(s, dz, T::vmul(s, T::vmul(s, dy, y), slope));
                    }
                }
            }
        }
    }

    /// What B and C get through their products.
    #[inline(always)]
    fn coefficients(&self, squares: &Squares<T>, db: &mut [T], dc: &mut [T]) {
        let Self { scan, unit, chunk, .. } = self;
        let (len, n, stride) = (chunk.len, scan.dims.n, squares.stride);
        for s0 in (0..len).step_by(TRIANGLE) {
            let s1 = (s0 + TRIANGLE).min(len);
            let columns = (s1 - s0, stride as isize);
            let dcb = Matrix::strided(&squares.dcb, s0 * stride + s0, columns, len - s0);
            multiply(
                MatrixMut::strided(db, s0 * n, (s1 - s0, n as isize), n),
                dcb,
                scan.some_coefficient(scan.c, chunk, s0..len, unit.group),
                true,
            );
            multiply(
                MatrixMut::strided(dc, s0 * n, (len - s0, n as isize), n),
                dcb.t(),
                scan.some_coefficient(scan.b, chunk, s0..s1, unit.group),
                true,
            );
        }
    }

    fn store_coefficients(&self, db: &[T], dc: &[T]) {
        let Self { scan, places, unit, chunk, .. } = self;
        let Dims { g, n, .. } = scan.dims;
        for i in 0..chunk.len {
            let at = unit.share * scan.b.len() + (scan.token(chunk, i) * g + unit.group) * n;
            for (place, grad) in [(places.b, db), (places.c, dc)] {
                // SAFETY: this group at this token in this share's copy belongs to this unit alone.
                unsafe { place.range(at, n) }.copy_from_slice(&grad[i * n..(i + 1) * n]);
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd, T: Real>(s: S, a: &[T], b: &[T]) -> T {
    let lanes = T::lanes::<S>();
    let mut sum = T::vzero(s);
    for (a, b) in a.chunks(lanes).zip(b.chunks(lanes)) {
        sum = T::vfma(s, T::load(s, a), T::load(s, b), sum);
    }
    T::reduce_sum(s, sum)
}

#[inline(always)]
fn scale_in_place<S: Simd, T: Real>(s: S, x: &mut [T], factor: T) {
    let factor = T::splat(s, factor);
    for x in x.chunks_mut(T::lanes::<S>()) {
        let scaled = T::vmul(s, T::load(s, x), factor);
        T::store(s, x, scaled);
    }
}
