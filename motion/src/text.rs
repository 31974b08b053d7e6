//! Sentences to vectors by a frozen encoder from a local folder (`config.json`, `model.safetensors`, `tokenizer.json`).
//!
//! | encoder | a sentence's vector |
//! |---|---|
//! | a BERT in the layout of sentence-transformers, such as all-MiniLM-L6-v2 | the mean over its tokens (Reimers and Gurevych 2019, arXiv 1908.10084) |
//! | a CLIP, or its text model alone (Radford et al. 2021, arXiv 2103.00020) | its last token, projected where there is a projection |
//!
//! Both are brought to length 1.

use crate::{Error, Result};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};
use mamba_core::checkpoint;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use tokenizers::{PaddingParams, Tokenizer, TruncationParams};

/// Sentences that are encoded at once.
const BATCH: usize = 32;

/// A frozen text encoder.
pub struct TextEncoder {
    network: Network,
    tokenizer: Tokenizer,
    dim: usize,
    device: Device,
}

enum Network {
    Bert(Box<BertModel>),
    Clip { text: ClipTextTransformer, projection: Option<candle_nn::Linear> },
}

/// Sizes of a CLIP's text model; what a file leaves out is that of ViT-B/32.
#[derive(Deserialize)]
#[serde(default)]
struct ClipSizes {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
}

impl Default for ClipSizes {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            max_position_embeddings: 77,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            hidden_act: "quick_gelu".into(),
        }
    }
}

impl TextEncoder {
    /// Opens a folder.
    ///
    /// # Errors
    /// A folder without one of the files, or with another kind of encoder.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        let loaded = checkpoint::load_dir(dir)?;
        let config = dir.join(checkpoint::CONFIG);
        let model_type =
            loaded.config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_string();
        let projection = loaded.tensors.get("text_projection.weight").cloned();
        let vb = VarBuilder::from_tensors(loaded.tensors.into_iter().collect(), DType::F32, device);
        let (network, dim, most) = match model_type.as_str() {
            "bert" => {
                let cfg: Config =
                    serde_json::from_value(loaded.config).map_err(|e| Error::file(&config, e))?;
                let bert = BertModel::load(vb, &cfg)
                    .map_err(|e| Error::file(dir, format!("weights are not those of the BERT: {e}")))?;
                (Network::Bert(Box::new(bert)), cfg.hidden_size, cfg.max_position_embeddings)
            }
            "clip" | "clip_text_model" => {
                let sizes = loaded.config.get("text_config").unwrap_or(&loaded.config).clone();
                let sizes: ClipSizes = serde_json::from_value(sizes).map_err(|e| Error::file(&config, e))?;
                let (cfg, dim) = (sizes.config(&config)?, sizes.hidden_size);
                let text = ClipTextTransformer::new(vb.pp("text_model"), &cfg)
                    .map_err(|e| Error::file(dir, format!("weights are not those of the CLIP: {e}")))?;
                let dim = projection.as_ref().map_or(Ok(dim), |weight| weight.dim(0))?;
                let projection = match projection {
                    Some(weight) => {
                        Some(candle_nn::Linear::new(weight.to_device(device)?.to_dtype(DType::F32)?, None))
                    }
                    None => None,
                };
                (Network::Clip { text, projection }, dim, cfg.max_position_embeddings)
            }
            other => {
                let message =
                    format!("model_type is {other:?}, expected \"bert\", \"clip\" or \"clip_text_model\"");
                return Err(Error::file(&config, message));
            }
        };
        let path = dir.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|e| Error::file(&path, e))?;
        let truncation = TruncationParams { max_length: most, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| Error::file(&path, e))?;
        // What a CLIP pads with depends on the checkpoint: its sentences come one by one.
        let padding = matches!(network, Network::Bert(_)).then(PaddingParams::default);
        tokenizer.with_padding(padding);
        Ok(Self { network, tokenizer, dim, device: device.clone() })
    }

    /// Channels of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The vectors of sentences, each of length 1.
    ///
    /// # Errors
    /// An empty sentence, or one that the tokenizer cannot read.
    pub fn encode(&self, sentences: &[&str]) -> Result<Vec<Vec<f32>>> {
        if let Some(i) = sentences.iter().position(|sentence| sentence.trim().is_empty()) {
            return Err(Error::Motion(format!("sentence {} is empty", i + 1)));
        }
        let mut vectors = Vec::with_capacity(sentences.len());
        let at_once = if matches!(self.network, Network::Bert(_)) { BATCH } else { 1 };
        for batch in sentences.chunks(at_once) {
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
            let vector = match &self.network {
                Network::Bert(bert) => {
                    let hidden = bert.forward(&ids, &ids.zeros_like()?, Some(&mask))?; // (B, L, d)
                    let mask = mask.to_dtype(DType::F32)?;
                    let sum = mask.unsqueeze(1)?.matmul(&hidden)?.squeeze(1)?; // (B, d)
                    sum.broadcast_div(&mask.sum_keepdim(1)?)?
                }
                Network::Clip { text, projection } => {
                    let hidden = text.forward_with_mask(&ids, usize::MAX)?; // (1, L, d)
                    let last = hidden.narrow(1, length - 1, 1)?.squeeze(1)?; // (1, d)
                    projection.as_ref().map_or(Ok(last.clone()), |projection| projection.forward(&last))?
                }
            };
            let unit = vector.broadcast_div(&vector.sqr()?.sum_keepdim(1)?.sqrt()?)?;
            vectors.extend(unit.to_vec2::<f32>()?);
        }
        Ok(vectors)
    }
}

impl ClipSizes {
    fn config(&self, path: &Path) -> Result<ClipTextConfig> {
        if self.hidden_act != "quick_gelu" {
            let message = format!("hidden_act is {:?}, expected \"quick_gelu\"", self.hidden_act);
            return Err(Error::file(path, message));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (heads, width) = (self.num_attention_heads, self.hidden_size);
            return Err(Error::file(
                path,
                format!("{heads} attention heads do not divide hidden_size {width}"),
            ));
        }
        Ok(ClipTextConfig {
            vocab_size: self.vocab_size,
            embed_dim: self.hidden_size,
            activation: Activation::QuickGelu,
            intermediate_size: self.intermediate_size,
            max_position_embeddings: self.max_position_embeddings,
            pad_with: None,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            projection_dim: self.hidden_size,
        })
    }
}
