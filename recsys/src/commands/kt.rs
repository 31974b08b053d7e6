//! `kt`: knowledge tracing, from answers of students to the chance that the next one is right.

use super::compare::{Settings, data_name, save_results, settings_digest};
use anyhow::{Result, bail};
use mamba_core::cli::{CommonArgs, Format, TrainingArgs, interrupted};
use mamba_core::optim::Decay;
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop, Task, TrainConfig};
use mamba_core::{Error, Params};
use mamba_datasets::registry::resolve_all;
use mamba_datasets::{Fractions, index_split};
use mamba_recsys::checkpoint::write_or_compare_items;
use mamba_recsys::knowledge::baselines::SkillMean;
use mamba_recsys::knowledge::metrics::{KtMetrics, measure};
use mamba_recsys::knowledge::{
    AnswerLog, KtCheckpoint, KtConfig, KtData, KtTraining, Mamba4Kt, Mamba4KtConfig, Student, predict,
    read_answers, sample,
};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `kt`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Train Mamba4KT on students' answers
    Train(Box<TrainArgs>),
    /// Measure a model on students' answers
    Eval(EvalArgs),
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Train(args) => train(*args),
        Verb::Eval(args) => eval(args),
    }
}

#[derive(clap::Args)]
#[command(after_help = "\
A student takes three lines: the number of answers, the skill of each, and 1 or 0 for right or wrong, with commas between.
A folder or set with train1.csv, valid1.csv and test.csv is divided already.

Examples:
  mamba-recsys kt train
  mamba-recsys kt train --data assist2009 --out runs/kt
  mamba-recsys kt train --data a.csv b.csv --test c.csv --out runs/kt")]
struct TrainArgs {
    /// Answers to train on: files, or a set of `mamba-recsys datasets list` [default: generated students]
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Data")]
    data: Vec<PathBuf>,

    /// Answers of other students that choose the weights [default: a tenth of the students in --data]
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Data", requires = "data")]
    valid: Vec<PathBuf>,

    /// Answers of other students to test on [default: a fifth of the students in --data]
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Data", requires = "data")]
    test: Vec<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/kt")]
    out: PathBuf,

    /// Passes over the training answers at most
    #[arg(long, value_name = "N", default_value_t = 12.0)]
    epochs: f64,

    #[command(flatten)]
    training: TrainingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl TrainArgs {
    /// The students, divided as the flags say; what is not given as files is drawn from `--data` by seed.
    fn read(&self) -> Result<KtData> {
        let data = resolve_all(&self.data)?;
        let [train, valid, test] = divided(&data).unwrap_or([data, Vec::new(), Vec::new()]);
        let all = if train.is_empty() { sample(600, 0) } else { answers(&train)? };
        let given = |paths: &[PathBuf], of_folder: Vec<PathBuf>| -> Result<Option<AnswerLog>> {
            let paths = if paths.is_empty() { of_folder } else { resolve_all(paths)? };
            (!paths.is_empty()).then(|| answers(&paths)).transpose()
        };
        let (valid, test) = (given(&self.valid, valid)?, given(&self.test, test)?);
        let share = |log: &Option<AnswerLog>, share: f64| if log.is_some() { 0.0 } else { share };
        let fractions = Fractions { valid: share(&valid, 0.1), test: share(&test, 0.2) };
        let places = index_split(all.students(), fractions, self.training.settings.seed.unwrap_or(0))?;
        let (drawn_test, rest) = all.split(&places.test);
        let (drawn_valid, train) = match fractions.test {
            0.0 => all.split(&places.valid),
            _ => rest.split(&after_removal(&places.valid, &places.test)),
        };
        Ok(KtData::new(&train, &valid.unwrap_or(drawn_valid), &test.unwrap_or(drawn_test)))
    }

    fn resolve(&self, data: &KtData) -> Result<KtConfig> {
        let train = TrainConfig {
            batch_size: 32,
            learning_rate: 2e-3,
            weight_decay: 0.01,
            betas: (0.9, 0.999),
            clip: Some(5.0),
            warmup: 50,
            schedule: Decay::Cosine,
            log_every: 50,
            patience: Some(8),
            ..TrainConfig::default()
        };
        let mut cfg = KtConfig { model: Mamba4KtConfig::default(), train };
        let first = self.with_flags(self.training.settings.resolve(&cfg)?);
        let epoch = KtTraining::steps_per_epoch(data, first.train.batch_size);
        if !(self.epochs > 0.0 && self.epochs.is_finite()) {
            return Err(Error::Config(format!("--epochs {}: must be above 0", self.epochs)).into());
        }
        cfg.train.steps = ((epoch as f64 * self.epochs) as u64).max(1);
        (cfg.train.eval_every, cfg.train.save_every) = (epoch.max(1), epoch.max(1));
        let cfg = self.with_flags(self.training.settings.resolve(&cfg)?);
        cfg.validate()?;
        Ok(cfg)
    }

    fn with_flags(&self, mut cfg: KtConfig) -> KtConfig {
        self.training.apply(&mut cfg.train);
        cfg
    }
}

/// The files that a folder is divided into, if it is: to train on, to validate, to test.
fn divided(paths: &[PathBuf]) -> Option<[Vec<PathBuf>; 3]> {
    let [folder] = paths else { return None };
    let files = ["train1.csv", "valid1.csv", "test.csv"].map(|name| folder.join(name));
    files.iter().all(|file| file.is_file()).then(|| files.map(|file| vec![file]))
}

/// The answers in some files.
fn answers(paths: &[PathBuf]) -> Result<AnswerLog> {
    if let Some(folder) = paths.iter().find(|path| path.is_dir()) {
        let names = file_names(folder)?.join(", ");
        bail!("{} is a folder; name the files in it: {names}", folder.display());
    }
    Ok(read_answers(paths)?)
}

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Where `places` of a list are once those of `removed` are gone.
fn after_removal(places: &[usize], removed: &[usize]) -> Vec<usize> {
    places.iter().map(|&place| place - removed.iter().filter(|&&gone| gone < place).count()).collect()
}

fn train(args: TrainArgs) -> Result<ExitCode> {
    let device = args.common.start()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let data = args.read()?;
    let cfg = args.resolve(&data)?;
    let answers = |students: &[Student]| students.iter().map(|s| s.right.len()).sum::<usize>();
    console.note(&format!(
        "{} skills; {} answers of {} students to train on, {} of {} to validate, {} of {} to test",
        data.skills.ids().len(),
        answers(&data.train),
        data.train.len(),
        answers(&data.valid),
        data.valid.len(),
        answers(&data.test),
        data.test.len()
    ));
    let params = Params::fresh(cfg.train.seed, args.common.dtype(), &device);
    let folder = args.training.folder(&args.out)?;
    let mut task = KtTraining::new(&cfg, &data, params)?;
    console.note(&format!("mamba4kt: {} parameters", task.params().count()));
    let settings = json!({ "kt": &cfg, "data": &args.data, "valid": &args.valid, "test": &args.test });
    let info = RunInfo::new("mamba-recsys", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    write_or_compare_items(&args.out, &data.skills, &data.counts())?;
    let stop = Stop::on_signals()?;
    if train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &stop)?.is_none() {
        return Ok(interrupted(&console, &args.out));
    }
    drop(task);

    let model = KtCheckpoint::open(&args.out)?.model(args.common.dtype(), &device)?;
    let mut rows = vec![("mamba4kt", test(&model, &data.test, &device, &args.common)?)];
    let means = SkillMean::new(&data.train, data.n_skills());
    let baseline = |predict: &dyn Fn(&Student) -> Vec<f32>| {
        figures(&data.test, &data.test.iter().map(predict).collect::<Vec<_>>())
    };
    rows.push(("skill, own answers", baseline(&|student| means.predict_with_own_answers(student))));
    rows.push(("skill", baseline(&|student| means.predict(student))));
    let files = [&args.data[..], &args.valid, &args.test].concat();
    let data_name = data_name(&files, "generated students");
    let settings = Settings { model: settings_digest(&cfg)?, baselines: settings_digest(&())? };
    save_results(&args.out, &data_name, cfg.train.seed, &settings, &as_json(&rows))?;
    print(&rows, &args.common)?;
    console.note(&format!("run in {0}: model, skills, metrics, {0}/loss.svg", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-recsys kt eval --data assist2009 --checkpoint runs/kt\n  \
    mamba-recsys kt eval --data answers.csv --checkpoint runs/kt")]
struct EvalArgs {
    /// Answers: files, or a set of `mamba-recsys datasets list`, of which test.csv is taken
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    data: Vec<PathBuf>,

    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "runs/kt")]
    checkpoint: PathBuf,

    #[command(flatten)]
    common: CommonArgs,
}

fn eval(args: EvalArgs) -> Result<ExitCode> {
    let device = args.common.start()?;
    let checkpoint = KtCheckpoint::open(&args.checkpoint)?;
    let data = resolve_all(&args.data)?;
    let data = divided(&data).map_or(data, |[_, _, test]| test);
    let students = answers(&data)?.numbered(checkpoint.skills());
    let unknown = students.iter().flat_map(|s| &s.skills).filter(|&&skill| skill == 0).count();
    if unknown > 0 && !args.common.quiet {
        eprintln!("{unknown} answers are to skills that the model does not know");
    }
    let model = checkpoint.model(args.common.dtype(), &device)?;
    print(&[("mamba4kt", test(&model, &students, &device, &args.common)?)], &args.common)?;
    Ok(ExitCode::SUCCESS)
}

fn test(
    model: &Mamba4Kt,
    students: &[Student],
    device: &candle_core::Device,
    common: &CommonArgs,
) -> Result<KtMetrics> {
    let mut progress = common.progress(Some(students.len() as u64), "students");
    let mut done = 0;
    let scores = predict(model, students, device, |n| {
        progress.inc((n - done) as u64);
        done = n;
    })?;
    progress.finish();
    Ok(figures(students, &scores))
}

fn figures(students: &[Student], scores: &[Vec<f32>]) -> KtMetrics {
    let right: Vec<bool> = students.iter().flat_map(|s| &s.right).copied().collect();
    measure(&scores.concat(), &right)
}

fn as_json(rows: &[(&str, KtMetrics)]) -> Vec<Value> {
    rows.iter().map(|(name, metrics)| json!({ "model": name, "metrics": metrics })).collect()
}

/// On stdout, for people or as JSON.
fn print(rows: &[(&str, KtMetrics)], common: &CommonArgs) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if common.format == Format::Json {
        return Ok(writeln!(out, "{}", json!({ "test": as_json(rows) }))?);
    }
    writeln!(out, "{} answers\n{:<20} {:>8} {:>8}", rows[0].1.answers, "", "AUC", "accuracy")?;
    for (name, metrics) in rows {
        writeln!(out, "{name:<20} {:>8.4} {:>8.4}", metrics.auc, metrics.accuracy)?;
    }
    Ok(())
}
