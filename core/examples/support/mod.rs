//! What the examples that read a text share: its parts, the model as a task, its loss.
#![allow(dead_code)] // every example takes a part of it

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::nn::cross_entropy;
use mamba_core::run_folder::Metric;
use mamba_core::text::Tokenizer;
use mamba_core::train::{StepLoss, Task, TrainConfig};
use mamba_core::{BackboneState, Params, Rng};
use serde_json::{Value, json};
use std::f64::consts::LN_2;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// The tokens of a text: 90 % to train on, 5 % that choose the best weights, 5 % for the test.
pub(crate) struct Text {
    pub train: Vec<u32>,
    pub valid: Vec<u32>,
    pub test: Vec<u32>,
}

impl Text {
    /// Tokens of the validation text that each evaluation reads at most.
    const VALID: usize = 1 << 16;

    /// Every byte of a file is the token of its value.
    pub(crate) fn of_bytes(path: &Path, length: usize) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) => bail!("{}: {e}", path.display()),
        };
        Self::split(bytes.into_iter().map(u32::from).collect(), path, length)
    }

    /// The text of a file, as a tokenizer reads it.
    pub(crate) fn of(path: &Path, tokenizer: &Tokenizer, length: usize) -> Result<Self> {
        Self::split(tokens_of(path, tokenizer)?, path, length)
    }

    fn split(mut train: Vec<u32>, path: &Path, length: usize) -> Result<Self> {
        let total = train.len();
        let test = train.split_off(total - total / 20);
        let mut valid = train.split_off(train.len() - total / 20);
        if train.len() <= length || test.len() < 2 {
            bail!("{}: {total} tokens are too few to train on sequences of {length}", path.display());
        }
        valid.truncate(Self::VALID);
        Ok(Self { train, valid, test })
    }
}

/// The tokens of a text file.
pub(crate) fn tokens_of(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(tokenizer.encode_lines(&text)?),
        Err(e) => bail!("{}: {e}", path.display()),
    }
}

/// A language model that is trained on random pieces of a text.
pub(crate) struct TextModel<'a> {
    pub model: &'a LmConfig,
    pub train: &'a TrainConfig,
    /// Tokens of a training sequence.
    pub length: usize,
    pub text: &'a Text,
    pub params: Params,
    pub lm: MambaLm,
    /// What a token is called in the display.
    pub unit: &'static str,
}

impl Task for TextModel<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        json!(self.model)
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let TrainConfig { seed, accumulate, batch_size, .. } = *self.train;
        let mut rng = Rng::stream(seed, "text", step * accumulate as u64 + micro as u64);
        let length = self.length;
        let rows = (0..batch_size).flat_map(|_| {
            let start = rng.below(self.text.train.len() - length);
            self.text.train[start..=start + length].iter().copied()
        });
        let ids = Tensor::from_iter(rows.collect::<Vec<_>>(), self.params.device())?;
        let ids = ids.reshape((batch_size, length + 1))?;
        let logits = self.lm.forward(&ids.narrow(1, 0, length)?.contiguous()?)?; // (B, length, vocabulary)
        let loss = cross_entropy(&logits, &ids.narrow(1, 1, length)?, None)?;
        Ok(StepLoss { loss, items: batch_size * length })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let loss = mean_loss(&self.lm, &self.text.valid, self.params.device())?;
        Ok(vec![Metric::down("loss", loss), Metric::down("bits", loss / LN_2)])
    }

    fn data_fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.length, &self.text.train, &self.text.valid).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    fn unit(&self) -> &'static str {
        self.unit
    }
}

/// Mean nats that the model needs for each token but the first of a text, read from beginning to end as one sequence.
pub(crate) fn mean_loss(lm: &MambaLm, tokens: &[u32], device: &Device) -> mamba_core::Result<f64> {
    const CHUNK: usize = 2048;
    let mut state = BackboneState::new();
    let mut nats = 0.0;
    for start in (0..tokens.len() - 1).step_by(CHUNK) {
        let end = (start + CHUNK).min(tokens.len() - 1);
        let inputs = Tensor::from_slice(&tokens[start..end], (1, end - start), device)?;
        let targets = Tensor::from_slice(&tokens[start + 1..=end], (1, end - start), device)?;
        let logits = lm.forward_with(&inputs, None, Some(&mut state))?.detach(); // (1, chunk, vocabulary)
        state = state.detach();
        let loss = cross_entropy(&logits, &targets, None)?.to_dtype(DType::F64)?;
        nats += loss.to_scalar::<f64>()? * (end - start) as f64;
    }
    Ok(nats / (tokens.len() - 1) as f64)
}
