//! `train`: evaluator, VAE and denoiser, one after the other.

use anyhow::Result;
use candle_core::Device;
use mamba_core::Params;
use mamba_core::cli::{CommonArgs, HintExt, INTERRUPTED, SettingsArgs};
use mamba_core::run_folder::{RunFolder, RunInfo};
use mamba_core::train::{self, Console, Outcome, Stop, Task, TrainConfig};
use mamba_motion::config::MotionConfig;
use mamba_motion::dataset::{Clip, MotionData, Role, SourceConfig, Standard};
use mamba_motion::models::{ConditionConfig, DenoiserConfig, EvaluatorConfig, MotionVae};
use mamba_motion::run::{DENOISER, EVALUATOR, PEER, Shared, VAE, open_model};
use mamba_motion::tasks::{
    DenoiserTask, EvaluatorTask, Labelled, LatentSet, StoredDenoiser, TrainingSet, VaeTask,
};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-motion train --out runs/first\n  \
    mamba-motion train clips/ --out runs/clips --preset small --minutes 60\n  \
    mamba-motion train clips/ --out runs/clips --preset small --minutes 60 --resume")]
pub(crate) struct Args {
    /// BVH files, DeepMimic clips, folders of them, or folders in the layout of HumanML3D [default: the bundled clips]
    #[arg(value_name = "DATA")]
    data: Vec<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/motion")]
    out: PathBuf,

    /// Go on where the run in --out was saved
    #[arg(long)]
    resume: bool,

    /// Sizes: tiny, small or paper [default: small; tiny for the bundled clips]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// Also train a transformer denoiser of as many parameters, to compare with
    #[arg(long)]
    peer: bool,

    /// Stop after so many minutes in all; the three trainings share them
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    fn resolve(&self) -> Result<MotionConfig> {
        let preset = self.preset.as_deref().unwrap_or(if self.data.is_empty() { "tiny" } else { "small" });
        let known = || {
            mamba_core::Error::Config(format!(
                "--preset {preset}: expected one of {}",
                MotionConfig::PRESETS.join(", ")
            ))
        };
        let preset = MotionConfig::preset(preset).ok_or_else(known)?;
        let mut cfg = self.settings.resolve(&preset)?;
        let denoisers = if self.peer { 2.0 } else { 1.0 };
        let shares = [
            (&mut cfg.train_evaluator, 0.05),
            (&mut cfg.train_vae, 0.6),
            (&mut cfg.train_denoiser, 0.35 / denoisers),
        ];
        for (train, share) in shares {
            train.seed = self.settings.seed.unwrap_or(train.seed);
            train.max_minutes = self.minutes.map(|minutes| share * minutes).or(train.max_minutes);
        }
        cfg.validate()?;
        Ok(cfg)
    }
}

/// The clips of some paths, or the bundled ones.
pub(crate) fn load(paths: &[PathBuf], source: &SourceConfig) -> mamba_motion::Result<MotionData> {
    match paths {
        [] => MotionData::bundled(source),
        paths => MotionData::load(paths, source),
    }
}

/// What the stages of a training share.
struct Stages<'a> {
    args: &'a Args,
    cfg: &'a MotionConfig,
    device: Device,
    console: Console,
    stop: Stop,
}

impl Stages<'_> {
    /// Whether a stage has ended; an interrupted one has not.
    fn done(&self, name: &str) -> bool {
        let text = std::fs::read(self.args.out.join(name).join("run.json")).unwrap_or_default();
        let info: Option<RunInfo> = serde_json::from_slice(&text).ok();
        info.and_then(|info| info.outcome)
            .is_some_and(|outcome| outcome != format!("{:?}", Outcome::Interrupted))
    }

    fn fresh(&self, train: &TrainConfig) -> Params {
        Params::fresh(train.seed, self.args.common.dtype(), &self.device)
    }

    /// Runs one stage to its end; false if it was interrupted.
    fn run(&mut self, name: &str, task: &mut dyn Task, train: &TrainConfig) -> Result<bool> {
        let folder = RunFolder::resume(self.args.out.join(name))?;
        self.console.note(&format!("{name}: {} parameters", task.params().count()));
        let settings = serde_json::json!({ "motion": self.cfg, "data": self.args.data });
        let mut info =
            RunInfo::new("mamba-motion", env!("CARGO_PKG_VERSION"), &self.device, train.seed, settings);
        folder.save_info(&info)?;
        let report = train::run(task, train, &folder, &mut self.console, &self.stop)?;
        info.finish(&format!("{:?}", report.outcome), report.step);
        folder.save_info(&info)?;
        if report.outcome == Outcome::Interrupted {
            let out = self.args.out.display();
            self.console.note(&format!("saved in {out}; the same command with --resume goes on"));
        }
        Ok(report.outcome != Outcome::Interrupted)
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let cfg = args.resolve()?;
    if !args.resume {
        if args.out.join(mamba_motion::run::SHARED).exists() {
            let message = "already holds a run; resume it or choose another folder".into();
            let error = mamba_core::Error::RunFolder { path: args.out.clone(), message };
            return Err(error).hint("--resume goes on with it");
        }
        RunFolder::create(&args.out).hint("--resume goes on with it")?;
    }
    let mut console = Console::new(args.common.format, args.common.quiet);
    let data = load(&args.data, &cfg.source)?;
    let shared = shared(&data, &cfg);
    if let Ok(saved) = Shared::read(&args.out)
        && saved.data != shared.data
    {
        let message = "was trained on other clips".into();
        return Err(mamba_core::Error::RunFolder { path: args.out.clone(), message }.into());
    }
    std::fs::create_dir_all(&args.out)?;
    shared.write(&args.out)?;
    describe(&data, &mut console);
    let mut stages = Stages { args: &args, cfg: &cfg, device, console, stop: Stop::on_signals()? };
    match train_stages(&mut stages, &data, &shared)? {
        false => Ok(ExitCode::from(INTERRUPTED)),
        true => {
            let out = args.out.display();
            stages.console.note(&format!(
                "run in {out}\nnext: mamba-motion eval {}--checkpoint {out}\n      mamba-motion generate --checkpoint {out} --label {} --out motion",
                args.data.iter().map(|path| format!("{} ", path.display())).collect::<String>(),
                shared.groups.first().map_or("LABEL", |group| group.values[0].as_str()),
            ));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Standardisation and labels of the clips that are trained on.
fn shared(data: &MotionData, cfg: &MotionConfig) -> Shared {
    Shared {
        config: cfg.clone(),
        groups: data.groups.clone(),
        standard: Standard::of(&data.of_role(Role::Train)),
        data: data.fingerprint(),
    }
}

fn describe(data: &MotionData, console: &mut Console) {
    for skipped in &data.skipped {
        console.note(&format!("passed over {skipped}"));
    }
    let [train, valid, test] = [Role::Train, Role::Valid, Role::Test].map(|role| {
        let clips = data.of_role(role);
        let frames: usize = clips.iter().map(|clip| clip.frames.len()).sum();
        format!("{} ({:.1} min)", clips.len(), frames as f64 / 1200.0)
    });
    console.note(&format!("clips to train on {train}, for validation {valid}, for the test {test}"));
    for group in &data.groups {
        console.note(&format!("{}: {}", group.name, group.values.join(", ")));
    }
}

/// Evaluator, VAE, denoiser, and the peer if asked for; false if interrupted.
fn train_stages(stages: &mut Stages<'_>, data: &MotionData, shared: &Shared) -> Result<bool> {
    let cfg = stages.cfg;
    let (train, valid) = (data.of_role(Role::Train), data.of_role(Role::Valid));
    let set = TrainingSet {
        train: train.clone(),
        valid: valid.clone(),
        standard: &shared.standard,
        crop: cfg.crop,
        fingerprint: shared.data.clone(),
    };
    let labelled = |clips: &[&'_ Clip]| clips.iter().all(|clip| clip.labels.iter().all(Option::is_some));
    if !data.groups.is_empty() && labelled(&train) && !stages.done(EVALUATOR) {
        let evaluator = evaluator_config(data, cfg);
        let params = stages.fresh(&cfg.train_evaluator);
        let mut task = EvaluatorTask::new(evaluator, &cfg.train_evaluator, set.clone(), params)?;
        if !stages.run(EVALUATOR, &mut task, &cfg.train_evaluator)? {
            return Ok(false);
        }
    }
    if !stages.done(VAE) {
        let params = stages.fresh(&cfg.train_vae);
        let mut task = VaeTask::new(&cfg.vae, &cfg.train_vae, set.clone(), params)?;
        if !stages.run(VAE, &mut task, &cfg.train_vae)? {
            return Ok(false);
        }
    }
    let model = DenoiserConfig {
        latent_tokens: cfg.vae.latent_tokens,
        latent_dim: cfg.vae.latent_dim,
        condition: ConditionConfig::Labels {
            sizes: data.groups.iter().map(|group| group.values.len()).collect(),
        },
        network: cfg.denoiser.clone(),
    };
    let peer = model.transformer_peer(cfg.peer_layers)?;
    for (name, model) in [(DENOISER, &model), (PEER, &peer)] {
        let wanted = name == DENOISER || stages.args.peer;
        if !wanted || stages.done(name) {
            continue;
        }
        let (_, vae) = open_model(&stages.args.out.join(VAE), &stages.device, MotionVae::new)?;
        let encode = |clips: &[&Clip], stages: &Stages<'_>| {
            let total = (clips.len() * cfg.latent.parts_per_clip) as u64;
            let mut progress = stages.args.common.progress(Some(total), "motions");
            let (mut done, seed) = (0, cfg.train_denoiser.seed);
            let latents =
                LatentSet::new(&vae, clips, &set, cfg.latent.parts_per_clip, seed, &stages.device, |n| {
                    progress.inc((n - done) as u64);
                    done = n;
                    !stages.stop.requested()
                });
            progress.finish();
            latents
        };
        let Some(latents) = encode(&train, stages)? else { return Ok(false) };
        let valid_latents = if valid.is_empty() { None } else { encode(&valid, stages)? };
        let stored = StoredDenoiser {
            model: model.clone(),
            training: cfg.latent.clone(),
            latent_scale: latents.scale()?,
        };
        let valid = valid_latents.map(|latents| Labelled { latents, clips: &valid });
        let params = stages.fresh(&cfg.train_denoiser);
        let labelled = Labelled { latents, clips: &train };
        let mut task =
            DenoiserTask::new(stored, &cfg.train_denoiser, labelled, valid, shared.data.clone(), params)?;
        if !stages.run(name, &mut task, &cfg.train_denoiser)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The evaluator for the labels of the clips that are trained on.
fn evaluator_config(data: &MotionData, cfg: &MotionConfig) -> EvaluatorConfig {
    let mut combinations: Vec<Vec<usize>> =
        data.clips.iter().filter_map(|clip| clip.labels.iter().copied().collect()).collect();
    combinations.sort();
    combinations.dedup();
    let settings = cfg.evaluator;
    EvaluatorConfig {
        d_model: settings.d_model,
        n_layer: settings.n_layer,
        dim: settings.dim,
        window: settings.window,
        sizes: data.groups.iter().map(|group| group.values.len()).collect(),
        combinations,
    }
}
