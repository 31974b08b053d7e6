//! Raw sound from standard input to standard output.

use super::recording::{Lane, Options};
use anyhow::{Context, Result};
use mamba_speech::{Enhancer, Stream};
use std::io::{Read, Write};
use std::process::ExitCode;

/// Samples that are read at once: 20 ms at 16 kHz.
const BLOCK: usize = 320;

/// A causal model follows frame by frame; another one, or another rate, works in chunks.
pub(crate) fn run(enhancer: &Enhancer, options: &Options, rate: u32, quiet: bool) -> Result<ExitCode> {
    let live = enhancer.config().model_cfg.causal && rate == enhancer.sample_rate();
    if live {
        let mut stream = Stream::new(enhancer)?;
        let mut keep = Keep { share: options.keep, waiting: Default::default() };
        let heard = copy(|samples| {
            keep.hear(samples);
            Ok(keep.mix(stream.push(samples)?))
        })?;
        write(&keep.mix(stream.finish()?))?;
        return heard.expect_whole();
    }
    if !quiet {
        eprintln!(
            "sound comes out in chunks of seconds: a model of preset semamba-stream at {} Hz follows live",
            enhancer.sample_rate()
        );
    }
    let mut lane = Lane::new(enhancer, rate, options)?;
    let heard = copy(|samples| lane.push(samples))?;
    write(&lane.finish(heard.samples)?)?;
    heard.expect_whole()
}

/// What came from standard input.
struct Heard {
    samples: u64,
    /// A byte at the end that belongs to no sample.
    stray: bool,
}

impl Heard {
    /// To be asked when all samples are out.
    fn expect_whole(&self) -> Result<ExitCode> {
        if self.stray {
            let n = self.samples;
            anyhow::bail!("standard input ends in the middle of a 16 bit sample, after {n} samples");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Mixes a share of what was heard to what comes out.
struct Keep {
    share: f32,
    waiting: std::collections::VecDeque<f32>,
}

impl Keep {
    fn hear(&mut self, samples: &[f32]) {
        if self.share > 0.0 {
            self.waiting.extend(samples);
        }
    }

    fn mix(&mut self, mut enhanced: Vec<f32>) -> Vec<f32> {
        let n = enhanced.len().min(self.waiting.len());
        let share = self.share;
        enhanced
            .iter_mut()
            .zip(self.waiting.drain(..n))
            .for_each(|(x, y)| *x = (1.0 - share) * *x + share * y);
        enhanced
    }
}

/// Passes everything through `enhance`.
fn copy(mut enhance: impl FnMut(&[f32]) -> Result<Vec<f32>>) -> Result<Heard> {
    let mut stdin = std::io::stdin().lock();
    let (mut bytes, mut filled, mut total) = ([0u8; 2 * BLOCK], 0, 0);
    loop {
        let n = stdin.read(&mut bytes[filled..]).context("standard input")?;
        filled += n;
        let whole = filled / 2 * 2;
        if n == 0 {
            return Ok(Heard { samples: total, stray: filled == 1 });
        }
        let samples: Vec<f32> = bytes[..whole]
            .chunks_exact(2)
            .map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0)
            .collect();
        bytes.copy_within(whole..filled, 0);
        filled -= whole;
        total += samples.len() as u64;
        if !samples.is_empty() {
            write(&enhance(&samples)?)?;
        }
    }
}

fn write(samples: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = samples
        .iter()
        .flat_map(|x| ((f64::from(*x) * 32768.0).round().clamp(-32768.0, 32767.0) as i16).to_le_bytes())
        .collect();
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&bytes)?;
    Ok(stdout.flush()?)
}
