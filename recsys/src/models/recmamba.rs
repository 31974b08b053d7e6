//! RecMamba (Yang and others 2024, arXiv 2403.16371): one bare Mamba over lifelong histories, of thousands of items.
//!
//! ```text
//! h = Mamba(dropout(√d · E[items] + P[positions]))
//! scores = h·Eᵀ
//! ```
//!
//! There is no residual, no norm and no feed-forward layer. The published code pads on the left and lets padding into the
//! state; packed sequences have none.

use super::parts::{Dropout, INIT_STD};
use candle_core::{Module, Result, Tensor, bail};
use mamba_core::nn::Embedding;
use mamba_core::{Error, Init, Mamba1Config, Mixer, MixerConfig, ParamBuilder, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// Hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecMambaConfig {
    /// Width of embedding and mixer, d.
    pub hidden_size: usize,
    /// Dropout of the embedding while training.
    pub dropout_prob: f64,
    /// The mixer.
    pub mixer: MixerConfig,
}

impl Default for RecMambaConfig {
    fn default() -> Self {
        let mixer = Mamba1Config { d_state: 32, ..Mamba1Config::default() }.into();
        Self { hidden_size: 64, dropout_prob: 0.2, mixer }
    }
}

impl RecMambaConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        if !(0.0..1.0).contains(&self.dropout_prob) {
            let p = self.dropout_prob;
            return Err(Error::Config(format!("dropout_prob is {p}, must be at least 0 and below 1")));
        }
        self.mixer.validate_for(self.hidden_size)
    }
}

/// The network without its head.
#[derive(Clone, Debug)]
pub struct RecMamba {
    item_embedding: Embedding,
    position_embedding: Embedding,
    mamba: Mixer,
    dropout_prob: f64,
}

impl RecMamba {
    /// The parameters of the builder, for items `1..n_items` and padding, and sequences of at most `max_length` items.
    pub fn new(cfg: &RecMambaConfig, n_items: usize, max_length: usize, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let d = cfg.hidden_size;
        let table = |name: &str, rows: usize| {
            let table = pb.pp(name).get((rows, d), "weight", Init::Normal { std: INIT_STD })?;
            Ok::<_, candle_core::Error>(Embedding::from_tensor(table))
        };
        Ok(Self {
            item_embedding: table("item_embedding", n_items)?,
            position_embedding: table("position_embedding", max_length)?,
            mamba: Mixer::new(d, &cfg.mixer, 1, &pb.pp("mamba"))?,
            dropout_prob: cfg.dropout_prob,
        })
    }

    /// The item embedding `(n_items, d)`, which is the head's weight too.
    pub fn item_table(&self) -> &Tensor {
        self.item_embedding.weight()
    }

    /// The longest sequence.
    pub fn positions(&self) -> usize {
        self.position_embedding.weight().dims()[0]
    }

    /// `items` `(1, L)` → `(1, L, d)`; with a generator, dropout is on.
    pub fn forward(&self, items: &Tensor, segments: &Segments, rng: Option<&mut Rng>) -> Result<Tensor> {
        let positions: Vec<u32> = segments.iter().flat_map(|s| 0..s.len() as u32).collect();
        let (limit, d) = (self.positions(), self.item_table().dim(1)?);
        if items.dim(0)? != 1 || positions.len() != items.dim(1)? {
            bail!("RecMamba takes one row of packed sequences, got {:?}", items.dims())
        }
        if positions.iter().any(|&position| position as usize >= limit) {
            bail!("RecMamba knows {limit} positions, and a sequence is longer")
        }
        let positions = Tensor::new(positions, items.device())?.unsqueeze(0)?; // (1, L)
        let items = (self.item_embedding.forward(items)? * (d as f64).sqrt())?; // (1, L, d)
        let embedded = (items + self.position_embedding.forward(&positions)?)?;
        let embedded = Dropout::new(self.dropout_prob, rng).apply(embedded)?;
        self.mamba.forward_with(&embedded, Some(segments), None)
    }
}
