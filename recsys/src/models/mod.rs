//! The models, behind one type.
//!
//! A model turns packed sequences of items into one vector for each position; the product of that vector with the item
//! table scores every item as the next one.

pub mod mamba4rec;
mod parts;

pub use mamba4rec::{Mamba4Rec, Mamba4RecConfig, Mamba4RecState};

use candle_core::{Result, Tensor};
use mamba_core::{ParamBuilder, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// Which model, and its hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum ModelConfig {
    /// [`Mamba4Rec`].
    Mamba4Rec(Mamba4RecConfig),
}

impl ModelConfig {
    /// The names that [`ModelConfig::named`] knows.
    pub const NAMES: [&'static str; 1] = ["mamba4rec"];

    /// A model with its default hyper-parameters.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "mamba4rec" => Self::Mamba4Rec(Mamba4RecConfig::default()),
            _ => return None,
        })
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mamba4Rec(_) => "mamba4rec",
        }
    }

    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        match self {
            Self::Mamba4Rec(cfg) => cfg.validate(),
        }
    }
}

/// Any of the models.
#[derive(Clone, Debug)]
pub enum Model {
    /// [`Mamba4Rec`].
    Mamba4Rec(Mamba4Rec),
}

impl Model {
    /// Builds the model for items `1..n_items` and sequences of at most `max_length` items.
    pub fn new(cfg: &ModelConfig, n_items: usize, _max_length: usize, pb: &ParamBuilder) -> Result<Self> {
        Ok(match cfg {
            ModelConfig::Mamba4Rec(cfg) => Self::Mamba4Rec(Mamba4Rec::new(cfg, n_items, pb)?),
        })
    }

    /// `items` `(B, L)` u32 → `(B, L, d)`; dropout is on with a generator.
    pub fn forward(&self, items: &Tensor, segments: &Segments, rng: Option<&mut Rng>) -> Result<Tensor> {
        match self {
            Self::Mamba4Rec(model) => model.forward(items, segments, rng, None),
        }
    }

    /// The item table `(n_items, d)`.
    pub fn item_table(&self) -> &Tensor {
        match self {
            Self::Mamba4Rec(model) => model.item_table(),
        }
    }
}
