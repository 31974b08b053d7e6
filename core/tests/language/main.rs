//! What is done with a trained language model: published weights, generation, compact weights, adapters.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../models/mod.rs"]
mod models;

mod adapters;
mod compact;
mod compression;
mod dense;
mod directions;
mod generation;
mod protmamba;

use candle_core::{DType, Result, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::{Mamba1Config, Params, Rng};
use models::{CPU, perturb};

/// A small model away from its initialisation; the vocabulary of 11 is padded to 16.
fn config(tie_embeddings: bool) -> LmConfig {
    let mixer = Mamba1Config { d_state: 4, ..Default::default() };
    LmConfig {
        d_model: 16,
        d_intermediate: 24,
        n_layer: 2,
        vocab_size: 11,
        ssm_cfg: mixer.into(),
        tie_embeddings,
        ..Default::default()
    }
}

fn model(cfg: &LmConfig, dtype: DType) -> Result<(Params, MambaLm)> {
    let params = Params::fresh(1, dtype, &CPU);
    let lm = MambaLm::new(cfg, &params.builder())?;
    perturb(&params, 2)?;
    Ok((params, lm))
}

fn ids(batch: usize, len: usize, seed: u64) -> Result<Tensor> {
    let mut rng = Rng::new(seed);
    Tensor::from_vec((0..batch * len).map(|_| rng.below(11) as u32).collect(), (batch, len), &CPU)
}
