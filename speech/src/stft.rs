//! Short-time Fourier transform and its inverse, on slices and as differentiable ops.
//!
//! ```text
//! X[t, k] = Σ_n w[n] · x[t·hop + n - n_fft/2] · e^{-2πi·k·n / n_fft}
//! ```
//!
//! with a periodic Hann window, centred frames and the ends of the signal reflected, as SEMamba uses it
//! (`torch.stft(center=True, pad_mode="reflect")`). The inverse adds the windowed frames up and divides by the sum of
//! squared windows. Spectra are laid out `(frames, bins)`, real and imaginary parts apart or last.

use crate::{Error, Result, products};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor, WithDType, bail};
use realfft::num_complex::Complex;
use realfft::{ComplexToReal, FftNum, RealFftPlanner, RealToComplex};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes of the transform, under upstream's names (`stft_cfg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StftConfig {
    /// Samples in a second.
    pub sampling_rate: u32,
    /// Samples in a frame.
    pub n_fft: usize,
    /// Samples from one frame to the next.
    pub hop_size: usize,
    /// Samples under the window; must be `n_fft`.
    pub win_size: usize,
}

impl Default for StftConfig {
    fn default() -> Self {
        Self { sampling_rate: 16_000, n_fft: 400, hop_size: 100, win_size: 400 }
    }
}

impl StftConfig {
    /// Frequency bins of a spectrum.
    pub fn bins(&self) -> usize {
        self.n_fft / 2 + 1
    }

    /// Refuses sizes that make no transform.
    ///
    /// # Errors
    /// The first impossible value.
    pub fn validate(&self) -> Result<()> {
        let setting =
            |name, got: String, expected: &str| Error::Setting { name, got, expected: expected.into() };
        if self.sampling_rate == 0 {
            return Err(setting("sampling_rate", "0".into(), "at least 1"));
        }
        if self.n_fft < 4 || !self.n_fft.is_multiple_of(2) || self.n_fft > 1 << 16 {
            return Err(setting("n_fft", self.n_fft.to_string(), "an even number from 4 to 65536"));
        }
        if self.hop_size == 0 || self.hop_size > self.n_fft / 2 {
            return Err(setting("hop_size", self.hop_size.to_string(), "from 1 to half of n_fft"));
        }
        if self.win_size != self.n_fft {
            return Err(setting("win_size", self.win_size.to_string(), "the same as n_fft"));
        }
        Ok(())
    }
}

/// A planned transform of samples `T`, `f32` or `f64`.
#[derive(Clone)]
pub struct Stft<T: FftNum> {
    n_fft: usize,
    hop: usize,
    window: Arc<[T]>,
    forward: Arc<dyn RealToComplex<T>>,
    inverse: Arc<dyn ComplexToReal<T>>,
}

impl<T: FftNum> Stft<T> {
    /// Plans the transform.
    ///
    /// # Errors
    /// As [`StftConfig::validate`].
    pub fn new(cfg: &StftConfig) -> Result<Self> {
        let hann = |n: usize| 0.5 - 0.5 * (std::f64::consts::TAU * n as f64 / cfg.n_fft as f64).cos();
        Self::with_window(cfg, (0..cfg.n_fft).map(hann).collect())
    }

    /// Plans the transform under another window, of `n_fft` values.
    ///
    /// # Errors
    /// As [`StftConfig::validate`].
    pub fn with_window(cfg: &StftConfig, window: Vec<f64>) -> Result<Self> {
        cfg.validate()?;
        let n_fft = cfg.n_fft;
        if window.len() != n_fft {
            let (got, expected) = (window.len().to_string(), format!("n_fft values, {n_fft}"));
            return Err(Error::Setting { name: "window", got, expected });
        }
        let mut planner = RealFftPlanner::new();
        Ok(Self {
            n_fft,
            hop: cfg.hop_size,
            window: window.into_iter().map(real::<T>).collect(),
            forward: planner.plan_fft_forward(n_fft),
            inverse: planner.plan_fft_inverse(n_fft),
        })
    }

    /// Frequency bins of a spectrum.
    pub fn bins(&self) -> usize {
        self.n_fft / 2 + 1
    }

    /// Frames of so many samples.
    pub fn frames(&self, samples: usize) -> usize {
        samples / self.hop + 1
    }

    /// Samples of so many frames.
    pub fn samples(&self, frames: usize) -> usize {
        (frames.max(1) - 1) * self.hop
    }

    /// Fewest samples that can be reflected at their ends.
    pub fn min_samples(&self) -> usize {
        self.n_fft / 2 + 1
    }

    /// The place in a signal of `len` samples that stands at `at` when its ends are reflected.
    fn reflected(at: isize, len: usize) -> usize {
        let last = len as isize - 1;
        let at = if at < 0 { -at } else { at };
        (if at > last { 2 * last - at } else { at }) as usize
    }

    /// The window.
    pub fn window(&self) -> &[T] {
        &self.window
    }

    /// The spectrum of one frame of `n_fft` samples, windowed here.
    ///
    /// # Panics
    /// If there are fewer or more samples.
    pub fn frame_spectrum(&self, samples: &[T]) -> (Vec<T>, Vec<T>) {
        let mut frame: Vec<T> = samples.iter().zip(&*self.window).map(|(&x, &w)| x * w).collect();
        let mut spectrum = self.forward.make_output_vec();
        self.transform(&mut frame, &mut spectrum);
        spectrum.iter().map(|x| (x.re, x.im)).unzip()
    }

    /// The samples of one frame, windowed once more, as they are added up.
    ///
    /// # Panics
    /// If there are fewer or more bins than [`Stft::bins`].
    pub fn frame_samples(&self, re: &[T], im: &[T]) -> Vec<T> {
        let mut frame = self.inverse.make_output_vec();
        let mut spectrum: Vec<_> = re.iter().zip(im).map(|(&re, &im)| Complex { re, im }).collect();
        self.untransform(&mut spectrum, &mut frame);
        let scale = real::<T>(1.0 / self.n_fft as f64);
        frame.iter().zip(&*self.window).map(|(&x, &w)| x * w * scale).collect()
    }

    /// The spectrum of a signal: `(frames, bins)` of real and of imaginary parts.
    ///
    /// # Panics
    /// If there are fewer than [`Stft::min_samples`].
    pub fn spectrum(&self, signal: &[T]) -> (Vec<T>, Vec<T>) {
        assert!(signal.len() >= self.min_samples(), "{} samples for a transform", signal.len());
        let frames = self.frames(signal.len());
        let (mut re, mut im) =
            (Vec::with_capacity(frames * self.bins()), Vec::with_capacity(frames * self.bins()));
        let mut frame = self.forward.make_input_vec();
        let mut spectrum = self.forward.make_output_vec();
        for t in 0..frames {
            let start = (t * self.hop) as isize - (self.n_fft / 2) as isize;
            for (n, (x, &w)) in frame.iter_mut().zip(&*self.window).enumerate() {
                *x = signal[Self::reflected(start + n as isize, signal.len())] * w;
            }
            self.transform(&mut frame, &mut spectrum);
            re.extend(spectrum.iter().map(|x| x.re));
            im.extend(spectrum.iter().map(|x| x.im));
        }
        (re, im)
    }

    /// The signal of a spectrum of `(frames, bins)` parts: [`Stft::samples`] of it.
    pub fn signal(&self, re: &[T], im: &[T]) -> Vec<T> {
        let frames = re.len() / self.bins();
        let mut sum = vec![T::zero(); self.samples(frames) + self.n_fft];
        let mut frame = self.inverse.make_output_vec();
        let mut spectrum = self.inverse.make_input_vec();
        let scale = real::<T>(1.0 / self.n_fft as f64);
        for t in 0..frames {
            let row = t * self.bins()..(t + 1) * self.bins();
            for (x, (&re, &im)) in spectrum.iter_mut().zip(re[row.clone()].iter().zip(&im[row])) {
                *x = Complex { re, im };
            }
            self.untransform(&mut spectrum, &mut frame);
            let out = &mut sum[t * self.hop..][..self.n_fft];
            for (out, (&x, &w)) in out.iter_mut().zip(frame.iter().zip(&*self.window)) {
                *out = *out + x * w * scale;
            }
        }
        let envelope = self.envelope(frames);
        let inner = self.n_fft / 2..self.n_fft / 2 + self.samples(frames);
        sum[inner.clone()].iter().zip(&envelope[inner]).map(|(&x, &e)| x / e).collect()
    }

    /// The sum of squared windows over all frames.
    fn envelope(&self, frames: usize) -> Vec<T> {
        let mut sum = vec![T::zero(); self.samples(frames) + self.n_fft];
        for t in 0..frames {
            let out = &mut sum[t * self.hop..][..self.n_fft];
            out.iter_mut().zip(&*self.window).for_each(|(out, &w)| *out = *out + w * w);
        }
        sum
    }

    /// The gradient of the signal, given those of the spectrum's parts: the adjoint of [`Stft::spectrum`].
    pub fn spectrum_adjoint(&self, re: &[T], im: &[T], samples: usize) -> Vec<T> {
        let frames = re.len() / self.bins();
        let mut gradient = vec![T::zero(); samples];
        let mut frame = self.inverse.make_output_vec();
        let mut spectrum = self.inverse.make_input_vec();
        let half = real::<T>(0.5);
        for t in 0..frames {
            let row = t * self.bins()..(t + 1) * self.bins();
            for (x, (&re, &im)) in spectrum.iter_mut().zip(re[row.clone()].iter().zip(&im[row])) {
                *x = Complex { re: re * half, im: im * half };
            }
            // The inverse transform takes the first and the last bin once and all others twice.
            for edge in [0, self.bins() - 1] {
                spectrum[edge] = Complex { re: spectrum[edge].re + spectrum[edge].re, im: T::zero() };
            }
            self.untransform(&mut spectrum, &mut frame);
            let start = (t * self.hop) as isize - (self.n_fft / 2) as isize;
            for (n, (&x, &w)) in frame.iter().zip(&*self.window).enumerate() {
                let at = Self::reflected(start + n as isize, samples);
                gradient[at] = gradient[at] + x * w;
            }
        }
        gradient
    }

    /// The gradients of the spectrum's parts, given that of the signal: the adjoint of [`Stft::signal`].
    pub fn signal_adjoint(&self, gradient: &[T], frames: usize) -> (Vec<T>, Vec<T>) {
        let envelope = self.envelope(frames);
        let half = self.n_fft / 2;
        let mut padded = vec![T::zero(); envelope.len()];
        for ((out, &g), &e) in padded[half..].iter_mut().zip(gradient).zip(&envelope[half..]) {
            *out = g / e;
        }
        let (mut re, mut im) =
            (Vec::with_capacity(frames * self.bins()), Vec::with_capacity(frames * self.bins()));
        let mut frame = self.forward.make_input_vec();
        let mut spectrum = self.forward.make_output_vec();
        let (once, twice) = (real::<T>(1.0 / self.n_fft as f64), real::<T>(2.0 / self.n_fft as f64));
        for t in 0..frames {
            let source = &padded[t * self.hop..][..self.n_fft];
            for (x, (&g, &w)) in frame.iter_mut().zip(source.iter().zip(&*self.window)) {
                *x = g * w;
            }
            self.transform(&mut frame, &mut spectrum);
            let last = self.bins() - 1;
            for (k, x) in spectrum.iter().enumerate() {
                let edge = k == 0 || k == last;
                re.push(x.re * if edge { once } else { twice });
                im.push(if edge { T::zero() } else { x.im * twice });
            }
        }
        (re, im)
    }

    fn transform(&self, frame: &mut [T], spectrum: &mut [Complex<T>]) {
        self.forward.process(frame, spectrum).expect("buffers were made for this transform");
    }

    /// Imaginary parts of the first and the last bin do not matter.
    fn untransform(&self, spectrum: &mut [Complex<T>], frame: &mut [T]) {
        let last = spectrum.len() - 1;
        spectrum[0].im = T::zero();
        spectrum[last].im = T::zero();
        self.inverse.process(spectrum, frame).expect("buffers were made for this transform");
    }
}

fn real<T: FftNum>(x: f64) -> T {
    T::from_f64(x).expect("f32 and f64 hold any f64, rounded")
}

/// The spectrum of signals as an op with a gradient: `(B, samples)` → `(B, frames, bins, 2)`.
///
/// # Errors
/// Too few samples, or a dtype other than f32 and f64.
pub fn stft(signal: &Tensor, cfg: &StftConfig) -> candle_core::Result<Tensor> {
    let (_, samples) = signal.dims2()?;
    if samples < cfg.n_fft / 2 + 1 {
        bail!("stft: {samples} samples, expected at least {}", cfg.n_fft / 2 + 1);
    }
    match signal.device() {
        Device::Cpu => signal.contiguous()?.apply_op1(SpectrumOp { cfg: *cfg }),
        _ => products::stft(signal, cfg),
    }
}

/// The signals of spectra as an op with a gradient: `(B, frames, bins, 2)` → `(B, (frames - 1)·hop)`.
///
/// # Errors
/// A wrong number of bins, fewer than two frames, or a dtype other than f32 and f64.
pub fn istft(spectrum: &Tensor, cfg: &StftConfig) -> candle_core::Result<Tensor> {
    let (_, frames, bins, parts) = spectrum.dims4()?;
    if bins != cfg.bins() || parts != 2 || frames < 2 {
        bail!("istft: spectrum {:?}, expected (batch, 2 frames or more, {}, 2)", spectrum.dims(), cfg.bins());
    }
    match spectrum.device() {
        Device::Cpu => spectrum.contiguous()?.apply_op1(SignalOp { cfg: *cfg }),
        _ => products::istft(spectrum, cfg),
    }
}

struct SpectrumOp {
    cfg: StftConfig,
}

struct SignalOp {
    cfg: StftConfig,
}

/// Runs `each` on every row of a contiguous tensor and joins what it returns.
fn rows<T: WithDType>(
    storage: &CpuStorage,
    layout: &Layout,
    each: impl Fn(&[T]) -> Vec<T>,
) -> candle_core::Result<CpuStorage> {
    let all = T::cpu_storage_as_slice(storage)?;
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
    let batch = layout.dims()[0];
    let row = (end - start) / batch.max(1);
    Ok(T::to_cpu_storage_owned(all[start..end].chunks_exact(row).flat_map(each).collect()))
}

fn interleave<T: Copy>((re, im): (Vec<T>, Vec<T>)) -> Vec<T> {
    re.into_iter().zip(im).flat_map(|(re, im)| [re, im]).collect()
}

fn part<T: Copy>(x: &[T], which: usize) -> Vec<T> {
    x.iter().skip(which).step_by(2).copied().collect()
}

impl SpectrumOp {
    fn run<T: WithDType + FftNum>(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<CpuStorage> {
        let stft = Stft::<T>::new(&self.cfg).map_err(candle_core::Error::wrap)?;
        rows(s, l, |signal| interleave(stft.spectrum(signal)))
    }

    fn adjoint<T: WithDType + FftNum>(&self, grad: &Tensor, samples: usize) -> candle_core::Result<Tensor> {
        let stft = Stft::<T>::new(&self.cfg).map_err(candle_core::Error::wrap)?;
        let (batch, ..) = grad.dims4()?;
        let values = grad.flatten_all()?.to_vec1::<T>()?;
        let row = values.len() / batch;
        let of_row = |g: &[T]| stft.spectrum_adjoint(&part(g, 0), &part(g, 1), samples);
        Tensor::from_vec(
            values.chunks_exact(row).flat_map(of_row).collect::<Vec<_>>(),
            (batch, samples),
            grad.device(),
        )
    }
}

impl CustomOp1 for SpectrumOp {
    fn name(&self) -> &'static str {
        "stft"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, samples) = l.shape().dims2()?;
        let shape = (batch, samples / self.cfg.hop_size + 1, self.cfg.bins(), 2).into();
        match s.dtype() {
            DType::F32 => Ok((self.run::<f32>(s, l)?, shape)),
            DType::F64 => Ok((self.run::<f64>(s, l)?, shape)),
            other => bail!("stft: dtype {other:?}, expected f32 or f64"),
        }
    }

    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let samples = arg.dim(1)?;
        let grad = grad.detach();
        Ok(Some(match grad.dtype() {
            DType::F64 => self.adjoint::<f64>(&grad, samples)?,
            _ => self.adjoint::<f32>(&grad, samples)?,
        }))
    }
}

impl SignalOp {
    fn run<T: WithDType + FftNum>(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<CpuStorage> {
        let stft = Stft::<T>::new(&self.cfg).map_err(candle_core::Error::wrap)?;
        rows(s, l, |spectrum| stft.signal(&part(spectrum, 0), &part(spectrum, 1)))
    }

    fn adjoint<T: WithDType + FftNum>(&self, grad: &Tensor, shape: &Shape) -> candle_core::Result<Tensor> {
        let stft = Stft::<T>::new(&self.cfg).map_err(candle_core::Error::wrap)?;
        let (batch, samples) = grad.dims2()?;
        let frames = shape.dims()[1];
        let values = grad.flatten_all()?.to_vec1::<T>()?;
        debug_assert_eq!(values.len(), batch * samples);
        let of_row = |g: &[T]| interleave(stft.signal_adjoint(g, frames));
        Tensor::from_vec(
            values.chunks_exact(samples).flat_map(of_row).collect::<Vec<_>>(),
            shape,
            grad.device(),
        )
    }
}

impl CustomOp1 for SignalOp {
    fn name(&self) -> &'static str {
        "istft"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, frames, ..) = l.shape().dims4()?;
        let shape = (batch, (frames - 1) * self.cfg.hop_size).into();
        match s.dtype() {
            DType::F32 => Ok((self.run::<f32>(s, l)?, shape)),
            DType::F64 => Ok((self.run::<f64>(s, l)?, shape)),
            other => bail!("istft: dtype {other:?}, expected f32 or f64"),
        }
    }

    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grad = grad.detach();
        Ok(Some(match grad.dtype() {
            DType::F64 => self.adjoint::<f64>(&grad, arg.shape())?,
            _ => self.adjoint::<f32>(&grad, arg.shape())?,
        }))
    }
}
