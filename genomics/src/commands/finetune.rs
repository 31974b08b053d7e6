//! `finetune`: a classifier or a regressor of labelled sequences.

mod sources;

use super::embed::usage;
use super::predictions::Table;
use anyhow::{Context, Result};
use mamba_core::cli::{CommonArgs, Format, HintExt, INTERRUPTED, SettingsArgs, interrupted, open_run};
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop};
use mamba_core::{checkpoint, plot};
use mamba_datasets::job;
use mamba_genomics::CaduceusConfig;
use mamba_genomics::finetune::{
    Chosen, Examples, FinetuneConfig, Finetuning, Kind, Mode, Predictor, Report, ReportPicture, StrandUse,
    Target, TaskConfig,
};
use mamba_genomics::labelled::{LabelledSet, Parts, k_fold, split};
use serde_json::{Value, json};
use sources::Leaks;
use std::io::{self, StdoutLock, Write};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

/// Sequences that are predicted at once.
const CHUNK: usize = 1024;

#[derive(clap::Args)]
#[command(after_long_help = "\
Tables are CSV, TSV (plain or gzip) or Parquet with a header; or --class NAME=FASTA once for each class.
Without --valid and --test, shares of the sequences are held out at random. A sequence, its copies and its reverse
complement always stay on one side; in parts that are given, those that do not are counted.

The run folder gets the best model by the chosen metric of the validation sequences, report.json (metrics of the test with
95 % bootstrap intervals, and what the parts share), predictions.parquet and report.svg (confusion matrix and ROC curves).

Examples:
  mamba-genomics finetune enhancers.csv --out runs/enhancers
  mamba-genomics finetune train.csv --valid dev.csv --test test.csv --preset motif --out runs/tata --strands given
  mamba-genomics finetune --class donor=donor.fa --class other=other.fa.gz --out runs/donor --folds 10
  mamba-genomics finetune train.csv --checkpoint runs/genome --mode lora --out runs/adapted
  mamba-genomics finetune expression.parquet --task regression --label-column log2fc --out runs/expression")]
pub(crate) struct Args {
    /// Labelled sequences to train on, and to hold out from
    #[arg(value_name = "TABLE", required_unless_present = "class")]
    table: Option<PathBuf>,

    /// A FASTA file whose records all belong to one class; once for each class
    #[arg(long, value_name = "NAME=FASTA", conflicts_with = "table", help_heading = "Data")]
    class: Vec<String>,

    /// Labelled sequences to choose the best weights by
    #[arg(long, value_name = "TABLE", help_heading = "Data")]
    valid: Option<PathBuf>,

    /// Labelled sequences to measure the result by
    #[arg(long, value_name = "TABLE", help_heading = "Data")]
    test: Option<PathBuf>,

    /// Cross-validation: hold each of K parts out once, in a folder of its own
    #[arg(long, value_name = "K", conflicts_with_all = ["valid", "test", "drop_leaks"], help_heading = "Data")]
    folds: Option<usize>,

    /// Remove training sequences that validation or test have too, on either strand
    #[arg(long, help_heading = "Data")]
    drop_leaks: bool,

    /// Column of the sequences [default: sequence]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    sequence_column: Option<String>,

    /// Column of the labels [default: label]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    label_column: Option<String>,

    /// Column of the names of the sequences [default: they are numbered]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    id_column: Option<String>,

    /// What the labels are
    #[arg(long, value_enum, value_name = "KIND", help_heading = "Data")]
    task: Option<Kind>,

    /// Folder for the run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// File for the predictions of the test sequences (.parquet, .csv, .tsv) [default: predictions.parquet in --out]
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    predictions: Option<PathBuf>,

    /// Go on where the run in --out was saved
    #[arg(long)]
    resume: bool,

    /// Start from the body of this model: a run folder or one from a model hub
    #[arg(long, value_name = "DIR", conflicts_with = "preset", help_heading = "Model")]
    checkpoint: Option<PathBuf>,

    /// Start from scratch: motif (small, convolutions in front, dropout), or a size of `train`: tiny, small, base, released
    /// [default: motif]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    preset: Option<String>,

    /// Caduceus-Ph (one strand; both by augmentation and post-hoc conjoining) instead of PS
    #[arg(long, conflicts_with = "checkpoint", help_heading = "Model")]
    ph: bool,

    /// Which strands decide
    #[arg(long, value_enum, value_name = "STRANDS", help_heading = "Model")]
    strands: Option<StrandUse>,

    /// What of the model is trained
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Model")]
    mode: Option<Mode>,

    /// Metric of the validation sequences that decides which weights are best [default: mcc, or pearson]
    #[arg(long, value_enum, value_name = "METRIC", help_heading = "Training")]
    metric: Option<Chosen>,

    /// Passes over the training sequences
    #[arg(long, value_name = "N", help_heading = "Training")]
    epochs: Option<f64>,

    /// End after so many evaluations without a new best
    #[arg(long, value_name = "N", help_heading = "Training")]
    patience: Option<u32>,

    /// Stop after so many minutes, saved and evaluated
    #[arg(long, value_name = "M", help_heading = "Training")]
    minutes: Option<f64>,

    /// Sequences in a batch
    #[arg(long, value_name = "N", help_heading = "Training")]
    batch: Option<usize>,

    /// Highest learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    learning_rate: Option<f64>,

    /// Let rare classes count as much as frequent ones
    #[arg(long, help_heading = "Training")]
    class_weights: bool,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    /// Preset or checkpoint, then file, then `--set`, then the flags of their own.
    fn resolve(&self, loaded: Option<&mamba_core::Checkpoint>) -> Result<FinetuneConfig> {
        let mut preset = match loaded {
            Some(loaded) => FinetuneConfig::of_body(loaded.parse_config()?),
            None => {
                let name = self.preset.as_deref().unwrap_or("motif");
                FinetuneConfig::preset(name).ok_or_else(|| {
                    let known = CaduceusConfig::PRESETS.join(", ");
                    usage(format!("--preset {name}: expected motif or one of {known}"))
                })?
            }
        };
        if let Some(strands) = self.strands {
            preset.head.strands = strands;
        }
        // A model from scratch reads as many strands as are to decide.
        if loaded.is_none() && (self.ph || preset.head.strands == StrandUse::Given) {
            preset.model.rcps = false;
        }
        let mut cfg = self.settings.resolve(&preset)?;
        let (TaskConfig { kind, mode, metric, epochs, class_weights, .. }, train) =
            (&mut cfg.task, &mut cfg.train);
        *kind = self.task.unwrap_or(*kind);
        *mode = self.mode.unwrap_or(*mode);
        *metric = self.metric.or(*metric);
        *epochs = self.epochs.or(*epochs);
        *class_weights |= self.class_weights;
        train.seed = self.settings.seed.unwrap_or(train.seed);
        train.batch_size = self.batch.unwrap_or(train.batch_size);
        train.learning_rate = self.learning_rate.unwrap_or(train.learning_rate);
        train.patience = self.patience.or(train.patience);
        train.max_minutes = self.minutes.or(train.max_minutes);
        let columns = &mut cfg.data.columns;
        columns.sequence = self.sequence_column.clone().unwrap_or(columns.sequence.clone());
        columns.label = self.label_column.clone().unwrap_or(columns.label.clone());
        columns.id = self.id_column.clone().or(columns.id.clone());
        if loaded.is_none() && cfg.task.mode != Mode::Full {
            return Err(usage("--mode frozen and lora need a model to keep: --checkpoint DIR").into());
        }
        if loaded.is_some() && cfg.model.rcps && cfg.head.strands == StrandUse::Given {
            let message = "--strands given: the checkpoint is a Caduceus-PS, which always reads both strands; \
                leave --strands out, or start from a Caduceus-Ph";
            return Err(usage(message).into());
        }
        cfg.validate()?;
        Ok(cfg)
    }

    /// Refuses what would otherwise be found wrong after hours of training.
    fn check(&self) -> Result<()> {
        if let Some(k @ 0..=1) = self.folds {
            return Err(usage(format!("--folds {k}: must be at least 2")).into());
        }
        let Some(path) = &self.predictions else { return Ok(()) };
        let wrong = |what: &str| Err(usage(format!("--predictions {}: {what}", path.display())).into());
        if job::Format::from_path(path).map_err(usage)? == job::Format::Npy {
            return wrong("expected .parquet, .csv or .tsv");
        }
        if path.is_dir() {
            return wrong("is a folder, expected the name of a file");
        }
        // The run makes its own folder, which may be written otherwise.
        let plain = |path: &Path| path.components().filter(|c| *c != Component::CurDir).collect::<PathBuf>();
        let folder = plain(path.parent().unwrap_or(Path::new("")));
        if folder == Path::new("") || folder == plain(&self.out) || folder.is_dir() {
            return Ok(());
        }
        wrong("its folder does not exist; make it first")
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    args.check()?;
    let loaded = args.checkpoint.as_deref().map(checkpoint::load_dir).transpose()?;
    let cfg = args.resolve(loaded.as_ref())?;
    let console = Console::new(args.common.format, args.common.quiet);
    let run = Run { args: &args, cfg, loaded, device, stop: Stop::on_signals()? };
    let data = sources::read(&args, &run.cfg.data)?;
    match args.folds {
        None => {
            let (parts, leaks) = sources::parts(data, &run.cfg, &args, &console)?;
            match run.train(parts, leaks, &args.out)? {
                None => Ok(ExitCode::from(INTERRUPTED)),
                Some(result) => {
                    run.print(&result, &args.out)?;
                    Ok(ExitCode::SUCCESS)
                }
            }
        }
        Some(k) => run.folds(data.train, k),
    }
}

/// What all trainings of a command share.
struct Run<'a> {
    args: &'a Args,
    cfg: FinetuneConfig,
    loaded: Option<mamba_core::Checkpoint>,
    device: candle_core::Device,
    stop: Stop,
}

/// What came of one training.
struct Trained {
    target: Target,
    /// Steps and seconds.
    steps: u64,
    seconds: f64,
    parameters: usize,
    leaks: Leaks,
    valid: Option<Report>,
    test: Option<Report>,
    held_out: Option<HeldOut>,
}

/// The test sequences with their labels as numbers, and the predictions.
struct HeldOut {
    set: LabelledSet,
    labels: Vec<f64>,
    predictions: Vec<Vec<f64>>,
}

impl Run<'_> {
    /// Trains on some parts into a folder; nothing if it was stopped.
    fn train(&self, parts: Parts, leaks: Leaks, out: &Path) -> Result<Option<Trained>> {
        let mut console = Console::new(self.args.common.format, self.args.common.quiet);
        let mut cfg = self.cfg.clone();
        cfg.set_steps(parts.train.rows.len());
        let target = Target::of(&parts.train, cfg.task.kind)?;
        console.note(&format!(
            "{} sequences to train on ({} bases), {} for validation, {} for the test{}",
            parts.train.rows.len(),
            parts.train.bases(),
            parts.valid.rows.len(),
            parts.test.rows.len(),
            match &target {
                Target::Classes { names } => format!("; {} classes: {}", names.len(), names.join(", ")),
                Target::Value { mean, deviation } => format!("; values {mean:.4} ± {deviation:.4}"),
            }
        ));
        let Parts { train, valid, test } = parts;
        let train = Examples::new(train, &target)?;
        let valid = Examples::new(valid, &target)?;
        let test_examples = Examples::new(test.clone(), &target)?;

        let params = cfg.params(self.loaded.clone(), self.args.common.dtype(), &self.device)?;
        let mut task = Finetuning::new(&cfg, &target, &train, &valid, params)?;
        let folder = open_run(out, self.args.resume)?;
        let parameters = train::Task::params(&task).count();
        let trained: usize = train::Task::params(&task).vars().iter().map(|var| var.elem_count()).sum();
        console.note(&format!(
            "{parameters} parameters, of which {trained} are trained; {} steps",
            cfg.train.steps
        ));
        let settings = json!({ "finetune": &cfg, "table": &self.args.table, "class": &self.args.class });
        let (name, version) = ("mamba-genomics", env!("CARGO_PKG_VERSION"));
        let info = RunInfo::new(name, version, &self.device, cfg.train.seed, settings);
        let report = train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &self.stop)
            .map_err(with_hint)?;
        drop(task);
        let Some(report) = report else {
            interrupted(&console, out);
            return Ok(None);
        };

        let predictor = Predictor::open(out, self.args.common.dtype(), &self.device)?;
        let score = |examples: &Examples| -> Result<Option<(Report, Vec<Vec<f64>>)>> {
            if examples.is_empty() {
                return Ok(None);
            }
            let mut predictions = Vec::with_capacity(examples.len());
            let mut progress = self.args.common.progress(Some(examples.len() as u64), "sequences");
            for chunk in examples.sequences().chunks(CHUNK) {
                predictions.extend(predictor.predict(chunk)?);
                progress.inc(chunk.len() as u64);
            }
            progress.finish();
            Ok(Some((Report::new(&target, examples.labels(), &predictions), predictions)))
        };
        let valid = score(&valid)?.map(|(report, _)| report);
        let scored = score(&test_examples)?;
        let (test_report, predictions) = scored.map_or((None, None), |(r, p)| (Some(r), Some(p)));
        let labels = test_examples.labels().to_vec();
        let held_out = predictions.map(|predictions| HeldOut { set: test, labels, predictions });
        let (steps, seconds) = (report.step, report.seconds);
        let trained =
            Trained { target, steps, seconds, parameters, leaks, valid, test: test_report, held_out };
        self.write(&trained, out)?;
        Ok(Some(trained))
    }

    /// Where predictions go: of a fold, into its folder.
    fn predictions(&self, out: &Path) -> PathBuf {
        match &self.args.predictions {
            Some(path) if out == self.args.out => path.clone(),
            _ => out.join("predictions.parquet"),
        }
    }

    /// Report, predictions and picture, each whole or not at all.
    fn write(&self, trained: &Trained, out: &Path) -> Result<()> {
        checkpoint::write_json(&out.join("report.json"), &trained.json())?;
        if let Some(report) = trained.test.as_ref().or(trained.valid.as_ref()) {
            plot::save(&out.join("report.svg"), ReportPicture::SIZE, &ReportPicture(report))?;
        }
        match &trained.held_out {
            Some(held_out) => write_predictions(&trained.target, held_out, &self.predictions(out)),
            None => Ok(()),
        }
    }

    /// Cross-validation.
    fn folds(&self, set: LabelledSet, k: usize) -> Result<ExitCode> {
        let data = &self.cfg.data;
        let stratify = self.cfg.task.kind == Kind::Classification;
        let target = Target::of(&set, self.cfg.task.kind)?;
        let mut all = HeldOut { set: LabelledSet::default(), labels: Vec::new(), predictions: Vec::new() };
        let mut of_folds = Vec::new();
        for (i, (rest, held_out)) in k_fold(&set, k, stratify, data.split_seed)?.into_iter().enumerate() {
            Console::new(self.args.common.format, self.args.common.quiet)
                .note(&format!("fold {} of {k}", i + 1));
            let shares = mamba_datasets::Fractions { valid: data.valid, test: 0.0 };
            let mut parts = split(&set.select(&rest), shares, stratify, data.split_seed)?;
            parts.test = set.select(&held_out);
            let out = self.args.out.join(format!("fold-{i}"));
            let Some(trained) = self.train(parts, Leaks::default(), &out)? else {
                return Ok(ExitCode::from(INTERRUPTED));
            };
            of_folds.extend(trained.test.clone());
            if let Some(fold) = trained.held_out {
                // A fold's values are in units of its own training values.
                let labels = Examples::new(fold.set.clone(), &target)?;
                all.labels.extend_from_slice(labels.labels());
                all.set.rows.extend(fold.set.rows);
                all.predictions.extend(fold.predictions);
            }
        }
        let report = Report::new(&target, &all.labels, &all.predictions);
        let out = &self.args.out;
        let folds: Vec<Value> = of_folds.iter().map(|report| json!(report.figures)).collect();
        let summary = json!({ "folds": folds, "pooled": report });
        checkpoint::write_json(&out.join("report.json"), &summary)?;
        plot::save(&out.join("report.svg"), ReportPicture::SIZE, &ReportPicture(&report))?;
        write_predictions(&target, &all, &self.predictions(out))?;
        let mut stdout = io::stdout().lock();
        if self.args.common.format == Format::Json {
            writeln!(stdout, "{summary}")?;
        } else {
            writeln!(stdout, "{} sequences, each predicted by the fold that held it out", report.sequences)?;
            print_figures(&mut stdout, &report)?;
            for name in report.figures.keys() {
                let values: Vec<f64> =
                    of_folds.iter().filter_map(|f| Some(f.figures.get(name)?.value)).collect();
                let (mean, deviation) = mean_and_deviation(&values);
                writeln!(stdout, "  {name:<10} {mean:.4} ± {deviation:.4} over {} folds", values.len())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, trained: &Trained, out: &Path) -> Result<()> {
        let mut stdout = io::stdout().lock();
        if self.args.common.format == Format::Json {
            writeln!(stdout, "{}", trained.json())?;
            return Ok(());
        }
        for (name, report) in [("validation", &trained.valid), ("test", &trained.test)] {
            if let Some(report) = report {
                writeln!(stdout, "{name}: {} sequences", report.sequences)?;
                print_figures(&mut stdout, report)?;
            }
        }
        if !self.args.common.quiet {
            let picture = if trained.test.is_some() || trained.valid.is_some() { ", report.svg" } else { "" };
            eprintln!("run in {}: model, report.json{picture}", out.display());
            if trained.held_out.is_some() {
                eprintln!("predictions of the test in {}", self.predictions(out).display());
            }
            eprintln!(
                "next: mamba-genomics predict sequences.fa --checkpoint {} --out predictions.parquet",
                out.display()
            );
        }
        Ok(())
    }
}

impl Trained {
    fn json(&self) -> Value {
        json!({
            "parameters": self.parameters, "steps": self.steps, "seconds": self.seconds, "leaks": self.leaks,
            "valid": self.valid, "test": self.test,
        })
    }
}

fn print_figures(stdout: &mut StdoutLock<'_>, report: &Report) -> io::Result<()> {
    for (name, figure) in &report.figures {
        writeln!(stdout, "  {name:<10} {:.4}  ({:.4} to {:.4})", figure.value, figure.low, figure.high)?;
    }
    Ok(())
}

/// Of a run that does not go on because its warm-up is another: where that comes from.
fn with_hint(error: mamba_core::Error) -> anyhow::Error {
    if !error.to_string().contains("train.warmup is") {
        return error.into();
    }
    let hint = "the warm-up is at most a fifth of the steps, which --epochs decides; \
        --set train.warmup=N with the N of the saved run goes on";
    Err::<(), _>(error).hint(hint).expect_err("it is an error")
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

fn write_predictions(target: &Target, held_out: &HeldOut, path: &Path) -> Result<()> {
    let mut table = Table::new(target, false, true);
    for (row, prediction) in held_out.set.rows.iter().zip(&held_out.predictions) {
        table.add(&row.id, None, row.label.as_deref(), prediction)?;
    }
    let mut sink = job::Format::from_path(path)?.sink(path, table.schema())?;
    sink.write(&table.take()?)?;
    for file in sink.finish()? {
        file.commit().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
