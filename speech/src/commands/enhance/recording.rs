//! One recording from file to file: decode, resample, enhance, resample back, encode, in memory that does not grow.

use super::super::recordings::Totals;
use anyhow::Result;
use mamba_core::progress::Progress;
use mamba_datasets::AtomicFile;
use mamba_datasets::job::Claim;
use mamba_speech::audio::{Reader, Resampler, WavFormat, WavWriter};
use mamba_speech::enhance::{ChunkConfig, Chunks};
use mamba_speech::spectrogram::BeforeAfter;
use mamba_speech::{Enhancer, audio};
use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Seconds that a picture shows.
const PICTURE_SECONDS: u32 = 30;

/// How recordings are enhanced.
pub(crate) struct Options {
    pub(crate) chunk: ChunkConfig,
    /// Share of the recording that is mixed to the result.
    pub(crate) keep: f32,
    pub(crate) format: Option<WavFormat>,
    pub(crate) picture: bool,
}

/// One channel on its way through the model.
pub(crate) struct Lane<'a> {
    down: Resampler,
    chunks: Chunks<'a>,
    up: Resampler,
    keep: f32,
    /// The recording itself, until its enhanced form has come.
    original: VecDeque<f32>,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(enhancer: &'a Enhancer, rate: u32, options: &Options) -> Result<Self> {
        Ok(Self {
            down: Resampler::new(rate, enhancer.sample_rate())?,
            chunks: Chunks::new(enhancer, options.chunk),
            up: Resampler::new(enhancer.sample_rate(), rate)?,
            keep: options.keep,
            original: VecDeque::new(),
        })
    }

    pub(crate) fn push(&mut self, samples: &[f32]) -> Result<Vec<f32>> {
        if self.keep > 0.0 {
            self.original.extend(samples);
        }
        let enhanced = self.up.push(&self.chunks.push(&self.down.push(samples)?)?)?;
        Ok(self.mix(enhanced))
    }

    /// The rest: in all as many samples as came in.
    pub(crate) fn finish(mut self, total: u64) -> Result<Vec<f32>> {
        let given = self.up.given();
        let rest = self.chunks.push(&self.down.finish()?)?;
        let mut samples = self.up.push(&rest)?;
        samples.extend(self.up.push(&self.chunks.finish()?)?);
        samples.extend(self.up.finish()?);
        // There and back, lengths may be rounded by a sample.
        samples.resize((total - given) as usize, 0.0);
        let keep = self.keep;
        samples.iter_mut().zip(self.original).for_each(|(x, y)| *x = (1.0 - keep) * *x + keep * y);
        Ok(samples)
    }

    fn mix(&mut self, mut enhanced: Vec<f32>) -> Vec<f32> {
        let keep = self.keep;
        let n = enhanced.len().min(self.original.len());
        enhanced
            .iter_mut()
            .zip(self.original.drain(..n))
            .for_each(|(x, y)| *x = (1.0 - keep) * *x + keep * y);
        enhanced
    }
}

/// Enhances `input` into the output of `claim`.
pub(crate) fn enhance(
    input: &Path,
    claim: Claim,
    enhancer: &Enhancer,
    options: &Options,
    progress: impl FnOnce(Option<u64>) -> Progress,
) -> Result<Totals> {
    let clock = Instant::now();
    let mut reader = Reader::open(input)?;
    let spec = reader.spec();
    let mut progress = progress(spec.seconds());
    let format = options.format.unwrap_or(spec.format);
    let mut writer = WavWriter::create(claim.output(), spec.sample_rate, spec.channels, format)?;
    let lane = || Lane::new(enhancer, spec.sample_rate, options);
    let mut lanes = (0..spec.channels).map(|_| lane()).collect::<Result<Vec<_>>>()?;
    let shown = if options.picture { (PICTURE_SECONDS * spec.sample_rate) as usize } else { 0 };
    let (mut before, mut after): (Vec<f32>, Vec<f32>) = Default::default();
    let show = |picture: &mut Vec<f32>, channels: &[Vec<f32>]| {
        let n = channels[0].len().min(shown - picture.len());
        picture.extend_from_slice(&channels[0][..n]);
    };
    let mut seconds = 0;
    while let Some(block) = reader.next_block()? {
        show(&mut before, &block);
        let lanes = lanes.iter_mut().zip(&block);
        let out = lanes.map(|(lane, samples)| lane.push(samples)).collect::<Result<Vec<_>>>()?;
        show(&mut after, &out);
        writer.write(&out)?;
        let done = reader.frames() / u64::from(spec.sample_rate);
        progress.inc(done - seconds);
        seconds = done;
    }
    let out = lanes.into_iter().map(|lane| lane.finish(reader.frames())).collect::<Result<Vec<_>>>()?;
    show(&mut after, &out);
    writer.write(&out)?;
    progress.finish();
    let clipped = writer.clipped();
    let picture = claim.output().with_extension("png");
    let mut files = vec![writer.into_file()?];
    if options.picture {
        files.push(draw(&picture, &before, &after, spec.sample_rate)?);
    }
    claim.commit(files, reader.frames())?;
    let seconds = reader.frames() as f64 / f64::from(spec.sample_rate);
    Ok(Totals { recordings: 1, seconds, took: clock.elapsed().as_secs_f64(), clipped })
}

/// The picture, not yet under its name.
fn draw(path: &Path, before: &[f32], after: &[f32], rate: u32) -> Result<AtomicFile> {
    const RATE: u32 = 16_000;
    let (before, after) = (audio::resample(before, rate, RATE)?, audio::resample(after, rate, RATE)?);
    let mut file = AtomicFile::create(path)?;
    file.write_all(&BeforeAfter::new(&before, &after, RATE)?.png()?)?;
    Ok(file)
}
