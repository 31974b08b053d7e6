//! Audio Mamba: a class for a spectrogram, by bidirectional Mamba blocks (Erol et al. 2024, arXiv 2406.03344).
//!
//! ```text
//! tokens  = patches of the log-mel spectrogram, mapped to embed_dim, + positions
//! tokens  = a class token put in the middle
//! tokens  = depth × [add → RMS norm → Vim's second bidirectional mixer, its directions halved]
//! classes = head(RMS norm(class token))
//! ```
//!
//! Beside the paper's patches there is [`Embedding::Convolutions`], for little data: a few strided convolutions, after which
//! a token is a moment with all its bands. A sound that is a little higher then moves inside a token that has already
//! heard it, and positions need no learning. Beside the class token there is the mean of all tokens.

use super::features::MelConfig;
use candle_core::{Module, Result, Tensor};
use mamba_core::bidirectional::{BiMamba, Combine, Orientation};
use mamba_core::directions::{Bidirectional, Scheme};
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::rng::dropout;
use mamba_core::{Block, Error, Init, Mamba1Config, MixerConfig, ParamBuilder, Rng};
use mamba_kernels::{Conv2d, conv2d, instance_norm};
use serde::{Deserialize, Serialize};

/// How a spectrogram becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Embedding {
    /// Upstream's: rectangles of (bands, frames), which may overlap.
    Patches {
        /// Bands and frames of a patch.
        size: (usize, usize),
        /// Bands and frames from one patch to the next.
        strides: (usize, usize),
    },
    /// 3 × 3 convolutions of so many channels, each with instance norm and PReLU. All halve the bands and the last one the
    /// frames too.
    Convolutions {
        /// Channels of each.
        channels: Vec<usize>,
    },
}

/// What the classes are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// A token of its own in the middle of the sequence.
    ClassToken,
    /// The mean of all tokens.
    Mean,
}

/// `config.json` of a tagging model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaggerConfig {
    /// `audio-mamba`.
    pub model_type: String,
    /// The classes, by number. Training fills them in.
    pub labels: Vec<String>,
    /// The spectrogram.
    pub mel: MelConfig,
    /// Frames that the model sees at once: a shorter clip is filled up, a longer one is heard in several windows.
    pub frames: usize,
    /// How the spectrogram becomes tokens.
    pub embedding: Embedding,
    /// Channels.
    pub embed_dim: usize,
    /// Blocks.
    pub depth: usize,
    /// States of a channel.
    pub d_state: usize,
    /// Taps of the mixers' convolution.
    pub d_conv: usize,
    /// Inner channels of the mixers, as a multiple.
    pub expand: usize,
    /// Other mixers than the Mamba-1 of `d_state`, `d_conv` and `expand`: {"type": "mamba2", …}.
    pub ssm_cfg: Option<MixerConfig>,
    /// What the classes are read from.
    pub pooling: Pooling,
    /// Added under the root of the norms.
    pub norm_epsilon: f64,
    /// Share of the tokens' values, and of the head's inputs, that training leaves out.
    pub dropout: f64,
}

impl Default for TaggerConfig {
    fn default() -> Self {
        Self {
            model_type: Self::MODEL_TYPE.into(),
            labels: Vec::new(),
            mel: MelConfig::default(),
            frames: 100,
            embedding: Embedding::Convolutions { channels: vec![16, 32] },
            embed_dim: 64,
            depth: 3,
            d_state: 16,
            d_conv: 4,
            expand: 2,
            ssm_cfg: None,
            pooling: Pooling::Mean,
            norm_epsilon: 1e-5,
            dropout: 0.2,
        }
    }
}

impl TaggerConfig {
    /// What `model_type` says.
    pub const MODEL_TYPE: &'static str = "audio-mamba";

    /// The names that [`TaggerConfig::preset`] knows.
    pub const PRESETS: [&'static str; 4] = ["aum-digits", "aum-tiny", "aum-small", "aum-base"];

    /// A named size: `aum-digits` for short clips and little data, or the published ones.
    ///
    /// | name | channels | blocks | spectrogram | |
    /// |---|---|---|---|---|
    /// | `aum-digits` | 64 | 3 | 1 s at 8 kHz, 40 bands | convolutions, mean |
    /// | `aum-tiny` | 192 | 24 | 1024 frames at 16 kHz, 128 bands | patches of 16 × 16, class token |
    /// | `aum-small` | 384 | 24 | | |
    /// | `aum-base` | 768 | 24 | | |
    pub fn preset(name: &str) -> Option<Self> {
        let embed_dim = match name {
            "aum-digits" => return Some(Self::default()),
            "aum-tiny" => 192,
            "aum-small" => 384,
            "aum-base" => 768,
            _ => return None,
        };
        let mel = MelConfig {
            sampling_rate: 16_000,
            n_fft: 400,
            hop_size: 160,
            n_mels: 128,
            f_min: 20.0,
            f_max: 8000.0,
            range_db: 80.0,
            trim_db: None,
        };
        let embedding = Embedding::Patches { size: (16, 16), strides: (16, 16) };
        let pooling = Pooling::ClassToken;
        Some(Self {
            mel,
            frames: 1024,
            embedding,
            embed_dim,
            depth: 24,
            pooling,
            dropout: 0.0,
            ..Self::default()
        })
    }

    /// Refuses settings that make no model.
    ///
    /// # Errors
    /// The first impossible value.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.mel.validate()?;
        let fits = |size: usize, whole: usize| (1..=whole).contains(&size);
        let problem = if self.model_type != Self::MODEL_TYPE {
            format!("model_type is {:?}, expected {:?}", self.model_type, Self::MODEL_TYPE)
        } else if self.embed_dim == 0 || self.depth == 0 || self.frames < 2 {
            "embed_dim and depth must be at least 1, frames at least 2".to_string()
        } else if !(0.0..1.0).contains(&self.dropout) {
            format!("dropout is {}, expected 0 up to 1", self.dropout)
        } else if !(self.norm_epsilon > 0.0 && self.norm_epsilon.is_finite()) {
            "norm_epsilon must be above 0".to_string()
        } else {
            match &self.embedding {
                Embedding::Patches { size, strides }
                    if !(fits(size.0, self.mel.n_mels)
                        && fits(size.1, self.frames)
                        && strides.0 > 0
                        && strides.1 > 0) =>
                {
                    format!(
                        "patches of {size:?} bands and frames, {strides:?} apart, do not fit into {} bands and {} frames",
                        self.mel.n_mels, self.frames
                    )
                }
                Embedding::Convolutions { channels } if channels.is_empty() || channels.contains(&0) => {
                    format!("channels of the convolutions are {channels:?}, expected numbers above 0")
                }
                _ => return self.mixer().validate_for(self.embed_dim),
            }
        };
        Err(Error::Config(problem))
    }

    /// Samples that the model sees at once.
    pub fn window(&self) -> usize {
        self.frames * self.mel.hop_size
    }

    fn mixer(&self) -> MixerConfig {
        let Self { d_state, d_conv, expand, .. } = *self;
        let mamba = || Mamba1Config { d_state, d_conv, expand, ..Mamba1Config::default() }.into();
        self.ssm_cfg.clone().unwrap_or_else(mamba)
    }

    /// Rows and columns of tokens that patches give.
    fn grid(&self, size: (usize, usize), strides: (usize, usize)) -> (usize, usize) {
        ((self.mel.n_mels - size.0) / strides.0 + 1, (self.frames - size.1) / strides.1 + 1)
    }
}

/// The model.
#[derive(Clone, Debug)]
pub struct AudioMamba {
    stem: Stem,
    /// `(1, 1, embed_dim)`.
    class_token: Option<Tensor>,
    blocks: Vec<Block<BothWays>>,
    norm: Norm,
    head: Linear,
    dropout: f64,
}

/// The mean of a scan from either end; the projections are shared.
#[derive(Clone, Debug)]
enum BothWays {
    /// Mamba-1 under upstream's names.
    Vim(Box<Bidirectional>),
    /// Any other mixer.
    Tied(Box<BiMamba>),
}

#[derive(Clone, Debug)]
enum Stem {
    Patches { weight: Tensor, bias: Tensor, positions: Tensor, strides: (usize, usize) },
    Convolutions { layers: Vec<Layer>, output: Linear },
}

/// A convolution of the stem, and the norm behind it.
#[derive(Clone, Debug)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
    norm: (Tensor, Tensor),
    slope: Tensor,
}

impl AudioMamba {
    /// Parameters under upstream's names: `patch_embed.proj`, `pos_embed`, `cls_token`, `layers`, `norm_f`, `head`; those
    /// of the convolutions are under `stem`.
    ///
    /// # Errors
    /// As [`TaggerConfig::validate`], and fewer than two classes.
    pub fn new(cfg: &TaggerConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        if cfg.labels.len() < 2 {
            candle_core::bail!("a model of {} classes: at least 2 are needed", cfg.labels.len());
        }
        let d = cfg.embed_dim;
        let token = Init::Normal { std: 0.02 };
        let class_token = match cfg.pooling {
            Pooling::ClassToken => Some(pb.get_no_decay((1, 1, d), "cls_token", token.clone())?),
            Pooling::Mean => None,
        };
        let block = |i: usize| {
            let pb = pb.pp("layers").pp(i);
            let mixer = BothWays::new(cfg, i, &pb.pp("mixer"))?;
            Block::new(d, (NormKind::Rms, cfg.norm_epsilon), mixer, None, &pb)
        };
        let head = Linear::with_init((cfg.labels.len(), d), token, Some(Init::Zeros), &pb.pp("head"))?;
        Ok(Self {
            stem: Stem::new(cfg, pb)?,
            class_token,
            blocks: (0..cfg.depth).map(block).collect::<Result<_>>()?,
            norm: Norm::new(NormKind::Rms, d, cfg.norm_epsilon, &pb.pp("norm_f"))?,
            head,
            dropout: cfg.dropout,
        })
    }

    /// Spectrograms `(B, frames, bands)` → scores `(B, classes)`, before the softmax. With a generator, training's dropout
    /// is on.
    pub fn forward(&self, mel: &Tensor, mut rng: Option<&mut Rng>) -> Result<Tensor> {
        let mut drop = |x: Tensor| match &mut rng {
            Some(rng) => dropout(&x, self.dropout, rng),
            None => Ok(x),
        };
        let mut x = drop(self.stem.forward(mel)?)?; // (B, L, D)
        let (b, len, d) = x.dims3()?;
        let middle = len / 2;
        if let Some(token) = &self.class_token {
            let token = token.broadcast_as((b, 1, d))?;
            let (before, after) = (x.narrow(1, 0, middle)?, x.narrow(1, middle, len - middle)?);
            x = Tensor::cat(&[&before, &token, &after], 1)?; // (B, L + 1, D)
        }
        let (mut hidden, mut residual) = (x, None);
        for block in &self.blocks {
            let (next, sum) = block.forward(&hidden, residual.as_ref(), |mixer, x| mixer.forward(x))?;
            (hidden, residual) = (next, Some(sum));
        }
        let (x, _) = self.norm.forward_residual(&hidden, residual.as_ref())?;
        let pooled = match &self.class_token {
            Some(_) => x.narrow(1, middle, 1)?.squeeze(1)?,
            None => x.mean(1)?,
        }; // (B, D)
        self.head.forward(&drop(pooled)?)
    }
}

impl BothWays {
    fn new(cfg: &TaggerConfig, layer: usize, pb: &ParamBuilder) -> Result<Self> {
        let (d, depth) = (cfg.embed_dim, cfg.depth);
        Ok(match cfg.mixer() {
            MixerConfig::Mamba1(mamba) => {
                let scheme = Scheme::VimV2 { halve: true };
                Self::Vim(Box::new(Bidirectional::new(d, &mamba, scheme, layer, depth, pb)?))
            }
            other => Self::Tied(Box::new(BiMamba::new(d, other, (true, true), Combine::Add, depth, pb)?)),
        })
    }

    /// `(B, L, D)` → `(B, L, D)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Vim(mixer) => mixer.forward(x, None),
            Self::Tied(mixer) => mixer.forward(x, Orientation::Given, None)? * 0.5,
        }
    }
}

impl Stem {
    fn new(cfg: &TaggerConfig, pb: &ParamBuilder) -> Result<Self> {
        let d = cfg.embed_dim;
        match &cfg.embedding {
            Embedding::Patches { size, strides } => {
                let (rows, columns) = cfg.grid(*size, *strides);
                let proj = pb.pp("patch_embed").pp("proj");
                let init = || Init::linear(size.0 * size.1);
                let positions = Init::Normal { std: 0.02 };
                Ok(Self::Patches {
                    weight: proj.get((d, 1, size.0, size.1), "weight", init())?,
                    bias: proj.get_no_decay(d, "bias", init())?,
                    positions: pb.get_no_decay((1, rows * columns, d), "pos_embed", positions)?,
                    strides: *strides,
                })
            }
            Embedding::Convolutions { channels } => {
                let (mut inputs, mut bands) = (1, cfg.mel.n_mels);
                let mut layers = Vec::new();
                for (i, &c) in channels.iter().enumerate() {
                    let pb = pb.pp("stem").pp(i);
                    let init = || Init::linear(inputs * 9);
                    layers.push(Layer {
                        weight: pb.get((c, inputs, 3, 3), "weight", init())?,
                        bias: pb.get_no_decay(c, "bias", init())?,
                        norm: (
                            pb.pp("norm").get_no_decay(c, "weight", Init::Ones)?,
                            pb.pp("norm").get_no_decay(c, "bias", Init::Zeros)?,
                        ),
                        slope: pb.pp("act").get_no_decay(c, "weight", Init::Const(0.25))?,
                    });
                    (inputs, bands) = (c, bands.div_ceil(2));
                }
                let output = Linear::new(inputs * bands, d, true, &pb.pp("stem").pp("output"))?;
                Ok(Self::Convolutions { layers, output })
            }
        }
    }

    /// `(B, frames, bands)` → `(B, L, D)`.
    fn forward(&self, mel: &Tensor) -> Result<Tensor> {
        match self {
            Self::Patches { weight, bias, positions, strides } => {
                let image = mel.transpose(1, 2)?.contiguous()?.unsqueeze(3)?; // (B, bands, frames, 1)
                let conv = Conv2d { stride: *strides, ..Conv2d::default() };
                let patches = conv2d(&[&image], weight, Some(bias), conv)?; // (B, rows, columns, D)
                patches.flatten(1, 2)?.broadcast_add(positions)
            }
            Self::Convolutions { layers, output } => {
                let mut x = mel.unsqueeze(3)?; // (B, T, F, 1)
                for (i, layer) in layers.iter().enumerate() {
                    let stride = (if i + 1 == layers.len() { 2 } else { 1 }, 2);
                    let conv = Conv2d { stride, pad_h: (1, 1), pad_w: (1, 1), ..Conv2d::default() };
                    let y = conv2d(&[&x], &layer.weight, Some(&layer.bias), conv)?; // (B, T', F', C)
                    x = instance_norm(&y, &layer.norm.0, &layer.norm.1, Some(&layer.slope), 1e-5)?;
                }
                output.forward(&x.flatten_from(2)?) // (B, T', F'·C) → (B, T', D)
            }
        }
    }
}
