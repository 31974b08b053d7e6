//! One token of each segment, as in decoding: lanes hold the states of a channel, which lie side by side, so that the
//! state is read and written once and nothing is transposed.
#![allow(unsafe_code)] // tasks write disjoint channels of the shared outputs

use super::forward::Forward;
use super::{LaneCount, Scan};
use crate::shared::SharedMut;
use crate::simd::{Real, dispatch};
use crate::team;
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;

/// Channels of one task.
const TASK_CHANNELS: usize = 256;

/// Whether [`step`] computes this scan, and faster than the general way: each segment is one token that goes on from a
/// state, B and C are per token and shared by all channels, and the states fill registers well. Sequences of one token
/// without a state go the general way, so that they have the same bits beside longer ones.
pub(super) fn fits<T: Real>(scan: &Scan<'_, T>) -> bool {
    let dims = &scan.dims;
    scan.initial_state.is_some()
        && (dims.b_groups, dims.c_groups) == (1, 1)
        && scan.segments.iter().all(|s| s.len() == 1)
        && 2 * dims.n >= dispatch(LaneCount::<T>(PhantomData))
}

/// Outputs and states; [`fits`] must hold.
pub(super) fn step<T: Real>(scan: &Scan<'_, T>) -> Forward<T> {
    let (d, n) = (scan.dims.d, scan.dims.n);
    let mut y = vec![T::default(); scan.u.len()];
    let mut last_state = scan.initial_state.expect("a state to go on from").to_vec();
    let (out, state) = (SharedMut::new(&mut y), SharedMut::new(&mut last_state));
    let blocks = d.div_ceil(TASK_CHANNELS);
    let task = |i: usize| {
        let (segment, start) = (i / blocks, i % blocks * TASK_CHANNELS);
        let width = TASK_CHANNELS.min(d - start);
        let token = scan.segments[segment].row * scan.dims.len + scan.segments[segment].start;
        // SAFETY: these channels of this segment, and of its only token, belong to this task alone.
        let (y, h) = unsafe {
            (out.range(token * d + start, width), state.range((segment * d + start) * n, width * n))
        };
        dispatch(Channels { scan, token, start, y, h });
    };
    team::for_each(scan.segments.len() * blocks, task);
    Forward { y, last_state, chunk_states: Vec::new() }
}

/// Channels `start .. start + y.len()` of one token.
struct Channels<'a, T> {
    scan: &'a Scan<'a, T>,
    token: usize,
    start: usize,
    y: &'a mut [T],
    /// `[channel][state]`.
    h: &'a mut [T],
}

impl<T: Real> WithSimd for Channels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scan, token, start, y, h } = self;
        let (n, lanes) = (scan.dims.n, T::lanes::<S>());
        let (b, c) = (&scan.b[token * n..(token + 1) * n], &scan.c[token * n..(token + 1) * n]);
        let log2e = T::splat(s, T::from_f64(std::f64::consts::LOG2_E));
        let blocks = y.chunks_mut(lanes).zip(h.chunks_mut(lanes * n)).enumerate();
        for (block, (y, h)) in blocks {
            let (first, width) = (start + block * lanes, y.len());
            let channels = first..first + width;
            let at = token * scan.dims.d + first;
            let u = T::load(s, &scan.u[at..at + width]);
            let raw = T::vadd(
                s,
                T::load(s, &scan.delta[at..at + width]),
                T::load_or_zero(s, scan.delta_bias, channels.clone()),
            );
            let dt = if scan.softplus { T::softplus(s, raw) } else { raw };
            let (mut steps, mut inputs, mut sums) =
                ([T::default(); 16], [T::default(); 16], [T::default(); 16]);
            T::store(s, &mut steps[..lanes], T::vmul(s, dt, log2e));
            T::store(s, &mut inputs[..lanes], T::vmul(s, dt, u));
            let a = &scan.a[first * n..(first + width) * n];
            for (k, (h, a)) in h.chunks_exact_mut(n).zip(a.chunks_exact(n)).enumerate() {
                let (dt, x) = (T::splat(s, steps[k]), T::splat(s, inputs[k]));
                let mut sum = T::vzero(s);
                let rows = h.chunks_mut(lanes).zip(a.chunks(lanes)).zip(b.chunks(lanes).zip(c.chunks(lanes)));
                for ((h, a), (b, c)) in rows {
                    let decay = T::vexp2(s, T::vmul(s, dt, T::load(s, a)));
                    let next = T::vfma(s, decay, T::load(s, h), T::vmul(s, x, T::load(s, b)));
                    T::store(s, h, next);
                    sum = T::vfma(s, next, T::load(s, c), sum);
                }
                sums[k] = T::reduce_sum(s, sum);
            }
            let mut out = T::vfma(s, T::load_or_zero(s, scan.d, channels), u, T::load(s, &sums[..lanes]));
            if let Some(z) = scan.z {
                let z = T::load(s, &z[at..at + width]);
                out = T::gate(s, out, z);
            }
            T::store(s, y, out);
        }
    }
}
