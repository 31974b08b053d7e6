//! Sentences to vectors by a frozen encoder from a local folder: a BERT in the layout of sentence-transformers
//! (`config.json`, `model.safetensors`, `tokenizer.json`), such as all-MiniLM-L6-v2.
//!
//! A sentence's vector is the mean over its tokens, brought to length 1 (Reimers and Gurevych 2019, arXiv 1908.10084).

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use mamba_core::checkpoint;
use std::path::Path;
use tokenizers::{PaddingParams, Tokenizer, TruncationParams};

/// Sentences that are encoded at once.
const BATCH: usize = 32;

/// A frozen text encoder.
pub struct TextEncoder {
    bert: BertModel,
    tokenizer: Tokenizer,
    dim: usize,
    device: Device,
}

impl TextEncoder {
    /// Opens a folder.
    ///
    /// # Errors
    /// A folder without one of the files, or with an encoder that is no BERT.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        let loaded = checkpoint::load_dir(dir)?;
        let wrong = |what: &str, e: &dyn std::fmt::Display| Error::file(dir, format!("{what}: {e}"));
        let config: Config =
            serde_json::from_value(loaded.config).map_err(|e| wrong(checkpoint::CONFIG, &e))?;
        let (dim, most) = (config.hidden_size, config.max_position_embeddings);
        let tensors = loaded.tensors.into_iter().collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, device);
        let bert = BertModel::load(vb, &config).map_err(|e| wrong("not a BERT", &e))?;
        let path = dir.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|e| Error::file(&path, e))?;
        let truncation = TruncationParams { max_length: most, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| Error::file(&path, e))?;
        tokenizer.with_padding(Some(PaddingParams::default()));
        Ok(Self { bert, tokenizer, dim, device: device.clone() })
    }

    /// Channels of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The vectors of sentences.
    ///
    /// # Errors
    /// An empty sentence, or one that the tokenizer cannot read.
    pub fn encode(&self, sentences: &[&str]) -> Result<Vec<Vec<f32>>> {
        if let Some(i) = sentences.iter().position(|sentence| sentence.trim().is_empty()) {
            return Err(Error::Motion(format!("sentence {} is empty", i + 1)));
        }
        let mut vectors = Vec::with_capacity(sentences.len());
        for batch in sentences.chunks(BATCH) {
            let tokens = self
                .tokenizer
                .encode_batch(batch.to_vec(), true)
                .map_err(|e| Error::Motion(format!("cannot tokenize: {e}")))?;
            let length = tokens.first().map_or(0, |encoding| encoding.len());
            let ids = tokens.iter().flat_map(|encoding| encoding.get_ids().to_vec());
            let mask = tokens.iter().flat_map(|encoding| encoding.get_attention_mask().to_vec());
            let shape = (batch.len(), length);
            let ids = Tensor::from_iter(ids, &self.device)?.reshape(shape)?; // (B, L)
            let mask = Tensor::from_iter(mask, &self.device)?.reshape(shape)?;
            let hidden = self.bert.forward(&ids, &ids.zeros_like()?, Some(&mask))?; // (B, L, d)
            let mask = mask.to_dtype(DType::F32)?;
            let sum = mask.unsqueeze(1)?.matmul(&hidden)?.squeeze(1)?; // (B, d)
            let mean = sum.broadcast_div(&mask.sum_keepdim(1)?)?;
            let unit = mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)?;
            vectors.extend(unit.to_vec2::<f32>()?);
        }
        Ok(vectors)
    }
}
