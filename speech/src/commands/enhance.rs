//! `enhance`: noisy recordings of any length, folders of them, or a live stream.

mod live;
mod recording;

use super::recordings::{Recording, batch, below, refuse_clashes};
use anyhow::{Result, bail};
use clap::builder::TypedValueParser;
use mamba_core::cli::{CommonArgs, HintExt};
use mamba_datasets::job::{Claimed, Fingerprint, Job, Shard};
use mamba_datasets::registry::resolve_all;
use mamba_speech::SeMambaCheckpoint;
use mamba_speech::audio::{SAMPLE_RATES, WavFormat, is_audio};
use mamba_speech::enhance::ChunkConfig;
use recording::Options;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `enhance`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mamba-speech enhance noisy.wav --out clean.wav
  mamba-speech enhance recordings/ --out cleaned/ --picture
  mamba-speech enhance recordings/ --out cleaned/ --shard 0/4
  arecord -f S16_LE -r 16000 | mamba-speech enhance --stream | aplay -f S16_LE -r 16000")]
pub(crate) struct Args {
    /// Recordings, or folders of them: WAV, FLAC, Ogg Vorbis, MP3
    #[arg(value_name = "PATH", required_unless_present = "stream")]
    inputs: Vec<PathBuf>,

    /// Where the result goes: a .wav file for one recording, else a folder, in which sub-folders are kept
    #[arg(long, value_name = "PATH", required_unless_present = "stream")]
    out: Option<PathBuf>,

    /// Folder of a run or a checkpoint, or upstream's .pth [default: the small model that comes with this program]
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,

    /// Seconds of sound that are processed at once
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    chunk: f64,

    /// Take away at most so many dB of noise: some of the recording is mixed to the result
    #[arg(long, value_name = "DB")]
    limit: Option<f64>,

    /// How samples are stored [default: as in the recording]
    #[arg(long, value_name = "FORMAT", value_parser = ["pcm16", "pcm24", "float"])]
    samples: Option<String>,

    /// Stretch the perceptual contrast of the result (PCS): crisper, and higher PESQ
    #[arg(long, conflicts_with = "stream")]
    pcs: bool,

    /// Draw spectrograms of the first 30 seconds, before and after, as NAME.png beside NAME.wav
    #[arg(long)]
    picture: bool,

    /// Make every N-th recording only, counted from I: for many machines
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,

    /// Replace results that were made from another recording, model or setting
    #[arg(long)]
    overwrite: bool,

    /// Read raw sound from standard input and write it to standard output: one channel, 16 bit, little-endian
    #[arg(long, conflicts_with_all = ["inputs", "out", "picture", "samples", "shard", "overwrite"])]
    stream: bool,

    /// Samples in a second of the stream
    #[arg(long, value_name = "HZ", default_value_t = 16_000, requires = "stream", value_parser = rate())]
    rate: u32,

    #[command(flatten)]
    common: CommonArgs,
}

fn rate() -> impl TypedValueParser<Value = u32> {
    clap::value_parser!(u32).range(i64::from(*SAMPLE_RATES.start())..=i64::from(*SAMPLE_RATES.end()))
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let positive = |x: f64| x > 0.0 && x.is_finite();
    if !positive(args.chunk) || args.limit.is_some_and(|db| !positive(db)) {
        return Err(mamba_core::Error::Config("--chunk and --limit must be above 0".into()).into());
    }
    let checkpoint = SeMambaCheckpoint::open_or_bundled(args.checkpoint.as_deref())
        .hint("name a folder with config.json and model.safetensors, or upstream's .pth")?;
    let enhancer = checkpoint.enhancer(args.common.dtype(), &device)?.with_stretch(args.pcs)?;
    let options = Options {
        chunk: ChunkConfig::seconds(args.chunk, enhancer.sample_rate()),
        keep: args.limit.map_or(0.0, |db| 10f64.powf(-db / 20.0) as f32),
        format: args.samples.as_deref().map(|name| match name {
            "pcm24" => WavFormat::PCM24,
            "float" => WavFormat::FLOAT,
            _ => WavFormat::PCM16,
        }),
        picture: args.picture,
    };
    if args.stream {
        return live::run(&enhancer, &options, args.rate, args.common.quiet);
    }
    let Some(out) = &args.out else { bail!("--out is missing") };
    let tasks = tasks(&resolve_all(&args.inputs)?, out)?;
    let model = checkpoint.hash()?;
    batch(&tasks, args.shard, &args.common, |task| match claim(&args, task, &model, &options)? {
        Claimed::Finished(_) => Ok(None),
        Claimed::Open(claim) => {
            let progress = |seconds| args.common.progress(seconds, "s of sound");
            recording::enhance(&task.input, claim, &enhancer, &options, progress).map(Some)
        }
    })
}

/// Every recording, and the place of its result.
fn tasks(inputs: &[PathBuf], out: &Path) -> Result<Vec<Recording>> {
    let wav = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("wav"));
    if let [input] = inputs
        && !input.is_dir()
        && wav(out)
        && !out.is_dir()
    {
        let recordings = vec![Recording { input: input.clone(), outputs: vec![out.to_owned()] }];
        refuse_clashes(&recordings)?;
        return Ok(recordings);
    }
    let refuse = |why: &str| -> Result<Vec<Recording>> {
        Err(mamba_core::Error::Config(format!("--out {}: {why}", out.display())).into())
    };
    if wav(out) {
        return refuse("many recordings need a folder, not a .wav file");
    }
    if is_audio(out) && !out.is_dir() {
        return refuse("results are WAV files: name a .wav file, or a folder");
    }
    below(inputs, out, |output| vec![output])
}

/// The right to make one result, unless it stands already.
fn claim(args: &Args, task: &Recording, model: &str, options: &Options) -> Result<Claimed> {
    let mut fingerprint = Fingerprint::new();
    fingerprint.add_input(&task.input)?.add_hash("model", model);
    fingerprint.set_config(&serde_json::json!({
        "chunk": args.chunk, "limit": args.limit, "samples": args.samples, "picture": args.picture,
        "pcs": args.pcs,
    }))?;
    let output = &task.outputs[0];
    if let Some(folder) = output.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| anyhow::anyhow!("{}: {e}", folder.display()))?;
    }
    let beside: Vec<PathBuf> = options.picture.then(|| output.with_extension("png")).into_iter().collect();
    let job = Job::new("mamba-speech enhance", fingerprint).overwrite(args.overwrite);
    Ok(job.claim(output, &beside, None)?)
}
