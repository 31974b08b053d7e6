//! Opening a trained model: a run folder, with the items that it knows.
//!
//! Besides what every run folder holds there is `items.parquet`: the caller's id of each item from 1 on (`item`) and the
//! number of its training events (`count`).

use crate::error::Error as DataError;
use crate::models::ModelConfig;
use crate::recommender::Recommender;
use crate::{Ids, ItemMap};
use candle_core::{DType, Device, Tensor};
use mamba_core::run_folder::RunFolder;
use mamba_core::{Error, Params, Result, checkpoint};
use mamba_datasets::AtomicFile;
use mamba_datasets::job::{Fingerprint, sha256_file};
use polars::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file of items.
pub const ITEMS: &str = "items.parquet";

/// `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Rows of the item table: items and padding.
    pub n_items: usize,
    /// Most items of a history that the model was trained on.
    pub max_length: usize,
    /// The model.
    pub model: ModelConfig,
}

/// Configuration, weights and items of a trained model.
#[derive(Clone, Debug)]
pub struct RecCheckpoint {
    path: PathBuf,
    config: CheckpointConfig,
    tensors: BTreeMap<String, Tensor>,
    items: ItemMap,
    counts: Vec<u64>,
    hash: String,
}

impl RecCheckpoint {
    /// Opens a run folder.
    ///
    /// # Errors
    /// Files that are missing, corrupt, or not of one model.
    pub fn open(path: &Path) -> Result<Self> {
        let read = checkpoint::load(path, None)?;
        let problem = |message: String| Error::Checkpoint { path: path.to_owned(), message };
        let config: CheckpointConfig = serde_json::from_value(read.config)
            .map_err(|e| problem(format!("{}: {e}", checkpoint::CONFIG)))?;
        config.model.validate().map_err(|e| problem(format!("{}: {e}", checkpoint::CONFIG)))?;
        let (items, counts) = read_items(&path.join(ITEMS))?;
        if items.n_items() != config.n_items {
            let (got, expected) = (items.ids().len(), config.n_items.saturating_sub(1));
            return Err(problem(format!("{ITEMS} has {got} items, {} says {expected}", checkpoint::CONFIG)));
        }
        let mut fingerprint = Fingerprint::new();
        for (i, file) in read.files.iter().chain([&path.join(ITEMS)]).enumerate() {
            let (_, sha256) = sha256_file(file).map_err(Error::other)?;
            fingerprint.add_hash(format!("file {i}"), sha256);
        }
        let hash = fingerprint.set_config(&config).map_err(Error::other)?.digest();
        Ok(Self { path: path.to_owned(), config, tensors: read.tensors, items, counts, hash })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// The tensors.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The items that the model knows.
    pub fn items(&self) -> &ItemMap {
        &self.items
    }

    /// Training events of each item; place 0 is padding.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// SHA-256 over weights, items and configuration.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The model, ready to score histories of at most `max_length` items (default: as trained).
    ///
    /// # Errors
    /// Weights that are not those of the configuration.
    pub fn recommender(
        &self,
        max_length: Option<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Recommender> {
        let params = Params::frozen(self.tensors.clone(), dtype, device);
        let problem = |e: Error| Error::Checkpoint { path: self.path.clone(), message: e.to_string() };
        let CheckpointConfig { n_items, max_length: trained, model } = &self.config;
        let recommender = Recommender::new(model, *n_items, *trained, &params).map_err(problem)?;
        max_length.map_or(Ok(recommender.clone()), |max_length| recommender.with_max_length(max_length))
    }
}

/// Writes `items.parquet` of a run; `counts` has a place for padding, the file has not.
///
/// # Errors
/// A file that cannot be written.
pub fn write_items(dir: &Path, items: &ItemMap, counts: &[u64]) -> Result<()> {
    let path = dir.join(ITEMS);
    let ids = match items.ids() {
        Ids::Int(ids) => Column::new("item".into(), ids),
        Ids::Text(ids) => Column::new("item".into(), ids),
    };
    let problem = |e: PolarsError| Error::other(DataError::file(&path, e));
    let columns = vec![ids, Column::new("count".into(), &counts[1..])];
    let mut frame = DataFrame::new(items.ids().len(), columns).map_err(problem)?;
    let mut file = AtomicFile::create(&path).map_err(Error::other)?;
    ParquetWriter::new(&mut file).finish(&mut frame).map_err(problem)?;
    file.commit().map_err(Error::other)
}

/// [`write_items`] for a new run. A saved one that is to go on has them already: they must be the same, and stay as they are.
///
/// # Errors
/// A file that cannot be written; other items, or other counts.
pub fn write_or_compare_items(dir: &Path, items: &ItemMap, counts: &[u64]) -> Result<()> {
    let path = dir.join(ITEMS);
    if !(RunFolder::is_saved(dir) && path.exists()) {
        return write_items(dir, items, counts);
    }
    let (saved, saved_counts) = read_items(&path)?;
    if saved.ids() == items.ids() && saved_counts[1..] == counts[1..] {
        return Ok(());
    }
    let of = |items: &ItemMap, counts: &[u64]| (items.ids().len(), counts[1..].iter().sum::<u64>());
    let ((saved, saved_sum), (now, now_sum)) = (of(&saved, &saved_counts), of(items, counts));
    let message = format!(
        "cannot resume with other data: {ITEMS} has {saved} ids that are trained on {saved_sum} times, --data and its \
         settings give {now}, {now_sum} times; another --out starts anew"
    );
    Err(Error::Checkpoint { path: dir.to_owned(), message })
}

/// The items and their counts, which have a place for padding.
pub(crate) fn read_items(path: &Path) -> Result<(ItemMap, Vec<u64>)> {
    let problem = |e: &dyn std::fmt::Display| Error::other(DataError::file(path, e));
    let file = std::fs::File::open(path).map_err(|e| Error::other(DataError::io("open", path)(e)))?;
    let frame = ParquetReader::new(file).finish().map_err(|e| problem(&e))?;
    let items = frame.column("item").map_err(|e| problem(&e))?;
    let ids = match items.dtype() {
        DataType::Int64 => Ids::Int(items.i64().map_err(|e| problem(&e))?.iter().flatten().collect()),
        _ => {
            let texts = items.str().map_err(|e| problem(&e))?;
            Ids::Text(texts.iter().flatten().map(str::to_string).collect())
        }
    };
    let counts =
        frame.column("count").and_then(|counts| counts.cast(&DataType::UInt64)).map_err(|e| problem(&e))?;
    let counts = counts.u64().map_err(|e| problem(&e))?;
    let counts: Vec<u64> = std::iter::once(0).chain(counts.iter().flatten()).collect();
    if ids.len() != frame.height() || counts.len() != frame.height() + 1 {
        return Err(problem(&"an item has no id or no count"));
    }
    Ok((ItemMap::new(ids), counts))
}
