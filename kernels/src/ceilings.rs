//! What this machine can do at most, measured: the scale on which benchmarks read their own figures.

use crate::simd::{Real, dispatch};
use crate::testing::pseudo_random;
use candle_core::{DType, Result};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Measured rates of all threads together, each the best of several runs.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating point operations per second of a product of two 1,536 × 1,536 matrices in f32.
    pub products: f64,
    /// Bytes per second that a copy of a buffer far larger than the caches reads and writes, both counted.
    pub copy: f64,
    /// Bytes per second that a sum over such a buffer reads.
    pub read: f64,
    /// Updates of one state of one channel per second, with everything in vector registers: `exp2(δ·a)`, then
    /// `h = e·h + x·b` and `y = y + h·c`, in f32. That is one exponential (with AVX-512 five fused multiply-adds and three
    /// instructions that take the nearest integer away and put it into the exponent; without, twelve in all), two
    /// multiplications and two fused multiply-adds.
    pub state_updates: f64,
    /// Channels of a token per second whose step size goes through a softplus and whose output goes through a gate,
    /// `y·z·σ(z)`, with everything in vector registers, in f32: what a scan computes beside its states.
    pub softplus_and_gate: f64,
}

impl Ceilings {
    /// Measures for about `time` each.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn measure(time: Duration) -> Result<Self> {
        Ok(Self {
            products: products(time)?,
            copy: copy(time),
            read: read(time),
            state_updates: state_updates(time),
            softplus_and_gate: softplus_and_gate(time),
        })
    }
}

/// The highest of `amount / seconds` over runs that take about `time` together, after one that warms up.
fn best_rate(time: Duration, amount: f64, mut run: impl FnMut()) -> f64 {
    run();
    let (begun, mut best) = (Instant::now(), 0f64);
    while best == 0.0 || begun.elapsed() < time {
        let started = Instant::now();
        run();
        best = best.max(amount / started.elapsed().as_secs_f64());
    }
    best
}

fn products(time: Duration) -> Result<f64> {
    const N: usize = 1536;
    let (a, weight) = (pseudo_random(&[N, N], 1, DType::F32)?, pseudo_random(&[N, N], 2, DType::F32)?);
    let mut failed = None;
    let rate = best_rate(time, 2.0 * (N * N * N) as f64, || {
        failed = crate::linear(&a, &weight, None, &[N]).map(black_box).err();
    });
    failed.map_or(Ok(rate), Err)
}

/// Elements of the large buffers: 256 MiB.
const LARGE: usize = 1 << 26;

fn copy(time: Duration) -> f64 {
    let from = vec![1f32; LARGE];
    let mut to = vec![0f32; LARGE];
    let part = LARGE / rayon::current_num_threads().max(1);
    best_rate(time, 8.0 * LARGE as f64, || {
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&to);
    })
}

fn read(time: Duration) -> f64 {
    let data = vec![1f32; LARGE];
    let part = LARGE / rayon::current_num_threads().max(1);
    best_rate(time, 4.0 * LARGE as f64, || {
        let sum: f32 = data.par_chunks(part).map(|part| dispatch(Sum(part))).sum();
        black_box(sum);
    })
}

struct Sum<'a>(&'a [f32]);

impl WithSimd for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f32 {
        let mut sums = [f32::vzero(s); 8];
        for block in self.0.chunks_exact(8 * f32::lanes::<S>()) {
            for (sum, x) in sums.iter_mut().zip(block.chunks_exact(f32::lanes::<S>())) {
                *sum = f32::vadd(s, *sum, f32::load(s, x));
            }
        }
        sums.iter().map(|&sum| f32::reduce_sum(s, sum)).sum()
    }
}

fn state_updates(time: Duration) -> f64 {
    let threads = rayon::current_num_threads();
    let updates = threads * STEPS * STATES * dispatch(Lanes);
    best_rate(time, updates as f64, || {
        (0..threads).into_par_iter().for_each(|_| {
            let states = std::array::from_fn(|k| [-0.5 - k as f32, 0.7 + 0.1 * k as f32]);
            black_box(dispatch(Updates(black_box(states))));
        });
    })
}

const STEPS: usize = 1 << 20;
/// Independent states, as many as the scan keeps in registers at once.
const STATES: usize = 8;

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        f32::lanes::<S>()
    }
}

/// Of each state a, and b, which serves as c too.
struct Updates([[f32; 2]; STATES]);

impl WithSimd for Updates {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f32 {
        let (mut dt, mut x) = (f32::splat(s, 0.01), f32::splat(s, 0.3));
        let mut state = [f32::vzero(s); STATES];
        let mut y = [f32::vzero(s); 2];
        for _ in 0..STEPS {
            // δ and x change, so that nothing can be computed once for all.
            dt = f32::vadd(s, dt, f32::splat(s, 1e-9));
            x = f32::vadd(s, x, f32::splat(s, 1e-9));
            for (k, (h, ab)) in state.iter_mut().zip(&self.0).enumerate() {
                let [a, b] = ab.map(|value| f32::splat(s, value));
                let e = f32::vexp2(s, f32::vmul(s, dt, a));
                *h = f32::vfma(s, e, *h, f32::vmul(s, x, b));
                y[k % 2] = f32::vfma(s, *h, b, y[k % 2]);
            }
        }
        f32::reduce_sum(s, f32::vadd(s, y[0], y[1]))
    }
}

fn softplus_and_gate(time: Duration) -> f64 {
    let threads = rayon::current_num_threads();
    let channels = threads * STEPS * STATES * dispatch(Lanes);
    best_rate(time, channels as f64, || {
        (0..threads).into_par_iter().for_each(|_| {
            black_box(dispatch(Ends(black_box(std::array::from_fn(|k| 0.1 * k as f32 - 0.4)))));
        });
    })
}

/// Of independent channels what softplus and gate read at first.
struct Ends([f32; STATES]);

impl WithSimd for Ends {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f32 {
        let mut x = self.0.map(|x| f32::splat(s, x));
        let little = f32::splat(s, 1e-9);
        for _ in 0..STEPS {
            for x in &mut x {
                let gated = f32::gate(s, f32::softplus(s, *x), *x);
                *x = f32::vfma(s, little, gated, *x);
            }
        }
        x.iter().map(|&x| f32::reduce_sum(s, x)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ceiling_is_a_rate() -> Result<()> {
        let Ceilings { products, copy, read, state_updates, softplus_and_gate } =
            Ceilings::measure(Duration::ZERO)?;
        for rate in [products, copy, read, state_updates, softplus_and_gate] {
            assert!(rate.is_finite() && rate > 1e6, "{rate}");
        }
        Ok(())
    }
}
