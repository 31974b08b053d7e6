//! Dual-path Mamba over time and frequency: one complex mask for each of the talkers.
//!
//! ```text
//! X               = spectrum of the mixture
//! x               = layer norm(convolution(|X|^γ · e^{i·arg X}))        (B, T, F', C), F' bands of a few bins
//! x               = blocks × [bidirectional Mamba over time, then over frequency]
//! M_1 … M_S       = transposed convolution(x)                           complex masks
//! Y_s             = M_s · X + (X - Σ_k M_k · X) / S
//! ```
//!
//! The blocks are those of SEMamba and of SPMamba (Li, Chen and others 2024, arXiv 2404.02063): pre-norm residual mixers both
//! ways, joined by a linear map. From SPMamba differ: neighbouring bins are joined once, by the stride of the first
//! convolution, instead of in every block; there is no attention; masks take the place of mapped spectra; spectra are
//! compressed on the way in. The last line (Wisdom and others 2019, arXiv 1811.08521) makes the talkers add up to the
//! mixture, so that nothing of a recording is lost.

use crate::model::TfMambaBlock;
use crate::stft::{StftConfig, istft, stft};
use candle_core::{Module, Result, Tensor};
use mamba_core::nn::{Norm, NormKind};
use mamba_core::{Error, Init, Mamba1Config, MixerConfig, ParamBuilder};
use mamba_kernels::{Conv2d, conv_transpose2d, conv2d};
use serde::{Deserialize, Serialize};

/// `config.json` of a separation model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeparatorConfig {
    /// `dual-path-mamba`.
    pub model_type: String,
    /// The spectrum.
    pub stft_cfg: StftConfig,
    /// Talkers, S.
    pub n_src: usize,
    /// Channels, C.
    pub channels: usize,
    /// Blocks.
    pub num_blocks: usize,
    /// Bins from one band to the next; a band hears twice as many on either side.
    pub band: usize,
    /// Power γ of the magnitudes on the way in.
    pub compress_factor: f64,
    /// States of a channel.
    pub d_state: usize,
    /// Taps of the mixers' convolution.
    pub d_conv: usize,
    /// Inner channels of the mixers, as a multiple.
    pub expand: usize,
    /// Other mixers than the Mamba-1 of `d_state`, `d_conv` and `expand`: {"type": "mamba2", …}.
    pub ssm_cfg: Option<MixerConfig>,
    /// Added under the root of the norms.
    pub norm_epsilon: f64,
}

impl Default for SeparatorConfig {
    fn default() -> Self {
        Self {
            model_type: Self::MODEL_TYPE.into(),
            stft_cfg: StftConfig { sampling_rate: 8000, n_fft: 256, hop_size: 128, win_size: 256 },
            n_src: 2,
            channels: 32,
            num_blocks: 4,
            band: 4,
            compress_factor: 0.5,
            d_state: 8,
            d_conv: 4,
            expand: 2,
            ssm_cfg: None,
            norm_epsilon: 1e-5,
        }
    }
}

impl SeparatorConfig {
    /// What `model_type` says.
    pub const MODEL_TYPE: &'static str = "dual-path-mamba";

    /// The names that [`SeparatorConfig::preset`] knows.
    pub const PRESETS: [&'static str; 2] = ["dpmamba-small", "dpmamba-base"];

    /// A named size.
    ///
    /// | name | channels | blocks | frames in a second | bands |
    /// |---|---|---|---|---|
    /// | `dpmamba-small` | 32 | 4 | 62.5 | 33 |
    /// | `dpmamba-base` | 64 | 6 | 125 | 65 |
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "dpmamba-small" => Some(Self::default()),
            "dpmamba-base" => Some(Self {
                stft_cfg: StftConfig { sampling_rate: 8000, n_fft: 256, hop_size: 64, win_size: 256 },
                channels: 64,
                num_blocks: 6,
                band: 2,
                d_state: 16,
                expand: 4,
                ..Self::default()
            }),
            _ => None,
        }
    }

    /// Refuses settings that make no model.
    ///
    /// # Errors
    /// The first impossible value.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.stft_cfg.validate()?;
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let bins = self.stft_cfg.bins();
        let problem = if self.model_type != Self::MODEL_TYPE {
            format!("model_type is {:?}, expected {:?}", self.model_type, Self::MODEL_TYPE)
        } else if !(2..=MOST_TALKERS).contains(&self.n_src) {
            format!("n_src is {}, expected 2 to {MOST_TALKERS}", self.n_src)
        } else if self.channels == 0 || self.num_blocks == 0 {
            "channels and num_blocks must be at least 1".to_string()
        } else if self.band == 0 || !(bins - 1).is_multiple_of(self.band) {
            format!("band is {}, expected a divisor of {}, half of n_fft", self.band, bins - 1)
        } else if !(positive(self.compress_factor) && positive(self.norm_epsilon)) {
            "compress_factor and norm_epsilon must be above 0".to_string()
        } else {
            return self.mixer().validate_for(self.channels);
        };
        Err(Error::Config(problem))
    }

    fn mixer(&self) -> MixerConfig {
        let Self { d_state, d_conv, expand, .. } = *self;
        let mamba = || Mamba1Config { d_state, d_conv, expand, ..Mamba1Config::default() }.into();
        self.ssm_cfg.clone().unwrap_or_else(mamba)
    }

    /// From bins to bands: three frames by two bands on either side and the bin between.
    fn bands(&self) -> ((usize, usize), Conv2d) {
        let pad_w = (self.band, self.band);
        let conv = Conv2d { stride: (1, self.band), pad_h: (1, 1), pad_w, ..Conv2d::default() };
        ((3, 2 * self.band + 1), conv)
    }
}

/// All orders of the talkers are tried: 24 for four.
const MOST_TALKERS: usize = 4;

/// The model.
#[derive(Clone, Debug)]
pub struct DualPathMamba {
    cfg: SeparatorConfig,
    encoder: (Tensor, Tensor),
    encoder_norm: Norm,
    blocks: Vec<TfMambaBlock>,
    decoder_norm: Norm,
    decoder: (Tensor, Tensor),
}

impl DualPathMamba {
    /// Parameters `encoder`, `encoder_norm`, `blocks`, `decoder_norm`, `decoder`.
    ///
    /// # Errors
    /// As [`SeparatorConfig::validate`].
    pub fn new(cfg: &SeparatorConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (c, masks) = (cfg.channels, 2 * cfg.n_src);
        let ((kh, kw), _) = cfg.bands();
        let norm = |name: &str| Norm::new(NormKind::Layer, c, cfg.norm_epsilon, &pb.pp(name));
        let block =
            |i: usize| TfMambaBlock::new(c, &cfg.mixer(), cfg.norm_epsilon, false, &pb.pp("blocks").pp(i));
        let (encoder, decoder) = (pb.pp("encoder"), pb.pp("decoder"));
        let inward = || Init::linear(2 * kh * kw);
        // Every output is fed by about 3 · 3 taps of each channel.
        let outward = || Init::linear(c * kh * 3);
        Ok(Self {
            encoder: (
                encoder.get((c, 2, kh, kw), "weight", inward())?,
                encoder.get_no_decay(c, "bias", inward())?,
            ),
            encoder_norm: norm("encoder_norm")?,
            blocks: (0..cfg.num_blocks).map(block).collect::<Result<_>>()?,
            decoder_norm: norm("decoder_norm")?,
            decoder: (
                decoder.get((c, masks, kh, kw), "weight", outward())?,
                decoder.get_no_decay(masks, "bias", outward())?,
            ),
            cfg: cfg.clone(),
        })
    }

    /// Mixtures `(B, samples)`, whose length is a multiple of the hop → talkers `(B, S, samples)`, which add up to the
    /// mixture. Mixtures should have a mean square of about 1.
    pub fn forward(&self, mixture: &Tensor) -> Result<Tensor> {
        let (stft_cfg, sources) = (&self.cfg.stft_cfg, self.cfg.n_src);
        let spectrum = stft(mixture, stft_cfg)?; // (B, T, F, 2)
        let power = (spectrum.sqr()?.sum_keepdim(3)? + 1e-8)?;
        let x = spectrum.broadcast_mul(&power.powf((self.cfg.compress_factor - 1.0) / 2.0)?)?;
        let (_, conv) = self.cfg.bands();
        let x = conv2d(&[&x], &self.encoder.0, Some(&self.encoder.1), conv)?; // (B, T, F', C)
        let mut x = self.encoder_norm.forward(&x)?;
        for block in &self.blocks {
            x = block.forward(&x, None)?;
        }
        let x = self.decoder_norm.forward(&x)?;
        let masks = conv_transpose2d(&x, &self.decoder.0, Some(&self.decoder.1), conv)?; // (B, T, F, 2·S)
        let part = |x: &Tensor, i: usize| x.narrow(3, i, 1);
        let (re, im) = (part(&spectrum, 0)?, part(&spectrum, 1)?); // (B, T, F, 1)
        let masked = |s: usize| {
            let (a, b) = (part(&masks, 2 * s)?, part(&masks, 2 * s + 1)?);
            Tensor::cat(&[((&a * &re)? - (&b * &im)?)?, ((&a * &im)? + (&b * &re)?)?], 3) // (B, T, F, 2)
        };
        let masked = (0..sources).map(masked).collect::<Result<Vec<_>>>()?;
        let sum = masked.iter().skip(1).try_fold(masked[0].clone(), |sum, y| sum + y)?;
        let rest = ((&spectrum - sum)? / sources as f64)?;
        let signals = masked.iter().map(|y| istft(&(y + &rest)?, stft_cfg)).collect::<Result<Vec<_>>>()?;
        Tensor::stack(&signals, 1) // (B, S, samples)
    }
}
