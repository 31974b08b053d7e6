//! Hyper-parameters of SEMamba, under upstream's names, and named sizes.

use crate::stft::StftConfig;
use mamba_core::{Error, Mamba1Config, MixerConfig, Result};
use serde::{Deserialize, Serialize};

/// `config.json` of a SEMamba checkpoint: the parts `stft_cfg` and `model_cfg` of upstream's recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `semamba`.
    pub model_type: String,
    /// The spectrum.
    pub stft_cfg: StftConfig,
    /// The network.
    pub model_cfg: ModelConfig,
}

/// The network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Channels.
    pub hid_feature: usize,
    /// Power γ of the magnitudes.
    pub compress_factor: f64,
    /// Time-frequency blocks.
    pub num_tfmamba: usize,
    /// States of a channel.
    pub d_state: usize,
    /// Taps of the mixers' convolution.
    pub d_conv: usize,
    /// Inner channels of the mixers, as a multiple.
    pub expand: usize,
    /// Other mixers than the Mamba-1 of `d_state`, `d_conv` and `expand`: {"type": "mamba2", …}.
    pub ssm_cfg: Option<MixerConfig>,
    /// Added under the root of the mixers' norm.
    pub norm_epsilon: f64,
    /// Largest value of the mask.
    pub beta: f64,
    /// Magnitude and phase.
    pub input_channel: usize,
    /// Mask.
    pub output_channel: usize,
    /// Layers of each dense block; upstream has 4.
    pub dense_depth: usize,
    /// The phase decoder gives the change of the noisy phase, so that an untrained model changes nothing and little
    /// training goes far; upstream's gives the phase itself.
    pub phase_residual: bool,
    /// No layer looks ahead in time: for live use. Upstream has no such form.
    pub causal: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            hid_feature: 64,
            compress_factor: 0.3,
            num_tfmamba: 4,
            d_state: 16,
            d_conv: 4,
            expand: 4,
            ssm_cfg: None,
            norm_epsilon: 1e-5,
            beta: 2.0,
            input_channel: 2,
            output_channel: 1,
            dense_depth: 4,
            phase_residual: false,
            causal: false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: "semamba".into(),
            stft_cfg: StftConfig::default(),
            model_cfg: ModelConfig::default(),
        }
    }
}

impl Config {
    /// The names that [`Config::preset`] knows.
    pub const PRESETS: [&'static str; 3] = ["semamba", "semamba-small", "semamba-stream"];

    /// A named size.
    ///
    /// | name | channels | blocks | expand | parameters | |
    /// |---|---|---|---|---|---|
    /// | `semamba` | 64 | 4 | 4 | 2.26 M | the published model |
    /// | `semamba-small` | 16 | 2 | 2 | 0.06 M | for quick training and a laptop |
    /// | `semamba-stream` | 16 | 2 | 2 | 0.05 M | the same, causal |
    pub fn preset(name: &str) -> Option<Self> {
        let mut cfg = Self::default();
        let model = &mut cfg.model_cfg;
        match name {
            "semamba" => (),
            "semamba-small" | "semamba-stream" => {
                // As many channels as a vector register holds.
                (model.hid_feature, model.num_tfmamba, model.expand) = (16, 2, 2);
                (model.d_state, model.dense_depth) = (8, 3);
                model.phase_residual = true;
                model.causal = name == "semamba-stream";
            }
            _ => return None,
        }
        Some(cfg)
    }

    /// Refuses settings that make no model.
    pub fn validate(&self) -> Result<()> {
        let ModelConfig { hid_feature, num_tfmamba, input_channel, output_channel, dense_depth, .. } =
            self.model_cfg;
        self.stft_cfg.validate()?;
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let problem = if self.model_type != "semamba" {
            format!("model_type is {:?}, expected \"semamba\"", self.model_type)
        } else if hid_feature == 0 || num_tfmamba == 0 {
            "hid_feature and num_tfmamba must be at least 1".to_string()
        } else if !(1..=8).contains(&dense_depth) {
            format!("dense_depth is {dense_depth}, expected 1 to 8")
        } else if (input_channel, output_channel) != (2, 1) {
            format!("input_channel is {input_channel} and output_channel {output_channel}, expected 2 and 1")
        } else if !self.stft_cfg.bins().is_multiple_of(2) {
            // An odd number is halved by a stride of two and restored without a rest.
            return self.mixer().validate_for(hid_feature).and_then(|()| match self.model_cfg {
                ModelConfig { compress_factor, norm_epsilon, beta, .. }
                    if positive(compress_factor) && positive(norm_epsilon) && positive(beta) =>
                {
                    Ok(())
                }
                _ => Err(Error::Config("compress_factor, norm_epsilon and beta must be above 0".into())),
            });
        } else {
            format!("n_fft is {}, expected a multiple of 4", self.stft_cfg.n_fft)
        };
        Err(Error::Config(problem))
    }

    /// The mixers.
    pub(crate) fn mixer(&self) -> MixerConfig {
        let ModelConfig { d_state, d_conv, expand, .. } = self.model_cfg;
        let mamba = || Mamba1Config { d_state, d_conv, expand, ..Mamba1Config::default() }.into();
        self.model_cfg.ssm_cfg.clone().unwrap_or_else(mamba)
    }
}
