//! The transform and the angle of complex numbers as tensor ops, for devices where [`crate::stft`]'s own ops do not run: a
//! frame is multiplied with the matrix of the transform, which a GPU does as fast as it reads the frame.

use crate::stft::StftConfig;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::f64::consts::{FRAC_PI_2, PI, TAU};
use std::sync::{Mutex, PoisonError};

/// Samples of the largest transform; its matrix has as many columns as rows.
const MOST_SAMPLES: usize = 4096;

/// A periodic Hann window.
fn window(n_fft: usize) -> impl Fn(usize) -> f64 {
    move |n| 0.5 - 0.5 * (TAU * n as f64 / n_fft as f64).cos()
}

/// Steps of a hop that a frame spans.
fn hops(cfg: &StftConfig) -> usize {
    cfg.n_fft.div_ceil(cfg.hop_size)
}

#[derive(Clone, Copy, PartialEq)]
enum Matrix {
    /// (frame, bins · 2): windowed samples to real and imaginary parts.
    Forward,
    /// (bins · 2, frame): to windowed samples.
    Inverse,
}

/// A matrix of the transform, made once for each size, type and device. A frame has room for whole hops, zero beyond `n_fft`.
fn matrix(cfg: &StftConfig, kind: Matrix, dtype: DType, device: &Device) -> Result<Tensor> {
    type Made = (StftConfig, Matrix, Tensor);
    static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());
    if cfg.n_fft > MOST_SAMPLES {
        bail!("stft: n_fft {}, expected at most {MOST_SAMPLES} on a GPU", cfg.n_fft);
    }
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |(c, k, m): &&Made| (c, *k, m.dtype()) == (cfg, kind, dtype) && m.device().same_device(device);
    if let Some((.., matrix)) = made.iter().find(same) {
        return Ok(matrix.clone());
    }
    let (n_fft, bins, frame) = (cfg.n_fft, cfg.bins(), hops(cfg) * cfg.hop_size);
    let w = window(n_fft);
    let mut values = vec![0.0; frame * bins * 2];
    for n in 0..n_fft {
        for k in 0..bins {
            let (sin, cos) = (TAU * ((k * n) % n_fft) as f64 / n_fft as f64).sin_cos();
            let (at, factor) = match kind {
                Matrix::Forward => ([(n * bins + k) * 2, (n * bins + k) * 2 + 1], w(n)),
                Matrix::Inverse => {
                    // A real signal has every bin twice but the first and the last.
                    let times = if k == 0 || k + 1 == bins { 1.0 } else { 2.0 };
                    ([2 * k * frame + n, (2 * k + 1) * frame + n], w(n) * times / n_fft as f64)
                }
            };
            values[at[0]] = cos * factor;
            // The imaginary parts of the first and the last bin do not matter; the sine is 0 there but for rounding.
            values[at[1]] = if (k * 2) % n_fft == 0 { 0.0 } else { -sin * factor };
        }
    }
    let shape = match kind {
        Matrix::Forward => (frame, bins * 2),
        Matrix::Inverse => (bins * 2, frame),
    };
    let matrix = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
    made.push((*cfg, kind, matrix.clone()));
    Ok(matrix)
}

/// Samples `from`, then the `count - 1` before or after it, of `(B, samples)`.
fn picked(x: &Tensor, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
    let indices: Vec<u32> = indices.map(|i| i as u32).collect();
    x.index_select(&Tensor::new(indices, x.device())?, 1)
}

/// `(B, samples)` → `(B, frames, bins, 2)`.
pub(crate) fn stft(signal: &Tensor, cfg: &StftConfig) -> Result<Tensor> {
    let (batch, samples) = signal.dims2()?;
    let (half, hop) = (cfg.n_fft / 2, cfg.hop_size);
    let frames = samples / hop + 1;
    // Reflected ends.
    let (left, right) =
        (picked(signal, (1..=half).rev())?, picked(signal, (0..half).map(|i| samples - 2 - i))?);
    let x = Tensor::cat(&[&left, signal, &right], 1)?; // (B, samples + n_fft)
    // Rows of a hop each; frame t is made of the rows from t on.
    let rows = frames - 1 + hops(cfg);
    let x = match rows * hop {
        n if n > samples + 2 * half => x.pad_with_zeros(1, 0, n - samples - 2 * half)?,
        n => x.narrow(1, 0, n)?,
    };
    let x = x.contiguous()?.reshape((batch, rows, hop))?;
    let parts = (0..hops(cfg)).map(|j| x.narrow(1, j, frames)).collect::<Result<Vec<_>>>()?;
    let x = Tensor::cat(&parts, 2)?.reshape((batch * frames, hops(cfg) * hop))?;
    let matrix = matrix(cfg, Matrix::Forward, x.dtype(), x.device())?;
    x.matmul(&matrix)?.reshape((batch, frames, cfg.bins(), 2))
}

/// `(B, frames, bins, 2)` → `(B, (frames - 1)·hop)`.
pub(crate) fn istft(spectrum: &Tensor, cfg: &StftConfig) -> Result<Tensor> {
    let (batch, frames, bins, _) = spectrum.dims4()?;
    let (hop, hops) = (cfg.hop_size, hops(cfg));
    let x = spectrum.contiguous()?.reshape((batch * frames, bins * 2))?;
    let matrix = matrix(cfg, Matrix::Inverse, x.dtype(), x.device())?;
    let x = x.matmul(&matrix)?.reshape((batch, frames, hops * hop))?;
    let mut sum: Option<Tensor> = None;
    for j in 0..hops {
        let part = x.narrow(2, j * hop, hop)?.pad_with_zeros(1, j, hops - 1 - j)?; // (B, rows, hop)
        sum = Some(match sum {
            None => part,
            Some(sum) => (sum + part)?,
        });
    }
    let Some(sum) = sum else { bail!("istft: a frame has no samples") };
    let samples = (frames - 1) * hop;
    let w = window(cfg.n_fft);
    let mut envelope = vec![0.0; samples + cfg.n_fft];
    for t in 0..frames {
        (0..cfg.n_fft).for_each(|n| envelope[t * hop + n] += w(n) * w(n));
    }
    let inverse: Vec<f64> = envelope[cfg.n_fft / 2..][..samples].iter().map(|e| 1.0 / e).collect();
    let inverse = Tensor::from_vec(inverse, (1, samples), &Device::Cpu)?;
    let inverse = inverse.to_dtype(sum.dtype())?.to_device(sum.device())?;
    sum.reshape((batch, (frames - 1 + hops) * hop))?
        .narrow(1, cfg.n_fft / 2, samples)?
        .broadcast_mul(&inverse)
}

/// The angle of `(x, y)`, to 1e-7; its gradient at the origin is 0.
pub(crate) fn atan2(y: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (y0, x0) = (y.detach(), x.detach());
    let (height, width) = (y0.abs()?, x0.abs()?);
    // 1e-38: the origin has the angle 0.
    let ratio = (height.minimum(&width)? / (height.maximum(&width)? + 1e-38)?)?;
    // Within 0.004 of the angle to the nearer axis, up to π/4.
    let small = (&ratio * ratio.affine(-0.273, PI / 4.0 + 0.273)?)?;
    let steep = height.gt(&width)?;
    let angle = steep.where_cond(&small.affine(-1.0, FRAC_PI_2)?, &small)?;
    let angle = x0.lt(0.0)?.where_cond(&angle.affine(-1.0, PI)?, &angle)?;
    let angle = y0.lt(0.0)?.where_cond(&angle.neg()?, &angle)?;
    // The point turned back by that angle is almost on the axis; what is left is its height.
    let squares = ((x0.sqr()? + y0.sqr()?)? + 1e-38)?;
    let left = (((&y0 * angle.cos()?)? - (&x0 * angle.sin()?)?)? / squares.sqrt()?)?;
    let angle = (angle + left)?;
    // Nothing in value, the angle in gradient: dθ = (x dy - y dx) / (x² + y²).
    let squares = (squares + 1e-20)?;
    let line = (((&x0 * y)? - (&y0 * x)?)? / squares)?;
    let nothing = (&line - line.detach())?;
    angle + nothing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectrum;
    use candle_core::Var;
    use mamba_kernels::testing::{expect_close, pseudo_random};

    /// Outputs and the gradients of Σ output · cotangent.
    fn both(x: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
        let vars = x.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let inputs: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&inputs)?;
        let cotangent = pseudo_random(y.dims(), 9, y.dtype())?;
        let grads = (&y * cotangent)?.sum_all()?.backward()?;
        let grad = |v: &Var| grads.get(v).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"));
        std::iter::once(Ok(y.detach())).chain(vars.iter().map(grad)).collect()
    }

    #[test]
    fn products_are_the_fast_transform() -> Result<()> {
        for (n_fft, hop_size, samples) in [(400, 100, 900), (16, 5, 9), (16, 8, 40), (10, 3, 31)] {
            let cfg = StftConfig { n_fft, hop_size, win_size: n_fft, ..Default::default() };
            let label = format!("{n_fft} by {hop_size} of {samples}");
            let signal = [pseudo_random(&[2, samples], 1, DType::F64)?];
            let want = both(&signal, |x| crate::stft::stft(&x[0], &cfg))?;
            for (got, want) in both(&signal, |x| stft(&x[0], &cfg))?.iter().zip(&want) {
                expect_close(&label, got, want, 1e-12)?;
            }
            let spectrum = [pseudo_random(&[2, samples / hop_size + 1, cfg.bins(), 2], 2, DType::F64)?];
            let want = both(&spectrum, |x| crate::stft::istft(&x[0], &cfg))?;
            for (got, want) in both(&spectrum, |x| istft(&x[0], &cfg))?.iter().zip(&want) {
                expect_close(&label, got, want, 1e-11)?;
            }
        }
        Ok(())
    }

    #[test]
    fn angles_and_their_gradients_are_right_all_around() -> Result<()> {
        let turns: Vec<f64> = (0..200).map(|i| TAU * (f64::from(i) + 0.3) / 200.0).collect();
        let radii = pseudo_random(&[200], 3, DType::F64)?.exp()?.to_vec1::<f64>()?;
        let of =
            |f: fn(f64) -> f64| -> Vec<f64> { turns.iter().zip(&radii).map(|(t, r)| r * f(*t)).collect() };
        let points = [Tensor::new(of(f64::sin), &Device::Cpu)?, Tensor::new(of(f64::cos), &Device::Cpu)?];
        let want = both(&points, |p| spectrum::atan2(&p[0], &p[1]))?;
        for (got, want) in both(&points, |p| atan2(&p[0], &p[1]))?.iter().zip(&want) {
            expect_close("atan2", got, want, 1e-7)?;
        }
        let corners = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let got = atan2(&corners(&[0.0, 0.0, 1.0, -1.0, 0.0])?, &corners(&[0.0, 2.0, 0.0, 0.0, -1.0])?)?;
        let want = corners(&[0.0, 0.0, FRAC_PI_2 as f32, -FRAC_PI_2 as f32, PI as f32])?;
        expect_close("axes", &got, &want, 1e-6)
    }
}
