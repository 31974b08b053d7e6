//! Opening a trained model: a run folder, with the skills that it knows in `items.parquet`.

use super::model::{Mamba4Kt, Mamba4KtConfig};
use crate::ItemMap;
use crate::checkpoint::{ITEMS, read_items};
use candle_core::{DType, Device, Tensor};
use mamba_core::{Error, Params, Result, checkpoint};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KtCheckpointConfig {
    /// Rows of the skill table: skills and the unknown one.
    pub n_skills: usize,
    /// The model.
    pub model: Mamba4KtConfig,
}

/// Configuration, weights and skills of a trained model.
#[derive(Clone, Debug)]
pub struct KtCheckpoint {
    path: PathBuf,
    config: KtCheckpointConfig,
    tensors: BTreeMap<String, Tensor>,
    skills: ItemMap,
    counts: Vec<u64>,
}

impl KtCheckpoint {
    /// Opens a run folder.
    ///
    /// # Errors
    /// Files that are missing, corrupt, or not of one model.
    pub fn open(path: &Path) -> Result<Self> {
        let read = checkpoint::load(path, None)?;
        let problem = |message: String| Error::Checkpoint { path: path.to_owned(), message };
        let config: KtCheckpointConfig = serde_json::from_value(read.config)
            .map_err(|e| problem(format!("{}: not a knowledge tracer: {e}", checkpoint::CONFIG)))?;
        let (skills, counts) = read_items(&path.join(ITEMS))?;
        if skills.n_items() != config.n_skills {
            let (got, expected) = (skills.n_items(), config.n_skills);
            return Err(problem(format!(
                "{ITEMS} makes {got} skills, {} says {expected}",
                checkpoint::CONFIG
            )));
        }
        Ok(Self { path: path.to_owned(), config, tensors: read.tensors, skills, counts })
    }

    /// The tensors.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The skills that the model knows.
    pub fn skills(&self) -> &ItemMap {
        &self.skills
    }

    /// Training answers of each skill; place 0 is the unknown one.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// `config.json`.
    pub fn config(&self) -> &KtCheckpointConfig {
        &self.config
    }

    /// The model, ready to predict.
    ///
    /// # Errors
    /// Weights that are not those of the configuration.
    pub fn model(&self, dtype: DType, device: &Device) -> Result<Mamba4Kt> {
        let params = Params::frozen(self.tensors.clone(), dtype, device);
        let problem = |message: String| Error::Checkpoint { path: self.path.clone(), message };
        let model = Mamba4Kt::new(&self.config.model, self.config.n_skills, &params.builder())?;
        params.check().map_err(|e| problem(e.to_string()))?;
        Ok(model)
    }
}
