//! The plain Mamba forecasters of the Time-Series-Library (thuml): one Mamba, or a stack of pre-norm residual ones, over
//! the steps of the window; the last H outputs are the forecast. They stand here as baselines.
//!
//! ```text
//! x      = circular conv of width 3 over the steps + positions (+ W · calendar features)      (B, L, d)
//! Mamba:       x = mamba(x)
//! MambaSimple: x = x + mamba(RMS(x)), e_layers times;  x = RMS(x)
//! output = W' · x of the last H steps                                                          (B, H, V)
//! ```

use super::layers::{Input, Sizes, WindowNorm, drop, positions};
use candle_core::{Module, Result, Tensor};
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Error, Init, Mixer, MixerConfig, ParamBuilder, Rng};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TslibConfig {
    /// Width.
    pub d_model: usize,
    /// Residual layers; null for a single mixer without residual and norms.
    pub e_layers: Option<usize>,
    /// The mixers.
    pub ssm_cfg: MixerConfig,
    /// Dropout behind the embedding.
    pub dropout: f64,
    /// Whether calendar features are seen.
    pub use_marks: bool,
}

impl Default for TslibConfig {
    fn default() -> Self {
        Self { d_model: 128, e_layers: None, ssm_cfg: MixerConfig::default(), dropout: 0.1, use_marks: true }
    }
}

impl TslibConfig {
    /// Refuses horizons beyond the look-back: there would be no output for them.
    pub(crate) fn validate(&self, sizes: Sizes) -> mamba_core::Result<()> {
        match sizes.pred_len > sizes.seq_len {
            true => Err(Error::Config(format!(
                "this model forecasts at most as many steps as it sees: pred_len is {}, seq_len {}",
                sizes.pred_len, sizes.seq_len
            ))),
            false => Ok(()),
        }
    }
}

/// A plain Mamba forecaster.
#[derive(Clone, Debug)]
pub struct TslibMamba {
    conv: Tensor,
    positions: Tensor,
    marks: Option<Linear>,
    body: Body,
    out_layer: Linear,
    pred_len: usize,
    dropout: f64,
}

#[derive(Clone, Debug)]
enum Body {
    Single(Box<Mixer>),
    Residual { layers: Vec<(Norm, Mixer)>, norm: Norm },
}

impl TslibMamba {
    /// Parameters under upstream's names.
    pub fn new(cfg: &TslibConfig, sizes: Sizes, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate(sizes)?;
        let (d, v) = (cfg.d_model, sizes.n_vars);
        let embedding = pb.pp("embedding");
        // kaiming_normal_ for a leaky ReLU of slope 0.01
        let init = Init::Normal { std: (2.0 / (1.0 + 0.01f64.powi(2)) / (3 * v) as f64).sqrt() };
        let conv = embedding.pp("value_embedding.tokenConv").get((d, v, 3), "weight", init)?;
        let norm = |pb: &ParamBuilder| Norm::new(NormKind::Rms, d, 1e-5, pb);
        let body = match cfg.e_layers {
            None => Body::Single(Box::new(Mixer::new(d, &cfg.ssm_cfg, 1, &pb.pp("mamba"))?)),
            Some(n) => {
                let layer = |i: usize| {
                    let pb = pb.pp("layers").pp(i);
                    Ok((norm(&pb.pp("norm"))?, Mixer::new(d, &cfg.ssm_cfg, 1, &pb.pp("mixer"))?))
                };
                Body::Residual {
                    layers: (0..n).map(layer).collect::<Result<_>>()?,
                    norm: norm(&pb.pp("norm"))?,
                }
            }
        };
        let marks = match cfg.use_marks && sizes.n_marks > 0 {
            true => Some(Linear::new(sizes.n_marks, d, false, &embedding.pp("temporal_embedding.embed"))?),
            false => None,
        };
        Ok(Self {
            conv,
            positions: positions(sizes.seq_len, d, pb.dtype(), pb)?,
            marks,
            body,
            out_layer: Linear::new(d, v, false, &pb.pp("out_layer"))?,
            pred_len: sizes.pred_len,
            dropout: cfg.dropout,
        })
    }

    /// The table of positions, which upstream saves.
    pub(crate) fn ignores(name: &str) -> bool {
        name == "embedding.position_embedding.pe"
    }

    /// `(B, L, V)` → `(B, H, V)`.
    pub fn forward(&self, input: &Input, rng: &mut Option<Rng>) -> Result<Tensor> {
        let (x, norm) = WindowNorm::apply(&input.values)?;
        let len = x.dim(1)?;
        let ends = |at| x.narrow(1, at, 1);
        let before = Tensor::cat(&[&ends(len - 1)?, &x.narrow(1, 0, len - 1)?], 1)?;
        let after = Tensor::cat(&[&x.narrow(1, 1, len - 1)?, &ends(0)?], 1)?;
        let taps = Tensor::cat(&[&before, &x, &after], 2)?; // (B, L, 3 V)
        // made here and not beforehand: a copy would not see what training changes
        let conv = self.conv.permute((0, 2, 1))?.contiguous()?.flatten_from(1)?; // (d, 3 V)
        let conv = Linear::from_tensors(conv, None);
        let mut x = conv.forward(&taps)?.broadcast_add(&self.positions)?; // (B, L, d)
        if let (Some(embed), Some(marks)) = (&self.marks, &input.marks) {
            x = (x + embed.forward(marks)?)?;
        }
        let mut x = drop(&x, self.dropout, rng)?;
        match &self.body {
            Body::Single(mamba) => x = mamba.forward(&x)?,
            Body::Residual { layers, norm } => {
                for (norm, mamba) in layers {
                    x = (mamba.forward(&norm.forward(&x)?)? + x)?;
                }
                x = norm.forward(&x)?;
            }
        }
        let last = x.narrow(1, len - self.pred_len, self.pred_len)?.contiguous()?;
        norm.invert(&self.out_layer.forward(&last)?)
    }
}
