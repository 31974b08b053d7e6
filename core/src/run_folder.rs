//! The folder that a run leaves, and resumes from.
//!
//! | file | holds | written |
//! |---|---|---|
//! | `config.json` | the model's hyperparameters | at the start |
//! | `model.safetensors` | the best weights by evaluation | at each new best, atomically |
//! | `optim.safetensors` | all that resuming needs: weights, moments, averages, step, best | at each save, atomically |
//! | `metrics.jsonl` | one [`Record`] per line | appended; cut back to the saved step on resume |
//! | `run.json` | versions, seed, device, threads, command, times | at the start and at the end |
//! | `loss.svg` | the loss curve | at each evaluation |
//!
//! `optim.safetensors` alone decides where a run goes on, so no kill between two files can make them disagree.

mod info;
mod metrics;
mod plot;

pub use info::RunInfo;
pub use metrics::{Goal, Metric, MetricsLog, Record};
pub use plot::loss_curve;

use crate::checkpoint::{self, load_safetensors, save_safetensors, write_json};
use crate::{Error, Result};
use candle_core::Tensor;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const STATE: &str = "optim.safetensors";
const METRICS: &str = "metrics.jsonl";
const RUN: &str = "run.json";
const CURVE: &str = "loss.svg";
/// The key in the metadata of `optim.safetensors`.
const META: &str = "mamba-core";

/// A run folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    dir: PathBuf,
}

impl RunFolder {
    /// A folder for a new run; an error if it holds one already.
    pub fn create(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let taken = [STATE, METRICS, checkpoint::WEIGHTS].into_iter().find(|name| dir.join(name).exists());
        if let Some(name) = taken {
            let message = format!("already holds a run ({name}); resume it or choose another folder");
            return Err(Error::run_folder(dir, message));
        }
        Self::resume(dir)
    }

    /// A folder whose run goes on where it was saved, or starts if it was not.
    pub fn resume(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        Ok(Self { dir })
    }

    /// Whether a run is saved in a folder, to be gone on with.
    pub fn is_saved(dir: &Path) -> bool {
        dir.join(STATE).exists()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The metrics, opened for appending after `step`; locks them against a second process.
    pub fn open_metrics(&self, step: u64) -> Result<MetricsLog> {
        let log = MetricsLog::open(self.dir.join(METRICS), step)?;
        self.remove_leftovers(); // under the lock, so that no other process is writing them
        Ok(log)
    }

    /// All records so far.
    pub fn records(&self) -> Result<Vec<Record>> {
        metrics::read(&self.dir.join(METRICS))
    }

    /// Writes `config.json`.
    pub fn save_config(&self, config: &Value) -> Result<()> {
        write_json(&self.dir.join(checkpoint::CONFIG), config)
    }

    /// Writes `model.safetensors`.
    pub fn save_model(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        save_safetensors(self.dir.join(checkpoint::WEIGHTS), tensors, &BTreeMap::new())
    }

    /// Writes `optim.safetensors`.
    pub(crate) fn save_state(&self, tensors: &BTreeMap<String, Tensor>, state: &Value) -> Result<()> {
        let meta = BTreeMap::from([(META.to_string(), state.to_string())]);
        save_safetensors(self.dir.join(STATE), tensors, &meta)
    }

    /// Reads `optim.safetensors`, if there is one.
    pub(crate) fn load_state(&self) -> Result<Option<(BTreeMap<String, Tensor>, Value)>> {
        let path = self.dir.join(STATE);
        if !path.exists() {
            return Ok(None);
        }
        let (tensors, meta) = load_safetensors(&path)?;
        let state = meta
            .get(META)
            .ok_or_else(|| Error::run_folder(&path, "was not written by this training loop"))?;
        let state = serde_json::from_str(state).map_err(|e| Error::run_folder(&path, e))?;
        Ok(Some((tensors, state)))
    }

    /// Writes `run.json`. A resumed run keeps its first start.
    pub fn save_info(&self, info: &RunInfo) -> Result<()> {
        let path = self.dir.join(RUN);
        let mut info = info.clone();
        if let Some(first) =
            std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<RunInfo>(&text).ok())
        {
            info.started = first.started;
        }
        write_json(&path, &info)
    }

    /// Draws `loss.svg` from the records.
    pub fn draw_curve(&self) -> Result<()> {
        let records = self.records()?;
        let point = |record: &Record| match record {
            Record::Train { step, loss, .. } => Some((*step as f64, *loss)),
            Record::Valid { .. } => None,
        };
        let train: Vec<(f64, f64)> = records.iter().filter_map(point).collect();
        let point = |record: &Record| match record {
            Record::Valid { step, metrics, .. } => Some((*step as f64, (*metrics.get("loss")?)?)),
            Record::Train { .. } => None,
        };
        let valid: Vec<(f64, f64)> = records.iter().filter_map(point).collect();
        loss_curve(&self.dir.join(CURVE), &train, &valid, false)
    }

    /// Temporary files of a process that was killed while writing. Failing to remove one harms nothing.
    fn remove_leftovers(&self) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = [STATE, RUN, CURVE, checkpoint::WEIGHTS, checkpoint::CONFIG];
            if name.ends_with(".tmp") && ours.iter().any(|file| name.starts_with(&format!(".{file}."))) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
