//! Enhancing live sound: a causal model, frame by frame, with its state carried along.
//!
//! Frame `t` is centred at sample `t·hop` and is heard when `n_fft / 2` samples have followed; a sample is finished when
//! the last frame that covers it is. A sample therefore leaves at most `n_fft` samples after it came: 25 ms at 16 kHz.
//! What comes out is what [`Enhancer::enhance`] gives for the whole.

use crate::enhance::Enhancer;
use crate::model::StreamState;
use crate::spectrum::Spectrum;
use crate::stft::Stft;
use candle_core::{DType, Result, Tensor, bail};

/// One channel of live sound.
pub struct Stream<'a> {
    enhancer: &'a Enhancer,
    stft: Stft<f32>,
    n_fft: usize,
    hop: usize,
    state: StreamState,
    /// Samples from the beginning of the next frame on; what lies before the signal is made up by reflection.
    waiting: Vec<f32>,
    /// Sums of windowed frames, and of squared windows, from the first unfinished sample on.
    sums: Vec<f32>,
    weights: Vec<f32>,
    /// Samples before the signal that are still to be dropped.
    skip: usize,
    taken: usize,
    given: usize,
}

impl<'a> Stream<'a> {
    /// At the beginning of a signal.
    ///
    /// # Errors
    /// A model that is not causal.
    pub fn new(enhancer: &'a Enhancer) -> Result<Self> {
        let cfg = enhancer.config();
        if !cfg.model_cfg.causal {
            bail!("a model that looks ahead cannot follow live sound: train one of preset semamba-stream");
        }
        let (n_fft, hop) = (cfg.stft_cfg.n_fft, cfg.stft_cfg.hop_size);
        let stft = Stft::new(&cfg.stft_cfg).map_err(candle_core::Error::wrap)?;
        Ok(Self {
            enhancer,
            stft,
            n_fft,
            hop,
            state: StreamState::default(),
            waiting: Vec::new(),
            sums: vec![0.0; n_fft],
            weights: vec![0.0; n_fft],
            skip: n_fft / 2,
            taken: 0,
            given: 0,
        })
    }

    /// Longest time from a sample's coming to its leaving, in samples, without the time to compute.
    pub fn latency(&self) -> usize {
        self.n_fft
    }

    /// Takes samples and gives those that are finished.
    pub fn push(&mut self, samples: &[f32]) -> Result<Vec<f32>> {
        let half = self.n_fft / 2;
        let begun = self.taken > half;
        self.taken += samples.len();
        self.waiting.extend(samples);
        if !begun {
            // The first frame needs the samples in front of the signal, mirrored; the outermost has no weight.
            if self.taken <= half {
                return Ok(Vec::new());
            }
            let mirrored: Vec<f32> = self.waiting[1..=half].iter().rev().copied().collect();
            self.waiting.splice(..0, mirrored);
        }
        self.run()
    }

    /// The rest, after the last sample.
    pub fn finish(mut self) -> Result<Vec<f32>> {
        let total = self.taken;
        if total == 0 {
            return Ok(Vec::new());
        }
        let padded = total.next_multiple_of(self.hop).max(2 * self.n_fft);
        let mut out = self.push(&vec![0.0; padded - total])?;
        // The samples behind the signal are mirrored too.
        let n = self.waiting.len();
        let mirrored: Vec<f32> = self.waiting[n - 1 - self.n_fft / 2..n - 1].iter().rev().copied().collect();
        self.waiting.extend(mirrored);
        out.extend(self.run()?);
        // Of the last frame, the half inside the signal is finished too.
        out.extend(self.take(self.n_fft / 2));
        out.truncate(out.len() - (self.given - total));
        Ok(out)
    }

    /// Runs the model over all frames that are complete.
    fn run(&mut self) -> Result<Vec<f32>> {
        if self.waiting.len() < self.n_fft {
            return Ok(Vec::new());
        }
        let frames = (self.waiting.len() - self.n_fft) / self.hop + 1;
        let (cfg, device) = (self.enhancer.config(), self.enhancer.device());
        let compress = cfg.model_cfg.compress_factor;
        let (mut re, mut im) = (Vec::new(), Vec::new());
        for t in 0..frames {
            let (r, i) = self.stft.frame_spectrum(&self.waiting[t * self.hop..][..self.n_fft]);
            re.extend(r);
            im.extend(i);
        }
        self.waiting.drain(..frames * self.hop);
        let shape = (1, frames, self.stft.bins());
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, shape, device)?.to_dtype(self.enhancer.dtype());
        let noisy = Spectrum::from_parts(&tensor(re)?, &tensor(im)?, compress)?;
        let enhanced = self.enhancer.model().forward_stream(&noisy, &mut self.state)?;
        let (re, im) = enhanced.parts(compress)?;
        let values = |x: Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (re, im) = (values(re)?, values(im)?);
        let mut out = Vec::new();
        for (re, im) in re.chunks_exact(self.stft.bins()).zip(im.chunks_exact(self.stft.bins())) {
            let frame = self.stft.frame_samples(re, im);
            self.sums.iter_mut().zip(&frame).for_each(|(sum, &x)| *sum += x);
            self.weights.iter_mut().zip(self.stft.window()).for_each(|(sum, &w)| *sum += w * w);
            out.extend(self.take(self.hop));
        }
        Ok(out)
    }

    /// The next `n` finished samples.
    fn take(&mut self, n: usize) -> Vec<f32> {
        let finished = self.sums.drain(..n).zip(self.weights.drain(..n));
        let mut out: Vec<f32> = finished.map(|(x, w)| if w > 0.0 { x / w } else { 0.0 }).collect();
        self.sums.resize(self.n_fft, 0.0);
        self.weights.resize(self.n_fft, 0.0);
        let skip = self.skip.min(out.len());
        self.skip -= skip;
        out.drain(..skip);
        self.given += out.len();
        out
    }
}
