//! Causal language models, in the layouts of mamba_ssm and of Hugging Face transformers.

use crate::backbone::is_zero;
use crate::mamba1::{DtRank, Mamba1Config, expect_possible};
use crate::mamba2::{DtLimit, Mamba2Config};
use crate::mixer::MixerConfig;
use crate::nn::{Embedding, Linear, NormKind};
use crate::{
    Backbone, BackboneConfig, BackboneState, Checkpoint, Error, Init, ParamBuilder, Params, WeightFormat,
};
use candle_core::{DType, Device, Module, Result, Tensor};
use mamba_kernels::{Segments, team};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Hyper-parameters of a language model, with mamba_ssm's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LmConfig {
    /// Width.
    pub d_model: usize,
    /// Hidden width of the feed-forward layers; 0 for none.
    pub d_intermediate: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Tokens, before padding.
    pub vocab_size: usize,
    /// The mixers.
    pub ssm_cfg: SsmConfig,
    /// Layers that are attention instead; none are supported.
    pub attn_layer_idx: Vec<usize>,
    /// Settings of attention layers; unused.
    pub attn_cfg: Value,
    /// RMS norm, or layer norm.
    pub rms_norm: bool,
    /// Upstream keeps the residual in f32; ours has the type of the model, f32 or f64.
    pub residual_in_fp32: bool,
    /// Upstream's switch between two code paths of one function.
    pub fused_add_norm: bool,
    /// The vocabulary is padded to a multiple of this.
    pub pad_vocab_size_multiple: usize,
    /// Whether the head shares the embedding.
    pub tie_embeddings: bool,
    /// Added under the norms' root.
    pub norm_epsilon: f64,
    /// How many shallower layers' hidden states each layer reads ([`crate::memory::dense`]); none upstream.
    #[serde(skip_serializing_if = "is_zero")]
    pub dense_layers: usize,
}

impl Default for LmConfig {
    fn default() -> Self {
        Self {
            d_model: 2560,
            d_intermediate: 0,
            n_layer: 64,
            vocab_size: 50277,
            ssm_cfg: SsmConfig::default(),
            attn_layer_idx: Vec::new(),
            attn_cfg: Value::Null,
            rms_norm: true,
            residual_in_fp32: true,
            fused_add_norm: true,
            pad_vocab_size_multiple: 8,
            tie_embeddings: true,
            norm_epsilon: 1e-5,
            dense_layers: 0,
        }
    }
}

/// `ssm_cfg` of mamba_ssm: the mixer's settings, with its name under `"layer"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct SsmConfig {
    /// The mixer.
    pub mixer: MixerConfig,
}

impl<C: Into<MixerConfig>> From<C> for SsmConfig {
    fn from(mixer: C) -> Self {
        Self { mixer: mixer.into() }
    }
}

impl TryFrom<Map<String, Value>> for SsmConfig {
    type Error = Error;

    fn try_from(keys: Map<String, Value>) -> crate::Result<Self> {
        Ok(Self { mixer: MixerConfig::try_from(keys)? })
    }
}

impl From<SsmConfig> for Map<String, Value> {
    fn from(cfg: SsmConfig) -> Self {
        let mut keys = cfg.mixer.settings();
        if !matches!(cfg.mixer, MixerConfig::Mamba1(_)) {
            keys.insert("layer".into(), cfg.mixer.layer().into());
        }
        keys
    }
}

/// What we read of a transformers config, whatever the mixer.
#[derive(Deserialize)]
struct HubConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    #[serde(default = "default_epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "silu")]
    hidden_act: String,
}

/// What we read of one with `"model_type": "mamba"`.
#[derive(Deserialize)]
struct HubMamba1 {
    state_size: usize,
    conv_kernel: usize,
    expand: usize,
    time_step_rank: DtRank,
    #[serde(default)]
    use_bias: bool,
    #[serde(default = "yes")]
    use_conv_bias: bool,
}

/// What we read of one with `"model_type": "mamba2"`.
#[derive(Deserialize)]
struct HubMamba2 {
    state_size: usize,
    conv_kernel: usize,
    expand: usize,
    head_dim: usize,
    num_heads: usize,
    n_groups: usize,
    #[serde(default)]
    time_step_limit: DtLimit,
    #[serde(default)]
    use_bias: bool,
    #[serde(default = "yes")]
    use_conv_bias: bool,
}

impl From<HubMamba1> for MixerConfig {
    fn from(hub: HubMamba1) -> Self {
        Self::Mamba1(Mamba1Config {
            d_state: hub.state_size,
            d_conv: hub.conv_kernel,
            expand: hub.expand,
            dt_rank: hub.time_step_rank,
            bias: hub.use_bias,
            conv_bias: hub.use_conv_bias,
            ..Mamba1Config::default()
        })
    }
}

impl HubMamba2 {
    fn mixer(self, hub: &HubConfig) -> crate::Result<MixerConfig> {
        let Self { num_heads, head_dim, expand, .. } = self;
        if num_heads.checked_mul(head_dim) != expand.checked_mul(hub.hidden_size) {
            return Err(Error::Config(format!(
                "num_heads {num_heads} of head_dim {head_dim} are not expand {expand} times hidden_size {}",
                hub.hidden_size
            )));
        }
        Ok(MixerConfig::Mamba2(Mamba2Config {
            d_state: self.state_size,
            d_conv: self.conv_kernel,
            expand,
            headdim: head_dim,
            ngroups: self.n_groups,
            norm_epsilon: hub.layer_norm_epsilon,
            dt_limit: self.time_step_limit,
            bias: self.use_bias,
            conv_bias: self.use_conv_bias,
            ..Mamba2Config::default()
        }))
    }
}

fn silu() -> String {
    "silu".into()
}

fn yes() -> bool {
    true
}

fn default_epsilon() -> f64 {
    1e-5
}

impl LmConfig {
    /// Reads a config of either layout.
    ///
    /// A hub model of Mamba-2 with several groups is read as mamba_ssm computes it, with consecutive heads in one group and
    /// a norm for each group; some versions of transformers compute another function of the same weights.
    pub fn from_json(json: &Value) -> crate::Result<Self> {
        let bad = |e: serde_json::Error| Error::Config(format!("language model config: {e}"));
        let Some(model_type) = json.get("model_type") else {
            return serde_json::from_value(json.clone()).map_err(bad);
        };
        if model_type != "mamba" && model_type != "mamba2" {
            return Err(Error::Config(format!(
                "model_type is {model_type}, expected \"mamba\" or \"mamba2\""
            )));
        }
        let hub: HubConfig = serde_json::from_value(json.clone()).map_err(bad)?;
        if !["silu", "swish"].contains(&hub.hidden_act.as_str()) {
            return Err(Error::Config(format!("hidden_act is {:?}, expected \"silu\"", hub.hidden_act)));
        }
        let mixer = match model_type == "mamba" {
            true => serde_json::from_value::<HubMamba1>(json.clone()).map_err(bad)?.into(),
            false => serde_json::from_value::<HubMamba2>(json.clone()).map_err(bad)?.mixer(&hub)?,
        };
        Ok(Self {
            d_model: hub.hidden_size,
            n_layer: hub.num_hidden_layers,
            vocab_size: hub.vocab_size,
            pad_vocab_size_multiple: 1,
            tie_embeddings: hub.tie_word_embeddings,
            norm_epsilon: hub.layer_norm_epsilon,
            ssm_cfg: SsmConfig { mixer },
            ..Self::default()
        })
    }

    /// Refuses settings that make no model.
    pub fn validate(&self) -> crate::Result<()> {
        if !self.attn_layer_idx.is_empty() {
            return Err(Error::Config("attn_layer_idx: attention layers are not supported".into()));
        }
        if self.d_model == 0 || self.n_layer == 0 || self.vocab_size == 0 || self.pad_vocab_size_multiple == 0
        {
            let message = "d_model, n_layer, vocab_size and pad_vocab_size_multiple must be at least 1";
            return Err(Error::Config(message.into()));
        }
        self.ssm_cfg.mixer.validate_for(self.d_model)?;
        let real = matches!(&self.ssm_cfg.mixer, MixerConfig::Mamba1(cfg) if !cfg.is_complex());
        if self.dense_layers > 0 && !real {
            let message =
                format!("dense_layers is {}, which needs Mamba-1 layers with real states", self.dense_layers);
            return Err(Error::Config(message));
        }
        let [d, mlp, layers, vocab] =
            [self.d_model, self.d_intermediate, self.n_layer, self.vocab_size].map(|x| x as f64);
        let rows = vocab + self.pad_vocab_size_multiple as f64;
        let parameters = rows * d + layers * (self.ssm_cfg.mixer.size(self.d_model) + 3.0 * d * mlp);
        expect_possible(parameters, || {
            let Self { d_model, n_layer, d_intermediate, vocab_size, .. } = self;
            format!(
                "a model of d_model {d_model}, n_layer {n_layer}, d_intermediate {d_intermediate} and vocab_size {vocab_size}"
            )
        })
    }

    /// Rows of the embedding.
    pub fn padded_vocab_size(&self) -> usize {
        self.vocab_size.next_multiple_of(self.pad_vocab_size_multiple)
    }

    fn backbone(&self) -> BackboneConfig {
        BackboneConfig {
            d_model: self.d_model,
            n_layer: self.n_layer,
            d_intermediate: self.d_intermediate,
            norm: if self.rms_norm { NormKind::Rms } else { NormKind::Layer },
            norm_epsilon: self.norm_epsilon,
            mixer: self.ssm_cfg.mixer.clone(),
            dense_layers: self.dense_layers,
        }
    }
}

/// Embedding, backbone and head.
#[derive(Clone, Debug)]
pub struct MambaLm {
    embedding: Embedding,
    backbone: Backbone,
    head: Linear,
    vocab_size: usize,
}

impl MambaLm {
    /// Parameters `backbone.*` and, unless tied, `lm_head`.
    pub fn new(cfg: &LmConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (vocab, d) = (cfg.padded_vocab_size(), cfg.d_model);
        let init = Init::Normal { std: 0.02 };
        let mut names = vec!["backbone.embedding.weight", "backbone.embeddings.weight"];
        if cfg.tie_embeddings {
            names.push("lm_head.weight");
        }
        let embedding = pb.get_any((vocab, d), &names, init.clone())?;
        let head = match cfg.tie_embeddings {
            true => Linear::tied(&embedding, pb)?,
            false => Linear::with_init((vocab, d), Init::linear(d), None, &pb.pp("lm_head"))?,
        };
        Ok(Self {
            embedding: Embedding::from_tensor(embedding),
            backbone: Backbone::new(&cfg.backbone(), &pb.pp("backbone"))?,
            head,
            vocab_size: cfg.vocab_size,
        })
    }

    /// A checkpoint for inference.
    pub fn load(checkpoint: Checkpoint, dtype: DType, device: &Device) -> crate::Result<Self> {
        Self::load_as(checkpoint, WeightFormat::Full, dtype, device)
    }

    /// A checkpoint for inference with the weights of its linear maps in another format.
    pub fn load_as(
        checkpoint: Checkpoint,
        format: WeightFormat,
        dtype: DType,
        device: &Device,
    ) -> crate::Result<Self> {
        let cfg = LmConfig::from_json(&checkpoint.config)?;
        let params = Params::frozen(checkpoint.tensors, dtype, device).with_weight_format(format);
        let model = Self::new(&cfg, &params.builder())?;
        params.check()?;
        Ok(model)
    }

    /// `input_ids` `(B, L)` u32 → logits `(B, L, vocabulary)`.
    pub fn forward(&self, input_ids: &Tensor) -> Result<Tensor> {
        self.forward_with(input_ids, None, None)
    }

    /// The same for packed or padded sequences, and from and to a state.
    pub fn forward_with(
        &self,
        input_ids: &Tensor,
        segments: Option<&Segments>,
        state: Option<&mut BackboneState>,
    ) -> Result<Tensor> {
        let x = self.embed(input_ids)?;
        self.logits(&self.forward_embedded(&x, segments, state)?)
    }

    /// Tokens of the vocabulary, without those that pad it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Where the model lies.
    pub fn device(&self) -> &Device {
        self.embedding.weight().device()
    }

    /// The embeddings of tokens: `(…)` u32 → `(…, d_model)`.
    pub fn embed(&self, input_ids: &Tensor) -> Result<Tensor> {
        self.embedding.forward(input_ids)
    }

    /// What the head reads, from embeddings of any making (of tokens and positions, say): `(B, L, d_model)` →
    /// `(B, L, d_model)`.
    pub fn forward_embedded(
        &self,
        x: &Tensor,
        segments: Option<&Segments>,
        state: Option<&mut BackboneState>,
    ) -> Result<Tensor> {
        self.backbone.forward_with(x, segments, state)
    }

    /// The head: `(…, d_model)` → `(…, vocabulary)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    /// The residual stream after each block and, last, the output of the backbone; `(B, L, d_model)` each.
    pub fn hidden_states(&self, input_ids: &Tensor) -> Result<Vec<Tensor>> {
        let x = self.embedding.forward(input_ids)?;
        let mut states = Vec::new();
        let last = self.backbone.forward_each(&x, None, None, |x| states.push(x.clone()))?;
        states.push(last);
        Ok(states)
    }

    /// The logits of one more token of each row: `(B)` u32 → `(B, vocabulary)`.
    pub fn step(&self, input_ids: &Tensor, state: &mut BackboneState) -> Result<Tensor> {
        team::gather(|| {
            let x = self.embedding.forward(input_ids)?;
            self.head.forward(&self.backbone.step(&x, state)?)
        })
    }
}
