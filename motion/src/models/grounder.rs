//! Grounding: which frames of a long motion show what a text says. TM-Mamba (Wang et al. 2024, "Text-controlled Motion
//! Mamba: Text-Instructed Temporal Grounding of Human Motion", arXiv 2404.11375): the text takes part in the selection of the
//! scans, so that what is remembered depends on what is asked for.
//!
//! ```text
//! x  = W frame                                                          (B, L, 263) → (B, L, d)
//! x  ← x + out_proj(scan_forward(u) + scan_backward(u)),  u = in_proj(norm(x))
//! scan      (δ, B, C) ← (δ, B, C) + text_proj(q)                        the text q (B, d) enters all three
//! relevance = w · (norm(x) ⊙ U q) + b                                   (B, L) logits
//! ```
//!
//! The paper's scans are those of Mamba-1, whose δ, B and C are `x_proj` of the convolved x. With Mamba-2 or 3
//! (`ssm_cfg.type`), whose δ, B and C come out of `in_proj` beside x, the text is added there.
//!
//! The authors published no code. Left out here: their embedding of the skeleton's graph; the joints of the 263 features are
//! already relative to the root.

use super::attention::projection;
use super::condition::{Condition, ConditionConfig, ConditionEncoder};
use crate::features::N_FEATURES;
use candle_core::{Module, Result, Tensor};
use mamba_core::mixer::{AnySsm, Pass, Projections, Ssm};
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Error, Init, Mamba1Config, MixerConfig, ParamBuilder};
use mamba_kernels::{CausalConv1d, Segments, SelectiveScan};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;

/// Hyper-parameters of the grounding model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrounderConfig {
    /// Width.
    pub d_model: usize,
    /// Blocks.
    pub n_layer: usize,
    /// The scans: of Mamba-1, 2 or 3.
    pub ssm_cfg: MixerConfig,
    /// What is asked for.
    pub condition: ConditionConfig,
}

impl GrounderConfig {
    /// Refuses sizes that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        if !(1..=256).contains(&self.n_layer) {
            return Err(Error::Config(format!("grounding.n_layer is {}, expected 1 to 256", self.n_layer)));
        }
        validate_scans(self.d_model, &self.ssm_cfg)
    }
}

/// Refuses scans that a text cannot control, and sizes that make none.
pub(crate) fn validate_scans(d_model: usize, ssm_cfg: &MixerConfig) -> mamba_core::Result<()> {
    match ssm_cfg {
        MixerConfig::Mamba1(ssm) => {
            ssm.expect_plain("text-controlled scans")?;
            if !ssm.conv_bias {
                return Err(Error::Config("grounding.ssm_cfg: its scans need conv_bias".into()));
            }
        }
        MixerConfig::Mamba2(_) | MixerConfig::Mamba3(_) => {}
        MixerConfig::S4d(_) => {
            return Err(Error::Config(
                "grounding.ssm_cfg: scans of s4d select nothing that a text could take part in, expected mamba1, mamba2 \
                or mamba3"
                    .into(),
            ));
        }
    }
    ssm_cfg.validate_for(d_model).map_err(|e| Error::Config(format!("grounding.ssm_cfg: {e}")))
}

/// One direction, in whose selection the text takes part.
#[derive(Clone, Debug)]
enum TextScan {
    /// Of Mamba-1.
    Convolved(Box<ConvolvedScan>),
    /// Of Mamba-2 and 3.
    Projected(Box<ProjectedScan>),
}

impl TextScan {
    fn new(d_model: usize, cfg: &MixerConfig, pb: &ParamBuilder) -> Result<Self> {
        Ok(match cfg {
            MixerConfig::Mamba1(ssm) => Self::Convolved(Box::new(ConvolvedScan::new(d_model, ssm, pb)?)),
            _ => Self::Projected(Box::new(ProjectedScan::new(d_model, cfg, pb)?)),
        })
    }

    /// What `in_proj` makes of the input, `(B, L, ·)` each.
    fn project(&self, in_proj: &Linear, x: &Tensor) -> Result<Vec<Tensor>> {
        match self {
            Self::Convolved(scan) => Ok(in_proj.split(x, [scan.d.dim(0)?; 2])?.into()),
            Self::Projected(scan) => scan.ssm.project(in_proj, x),
        }
    }

    /// The projected input and `text` `(B, d)` → `(B, L, e)`.
    fn forward(&self, projected: &[Tensor], text: &Tensor, rows: &Segments, reverse: bool) -> Result<Tensor> {
        match self {
            Self::Convolved(scan) => scan.forward(projected, text, rows, reverse),
            Self::Projected(scan) => scan.forward(projected, text, rows, reverse),
        }
    }
}

/// A scan whose B, C and step sizes come out of `in_proj`.
#[derive(Clone, Debug)]
struct ProjectedScan {
    ssm: AnySsm,
    text_proj: Linear,
    /// The place of B among what `in_proj` makes; C and the step sizes follow.
    first: usize,
    /// Their widths.
    widths: [usize; 3],
}

impl ProjectedScan {
    fn new(d_model: usize, cfg: &MixerConfig, pb: &ParamBuilder) -> Result<Self> {
        let (heads, coefficients, first) = match cfg {
            MixerConfig::Mamba2(ssm) => {
                // z, x, B, C, dt; before them the two parts of channels without a state, if there are such
                let first = if ssm.d_ssm(d_model) < ssm.d_inner(d_model) { 4 } else { 2 };
                (ssm.nheads(d_model), ssm.ngroups * ssm.d_state, first)
            }
            MixerConfig::Mamba3(ssm) => (ssm.nheads(d_model), ssm.ngroups * ssm.d_state, 2), // z, x, B, C, dt, …
            other => {
                candle_core::bail!("grounding: in_proj of {} makes no B, C and step sizes", other.kind())
            }
        };
        let widths = [coefficients, coefficients, heads];
        let text_proj = Linear::new(d_model, widths.iter().sum(), false, &pb.pp("text_proj"))?;
        Ok(Self { ssm: AnySsm::create(d_model, cfg, pb)?, text_proj, first, widths })
    }

    /// The projected input and `text` `(B, d)` → `(B, L, e)`.
    fn forward(&self, projected: &[Tensor], text: &Tensor, rows: &Segments, reverse: bool) -> Result<Tensor> {
        let mut projected = projected.to_vec();
        let asked = self.text_proj.split(&text.unsqueeze(1)?, self.widths)?; // (B, 1, ·)
        for (part, asked) in projected.iter_mut().skip(self.first).zip(&asked) {
            *part = part.broadcast_add(asked)?;
        }
        self.ssm.mix(&projected, Pass { segments: Some(rows), reverse, state: None })
    }
}

/// Convolution and scan of Mamba-1.
#[derive(Clone, Debug)]
struct ConvolvedScan {
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Linear,
    text_proj: Linear,
    dt_proj: Linear,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
}

impl ConvolvedScan {
    fn new(d_model: usize, ssm: &Mamba1Config, pb: &ParamBuilder) -> Result<Self> {
        let (e, n, k, rank) = (ssm.d_inner(d_model), ssm.d_state, ssm.d_conv, ssm.dt_rank.resolve(d_model));
        let bound = (rank as f64).powf(-0.5) * ssm.dt_scale;
        let dt = pb.pp("dt_proj");
        let dt_bias = Init::DtBias { min: ssm.dt_min, max: ssm.dt_max, floor: ssm.dt_init_floor };
        Ok(Self {
            conv_weight: pb.pp("conv1d").get((e, k), "weight", Init::linear(k))?,
            conv_bias: pb.pp("conv1d").get_no_decay(e, "bias", Init::linear(k))?,
            x_proj: Linear::new(e, rank + 2 * n, false, &pb.pp("x_proj"))?,
            text_proj: Linear::new(d_model, rank + 2 * n, false, &pb.pp("text_proj"))?,
            dt_proj: Linear::with_init((e, rank), Init::Uniform { lo: -bound, hi: bound }, None, &dt)?,
            dt_bias: dt.get_no_decay(e, "bias", dt_bias)?,
            a_log: pb.get_no_decay((e, n), "A_log", Init::S4dReal)?,
            d: pb.get_no_decay(e, "D", Init::Ones)?,
        })
    }

    /// `x`, `z` `(B, L, e)`, `text` `(B, d)` → `(B, L, e)`.
    fn forward(&self, projected: &[Tensor], text: &Tensor, rows: &Segments, reverse: bool) -> Result<Tensor> {
        let [x, z] = projected else {
            candle_core::bail!("Mamba-1 scans x and z, got {} tensors", projected.len())
        };
        let (rank, n) = (self.dt_proj.weight().dim(1)?, self.a_log.dim(1)?);
        let conv = CausalConv1d::new(x, &self.conv_weight).bias(&self.conv_bias).silu(true);
        let x = conv.segments(rows).reverse(reverse).run()?;
        let seen = self.x_proj.split(&x, [rank, n, n])?; // (B, L, ·)
        let asked = self.text_proj.split(&text.unsqueeze(1)?, [rank, n, n])?; // (B, 1, ·)
        let both = |i: usize| seen[i].broadcast_add(&asked[i]);
        let delta = self.dt_proj.forward(&both(0)?)?; // (B, L, e)
        let a = self.a_log.exp()?.neg()?;
        let (b, c) = (both(1)?, both(2)?);
        let scan = SelectiveScan::new(&x, &delta, &a, &b, &c).skip(&self.d).gate(z);
        scan.delta_bias(&self.dt_bias).softplus(true).segments(rows).reverse(reverse).run()
    }
}

/// One block.
#[derive(Clone, Debug)]
struct Block {
    norm: Norm,
    in_proj: Linear,
    directions: [TextScan; 2],
    out_proj: Linear,
}

/// The grounding model.
#[derive(Clone, Debug)]
pub struct Grounder {
    input: Linear,
    condition: ConditionEncoder,
    blocks: Vec<Block>,
    norm: Norm,
    asked: Linear,
    output: Linear,
}

impl Grounder {
    /// A model under `pb`.
    pub fn new(cfg: &GrounderConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::from)?;
        let (d, n) = (cfg.d_model, cfg.n_layer);
        let Projections { d_in_proj, d_inner: e, bias } =
            AnySsm::projections(d, &cfg.ssm_cfg).map_err(candle_core::Error::from)?;
        let bias = || bias.then_some(Init::Zeros);
        let rms = |pb: ParamBuilder| Norm::new(NormKind::Rms, d, EPS, &pb);
        let block = |i: usize| {
            let pb = pb.pp("blocks").pp(i);
            let scan = |name: &str| TextScan::new(d, &cfg.ssm_cfg, &pb.pp(name));
            let out_init = Init::linear(e).scaled(1.0 / (n as f64).sqrt());
            Ok(Block {
                norm: rms(pb.pp("norm"))?,
                in_proj: Linear::with_init((d_in_proj, d), Init::linear(d), bias(), &pb.pp("in_proj"))?,
                directions: [scan("forward")?, scan("backward")?],
                out_proj: Linear::with_init((d, e), out_init, bias(), &pb.pp("out_proj"))?,
            })
        };
        Ok(Self {
            input: projection(N_FEATURES, d, &pb.pp("input"))?,
            condition: ConditionEncoder::new(&cfg.condition, d, &pb.pp("condition"))?,
            blocks: (0..n).map(block).collect::<Result<_>>()?,
            norm: rms(pb.pp("norm"))?,
            asked: projection(d, d, &pb.pp("asked"))?,
            output: projection(d, 1, &pb.pp("output"))?,
        })
    }

    /// Motions `(B, L, 263)`, standardised, of the given lengths, and what is asked for of each → logits `(B, L)` of each
    /// frame's showing it; beyond a length they mean nothing.
    pub fn forward(&self, motion: &Tensor, lengths: &[usize], condition: &Condition) -> Result<Tensor> {
        let (b, l, _) = motion.dims3()?;
        if [lengths.len(), condition.len()] != [b; 2] {
            candle_core::bail!(
                "grounding: {b} motions, {} lengths, {} conditions, expected as many of each",
                lengths.len(),
                condition.len()
            );
        }
        let rows = Segments::right_padded(l, lengths)?;
        let text = self.condition.forward(condition, motion.device())?.to_dtype(motion.dtype())?; // (B, d)
        let mut x = self.input.forward(motion)?; // (B, L, d)
        for block in &self.blocks {
            let [ahead, back] = &block.directions;
            let projected = ahead.project(&block.in_proj, &block.norm.forward(&x)?)?;
            let y = (ahead.forward(&projected, &text, &rows, false)?
                + back.forward(&projected, &text, &rows, true)?)?;
            x = (x + block.out_proj.forward(&y)?)?;
        }
        let asked = self.asked.forward(&text)?.unsqueeze(1)?; // (B, 1, d)
        self.output.forward(&self.norm.forward(&x)?.broadcast_mul(&asked)?)?.squeeze(2)
    }

    /// The loss of motions of whose frames `shown` `(B, L)` are 1: cross-entropy, and one minus the soft overlap (Dice), which
    /// does not count how rare the frames are.
    pub fn loss(
        &self,
        motion: &Tensor,
        lengths: &[usize],
        condition: &Condition,
        shown: &Tensor,
    ) -> Result<Tensor> {
        let logits = self.forward(motion, lengths, condition)?;
        let (_, l) = logits.dims2()?;
        let inside = lengths.iter().flat_map(|&n| (0..l).map(move |i| if i < n { 1f32 } else { 0.0 }));
        let inside =
            Tensor::from_iter(inside, motion.device())?.reshape(logits.shape())?.to_dtype(logits.dtype())?;
        // log(1 + exp(x)) without overflow.
        let softplus = (logits.relu()? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        let entropy = ((softplus - (&logits * shown)?)? * &inside)?.sum_all()?;
        let entropy = (entropy / lengths.iter().sum::<usize>().max(1) as f64)?;
        let p = (candle_nn::ops::sigmoid(&logits)? * &inside)?;
        let overlap = ((&p * shown)?.sum(1)? * 2.0)?;
        let dice = (overlap / ((p.sum(1)? + shown.sum(1)?)? + 1.0)?)?;
        entropy + (dice.mean_all()?.neg()? + 1.0)?
    }
}
