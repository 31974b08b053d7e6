//! Opening a forecaster: a run folder, or a published Bi-Mamba+ checkpoint.

use crate::error::{Error, Result};
use crate::models::{Activation, BiMambaConfig, ForecastModel, ModelConfig, Sizes};
use crate::scale::Scaler;
use crate::split::Split;
use crate::table::{Frequency, TableOptions};
use candle_core::{DType, Device, Tensor};
use mamba_core::{Mamba1Config, Params, checkpoint};
use mamba_datasets::job::sha256_file;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `config.json` of a trained forecaster: all that is needed to forecast a table with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// `mamba-timeseries`.
    pub format: String,
    /// Rows that the model sees.
    pub seq_len: usize,
    /// Rows that it forecasts.
    pub pred_len: usize,
    /// The model.
    pub model: ModelConfig,
    /// The columns that it sees, in order.
    pub columns: Vec<String>,
    /// Those that it was trained to forecast; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// What it was standardised by.
    pub scaler: Scaler,
    /// Time between rows; null where it is not known.
    pub frequency: Option<Frequency>,
    /// How its table was split.
    pub split: Split,
    /// How its table was read.
    pub table: TableOptions,
    /// Windows in a training batch, by which the papers' way of testing cuts.
    pub batch_size: usize,
}

impl CheckpointConfig {
    /// What `format` says.
    pub const FORMAT: &'static str = "mamba-timeseries";

    /// The sizes of the model.
    pub fn sizes(&self) -> Sizes {
        let n_marks = if self.model.uses_marks() { crate::calendar::N_MARKS } else { 0 };
        Sizes { seq_len: self.seq_len, pred_len: self.pred_len, n_vars: self.columns.len(), n_marks }
    }

    /// Places among the columns of those that it forecasts.
    pub fn target_places(&self) -> Vec<usize> {
        let wanted = |column: &String| self.targets.is_empty() || self.targets.contains(column);
        (0..self.columns.len()).filter(|&i| wanted(&self.columns[i])).collect()
    }

    /// The columns `(B, H, V)` that it forecasts, `(B, H, T)`.
    pub fn only_targets(&self, values: &Tensor) -> candle_core::Result<Tensor> {
        if self.targets.is_empty() {
            return Ok(values.clone());
        }
        let places: Vec<u32> = self.target_places().into_iter().map(|i| i as u32).collect();
        values.contiguous()?.index_select(&Tensor::new(places, values.device())?, 2)
    }

    /// Refuses rows that come at another distance than those of the training.
    pub fn check_frequency(&self, frequency: Frequency) -> Result<()> {
        match self.frequency.filter(|trained| *trained != frequency) {
            Some(trained) => Err(Error::Mismatch(format!(
                "the rows come every {frequency}, but the model was trained on rows every {trained}"
            ))),
            None => Ok(()),
        }
    }

    /// Refuses targets that are no columns.
    pub fn validate_targets(&self) -> Result<()> {
        match self.targets.iter().find(|target| !self.columns.contains(target)) {
            Some(target) => Err(Error::config(format!(
                "targets: the model sees no column {target:?}, only {}",
                self.columns.join(", ")
            ))),
            None => Ok(()),
        }
    }
}

/// A trained forecaster.
#[derive(Clone, Debug)]
pub struct ForecastCheckpoint {
    path: PathBuf,
    config: CheckpointConfig,
    tensors: BTreeMap<String, Tensor>,
    files: Vec<PathBuf>,
}

impl ForecastCheckpoint {
    /// Opens a folder with `config.json` and weights.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            let message = "there is no such folder; `mamba-timeseries train` makes one".into();
            return Err(Error::Core(mamba_core::Error::Checkpoint { path: path.to_owned(), message }));
        }
        let read = checkpoint::load(path, None)?;
        let problem = |message: String| {
            let message = format!("{}: {message}", checkpoint::CONFIG);
            Error::Core(mamba_core::Error::Checkpoint { path: path.to_owned(), message })
        };
        let config = if read.config.get("format").is_some() {
            serde_json::from_value::<CheckpointConfig>(read.config).map_err(|e| problem(e.to_string()))?
        } else if read.config.pointer("/config/patch_len").is_some() {
            serde_json::from_value::<Published>(read.config).map_err(|e| problem(e.to_string()))?.into()
        } else {
            return Err(problem("is of no forecaster that this program knows".into()));
        };
        let n = config.columns.len();
        if config.format != CheckpointConfig::FORMAT {
            return Err(problem(format!(
                "format is {:?}, expected {:?}",
                config.format,
                CheckpointConfig::FORMAT
            )));
        }
        let scaler = &config.scaler;
        if n == 0
            || scaler.mean.len() != n
            || scaler.std.len() != n
            || scaler.std.iter().any(|s| s.is_nan() || *s <= 0.0)
        {
            return Err(problem(format!("{n} columns need as many means and positive deviations")));
        }
        config.model.validate(config.sizes()).map_err(|e| problem(e.to_string()))?;
        config.validate_targets().map_err(|e| problem(e.to_string()))?;
        Ok(Self { path: path.to_owned(), config, tensors: read.tensors, files: read.files })
    }

    /// The same forecaster, for tables that are read in another way.
    pub fn with_table(mut self, table: TableOptions) -> Self {
        self.config.table = table;
        self
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its settings.
    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// The parameters and the model, for inference.
    pub fn model(&self, dtype: DType, device: &Device) -> Result<(ForecastModel, Params)> {
        let params = Params::frozen(self.tensors.clone(), dtype, device);
        let model = ForecastModel::new(&self.config.model, self.config.sizes(), &params.builder())?;
        ForecastModel::check(&params)
            .map_err(|e| mamba_core::Error::Checkpoint { path: self.path.clone(), message: e.to_string() })?;
        Ok((model, params))
    }

    /// Name, size and SHA-256 of every weight file.
    pub fn files(&self) -> Result<Vec<(String, u64, String)>> {
        let file = |path: &PathBuf| {
            let (bytes, sha256) = sha256_file(path).map_err(mamba_core::Error::other)?;
            Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes, sha256))
        };
        self.files.iter().map(file).collect()
    }
}

/// `config.json` that describes a published Bi-Mamba+ checkpoint: upstream's settings, and the means and deviations that
/// its data was standardised by.
#[derive(Deserialize)]
struct Published {
    config: Upstream,
    ch_ind: Value,
    scaler_mean: Vec<f64>,
    scaler_std: Vec<f64>,
    columns: Vec<String>,
}

/// Settings under upstream's names; those that change no output are passed over.
#[derive(Deserialize)]
struct Upstream {
    seq_len: usize,
    pred_len: usize,
    revin: Value,
    patch_len: usize,
    stride: usize,
    d_model: usize,
    d_ff: usize,
    d_state: usize,
    d_conv: usize,
    e_fact: usize,
    dropout: f64,
    activation: Activation,
    e_layers: usize,
    threshold: f64,
}

fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_i64().is_some_and(|n| n != 0))
}

impl From<Published> for CheckpointConfig {
    fn from(published: Published) -> Self {
        let Published { config, ch_ind, scaler_mean, scaler_std, columns } = published;
        let ssm_cfg = Mamba1Config {
            d_state: config.d_state,
            d_conv: config.d_conv,
            expand: config.e_fact,
            forget_gate: true,
            ..Mamba1Config::default()
        };
        let model = BiMambaConfig {
            d_model: config.d_model,
            d_ff: config.d_ff,
            e_layers: config.e_layers,
            ssm_cfg: ssm_cfg.into(),
            patch_len: config.patch_len,
            stride: config.stride,
            dropout: config.dropout,
            activation: config.activation,
            revin: is_true(&config.revin),
            channel_independent: Some(is_true(&ch_ind)),
            threshold: config.threshold,
        };
        Self {
            format: Self::FORMAT.into(),
            seq_len: config.seq_len,
            pred_len: config.pred_len,
            model: ModelConfig::BiMambaPlus(model),
            columns,
            targets: Vec::new(),
            scaler: Scaler { mean: scaler_mean, std: scaler_std },
            frequency: None,
            split: Split::default(),
            table: TableOptions::as_they_stand(),
            batch_size: 32,
        }
    }
}
