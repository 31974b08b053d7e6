//! `enhance`: noisy recordings of any length, folders of them, or a live stream.

mod live;
mod recording;

use anyhow::{Result, bail};
use mamba_core::cli::{CommonArgs, HintExt};
use mamba_core::train::Stop;
use mamba_datasets::job::{Claimed, Fingerprint, Job, Shard};
use mamba_speech::audio::{WavFormat, files_in};
use mamba_speech::enhance::ChunkConfig;
use mamba_speech::{Enhancer, SeMambaCheckpoint};
use recording::{Options, Totals};
use std::collections::BTreeMap;
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
    #[arg(long, value_name = "HZ", default_value_t = 16_000, requires = "stream")]
    rate: u32,

    #[command(flatten)]
    common: CommonArgs,
}

/// A recording and the place of its result.
struct Task {
    input: PathBuf,
    output: PathBuf,
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
        return live::run(&enhancer, &options, args.rate);
    }
    let Some(out) = &args.out else { bail!("--out is missing") };
    let tasks = tasks(&args.inputs, out)?;
    let model = checkpoint.hash()?;
    batch(&args, &tasks, &enhancer, &model, &options)
}

/// Every recording, and a result for each; two results of one name are refused before any work.
fn tasks(inputs: &[PathBuf], out: &Path) -> Result<Vec<Task>> {
    let wav = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("wav"));
    if let [input] = inputs
        && !input.is_dir()
        && wav(out)
        && !out.is_dir()
    {
        return Ok(vec![Task { input: input.clone(), output: out.to_owned() }]);
    }
    if wav(out) {
        let problem = format!("--out {}: many recordings need a folder, not a .wav file", out.display());
        return Err(mamba_core::Error::Config(problem).into());
    }
    let mut tasks = Vec::new();
    for path in inputs {
        let (root, files) = match path.is_dir() {
            true => (path.as_path(), files_in(path)?),
            false => (path.parent().unwrap_or(Path::new("")), vec![path.clone()]),
        };
        for input in files {
            let relative = input.strip_prefix(root).unwrap_or(&input);
            tasks.push(Task { output: out.join(relative).with_extension("wav"), input });
        }
    }
    let mut taken: BTreeMap<&Path, &Path> = BTreeMap::new();
    for task in &tasks {
        if let Some(first) = taken.insert(&task.output, &task.input) {
            let (a, b, out) = (first.display(), task.input.display(), task.output.display());
            let problem = format!("{a} and {b} would both become {out}: enhance them into two folders");
            return Err(mamba_core::Error::Config(problem).into());
        }
    }
    Ok(tasks)
}

/// Makes all results of this shard. A recording that fails is reported, and the others go on.
fn batch(
    args: &Args,
    tasks: &[Task],
    enhancer: &Enhancer,
    model: &str,
    options: &Options,
) -> Result<ExitCode> {
    let stop = Stop::on_signals()?;
    let ours: Vec<&Task> =
        tasks.iter().enumerate().filter(|(i, _)| args.shard.owns(*i)).map(|(_, t)| t).collect();
    let mut totals = Totals::default();
    let (mut finished, mut failed) = (0, 0);
    for task in &ours {
        if stop.requested() {
            break;
        }
        let made = claim(args, task, model, options).and_then(|claimed| match claimed {
            Claimed::Finished(_) => Ok(None),
            Claimed::Open(claim) => {
                let progress = args.common.progress(None, "s of sound");
                recording::enhance(&task.input, claim, enhancer, options, progress).map(Some)
            }
        });
        match made {
            Ok(None) => finished += 1,
            Ok(Some(one)) => {
                if !args.common.quiet {
                    eprintln!("{}: {}", task.output.display(), one.describe());
                }
                totals.add(&one);
            }
            // With one recording, its error is the program's.
            Err(error) if ours.len() == 1 => return Err(error),
            Err(error) => {
                failed += 1;
                eprintln!("error: {error:#}");
            }
        }
    }
    let summary = serde_json::json!({
        "written": totals.recordings, "already_there": finished, "failed": failed,
        "seconds": totals.seconds, "real_time_factor": totals.real_time_factor(),
    });
    match args.common.format {
        mamba_core::cli::Format::Json => println!("{summary}"),
        mamba_core::cli::Format::Human if ours.len() > 1 && !args.common.quiet => {
            eprintln!(
                "{} written, {finished} already there, {failed} failed; {}",
                totals.recordings,
                totals.describe()
            );
        }
        mamba_core::cli::Format::Human => (),
    }
    Ok(match (stop.requested(), failed) {
        (true, _) => ExitCode::from(mamba_core::cli::INTERRUPTED),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

/// The right to make one result, unless it stands already.
fn claim(args: &Args, task: &Task, model: &str, options: &Options) -> Result<Claimed> {
    let mut fingerprint = Fingerprint::new();
    fingerprint.add_input(&task.input)?.add_hash("model", model);
    fingerprint.set_config(&serde_json::json!({
        "chunk": args.chunk, "limit": args.limit, "samples": args.samples, "picture": args.picture,
        "pcs": args.pcs,
    }))?;
    if let Some(folder) = task.output.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| anyhow::anyhow!("{}: {e}", folder.display()))?;
    }
    let beside: Vec<PathBuf> =
        options.picture.then(|| task.output.with_extension("png")).into_iter().collect();
    let job = Job::new("mamba-speech enhance", fingerprint).overwrite(args.overwrite);
    Ok(job.claim(&task.output, &beside, None)?)
}
