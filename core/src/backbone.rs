//! A stack of blocks with a final norm: the body of a causal model.

use crate::memory::dense::{HiddenStates, SelectiveTransition};
use crate::mixer::{Mixer, MixerConfig, MixerState};
use crate::nn::{GatedMlp, Norm, NormKind};
use crate::{Block, Error, ParamBuilder, checkpoint};
use candle_core::{D, Device, Result, Tensor, bail};
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
        Ok(Self {
            layers,
            transitions,
            dense_layers,
            norm_f: Norm::new(cfg.norm, cfg.d_model, cfg.norm_epsilon, &pb.pp("norm_f"))?,
        })
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
        team::gather_if(x.elem_count() <= SHORT * x.dim(D::Minus1)?, || {
            self.forward_each(x, segments, state, |_| ())
        })
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
