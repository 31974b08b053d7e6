//! `enhance`: noisy recordings of any length.

use anyhow::Result;
use mamba_core::cli::CommonArgs;
use mamba_speech::SeMambaCheckpoint;
use mamba_speech::audio::{Reader, Resampler, WavWriter};
use mamba_speech::enhance::{ChunkConfig, Chunks};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `enhance`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  mamba-speech enhance noisy.wav --checkpoint runs/speech --out clean.wav")]
pub(crate) struct Args {
    /// A recording
    #[arg(value_name = "FILE")]
    input: PathBuf,

    /// Where the result goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Folder of a run or a checkpoint, or upstream's .pth
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,

    /// Seconds of sound that are processed at once
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    chunk: f64,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let enhancer = SeMambaCheckpoint::open(&args.checkpoint)?.enhancer(args.common.dtype(), &device)?;
    let mut reader = Reader::open(&args.input)?;
    let spec = reader.spec();
    let rate = enhancer.sample_rate();
    let chunk = ChunkConfig::seconds(args.chunk, rate);
    let mut lanes = Vec::new();
    for _ in 0..spec.channels {
        let down = Resampler::new(spec.sample_rate, rate)?;
        let up = Resampler::new(rate, spec.sample_rate)?;
        lanes.push((down, Chunks::new(&enhancer, chunk), up));
    }
    let mut writer = WavWriter::create(&args.out, spec.sample_rate, spec.channels, spec.format)?;
    while let Some(block) = reader.next_block()? {
        let mut out = Vec::new();
        for ((down, chunks, up), samples) in lanes.iter_mut().zip(block) {
            out.push(up.push(&chunks.push(&down.push(&samples)?)?)?);
        }
        writer.write(&out)?;
    }
    let mut out = Vec::new();
    for (down, mut chunks, mut up) in lanes {
        let rest = chunks.push(&down.finish()?)?;
        let mut samples = up.push(&rest)?;
        samples.extend(up.push(&chunks.finish()?)?);
        samples.extend(up.finish()?);
        out.push(samples);
    }
    writer.write(&out)?;
    writer.finish()?;
    Ok(ExitCode::SUCCESS)
}
