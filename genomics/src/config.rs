//! Hyper-parameters of Caduceus, under upstream's names, and named sizes.

use crate::tokenizer;
use mamba_core::bidirectional::Combine;
use mamba_core::nn::NormKind;
use mamba_core::{Error, MixerConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// `config.json` of a Caduceus checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaduceusConfig {
    /// Width of one strand's channels, D.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Tokens, before padding.
    pub vocab_size: usize,
    /// The mixers.
    pub ssm_cfg: MixerConfig,
    /// RMS norm, or layer norm.
    pub rms_norm: bool,
    /// Upstream keeps the residual in f32; ours has the type of the model.
    pub residual_in_fp32: bool,
    /// With `rcps` this chooses between two different functions of the same weights, see [`crate::Caduceus`].
    pub fused_add_norm: bool,
    /// The vocabulary is padded to a multiple of this.
    pub pad_vocab_size_multiple: usize,
    /// Added under the norms' root.
    pub norm_epsilon: f64,
    /// Initialisation.
    pub initializer_cfg: InitializerConfig,
    /// Whether each block reads in both directions.
    pub bidirectional: bool,
    /// How the directions are combined.
    pub bidirectional_strategy: Option<Combine>,
    /// Whether the directions share their projections.
    pub bidirectional_weight_tie: bool,
    /// Parameter sharing between the strands: Caduceus-PS. Else Caduceus-Ph.
    pub rcps: bool,
    /// Complement of each token, from id to id; needed by `rcps`.
    pub complement_map: Option<BTreeMap<u32, u32>>,
    /// Token that marks padding, and labels that do not count.
    pub pad_token_id: u32,
    /// What else the file says (`architectures`, `id2label`, …), kept as it is.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Initialisation of the parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitializerConfig {
    /// Deviation of the embedding.
    pub initializer_range: f64,
    /// Residual branches of a block.
    pub n_residuals_per_layer: usize,
    /// Whether `out_proj` starts divided by the root of the number of residual branches.
    pub rescale_prenorm_residual: bool,
}

impl Default for InitializerConfig {
    fn default() -> Self {
        Self { initializer_range: 0.02, n_residuals_per_layer: 1, rescale_prenorm_residual: true }
    }
}

impl Default for CaduceusConfig {
    fn default() -> Self {
        let complement = tokenizer::COMPLEMENT_MAP.iter().enumerate();
        Self {
            d_model: 128,
            n_layer: 4,
            vocab_size: tokenizer::VOCAB_SIZE,
            ssm_cfg: MixerConfig::default(),
            rms_norm: true,
            residual_in_fp32: false,
            fused_add_norm: true,
            pad_vocab_size_multiple: 8,
            norm_epsilon: 1e-5,
            initializer_cfg: InitializerConfig::default(),
            bidirectional: true,
            bidirectional_strategy: Some(Combine::Add),
            bidirectional_weight_tie: true,
            rcps: true,
            complement_map: Some(complement.map(|(i, &c)| (i as u32, u32::from(c))).collect()),
            pad_token_id: u32::from(tokenizer::PAD),
            other: BTreeMap::from([("model_type".to_string(), Value::from("caduceus"))]),
        }
    }
}

impl CaduceusConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.ssm_cfg.validate()?;
        if self.d_model == 0 || self.vocab_size == 0 || self.pad_vocab_size_multiple == 0 {
            let problem = "d_model, vocab_size and pad_vocab_size_multiple must be at least 1";
            return Err(Error::Config(problem.into()));
        }
        self.ssm_cfg.validate_for(self.d_model)?;
        let (vocab_size, multiple) = (self.vocab_size, self.pad_vocab_size_multiple);
        // Ids are u32, and the embedding must fit a machine.
        let vocab = vocab_size.checked_next_multiple_of(multiple).filter(|&vocab| vocab <= u32::MAX as usize);
        let Some(vocab) = vocab.filter(|vocab| vocab.checked_mul(self.d_model).is_some()) else {
            return Err(Error::Config(format!(
                "a vocabulary of {vocab_size} padded to a multiple of {multiple} is too large for d_model {}",
                self.d_model
            )));
        };
        let problem = if (self.pad_token_id as usize) >= vocab {
            format!("pad_token_id is {}, expected less than the vocabulary's {vocab}", self.pad_token_id)
        } else if self.rcps && self.complement_map.is_none() {
            "rcps needs a complement_map".to_string()
        } else if let Some((id, c)) =
            self.complement_map.iter().flatten().find(|(_, c)| (**c as usize) >= vocab)
        {
            format!("complement_map takes token {id} to {c}, outside the vocabulary of {vocab}")
        } else {
            return Ok(());
        };
        Err(Error::Config(problem))
    }

    /// Rows of the embedding.
    pub fn padded_vocab_size(&self) -> usize {
        self.vocab_size.next_multiple_of(self.pad_vocab_size_multiple.max(1))
    }

    /// Complement of every token of the padded vocabulary; by `complement_map`, or that of the bases.
    pub fn complements(&self) -> Vec<u32> {
        let complement = |id: u32| match &self.complement_map {
            Some(map) => map.get(&id).copied().unwrap_or(id),
            None => tokenizer::COMPLEMENT_MAP.get(id as usize).map_or(id, |&c| u32::from(c)),
        };
        (0..self.padded_vocab_size() as u32).map(complement).collect()
    }

    /// Which norm, and what is added under its root.
    pub(crate) fn norm(&self) -> (NormKind, f64) {
        (if self.rms_norm { NormKind::Rms } else { NormKind::Layer }, self.norm_epsilon)
    }

    /// A named size: its width and depth, Caduceus-PS.
    ///
    /// | name | d_model | n_layer | parameters |
    /// |---|---|---|---|
    /// | `tiny` | 64 | 2 | 0.08 M |
    /// | `small` | 128 | 4 | 0.54 M |
    /// | `base` | 256 | 4 | 2.0 M |
    /// | `released` | 256 | 16 | 7.7 M, that of the published 131 k checkpoints |
    pub fn preset(name: &str) -> Option<Self> {
        let (d_model, n_layer) = match name {
            "tiny" => (64, 2),
            "small" => (128, 4),
            "base" => (256, 4),
            "released" => (256, 16),
            _ => return None,
        };
        Some(Self { d_model, n_layer, ..Self::default() })
    }

    /// The names that [`CaduceusConfig::preset`] knows.
    pub const PRESETS: [&'static str; 4] = ["tiny", "small", "base", "released"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_machine_holds_are_refused() {
        let base = CaduceusConfig::default();
        base.validate().unwrap();
        let most = usize::MAX;
        for (config, name) in [
            (CaduceusConfig { d_model: most, ..base.clone() }, "d_model"),
            (CaduceusConfig { d_model: most / 2 + 1, ..base.clone() }, "d_model"),
            (CaduceusConfig { vocab_size: most, ..base.clone() }, "vocabulary"),
            (CaduceusConfig { pad_vocab_size_multiple: most, ..base.clone() }, "vocabulary"),
            (
                CaduceusConfig { vocab_size: most - 3, pad_vocab_size_multiple: 2, ..base.clone() },
                "vocabulary",
            ),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        let ssm_cfg = mamba_core::Mamba1Config { expand: most, ..Default::default() }.into();
        assert!(CaduceusConfig { ssm_cfg, ..base }.validate().is_err());
    }
}
