//! `separate eval`: a model on mixtures of held-out sentences, or on mixtures in files.

use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format};
use mamba_core::run_folder::RunInfo;
use mamba_datasets::registry::{resolve, resolve_all};
use mamba_speech::audio::{files_in, read_mono};
use mamba_speech::separation::{Mixture, Part, Separated, SeparationConfig, Talk, TalkConfig};
use mamba_speech::{Error, SeparatorCheckpoint};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `separate eval`.
#[derive(clap::Args)]
#[command(after_help = "\
Mixtures of --speech are of sentences that were in no part of training, if the folders are those of the run: the split is that \
of the run. Other talkers need no split: --all.

Examples:
  mamba-speech separate eval --checkpoint runs/talk --speech cmu-arctic --speech vctk-excerpt
  mamba-speech separate eval --checkpoint runs/talk --speech other-talkers/ --all
  mamba-speech separate eval --checkpoint runs/talk --mixtures test/mix_clean --sources test/s1 --sources test/s2")]
pub(super) struct Args {
    /// Folder of a run of `separate train`
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Folders of read speech, one folder for each talker, or sets of `mamba-speech datasets list`
    #[arg(long, value_name = "DIR", required_unless_present = "mixtures", conflicts_with = "mixtures")]
    speech: Vec<PathBuf>,

    /// Mix all sentences, not only held-out ones
    #[arg(long, requires = "speech")]
    all: bool,

    /// Mixtures to make of --speech
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,

    /// Folder of mixtures
    #[arg(long, value_name = "DIR", requires = "sources")]
    mixtures: Option<PathBuf>,

    /// Folder of one talker of each mixture, under the same names; one flag for each talker
    #[arg(long, value_name = "DIR", requires = "mixtures")]
    sources: Vec<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let checkpoint = SeparatorCheckpoint::open(&args.checkpoint)?;
    let separator = checkpoint.separator(args.common.dtype(), &device)?;
    let (rate, talkers) = (separator.sample_rate(), separator.talkers());
    let mixtures = match &args.mixtures {
        Some(folder) => read(&resolve(folder)?, &resolve_all(&args.sources)?, talkers, rate)?,
        None => {
            let mut cfg = settings(&args.checkpoint)?;
            let part = if args.all { Part::Train } else { Part::Test };
            if args.all {
                (cfg.valid, cfg.test) = (0.0, 0.0);
            }
            Talk::load(&resolve_all(&args.speech)?, talkers, rate, &cfg)?.held_out(part, args.count)?
        }
    };
    let mut progress = args.common.progress(Some(mixtures.len() as u64), "mixtures");
    let mut scores = Vec::new();
    for mixture in &mixtures {
        scores.push(Separated::score(mixture, &separator.separate(&mixture.mixture)?));
        progress.inc(1);
    }
    progress.finish();
    let mean = |of: &dyn Fn(&Separated) -> f64, of_these: &[&Separated]| {
        of_these.iter().map(|s| of(s)).sum::<f64>() / of_these.len() as f64
    };
    let all: Vec<&Separated> = scores.iter().collect();
    let figures = |these: &[&Separated]| {
        (
            mean(&|s| s.mixture_si_sdr_db, these),
            mean(&|s| s.si_sdr_db, these),
            mean(&Separated::improvement_db, these),
        )
    };
    // Mixtures of the same talkers, in whatever order they were drawn.
    let mut pairs: BTreeMap<String, Vec<&Separated>> = BTreeMap::new();
    for score in &scores {
        let mut names = score.talkers.clone();
        names.sort();
        pairs.entry(names.join(" + ")).or_default().push(score);
    }
    let mut out = std::io::stdout().lock();
    if args.common.format == Format::Json {
        let (before, after, gain) = figures(&all);
        writeln!(
            out,
            "{}",
            json!({
                "mixtures": scores, "mean": { "mixture_si_sdr_db": before, "si_sdr_db": after, "improvement_db": gain },
            })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:<24} {:>8} {:>14} {:>14} {:>14}",
        "talkers", "mixtures", "mixture dB", "separated dB", "improvement dB"
    )?;
    for (name, these) in pairs.iter().map(|(n, s)| (n.as_str(), s)).chain([("mean", &all)]) {
        let (before, after, gain) = figures(these);
        writeln!(out, "{name:<24} {:>8} {before:>14.2} {after:>14.2} {gain:>14.2}", these.len())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How the run split and mixed its speech; the usual way if the folder does not tell.
fn settings(checkpoint: &Path) -> Result<TalkConfig> {
    let Ok(text) = std::fs::read(checkpoint.join("run.json")) else { return Ok(TalkConfig::default()) };
    let info: RunInfo = serde_json::from_slice(&text)?;
    let cfg: SeparationConfig = serde_json::from_value(info.settings["separation"].clone())?;
    Ok(cfg.data)
}

/// Mixtures and their talkers from files of the same names.
fn read(mixtures: &Path, sources: &[PathBuf], talkers: usize, rate: u32) -> Result<Vec<Mixture>> {
    if sources.len() != talkers {
        let problem =
            format!("{} folders of --sources, but the model separates {talkers} talkers", sources.len());
        return Err(mamba_core::Error::Config(problem).into());
    }
    let one = |path: PathBuf| -> Result<Mixture> {
        let relative = path.strip_prefix(mixtures).unwrap_or(&path);
        let mixture = read_mono(&path, rate)?;
        let talker = |folder: &PathBuf| -> Result<Vec<f32>> {
            let of_talker = folder.join(relative);
            if !of_talker.is_file() {
                return Err(Error::NoCounterpart { path: path.clone(), folder: folder.clone() }.into());
            }
            let samples = read_mono(&of_talker, rate)?;
            if samples.len() != mixture.len() {
                let reason =
                    format!("{} samples at {rate} Hz, but the mixture has {}", samples.len(), mixture.len());
                return Err(Error::Audio { path: of_talker, reason }.into());
            }
            Ok(samples)
        };
        let names = sources.iter().map(|s| s.file_name().unwrap_or_default().to_string_lossy().into_owned());
        Ok(Mixture {
            talkers: sources.iter().map(talker).collect::<Result<_>>()?,
            names: names.collect(),
            mixture,
        })
    };
    files_in(mixtures)?.into_iter().map(one).collect()
}
