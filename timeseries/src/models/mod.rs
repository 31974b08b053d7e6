//! The forecasters, one file each, and [`ForecastModel`], which is any of them.

mod bi_mamba;
mod layers;
mod linear;
mod mamba_ts;
mod s_mamba;
mod scalar_mamba;
mod time_machine;
mod tslib;

pub use bi_mamba::{BiMambaConfig, BiMambaPlus, mixes_channels};
pub use layers::{Activation, Input, Sizes};
pub use linear::{DLinear, DLinearConfig, Naive};
pub use mamba_ts::{MambaTs, MambaTsConfig};
pub use s_mamba::{SMamba, SMambaConfig};
pub use time_machine::{TimeMachine, TimeMachineConfig};
pub use tslib::{TslibConfig, TslibMamba};

use candle_core::{Result, Tensor};
use mamba_core::{Error, ParamBuilder, Params, Rng};
use serde::{Deserialize, Serialize};

/// Which forecaster, and its hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "snake_case")]
pub enum ModelConfig {
    /// [`SMamba`].
    SMamba(SMambaConfig),
    /// [`TimeMachine`].
    TimeMachine(TimeMachineConfig),
    /// [`BiMambaPlus`].
    BiMambaPlus(BiMambaConfig),
    /// [`MambaTs`].
    MambaTs(MambaTsConfig),
    /// [`TslibMamba`].
    TslibMamba(TslibConfig),
    /// [`DLinear`].
    DLinear(DLinearConfig),
}

impl ModelConfig {
    /// Names of the architectures, as on the command line.
    pub const NAMES: [&'static str; 7] =
        ["s-mamba", "bi-mamba-plus", "time-machine", "mamba-ts", "mamba", "mamba-simple", "dlinear"];

    /// The architecture of that name with its default sizes.
    pub fn named(name: &str) -> mamba_core::Result<Self> {
        Ok(match name {
            "s-mamba" => Self::SMamba(SMambaConfig::default()),
            "bi-mamba-plus" => Self::BiMambaPlus(BiMambaConfig::default()),
            "time-machine" => Self::TimeMachine(TimeMachineConfig::default()),
            "mamba-ts" => Self::MambaTs(MambaTsConfig::default()),
            "mamba" => Self::TslibMamba(TslibConfig::default()),
            "mamba-simple" => Self::TslibMamba(TslibConfig { e_layers: Some(2), ..Default::default() }),
            "dlinear" => Self::DLinear(DLinearConfig::default()),
            _ => {
                let known = Self::NAMES.join(", ");
                return Err(Error::Config(format!("there is no model {name:?}, only {known}")));
            }
        })
    }

    /// The name that [`ModelConfig::named`] knows it by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SMamba(_) => "s-mamba",
            Self::BiMambaPlus(_) => "bi-mamba-plus",
            Self::TimeMachine(_) => "time-machine",
            Self::MambaTs(_) => "mamba-ts",
            Self::TslibMamba(TslibConfig { e_layers: None, .. }) => "mamba",
            Self::TslibMamba(_) => "mamba-simple",
            Self::DLinear(_) => "dlinear",
        }
    }

    /// Whether the model sees calendar features.
    pub fn uses_marks(&self) -> bool {
        match self {
            Self::SMamba(cfg) => cfg.use_marks,
            Self::TslibMamba(cfg) => cfg.use_marks,
            _ => false,
        }
    }

    /// Refuses settings that make no model of these sizes.
    pub fn validate(&self, sizes: Sizes) -> mamba_core::Result<()> {
        for (name, value) in [("seq_len", sizes.seq_len), ("pred_len", sizes.pred_len)] {
            if value == 0 {
                return Err(Error::Config(format!("{name} is 0, must be at least 1")));
            }
        }
        let dropout = match self {
            Self::SMamba(cfg) => cfg.dropout,
            Self::BiMambaPlus(cfg) => cfg.dropout,
            Self::TimeMachine(cfg) => cfg.dropout,
            Self::MambaTs(cfg) => cfg.dropout,
            Self::TslibMamba(cfg) => cfg.dropout,
            Self::DLinear(_) => 0.0,
        };
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::Config(format!("dropout is {dropout}, must be at least 0 and below 1")));
        }
        match self {
            Self::SMamba(cfg) => cfg.ssm_cfg.validate_for(cfg.d_model),
            Self::BiMambaPlus(cfg) => {
                cfg.validate(sizes)?;
                cfg.ssm_cfg.validate_for(cfg.d_model)
            }
            Self::TimeMachine(cfg) => {
                cfg.validate()?;
                let widths =
                    if cfg.channel_independent { [1, cfg.n1, cfg.n2] } else { [cfg.n1, cfg.n1, cfg.n2] };
                let valid = widths.iter().try_for_each(|&width| cfg.ssm_cfg.validate_for(width));
                valid.map_err(|error| match cfg.channel_independent && cfg.ssm_cfg.validate_for(1).is_err() {
                    true => Error::Config(format!(
                        "{error}: with channel_independent, two mixers have a single channel; \
                         --set model.channel_independent=false gives them the variables as tokens"
                    )),
                    false => error,
                })
            }
            Self::MambaTs(cfg) => cfg.validate(sizes),
            Self::TslibMamba(cfg) => {
                cfg.validate(sizes)?;
                cfg.ssm_cfg.validate_for(cfg.d_model)
            }
            Self::DLinear(cfg) => cfg.validate(),
        }
    }
}

/// Any of the forecasters.
#[derive(Clone, Debug)]
pub enum ForecastModel {
    /// S-Mamba.
    SMamba(SMamba),
    /// TimeMachine.
    TimeMachine(Box<TimeMachine>),
    /// Bi-Mamba+.
    BiMambaPlus(BiMambaPlus),
    /// MambaTS.
    MambaTs(MambaTs),
    /// The plain Mambas of the Time-Series-Library.
    TslibMamba(TslibMamba),
    /// DLinear.
    DLinear(DLinear),
    /// Last value or last season.
    Naive(Naive),
}

impl ForecastModel {
    /// The model of a config, with parameters under upstream's names.
    pub fn new(cfg: &ModelConfig, sizes: Sizes, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate(sizes)?;
        Ok(match cfg {
            ModelConfig::SMamba(cfg) => Self::SMamba(SMamba::new(cfg, sizes, pb)?),
            ModelConfig::TimeMachine(cfg) => Self::TimeMachine(Box::new(TimeMachine::new(cfg, sizes, pb)?)),
            ModelConfig::BiMambaPlus(cfg) => Self::BiMambaPlus(BiMambaPlus::new(cfg, sizes, pb)?),
            ModelConfig::MambaTs(cfg) => Self::MambaTs(MambaTs::new(cfg, sizes, pb)?),
            ModelConfig::TslibMamba(cfg) => Self::TslibMamba(TslibMamba::new(cfg, sizes, pb)?),
            ModelConfig::DLinear(cfg) => Self::DLinear(DLinear::new(cfg, sizes, pb)?),
        })
    }

    /// Holds the parameters that the model asked for against those of a checkpoint; tensors that published weights
    /// have beyond the model are accepted.
    pub fn check(params: &Params) -> mamba_core::Result<()> {
        let ignored =
            |name: &str| SMamba::ignores(name) || MambaTs::ignores(name) || TslibMamba::ignores(name);
        params.check_with(|_| false, ignored)
    }

    /// Standardised values `(B, L, V)` → forecasts `(B, H, V)`. A generator makes it a training pass, with dropout.
    pub fn forward(&self, input: &Input, rng: &mut Option<Rng>) -> Result<Tensor> {
        match self {
            Self::SMamba(model) => model.forward(input, rng),
            Self::TimeMachine(model) => model.forward(input, rng),
            Self::BiMambaPlus(model) => model.forward(input, rng),
            Self::MambaTs(model) => model.forward(input, rng),
            Self::TslibMamba(model) => model.forward(input, rng),
            Self::DLinear(model) => model.forward(input),
            Self::Naive(model) => model.forward(input),
        }
    }

    /// Notes what a training pass shows beside its gradient: of MambaTS, what the orders of the variables cost. `rng` is
    /// that of the pass, as it began, and `error` `(B, H, V)`.
    pub fn note_costs(&self, params: &Params, error: &Tensor, rng: Option<Rng>) -> Result<()> {
        match self {
            Self::MambaTs(model) => model.note_costs(params, error, rng),
            _ => Ok(()),
        }
    }

    /// Whether a parameter counts something, so that no gradient reaches it.
    pub fn counts(name: &str) -> bool {
        MambaTs::counts(name)
    }
}
