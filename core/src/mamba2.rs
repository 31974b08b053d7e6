//! The Mamba-2 mixer (Dao and Gu 2024, arXiv 2405.21060, section 7 and figure 6).
//!
//! ```text
//! (z, x, B, C, dt) = in_proj(input)                   d_model → 2·d_ssm + 2·ngroups·d_state + nheads
//! (x, B, C)        = silu(causal_conv1d(x, B, C))
//! y                = ssd(x, dt, -exp(A_log), B, C, D)     in heads of `headdim` channels
//! output           = out_proj(rms_norm(y · silu(z)))  d_inner → d_model
//! ```
//!
//! With `norm_before_gate` the norm comes first, `rms_norm(y) · silu(z)`; it runs over each group of heads on its own.
//! With `d_ssm` below `d_inner` the other channels are a gated layer without a state, `x0 · silu(z0)`.
//!
//! What differs from upstream: the norm has groups in every path (upstream's fused training path ignores them), a decoding
//! step honours `dt_limit` and `D_has_hdim`, and no size has to be a multiple of 8.

use crate::mamba1::expect_possible;
use crate::mixer::{MixerOf, Pass, Projections, Ssm};
use crate::nn::{Linear, negative_exp};
use crate::{Error, Init, ParamBuilder};
use candle_core::{Result, Tensor, bail};
use mamba_kernels::{CausalConv1d, Norm, Ssd};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of the mixer, with upstream's names (`ssm_cfg`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba2Config {
    /// Values of a channel's state, N.
    pub d_state: usize,
    /// Taps of the convolution, K.
    pub d_conv: usize,
    /// Bound of the convolution's initial weight; by default torch's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conv_init: Option<f64>,
    /// `d_inner = expand · d_model`.
    pub expand: usize,
    /// Channels of a head, P.
    pub headdim: usize,
    /// Channels that have a state; all of `d_inner` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ssm: Option<usize>,
    /// Groups of heads that share B and C.
    pub ngroups: usize,
    /// Initial decay rates, uniform between these two.
    #[serde(rename = "A_init_range")]
    pub a_init_range: (f64, f64),
    /// Whether the skip has a factor for each channel instead of each head.
    #[serde(rename = "D_has_hdim")]
    pub d_has_hdim: bool,
    /// Whether the output is normalised; else it is only gated.
    pub rmsnorm: bool,
    /// Whether it is normalised before it is gated.
    pub norm_before_gate: bool,
    /// Added under the norm's root; 1e-5 upstream, where it cannot be chosen.
    #[serde(skip_serializing_if = "is_upstreams_epsilon")]
    pub norm_epsilon: f64,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// Initial step sizes below this are raised to it.
    pub dt_init_floor: f64,
    /// Step sizes are clamped to these.
    #[serde(skip_serializing_if = "DtLimit::is_none")]
    pub dt_limit: DtLimit,
    /// Whether `in_proj` and `out_proj` have a bias.
    pub bias: bool,
    /// Whether the convolution has one.
    pub conv_bias: bool,
    /// Upstream's tokens of a chunk, which change rounding and speed only; read and written, never used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<usize>,
    /// Upstream's switch between two code paths of one function; read and written, never used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_mem_eff_path: Option<bool>,
}

const NORM_EPSILON: f64 = 1e-5;

fn is_upstreams_epsilon(epsilon: &f64) -> bool {
    *epsilon == NORM_EPSILON
}

/// Lower and upper limit of the step sizes. JSON has no infinity: an upper limit of `null` is none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, Option<f64>)", into = "(f64, Option<f64>)")]
pub struct DtLimit {
    /// Smallest step size.
    pub lo: f64,
    /// Largest step size.
    pub hi: f64,
}

impl DtLimit {
    /// Whether every step size is within the limits.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for DtLimit {
    fn default() -> Self {
        Self { lo: 0.0, hi: f64::INFINITY }
    }
}

impl From<(f64, Option<f64>)> for DtLimit {
    fn from((lo, hi): (f64, Option<f64>)) -> Self {
        Self { lo, hi: hi.unwrap_or(f64::INFINITY) }
    }
}

impl From<DtLimit> for (f64, Option<f64>) {
    fn from(DtLimit { lo, hi }: DtLimit) -> Self {
        (lo, hi.is_finite().then_some(hi))
    }
}

impl Default for Mamba2Config {
    fn default() -> Self {
        Self {
            d_state: 128,
            d_conv: 4,
            conv_init: None,
            expand: 2,
            headdim: 64,
            d_ssm: None,
            ngroups: 1,
            a_init_range: (1.0, 16.0),
            d_has_hdim: false,
            rmsnorm: true,
            norm_before_gate: false,
            norm_epsilon: NORM_EPSILON,
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init_floor: 1e-4,
            dt_limit: DtLimit::default(),
            bias: false,
            conv_bias: true,
            chunk_size: None,
            use_mem_eff_path: None,
        }
    }
}

impl Mamba2Config {
    /// Channels inside the mixer.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.expand.saturating_mul(d_model)
    }

    /// Channels that have a state.
    pub fn d_ssm(&self, d_model: usize) -> usize {
        self.d_ssm.unwrap_or_else(|| self.d_inner(d_model))
    }

    /// Number of heads.
    pub fn nheads(&self, d_model: usize) -> usize {
        self.d_ssm(d_model) / self.headdim
    }

    /// About how many parameters a mixer of width `d_model` has; in floating point, which cannot overflow.
    pub(crate) fn size(&self, d_model: usize) -> f64 {
        let [d, n, g, k, expand] =
            [d_model, self.d_state, self.ngroups, self.d_conv, self.expand].map(|x| x as f64);
        d * (3.0 * expand * d + 2.0 * g * n) + k * (expand * d + 2.0 * g * n)
    }

    /// Refuses sizes that make no mixer, whatever its width.
    pub fn validate(&self) -> crate::Result<()> {
        let Self { d_state, expand, headdim, ngroups, d_conv, a_init_range: (lo, hi), dt_limit, .. } = self;
        let most = mamba_kernels::causal_conv1d::MAX_WIDTH;
        let problem = if [*d_state, *expand, *headdim, *ngroups].contains(&0) || self.d_ssm == Some(0) {
            format!(
                "d_state {d_state}, expand {expand}, headdim {headdim}, ngroups {ngroups} and d_ssm {:?} must be at least 1",
                self.d_ssm
            )
        } else if !(1..=most).contains(d_conv) {
            format!("d_conv is {d_conv}, expected 1..={most}")
        } else if !(*lo > 0.0 && hi >= lo) {
            format!("A_init_range is [{lo}, {hi}], expected 0 < lower <= upper")
        } else if dt_limit.lo.is_nan() || dt_limit.hi.is_nan() || dt_limit.lo > dt_limit.hi {
            format!("dt_limit is [{}, {}], expected the lower limit first", dt_limit.lo, dt_limit.hi)
        } else if self.norm_epsilon.is_nan() || self.norm_epsilon < 0.0 {
            format!("norm_epsilon is {}, expected at least 0", self.norm_epsilon)
        } else {
            return Ok(());
        };
        Err(Error::Config(problem))
    }

    /// Refuses sizes that make no mixer of this width, and one with more parameters than any machine holds.
    pub fn validate_for(&self, d_model: usize) -> crate::Result<()> {
        self.validate()?;
        if d_model == 0 {
            return Err(Error::Config("d_model must be at least 1".into()));
        }
        let Self { d_state, expand, headdim, ngroups, .. } = self;
        expect_possible(self.size(d_model), || {
            format!("a mixer of d_model {d_model}, d_state {d_state}, expand {expand} and ngroups {ngroups}")
        })?;
        let (d_inner, d_ssm) = (self.d_inner(d_model), self.d_ssm(d_model));
        let problem = if d_ssm > d_inner {
            format!("d_ssm is {d_ssm}, expected at most d_inner {d_inner}")
        } else if !d_ssm.is_multiple_of(*headdim) {
            format!("headdim {headdim} does not divide the {d_ssm} channels that have a state")
        } else if !self.nheads(d_model).is_multiple_of(*ngroups) {
            format!("ngroups {ngroups} does not divide the {} heads", self.nheads(d_model))
        } else {
            return Ok(());
        };
        Err(Error::Config(problem))
    }
}

/// What a mixer remembers of the tokens before. A new state is that of the beginning of a sequence; gradients flow through
/// it from one chunk to the one before.
#[derive(Clone, Debug, Default)]
pub struct Mamba2State {
    /// The last K-1 inputs of the convolution, `(segments, K-1, d_ssm + 2·ngroups·d_state)`.
    pub conv: Option<Tensor>,
    /// The states of the scan, `(segments, nheads, headdim, d_state)`.
    pub ssm: Option<Tensor>,
}

impl Mamba2State {
    /// The beginning of a sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same values without their history: gradients end here (truncated back-propagation through time).
    pub fn detach(&self) -> Self {
        Self { conv: self.conv.as_ref().map(Tensor::detach), ssm: self.ssm.as_ref().map(Tensor::detach) }
    }
}

/// What lies between the projections: convolution, state space dual scan, gated norm.
#[derive(Clone, Debug)]
pub struct DualSsm {
    sizes: Sizes,
    /// Of x, B and C.
    conv: [Conv; 3],
    dt_bias: Tensor,
    dt_limit: DtLimit,
    a_log: Tensor,
    d: Tensor,
    norm: Option<GatedNorm>,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Channels without a state.
    d_mlp: usize,
    nheads: usize,
    headdim: usize,
    ngroups: usize,
    d_state: usize,
}

impl Sizes {
    fn new(d_model: usize, cfg: &Mamba2Config) -> Self {
        Self {
            d_mlp: cfg.d_inner(d_model) - cfg.d_ssm(d_model),
            nheads: cfg.nheads(d_model),
            headdim: cfg.headdim,
            ngroups: cfg.ngroups,
            d_state: cfg.d_state,
        }
    }

    fn d_ssm(self) -> usize {
        self.nheads * self.headdim
    }

    /// Channels of x, B and C, which go through the convolution.
    fn conv(self) -> [usize; 3] {
        let coefficient = self.ngroups * self.d_state;
        [self.d_ssm(), coefficient, coefficient]
    }
}

/// Some channels of the convolution: the weights are split, so that what they are applied to need not be.
#[derive(Clone, Debug)]
struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
}

#[derive(Clone, Debug)]
struct GatedNorm {
    weight: Tensor,
    group_size: usize,
    epsilon: f64,
    before_gate: bool,
}

impl Ssm for DualSsm {
    type Config = Mamba2Config;
    type State = Mamba2State;

    fn projections(d_model: usize, cfg: &Mamba2Config) -> crate::Result<Projections> {
        cfg.validate_for(d_model)?;
        let sizes = Sizes::new(d_model, cfg);
        let [x, b, c] = sizes.conv();
        let d_in_proj = 2 * sizes.d_mlp + sizes.d_ssm() + x + b + c + sizes.nheads;
        Ok(Projections { d_in_proj, d_inner: cfg.d_inner(d_model), bias: cfg.bias })
    }

    /// Parameters `conv1d`, `dt_bias`, `A_log`, `D` and `norm` under `pb`.
    fn create(d_model: usize, cfg: &Mamba2Config, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate_for(d_model).map_err(candle_core::Error::wrap)?;
        let sizes = Sizes::new(d_model, cfg);
        let (nheads, d_ssm) = (sizes.nheads, sizes.d_ssm());
        let conv = conv_parts(cfg, sizes.conv(), &pb.pp("conv1d"))?;
        let dt_bias = Init::DtBias { min: cfg.dt_min, max: cfg.dt_max, floor: cfg.dt_init_floor };
        let (lo, hi) = cfg.a_init_range;
        let norm = match cfg.rmsnorm {
            true => Some(GatedNorm {
                weight: pb.pp("norm").get_no_decay(d_ssm, "weight", Init::Ones)?,
                group_size: d_ssm / cfg.ngroups,
                epsilon: cfg.norm_epsilon,
                before_gate: cfg.norm_before_gate,
            }),
            false => None,
        };
        let d = pb.get_no_decay(if cfg.d_has_hdim { d_ssm } else { nheads }, "D", Init::Ones)?;
        Ok(Self {
            sizes,
            conv,
            dt_bias: pb.get_no_decay(nheads, "dt_bias", dt_bias)?,
            dt_limit: cfg.dt_limit,
            a_log: pb.get_no_decay(nheads, "A_log", Init::LogUniform { lo, hi })?,
            d: if cfg.d_has_hdim { d.reshape((nheads, cfg.headdim))? } else { d },
            norm,
        })
    }

    fn project(&self, in_proj: &Linear, x: &Tensor) -> Result<Vec<Tensor>> {
        let Sizes { d_mlp, nheads, .. } = self.sizes;
        let [x_width, b_width, c_width] = self.sizes.conv();
        let ssm = [self.sizes.d_ssm(), x_width, b_width, c_width, nheads];
        Ok(match d_mlp {
            0 => in_proj.split(x, ssm)?.into(),
            mlp => in_proj.split(x, [mlp, mlp, ssm[0], ssm[1], ssm[2], ssm[3], ssm[4]])?.into(),
        })
    }

    fn mix(&self, projected: &[Tensor], pass: Pass<'_, Mamba2State>) -> Result<Tensor> {
        let (mlp, projected) = match self.sizes.d_mlp {
            0 => (None, projected),
            _ => (projected.first().zip(projected.get(1)), projected.get(2..).unwrap_or_default()),
        };
        let [z, x, b, c, dt] = projected else {
            bail!("Mamba-2 mixes z, x, B, C and dt, got {} tensors", projected.len())
        };
        let y = self.mix_ssm(z, [x, b, c], dt, pass)?; // (B, L, d_ssm)
        match mlp {
            Some((z0, x0)) => Tensor::cat(&[(z0.silu()? * x0)?, y], 2), // (B, L, d_inner)
            None => Ok(y),
        }
    }
}

impl DualSsm {
    /// `z`, `x` `(B, L, d_ssm)`, `B`, `C` `(B, L, ngroups·d_state)`, `dt` `(B, L, nheads)` → `(B, L, d_ssm)`.
    fn mix_ssm(
        &self,
        z: &Tensor,
        xbc: [&Tensor; 3],
        dt: &Tensor,
        pass: Pass<'_, Mamba2State>,
    ) -> Result<Tensor> {
        let Sizes { nheads, headdim, ngroups, d_state, .. } = self.sizes;
        let (batch, len, _) = z.dims3()?;
        let (xbc, conv_state) = self.convolve(xbc, &pass)?;
        let Pass { segments, reverse, state } = pass;
        let x = xbc[0].reshape((batch, len, nheads, headdim))?;
        let b = xbc[1].reshape((batch, len, ngroups, d_state))?;
        let c = xbc[2].reshape((batch, len, ngroups, d_state))?;
        let a = negative_exp(&self.a_log)?; // (nheads)
        let heads_of_z = z.reshape((batch, len, nheads, headdim))?;
        let mut scan =
            Ssd::new(&x, dt, &a, &b, &c).skip(&self.d).dt_bias(&self.dt_bias).softplus(true).reverse(reverse);
        if !self.dt_limit.is_none() {
            scan = scan.dt_limit(self.dt_limit.lo, self.dt_limit.hi);
        }
        if self.norm.is_none() {
            scan = scan.gate(&heads_of_z);
        }
        scan = segments.into_iter().fold(scan, |scan, segments| scan.segments(segments));
        let y = match state {
            None => scan.run()?,
            Some(state) => {
                let scan = state.ssm.iter().fold(scan, |scan, s| scan.initial_state(s));
                let (y, ssm) = scan.run_with_state()?;
                *state = Mamba2State { conv: conv_state, ssm: Some(ssm) };
                y
            }
        };
        let y = y.reshape((batch, len, nheads * headdim))?;
        match &self.norm {
            Some(norm) => Norm::rms(&y, &norm.weight, norm.epsilon)
                .group_size(norm.group_size)
                .gate(z, norm.before_gate)
                .run(),
            None => Ok(y),
        }
    }

    /// Convolution and SiLU of x, B and C; the state after, if the pass has one.
    fn convolve(
        &self,
        xbc: [&Tensor; 3],
        pass: &Pass<'_, Mamba2State>,
    ) -> Result<([Tensor; 3], Option<Tensor>)> {
        let before = pass.state.as_ref().and_then(|state| state.conv.as_ref());
        let (mut outputs, mut after, mut start) = (Vec::new(), Vec::new(), 0);
        for ((x, conv), width) in xbc.into_iter().zip(&self.conv).zip(self.sizes.conv()) {
            let before = before.map(|state| state.narrow(2, start, width)?.contiguous()).transpose()?;
            start += width;
            let mut op = CausalConv1d::new(x, &conv.weight).silu(true).reverse(pass.reverse);
            op = conv.bias.iter().fold(op, |op, bias| op.bias(bias));
            op = pass.segments.into_iter().fold(op, |op, segments| op.segments(segments));
            op = before.iter().fold(op, |op, state| op.initial_state(state));
            if pass.state.is_some() {
                let (y, state) = op.run_with_state()?;
                outputs.push(y);
                after.push(state);
            } else {
                outputs.push(op.run()?);
            }
        }
        let after = match after.is_empty() {
            true => None,
            false => Some(Tensor::cat(&after, 2)?),
        };
        let outputs: [Tensor; 3] =
            outputs.try_into().map_err(|_| candle_core::Error::msg("three convolutions"))?;
        Ok((outputs, after))
    }
}

/// The convolution of all channels, `weight` `(channels, 1, K)`, in parts.
fn conv_parts(cfg: &Mamba2Config, widths: [usize; 3], pb: &ParamBuilder) -> Result<[Conv; 3]> {
    let channels = widths.iter().sum::<usize>();
    let torch = Init::linear(cfg.d_conv);
    let init = cfg.conv_init.map_or(torch.clone(), |bound| Init::Uniform { lo: -bound, hi: bound });
    let weight = pb.get((channels, 1, cfg.d_conv), "weight", init)?.squeeze(1)?;
    let bias = match cfg.conv_bias {
        true => Some(pb.get_no_decay(channels, "bias", torch)?),
        false => None,
    };
    let part = |start: usize, width: usize| -> Result<Conv> {
        let bias = bias.as_ref().map(|bias| bias.narrow(0, start, width)).transpose()?;
        Ok(Conv { weight: weight.narrow(0, start, width)?, bias })
    };
    let [x, b, c] = widths;
    Ok([part(0, x)?, part(x, b)?, part(x + b, c)?])
}

/// The Mamba-2 mixer.
pub type Mamba2 = MixerOf<DualSsm>;
