//! The denoiser of Motion Mamba (Zhang et al. 2024, arXiv 2403.07487): a U-Net of Mamba blocks over the few tokens of a
//! latent motion, the time step and the condition.
//!
//! ```text
//! tokens = [z_t, step, condition] + positions                           (B, T + 2, d)
//! N encoder levels    x ← block(x)         with 2N-1, 2N-3, … 1 parallel scans
//! mixer               x ← x + attention(x, [step, condition])
//! N decoder levels    x ← block(norm(x + output of the encoder level on the other side))   with 1 … 2N-1 scans
//!
//! block   y = BSM(HTM(x)) · (W x + b)
//! HTM     hierarchical temporal Mamba: one input projection, K parallel (convolution, step sizes, A, D), joined
//! BSM     bidirectional spatial Mamba: the latent's channels are the sequence, the tokens are the width
//! ```
//!
//! The authors published no code. Decided here: the gate's bias starts at one and its weights small, so that depth does
//! not extinguish the signal; the length of the motion joins the step's token; a norm and a linear map end the network.
//! Every A and D is trained. The K scans of Mamba-1 run as one scan with K groups. With Mamba-2 or 3 (`ssm_cfg.type`), whose
//! input projection also gives B, C and the step sizes, that projection is what the K scans share.

use super::attention::{Attention, projection};
use candle_core::{Module, Result, Tensor};
use mamba_core::bidirectional::{BiMamba, Combine, Orientation};
use mamba_core::mixer::{AnySsm, Pass, Projections, Ssm};
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Error, Init, Mamba1Config, MixerConfig, ParamBuilder};
use mamba_kernels::{CausalConv1d, SelectiveScan};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;

/// How the parallel scans of a level are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Join {
    /// A linear map of all of them.
    #[default]
    Linear,
    /// Their mean.
    Mean,
}

/// Hyper-parameters of the denoiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MotionMambaConfig {
    /// Levels of the encoder, N, and as many of the decoder.
    pub n_level: usize,
    /// Heads of the mixer.
    pub n_head: usize,
    /// Mixers of both kinds. Of Mamba-2 and 3 `headdim` must divide the widths of both.
    pub ssm_cfg: MixerConfig,
    /// How the parallel scans are joined.
    pub join: Join,
}

impl Default for MotionMambaConfig {
    fn default() -> Self {
        Self { n_level: 11, n_head: 4, ssm_cfg: MixerConfig::default(), join: Join::Linear }
    }
}

impl MotionMambaConfig {
    /// Parallel scans of the encoder's levels; the decoder has them in the opposite order.
    pub fn scans(&self) -> Vec<usize> {
        (1..=self.n_level).rev().map(|level| 2 * level - 1).collect()
    }

    /// Refuses sizes that make no model of width `d` for `latent_tokens` tokens.
    pub fn validate_for(&self, latent_tokens: usize, d: usize) -> mamba_core::Result<()> {
        self.validate()?;
        for (scans, width) in [("temporal", d), ("spatial", latent_tokens + 2)] {
            let named = |e| Error::Config(format!("denoiser.ssm_cfg, {scans} scans of width {width}: {e}"));
            self.ssm_cfg.validate_for(width).map_err(named)?;
        }
        Ok(())
    }

    /// Refuses sizes that make no model, whatever its width.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.ssm_cfg.validate()?;
        if let MixerConfig::Mamba1(ssm) = &self.ssm_cfg {
            ssm.expect_plain("parallel scans")?;
            if !ssm.conv_bias {
                return Err(Error::Config("denoiser.ssm_cfg: parallel scans need conv_bias".into()));
            }
        }
        if !(1..=64).contains(&self.n_level) {
            return Err(Error::Config(format!("denoiser.n_level is {}, expected 1 to 64", self.n_level)));
        }
        Ok(())
    }
}

/// Hierarchical temporal Mamba: K parallel scans over the tokens that share their projections.
#[derive(Clone, Debug)]
struct HierarchicalTemporal {
    norm: Norm,
    in_proj: Linear,
    scans: Scans,
    join: Option<Linear>,
    out_proj: Linear,
    n_scans: usize,
}

/// What lies between the projections of a level.
#[derive(Clone, Debug)]
enum Scans {
    /// Of Mamba-1: one scan with K groups.
    Grouped(Box<GroupedScans>),
    /// Of other mixers: one after the other.
    Each(Vec<AnySsm>),
}

impl HierarchicalTemporal {
    fn new(d_model: usize, n_scans: usize, cfg: &MotionMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        let Projections { d_in_proj, d_inner, bias } =
            AnySsm::projections(d_model, &cfg.ssm_cfg).map_err(candle_core::Error::from)?;
        let scans = match &cfg.ssm_cfg {
            MixerConfig::Mamba1(ssm) => {
                Scans::Grouped(Box::new(GroupedScans::new(d_model, n_scans, ssm, pb)?))
            }
            other => {
                let scan = |k| AnySsm::create(d_model, other, &pb.pp("scans").pp(k));
                Scans::Each((0..n_scans).map(scan).collect::<Result<_>>()?)
            }
        };
        let join = match cfg.join {
            Join::Linear => Some(Linear::new(n_scans * d_inner, d_inner, false, &pb.pp("join"))?),
            Join::Mean => None,
        };
        Ok(Self {
            norm: Norm::new(NormKind::Rms, d_model, EPS, &pb.pp("norm"))?,
            in_proj: Linear::new(d_model, d_in_proj, bias, &pb.pp("in_proj"))?,
            scans,
            join,
            out_proj: Linear::new(d_inner, d_model, bias, &pb.pp("out_proj"))?,
            n_scans,
        })
    }

    /// `(B, L, d)` → `(B, L, d)`.
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let x = self.norm.forward(input)?;
        let y = match &self.scans {
            Scans::Grouped(scans) => scans.forward(&self.in_proj, &x)?,
            Scans::Each(scans) => {
                let projected = scans[0].project(&self.in_proj, &x)?;
                let outputs = scans.iter().map(|scan| scan.mix(&projected, Pass::default()));
                Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, 2)?
            }
        }; // (B, L, K·e)
        let y = match &self.join {
            Some(join) => join.forward(&y)?,
            None => {
                let (b, l, wide) = y.dims3()?;
                y.reshape((b, l, self.n_scans, wide / self.n_scans))?.mean(2)?
            }
        }; // (B, L, e)
        input + self.out_proj.forward(&y)?
    }
}

/// K Mamba-1 scans that also share `x_proj`.
#[derive(Clone, Debug)]
struct GroupedScans {
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Linear,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    scans: usize,
    d_inner: usize,
}

impl GroupedScans {
    fn new(d_model: usize, scans: usize, ssm: &Mamba1Config, pb: &ParamBuilder) -> Result<Self> {
        let (d_inner, n, k) = (ssm.d_inner(d_model), ssm.d_state, ssm.d_conv);
        let (rank, wide) = (ssm.dt_rank.resolve(d_model), scans * d_inner);
        let bound = (rank as f64).powf(-0.5) * ssm.dt_scale;
        let dt_bias = Init::DtBias { min: ssm.dt_min, max: ssm.dt_max, floor: ssm.dt_init_floor };
        Ok(Self {
            conv_weight: pb.pp("conv1d").get((wide, k), "weight", Init::linear(k))?,
            conv_bias: pb.pp("conv1d").get_no_decay(wide, "bias", Init::linear(k))?,
            x_proj: Linear::new(d_inner, rank + 2 * n, false, &pb.pp("x_proj"))?,
            dt_weight: pb.pp("dt_proj").get(
                (scans, d_inner, rank),
                "weight",
                Init::Uniform { lo: -bound, hi: bound },
            )?,
            dt_bias: pb.pp("dt_proj").get_no_decay(wide, "bias", dt_bias)?,
            a_log: pb.get_no_decay((wide, n), "A_log", Init::S4dReal)?,
            d: pb.get_no_decay(wide, "D", Init::Ones)?,
            scans,
            d_inner,
        })
    }

    /// `(B, L, d)` → `(B, L, K·e)`.
    fn forward(&self, in_proj: &Linear, input: &Tensor) -> Result<Tensor> {
        let (b, l, _) = input.dims3()?;
        let (k, e, n) = (self.scans, self.d_inner, self.a_log.dim(1)?);
        let rank = self.dt_weight.dim(2)?;
        let [x, z] = in_proj.split(input, [e, e])?; // (B, L, e)
        let every_scan = |x: &Tensor| x.unsqueeze(2)?.broadcast_as((b, l, k, e))?.reshape((b, l, k * e));
        let (x, z) = (every_scan(&x)?.contiguous()?, every_scan(&z)?.contiguous()?); // (B, L, K·e)
        let x = CausalConv1d::new(&x, &self.conv_weight).bias(&self.conv_bias).silu(true).run()?;
        let [dt, b_t, c_t] = self.x_proj.split(&x.reshape((b, l, k, e))?, [rank, n, n])?; // (B, L, K, ·)
        let dt = dt.reshape((b * l, k, rank))?.transpose(0, 1)?.contiguous()?; // (K, B·L, rank)
        let delta = dt.matmul(&self.dt_weight.transpose(1, 2)?.contiguous()?)?; // (K, B·L, e)
        let delta = delta.transpose(0, 1)?.reshape((b, l, k * e))?.contiguous()?; // (B, L, K·e)
        let a = self.a_log.exp()?.neg()?;
        SelectiveScan::new(&x, &delta, &a, &b_t, &c_t)
            .skip(&self.d)
            .gate(&z)
            .delta_bias(&self.dt_bias)
            .softplus(true)
            .run()
    }
}

/// Bidirectional spatial Mamba: along the channels of the latent, with the tokens as its width.
#[derive(Clone, Debug)]
struct BidirectionalSpatial {
    norm: Norm,
    mixer: BiMamba,
}

impl BidirectionalSpatial {
    fn new(n_tokens: usize, d_model: usize, cfg: &MotionMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            norm: Norm::new(NormKind::Rms, d_model, EPS, &pb.pp("norm"))?,
            mixer: BiMamba::new(n_tokens, &cfg.ssm_cfg, (true, true), Combine::Add, 1, pb)?,
        })
    }

    /// `(B, L, d)` → `(B, L, d)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.norm.forward(x)?.transpose(1, 2)?.contiguous()?; // (B, d, L)
        let y = self.mixer.forward(&channels, Orientation::Given, None)?; // (B, d, L)
        x + y.transpose(1, 2)?.contiguous()?
    }
}

/// One level: `BSM(HTM(x)) · gate(x)`.
#[derive(Clone, Debug)]
struct MotionMambaBlock {
    gate: Linear,
    temporal: HierarchicalTemporal,
    spatial: BidirectionalSpatial,
}

impl MotionMambaBlock {
    fn new(
        n_tokens: usize,
        d: usize,
        scans: usize,
        cfg: &MotionMambaConfig,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let gate = pb.pp("gate");
        let weight = gate.get((d, d), "weight", Init::linear(d).scaled(0.1))?;
        Ok(Self {
            gate: Linear::from_tensors(weight, Some(gate.get_no_decay(d, "bias", Init::Ones)?)),
            temporal: HierarchicalTemporal::new(d, scans, cfg, &pb.pp("htm"))?,
            spatial: BidirectionalSpatial::new(n_tokens, d, cfg, &pb.pp("bsm"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.spatial.forward(&self.temporal.forward(x)?)? * self.gate.forward(x)?
    }
}

/// The network between the tokens that come in and those that go out.
#[derive(Clone, Debug)]
pub struct MotionMamba {
    encoder: Vec<MotionMambaBlock>,
    mixer: (Norm, Attention),
    skips: Vec<Norm>,
    decoder: Vec<MotionMambaBlock>,
    norm: Norm,
    output: Linear,
    latent_tokens: usize,
}

impl MotionMamba {
    /// A network of width `d` for `latent_tokens` tokens, followed by those of step and condition.
    pub fn new(latent_tokens: usize, d: usize, cfg: &MotionMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate_for(latent_tokens, d).map_err(candle_core::Error::from)?;
        let n_tokens = latent_tokens + 2;
        let scans = cfg.scans();
        let blocks = |name: &str, scans: &mut dyn Iterator<Item = &usize>| -> Result<Vec<MotionMambaBlock>> {
            scans
                .enumerate()
                .map(|(i, &k)| MotionMambaBlock::new(n_tokens, d, k, cfg, &pb.pp(name).pp(i)))
                .collect()
        };
        let rms = |pb: ParamBuilder| Norm::new(NormKind::Rms, d, EPS, &pb);
        Ok(Self {
            encoder: blocks("encoder", &mut scans.iter())?,
            mixer: (rms(pb.pp("mixer").pp("norm"))?, Attention::new(d, cfg.n_head, &pb.pp("mixer"))?),
            skips: (0..cfg.n_level).map(|i| rms(pb.pp("skips").pp(i))).collect::<Result<_>>()?,
            decoder: blocks("decoder", &mut scans.iter().rev())?,
            norm: rms(pb.pp("norm"))?,
            output: projection(d, d, &pb.pp("output"))?,
            latent_tokens,
        })
    }

    /// Parallel scans of each level, from the first of the encoder to the last of the decoder.
    pub fn scans(&self) -> Vec<usize> {
        self.encoder.iter().chain(&self.decoder).map(|block| block.temporal.n_scans).collect()
    }

    /// Tokens `(B, T + 2, d)` → the latent's `(B, T, d)`.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let given = tokens.narrow(1, self.latent_tokens, 2)?.contiguous()?; // (B, 2, d)
        let mut x = tokens.clone();
        let mut outputs = Vec::with_capacity(self.encoder.len());
        for block in &self.encoder {
            x = block.forward(&x)?;
            outputs.push(x.clone());
        }
        let (norm, attention) = &self.mixer;
        x = (&x + attention.forward(&norm.forward(&x)?, &given, None)?)?;
        for (block, norm) in self.decoder.iter().zip(&self.skips) {
            if let Some(skip) = outputs.pop() {
                x = norm.forward_residual(&x, Some(&skip))?.0;
            }
            x = block.forward(&x)?;
        }
        let latent = x.narrow(1, 0, self.latent_tokens)?.contiguous()?;
        self.output.forward(&self.norm.forward(&latent)?)
    }
}
