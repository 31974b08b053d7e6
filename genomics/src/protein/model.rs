//! Whichever of the protein models a checkpoint holds.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use mamba_core::{Checkpoint, Error, ParamBuilder, Params, Result, checkpoint};
use serde_json::Value;

use crate::protein::alphabet::Alphabet;
use crate::protein::prot_mamba::{Positions, ProtMambaInput};
use crate::protein::{MsaMamba, MsaMambaConfig, ProtMamba, ProtMambaConfig, PtmMamba, PtmMambaConfig};

/// Hyper-parameters of one of the models.
#[derive(Clone, Debug, PartialEq)]
pub enum ProteinConfig {
    /// [`ProtMamba`].
    ProtMamba(ProtMambaConfig),
    /// [`PtmMamba`].
    PtmMamba(PtmMambaConfig),
    /// [`MsaMamba`].
    MsaMamba(MsaMambaConfig),
}

impl ProteinConfig {
    /// Reads a checkpoint's `config.json`; where it does not name the model, as upstream's do not, the tensors do.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let has = |name: &str| checkpoint.tensors.contains_key(name);
        let named = checkpoint.config.get("model_type").and_then(Value::as_str);
        let ptm = has("backbone.forward_layers.0.norm.weight");
        Ok(match named {
            Some("msa_mamba") => Self::MsaMamba(checkpoint.parse_config()?),
            Some("ptm_mamba") => Self::PtmMamba(checkpoint.parse_config()?),
            _ if ptm => {
                let mut cfg: PtmMambaConfig = checkpoint.parse_config()?;
                if let Some(head) = checkpoint.tensors.get("esm_head.weight") {
                    cfg.esm_embed_dim = Some(head.dim(1)?);
                }
                if let Some(table) = checkpoint.tensors.get("backbone.embedding.weight") {
                    cfg.vocab_size = table.dim(0)?;
                }
                Self::PtmMamba(cfg)
            }
            None | Some("protmamba" | "mamba" | "") if has("backbone.embedding.weight") => {
                let mut cfg: ProtMambaConfig = checkpoint.parse_config()?;
                if checkpoint.config.get("add_position_ids").is_none() {
                    let rows = |name: &str| checkpoint.tensors.get(name).and_then(|table| table.dim(0).ok());
                    let positions = rows("backbone.position_embedding.weight");
                    let sequences = rows("backbone.seq_position_embedding.weight");
                    cfg.add_position_ids = match (positions, sequences) {
                        (None, _) => Positions::None,
                        (Some(_), None) => Positions::One,
                        (Some(_), Some(_)) => Positions::Two,
                    };
                    cfg.max_position_embeddings = positions.unwrap_or(cfg.max_position_embeddings);
                    cfg.max_sequence_position_embeddings =
                        sequences.unwrap_or(cfg.max_sequence_position_embeddings);
                }
                Self::ProtMamba(cfg)
            }
            other => {
                return Err(Error::Config(format!(
                    "model_type {:?} is no protein model, expected protmamba, ptm_mamba or msa_mamba",
                    other.unwrap_or("")
                )));
            }
        })
    }

    /// Refuses settings that make no model.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::ProtMamba(cfg) => cfg.validate(),
            Self::PtmMamba(cfg) => cfg.validate(),
            Self::MsaMamba(cfg) => cfg.validate(),
        }
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ProtMamba(_) => "protmamba",
            Self::PtmMamba(_) => "ptm_mamba",
            Self::MsaMamba(_) => "msa_mamba",
        }
    }

    /// The tokens that it knows.
    pub fn alphabet(&self) -> Alphabet {
        match self {
            Self::PtmMamba(_) => Alphabet::Modified,
            Self::ProtMamba(_) | Self::MsaMamba(_) => Alphabet::Homologs,
        }
    }

    /// `config.json`.
    pub fn to_json(&self) -> Value {
        let json = match self {
            Self::ProtMamba(cfg) => serde_json::to_value(cfg),
            Self::PtmMamba(cfg) => serde_json::to_value(cfg),
            Self::MsaMamba(cfg) => serde_json::to_value(cfg),
        };
        json.expect("a config of plain values has a JSON form")
    }

    /// The model, with parameters from a store.
    pub fn build(&self, pb: &ParamBuilder) -> candle_core::Result<ProteinModel> {
        Ok(match self {
            Self::ProtMamba(cfg) => ProteinModel::ProtMamba(ProtMamba::new(cfg, pb)?),
            Self::PtmMamba(cfg) => ProteinModel::PtmMamba(PtmMamba::new(cfg, pb)?),
            Self::MsaMamba(cfg) => ProteinModel::MsaMamba(MsaMamba::new(cfg, pb)?),
        })
    }
}

/// One of the models.
#[derive(Clone, Debug)]
pub enum ProteinModel {
    /// Causal, over homologs.
    ProtMamba(ProtMamba),
    /// Bidirectional, over one protein.
    PtmMamba(PtmMamba),
    /// Over an alignment.
    MsaMamba(MsaMamba),
}

/// What a model reads: `(B, L)` u32, or `(B, R, L)` ids for an alignment.
#[derive(Clone, Debug)]
pub struct ProteinInput {
    /// Token ids.
    pub ids: Tensor,
    /// Positions in the sequences, and their numbers; ProtMamba's.
    pub places: Option<(Tensor, Tensor)>,
    /// Tokens in each row; the rest is padding on the right.
    pub lengths: Option<Vec<usize>>,
}

impl ProteinModel {
    /// A checkpoint for inference: a folder or a weight file with a `config.json` beside it.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<(Self, ProteinConfig)> {
        let (config, tensors) = read(path)?;
        let params = Params::frozen(tensors, dtype, device);
        let problem = |e: &dyn std::fmt::Display| broken(path, e);
        let model = config.build(&params.builder()).map_err(|e| problem(&e))?;
        params.check().map_err(|e| problem(&e))?;
        Ok((model, config))
    }

    /// Logits `(B, L, vocabulary)`: of the token that follows (ProtMamba), or of the token itself.
    pub fn forward(&self, input: &ProteinInput) -> candle_core::Result<Tensor> {
        match self {
            Self::ProtMamba(model) => {
                let Some((positions, sequences)) = &input.places else {
                    candle_core::bail!("ProtMamba reads positions beside its tokens");
                };
                model.forward(ProtMambaInput { ids: &input.ids, positions, sequences })
            }
            Self::PtmMamba(model) => model.forward(&input.ids, None, input.lengths.as_deref()),
            Self::MsaMamba(model) => model.forward(&input.ids),
        }
    }
}

fn broken(path: &Path, problem: &dyn std::fmt::Display) -> Error {
    Error::Checkpoint { path: path.to_owned(), message: problem.to_string() }
}

/// Config and tensors of a checkpoint. Upstream names the mixers of checkpointed layers otherwise.
pub(crate) fn read(path: &Path) -> Result<(ProteinConfig, BTreeMap<String, Tensor>)> {
    let mut stored = checkpoint::load(path, None)?;
    stored.tensors = stored
        .tensors
        .into_iter()
        .map(|(name, tensor)| (name.replace(".ckpt_layer.", "."), tensor))
        .collect();
    let config = ProteinConfig::of(&stored).map_err(|e| broken(path, &e))?;
    Ok((config, stored.tensors))
}
