//! The models, behind one type.
//!
//! A model turns packed sequences of items into one vector for each position; the product of that vector with the item
//! table scores every item as the next one.

pub mod echo;
pub mod mamba4rec;
pub(crate) mod parts;
pub mod recmamba;
pub mod sasrec;

pub use echo::{EchoMamba4Rec, EchoMamba4RecConfig};
pub use mamba4rec::{Mamba4Rec, Mamba4RecConfig, Mamba4RecState};
pub use parts::Initialization;
pub use recmamba::{RecMamba, RecMambaConfig};
pub use sasrec::{SasRec, SasRecConfig};

use candle_core::{Result, Tensor};
use mamba_core::{MixerConfig, ParamBuilder, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// Which model, and its hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum ModelConfig {
    /// [`Mamba4Rec`].
    Mamba4Rec(Mamba4RecConfig),
    /// [`SasRec`].
    SasRec(SasRecConfig),
    /// [`RecMamba`].
    RecMamba(RecMambaConfig),
    /// [`EchoMamba4Rec`].
    EchoMamba4Rec(EchoMamba4RecConfig),
}

impl ModelConfig {
    /// The names that [`ModelConfig::named`] knows.
    pub const NAMES: [&'static str; 4] = ["mamba4rec", "sasrec", "recmamba", "echomamba4rec"];

    /// A model with its default hyper-parameters.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "mamba4rec" => Self::Mamba4Rec(Mamba4RecConfig::default()),
            "sasrec" => Self::SasRec(SasRecConfig::default()),
            "recmamba" => Self::RecMamba(RecMambaConfig::default()),
            "echomamba4rec" => Self::EchoMamba4Rec(EchoMamba4RecConfig::default()),
            _ => return None,
        })
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mamba4Rec(_) => "mamba4rec",
            Self::SasRec(_) => "sasrec",
            Self::RecMamba(_) => "recmamba",
            Self::EchoMamba4Rec(_) => "echomamba4rec",
        }
    }

    /// Whether a position's vector depends on nothing after it.
    pub fn is_causal(&self) -> bool {
        !matches!(self, Self::EchoMamba4Rec(_))
    }

    /// The mixer that the model leaves to its configuration.
    pub fn mixer_mut(&mut self) -> Option<&mut MixerConfig> {
        match self {
            Self::Mamba4Rec(cfg) => Some(&mut cfg.mixer),
            Self::EchoMamba4Rec(cfg) => Some(&mut cfg.mixer),
            Self::RecMamba(cfg) => Some(&mut cfg.mixer),
            Self::SasRec(_) => None,
        }
    }

    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        match self {
            Self::Mamba4Rec(cfg) => cfg.validate(),
            Self::SasRec(cfg) => cfg.validate(),
            Self::RecMamba(cfg) => cfg.validate(),
            Self::EchoMamba4Rec(cfg) => cfg.validate(),
        }
    }
}

/// Any of the models.
#[derive(Clone, Debug)]
pub enum Model {
    /// [`Mamba4Rec`].
    Mamba4Rec(Mamba4Rec),
    /// [`SasRec`].
    SasRec(SasRec),
    /// [`RecMamba`].
    RecMamba(RecMamba),
    /// [`EchoMamba4Rec`].
    EchoMamba4Rec(EchoMamba4Rec),
}

impl Model {
    /// Builds the model for items `1..n_items` and sequences of at most `max_length` items.
    pub fn new(cfg: &ModelConfig, n_items: usize, max_length: usize, pb: &ParamBuilder) -> Result<Self> {
        Ok(match cfg {
            ModelConfig::Mamba4Rec(cfg) => Self::Mamba4Rec(Mamba4Rec::new(cfg, n_items, pb)?),
            ModelConfig::SasRec(cfg) => Self::SasRec(SasRec::new(cfg, n_items, max_length, pb)?),
            ModelConfig::RecMamba(cfg) => Self::RecMamba(RecMamba::new(cfg, n_items, max_length, pb)?),
            ModelConfig::EchoMamba4Rec(cfg) => {
                Self::EchoMamba4Rec(EchoMamba4Rec::new(cfg, n_items, max_length, pb)?)
            }
        })
    }

    /// `items` `(B, L)` u32 → `(B, L, d)`; dropout is on with a generator.
    pub fn forward(&self, items: &Tensor, segments: &Segments, rng: Option<&mut Rng>) -> Result<Tensor> {
        match self {
            Self::Mamba4Rec(model) => model.forward(items, segments, rng, None),
            Self::SasRec(model) => model.forward(items, segments, rng),
            Self::RecMamba(model) => model.forward(items, segments, rng),
            Self::EchoMamba4Rec(model) => model.forward(items, segments, rng),
        }
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mamba4Rec(_) => "mamba4rec",
            Self::SasRec(_) => "sasrec",
            Self::RecMamba(_) => "recmamba",
            Self::EchoMamba4Rec(_) => "echomamba4rec",
        }
    }

    /// Whether a position's vector depends on nothing after it.
    pub fn is_causal(&self) -> bool {
        !matches!(self, Self::EchoMamba4Rec(_))
    }

    /// The longest sequence, of models that number positions or have a filter; recurrent ones know none.
    pub fn positions(&self) -> Option<usize> {
        match self {
            Self::Mamba4Rec(_) => None,
            Self::SasRec(model) => Some(model.positions()),
            Self::RecMamba(model) => Some(model.positions()),
            Self::EchoMamba4Rec(model) => Some(model.positions()),
        }
    }

    /// The item table `(n_items, d)`.
    pub fn item_table(&self) -> &Tensor {
        match self {
            Self::Mamba4Rec(model) => model.item_table(),
            Self::SasRec(model) => model.item_table(),
            Self::RecMamba(model) => model.item_table(),
            Self::EchoMamba4Rec(model) => model.item_table(),
        }
    }
}
