//! Changing the sample rate, block by block, without delay and to the exact length.

use super::Audio;
use crate::{Error, Result};
use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Resampler as _, WindowFunction};

/// Frames that the resampler takes at once, about. It filters by one transform of this size, which is long enough for a
/// steep edge.
const CHUNK: usize = 4096;
/// Frames that may come out of a chunk, so that rates of a few Hz need no more memory than others.
const MOST_OUT: u64 = 1 << 20;

/// Resamples one channel that arrives in pieces. What comes out has no delay, and in all
/// `round(frames · to / from)` frames.
pub struct Resampler {
    from: u32,
    to: u32,
    /// None where the rates agree.
    inner: Option<Fft<f32>>,
    /// Input that does not fill a chunk yet.
    waiting: Vec<f32>,
    /// Output frames still to be dropped: the resampler's delay.
    skip: usize,
    taken: u64,
    given: u64,
}

impl Resampler {
    /// Between two rates in Hz.
    ///
    /// # Errors
    /// Rates that are 0.
    pub fn new(from: u32, to: u32) -> Result<Self> {
        let inner = match from == to {
            true => None,
            false => Some(
                Fft::new_custom(
                    from as usize,
                    to as usize,
                    CHUNK.min((MOST_OUT * u64::from(from) / u64::from(to).max(1)).max(1) as usize),
                    1,
                    1,
                    WindowFunction::BlackmanHarris2,
                    FixedSync::Input,
                )
                .map_err(|e| Error::Resample { from, to, reason: e.to_string() })?,
            ),
        };
        let skip = inner.as_ref().map_or(0, |r| r.output_delay());
        Ok(Self { from, to, inner, waiting: Vec::new(), skip, taken: 0, given: 0 })
    }

    /// Frames that so many input frames become.
    pub fn output_len(&self, frames: u64) -> u64 {
        let (from, to) = (u128::from(self.from), u128::from(self.to));
        ((u128::from(frames) * to * 2 + from) / (2 * from)) as u64
    }

    /// Frames that have come out so far.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Takes samples and gives those that are finished.
    ///
    /// # Errors
    /// None for finite samples.
    pub fn push(&mut self, samples: &[f32]) -> Result<Vec<f32>> {
        self.taken += samples.len() as u64;
        let Some(inner) = &mut self.inner else {
            self.given += samples.len() as u64;
            return Ok(samples.to_vec());
        };
        self.waiting.extend(samples);
        let (mut out, mut used) = (Vec::new(), 0);
        loop {
            let need = inner.input_frames_next();
            let Some(chunk) = self.waiting.get(used..used + need) else { break };
            let reason = |e: String| Error::Resample { from: self.from, to: self.to, reason: e };
            let chunk = SequentialSlice::new(chunk, 1, need).map_err(|e| reason(e.to_string()))?;
            let resampled = inner.process(&chunk, None).map_err(|e| reason(e.to_string()))?.take_data();
            let skip = self.skip.min(resampled.len());
            self.skip -= skip;
            out.extend_from_slice(&resampled[skip..]);
            used += need;
        }
        self.waiting.drain(..used);
        self.given += out.len() as u64;
        Ok(out)
    }

    /// The rest, after the last sample.
    ///
    /// # Errors
    /// As [`Resampler::push`].
    pub fn finish(mut self) -> Result<Vec<f32>> {
        let total = self.output_len(self.taken);
        let mut rest = Vec::new();
        while self.given < total {
            rest.extend(self.push(&[0.0; CHUNK])?);
        }
        rest.truncate(rest.len() - (self.given - total) as usize);
        Ok(rest)
    }
}

/// A whole channel at another rate: `round(frames · to / from)` samples.
///
/// # Errors
/// Rates that are 0.
pub fn resample(samples: &[f32], from: u32, to: u32) -> Result<Vec<f32>> {
    let mut resampler = Resampler::new(from, to)?;
    let mut out = resampler.push(samples)?;
    out.extend(resampler.finish()?);
    Ok(out)
}

impl Audio {
    /// At another rate.
    ///
    /// # Errors
    /// Rates that are 0.
    pub fn resampled(&self, to: u32) -> Result<Self> {
        let channels = self.channels.iter().map(|c| resample(c, self.sample_rate, to));
        Ok(Self { sample_rate: to, channels: channels.collect::<Result<_>>()? })
    }
}
