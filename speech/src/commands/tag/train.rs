//! `tag train`: Audio Mamba on labelled clips, once or in cross-validation.

use super::report;
use anyhow::Result;
use candle_core::Device;
use mamba_core::cli::{CommonArgs, Format, INTERRUPTED, TrainingArgs, interrupted};
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop, Task, TrainConfig};
use mamba_core::{Error, Params, checkpoint};
use mamba_datasets::k_fold;
use mamba_datasets::registry::resolve;
use mamba_speech::tagging::augment::AugmentConfig;
use mamba_speech::tagging::features::{Mel, normalise};
use mamba_speech::tagging::svm::{self, Svm, SvmConfig};
use mamba_speech::tagging::{
    Clips, Confusion, NamePattern, Sounds, TaggerConfig, Tagging, TaggingConfig, evaluate,
};
use mamba_speech::{audio, sample};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// Flags of `tag train`.
#[derive(clap::Args)]
#[command(after_help = "\
Clips are a folder, whose file names tell class and group, or a table with the columns path, label and, if it likes, group. \
In --names {label} stands for the class, {group} for what must be held out together (the speaker) and {} for the rest; \
with a / the folder's name counts too: '{label}/{group}_nohash_{}'.

Examples:
  mamba-speech tag train --out runs/vowels
  mamba-speech tag train --clips fsdd --test theo --out runs/digits
  mamba-speech tag train --clips fsdd --folds groups --baseline --out runs/folds
  mamba-speech tag train --clips speech_commands/ --names '{label}/{group}_nohash_{}' --preset aum-tiny --out runs/words")]
pub(super) struct Args {
    /// Folder of labelled clips, a table (.csv, .tsv), or a set of `mamba-speech datasets list` [default: generated vowels]
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    clips: Option<PathBuf>,

    /// How names of files tell class and group
    #[arg(long, value_name = "PATTERN", default_value_t, help_heading = "Data")]
    names: NamePattern,

    /// Hold this group out and measure the model on it at the end; repeatable
    #[arg(long, value_name = "GROUP", help_heading = "Data")]
    test: Vec<String>,

    /// Hold this group out to choose the weights by its accuracy; repeatable [default: the last weights are kept]
    #[arg(long, value_name = "GROUP", help_heading = "Data")]
    valid: Vec<String>,

    /// Cross-validation: hold each group out once, or each of K parts, in a folder of its own
    #[arg(long, value_name = "groups|K", conflicts_with = "test", help_heading = "Data")]
    folds: Option<Folds>,

    /// Measure cepstra with a support vector machine on the same clips too
    #[arg(long)]
    baseline: bool,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/tag")]
    out: PathBuf,

    /// Size of the model: aum-digits, aum-tiny, aum-small or aum-base
    #[arg(long, value_name = "NAME", default_value = "aum-digits")]
    preset: String,

    /// Start from the weights of a checkpoint of the same shape; a head of other classes is made anew
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,

    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    #[command(flatten)]
    training: TrainingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// What is held out in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folds {
    Groups,
    Parts(usize),
}

impl FromStr for Folds {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.parse()) {
            ("groups", _) => Ok(Self::Groups),
            (_, Ok(k)) if k >= 2 => Ok(Self::Parts(k)),
            _ => Err("expected groups, or a number of parts from 2 on".into()),
        }
    }
}

impl Args {
    /// Preset, then file, then `--set`, then the flags of their own.
    fn resolve(&self) -> Result<TaggingConfig> {
        let model = TaggerConfig::preset(&self.preset).ok_or_else(|| {
            let known = TaggerConfig::PRESETS.join(", ");
            Error::Config(format!("--preset {}: expected one of {known}", self.preset))
        })?;
        let generated = self.clips.is_none();
        let train = TrainConfig {
            steps: if generated { 150 } else { 1500 },
            batch_size: 32,
            learning_rate: 3e-3,
            min_lr_ratio: 0.01,
            warmup: 50,
            betas: (0.9, 0.99),
            weight_decay: 0.05,
            clip: Some(1.0),
            ema: (!generated).then_some(0.99),
            eval_every: if generated { 50 } else { 250 },
            save_every: 250,
            log_every: 25,
            ..TrainConfig::default()
        };
        let preset = TaggingConfig { model, train, augment: AugmentConfig::default(), label_smoothing: 0.1 };
        let mut cfg = self.training.settings.resolve(&preset)?;
        self.training.apply(&mut cfg.train);
        cfg.train.steps = self.steps.unwrap_or(cfg.train.steps);
        cfg.validate()?;
        Ok(cfg)
    }
}

/// What is trained on, what chooses the weights and what measures them.
struct Split {
    train: Sounds,
    valid: Sounds,
    test: Sounds,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let mut cfg = args.resolve()?;
    let stop = Stop::on_signals()?;
    let rate = cfg.model.mel.sampling_rate;
    let Some(path) = &args.clips else {
        let needs_clips = [
            (args.folds.is_some(), "--folds"),
            (!args.test.is_empty(), "--test"),
            (!args.valid.is_empty(), "--valid"),
        ];
        if let Some((_, flag)) = needs_clips.iter().find(|(given, _)| *given) {
            return Err(Error::Config(format!("{flag} needs --clips")).into());
        }
        cfg.model.labels = sample::VOWELS.map(String::from).to_vec();
        let console = Console::new(args.common.format, args.common.quiet);
        console.note("no --clips: training on generated vowels, as a demonstration");
        let run = Run { args: &args, cfg, device, stop };
        let valid = vowels(40..48, rate)?;
        let split = Split { train: vowels(0..40, rate)?, test: valid.clone(), valid };
        return run.once(&split);
    };
    let clips = Clips::load(&resolve(path)?, &args.names)?;
    cfg.model.labels = clips.labels();
    let run = Run { args: &args, cfg, device, stop };
    match args.folds {
        Some(folds) => run.cross_validate(&clips, folds),
        None => {
            let (test, rest) = clips.by_groups(&args.test).map_err(Error::from)?;
            run.once(&run.split(&rest, &test)?)
        }
    }
}

/// Every vowel by some voices.
fn vowels(seeds: std::ops::Range<u64>, rate: u32) -> mamba_speech::Result<Sounds> {
    let all = seeds.flat_map(|seed| (0..sample::VOWELS.len()).map(move |vowel| (vowel, seed)));
    let sound = |(vowel, seed)| {
        Ok((audio::resample(&sample::vowel(vowel, seed), sample::SAMPLE_RATE, rate)?, vowel as u32))
    };
    Ok(Sounds::new(all.map(sound).collect::<mamba_speech::Result<Vec<_>>>()?))
}

/// What all trainings of a command share.
struct Run<'a> {
    args: &'a Args,
    cfg: TaggingConfig,
    device: Device,
    stop: Stop,
}

/// What one training came to.
struct Trained {
    /// Of the model, on the clips held out for testing, or else for validation.
    model: Option<Confusion>,
    baseline: Option<Confusion>,
}

impl Run<'_> {
    /// Reads what is left when `test` is held out.
    fn split(&self, rest: &Clips, test: &Clips) -> Result<Split> {
        let here: Vec<String> = self
            .args
            .valid
            .iter()
            .filter(|g| self.args.folds.is_none() || rest.groups().contains(g))
            .cloned()
            .collect();
        let (valid, train) = rest.by_groups(&here).map_err(Error::from)?;
        let (labels, rate) = (&self.cfg.model.labels, self.cfg.model.mel.sampling_rate);
        let read = |clips: &Clips| Sounds::read(clips, labels, rate);
        Ok(Split { train: read(&train)?, valid: read(&valid)?, test: read(test)? })
    }

    /// Trains into the folder of the command.
    fn once(&self, split: &Split) -> Result<ExitCode> {
        let Some(trained) = self.train(split, &self.args.out)? else {
            return Ok(ExitCode::from(INTERRUPTED));
        };
        let out = self.args.out.display();
        match self.args.common.format {
            Format::Json => writeln!(std::io::stdout(), "{}", trained.json())?,
            Format::Human => {
                for (name, confusion) in [("model", &trained.model), ("baseline", &trained.baseline)] {
                    if let Some(confusion) = confusion {
                        writeln!(std::io::stdout(), "{name}: {}", report::human(confusion))?;
                    }
                }
            }
        }
        let console = Console::new(self.args.common.format, self.args.common.quiet);
        console.note(&format!("run in {out}\nnext: mamba-speech tag recording.wav --checkpoint {out}"));
        Ok(ExitCode::SUCCESS)
    }

    /// Trains a model for each part that is held out; the settings are those of the command for all.
    fn cross_validate(&self, clips: &Clips, folds: Folds) -> Result<ExitCode> {
        let parts: Vec<(String, Clips, Clips)> = match folds {
            Folds::Groups => {
                let groups = clips.groups();
                if groups.len() < 2 {
                    let message = format!(
                        "--folds groups: these clips have {} groups, at least 2 are needed",
                        groups.len()
                    );
                    return Err(Error::Config(message).into());
                }
                let fold = |group: String| {
                    let (test, rest) = clips.by_groups(std::slice::from_ref(&group))?;
                    Ok((group, rest, test))
                };
                groups.into_iter().map(fold).collect::<mamba_speech::Result<_>>()?
            }
            Folds::Parts(k) => {
                let part = |indices: &[usize]| Clips {
                    clips: indices.iter().map(|&i| clips.clips[i].clone()).collect(),
                };
                let folds = k_fold(clips.clips.len(), k, self.cfg.train.seed)?;
                let folds = folds.iter().enumerate();
                folds.map(|(i, fold)| (i.to_string(), part(&fold.train), part(&fold.valid))).collect()
            }
        };
        let console = Console::new(self.args.common.format, self.args.common.quiet);
        let mut results = Vec::new();
        for (name, rest, test) in &parts {
            console.note(&format!(
                "fold {name}: {} clips to train on, {} held out",
                rest.clips.len(),
                test.clips.len()
            ));
            let out = self.args.out.join(format!("fold-{name}"));
            let Some(trained) = self.train(&self.split(rest, test)?, &out)? else {
                return Ok(ExitCode::from(INTERRUPTED));
            };
            results.push((name.clone(), trained));
        }
        let mean = |of: fn(&Trained) -> &Option<Confusion>| {
            let values: Vec<f64> =
                results.iter().filter_map(|(_, t)| of(t).as_ref()).map(Confusion::accuracy).collect();
            (!values.is_empty()).then(|| {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
                (mean, (squares / (values.len() - 1).max(1) as f64).sqrt())
            })
        };
        let means = [("model", mean(|t| &t.model)), ("baseline", mean(|t| &t.baseline))];
        let summary = json!({
            "folds": results.iter().map(|(name, t)| json!({ "held_out": name, "result": t.json() })).collect::<Vec<_>>(),
            "accuracy": means.iter().filter_map(|(name, m)| Some((name.to_string(), json!({"mean": m.as_ref()?.0, "deviation": m.as_ref()?.1})))).collect::<serde_json::Map<String, Value>>(),
        });
        checkpoint::write_json(&self.args.out.join("folds.json"), &summary)?;
        if self.args.common.format == Format::Json {
            writeln!(std::io::stdout(), "{summary}")?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(std::io::stdout(), "{:<16} {:>6} {:>10} {:>10}", "held out", "clips", "model", "baseline")?;
        let cell = |confusion: &Option<Confusion>| {
            confusion.as_ref().map_or("-".into(), |c| format!("{:.3}", c.accuracy()))
        };
        for (name, trained) in &results {
            let clips = trained.model.as_ref().map_or(0, Confusion::clips);
            writeln!(
                std::io::stdout(),
                "{name:<16} {clips:>6} {:>10} {:>10}",
                cell(&trained.model),
                cell(&trained.baseline)
            )?;
        }
        let cells = means
            .map(|(_, m)| m.map_or("-".into(), |(mean, deviation)| format!("{mean:.3} ± {deviation:.3}")));
        writeln!(std::io::stdout(), "{:<16} {:>6} {:>10} {:>10}", "mean", "", cells[0], cells[1])?;
        Ok(ExitCode::SUCCESS)
    }

    /// Trains on a split into a folder and measures the result; nothing if it was stopped.
    fn train(&self, split: &Split, out: &Path) -> Result<Option<Trained>> {
        let (args, cfg) = (self.args, &self.cfg);
        let mut console = Console::new(args.common.format, args.common.quiet);
        let params = self.params()?;
        let mut task = Tagging::new(cfg, &split.train, &split.valid, params)?;
        let folder = args.training.folder(out)?;
        console.note(&format!(
            "{} classes, {} clips to train on, {} for validation, {} for the test; {} parameters",
            cfg.model.labels.len(),
            split.train.len(),
            split.valid.len(),
            split.test.len(),
            task.params().count()
        ));
        let settings = json!({ "tagging": cfg, "clips": args.clips, "test": args.test, "valid": args.valid });
        let info =
            RunInfo::new("mamba-speech", env!("CARGO_PKG_VERSION"), &self.device, cfg.train.seed, settings);
        if train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &self.stop)?.is_none() {
            interrupted(&console, out);
            return Ok(None);
        }
        let held_out = if split.test.is_empty() { &split.valid } else { &split.test };
        if held_out.is_empty() {
            return Ok(Some(Trained { model: None, baseline: None }));
        }
        let tagger = mamba_speech::TaggerCheckpoint::open(out)?.tagger(args.common.dtype(), &self.device)?;
        let trained = Trained {
            model: Some(evaluate(&tagger, held_out)?.0),
            baseline: if args.baseline { Some(self.baseline(&split.train, held_out)?) } else { None },
        };
        checkpoint::write_json(&out.join("report.json"), &trained.json())?;
        Ok(Some(trained))
    }

    /// Fresh parameters, or those of `--init`, whose head stays away if it has another number of classes.
    fn params(&self) -> Result<Params> {
        let (seed, dtype) = (self.cfg.train.seed, self.args.common.dtype());
        let Some(path) = &self.args.init else { return Ok(Params::fresh(seed, dtype, &self.device)) };
        let mut tensors = checkpoint::load(path, None)?.tensors;
        let classes = tensors.get("head.weight").and_then(|w| w.dim(0).ok());
        if classes != Some(self.cfg.model.labels.len()) {
            let fresh = Params::fresh(seed, dtype, &self.device);
            mamba_speech::tagging::AudioMamba::new(&self.cfg.model, &fresh.builder())?;
            tensors.extend(fresh.to_tensors().into_iter().filter(|(name, _)| name.starts_with("head.")));
        }
        Ok(Params::trainable(tensors, seed, dtype, &self.device))
    }

    /// Cepstra and a support vector machine, on the same clips and the same normalised spectrograms.
    fn baseline(&self, train: &Sounds, test: &Sounds) -> Result<Confusion> {
        let mel = Mel::new(&self.cfg.model.mel)?;
        let svm_cfg = SvmConfig::default();
        let features = |sounds: &Sounds| -> (Vec<Vec<f64>>, Vec<usize>) {
            let of = |(samples, class): (&[f32], u32)| {
                let mut image = mel.log_mel(samples, 1.0);
                normalise(&mut image);
                (svm::features(&image, &svm_cfg), class as usize)
            };
            sounds.iter().map(of).unzip()
        };
        let ((examples, labels), (held_out, truth)) = (features(train), features(test));
        let svm = Svm::train(&examples, &labels, self.cfg.model.labels.len(), &svm_cfg);
        let mut confusion = Confusion::new(&self.cfg.model.labels);
        for (example, class) in held_out.iter().zip(truth) {
            confusion.add(class, svm.predict(example));
        }
        Ok(confusion)
    }
}

impl Trained {
    fn json(&self) -> Value {
        json!({
            "model": self.model.as_ref().map(report::json), "baseline": self.baseline.as_ref().map(report::json),
        })
    }
}
