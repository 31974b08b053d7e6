//! Bi-Mamba+ (Liang et al. 2024, arXiv 2404.15772): patches of the look-back window are tokens, read in both directions
//! by Mamba+ mixers, either along time for each variable alone or across the variables for each patch.
//!
//! ```text
//! tokens = W · patches                                             (B, V, N, d)
//! layer:   x = LN(x + mamba(x)) + LN(x + reversed mamba(x));  x = LN(x + ffn(x))
//! output = W' · [LN(x) of all patches of a variable]               (B, V, H)
//! ```
//!
//! Mamba+ ([`Mamba1Config::forget_gate`]) lets the skip through where the gate is closed. Whether the variables are mixed is
//! decided by the series-relation-aware decider, [`mixes_channels`] (section 3.3), from the training data.

use super::layers::{Activation, FeedForward, Input, Sizes, WindowNorm, drop, pointwise};
use candle_core::{Module, Result, Tensor};
use mamba_core::mamba1::Pass;
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Error, Mamba1, Mamba1Config, ParamBuilder, Rng};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of Bi-Mamba+.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BiMambaConfig {
    /// Width of a token.
    pub d_model: usize,
    /// Width inside the feed-forward layers.
    pub d_ff: usize,
    /// Layers.
    pub e_layers: usize,
    /// The mixers.
    pub ssm_cfg: Mamba1Config,
    /// Steps in a patch.
    pub patch_len: usize,
    /// Steps between the starts of two patches.
    pub stride: usize,
    /// Dropout.
    pub dropout: f64,
    /// Non-linearity of the feed-forward layers.
    pub activation: Activation,
    /// Whether every window is normalised by its own mean and deviation.
    pub revin: bool,
    /// Whether the mixers run along time in each variable alone, rather than across the variables in each patch; null
    /// asks the decider, with `threshold`, once the training data is known.
    pub channel_independent: Option<bool>,
    /// Correlation from which the decider takes two variables for related.
    pub threshold: f64,
}

impl Default for BiMambaConfig {
    fn default() -> Self {
        Self {
            d_model: 64,
            d_ff: 128,
            e_layers: 2,
            ssm_cfg: Mamba1Config {
                d_state: 2,
                d_conv: 2,
                expand: 1,
                forget_gate: true,
                ..Mamba1Config::default()
            },
            patch_len: 24,
            stride: 12,
            dropout: 0.1,
            activation: Activation::Gelu,
            revin: true,
            channel_independent: None,
            threshold: 0.6,
        }
    }
}

impl BiMambaConfig {
    /// Refuses patches that do not fit into the window.
    pub(crate) fn validate(&self, sizes: Sizes) -> mamba_core::Result<()> {
        let Self { patch_len, stride, .. } = *self;
        if stride == 0 || patch_len == 0 || patch_len > sizes.seq_len {
            return Err(Error::Config(format!(
                "patches of {patch_len} steps, {stride} apart, do not fit into {} steps",
                sizes.seq_len
            )));
        }
        Ok(())
    }

    /// Starts of the patches. A window that the stride does not divide is extended with its last value to the next
    /// multiple.
    fn patches(&self, seq_len: usize) -> usize {
        let padded = seq_len.next_multiple_of(self.stride);
        (padded - self.patch_len) / self.stride + 1
    }
}

/// The series-relation-aware decider: whether, judged by the correlations of the training data (row-major, V × V), the
/// variables are related enough to be mixed. r is the largest number of variables that one variable is correlated with by
/// `threshold` or more, over the largest number that one is correlated with positively; mix if `r >= 1 - threshold`.
pub fn mixes_channels(correlations: &[f64], n_vars: usize, threshold: f64) -> bool {
    let most = |least: f64| {
        let others = |row: &[f64]| row.iter().filter(|&&c| c >= least).count().saturating_sub(1);
        correlations.chunks(n_vars.max(1)).map(others).max().unwrap_or(0)
    };
    match most(0.0) {
        0 => false,
        positive => most(threshold) as f64 / positive as f64 >= 1.0 - threshold,
    }
}

/// Bi-Mamba+.
#[derive(Clone, Debug)]
pub struct BiMambaPlus {
    patch_embedding: Linear,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    cfg: BiMambaConfig,
    channel_independent: bool,
    patches: usize,
}

#[derive(Clone, Debug)]
struct Layer {
    forward: Mamba1,
    reverse: Mamba1,
    norm_forward: Norm,
    norm_reverse: Norm,
    ffn: FeedForward,
    norm_ffn: Norm,
}

impl Layer {
    fn new(cfg: &BiMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        let d = cfg.d_model;
        let norm = |name: &str| Norm::new(NormKind::Layer, d, 1e-5, &pb.pp(name).pp("norm"));
        Ok(Self {
            forward: Mamba1::new(d, &cfg.ssm_cfg, 1, &pb.pp("mamba_forward"))?,
            reverse: Mamba1::new(d, &cfg.ssm_cfg, 1, &pb.pp("mamba_backward"))?,
            norm_forward: norm("addnorm_for")?,
            norm_reverse: norm("addnorm_back")?,
            ffn: FeedForward {
                inner: pointwise(d, cfg.d_ff, &pb.pp("ffn.0"))?,
                outer: pointwise(cfg.d_ff, d, &pb.pp("ffn.3"))?,
                activation: cfg.activation,
                dropout: cfg.dropout,
            },
            norm_ffn: norm("addnorm_ffn")?,
        })
    }

    /// `(sequences, tokens, d)` → the same.
    fn forward(&self, x: &Tensor, rng: &mut Option<Rng>) -> Result<Tensor> {
        let (forth, _) = self.norm_forward.forward_residual(&self.forward.forward(x)?, Some(x))?;
        let reverse = Pass { reverse: true, ..Pass::default() };
        let back = self.reverse.forward_pass(x, reverse)?;
        let (back, _) = self.norm_reverse.forward_residual(&back, Some(x))?;
        let x = (forth + back)?;
        let y = drop(&self.ffn.forward(&x, rng)?, self.ffn.dropout, rng)?;
        Ok(self.norm_ffn.forward_residual(&y, Some(&x))?.0)
    }
}

impl BiMambaPlus {
    /// Parameters under upstream's names. Without an answer in the config, the variables are kept apart.
    pub fn new(cfg: &BiMambaConfig, sizes: Sizes, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate(sizes)?;
        let (d, patches) = (cfg.d_model, cfg.patches(sizes.seq_len));
        let encoder = pb.pp("encoder");
        let layers = (0..cfg.e_layers).map(|i| Layer::new(cfg, &encoder.pp("mamba_layers").pp(i)));
        Ok(Self {
            patch_embedding: Linear::new(
                cfg.patch_len,
                d,
                true,
                &pb.pp("local_token_layer.value_embedding"),
            )?,
            layers: layers.collect::<Result<_>>()?,
            norm: Norm::new(NormKind::Layer, d, 1e-5, &encoder.pp("norm"))?,
            head: Linear::new(d * patches, sizes.pred_len, true, &pb.pp("head.linear"))?,
            cfg: cfg.clone(),
            channel_independent: cfg.channel_independent.unwrap_or(true),
            patches,
        })
    }

    /// `(B, L, V)` → `(B, H, V)`.
    pub fn forward(&self, input: &Input, rng: &mut Option<Rng>) -> Result<Tensor> {
        let (x, norm) = match self.cfg.revin {
            true => WindowNorm::apply(&input.values).map(|(x, norm)| (x, Some(norm)))?,
            false => (input.values.clone(), None),
        };
        let (b, len, v) = x.dims3()?;
        let (n, d) = (self.patches, self.cfg.d_model);
        let last = len - 1;
        let step = |p: usize, i: usize| (p * self.cfg.stride + i).min(last) as u32;
        let steps = (0..n).flat_map(|p| (0..self.cfg.patch_len).map(move |i| step(p, i)));
        let steps = Tensor::from_iter(steps, x.device())?;
        let patches = x.transpose(1, 2)?.contiguous()?.index_select(&steps, 2)?; // (B, V, N · patch_len)
        let patches = patches.reshape((b, v, n, self.cfg.patch_len))?;
        let tokens = drop(&self.patch_embedding.forward(&patches)?, self.cfg.dropout, rng)?; // (B, V, N, d)
        let mut x = match self.channel_independent {
            true => tokens.reshape((b * v, n, d))?,
            false => tokens.transpose(1, 2)?.contiguous()?.reshape((b * n, v, d))?,
        };
        for layer in &self.layers {
            x = layer.forward(&x, rng)?;
        }
        let x = self.norm.forward(&x)?;
        let x = match self.channel_independent {
            true => x.reshape((b, v, n * d))?,
            false => x.reshape((b, n, v, d))?.transpose(1, 2)?.contiguous()?.reshape((b, v, n * d))?,
        };
        let y = self.head.forward(&x)?.transpose(1, 2)?; // (B, H, V)
        norm.map_or_else(|| y.contiguous(), |norm| norm.invert(&y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decider_compares_the_most_related_variable_with_the_most_positive_one() {
        // Variable 0 is correlated with both others, of which only one reaches the threshold: r = 1/2.
        let correlations = [1.0, 0.9, 0.3, 0.9, 1.0, -0.2, 0.3, -0.2, 1.0];
        assert!(mixes_channels(&correlations, 3, 0.6), "0.5 >= 0.4");
        assert!(!mixes_channels(&correlations, 3, 0.4), "0.5 < 0.6");
        assert!(!mixes_channels(&[1.0], 1, 0.6), "nothing to mix");
        assert!(!mixes_channels(&[1.0, -0.5, -0.5, 1.0], 2, 0.6), "none positive");
    }

    #[test]
    fn patches_cover_the_window() {
        let cfg = |patch_len, stride| BiMambaConfig { patch_len, stride, ..Default::default() };
        assert_eq!(cfg(4, 2).patches(96), 47);
        assert_eq!(cfg(24, 12).patches(96), 7);
        assert_eq!(cfg(4, 2).patches(97), 48, "one patch more, with the last value repeated");
    }
}
