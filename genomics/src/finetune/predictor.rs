//! A fine-tuned model, ready to predict.

use super::model::{HeadConfig, SequenceBatch, SequenceModel};
use super::target::Target;
use crate::config::CaduceusConfig;
use candle_core::{DType, Device};
use mamba_core::{Error, LoraConfig, Params, Result, checkpoint, lora};
use mamba_datasets::job::{Fingerprint, sha256_file};
use mamba_datasets::{Layout, Limits, batches};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

type Tensors = BTreeMap<String, candle_core::Tensor>;

/// The key of `config.json` under which a fine-tuned model says what it is.
pub(super) const KEY: &str = "finetune";
/// Most tokens in a pass.
const BATCH_TOKENS: usize = 16_384;

/// What stands under [`KEY`].
#[derive(Clone, Debug, Deserialize)]
struct Saved {
    head: HeadConfig,
    target: Target,
}

/// A fine-tuned model. Its heart, [`Predictor::predict`], is a pure function from sequences to probabilities or values.
#[derive(Clone, Debug)]
pub struct Predictor {
    model: SequenceModel,
    target: Target,
    device: Device,
    hash: String,
}

impl Predictor {
    /// Opens the folder of a fine-tuning run. Adapters are added to the weights.
    ///
    /// # Errors
    /// A folder that holds no fine-tuned model, or one that does not fit its config.
    pub fn open(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let wrong = |message: String| Error::Checkpoint { path: dir.to_path_buf(), message };
        let loaded = checkpoint::load_dir(dir)?;
        let saved = loaded.config.get(KEY).cloned().ok_or_else(|| {
            wrong("holds no fine-tuned model; `mamba-genomics finetune` makes one".to_string())
        })?;
        let saved: Saved = serde_json::from_value(saved)
            .map_err(|e| wrong(format!("{}: {KEY}: {e}", checkpoint::CONFIG)))?;
        let cfg: CaduceusConfig = loaded.parse_config()?;
        cfg.validate()?;
        let tensors = merge_adapters(&loaded.config, loaded.tensors)?;
        let params = Params::frozen(tensors, dtype, device);
        let model = SequenceModel::new(&cfg, &saved.head, saved.target.outputs(), &params.builder());
        let model = model.map_err(|e| wrong(e.to_string()))?;
        params.check().map_err(|e| wrong(e.to_string()))?;
        let mut fingerprint = Fingerprint::new();
        for (i, file) in loaded.files.iter().enumerate() {
            fingerprint.add_hash(format!("weights {i}"), sha256_file(file).map_err(Error::other)?.1);
        }
        let hash = fingerprint.set_config(&loaded.config).map_err(Error::other)?.digest();
        Ok(Self { model, target: saved.target, device: device.clone(), hash })
    }

    /// What it predicts.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// SHA-256 over all that decides its predictions.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A row for each sequence of token ids: probabilities of the classes, or the value.
    pub fn predict(&self, sequences: &[&[u8]]) -> Result<Vec<Vec<f64>>> {
        let rows = outputs(&self.model, sequences, &self.device)?;
        Ok(rows
            .into_iter()
            .map(|row| match self.target {
                Target::Classes { .. } => softmax(&row),
                Target::Value { mean, deviation } => vec![f64::from(row[0]) * deviation + mean],
            })
            .collect())
    }
}

/// The weights of a checkpoint with the adapters, which its config tells of, added to them.
pub(crate) fn merge_adapters(config: &Value, tensors: Tensors) -> Result<Tensors> {
    let cfg = match config.pointer(&format!("/{KEY}/lora")) {
        None | Some(Value::Null) => return Ok(tensors),
        Some(cfg) => serde_json::from_value::<LoraConfig>(cfg.clone()),
    };
    let cfg =
        cfg.map_err(|e| Error::Config(format!("{} of the checkpoint: {KEY}.lora: {e}", checkpoint::CONFIG)))?;
    let (adapters, mut weights): (Tensors, Tensors) =
        tensors.into_iter().partition(|(name, _)| name.contains(".lora_"));
    lora::merge(&mut weights, &adapters, &cfg)?;
    Ok(weights)
}

/// What the model gives for each sequence, in order; in several passes of like lengths.
pub(super) fn outputs(model: &SequenceModel, sequences: &[&[u8]], device: &Device) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = sequences.iter().map(|ids| ids.len()).collect();
    let limits = Limits { max_tokens: BATCH_TOKENS, max_items: BATCH_TOKENS, layout: Layout::Packed };
    let mut rows = vec![Vec::new(); sequences.len()];
    for batch in batches(&lengths, limits).map_err(Error::other)? {
        let places: Vec<usize> = batch.items.iter().map(|&(place, ())| place).collect();
        let of_batch: Vec<&[u8]> = places.iter().map(|&place| sequences[place]).collect();
        let outputs = model.forward(&SequenceBatch::new(&of_batch, device)?)?;
        let outputs = outputs.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        places.into_iter().zip(outputs).for_each(|(place, row)| rows[place] = row);
    }
    Ok(rows)
}

/// Probabilities from logits.
pub(super) fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&x| f64::from(x - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|x| x / sum).collect()
}
