//! Mamba4KT (Cao and Zhang 2024, arXiv 2405.16542): a student's answers run through Mamba; what it knows then, beside the
//! skill that is asked for next, gives the chance of a right answer.
//!
//! ```text
//! e_t = I[skill_t, right_t],   e_0 = I[start]
//! h₀  = LN(dropout(e))
//! m   = LN(dropout(Mamba(h)) + h)
//! h'  = LN(dropout(W₂ dropout(gelu(W₁ m))) + m)
//! p(right_{t+1}) = σ(w · dropout(gelu(A h_t + B (h_t ⊙ q) + C q + b)) + b'),   q = Q[skill_{t+1}]
//! ```
//!
//! Without ids of questions there is no difficulty to learn beside the skill's own, so the paper's Rasch embeddings come down
//! to `I` and `Q`. No code was published; the product `h ⊙ q`, with which a skill asks for its own part of what is known,
//! is ours.

use crate::models::Initialization;
use crate::models::parts::{Dropout, FeedForward, INIT_STD, LayerNorm, linear, new_mixer};
use candle_core::{Module, Result, Tensor};
use mamba_core::mixer::Pass;
use mamba_core::nn::{Embedding, Linear};
use mamba_core::{Error, Init, Mixer, MixerConfig, ParamBuilder, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// Hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba4KtConfig {
    /// Width of embeddings and layers, d.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Dropout while training.
    pub dropout_prob: f64,
    /// The mixers.
    pub mixer: MixerConfig,
}

impl Default for Mamba4KtConfig {
    fn default() -> Self {
        Self { hidden_size: 64, num_layers: 1, dropout_prob: 0.2, mixer: MixerConfig::default() }
    }
}

impl Mamba4KtConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        if self.hidden_size == 0 || self.num_layers == 0 {
            let (d, n) = (self.hidden_size, self.num_layers);
            return Err(Error::Config(format!("hidden_size {d} and num_layers {n} must be at least 1")));
        }
        if !(0.0..1.0).contains(&self.dropout_prob) {
            let p = self.dropout_prob;
            return Err(Error::Config(format!("dropout_prob is {p}, must be at least 0 and below 1")));
        }
        self.mixer.validate_for(self.hidden_size)
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct Mamba4Kt {
    interactions: Embedding,
    skills: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// `A`, `B` and `C`, of which `C` has the bias.
    known: Linear,
    asked: Linear,
    skill: Linear,
    output: Linear,
    dropout_prob: f64,
}

#[derive(Clone, Debug)]
struct Layer {
    mamba: Mixer,
    norm: LayerNorm,
    ffn: FeedForward,
}

/// Row of the interaction table before the first answer.
pub const START: u32 = 0;

/// Row of the interaction table for an answer.
pub fn interaction(skill: u32, right: bool) -> u32 {
    1 + 2 * skill + u32::from(right)
}

impl Mamba4Kt {
    /// The parameters of the builder, for skills `1..n_skills` and the unknown one, 0.
    pub fn new(cfg: &Mamba4KtConfig, n_skills: usize, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let d = cfg.hidden_size;
        let table = |name: &str, rows: usize| {
            let table = pb.pp(name).get((rows, d), "weight", Init::Normal { std: INIT_STD })?;
            Ok::<_, candle_core::Error>(Embedding::from_tensor(table))
        };
        let without_bias = |name: &str| Linear::with_init((d, d), Init::linear(d), None, &pb.pp(name));
        let layer = |i: usize| {
            let pb = pb.pp("layers").pp(i);
            Ok(Layer {
                mamba: new_mixer(d, &cfg.mixer, Initialization::Mamba, &pb.pp("mamba"))?,
                norm: LayerNorm::new(d, &pb.pp("norm"))?,
                ffn: FeedForward::new(d, 4 * d, ["w_1", "w_2", "norm"], &pb.pp("ffn"))?,
            })
        };
        Ok(Self {
            interactions: table("interaction_embedding", 1 + 2 * n_skills)?,
            skills: table("skill_embedding", n_skills)?,
            norm: LayerNorm::new(d, &pb.pp("norm"))?,
            layers: (0..cfg.num_layers).map(layer).collect::<Result<_>>()?,
            known: without_bias("known")?,
            asked: without_bias("asked")?,
            skill: Linear::new(d, d, true, &pb.pp("skill"))?,
            output: linear(d, 1, &pb.pp("output"))?,
            dropout_prob: cfg.dropout_prob,
        })
    }

    /// Log odds of a right answer to a question of `next_skills` `(1, L)`, each after the `interactions` `(1, L)` up to and
    /// with its own place: `(L)`. With a generator, dropout is on.
    pub fn forward(
        &self,
        interactions: &Tensor,
        next_skills: &Tensor,
        segments: &Segments,
        rng: Option<&mut Rng>,
    ) -> Result<Tensor> {
        let mut dropout = Dropout::new(self.dropout_prob, rng);
        let embedded = self.interactions.forward(interactions)?; // (1, L, d)
        let mut hidden = self.norm.forward(&dropout.apply(embedded)?, None)?;
        for layer in &self.layers {
            let pass = Pass { segments: Some(segments), ..Pass::default() };
            let mixed = layer.mamba.forward_pass(&hidden, pass)?;
            let mixed = layer.norm.forward(&dropout.apply(mixed)?, Some(&hidden))?;
            hidden = layer.ffn.forward(&mixed, &mut dropout, true)?;
        }
        let skill = self.skills.forward(next_skills)?; // (1, L, d)
        let inner = (self.known.forward(&hidden)? + self.asked.forward(&(&hidden * &skill)?)?)?;
        let inner = mamba_kernels::gelu(&(inner + self.skill.forward(&skill)?)?)?; // (1, L, d)
        self.output.forward(&dropout.apply(inner)?)?.flatten_all() // (L)
    }
}
