//! Settings of a whole training, and presets.

use crate::dataset::SourceConfig;
use crate::models::{MotionMambaConfig, NetworkConfig, VaeConfig, grounder};
use crate::tasks::grounding::GroundingTraining;
use crate::tasks::stream::StreamTraining;
use crate::tasks::{CropConfig, LatentDiffusionConfig};
use mamba_core::train::TrainConfig;
use mamba_core::{Error, MixerConfig, Result};
use serde::{Deserialize, Serialize};

/// Everything that decides a training, besides the clips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MotionConfig {
    /// Where clips come from.
    pub source: SourceConfig,
    /// How motions are cut out of them.
    pub crop: CropConfig,
    /// The evaluator.
    pub evaluator: EvaluatorSettings,
    /// The VAE.
    pub vae: VaeConfig,
    /// The denoiser's network.
    pub denoiser: NetworkConfig,
    /// Layers of the transformer that is trained as its peer, when asked for.
    pub peer_layers: usize,
    /// The denoiser's diffusion.
    pub latent: LatentDiffusionConfig,
    /// The denoiser of motion itself, and its training.
    pub stream: StreamSettings,
    /// The grounding model, and its training.
    pub grounding: GroundingSettings,
    /// Training of the evaluator.
    pub train_evaluator: TrainConfig,
    /// Training of the VAE.
    pub train_vae: TrainConfig,
    /// Training of the denoiser.
    pub train_denoiser: TrainConfig,
    /// Training of the denoiser of motion itself.
    pub train_stream: TrainConfig,
    /// Training of the grounding model.
    pub train_grounding: TrainConfig,
}

/// Sizes of the denoiser of motion itself, and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSettings {
    /// Width.
    pub d_model: usize,
    /// Blocks.
    pub n_layer: usize,
    /// The mixers.
    pub ssm_cfg: MixerConfig,
    /// How it is trained.
    pub training: StreamTraining,
}

/// Sizes of the grounding model, and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroundingSettings {
    /// Width.
    pub d_model: usize,
    /// Blocks.
    pub n_layer: usize,
    /// The scans, whose selection the text controls.
    pub ssm_cfg: MixerConfig,
    /// How it is trained.
    pub training: GroundingTraining,
}

/// Sizes of the evaluator that do not follow from the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluatorSettings {
    /// Width of the blocks.
    pub d_model: usize,
    /// Blocks.
    pub n_layer: usize,
    /// Dimensions of the common space.
    pub dim: usize,
    /// Frames of the windows that are compared.
    pub window: usize,
    /// The mixers.
    pub ssm_cfg: MixerConfig,
}

impl Default for EvaluatorSettings {
    fn default() -> Self {
        Self { d_model: 96, n_layer: 2, dim: 32, window: 40, ssm_cfg: MixerConfig::default() }
    }
}

impl MotionConfig {
    /// Names of the presets.
    pub const PRESETS: [&str; 3] = ["tiny", "small", "paper"];

    /// A preset: `tiny` for the bundled clips, `small` for some hours of motion on a CPU, `paper` with the sizes of MLD
    /// and Motion Mamba.
    pub fn preset(name: &str) -> Option<Self> {
        let (d, layers, d_ff, levels, steps, batch) = match name {
            "tiny" => (64, 2, 128, 2, [300, 2500, 2000, 2000, 400], 8),
            "small" => (128, 3, 256, 4, [800, 6000, 8000, 8000, 1500], 8),
            "paper" => (256, 9, 1024, 11, [3000, 60_000, 60_000, 60_000, 5000], 64),
            _ => return None,
        };
        let paper = name == "paper";
        // Five seconds are learnt in minutes, ten take hours.
        let max_frames = if paper { 200 } else { 100 };
        let vae = VaeConfig {
            latent_dim: d,
            max_frames,
            n_layer: layers,
            d_ff,
            dropout: if paper { 0.1 } else { 0.0 },
            ..VaeConfig::default()
        };
        let network = MotionMambaConfig {
            n_level: levels,
            ssm_cfg: MixerConfig::default(),
            ..MotionMambaConfig::default()
        };
        let base =
            TrainConfig { betas: (0.9, 0.99), weight_decay: 0.01, log_every: 20, ..TrainConfig::default() };
        let train = |steps: u64, batch_size: usize, learning_rate: f64, ema: Option<f64>| TrainConfig {
            steps,
            batch_size,
            learning_rate,
            ema,
            warmup: (steps / 20).max(1),
            eval_every: (steps / 10).max(1),
            save_every: (steps / 10).max(1),
            ..base.clone()
        };
        Some(Self {
            source: SourceConfig { mirror: name != "tiny", ..SourceConfig::standard() },
            crop: CropConfig { max_frames, ..CropConfig::default() },
            evaluator: EvaluatorSettings {
                d_model: if name == "tiny" { 48 } else { 96 },
                ..Default::default()
            },
            vae,
            denoiser: NetworkConfig::MotionMamba(network),
            peer_layers: if paper { 9 } else { 6 },
            latent: LatentDiffusionConfig::default(),
            stream: StreamSettings {
                d_model: if paper { 512 } else { 2 * d },
                n_layer: if paper { 8 } else { 4 },
                ssm_cfg: MixerConfig::default(),
                training: StreamTraining::default(),
            },
            grounding: GroundingSettings {
                d_model: d,
                n_layer: layers.min(4),
                ssm_cfg: MixerConfig::default(),
                training: GroundingTraining::default(),
            },
            train_evaluator: train(steps[0], 32, 1e-3, None),
            train_vae: train(steps[1], batch, if paper { 1e-4 } else { 1e-3 }, Some(0.998)),
            train_denoiser: train(steps[2], 64, if paper { 1e-4 } else { 5e-4 }, Some(0.995)),
            train_stream: train(steps[3], 2 * batch, if paper { 2e-4 } else { 1e-3 }, Some(0.995)),
            train_grounding: train(steps[4], 8, 1e-3, Some(0.99)),
        })
    }

    /// Refuses what makes no training.
    pub fn validate(&self) -> Result<()> {
        self.vae.validate()?;
        self.crop.validate(&self.vae)?;
        self.latent.diffusion.validate()?;
        for (name, train) in [
            ("evaluator", &self.train_evaluator),
            ("vae", &self.train_vae),
            ("denoiser", &self.train_denoiser),
            ("stream", &self.train_stream),
            ("grounding", &self.train_grounding),
        ] {
            train.validate().map_err(|e| Error::Config(format!("train_{name}: {e}")))?;
        }
        if let NetworkConfig::MotionMamba(network) = &self.denoiser {
            network.validate_for(self.vae.latent_tokens, self.vae.latent_dim)?;
        }
        self.stream.training.validate()?;
        self.grounding.training.validate()?;
        grounder::validate_scans(self.grounding.d_model, &self.grounding.ssm_cfg)?;
        let widths = [
            ("stream", self.stream.d_model, &self.stream.ssm_cfg),
            ("evaluator", self.evaluator.d_model, &self.evaluator.ssm_cfg),
        ];
        for (name, width, ssm) in widths {
            ssm.validate_for(width).map_err(|e| Error::Config(format!("{name}.ssm_cfg: {e}")))?;
        }
        if self.latent.parts_per_clip == 0 {
            return Err(Error::Config("latent.parts_per_clip is 0, expected at least 1".into()));
        }
        let EvaluatorSettings { d_model, n_layer, dim, window, .. } = self.evaluator;
        if [d_model, n_layer, dim].contains(&0) || window < 8 {
            return Err(Error::Config(format!(
                "evaluator: d_model {d_model}, n_layer {n_layer}, dim {dim} must be at least 1, window {window} at least 8"
            )));
        }
        Ok(())
    }
}
