//! ProtMamba, a causal model of the homologs of a protein (Sgarbossa, Malbranke and Bitbol 2024, bioRxiv
//! 2024.05.24.595730).
//!
//! Homologs stand one after the other ([`fim`](super::fim)), and a Mamba language model reads them with the memory that its
//! state is. What enters it is put side by side: in "1d" half of the channels tell the token and half its position in its
//! sequence; in "2d" half, a quarter and a quarter tell token, position and which sequence it is. The head shares the token
//! embedding and so reads the first half of the output's channels only.

use std::collections::BTreeMap;

use candle_core::{D, Module, Result, Tensor};
use mamba_core::nn::{Embedding, Linear, NormKind, cross_entropy};
use mamba_core::{Backbone, BackboneConfig, BackboneState, Error, Init, MixerConfig, ParamBuilder};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protein::alphabet::{Alphabet, PAD};

/// What stands beside the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Positions {
    /// Nothing: all channels tell the token.
    #[serde(rename = "none")]
    None,
    /// The position in the sequence.
    #[serde(rename = "1d")]
    One,
    /// The position in the sequence, and the number of the sequence.
    #[default]
    #[serde(rename = "2d")]
    Two,
}

/// `config.json` of ProtMamba.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProtMambaConfig {
    /// Width.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Tokens, before padding.
    pub vocab_size: usize,
    /// The vocabulary is padded to a multiple of this.
    pub pad_vocab_size_multiple: usize,
    /// The mixers.
    pub ssm_cfg: MixerConfig,
    /// RMS norm, or layer norm.
    pub rms_norm: bool,
    /// Added under the norms' root.
    pub norm_epsilon: f64,
    /// What stands beside the tokens.
    pub add_position_ids: Positions,
    /// Positions that have an embedding; later ones take the last.
    pub max_position_embeddings: usize,
    /// Sequences that have an embedding; later ones take the last.
    pub max_sequence_position_embeddings: usize,
    /// What else the file says, kept as it is.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Default for ProtMambaConfig {
    fn default() -> Self {
        Self {
            d_model: 128,
            n_layer: 4,
            vocab_size: Alphabet::Homologs.len(),
            pad_vocab_size_multiple: 8,
            ssm_cfg: MixerConfig::default(),
            rms_norm: true,
            norm_epsilon: 1e-5,
            add_position_ids: Positions::default(),
            max_position_embeddings: 2048,
            max_sequence_position_embeddings: 512,
            other: BTreeMap::from([("model_type".to_string(), Value::from("protmamba"))]),
        }
    }
}

impl ProtMambaConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.ssm_cfg.validate_for(self.d_model)?;
        let (tokens, positions, sequences) = self.widths();
        let parts = match self.add_position_ids {
            Positions::None => vec![tokens],
            Positions::One => vec![tokens, positions],
            Positions::Two => vec![tokens, positions, sequences],
        };
        let sizes = [
            self.n_layer,
            self.pad_vocab_size_multiple,
            self.max_position_embeddings,
            self.max_sequence_position_embeddings,
        ];
        if parts.contains(&0) || sizes.contains(&0) {
            return Err(Error::Config(format!(
                "a ProtMamba of d_model {}, n_layer {} and positions {:?} has an empty part",
                self.d_model, self.n_layer, self.add_position_ids
            )));
        }
        if self.vocab_size < 33 {
            return Err(Error::Config(format!("vocab_size is {}, expected at least 33", self.vocab_size)));
        }
        Ok(())
    }

    /// Channels for token, position and number of the sequence.
    fn widths(&self) -> (usize, usize, usize) {
        let d = self.d_model;
        match self.add_position_ids {
            Positions::None => (d, 0, 0),
            Positions::One => (d / 2, d - d / 2, 0),
            Positions::Two => (d - d / 2, d / 4, d / 2 - d / 4),
        }
    }

    /// Whether spans can be taken out: the vocabulary has masks for them.
    pub fn fills_in(&self) -> bool {
        self.vocab_size >= Alphabet::Homologs.len()
    }
}

/// What goes in: `(B, L)` u32 each.
#[derive(Clone, Copy, Debug)]
pub struct ProtMambaInput<'a> {
    /// Token ids.
    pub ids: &'a Tensor,
    /// Positions in the sequences.
    pub positions: &'a Tensor,
    /// Numbers of the sequences.
    pub sequences: &'a Tensor,
}

/// Embeddings, backbone and tied head.
#[derive(Clone, Debug)]
pub struct ProtMamba {
    embedding: Embedding,
    positions: Option<Embedding>,
    sequences: Option<Embedding>,
    backbone: Backbone,
    d_tokens: usize,
}

impl ProtMamba {
    /// Parameters `backbone.*`; the head has none of its own.
    pub fn new(cfg: &ProtMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let vocab = cfg.vocab_size.next_multiple_of(cfg.pad_vocab_size_multiple);
        let (tokens, positions, sequences) = cfg.widths();
        let init = || Init::Normal { std: 0.02 };
        let embedding =
            pb.get_any((vocab, tokens), &["backbone.embedding.weight", "lm_head.weight"], init())?;
        let table = |rows: usize, width: usize, name: &str| -> Result<Option<Embedding>> {
            match width {
                0 => Ok(None),
                _ => {
                    let name = format!("backbone.{name}.weight");
                    Ok(Some(Embedding::from_tensor(pb.get((rows, width), &name, init())?)))
                }
            }
        };
        let backbone = BackboneConfig {
            d_model: cfg.d_model,
            n_layer: cfg.n_layer,
            d_intermediate: 0,
            norm: if cfg.rms_norm { NormKind::Rms } else { NormKind::Layer },
            norm_epsilon: cfg.norm_epsilon,
            mixer: cfg.ssm_cfg.clone(),
            dense_layers: 0,
        };
        Ok(Self {
            embedding: Embedding::from_tensor(embedding),
            positions: table(cfg.max_position_embeddings, positions, "position_embedding")?,
            sequences: table(cfg.max_sequence_position_embeddings, sequences, "seq_position_embedding")?,
            backbone: Backbone::new(&backbone, &pb.pp("backbone"))?,
            d_tokens: tokens,
        })
    }

    /// `(B, L)` ids → logits `(B, L, vocabulary)` of the tokens that follow.
    pub fn forward(&self, input: ProtMambaInput<'_>) -> Result<Tensor> {
        self.forward_with(input, None, None)
    }

    /// The same for packed sequences, and from and to a state: a long family goes in chunks.
    pub fn forward_with(
        &self,
        input: ProtMambaInput<'_>,
        segments: Option<&Segments>,
        state: Option<&mut BackboneState>,
    ) -> Result<Tensor> {
        let x = self.embed(input)?; // (B, L, D)
        let hidden = self.backbone.forward_with(&x, segments, state)?;
        let tokens = match self.positions {
            None => hidden,
            Some(_) => hidden.narrow(D::Minus1, 0, self.d_tokens)?.contiguous()?, // (B, L, d_tokens)
        };
        Linear::from_tensors(self.embedding.weight().clone(), None).forward(&tokens) // (B, L, vocabulary)
    }

    /// Token, position and sequence side by side: `(B, L, D)`.
    fn embed(&self, input: ProtMambaInput<'_>) -> Result<Tensor> {
        let mut parts = vec![self.embedding.forward(input.ids)?];
        for (table, ids) in [(&self.positions, input.positions), (&self.sequences, input.sequences)] {
            if let Some(table) = table {
                let last = (table.weight().dim(0)? - 1) as u32;
                parts.push(table.forward(&ids.minimum(&Tensor::full(
                    last,
                    ids.shape(),
                    ids.device(),
                )?)?)?);
            }
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Tensor::cat(&parts, D::Minus1),
        }
    }

    /// Mean cross-entropy in nats of each token given those before it. Labels `(B, L)` u32 are the tokens that follow, or
    /// `<pad>` where none counts.
    pub fn loss(&self, input: ProtMambaInput<'_>, labels: &Tensor) -> Result<Tensor> {
        cross_entropy(&self.forward(input)?, labels, Some(PAD))
    }
}
