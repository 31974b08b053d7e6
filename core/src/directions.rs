//! The ways in which published models let Mamba-1 see both sides of a token, as one choice.
//!
//! | [`Scheme`] | shared | combined | models |
//! |---|---|---|---|
//! | `TiedProjections` (A) | `in_proj`, `out_proj` | sum or product | Caduceus |
//! | `TwoMixers` (B) | nothing | sum | S-Mamba, Bi-Mamba+, EchoMamba4Rec (each adds residual and norm around it) |
//! | `TwoBlocks` (C) | nothing; each `x + Mamba(RMS(x))` | linear map of both, side by side | SEMamba, SPMamba, PTM-Mamba |
//! | `VimV2` (D) | `in_proj`, gate, `out_proj` | sum, or its half, before `out_proj` | Vim, AuM, VideoMamba, Motion Mamba |
//! | `VimV1` (E) | all but `A` | sum before `out_proj` | the first Vim |
//! | `CrossScan` (F) | projections, convolution over the picture | sum of four directions, layer norm | VMamba, DGMamba |
//! | `Alternate` (G) | each layer has one direction, every second one the other | | Vim's `if_bidirectional` |
//!
//! No activation is flipped: scans and convolutions run backwards themselves.

use crate::bidirectional::{BiMamba, Combine, Orientation};
use crate::mamba1::{Mamba1, Mamba1Config, Pass, SelectiveSsm, StateMatrix};
use crate::mixer::Ssm;
use crate::nn::{Linear, Norm, NormKind, negative_exp};
use crate::scan_order::ScanOrder;
use crate::{Init, ParamBuilder};
use candle_core::{Module, Result, Tensor, bail};
use mamba_kernels::{Segments, SelectiveScan};
use serde::{Deserialize, Serialize};

/// How the directions of a mixer are made and combined; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scheme {
    /// A: two mixers with tied projections.
    TiedProjections {
        /// Sum or product.
        combine: Combine,
    },
    /// B: two whole mixers.
    TwoMixers,
    /// C: two pre-norm residual blocks, whose outputs side by side go through a linear map.
    TwoBlocks,
    /// D: everything between the projections twice.
    VimV2 {
        /// Whether the sum is halved.
        halve: bool,
    },
    /// E: only the state matrix twice.
    VimV1,
    /// F: four directions over a picture of this many rows and columns of tokens.
    CrossScan {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// G: one direction, which the layer's number decides.
    Alternate,
}

/// A mixer that sees both sides of a token.
#[derive(Clone, Debug)]
pub struct Bidirectional(Kind);

#[derive(Clone, Debug)]
enum Kind {
    TiedProjections(BiMamba),
    TwoMixers { forward: Mamba1, backward: Mamba1 },
    TwoBlocks { forward: (Norm, Mamba1), backward: (Norm, Mamba1), fusion: Linear },
    Vim { mixer: Mamba1, backward: SelectiveSsm, factor: f64 },
    CrossScan(CrossScan),
    OneWay { mixer: Mamba1, reverse: bool },
}

impl Bidirectional {
    /// Layer number `layer` (from 0) of a model of width `d_model`. `n_residual` as in [`Mamba1::new`].
    ///
    /// Parameters: A `mamba_fwd`, `mamba_rev`; B `mamba_fwd`, `mamba_bwd`; C `forward.{norm, mixer}`,
    /// `backward.{norm, mixer}`, `fusion`; D and E those of Mamba-1 and Vim's `conv1d_b` …, `A_b_log`; F VMamba's; G those
    /// of Mamba-1.
    pub fn new(
        d_model: usize,
        cfg: &Mamba1Config,
        scheme: Scheme,
        layer: usize,
        n_residual: usize,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let mixer = |pb: &ParamBuilder| Mamba1::new(d_model, cfg, n_residual, pb);
        let block = |pb: ParamBuilder| -> Result<(Norm, Mamba1)> {
            Ok((Norm::new(NormKind::Rms, d_model, 1e-5, &pb.pp("norm"))?, mixer(&pb.pp("mixer"))?))
        };
        Ok(Self(match scheme {
            Scheme::TiedProjections { combine } => {
                Kind::TiedProjections(BiMamba::new(d_model, cfg, (true, true), combine, n_residual, pb)?)
            }
            Scheme::TwoMixers => Kind::TwoMixers {
                forward: mixer(&pb.pp("mamba_fwd"))?,
                backward: mixer(&pb.pp("mamba_bwd"))?,
            },
            Scheme::TwoBlocks => Kind::TwoBlocks {
                forward: block(pb.pp("forward"))?,
                backward: block(pb.pp("backward"))?,
                fusion: Linear::new(2 * d_model, d_model, true, &pb.pp("fusion"))?,
            },
            Scheme::VimV2 { halve } => Kind::Vim {
                mixer: mixer(pb)?,
                backward: SelectiveSsm::with_suffix(d_model, cfg, pb, "_b")?,
                factor: if halve { 0.5 } else { 1.0 },
            },
            Scheme::VimV1 => {
                let mixer = mixer(pb)?;
                let a = StateMatrix::new(cfg.d_inner(d_model), cfg, pb, "_b")?;
                Kind::Vim { backward: mixer.ssm().with_state_matrix(a), mixer, factor: 1.0 }
            }
            Scheme::CrossScan { height, width } => {
                Kind::CrossScan(CrossScan::new(d_model, cfg, (height, width), n_residual, pb)?)
            }
            Scheme::Alternate => Kind::OneWay { mixer: mixer(pb)?, reverse: !layer.is_multiple_of(2) },
        }))
    }

    /// `(B, L, d_model)` → `(B, L, d_model)`. A cross-scan takes whole pictures only, so no `segments`.
    pub fn forward(&self, x: &Tensor, segments: Option<&Segments>) -> Result<Tensor> {
        let pass = |reverse: bool| Pass { segments, reverse, state: None };
        match &self.0 {
            Kind::TiedProjections(mixer) => mixer.forward(x, Orientation::Given, segments),
            Kind::TwoMixers { forward, backward } => {
                forward.forward_pass(x, pass(false))? + backward.forward_pass(x, pass(true))?
            }
            Kind::TwoBlocks { forward, backward, fusion } => {
                let block = |(norm, mixer): &(Norm, Mamba1), reverse| {
                    x + mixer.forward_pass(&norm.forward(x)?, pass(reverse))?
                };
                // W [f; b] = W_f f + W_b b: nothing is put side by side
                let d = fusion.weight().dim(0)?;
                let half = |i: usize| fusion.weight().narrow(1, i * d, d)?.contiguous();
                let f = Linear::from_tensors(half(0)?, fusion.bias().cloned());
                let b = Linear::from_tensors(half(1)?, None);
                f.forward(&block(forward, false)?)? + b.forward(&block(backward, true)?)?
            }
            Kind::Vim { mixer, backward, factor } => {
                let projected = mixer.ssm().project(mixer.in_proj(), x)?;
                let sum =
                    (mixer.ssm().mix(&projected, pass(false))? + backward.mix(&projected, pass(true))?)?;
                mixer.out_proj().forward(&if *factor == 1.0 { sum } else { (sum * *factor)? })
            }
            Kind::CrossScan(mixer) => match segments {
                Some(_) => bail!("a cross-scan runs over whole pictures, not over segments"),
                None => mixer.forward(x),
            },
            Kind::OneWay { mixer, reverse } => mixer.forward_pass(x, pass(*reverse)),
        }
    }
}

/// The 2-D selective scan of VMamba (Liu et al. 2024, arXiv 2401.10166, section 4.2) with the gate of its first version:
/// a depthwise convolution over the picture, then one scan each along rows and columns, both ways.
#[derive(Clone, Debug)]
struct CrossScan {
    size: (usize, usize),
    columns: ScanOrder,
    in_proj: Linear,
    /// `(d_inner, 1, 3, 3)`.
    conv_weight: Tensor,
    conv_bias: Tensor,
    directions: Vec<Direction>,
    out_norm: Norm,
    out_proj: Linear,
    d_inner: usize,
}

/// What one of the four directions has of its own.
#[derive(Clone, Debug)]
struct Direction {
    x_proj: Linear,
    dt_proj: Linear,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
}

/// Rows, columns, rows backwards, columns backwards.
const DIRECTIONS: usize = 4;

impl CrossScan {
    fn new(
        d_model: usize,
        cfg: &Mamba1Config,
        size: (usize, usize),
        n_residual: usize,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        cfg.validate_for(d_model).map_err(candle_core::Error::wrap)?;
        cfg.expect_plain("a cross-scan").map_err(candle_core::Error::wrap)?;
        let (d_inner, n, k) = (cfg.d_inner(d_model), cfg.d_state, DIRECTIONS);
        let rank = cfg.dt_rank.resolve(d_model);
        let bound = (rank as f64).powf(-0.5) * cfg.dt_scale;
        let dt_init = Init::DtBias { min: cfg.dt_min, max: cfg.dt_max, floor: cfg.dt_init_floor };
        let x_proj = pb.get((k, rank + 2 * n, d_inner), "x_proj_weight", Init::linear(d_inner))?;
        let dt_proj =
            pb.get((k, d_inner, rank), "dt_projs_weight", Init::Uniform { lo: -bound, hi: bound })?;
        let dt_bias = pb.get_no_decay((k, d_inner), "dt_projs_bias", dt_init)?;
        let a_log = pb.get_no_decay((k * d_inner, n), "A_logs", Init::S4dReal)?;
        let d = pb.get_no_decay(k * d_inner, "Ds", Init::Ones)?;
        let directions = (0..k).map(|i| {
            let of = |x: &Tensor| x.narrow(0, i, 1)?.squeeze(0);
            Ok(Direction {
                x_proj: Linear::from_tensors(of(&x_proj)?, None),
                dt_proj: Linear::from_tensors(of(&dt_proj)?, None),
                dt_bias: of(&dt_bias)?,
                a_log: a_log.narrow(0, i * d_inner, d_inner)?,
                d: d.narrow(0, i * d_inner, d_inner)?,
            })
        });
        let bias = || cfg.bias.then_some(Init::Zeros);
        let out_init = Init::linear(d_inner).scaled(1.0 / (n_residual.max(1) as f64).sqrt());
        let conv = pb.pp("conv2d");
        Ok(Self {
            size,
            columns: ScanOrder::columns(size.0, size.1)?,
            in_proj: Linear::with_init(
                (2 * d_inner, d_model),
                Init::linear(d_model),
                bias(),
                &pb.pp("in_proj"),
            )?,
            conv_weight: conv.get((d_inner, 1, 3, 3), "weight", Init::linear(9))?,
            conv_bias: conv.get_no_decay(d_inner, "bias", Init::linear(9))?,
            directions: directions.collect::<Result<_>>()?,
            out_norm: Norm::new(NormKind::Layer, d_inner, 1e-5, &pb.pp("out_norm"))?,
            out_proj: Linear::with_init((d_model, d_inner), out_init, bias(), &pb.pp("out_proj"))?,
            d_inner,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, len, _) = x.dims3()?;
        if len != self.size.0 * self.size.1 {
            bail!("a cross-scan over {} × {} tokens got {len}", self.size.0, self.size.1);
        }
        let [x, z] = self.in_proj.split(x, [self.d_inner; 2])?; // (B, L, d_inner)
        let rows = self.convolve(&x)?.silu()?;
        let columns = self.columns.apply(&rows)?;
        let scan =
            |i: usize| self.directions[i].scan(if i.is_multiple_of(2) { &rows } else { &columns }, i >= 2);
        let along_rows = (scan(0)? + scan(2)?)?;
        let along_columns = self.columns.restore(&(scan(1)? + scan(3)?)?)?;
        let y = self.out_norm.forward(&(along_rows + along_columns)?)?;
        self.out_proj.forward(&(y * z.silu()?)?)
    }

    /// A depthwise 3 × 3 convolution that keeps the size, token-major: `(B, L, d_inner)` → `(B, L, d_inner)`.
    fn convolve(&self, x: &Tensor) -> Result<Tensor> {
        let ((height, width), d) = (self.size, self.d_inner);
        let picture = x.reshape(((), height, width, d))?.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
        let weight = self.conv_weight.reshape((d, 9))?.t()?.contiguous()?; // (9, d)
        let mut sum = self.conv_bias.reshape((1, 1, 1, d))?.broadcast_as((x.dim(0)?, height, width, d))?;
        for tap in 0..9 {
            let part = picture.narrow(1, tap / 3, height)?.narrow(2, tap % 3, width)?; // (B, H, W, d)
            sum = (sum + part.broadcast_mul(&weight.narrow(0, tap, 1)?.reshape((1, 1, 1, d))?)?)?;
        }
        sum.reshape(x.shape())
    }
}

impl Direction {
    /// `(B, L, d_inner)` → `(B, L, d_inner)`.
    fn scan(&self, x: &Tensor, reverse: bool) -> Result<Tensor> {
        let (rank, n) = (self.dt_proj.weight().dim(1)?, self.a_log.dim(1)?);
        let [dt_low, b, c] = self.x_proj.split(x, [rank, n, n])?; // (B, L, ·)
        let delta = self.dt_proj.forward(&dt_low)?; // (B, L, d_inner)
        let a = negative_exp(&self.a_log)?;
        SelectiveScan::new(x, &delta, &a, &b, &c)
            .skip(&self.d)
            .delta_bias(&self.dt_bias)
            .softplus(true)
            .reverse(reverse)
            .run()
    }
}
