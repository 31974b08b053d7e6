//! Mamba4Rec (Liu, Lin, Liu and others 2024, arXiv 2403.03900): SASRec's task with Mamba in the place of attention.
//!
//! ```text
//! h₀ = LN(dropout(E[items]))
//! m  = LN(dropout(Mamba(h)) + h)          one layer: LN(dropout(Mamba(h))), without the residual
//! h' = LN(dropout(W₂ dropout(gelu(W₁ m))) + m)
//! scores = h·Eᵀ
//! ```
//!
//! There is no position embedding: the state carries the order. Padding is an item like any other to the published
//! code; here sequences are packed and never meet any. Parameter names and initialisation are those of the published
//! code under RecBole, which draws *every* linear weight from N(0, 0.02²) and zeroes every linear bias, also inside
//! Mamba, whose step sizes thus start at softplus(0) = 0.69; `"initialization": "mamba"` keeps Mamba's own. The mixer
//! may be Mamba-2 as well.

use super::parts::{Dropout, FeedForward, INIT_STD, Initialization, LayerNorm, new_mixer};
use candle_core::{Module, Result, Tensor};
use mamba_core::mixer::Pass;
use mamba_core::nn::Embedding;
use mamba_core::{Error, Init, Mamba1Config, Mixer, MixerConfig, MixerState, ParamBuilder, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// Hyper-parameters, with RecBole's names where it has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba4RecConfig {
    /// Width of embedding and layers, d.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Dropout while training.
    pub dropout_prob: f64,
    /// Initial weights of the mixers.
    pub initialization: Initialization,
    /// The mixers; Mamba-1 in the paper.
    pub mixer: MixerConfig,
}

impl Default for Mamba4RecConfig {
    fn default() -> Self {
        Self {
            hidden_size: 64,
            num_layers: 1,
            dropout_prob: 0.2,
            initialization: Initialization::default(),
            mixer: Mamba1Config { d_state: 32, ..Mamba1Config::default() }.into(),
        }
    }
}

impl Mamba4RecConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        if self.hidden_size == 0 || self.num_layers == 0 {
            let (d, n) = (self.hidden_size, self.num_layers);
            return Err(Error::Config(format!("hidden_size {d} and num_layers {n} must be at least 1")));
        }
        if !(0.0..1.0).contains(&self.dropout_prob) {
            let p = self.dropout_prob;
            return Err(Error::Config(format!("dropout_prob is {p}, must be at least 0 and below 1")));
        }
        self.mixer.validate_for(self.hidden_size)
    }
}

/// The network without its head.
#[derive(Clone, Debug)]
pub struct Mamba4Rec {
    item_embedding: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    dropout_prob: f64,
}

#[derive(Clone, Debug)]
struct Layer {
    mamba: Mixer,
    norm: LayerNorm,
    ffn: FeedForward,
}

/// What the layers remember of each sequence's items so far.
#[derive(Clone, Debug)]
pub struct Mamba4RecState {
    /// The mixers' states, layer by layer.
    pub layers: Vec<MixerState>,
}

impl Mamba4Rec {
    /// The parameters of the builder, for items `1..n_items` and padding.
    pub fn new(cfg: &Mamba4RecConfig, n_items: usize, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let d = cfg.hidden_size;
        let table = pb.pp("item_embedding").get((n_items, d), "weight", Init::Normal { std: INIT_STD })?;
        let layer = |i: usize| {
            let pb = pb.pp("mamba_layers").pp(i);
            Ok(Layer {
                mamba: new_mixer(d, &cfg.mixer, cfg.initialization, &pb.pp("mamba"))?,
                norm: LayerNorm::new(d, &pb.pp("LayerNorm"))?,
                ffn: FeedForward::new(d, 4 * d, ["w_1", "w_2", "LayerNorm"], &pb.pp("ffn"))?,
            })
        };
        Ok(Self {
            item_embedding: Embedding::from_tensor(table),
            norm: LayerNorm::new(d, &pb.pp("LayerNorm"))?,
            layers: (0..cfg.num_layers).map(layer).collect::<Result<_>>()?,
            dropout_prob: cfg.dropout_prob,
        })
    }

    /// The item embedding `(n_items, d)`, which is the head's weight too.
    pub fn item_table(&self) -> &Tensor {
        self.item_embedding.weight()
    }

    /// `items` `(B, L)` → `(B, L, d)`. With a generator, dropout is on. With a state, every segment goes on where the
    /// state's sequence of the same place stopped, and the state moves on.
    pub fn forward(
        &self,
        items: &Tensor,
        segments: &Segments,
        rng: Option<&mut Rng>,
        mut state: Option<&mut Mamba4RecState>,
    ) -> Result<Tensor> {
        let mut dropout = Dropout::new(self.dropout_prob, rng);
        let embedded = self.item_embedding.forward(items)?; // (B, L, d)
        let mut hidden = self.norm.forward(&dropout.apply(embedded)?, None)?;
        let single = self.layers.len() == 1;
        for (i, layer) in self.layers.iter().enumerate() {
            let state = state.as_mut().map(|state| &mut state.layers[i]);
            let mixed = layer
                .mamba
                .forward_pass(&hidden, Pass { segments: Some(segments), reverse: false, state })?;
            let mixed = layer.norm.forward(&dropout.apply(mixed)?, (!single).then_some(&hidden))?;
            hidden = layer.ffn.forward(&mixed, &mut dropout, true)?;
        }
        Ok(hidden)
    }

    /// The state before the first item.
    pub fn new_state(&self) -> Mamba4RecState {
        Mamba4RecState { layers: vec![MixerState::new(); self.layers.len()] }
    }
}
