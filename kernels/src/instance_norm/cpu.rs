//! Instance normalisation on the CPU. Pixels are taken in blocks that stay in cache; sums over blocks are added in order,
//! in f64, so that neither threads nor large means cost precision.

use crate::simd::Real;
use pulp::Arch;
use rayon::prelude::*;

/// Elements in a block of pixels.
const BLOCK: usize = 16 * 1024;

/// Parameters of the channels.
pub(super) struct Affine<'a, T> {
    pub(super) weight: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) slope: Option<&'a [T]>,
}

/// Coefficients of one image: `z = scale·x + shift`, and its PReLU.
struct Coefficients<T> {
    scale: Vec<T>,
    shift: Vec<T>,
    slope: Vec<T>,
}

impl<T: Real> Affine<'_, T> {
    fn channels(&self) -> usize {
        self.weight.len()
    }

    fn coefficients(&self, mean: &[f64], rstd: &[f64]) -> Coefficients<T> {
        let scale = |c: usize| self.weight[c].to_f64() * rstd[c];
        let channels = 0..self.channels();
        Coefficients {
            scale: channels.clone().map(|c| T::from_f64(scale(c))).collect(),
            shift: channels.map(|c| T::from_f64(self.bias[c].to_f64() - mean[c] * scale(c))).collect(),
            slope: self.slope.map_or_else(|| vec![T::from_f64(1.0); self.channels()], <[T]>::to_vec),
        }
    }
}

fn block_len(channels: usize) -> usize {
    (BLOCK / channels).max(1) * channels
}

/// The output, and mean and reciprocal deviation of every channel of every image.
pub(super) fn forward<T: Real>(
    x: &[T],
    batch: usize,
    affine: &Affine<'_, T>,
    eps: f64,
) -> (Vec<T>, Vec<f64>, Vec<f64>) {
    let channels = affine.channels();
    let image = x.len() / batch;
    let (mut means, mut rstds) = (Vec::new(), Vec::new());
    let mut y = vec![T::default(); x.len()];
    for (x, y) in x.chunks_exact(image).zip(y.chunks_exact_mut(image)) {
        let blocks: Vec<(usize, Vec<T>, Vec<T>)> = x
            .par_chunks(block_len(channels))
            .map(|block| {
                let (mut sum, mut squares) = (vec![T::default(); channels], vec![T::default(); channels]);
                Arch::new().dispatch(|| moments(block, &mut sum, &mut squares));
                (block.len() / channels, sum, squares)
            })
            .collect();
        let (mean, rstd) = combine(&blocks, channels, eps);
        let coefficients = affine.coefficients(&mean, &rstd);
        y.par_chunks_mut(block_len(channels))
            .zip(x.par_chunks(block_len(channels)))
            .for_each(|(y, x)| Arch::new().dispatch(|| apply(y, x, &coefficients)));
        means.extend(mean);
        rstds.extend(rstd);
    }
    (y, means, rstds)
}

/// Mean of a block, and the sum of squared distances to it.
#[inline(always)]
fn moments<T: Real>(block: &[T], mean: &mut [T], squares: &mut [T]) {
    let channels = mean.len();
    for pixel in block.chunks_exact(channels) {
        mean.iter_mut().zip(pixel).for_each(|(sum, &x)| *sum += x);
    }
    let count = T::from_f64((block.len() / channels) as f64);
    mean.iter_mut().for_each(|mean| *mean = *mean / count);
    for pixel in block.chunks_exact(channels) {
        for ((square, &x), &mean) in squares.iter_mut().zip(pixel).zip(&*mean) {
            let distance = x - mean;
            *square += distance * distance;
        }
    }
}

/// Mean and reciprocal deviation of all blocks together (Chan's formula).
fn combine<T: Real>(blocks: &[(usize, Vec<T>, Vec<T>)], channels: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let of_channel = |c: usize| {
        let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for (n, block_mean, block_squares) in blocks {
            let n = *n as f64;
            let delta = block_mean[c].to_f64() - mean;
            squares += block_squares[c].to_f64() + delta * delta * count * n / (count + n);
            mean += delta * n / (count + n);
            count += n;
        }
        (mean, 1.0 / (squares / count + eps).sqrt())
    };
    (0..channels).map(of_channel).unzip()
}

#[inline(always)]
fn apply<T: Real>(y: &mut [T], x: &[T], Coefficients { scale, shift, slope }: &Coefficients<T>) {
    let channels = scale.len();
    let zero = T::default();
    for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        for c in 0..channels {
            let z = scale[c] * x[c] + shift[c];
            y[c] = if z >= zero { z } else { slope[c] * z };
        }
    }
}

/// Gradients of `x`, weight, bias and slope.
pub(super) fn backward<T: Real>(
    x: &[T],
    dy: &[T],
    affine: &Affine<'_, T>,
    means: &[f64],
    rstds: &[f64],
) -> [Vec<T>; 4] {
    let channels = affine.channels();
    let batch = means.len() / channels;
    let image = x.len() / batch;
    let pixels = (image / channels) as f64;
    let mut dx = vec![T::default(); x.len()];
    let mut totals = vec![[0f64; 3]; channels]; // weight, bias, slope
    for (b, (dx, (x, dy))) in
        dx.chunks_exact_mut(image).zip(x.chunks_exact(image).zip(dy.chunks_exact(image))).enumerate()
    {
        let (mean, rstd) = (&means[b * channels..][..channels], &rstds[b * channels..][..channels]);
        let coefficients = affine.coefficients(mean, rstd);
        let mean_t: Vec<T> = mean.iter().map(|&m| T::from_f64(m)).collect();
        let blocks: Vec<[Vec<T>; 3]> = x
            .par_chunks(block_len(channels))
            .zip(dy.par_chunks(block_len(channels)))
            .map(|(x, dy)| {
                let mut sums = [(); 3].map(|()| vec![T::default(); channels]);
                Arch::new().dispatch(|| gradient_sums(x, dy, &coefficients, &mean_t, &mut sums));
                sums
            })
            .collect();
        // Of each channel: dx = scale·(dz - Σdz/n - x̂·Σ(dz·x̂)/n) = scale·dz - a·x - k.
        let (mut a, mut k) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for c in 0..channels {
            let sum = |i: usize| blocks.iter().map(|sums| sums[i][c].to_f64()).sum::<f64>();
            let (dz, dz_centred, dslope) = (sum(0), sum(1), sum(2));
            let dz_normed = dz_centred * rstd[c];
            let scale = coefficients.scale[c].to_f64();
            let slope = scale * rstd[c] * dz_normed / pixels;
            a.push(T::from_f64(slope));
            k.push(T::from_f64(scale * dz / pixels - slope * mean[c]));
            totals[c][0] += dz_normed;
            totals[c][1] += dz;
            totals[c][2] += dslope;
        }
        dx.par_chunks_mut(block_len(channels))
            .zip(x.par_chunks(block_len(channels)).zip(dy.par_chunks(block_len(channels))))
            .for_each(|(dx, (x, dy))| Arch::new().dispatch(|| gradient(dx, x, dy, &coefficients, &a, &k)));
    }
    let total = |i: usize| totals.iter().map(|sums| T::from_f64(sums[i])).collect();
    [dx, total(0), total(1), total(2)]
}

/// Adds up Σdz, Σdz·(x - mean) and the gradient of the slope.
#[inline(always)]
fn gradient_sums<T: Real>(
    x: &[T],
    dy: &[T],
    Coefficients { scale, shift, slope }: &Coefficients<T>,
    mean: &[T],
    [dz_sum, centred_sum, slope_sum]: &mut [Vec<T>; 3],
) {
    let channels = scale.len();
    let zero = T::default();
    let (dz_sum, centred_sum, slope_sum) =
        (&mut dz_sum[..channels], &mut centred_sum[..channels], &mut slope_sum[..channels]);
    let (shift, slope, mean) = (&shift[..channels], &slope[..channels], &mean[..channels]);
    for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
        for c in 0..channels {
            let z = scale[c] * x[c] + shift[c];
            let (dz, dslope) = if z >= zero { (dy[c], zero) } else { (dy[c] * slope[c], dy[c] * z) };
            dz_sum[c] += dz;
            centred_sum[c] += dz * (x[c] - mean[c]);
            slope_sum[c] += dslope;
        }
    }
}

#[inline(always)]
fn gradient<T: Real>(
    dx: &mut [T],
    x: &[T],
    dy: &[T],
    Coefficients { scale, shift, slope }: &Coefficients<T>,
    a: &[T],
    k: &[T],
) {
    let channels = scale.len();
    let zero = T::default();
    let (shift, slope, a, k) = (&shift[..channels], &slope[..channels], &a[..channels], &k[..channels]);
    for (dx, (x, dy)) in
        dx.chunks_exact_mut(channels).zip(x.chunks_exact(channels).zip(dy.chunks_exact(channels)))
    {
        for c in 0..channels {
            let z = scale[c] * x[c] + shift[c];
            let dz = if z >= zero { dy[c] } else { dy[c] * slope[c] };
            dx[c] = scale[c] * dz - a[c] * x[c] - k[c];
        }
    }
}
