//! A stack of blocks with a final norm: the body of a causal model.

use crate::memory::dense::{HiddenStates, SelectiveTransition};
use crate::mixer::{Mixer, MixerConfig, MixerState};
use crate::nn::{GatedMlp, Norm, NormKind};
use crate::params::Param;
use crate::{Block, Error, ParamBuilder, checkpoint};
use candle_core::{Device, Result, Tensor, bail};
use mamba_kernels::{Segments, team};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// More layers than any model has: a state that claims more is not one.
const MOST_LAYERS: usize = 100_000;

/// Sizes of a [`Backbone`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneConfig {
    /// Width.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Hidden width of the feed-forward layer of each block; 0 for none.
    pub d_intermediate: usize,
    /// Which norm.
    pub norm: NormKind,
    /// Added under its root.
    pub norm_epsilon: f64,
    /// The mixers.
    pub mixer: MixerConfig,
    /// How many shallower layers' hidden states each layer reads (DenseSSM, [`crate::memory::dense`]); 0 for none. For
    /// Mamba-1 mixers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dense_layers: usize,
}

/// Whether a count is left out of a config.
pub(crate) fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Tokens at once that are a decoding step rather than a text.
const SHORT: usize = 4;
/// Tokens of all rows together that a model without a graph reads at once: what lies between its layers then stays small
/// and near, however long the rows are.
const PIECE: usize = 1024;
/// Fewest of each row.
const LEAST_PIECE: usize = 256;

/// The states of all layers of a [`Backbone`].
#[derive(Clone, Debug, Default)]
pub struct BackboneState {
    /// One for each layer; empty at the beginning of a sequence.
    pub layers: Vec<MixerState>,
}

impl BackboneState {
    /// The beginning of a sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same values without their history.
    pub fn detach(&self) -> Self {
        Self { layers: self.layers.iter().map(MixerState::detach).collect() }
    }

    /// Whether a graph lies behind any of it.
    fn is_tracked(&self) -> bool {
        self.layers.iter().any(|layer| layer.parts().iter().any(|(_, tensor)| tensor.track_op()))
    }

    /// Writes the state as one safetensors file, tensors `layers.I.KIND.PART`.
    pub fn save(&self, path: impl AsRef<Path>) -> crate::Result<()> {
        let mut tensors = BTreeMap::new();
        for (i, layer) in self.layers.iter().enumerate() {
            for (part, tensor) in layer.parts() {
                tensors.insert(format!("layers.{i}.{}.{part}", layer.kind()), tensor.detach().contiguous()?);
            }
        }
        let layers = BTreeMap::from([("layers".to_string(), self.layers.len().to_string())]);
        checkpoint::save_safetensors(path, &tensors, &layers)
    }

    /// Reads a state that [`BackboneState::save`] wrote.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> crate::Result<Self> {
        let path = path.as_ref();
        let bad = |message: String| Error::checkpoint(path, message);
        let (tensors, metadata) = checkpoint::load_safetensors(path)?;
        let layers = metadata.get("layers").and_then(|n| n.parse::<usize>().ok());
        let layers = layers.filter(|&n| n <= MOST_LAYERS);
        let layers = layers.ok_or_else(|| bad("not a state: its header has no number of layers".into()))?;
        let mut parts: Vec<(Option<String>, BTreeMap<String, Tensor>)> = vec![Default::default(); layers];
        for (name, tensor) in tensors {
            let place = match name.split('.').collect::<Vec<_>>()[..] {
                ["layers", i, kind, part] => i.parse::<usize>().ok().map(|i| (i, kind, part)),
                _ => None,
            };
            let Some((i, kind, part)) = place.filter(|(i, ..)| *i < layers) else {
                return Err(bad(format!("{name} is no part of the state of {layers} layers")));
            };
            let (layer_kind, layer) = &mut parts[i];
            if layer_kind.get_or_insert_with(|| kind.to_string()) != kind {
                return Err(bad(format!("layer {i} has parts of two kinds of mixer")));
            }
            layer.insert(part.to_string(), tensor.to_device(device)?);
        }
        let state = |(kind, parts): (Option<String>, _)| {
            MixerState::from_parts(kind.as_deref().unwrap_or("start"), parts).map_err(|e| bad(e.to_string()))
        };
        Ok(Self { layers: parts.into_iter().map(state).collect::<crate::Result<_>>()? })
    }
}

/// Blocks and a final norm.
#[derive(Clone, Debug)]
pub struct Backbone {
    layers: Vec<Block<Mixer>>,
    /// For each layer the transitions from those before it, the nearest first.
    transitions: Vec<Vec<SelectiveTransition>>,
    /// Layers whose hidden states are kept.
    dense_layers: usize,
    norm_f: Norm,
    /// Whether a graph reaches back to some parameter.
    trained: bool,
}

impl Backbone {
    /// Parameters `layers.i.*` and `norm_f` under `pb`; `layers.i.dense.k` of the transition from layer `i - 1 - k`.
    pub fn new(cfg: &BackboneConfig, pb: &ParamBuilder) -> Result<Self> {
        let norm = (cfg.norm, cfg.norm_epsilon);
        let residuals = cfg.n_layer * if cfg.d_intermediate > 0 { 2 } else { 1 };
        let layers = (0..cfg.n_layer)
            .map(|i| {
                let pb = pb.pp("layers").pp(i);
                let mixer = Mixer::new(cfg.d_model, &cfg.mixer, residuals, &pb.pp("mixer"))?;
                let mlp = match cfg.d_intermediate {
                    0 => None,
                    hidden => Some(GatedMlp::new(cfg.d_model, hidden, residuals, &pb.pp("mlp"))?),
                };
                Block::new(cfg.d_model, norm, mixer, mlp, &pb)
            })
            .collect::<Result<_>>()?;
        let transitions = match &cfg.mixer {
            _ if cfg.dense_layers == 0 => Vec::new(),
            MixerConfig::Mamba1(mixer) if !mixer.is_complex() => {
                let d_inner = mixer.d_inner(cfg.d_model);
                let of_layer = |i: usize| {
                    let pb = pb.pp("layers").pp(i).pp("dense");
                    let from = |k: usize| SelectiveTransition::new(d_inner, d_inner, &pb.pp(k));
                    (0..cfg.dense_layers.min(i)).map(from).collect()
                };
                (0..cfg.n_layer).map(of_layer).collect::<Result<_>>()?
            }
            other => {
                bail!(
                    "dense_layers is {}, but the mixers are {}, expected mamba1 with real states",
                    cfg.dense_layers,
                    other.kind()
                )
            }
        };
        let dense_layers = cfg.dense_layers;
        let norm_f = Norm::new(cfg.norm, cfg.d_model, cfg.norm_epsilon, &pb.pp("norm_f"))?;
        let own = |param: &Param| param.name().starts_with(pb.prefix());
        let trained = pb.params().named().iter().any(|param| own(param) && param.var().is_some());
        Ok(Self { layers, transitions, dense_layers, norm_f, trained })
    }

    /// `(B, L, d_model)` → `(B, L, d_model)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, None, None)
    }

    /// The same for packed or padded sequences, and from and to a state.
    pub fn forward_with(
        &self,
        x: &Tensor,
        segments: Option<&Segments>,
        state: Option<&mut BackboneState>,
    ) -> Result<Tensor> {
        let (rows, len, _) = x.dims3()?;
        let piece = (PIECE / rows.max(1)).max(LEAST_PIECE);
        let tracked = self.trained || x.track_op() || state.as_ref().is_some_and(|state| state.is_tracked());
        if len > piece && segments.is_none() && !tracked {
            return self.forward_in_pieces(x, piece, state.unwrap_or(&mut BackboneState::new()));
        }
        team::gather_if(rows * len <= SHORT, || self.forward_each(x, segments, state, |_| ()))
    }

    /// `piece` tokens of each row after the other, through all layers.
    fn forward_in_pieces(&self, x: &Tensor, piece: usize, state: &mut BackboneState) -> Result<Tensor> {
        let y = Tensor::zeros(x.shape(), x.dtype(), x.device())?;
        let len = x.dim(1)?;
        for start in (0..len).step_by(piece) {
            let part = x.narrow(1, start, piece.min(len - start))?.contiguous()?;
            y.slice_set(&self.forward_each(&part, None, Some(state), |_| ())?, 1, start)?;
        }
        Ok(y)
    }

    /// One token: `(B, d_model)` → `(B, d_model)`.
    pub fn step(&self, x: &Tensor, state: &mut BackboneState) -> Result<Tensor> {
        self.forward_with(&x.unsqueeze(1)?, None, Some(state))?.squeeze(1)
    }

    /// [`Backbone::forward_with`] that shows `each` the residual stream `(B, L, d_model)` after every block.
    pub fn forward_each(
        &self,
        x: &Tensor,
        segments: Option<&Segments>,
        mut state: Option<&mut BackboneState>,
        mut each: impl FnMut(&Tensor),
    ) -> Result<Tensor> {
        if let Some(state) = state.as_deref_mut() {
            if state.layers.is_empty() {
                state.layers.resize_with(self.layers.len(), MixerState::new);
            }
            if state.layers.len() != self.layers.len() {
                bail!("state of {} layers for a backbone of {}", state.layers.len(), self.layers.len());
            }
        }
        let (mut hidden, mut residual) = (x.clone(), None);
        let mut shallower: VecDeque<HiddenStates> = VecDeque::new(); // the nearest first
        for (i, block) in self.layers.iter().enumerate() {
            let state = state.as_deref_mut().map(|s| &mut s.layers[i]);
            let (next, sum) = block.forward(&hidden, residual.as_ref(), |mixer, x| {
                let Some(transitions) = self.transitions.get(i) else {
                    return mixer.forward_with(x, segments, state);
                };
                let sources: Vec<_> = transitions.iter().zip(&shallower).collect();
                let (y, own) = mixer.forward_from(x, segments, state, &sources)?;
                shallower.push_front(own);
                shallower.truncate(self.dense_layers);
                Ok(y)
            })?;
            if i > 0 {
                each(&sum);
            }
            (hidden, residual) = (next, Some(sum));
        }
        let (y, sum) = self.norm_f.forward_residual(&hidden, residual.as_ref())?;
        each(&sum);
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mamba1Config, Params, Rng};
    use candle_core::DType;

    fn farthest(a: &Tensor, b: &Tensor) -> Result<f64> {
        (a - b)?.abs()?.max_all()?.to_scalar::<f64>()
    }

    #[test]
    fn long_rows_in_pieces_equal_the_whole() -> Result<()> {
        for (rows, len, dense_layers) in [(1, PIECE + 37, 0), (3, PIECE / 2 + 5, 1)] {
            let cfg = BackboneConfig {
                d_model: 4,
                n_layer: 2,
                d_intermediate: 0,
                norm: NormKind::Rms,
                norm_epsilon: 1e-5,
                mixer: Mamba1Config { d_state: 3, ..Mamba1Config::default() }.into(),
                dense_layers,
            };
            let fresh = Params::fresh(1, DType::F64, &Device::Cpu);
            let trained = Backbone::new(&cfg, &fresh.builder())?;
            let frozen = Params::frozen(fresh.to_tensors(), DType::F64, &Device::Cpu);
            let backbone = Backbone::new(&cfg, &frozen.builder())?;
            let x = Rng::new(2).normal_tensor((rows, len, 4), 0.0, 1.0, DType::F64, &Device::Cpu)?;
            let (mut at_once, mut in_pieces) = (BackboneState::new(), BackboneState::new());
            for _ in 0..2 {
                let whole = backbone.forward_each(&x, None, Some(&mut at_once), |_| ())?;
                let pieces = backbone.forward_with(&x, None, Some(&mut in_pieces))?;
                assert!(farthest(&whole, &pieces)? < 1e-12);
            }
            for (a, b) in at_once.layers.iter().zip(&in_pieces.layers) {
                for ((name, a), (_, b)) in a.parts().into_iter().zip(b.parts()) {
                    assert!(farthest(a, b)? < 1e-12, "{name}");
                }
            }
            // where a graph is wanted there is one
            assert!(trained.forward(&x)?.track_op());
            assert!(!backbone.forward(&x)?.track_op());
        }
        Ok(())
    }
}
