//! `train`: masked-language-model pre-training.

use anyhow::{Context, Result};
use mamba_core::cli::{CommonArgs, TrainingArgs, interrupted};
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop, TrainConfig};
use mamba_core::{Params, checkpoint};
use mamba_genomics::fasta::FastaOptions;
use mamba_genomics::genome::Genome;
use mamba_genomics::task::{
    DataConfig, HeldOutScore, LengthWarmup, PretrainConfig, PretrainData, Pretraining,
};
use mamba_genomics::{CaduceusConfig, CaduceusForMaskedLm};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-genomics train --out runs/lambda --minutes 2\n  \
    mamba-genomics train genome.fa.gz --out runs/genome --preset base --steps 5000\n  \
    mamba-genomics train ecoli-536 --out runs/ecoli    (a set of `mamba-genomics datasets list`)\n  \
    mamba-genomics train genome.fa.gz --out runs/long --length 131072 --warmup-length 1024 --batch 1 --recompute\n  \
    mamba-genomics train genome.fa.gz --out runs/genome --resume")]
pub(crate) struct Args {
    /// FASTA files, plain, gzip or bgzip, or names of data sets [default: the bundled genome of phage lambda]
    #[arg(value_name = "FASTA")]
    fasta: Vec<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/caduceus")]
    out: PathBuf,

    /// Size of the model: tiny, small, base or released [default: small; tiny for the bundled genome]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// Caduceus-Ph (one strand, reverse-complement augmentation) instead of PS (both strands, shared parameters)
    #[arg(long)]
    ph: bool,

    /// Start from the weights of a checkpoint of the same shape
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,

    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Bases in a training window
    #[arg(long, value_name = "BASES")]
    length: Option<usize>,

    /// Begin with windows of so many bases, which double until they have --length, in the first half of the steps
    #[arg(long, value_name = "BASES")]
    warmup_length: Option<usize>,

    /// Compute each block again in the backward pass: long windows in less memory, for a third more time
    #[arg(long)]
    recompute: bool,

    #[command(flatten)]
    training: TrainingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    /// The defaults of the command line, with the run in `out`.
    pub(crate) fn for_run(out: &Path, minutes: f64, common: CommonArgs) -> Self {
        let training = TrainingArgs { resume: true, minutes: Some(minutes), ..TrainingArgs::default() };
        Self {
            fasta: Vec::new(),
            out: out.to_path_buf(),
            preset: None,
            ph: false,
            init: None,
            steps: None,
            length: None,
            warmup_length: None,
            recompute: false,
            training,
            common,
        }
    }

    /// Preset, then file, then `--set`, then the flags of their own.
    fn resolve(&self) -> Result<PretrainConfig> {
        let bundled = self.fasta.is_empty();
        let preset = self.preset.as_deref().unwrap_or(if bundled { "tiny" } else { "small" });
        let mut model = CaduceusConfig::preset(preset).ok_or_else(|| {
            let known = CaduceusConfig::PRESETS.join(", ");
            mamba_core::Error::Config(format!("--preset {preset}: expected one of {known}"))
        })?;
        model.rcps = !self.ph;
        let train = TrainConfig {
            steps: if bundled { 1500 } else { 4000 },
            batch_size: 8,
            learning_rate: 4e-3,
            warmup: 100,
            log_every: if bundled { 100 } else { 20 },
            ..TrainConfig::default()
        };
        let data = match bundled {
            // 48,502 bases: short windows, and enough held out to measure by.
            true => DataConfig { length: 256, valid: 0.1, test: 0.1, ..DataConfig::default() },
            false => DataConfig::default(),
        };
        let mut cfg = self.training.settings.resolve(&PretrainConfig {
            model,
            train,
            data,
            length_warmup: None,
            recompute: false,
        })?;
        self.training.apply(&mut cfg.train);
        cfg.train.steps = self.steps.unwrap_or(cfg.train.steps);
        cfg.data.length = self.length.unwrap_or(cfg.data.length);
        if let Some(from) = self.warmup_length {
            cfg.length_warmup = Some(LengthWarmup { from, steps: cfg.train.steps / 2 });
        }
        cfg.recompute |= self.recompute;
        cfg.model.validate()?;
        cfg.train.validate()?;
        Ok(cfg)
    }
}

/// The genome of some FASTA files, or the bundled one.
pub(crate) fn genome(fasta: &[PathBuf]) -> Result<Genome> {
    if !fasta.is_empty() {
        return Ok(Genome::load(super::sequence_files(fasta)?, FastaOptions::default())?);
    }
    let sample = mamba_datasets::sample("lambda")?;
    let folder = std::env::temp_dir().join(format!("mamba-genomics-{}", std::process::id()));
    let path = sample.write_to(&folder)?;
    let genome = Genome::load([path], FastaOptions::default());
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(genome?)
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let cfg = args.resolve()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let genome = genome(&args.fasta)?;
    console.note(&format!("{} records, {}", genome.records().len(), genome.counts()));
    let data = PretrainData::new(genome, &cfg.data)?;

    let (seed, dtype) = (cfg.train.seed, args.common.dtype());
    let params = Params::start(args.init.as_deref(), seed, dtype, &device)?;
    let mut task = Pretraining::new(&cfg, &data, params)?;
    let folder = args.training.folder(&args.out)?;
    let bases = |intervals: &[mamba_genomics::genome::Interval]| -> usize {
        intervals.iter().map(mamba_genomics::genome::Interval::len).sum()
    };
    let split = data.split();
    console.note(&format!(
        "{} parameters; {} bases to train on, {} for validation, {} for the test",
        mamba_core::train::Task::params(&task).count(),
        bases(&split.train),
        bases(&split.valid),
        bases(&split.test)
    ));
    let settings = serde_json::json!({ "pretrain": &cfg, "fasta": &args.fasta });
    let info = RunInfo::new("mamba-genomics", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    let stop = Stop::on_signals()?;
    if train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &stop)?.is_none() {
        return Ok(interrupted(&console, &args.out));
    }
    drop(task);
    let (score, table) = test_table(&cfg, &data, &args.out, &device, &args.common)?;
    print_result(&args.common, &score, table)?;
    console.note(&format!(
        "run in {out}: model, metrics, {out}/loss.svg\nnext: mamba-genomics embed sequences.fa --checkpoint {out} --out vectors.parquet",
        out = args.out.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The best model of a run on the test bases, and the count models beside it.
pub(crate) fn test_table(
    cfg: &PretrainConfig,
    data: &PretrainData,
    dir: &Path,
    device: &candle_core::Device,
    common: &CommonArgs,
) -> Result<(HeldOutScore, serde_json::Value)> {
    let checkpoint = checkpoint::load(dir, None)?;
    let params = Params::frozen(checkpoint.tensors, common.dtype(), device);
    let model = CaduceusForMaskedLm::new(&cfg.model, &params.builder())?;
    params.check().with_context(|| format!("{} does not fit its config", dir.display()))?;
    let windows = data.test_windows();
    let mut progress = common.progress(Some(windows.len() as u64), "windows");
    let mut done = 0;
    let score = data.score(&model, cfg.model.pad_token_id, &windows, device, |n| {
        progress.inc((n - done) as u64);
        done = n;
    })?;
    progress.finish();
    let counts = data.count_models()?;
    let table = serde_json::json!({
        "test": score,
        "causal_count_model": { "bits": counts.causal.bits, "context": counts.causal_context },
        "two_sided_count_model": { "bits": counts.two_sided.bits, "context": counts.two_sided_context },
    });
    Ok((score, table))
}

/// The table on stdout, for people or as JSON.
pub(crate) fn print_result(
    common: &CommonArgs,
    score: &HeldOutScore,
    table: serde_json::Value,
) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    if common.format == mamba_core::cli::Format::Json {
        writeln!(stdout, "{table}")?;
        return Ok(());
    }
    writeln!(stdout, "held-out bases: {}, all masked", score.bases)?;
    let (bits, accuracy) = (score.bits, score.accuracy);
    writeln!(stdout, "  model                    {bits:.4} bits per base, accuracy {accuracy:.4}")?;
    for (name, key) in [("causal", "causal_count_model"), ("two-sided", "two_sided_count_model")] {
        let (bits, context) = (table[key]["bits"].as_f64(), table[key]["context"].as_str());
        let label = format!("{name} counts");
        let (bits, context) = (bits.unwrap_or(f64::NAN), context.unwrap_or(""));
        writeln!(stdout, "  {label:<24} {bits:.4} bits per base ({context})")?;
    }
    Ok(())
}
