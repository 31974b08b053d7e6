//! Everything that decides a training run besides the table, and the papers' settings by name.

use crate::models::{
    BiMambaConfig, DLinearConfig, MambaTsConfig, ModelConfig, SMambaConfig, TimeMachineConfig, TslibConfig,
};
use crate::split::Split;
use candle_core::Tensor;
use mamba_core::optim::Decay;
use mamba_core::train::TrainConfig;
use mamba_core::{Error, Mamba1Config, Result};
use serde::{Deserialize, Serialize};

/// Settings of a run. Unknown keys are an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastConfig {
    /// Rows that the model sees.
    pub seq_len: usize,
    /// Rows that it forecasts.
    pub pred_len: usize,
    /// What is trained on and what is held out.
    pub split: Split,
    /// Columns that are forecast, of those that the model sees; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// The model.
    pub model: ModelConfig,
    /// Optimizer and schedule.
    pub train: TrainSettings,
}

/// Optimizer and schedule, in epochs as the papers have them: Adam, a learning rate that falls by a factor from epoch to
/// epoch, early stopping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Passes over the training windows.
    pub epochs: u64,
    /// Windows in a batch; those that make no whole batch wait for the next epoch's order.
    pub batch_size: usize,
    /// Learning rate at the start.
    pub learning_rate: f64,
    /// What the learning rate is multiplied by after each epoch.
    pub lr_factor: f64,
    /// Epochs whose end does not lower the learning rate.
    pub lr_hold: u64,
    /// Weight decay, decoupled.
    pub weight_decay: f64,
    /// What is minimised.
    pub loss: Loss,
    /// Largest gradient norm; null does not clip.
    pub clip: Option<f64>,
    /// Decay of the moving average that is evaluated and kept in place of the weights; null for none.
    pub ema: Option<f64>,
    /// Epochs without a new best after which the run ends; null for never.
    pub patience: Option<u32>,
    /// Windows between two of an epoch: 1 takes all.
    pub window_stride: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Minutes after which the run evaluates, saves and ends.
    pub max_minutes: Option<f64>,
}

/// What training minimises, over all steps and variables of the standardised series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Mean squared error.
    #[default]
    Mse,
    /// Mean absolute error: outliers weigh less.
    Mae,
}

impl Loss {
    /// `error` of any shape → a scalar.
    pub fn of(self, error: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Mse => error.sqr()?.mean_all(),
            Self::Mae => error.abs()?.mean_all(),
        }
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 32,
            learning_rate: 1e-4,
            lr_factor: 0.5,
            lr_hold: 1,
            weight_decay: 0.0,
            loss: Loss::Mse,
            clip: None,
            ema: None,
            patience: Some(3),
            window_stride: 1,
            seed: 2024,
            max_minutes: None,
        }
    }
}

impl TrainSettings {
    /// Steps of an epoch over so many windows; too few for one batch are an error.
    pub fn steps_per_epoch(&self, windows: usize) -> Result<u64> {
        if self.epochs == 0 || self.batch_size == 0 || self.window_stride == 0 {
            return Err(Error::Config("epochs, batch_size and window_stride must be at least 1".into()));
        }
        match windows.div_ceil(self.window_stride) / self.batch_size {
            0 => Err(Error::Config(format!(
                "batch_size is {}, but there are only {windows} training windows",
                self.batch_size
            ))),
            steps => Ok(steps as u64),
        }
    }

    /// The training loop's settings for epochs of so many steps.
    pub fn to_train_config(&self, steps_per_epoch: u64) -> TrainConfig {
        TrainConfig {
            steps: self.epochs * steps_per_epoch,
            batch_size: self.batch_size,
            accumulate: 1,
            learning_rate: self.learning_rate,
            min_lr_ratio: 0.0,
            warmup: 0,
            schedule: Decay::Stairs { every: steps_per_epoch, factor: self.lr_factor, hold: self.lr_hold },
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: self.weight_decay,
            clip: self.clip,
            ema: self.ema,
            eval_every: steps_per_epoch,
            save_every: steps_per_epoch,
            log_every: (steps_per_epoch / 4).max(1),
            seed: self.seed,
            patience: self.patience,
            max_minutes: self.max_minutes,
        }
    }
}

impl ForecastConfig {
    /// Data sets whose settings are known.
    pub const PRESETS: [&'static str; 4] = ["etth1", "etth2", "ettm1", "weather"];

    /// A model with the settings of its paper for a data set and a horizon; without a data set, settings that suit a table
    /// of a few thousand rows.
    pub fn preset(model: &str, data: Option<&str>, pred_len: usize) -> Result<Self> {
        let mut cfg = Self {
            seq_len: 96,
            pred_len,
            split: Split::default(),
            targets: Vec::new(),
            model: ModelConfig::named(model)?,
            train: TrainSettings::default(),
        };
        cfg.split = match data {
            None | Some("weather") => Split::default(),
            Some("etth1" | "etth2") => Split::Ett { rows_per_hour: 1 },
            Some("ettm1") => Split::Ett { rows_per_hour: 4 },
            Some(other) => {
                let known = Self::PRESETS.join(", ");
                return Err(Error::Config(format!("there is no preset {other:?}, only {known}")));
            }
        };
        let train = &mut cfg.train;
        match &mut cfg.model {
            ModelConfig::SMamba(model) => s_mamba(model, train, data, pred_len),
            ModelConfig::TimeMachine(model) => time_machine(model, train, data, pred_len),
            ModelConfig::BiMambaPlus(model) => bi_mamba(model, train, data, pred_len),
            ModelConfig::MambaTs(model) => mamba_ts(model, train, &mut cfg.seq_len, data, pred_len),
            ModelConfig::TslibMamba(TslibConfig { .. }) => train.learning_rate = 1e-4,
            ModelConfig::DLinear(DLinearConfig { .. }) => train.learning_rate = 1e-3,
        }
        Ok(cfg)
    }
}

/// Scripts of S-D-Mamba, `scripts/multivariate_forecasting`.
fn s_mamba(model: &mut SMambaConfig, train: &mut TrainSettings, data: Option<&str>, pred_len: usize) {
    let mut sizes = |width: usize, layers: usize| {
        (model.d_model, model.d_ff, model.e_layers) = (width, width, layers);
    };
    train.learning_rate = match (data, pred_len) {
        (Some("etth1"), ..=192) => 7e-5,
        (Some("etth2"), ..=192) => 4e-5,
        (Some("etth2"), ..=336) => 3e-5,
        (Some("etth2"), _) => 7e-5,
        (Some(_), _) => 5e-5,
        (None, _) => 5e-4,
    };
    match data {
        None => sizes(64, 2),
        Some("weather") => {
            sizes(512, 3);
            train.epochs = 5;
        }
        Some("ettm1") if pred_len > 96 => sizes(128, 2),
        Some(_) => {}
    }
}

/// Scripts of TimeMachine, `TimeMachine_supervised/scripts`.
fn time_machine(
    model: &mut TimeMachineConfig,
    train: &mut TrainSettings,
    data: Option<&str>,
    pred_len: usize,
) {
    (model.n1, model.n2) = match (data, pred_len) {
        (Some("etth1"), ..=96) => (512, 32),
        (Some("etth1"), ..=192) => (512, 64),
        (Some("etth1"), ..=336) => (512, 128),
        (Some("etth1"), _) => (128, 16),
        (Some("etth2"), ..=96) => (128, 32),
        (Some("etth2"), ..=192) => (256, 32),
        (Some("etth2"), ..=336) => (512, 64),
        (Some("etth2"), _) => (256, 128),
        _ => (128, 32),
    };
    *train = TrainSettings { learning_rate: 1e-3, lr_factor: 0.9, lr_hold: 3, ..train.clone() };
    match data {
        Some(_) => (train.batch_size, train.epochs, train.patience) = (512, 100, Some(100)),
        None => {
            model.dropout = 0.2;
            model.ssm_cfg =
                Mamba1Config { d_state: 32, d_conv: 2, expand: 1, ..Mamba1Config::default() }.into();
        }
    }
}

/// Scripts of Bi-Mamba4TS, `scripts/BiMamba4TS`; for ETT they search over patches and layers.
fn bi_mamba(model: &mut BiMambaConfig, train: &mut TrainSettings, data: Option<&str>, pred_len: usize) {
    *train = TrainSettings { lr_factor: 0.9, lr_hold: 3, epochs: 60, patience: Some(5), ..train.clone() };
    match data {
        Some("weather") => {
            model.ssm_cfg = Mamba1Config { d_state: 8, ..BiMambaConfig::mixer() }.into();
            (model.patch_len, model.stride, model.e_layers) = (4, 2, 3);
            (train.learning_rate, model.dropout) = match pred_len {
                0..=96 => (4e-4, 0.0),
                97..=192 => (6e-4, 0.0),
                193..=336 => (6e-4, 0.1),
                _ => (4e-4, 0.0),
            };
        }
        Some(_) => model.channel_independent = Some(true),
        None => train.learning_rate = 5e-4,
    }
}

/// Scripts of MambaTS, `scripts/long_term_forecast`, which look back 720 rows; ETTh1 and ETTm1, of which there are none, as
/// ETTh2.
fn mamba_ts(
    model: &mut MambaTsConfig,
    train: &mut TrainSettings,
    seq_len: &mut usize,
    data: Option<&str>,
    pred_len: usize,
) {
    match data {
        None => {
            (model.d_model, model.e_layers, model.patch_len, model.dropout) = (64, 2, 12, 0.1);
            train.learning_rate = 1e-3;
        }
        Some("weather") => {
            (model.d_model, model.dropout) = (32, 0.2);
            (train.batch_size, train.learning_rate) = (8, 5e-4);
            *seq_len = 720;
        }
        Some(_) => {
            (model.d_model, model.e_layers, train.batch_size, train.learning_rate) = match pred_len {
                0..=96 => (16, 5, 8, 1e-3),
                97..=192 => (16, 3, 16, 1e-3),
                193..=336 => (32, 2, 32, 5e-4),
                _ => (128, 1, 16, 5e-4),
            };
            *seq_len = 720;
        }
    }
}
