//! `train`: the parts of a run, one after the other.

use crate::commands::resume;
use anyhow::Result;
use candle_core::Device;
use mamba_core::Params;
use mamba_core::cli::{CommonArgs, HintExt, INTERRUPTED, SettingsArgs, interrupted, open_run};
use mamba_core::run_folder::{RunFolder, RunInfo};
use mamba_core::train::{self, Console, Outcome, Stop, Task, TrainConfig};
use mamba_datasets::registry::resolve_all;
use mamba_motion::conditions::{ClipConditions, TextSource, sentences};
use mamba_motion::config::MotionConfig;
use mamba_motion::dataset::{Clip, MotionData, Role, SourceConfig, Standard};
use mamba_motion::models::{
    DenoiserConfig, EvaluatorConfig, GrounderConfig, MotionVae, StreamDenoiserConfig,
};
use mamba_motion::retarget::SkeletonMap;
use mamba_motion::run::{DENOISER, EVALUATOR, GROUNDING, PEER, STREAM, Shared, VAE, open_model};
use mamba_motion::tasks::grounding::{GroundingTask, StoredGrounder};
use mamba_motion::tasks::stream::{StoredStream, StreamTask};
use mamba_motion::tasks::{
    DenoiserTask, EvaluatorTask, Labelled, LatentSet, StoredDenoiser, TrainingSet, VaeTask,
};
use mamba_motion::text::TextEncoder;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-motion train --out runs/first\n  \
    mamba-motion train bandai-namco --out runs/bandai    (a set of `mamba-motion datasets list`)\n  \
    mamba-motion train clips/ --out runs/clips --preset small --minutes 60\n  \
    mamba-motion train clips/ --out runs/clips --preset small --minutes 60 --resume\n  \
    mamba-motion train clips/ --out runs/long --parts stream,grounding    (long motion, without the VAE)\n  \
    mamba-motion train clips/ --out runs/text --text-encoder all-MiniLM-L6-v2/    (conditions are sentences)\n  \
    mamba-motion train --out runs/mamba2 --set denoiser.ssm_cfg.type=mamba2 --set denoiser.ssm_cfg.headdim=8")]
pub(crate) struct Args {
    /// BVH files, DeepMimic clips, folders of them, or folders in the layout of HumanML3D or sets of
    /// `mamba-motion datasets list` [default: the bundled clips]
    #[arg(value_name = "DATA")]
    data: Vec<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/motion")]
    out: PathBuf,

    /// Go on where the run in --out was saved, with its settings; what has all its steps is left as it is
    #[arg(long)]
    resume: bool,

    /// Sizes: tiny, small or paper [default: small; tiny for the bundled clips; with --resume those of the run]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// What to train. evaluator: the space that figures are measured in; vae and denoiser: motion of a few seconds from a
    /// latent; peer: a transformer denoiser of as many parameters, to compare with; stream: motion of any length, continued
    /// and filled in; grounding: finds in a motion what a text or a label says [default: evaluator,vae,denoiser]
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    parts: Vec<Part>,

    /// Folder of a frozen text encoder (a sentence-transformers BERT or a CLIP): models are told sentences instead of labels
    #[arg(long, value_name = "DIR")]
    text_encoder: Option<PathBuf>,

    /// Stop after so many minutes in all; the parts that are not finished share them
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// What can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Evaluator,
    Vae,
    Denoiser,
    Peer,
    Stream,
    Grounding,
}

impl Part {
    const ALL: [Self; 6] =
        [Self::Evaluator, Self::Vae, Self::Denoiser, Self::Peer, Self::Stream, Self::Grounding];
    /// What is trained where nothing else is said.
    const USUAL: [Self; 3] = [Self::Evaluator, Self::Vae, Self::Denoiser];

    /// Its folder in a run.
    fn folder(self) -> &'static str {
        match self {
            Self::Evaluator => EVALUATOR,
            Self::Vae => VAE,
            Self::Denoiser => DENOISER,
            Self::Peer => PEER,
            Self::Stream => STREAM,
            Self::Grounding => GROUNDING,
        }
    }

    /// Its training.
    fn train(self, cfg: &MotionConfig) -> &TrainConfig {
        match self {
            Self::Evaluator => &cfg.train_evaluator,
            Self::Vae => &cfg.train_vae,
            Self::Denoiser | Self::Peer => &cfg.train_denoiser,
            Self::Stream => &cfg.train_stream,
            Self::Grounding => &cfg.train_grounding,
        }
    }

    /// The settings that its weights depend on, beside those of the clips.
    fn sections(self) -> &'static [&'static str] {
        match self {
            Self::Evaluator => &["evaluator", "train_evaluator"],
            Self::Vae => &["vae", "train_vae"],
            Self::Denoiser => &["denoiser", "latent", "train_denoiser"],
            Self::Peer => &["denoiser", "peer_layers", "latent", "train_denoiser"],
            Self::Stream => &["stream", "train_stream"],
            Self::Grounding => &["grounding", "train_grounding"],
        }
    }

    /// Whether its training in a run was saved.
    fn begun(self, out: &Path) -> bool {
        RunFolder::is_saved(&out.join(self.folder()))
    }

    /// Whether its training in a run has ended, and not by time or a signal before all steps that are now asked for.
    fn finished(self, out: &Path, cfg: &MotionConfig) -> bool {
        let text = std::fs::read(out.join(self.folder()).join("run.json")).unwrap_or_default();
        let Ok(info) = serde_json::from_slice::<RunInfo>(&text) else { return false };
        let ended = |by: Outcome| info.outcome == Some(format!("{by:?}"));
        ended(Outcome::EarlyStopped) || (ended(Outcome::Completed) && info.steps >= self.train(cfg).steps)
    }

    /// How much time it takes beside the others.
    fn weight(self) -> f64 {
        match self {
            Self::Evaluator => 0.05,
            Self::Vae => 0.6,
            Self::Denoiser | Self::Peer => 0.35,
            Self::Stream => 0.6,
            Self::Grounding => 0.3,
        }
    }
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        if self.parts.is_empty() { Part::USUAL.contains(&part) } else { self.parts.contains(&part) }
    }

    /// Whether a part is to be trained. Where a VAE goes on, its latents become others: their denoisers start anew.
    fn trains(&self, part: Part, cfg: &MotionConfig) -> bool {
        let other_latents = || matches!(part, Part::Denoiser | Part::Peer) && self.trains(Part::Vae, cfg);
        self.wants(part) && (!part.finished(&self.out, cfg) || other_latents())
    }

    /// The settings that a training starts from: a saved run's, or a preset's.
    fn base(&self, saved: Option<&Shared>) -> Result<MotionConfig> {
        if let (Some(saved), None) = (saved, &self.preset) {
            let mut base = saved.config.clone();
            for train in trains_of(&mut base) {
                train.max_minutes = None;
            }
            return Ok(base);
        }
        let preset = self.preset.as_deref().unwrap_or(if self.data.is_empty() { "tiny" } else { "small" });
        let known = || {
            mamba_core::Error::Config(format!(
                "--preset {preset}: expected one of {}",
                MotionConfig::PRESETS.join(", ")
            ))
        };
        Ok(MotionConfig::preset(preset).ok_or_else(known)?)
    }

    fn resolve(&self, saved: Option<&Shared>) -> Result<MotionConfig> {
        let mut cfg = self.settings.resolve(&self.base(saved)?)?;
        if let Some(map) = &cfg.source.skeleton {
            cfg.source.skeleton =
                Some(SkeletonMap::without_file(map).hint("--set source.skeleton names a map")?);
        }
        let all = Part::ALL.into_iter().filter(|part| self.trains(*part, &cfg));
        let total: f64 = all.map(Part::weight).sum();
        let minutes = self.minutes.filter(|_| total > 0.0);
        let parts = [Part::Evaluator, Part::Vae, Part::Denoiser, Part::Stream, Part::Grounding];
        for (train, part) in trains_of(&mut cfg).into_iter().zip(parts) {
            train.seed = self.settings.seed.unwrap_or(train.seed);
            train.max_minutes = minutes.map(|minutes| part.weight() / total * minutes).or(train.max_minutes);
        }
        cfg.validate()?;
        Ok(cfg)
    }
}

/// The trainings of settings: of evaluator, VAE, denoisers of latents, stream, grounding.
fn trains_of(cfg: &mut MotionConfig) -> [&mut TrainConfig; 5] {
    [
        &mut cfg.train_evaluator,
        &mut cfg.train_vae,
        &mut cfg.train_denoiser,
        &mut cfg.train_stream,
        &mut cfg.train_grounding,
    ]
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
    /// Whether a part is to be trained; says so of one that was asked for and is finished.
    fn trains(&self, part: Part) -> bool {
        let trains = self.args.trains(part, self.cfg);
        if self.args.wants(part) && !trains {
            self.console.note(&format!("{}: finished, left as it is", part.folder()));
        }
        trains
    }

    /// Puts runs away that cannot go on, for their VAE does.
    fn put_away(&self, parts: [Part; 2]) -> Result<()> {
        for part in parts.map(Part::folder) {
            let run = self.args.out.join(part);
            if !run.exists() {
                continue;
            }
            // one that was put away before stays
            let names =
                (1u32..).map(|i| format!("{part}.old{}", if i > 1 { i.to_string() } else { String::new() }));
            let away = names.map(|name| self.args.out.join(name)).find(|away| !away.exists());
            let away = away.expect("some name is free");
            std::fs::rename(&run, &away)
                .map_err(|source| mamba_motion::Error::Write { path: away.clone(), source })?;
            let away = away.display();
            self.console
                .note(&format!("{part}: has to start anew, for the vae goes on; the old one is in {away}"));
        }
        Ok(())
    }

    fn fresh(&self, train: &TrainConfig) -> Params {
        Params::fresh(train.seed, self.args.common.dtype(), &self.device)
    }

    /// Runs one stage to its end; false if it was interrupted.
    fn run(&mut self, name: &str, task: &mut dyn Task, train: &TrainConfig) -> Result<bool> {
        let folder = RunFolder::resume(self.args.out.join(name))?;
        self.console.note(&format!("{name}: {} parameters", task.params().count()));
        let settings = serde_json::json!({ "motion": self.cfg, "data": self.args.data });
        let info =
            RunInfo::new("mamba-motion", env!("CARGO_PKG_VERSION"), &self.device, train.seed, settings);
        let report = train::run_recorded(task, train, &folder, info, &mut self.console, &self.stop)?;
        if report.is_none() {
            interrupted(&self.console, &self.args.out);
        }
        Ok(report.is_some())
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    if !args.resume && args.out.join(mamba_motion::run::SHARED).exists() {
        let message = "already holds a run; resume it or choose another folder".into();
        let error = mamba_core::Error::RunFolder { path: args.out.clone(), message };
        return Err(error).hint("--resume goes on with it");
    }
    let saved = resume::saved(&args.out)?;
    let cfg = args.resolve(saved.as_ref())?;
    let begun: Vec<Part> = Part::ALL.into_iter().filter(|part| part.begun(&args.out)).collect();
    if let Some(saved) = saved.as_ref().filter(|_| !begun.is_empty()) {
        let of_parts = begun.iter().flat_map(|part| part.sections().iter().copied());
        let sections: Vec<&str> = ["source", "crop"].into_iter().chain(of_parts).collect();
        resume::refuse_other_settings(&args.out, &saved.config, &cfg, &sections)?;
    }
    let mut console = Console::new(args.common.format, args.common.quiet);
    let encoder = match &args.text_encoder {
        Some(folder) => {
            let encoder = TextEncoder::open(folder, &device).hint(
                "--text-encoder names a folder with config.json, model.safetensors and tokenizer.json",
            )?;
            Some((TextSource::of(folder, &encoder)?, encoder))
        }
        None => None,
    };
    let data = load(&resolve_all(&args.data)?, &cfg.source)?;
    if data.groups.is_empty() && encoder.is_none() {
        let message = "the clips have no labels that models could be told".to_string();
        return Err(mamba_core::Error::Config(message)).hint(
            "--text-encoder DIR tells them captions; --set source.names=… reads labels from file names",
        );
    }
    if let (true, Some(reason)) = (args.parts.contains(&Part::Evaluator), unlabelled(&data)) {
        return Err(mamba_core::Error::Config(format!(
            "--parts evaluator needs a label of each group: {reason}"
        )))
        .hint("--set source.names=… reads labels from file names; or leave evaluator out of --parts");
    }
    let (source, encoder) = encoder.unzip();
    let shared = shared(&data, &cfg, source);
    if let Some(saved) = &saved {
        resume::refuse_other_data(&args.out, saved, &shared)?;
    }
    open_run(&args.out, args.resume)?;
    shared.write(&args.out)?;
    describe(&data, encoder.is_some(), &mut console);
    let mut stages = Stages { args: &args, cfg: &cfg, device, console, stop: Stop::on_signals()? };
    match train_stages(&mut stages, &data, &shared, encoder.as_ref())? {
        false => Ok(ExitCode::from(INTERRUPTED)),
        true => {
            stages.console.note(&next_steps(&args, &shared));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What can be done with a finished run.
fn next_steps(args: &Args, shared: &Shared) -> String {
    let out = args.out.display();
    let data: String = args.data.iter().map(|path| format!("{} ", path.display())).collect();
    let asked = match (&shared.text, shared.groups.first()) {
        (Some(_), _) => "--text \"a person walks\"".to_string(),
        (None, group) => format!("--label {}", group.map_or("LABEL", |group| group.values[0].as_str())),
    };
    let mut steps = Vec::new();
    let has = |part: Part| args.out.join(part.folder()).is_dir();
    if has(Part::Evaluator) || has(Part::Grounding) {
        steps.push(format!("mamba-motion eval {data}--checkpoint {out}"));
    }
    if has(Part::Denoiser) || has(Part::Stream) {
        steps.push(format!("mamba-motion generate --checkpoint {out} {asked} --out motion"));
    }
    if has(Part::Grounding) {
        steps.push(format!("mamba-motion ground FILE.bvh --checkpoint {out} {asked}"));
    }
    match steps.is_empty() {
        true => format!("run in {out}"),
        false => format!("run in {out}\nnext: {}", steps.join("\n      ")),
    }
}

/// Standardisation and labels of the clips that are trained on.
fn shared(data: &MotionData, cfg: &MotionConfig, text: Option<TextSource>) -> Shared {
    Shared {
        config: cfg.clone(),
        groups: data.groups.clone(),
        text,
        standard: Standard::of(&data.of_role(Role::Train)),
        data: data.fingerprint(),
    }
}

/// Why clips can train no evaluator; none if they can.
fn unlabelled(data: &MotionData) -> Option<String> {
    if data.groups.is_empty() {
        return Some("the clips have none".into());
    }
    let train = data.of_role(Role::Train);
    let (clip, group) = train.iter().find_map(|clip| {
        let missing = clip.labels.iter().position(Option::is_none)?;
        Some((clip, data.groups.get(missing)?))
    })?;
    Some(format!("{} has no {}", clip.name, group.name))
}

fn describe(data: &MotionData, texts: bool, console: &mut Console) {
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
    if texts {
        let texts: std::collections::BTreeSet<String> =
            data.clips.iter().flat_map(|clip| sentences(clip, &data.groups)).collect();
        console.note(&format!(
            "{} sentences, such as {:?}",
            texts.len(),
            texts.first().map_or("", String::as_str)
        ));
    }
}

/// The parts that are asked for; false if interrupted.
fn train_stages(
    stages: &mut Stages<'_>,
    data: &MotionData,
    shared: &Shared,
    encoder: Option<&TextEncoder>,
) -> Result<bool> {
    let cfg = stages.cfg;
    let (train, valid) = (data.of_role(Role::Train), data.of_role(Role::Valid));
    let set = TrainingSet {
        train: train.clone(),
        valid: valid.clone(),
        standard: &shared.standard,
        crop: cfg.crop,
        fingerprint: shared.data.clone(),
    };
    let unlabelled = unlabelled(data).filter(|_| stages.args.wants(Part::Evaluator));
    if let Some(reason) = unlabelled {
        stages.console.note(&format!("evaluator: left out, it needs a label of each group: {reason}"));
    } else if stages.trains(Part::Evaluator) {
        let evaluator = evaluator_config(data, cfg);
        let params = stages.fresh(&cfg.train_evaluator);
        let mut task = EvaluatorTask::new(evaluator, &cfg.train_evaluator, set.clone(), params)?;
        if !stages.run(EVALUATOR, &mut task, &cfg.train_evaluator)? {
            return Ok(false);
        }
    }
    if stages.trains(Part::Vae) {
        let params = stages.fresh(&cfg.train_vae);
        let mut task = VaeTask::new(&cfg.vae, &cfg.train_vae, set.clone(), params)?;
        stages.put_away([Part::Denoiser, Part::Peer])?;
        if !stages.run(VAE, &mut task, &cfg.train_vae)? {
            return Ok(false);
        }
    }
    let conditions = ClipConditions::new(&train, &data.groups, encoder)?;
    let valid_conditions = ClipConditions::new(&valid, &data.groups, encoder)?;
    let both = || [conditions.clone(), valid_conditions.clone()];
    for part in [Part::Denoiser, Part::Peer] {
        if !stages.trains(part) {
            continue;
        }
        let (sizes, vae) = open_model(&stages.args.out.join(VAE), &stages.device, MotionVae::new)
            .hint("denoiser and peer need the vae: --parts vae,denoiser")?;
        let model = DenoiserConfig {
            latent_tokens: sizes.latent_tokens,
            latent_dim: sizes.latent_dim,
            condition: conditions.config(),
            network: cfg.denoiser.clone(),
        };
        let model = if part == Part::Peer { model.transformer_peer(cfg.peer_layers)? } else { model };
        let encode = |clips: &[&Clip], conditions: &ClipConditions| -> Result<Option<Labelled>> {
            let total = (clips.len() * cfg.latent.parts_per_clip) as u64;
            let mut progress = stages.args.common.progress(Some(total), "motions");
            let (mut done, seed) = (0, cfg.train_denoiser.seed);
            let latents =
                LatentSet::new(&vae, clips, &set, cfg.latent.parts_per_clip, seed, &stages.device, |n| {
                    progress.inc((n - done) as u64);
                    done = n;
                    !stages.stop.requested()
                })?;
            progress.finish();
            Ok(latents.map(|latents| Labelled { latents, conditions: conditions.clone() }))
        };
        let Some(latents) = encode(&train, &conditions)? else { return Ok(false) };
        let valid = match valid.is_empty() {
            true => None,
            false => encode(&valid, &valid_conditions)?,
        };
        let stored =
            StoredDenoiser { model, training: cfg.latent.clone(), latent_scale: latents.latents.scale()? };
        let params = stages.fresh(&cfg.train_denoiser);
        let mut task =
            DenoiserTask::new(stored, &cfg.train_denoiser, latents, valid, shared.data.clone(), params)?;
        if !stages.run(part.folder(), &mut task, &cfg.train_denoiser)? {
            return Ok(false);
        }
    }
    if stages.trains(Part::Stream) {
        let settings = &cfg.stream;
        let model = StreamDenoiserConfig {
            d_model: settings.d_model,
            n_layer: settings.n_layer,
            ssm_cfg: settings.ssm_cfg.clone(),
            condition: conditions.config(),
        };
        let stored = StoredStream { model, training: settings.training.clone() };
        let params = stages.fresh(&cfg.train_stream);
        let mut task = StreamTask::new(stored, &cfg.train_stream, set.clone(), both(), params)?;
        if !stages.run(STREAM, &mut task, &cfg.train_stream)? {
            return Ok(false);
        }
    }
    if stages.trains(Part::Grounding) {
        let settings = &cfg.grounding;
        let model = GrounderConfig {
            d_model: settings.d_model,
            n_layer: settings.n_layer,
            ssm_cfg: settings.ssm_cfg.clone(),
            condition: conditions.config(),
        };
        let stored = StoredGrounder { model, training: settings.training.clone() };
        let params = stages.fresh(&cfg.train_grounding);
        let mut task = GroundingTask::new(stored, &cfg.train_grounding, set.clone(), both(), params)?;
        if !stages.run(GROUNDING, &mut task, &cfg.train_grounding)? {
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
    let settings = &cfg.evaluator;
    EvaluatorConfig {
        d_model: settings.d_model,
        n_layer: settings.n_layer,
        dim: settings.dim,
        window: settings.window,
        ssm_cfg: settings.ssm_cfg.clone(),
        sizes: data.groups.iter().map(|group| group.values.len()).collect(),
        combinations,
    }
}
