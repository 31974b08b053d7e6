//! What all mixers share: a projection in, something that mixes the tokens, a projection out; and the choice between them.
//!
//! [`Mamba1`](crate::Mamba1), [`Mamba2`](crate::Mamba2), [`Mamba3`](crate::Mamba3) and [`S4dMixer`](crate::S4dMixer) are
//! [`MixerOf`] four kinds of [`Ssm`]. [`Mixer`] is any of them, as a [`MixerConfig`] says, so that a model leaves the choice to
//! its config:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mamba_core::{Mixer, MixerConfig, Params};
//!
//! let cfg: MixerConfig = serde_json::from_str(r#"{"type": "mamba2", "d_state": 16, "headdim": 8}"#)?;
//! let params = Params::fresh(42, DType::F32, &Device::Cpu);
//! let mixer = Mixer::new(32, &cfg, 1, &params.builder())?;
//! let y = mixer.forward(&Tensor::ones((1, 5, 32), DType::F32, &Device::Cpu)?)?;
//! assert_eq!(y.dims(), [1, 5, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::mamba1::{Mamba1Config, Mamba1State, SelectiveSsm};
use crate::mamba2::{DualSsm, Mamba2Config, Mamba2State};
use crate::mamba3::{Mamba3Config, Mamba3State, RotarySsm};
use crate::memory::dense::{HiddenStates, SelectiveTransition};
use crate::nn::Linear;
use crate::s4d::{GatedS4d, S4dConfig, S4dState};
use crate::{Error, Init, ParamBuilder};
use candle_core::{Module, Result, Tensor, bail};
use mamba_kernels::{Segments, team};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// How a sequence is run through a mixer with states of type `S`.
pub struct Pass<'a, S = Mamba1State> {
    /// Which tokens form a sequence; by default each batch row.
    pub segments: Option<&'a Segments>,
    /// From the last token to the first.
    pub reverse: bool,
    /// State before, replaced by the state after.
    pub state: Option<&'a mut S>,
}

impl<S> Default for Pass<'_, S> {
    fn default() -> Self {
        Self { segments: None, reverse: false, state: None }
    }
}

/// What lies between the projections of a mixer and mixes the tokens.
pub trait Ssm: Sized + Clone + Debug {
    /// Its hyper-parameters.
    type Config;
    /// What it remembers of the tokens before; by default that of the beginning of a sequence.
    type State: Clone + Debug + Default;

    /// Refuses hyper-parameters that make no mixer of this width, and says how wide the projections are.
    fn projections(d_model: usize, cfg: &Self::Config) -> crate::Result<Projections>;

    /// Its parameters under `pb`.
    fn create(d_model: usize, cfg: &Self::Config, pb: &ParamBuilder) -> Result<Self>;

    /// Projects the input `(B, L, d_model)` to what [`Ssm::mix`] takes, without splitting a `(B, L, ·)` tensor.
    fn project(&self, in_proj: &Linear, x: &Tensor) -> Result<Vec<Tensor>>;

    /// The projected input → what is projected back, `(B, L, d_inner)`.
    fn mix(&self, projected: &[Tensor], pass: Pass<'_, Self::State>) -> Result<Tensor>;
}

/// Widths of the projections of a mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projections {
    /// Outputs of `in_proj`.
    pub d_in_proj: usize,
    /// Inputs of `out_proj`.
    pub d_inner: usize,
    /// Whether the projections have a bias.
    pub bias: bool,
}

/// A mixer whose tokens are mixed by `S`.
#[derive(Clone, Debug)]
pub struct MixerOf<S> {
    in_proj: Linear,
    ssm: S,
    out_proj: Linear,
}

/// A mixer of any kind.
pub type Mixer = MixerOf<AnySsm>;

impl<S: Ssm> MixerOf<S> {
    /// A mixer of width `d_model`; `n_residual` is the number of residual branches of the whole model, by whose root
    /// upstream divides the initial `out_proj` (1 leaves it).
    pub fn new(d_model: usize, cfg: &S::Config, n_residual: usize, pb: &ParamBuilder) -> Result<Self> {
        let Projections { d_in_proj, d_inner, bias } =
            S::projections(d_model, cfg).map_err(candle_core::Error::wrap)?;
        let bias = || bias.then_some(Init::Zeros);
        let out_init = Init::linear(d_inner).scaled(1.0 / (n_residual.max(1) as f64).sqrt());
        let (in_pb, out_pb) = (pb.pp("in_proj"), pb.pp("out_proj"));
        Ok(Self {
            in_proj: Linear::with_init((d_in_proj, d_model), Init::linear(d_model), bias(), &in_pb)?,
            ssm: S::create(d_model, cfg, pb)?,
            out_proj: Linear::with_init((d_model, d_inner), out_init, bias(), &out_pb)?,
        })
    }

    pub(crate) fn in_proj(&self) -> &Linear {
        &self.in_proj
    }

    pub(crate) fn ssm(&self) -> &S {
        &self.ssm
    }

    pub(crate) fn out_proj(&self) -> &Linear {
        &self.out_proj
    }

    /// `(B, L, d_model)` → `(B, L, d_model)`; every row is a sequence from its beginning.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_pass(x, Pass::default())
    }

    /// The same for packed or padded sequences, and from and to a state: prefill, or a chunk of a longer sequence.
    pub fn forward_with(
        &self,
        x: &Tensor,
        segments: Option<&Segments>,
        state: Option<&mut S::State>,
    ) -> Result<Tensor> {
        self.forward_pass(x, Pass { segments, reverse: false, state })
    }

    /// One token: `(B, d_model)` → `(B, d_model)`.
    pub fn step(&self, x: &Tensor, state: &mut S::State) -> Result<Tensor> {
        team::gather(|| self.forward_with(&x.unsqueeze(1)?, None, Some(state))?.squeeze(1))
    }

    /// `(B, L, d_model)` → `(B, L, d_model)`, any way.
    pub fn forward_pass(&self, x: &Tensor, pass: Pass<'_, S::State>) -> Result<Tensor> {
        let projected = self.ssm.project(&self.in_proj, x)?;
        self.out_proj.forward(&self.ssm.mix(&projected, pass)?)
    }
}

/// The state of one kind inside `state`, which becomes one of that kind if it is a beginning.
macro_rules! state_of {
    ($state:expr, $kind:ident) => {
        match $state {
            None => None,
            Some(state) => {
                if let MixerState::Start = state {
                    *state = MixerState::$kind(Default::default());
                }
                match state {
                    MixerState::$kind(state) => Some(state),
                    other => bail!("a state of {}, for a mixer of {}", other.kind(), stringify!($kind)),
                }
            }
        }
    };
}

impl Mixer {
    /// [`MixerOf::forward_with`] of a Mamba-1 mixer that also reads the hidden states of shallower layers, and hands out its
    /// own.
    pub(crate) fn forward_from(
        &self,
        x: &Tensor,
        segments: Option<&Segments>,
        state: Option<&mut MixerState>,
        sources: &[(&SelectiveTransition, &HiddenStates)],
    ) -> Result<(Tensor, HiddenStates)> {
        let AnySsm::Mamba1(ssm) = &self.ssm else { bail!("dense connections are for Mamba-1 mixers") };
        let projected = ssm.project(&self.in_proj, x)?;
        let [x, z] = &projected[..] else { bail!("Mamba-1 mixes x and z, got {} tensors", projected.len()) };
        let pass = Pass { segments, reverse: false, state: state_of!(state, Mamba1) };
        let (y, own) = ssm.forward_from(x, z, pass, Some(sources))?;
        let own = own.ok_or_else(|| candle_core::Error::msg("a layer without hidden states"))?;
        Ok((self.out_proj.forward(&y)?, own))
    }
}

/// Which mixer, and its hyper-parameters. In JSON the key `"type"` (`"mamba1"`, `"mamba2"`, `"mamba3"`, `"s4d"`), or
/// mamba_ssm's `"layer"` (`"Mamba1"`, …), stands beside the hyper-parameters; without either it is Mamba-1, and so it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub enum MixerConfig {
    /// [`crate::Mamba1`].
    Mamba1(Mamba1Config),
    /// [`crate::Mamba2`].
    Mamba2(Mamba2Config),
    /// [`crate::Mamba3`].
    Mamba3(Mamba3Config),
    /// [`crate::S4dMixer`].
    S4d(S4dConfig),
}

impl Default for MixerConfig {
    fn default() -> Self {
        Self::Mamba1(Mamba1Config::default())
    }
}

impl MixerConfig {
    /// `"mamba1"`, `"mamba2"`, `"mamba3"` or `"s4d"`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Mamba1(_) => "mamba1",
            Self::Mamba2(_) => "mamba2",
            Self::Mamba3(_) => "mamba3",
            Self::S4d(_) => "s4d",
        }
    }

    /// The class of mamba_ssm: `"Mamba1"`, `"Mamba2"` or `"Mamba3"`; `"S4D"`, which it does not have.
    pub fn layer(&self) -> &'static str {
        match self {
            Self::Mamba1(_) => "Mamba1",
            Self::Mamba2(_) => "Mamba2",
            Self::Mamba3(_) => "Mamba3",
            Self::S4d(_) => "S4D",
        }
    }

    /// Values that the state of one channel has.
    pub fn d_state(&self) -> usize {
        match self {
            Self::Mamba1(cfg) => cfg.d_state,
            Self::Mamba2(cfg) => cfg.d_state,
            Self::Mamba3(cfg) => cfg.d_state,
            Self::S4d(cfg) => cfg.d_state,
        }
    }

    /// Taps of the convolution, 0 without one.
    pub fn d_conv(&self) -> usize {
        match self {
            Self::Mamba1(cfg) => cfg.d_conv,
            Self::Mamba2(cfg) => cfg.d_conv,
            Self::Mamba3(_) | Self::S4d(_) => 0,
        }
    }

    /// Width inside the mixer, in multiples of the model's.
    pub fn expand(&self) -> usize {
        match self {
            Self::Mamba1(cfg) => cfg.expand,
            Self::Mamba2(cfg) => cfg.expand,
            Self::Mamba3(cfg) => cfg.expand,
            Self::S4d(cfg) => cfg.expand,
        }
    }

    /// Whether the projections have a bias.
    pub fn bias(&self) -> bool {
        match self {
            Self::Mamba1(cfg) => cfg.bias,
            Self::Mamba2(cfg) => cfg.bias,
            Self::Mamba3(_) => false,
            Self::S4d(cfg) => cfg.bias,
        }
    }

    /// About how many parameters a mixer of width `d_model` has.
    #[cfg(feature = "lm")]
    pub(crate) fn size(&self, d_model: usize) -> f64 {
        match self {
            Self::Mamba1(cfg) => cfg.size(d_model),
            Self::Mamba2(cfg) => cfg.size(d_model),
            Self::Mamba3(cfg) => cfg.size(d_model),
            Self::S4d(cfg) => cfg.size(d_model),
        }
    }

    /// Refuses hyper-parameters that make no mixer, whatever its width.
    pub fn validate(&self) -> crate::Result<()> {
        match self {
            Self::Mamba1(cfg) => cfg.validate(),
            Self::Mamba2(cfg) => cfg.validate(),
            Self::Mamba3(cfg) => cfg.validate(),
            Self::S4d(cfg) => cfg.validate(),
        }
    }

    /// Refuses hyper-parameters that make no mixer of this width.
    pub fn validate_for(&self, d_model: usize) -> crate::Result<()> {
        AnySsm::projections(d_model, self).map(|_| ())
    }

    /// The hyper-parameters alone, without the kind.
    pub(crate) fn settings(&self) -> Map<String, Value> {
        let value = match self {
            Self::Mamba1(cfg) => serde_json::to_value(cfg),
            Self::Mamba2(cfg) => serde_json::to_value(cfg),
            Self::Mamba3(cfg) => serde_json::to_value(cfg),
            Self::S4d(cfg) => serde_json::to_value(cfg),
        };
        match value {
            Ok(Value::Object(keys)) => keys,
            other => unreachable!("a config is an object with text keys, got {other:?}"),
        }
    }
}

impl From<Mamba1Config> for MixerConfig {
    fn from(cfg: Mamba1Config) -> Self {
        Self::Mamba1(cfg)
    }
}

impl From<Mamba2Config> for MixerConfig {
    fn from(cfg: Mamba2Config) -> Self {
        Self::Mamba2(cfg)
    }
}

impl From<Mamba3Config> for MixerConfig {
    fn from(cfg: Mamba3Config) -> Self {
        Self::Mamba3(cfg)
    }
}

impl From<S4dConfig> for MixerConfig {
    fn from(cfg: S4dConfig) -> Self {
        Self::S4d(cfg)
    }
}

impl From<&Mamba1Config> for MixerConfig {
    fn from(cfg: &Mamba1Config) -> Self {
        Self::Mamba1(cfg.clone())
    }
}

impl From<&MixerConfig> for MixerConfig {
    fn from(cfg: &MixerConfig) -> Self {
        cfg.clone()
    }
}

/// By hand, because serde ignores unknown keys beside a tag, and because the tag may be absent.
impl TryFrom<Map<String, Value>> for MixerConfig {
    type Error = Error;

    fn try_from(mut keys: Map<String, Value>) -> crate::Result<Self> {
        let kinds: Vec<(&str, Value)> =
            ["type", "layer"].iter().filter_map(|key| Some((*key, keys.remove(*key)?))).collect();
        let mut chosen: Option<String> = None;
        for (key, value) in kinds {
            let name = value.as_str().map(str::to_lowercase);
            let known = name.filter(|name| ["mamba1", "mamba2", "mamba3", "s4d"].contains(&name.as_str()));
            let Some(name) = known else {
                return Err(Error::Config(format!(
                    "{key} of the mixer is {value}, expected \"mamba1\", \"mamba2\", \"mamba3\" or \"s4d\""
                )));
            };
            if let Some(other) = chosen.filter(|other| *other != name) {
                return Err(Error::Config(format!("the mixer's type is {other:?} and its layer {name:?}")));
            }
            chosen = Some(name);
        }
        let (settings, kind) = (Value::Object(keys), chosen.as_deref().unwrap_or("mamba1"));
        let bad = |e: serde_json::Error| Error::Config(format!("settings of a {kind} mixer: {e}"));
        match kind {
            "mamba1" => serde_json::from_value(settings).map(Self::Mamba1).map_err(bad),
            "mamba2" => serde_json::from_value(settings).map(Self::Mamba2).map_err(bad),
            "mamba3" => serde_json::from_value(settings).map(Self::Mamba3).map_err(bad),
            _ => serde_json::from_value(settings).map(Self::S4d).map_err(bad),
        }
    }
}

impl From<MixerConfig> for Map<String, Value> {
    fn from(cfg: MixerConfig) -> Self {
        let mut keys = cfg.settings();
        if !matches!(cfg, MixerConfig::Mamba1(_)) {
            keys.insert("type".into(), cfg.kind().into());
        }
        keys
    }
}

/// What mixes the tokens of a [`Mixer`].
#[derive(Clone, Debug)]
pub enum AnySsm {
    /// Of [`crate::Mamba1`].
    Mamba1(SelectiveSsm),
    /// Of [`crate::Mamba2`].
    Mamba2(DualSsm),
    /// Of [`crate::Mamba3`].
    Mamba3(RotarySsm),
    /// Of [`crate::S4dMixer`].
    S4d(GatedS4d),
}

/// The state of a [`Mixer`].
#[derive(Clone, Debug, Default)]
pub enum MixerState {
    /// The beginning of a sequence, whatever the mixer.
    #[default]
    Start,
    /// Of [`crate::Mamba1`].
    Mamba1(Mamba1State),
    /// Of [`crate::Mamba2`].
    Mamba2(Mamba2State),
    /// Of [`crate::Mamba3`].
    Mamba3(Mamba3State),
    /// Of [`crate::S4dMixer`].
    S4d(S4dState),
}

impl MixerState {
    /// The beginning of a sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same values without their history: gradients end here (truncated back-propagation through time).
    pub fn detach(&self) -> Self {
        match self {
            Self::Start => Self::Start,
            Self::Mamba1(state) => Self::Mamba1(state.detach()),
            Self::Mamba2(state) => Self::Mamba2(state.detach()),
            Self::Mamba3(state) => Self::Mamba3(state.detach()),
            Self::S4d(state) => Self::S4d(state.detach()),
        }
    }

    /// `"mamba1"`, …, or `"start"`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Mamba1(_) => "mamba1",
            Self::Mamba2(_) => "mamba2",
            Self::Mamba3(_) => "mamba3",
            Self::S4d(_) => "s4d",
        }
    }

    /// The tensors that are there, by name; each has one leading row for every segment.
    pub fn parts(&self) -> Vec<(&'static str, &Tensor)> {
        let parts = match self {
            Self::Start => Vec::new(),
            Self::Mamba1(Mamba1State { conv, ssm }) => vec![("conv", conv), ("ssm", ssm)],
            Self::Mamba2(Mamba2State { conv, ssm }) => vec![("conv", conv), ("ssm", ssm)],
            Self::Mamba3(Mamba3State { angle, ssm, k, v }) => {
                vec![("angle", angle), ("ssm", ssm), ("k", k), ("v", v)]
            }
            Self::S4d(S4dState { ssm }) => vec![("ssm", ssm)],
        };
        parts.into_iter().filter_map(|(name, part)| Some((name, part.as_ref()?))).collect()
    }

    /// A state of such tensors, of the kind that [`MixerState::kind`] names.
    pub fn from_parts(kind: &str, mut parts: BTreeMap<String, Tensor>) -> crate::Result<Self> {
        let mut take = |name: &str| parts.remove(name);
        let state = match kind {
            "start" => Self::Start,
            "mamba1" => Self::Mamba1(Mamba1State { conv: take("conv"), ssm: take("ssm") }),
            "mamba2" => Self::Mamba2(Mamba2State { conv: take("conv"), ssm: take("ssm") }),
            "mamba3" => Self::Mamba3(Mamba3State {
                angle: take("angle"),
                ssm: take("ssm"),
                k: take("k"),
                v: take("v"),
            }),
            "s4d" => Self::S4d(S4dState { ssm: take("ssm") }),
            _ => return Err(Error::Config(format!("there is no mixer of kind {kind:?}"))),
        };
        match parts.keys().next() {
            Some(name) => Err(Error::Config(format!("a state of {kind} has no part {name:?}"))),
            None => Ok(state),
        }
    }
}

impl Ssm for AnySsm {
    type Config = MixerConfig;
    type State = MixerState;

    fn projections(d_model: usize, cfg: &MixerConfig) -> crate::Result<Projections> {
        match cfg {
            MixerConfig::Mamba1(cfg) => SelectiveSsm::projections(d_model, cfg),
            MixerConfig::Mamba2(cfg) => DualSsm::projections(d_model, cfg),
            MixerConfig::Mamba3(cfg) => RotarySsm::projections(d_model, cfg),
            MixerConfig::S4d(cfg) => GatedS4d::projections(d_model, cfg),
        }
    }

    fn create(d_model: usize, cfg: &MixerConfig, pb: &ParamBuilder) -> Result<Self> {
        match cfg {
            MixerConfig::Mamba1(cfg) => Ok(Self::Mamba1(SelectiveSsm::create(d_model, cfg, pb)?)),
            MixerConfig::Mamba2(cfg) => Ok(Self::Mamba2(DualSsm::create(d_model, cfg, pb)?)),
            MixerConfig::Mamba3(cfg) => Ok(Self::Mamba3(RotarySsm::create(d_model, cfg, pb)?)),
            MixerConfig::S4d(cfg) => Ok(Self::S4d(GatedS4d::create(d_model, cfg, pb)?)),
        }
    }

    fn project(&self, in_proj: &Linear, x: &Tensor) -> Result<Vec<Tensor>> {
        match self {
            Self::Mamba1(ssm) => ssm.project(in_proj, x),
            Self::Mamba2(ssm) => ssm.project(in_proj, x),
            Self::Mamba3(ssm) => ssm.project(in_proj, x),
            Self::S4d(ssm) => ssm.project(in_proj, x),
        }
    }

    fn mix(&self, projected: &[Tensor], pass: Pass<'_, MixerState>) -> Result<Tensor> {
        let Pass { segments, reverse, state } = pass;
        match self {
            Self::Mamba1(ssm) => {
                ssm.mix(projected, Pass { segments, reverse, state: state_of!(state, Mamba1) })
            }
            Self::Mamba2(ssm) => {
                ssm.mix(projected, Pass { segments, reverse, state: state_of!(state, Mamba2) })
            }
            Self::Mamba3(ssm) => {
                ssm.mix(projected, Pass { segments, reverse, state: state_of!(state, Mamba3) })
            }
            Self::S4d(ssm) => ssm.mix(projected, Pass { segments, reverse, state: state_of!(state, S4d) }),
        }
    }
}
