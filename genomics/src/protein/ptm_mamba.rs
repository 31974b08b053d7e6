//! PTM-Mamba, a bidirectional protein model with tokens for modified residues (Peng et al. 2024, bioRxiv
//! 2024.02.28.581983).
//!
//! A layer is two pre-norm blocks that share nothing, one for each direction, and a linear map of both outputs side by
//! side. Both blocks add the same hidden states to the same residual stream, so that its mean over the directions, which
//! the published code takes, is that sum itself.
//!
//! ```text
//! x        = g ⊙ token + (1 - g) ⊙ other,   g = σ(W_g [token; other])      one gate for each token
//! stream   = x + stream
//! x        = W [mamba_f(norm_f(stream)); mamba_b(norm_b(stream))] + b      for each layer
//! logits   = E · norm(x + stream)                                          E: the token embedding
//! ```
//!
//! `other` is a projected embedding of another protein model (ESM-2 in the paper). Where none is given it is zero, as
//! published.

use std::collections::BTreeMap;

use candle_core::{D, Module, Result, Tensor, bail};
use mamba_core::mamba1::Pass;
use mamba_core::nn::{Embedding, Linear, Norm, NormKind, cross_entropy};
use mamba_core::{Error, Init, Mixer, MixerConfig, ParamBuilder};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protein::alphabet::{Alphabet, PAD};

/// `config.json` of PTM-Mamba.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PtmMambaConfig {
    /// Width.
    pub d_model: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Tokens; not padded.
    pub vocab_size: usize,
    /// The mixers.
    pub ssm_cfg: MixerConfig,
    /// RMS norm, or layer norm.
    pub rms_norm: bool,
    /// Added under the norms' root.
    pub norm_epsilon: f64,
    /// Width of the other model's embeddings (1280 in the paper); null for a model that takes none.
    pub esm_embed_dim: Option<usize>,
    /// What else the file says, kept as it is.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Default for PtmMambaConfig {
    fn default() -> Self {
        Self {
            d_model: 128,
            n_layer: 3,
            vocab_size: Alphabet::Modified.len(),
            ssm_cfg: MixerConfig::default(),
            rms_norm: true,
            norm_epsilon: 1e-5,
            esm_embed_dim: None,
            other: BTreeMap::from([("model_type".to_string(), Value::from("ptm_mamba"))]),
        }
    }
}

impl PtmMambaConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.ssm_cfg.validate_for(self.d_model)?;
        let known = Alphabet::Modified.len();
        if self.n_layer == 0 || self.vocab_size < known || self.esm_embed_dim == Some(0) {
            return Err(Error::Config(format!(
                "n_layer {} and esm_embed_dim {:?} must be at least 1, vocab_size {} at least {known}",
                self.n_layer, self.esm_embed_dim, self.vocab_size
            )));
        }
        Ok(())
    }
}

/// Embedding, gate, layers and tied head.
#[derive(Clone, Debug)]
pub struct PtmMamba {
    embedding: Embedding,
    gate: Linear,
    projection: Option<Linear>,
    layers: Vec<Layer>,
    norm_f: Norm,
}

#[derive(Clone, Debug)]
struct Layer {
    forward: (Norm, Mixer),
    backward: (Norm, Mixer),
    fusion: Linear,
}

impl PtmMamba {
    /// Parameters under upstream's names: `backbone.*`, and `esm_head` where the model takes embeddings.
    pub fn new(cfg: &PtmMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (d, layers) = (cfg.d_model, cfg.n_layer);
        let kind = if cfg.rms_norm { NormKind::Rms } else { NormKind::Layer };
        let names = ["backbone.embedding.weight", "lm_head.weight"];
        let embedding = pb.get_any((cfg.vocab_size, d), &names, Init::Normal { std: 0.02 })?;
        let projection = match cfg.esm_embed_dim {
            Some(width) => Some(Linear::new(width, d, false, &pb.pp("esm_head"))?),
            None => None,
        };
        let pb = pb.pp("backbone");
        let block = |pb: ParamBuilder| -> Result<(Norm, Mixer)> {
            let norm = Norm::new(kind, d, cfg.norm_epsilon, &pb.pp("norm"))?;
            Ok((norm, Mixer::new(d, &cfg.ssm_cfg, layers, &pb.pp("mixer"))?))
        };
        let layer = |i: usize| {
            Ok(Layer {
                forward: block(pb.pp("forward_layers").pp(i))?,
                backward: block(pb.pp("backward_layers").pp(i))?,
                fusion: Linear::new(2 * d, d, true, &pb.pp("hidden_fc").pp(i))?,
            })
        };
        Ok(Self {
            embedding: Embedding::from_tensor(embedding),
            gate: Linear::new(2 * d, 1, true, &pb.pp("gate"))?,
            projection,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            norm_f: Norm::new(kind, d, cfg.norm_epsilon, &pb.pp("norm_f"))?,
        })
    }

    /// `input_ids` `(B, L)` u32 → logits `(B, L, vocabulary)`. `other` `(B, L, esm_embed_dim)` are embeddings of another
    /// model; with `lengths`, row i has `lengths[i]` tokens and is padded on the right, which changes nothing.
    pub fn forward(
        &self,
        input_ids: &Tensor,
        other: Option<&Tensor>,
        lengths: Option<&[usize]>,
    ) -> Result<Tensor> {
        let segments = lengths.map(|n| Segments::right_padded(input_ids.dim(1)?, n)).transpose()?;
        let pass = |reverse: bool| Pass { segments: segments.as_ref(), reverse, state: None };
        let mut hidden = self.gated(&self.embedding.forward(input_ids)?, other)?; // (B, L, D)
        let mut stream: Option<Tensor> = None;
        for Layer { forward, backward, fusion } in &self.layers {
            let (x, sum) = forward.0.forward_residual(&hidden, stream.as_ref())?;
            let f = forward.1.forward_pass(&x, pass(false))?;
            let b = backward.1.forward_pass(&backward.0.forward(&sum)?, pass(true))?;
            let (of_f, of_b) = halves(fusion)?;
            // W [f; b] = W_f f + W_b b: nothing is put side by side.
            hidden = (of_f.forward(&f)? + of_b.forward(&b)?)?;
            stream = Some(sum);
        }
        let (x, _) = self.norm_f.forward_residual(&hidden, stream.as_ref())?;
        Linear::from_tensors(self.embedding.weight().clone(), None).forward(&x) // (B, L, vocabulary)
    }

    /// Tokens and the other model's embeddings, mixed by the gate.
    fn gated(&self, tokens: &Tensor, other: Option<&Tensor>) -> Result<Tensor> {
        let (of_tokens, of_other) = halves(&self.gate)?;
        let sigmoid = candle_nn::ops::sigmoid;
        match (other, &self.projection) {
            (None, _) => tokens.broadcast_mul(&sigmoid(&of_tokens.forward(tokens)?)?),
            (Some(_), None) => bail!("this PTM-Mamba takes no embeddings of another model"),
            (Some(other), Some(projection)) => {
                let other = projection.forward(other)?; // (B, L, D)
                let gate = sigmoid(&(of_tokens.forward(tokens)? + of_other.forward(&other)?)?)?; // (B, L, 1)
                tokens.broadcast_mul(&gate)? + other.broadcast_mul(&(1.0 - gate)?)?
            }
        }
    }

    /// Mean cross-entropy in nats over the labels `(B, L)` u32 that are not `<pad>`.
    pub fn loss(&self, input_ids: &Tensor, labels: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        cross_entropy(&self.forward(input_ids, None, lengths)?, labels, Some(PAD))
    }
}

/// A map of `[a; b]` as a map of `a`, with the bias, and one of `b`.
fn halves(map: &Linear) -> Result<(Linear, Linear)> {
    let d = map.weight().dim(D::Minus1)? / 2;
    let half = |i: usize| map.weight().narrow(1, i * d, d)?.contiguous();
    Ok((Linear::from_tensors(half(0)?, map.bias().cloned()), Linear::from_tensors(half(1)?, None)))
}
