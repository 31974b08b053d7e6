//! Everything that decides a training run, besides the log.

use crate::data::{FilterConfig, SplitConfig};
use crate::models::ModelConfig;
use mamba_core::Error;
use mamba_core::train::TrainConfig;
use serde::{Deserialize, Serialize};

/// Everything that decides a training run, besides the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The model.
    pub model: ModelConfig,
    /// The data.
    pub data: DataConfig,
    /// The loss.
    pub objective: ObjectiveConfig,
    /// How answers are ranked.
    pub eval: EvalConfig,
    /// Optimizer and schedule; `batch_size` counts sequences.
    pub train: TrainConfig,
}

/// From the log to sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Which users, items and events stay.
    pub filter: FilterConfig,
    /// What is held out.
    pub split: SplitConfig,
    /// Most items of a history that a model sees: the last ones.
    pub max_length: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { filter: FilterConfig::default(), split: SplitConfig::default(), max_length: 200 }
    }
}

/// What a training step minimises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// The loss.
    pub loss: Loss,
    /// Where it is taken.
    pub positions: Positions,
    /// With `all` positions: items that a chunk of a history longer than `max_length` reads before its first loss.
    pub context: usize,
    /// Items that each batch draws for `sampled_softmax`.
    pub negatives: usize,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self { loss: Loss::Softmax, positions: Positions::All, context: 0, negatives: 1024 }
    }
}

/// The loss of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy over all items.
    Softmax,
    /// Cross-entropy over the batch's answers and items drawn for the batch: for large catalogues.
    SampledSoftmax,
    /// -ln σ(answer - one item drawn at random) (Rendle and others 2009, arXiv 1205.2618).
    Bpr,
}

/// Where the loss is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// At every position of a sequence.
    All,
    /// At the last one: every event is a sequence of its own with what came before, as RecBole does.
    Last,
}

/// How answers are ranked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Whether items of the history are passed over. The papers rank them with the rest.
    pub exclude_seen: bool,
}

impl RunConfig {
    /// Refuses settings that make no run.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.model.validate()?;
        if self.data.max_length == 0 {
            return Err(Error::Config("data.max_length must be at least 1".into()));
        }
        let (context, longest) = (self.objective.context, self.data.max_length);
        if context >= longest {
            let problem = format!("objective.context {context} must be below data.max_length {longest}");
            return Err(Error::Config(problem));
        }
        if self.objective.positions == Positions::All && !self.model.is_causal() {
            let name = self.model.name();
            return Err(Error::Config(format!(
                "{name} sees the answers of all positions but the last: objective.positions must be \"last\""
            )));
        }
        if self.objective.negatives == 0 {
            return Err(Error::Config("objective.negatives must be at least 1".into()));
        }
        self.train.validate()
    }
}
