//! The Mamba-1 mixer (Gu and Dao 2023, arXiv 2312.00752, section 3.4 and figure 3).
//!
//! ```text
//! (x, z)     = in_proj(input)                         d_model → 2·d_inner
//! x          = silu(causal_conv1d(x))
//! (δ, B, C)  = x_proj(x)                              d_inner → dt_rank + 2·d_state
//! y          = selective_scan(x, dt_proj(δ), -exp(A_log), B, C, D, z)
//! output     = out_proj(y)                            d_inner → d_model
//! ```
//!
//! Projections that feed different places are written apart by one op: no `(B, L, ·)` tensor is split.

use crate::memory::dense::{HiddenStates, SelectiveTransition};
use crate::memory::suppress::suppress;
pub use crate::mixer::Pass;
use crate::mixer::{MixerOf, Projections, Ssm};
use crate::nn::{Linear, negative_exp, softplus};
use crate::{Error, Init, ParamBuilder, StateInit};
use candle_core::{Module, Result, Tensor, bail};
use mamba_kernels::{CausalConv1d, ComplexScan, Segments, SelectiveScan};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of the mixer, with upstream's names (`ssm_cfg`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba1Config {
    /// Real numbers in the state of a channel, N.
    pub d_state: usize,
    /// Taps of the convolution, K.
    pub d_conv: usize,
    /// `d_inner = expand · d_model`.
    pub expand: usize,
    /// Rank of the step-size projection.
    pub dt_rank: DtRank,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// Initial weight of `dt_proj`.
    pub dt_init: DtInit,
    /// Factor on the initial weight of `dt_proj`.
    pub dt_scale: f64,
    /// Initial step sizes below this are raised to it.
    pub dt_init_floor: f64,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether `in_proj` and `out_proj` have one.
    pub bias: bool,
    /// What the state matrix starts from: [`StateInit::S4dReal`], or [`StateInit::HippoLegS`], whose eigenvalues are the
    /// same `-1, …, -N`. With [`StateInit::S4dLin`] the states are complex, N/2 pairs of real numbers, and so are `B` and `C`:
    /// `A = -exp(A_log) + i·A_imag`.
    #[serde(skip_serializing_if = "is_default")]
    pub state_init: StateInit,
    /// Hidden-state suppressing ([`crate::memory::suppress`]): the output coefficients of states that last less than
    /// this are made smaller. [`ALPHA`](crate::memory::suppress::ALPHA) is DGMamba's threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suppress_below: Option<f64>,
    /// The gate of Mamba+ (Liang et al. 2024, arXiv 2404.15772, section 3.2): `(C·h) · silu(z) + D·x · (1 - σ(z))`,
    /// where the skip passes through what the gate keeps out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forget_gate: bool,
    /// Upstream's switch between two code paths of one function; read and written, never used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_fast_path: Option<bool>,
}

impl Default for Mamba1Config {
    fn default() -> Self {
        Self {
            d_state: 16,
            d_conv: 4,
            expand: 2,
            dt_rank: DtRank::default(),
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init: DtInit::Random,
            dt_scale: 1.0,
            dt_init_floor: 1e-4,
            conv_bias: true,
            bias: false,
            state_init: StateInit::default(),
            suppress_below: None,
            forget_gate: false,
            use_fast_path: None,
        }
    }
}

fn is_default<T: Default + PartialEq>(x: &T) -> bool {
    *x == T::default()
}

/// Rank of the step-size projection: a number, or `"auto"` for `ceil(d_model / 16)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DtRank {
    /// `ceil(d_model / 16)`.
    #[default]
    #[serde(with = "auto")]
    Auto,
    /// A given rank.
    Rank(usize),
}

/// The word `auto` in a config.
mod auto {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("auto")
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<(), D::Error> {
        match String::deserialize(d)?.as_str() {
            "auto" => Ok(()),
            other => Err(D::Error::custom(format!("expected \"auto\" or a number, got {other:?}"))),
        }
    }
}

impl DtRank {
    /// The rank for a model width.
    pub fn resolve(self, d_model: usize) -> usize {
        match self {
            Self::Auto => d_model.div_ceil(16),
            Self::Rank(rank) => rank,
        }
    }
}

/// Initial weight of `dt_proj`: ± `dt_rank^-½ · dt_scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtInit {
    /// Uniform within the bound.
    Random,
    /// The bound itself.
    Constant,
}

impl Mamba1Config {
    /// Channels inside the mixer.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.expand * d_model
    }

    /// About how many parameters a mixer of width `d_model` has; in floating point, which cannot overflow.
    pub(crate) fn size(&self, d_model: usize) -> f64 {
        let [d, n, k, expand] = [d_model, self.d_state, self.d_conv, self.expand].map(|x| x as f64);
        let rank = self.dt_rank.resolve(d_model) as f64;
        expand * d * (3.0 * d + 3.0 * n + 2.0 * rank + k)
    }

    /// Whether states are complex.
    pub fn is_complex(&self) -> bool {
        self.state_init == StateInit::S4dLin
    }

    /// Refuses complex states, which modal truncation does not know.
    pub(crate) fn expect_plain_states(&self) -> crate::Result<()> {
        match self.is_complex() {
            true => Err(Error::Config(
                "the complex states of a selective scan are not reduced, expected real ones".into(),
            )),
            false => Ok(()),
        }
    }

    /// Refuses the options that a scan of another make does not have: complex states, hidden-state suppressing and the
    /// forget gate. `what` is that scan.
    pub fn expect_plain(&self, what: &str) -> crate::Result<()> {
        let option = if self.is_complex() {
            "state_init \"s4d_lin\", whose states are complex,"
        } else if self.suppress_below.is_some() {
            "suppress_below"
        } else if self.forget_gate {
            "forget_gate"
        } else {
            return Ok(());
        };
        Err(Error::Config(format!("{option} is not supported by {what}")))
    }

    /// Refuses sizes that make no mixer, and a `d_model` with which it would have more parameters than any machine holds.
    pub fn validate_for(&self, d_model: usize) -> crate::Result<()> {
        self.validate()?;
        if d_model == 0 {
            return Err(Error::Config("d_model must be at least 1".into()));
        }
        let what = || {
            let Self { d_state, expand, dt_rank, .. } = self;
            format!(
                "a mixer of d_model {d_model}, d_state {d_state}, expand {expand} and dt_rank {dt_rank:?}"
            )
        };
        expect_possible(self.size(d_model), what)
    }

    /// Refuses sizes that make no mixer.
    pub fn validate(&self) -> crate::Result<()> {
        let problem = if self.d_state == 0 || self.expand == 0 || self.dt_rank == DtRank::Rank(0) {
            Some(format!(
                "d_state {}, expand {} and dt_rank {:?} must be at least 1",
                self.d_state, self.expand, self.dt_rank
            ))
        } else if !(1..=mamba_kernels::causal_conv1d::MAX_WIDTH).contains(&self.d_conv) {
            Some(format!(
                "d_conv is {}, expected 1..={}",
                self.d_conv,
                mamba_kernels::causal_conv1d::MAX_WIDTH
            ))
        } else if self.is_complex() && !self.d_state.is_multiple_of(2) {
            let n = self.d_state;
            Some(format!(
                "d_state is {n}, expected an even number, a pair for each complex state of \"s4d_lin\""
            ))
        } else if self.is_complex() && self.suppress_below.is_some() {
            Some("suppress_below is for real states, those of state_init \"s4d_lin\" are complex".into())
        } else {
            let alpha = self.suppress_below.filter(|alpha| !alpha.is_finite());
            alpha.map(|alpha| format!("suppress_below is {alpha}, expected a finite number"))
        };
        problem.map_or(Ok(()), |problem| Err(Error::Config(problem)))
    }
}

/// Refuses a number of parameters that can only be a slip, which would otherwise end in an abort for want of memory.
pub(crate) fn expect_possible(parameters: f64, what: impl FnOnce() -> String) -> crate::Result<()> {
    const MOST: f64 = 1e11;
    if parameters > MOST {
        return Err(Error::Config(format!(
            "{} would have {parameters:.1e} parameters, more than {MOST:.0e}",
            what()
        )));
    }
    Ok(())
}

/// What a mixer remembers of the tokens before: kept between steps or chunks of a sequence.
///
/// A new state is that of the beginning of a sequence. Gradients flow through it from one chunk to the one before;
/// [`Mamba1State::detach`] cuts them (truncated back-propagation through time).
#[derive(Clone, Debug, Default)]
pub struct Mamba1State {
    /// The last K-1 inputs of the convolution, `(segments, K-1, d_inner)`.
    pub conv: Option<Tensor>,
    /// The states of the scan, `(segments, d_inner, d_state)`.
    pub ssm: Option<Tensor>,
}

impl Mamba1State {
    /// The beginning of a sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same values without their history.
    pub fn detach(&self) -> Self {
        Self { conv: self.conv.as_ref().map(Tensor::detach), ssm: self.ssm.as_ref().map(Tensor::detach) }
    }
}

/// What lies between the projections: convolution, selective parameters, scan. Directions of a bidirectional mixer have
/// one each and may share the projections.
#[derive(Clone, Debug)]
pub struct SelectiveSsm {
    conv_weight: Tensor,
    conv_bias: Option<Tensor>,
    x_proj: Linear,
    dt: Linear,
    dt_bias: Tensor,
    a: StateMatrix,
    d: Tensor,
    suppress_below: Option<f64>,
    forget_gate: bool,
}

impl SelectiveSsm {
    /// Parameters `conv1d`, `x_proj`, `dt_proj`, `A_log` and `D` under `pb`.
    pub fn new(d_model: usize, cfg: &Mamba1Config, pb: &ParamBuilder) -> Result<Self> {
        Self::with_suffix(d_model, cfg, pb, "")
    }

    /// The same with Vim's names of a second direction: `conv1d_b`, `x_proj_b`, `dt_proj_b`, `A_b_log`, `D_b` for `_b`.
    pub(crate) fn with_suffix(
        d_model: usize,
        cfg: &Mamba1Config,
        pb: &ParamBuilder,
        suffix: &str,
    ) -> Result<Self> {
        cfg.validate_for(d_model).map_err(candle_core::Error::wrap)?;
        let (d_inner, n, k) = (cfg.d_inner(d_model), cfg.d_state, cfg.d_conv);
        let rank = cfg.dt_rank.resolve(d_model);
        let conv = pb.pp(format!("conv1d{suffix}"));
        let conv_weight = conv.get((d_inner, 1, k), "weight", Init::linear(k))?.squeeze(1)?;
        let conv_bias = match cfg.conv_bias {
            true => Some(conv.get_no_decay(d_inner, "bias", Init::linear(k))?),
            false => None,
        };
        let x_proj = Linear::new(d_inner, rank + 2 * n, false, &pb.pp(format!("x_proj{suffix}")))?;
        let bound = (rank as f64).powf(-0.5) * cfg.dt_scale;
        let dt_init = match cfg.dt_init {
            DtInit::Random => Init::Uniform { lo: -bound, hi: bound },
            DtInit::Constant => Init::Const(bound),
        };
        let dt_bias = Init::DtBias { min: cfg.dt_min, max: cfg.dt_max, floor: cfg.dt_init_floor };
        let dt_proj = pb.pp(format!("dt_proj{suffix}"));
        Ok(Self {
            conv_weight,
            conv_bias,
            x_proj,
            dt: Linear::with_init((d_inner, rank), dt_init, None, &dt_proj)?,
            dt_bias: dt_proj.get_no_decay(d_inner, "bias", dt_bias)?,
            a: StateMatrix::new(d_inner, cfg, pb, suffix)?,
            d: pb.get_no_decay(d_inner, &format!("D{suffix}"), Init::Ones)?,
            suppress_below: cfg.suppress_below,
            forget_gate: cfg.forget_gate,
        })
    }

    /// The same map but for the state matrix.
    pub(crate) fn with_state_matrix(&self, a: StateMatrix) -> Self {
        Self { a, ..self.clone() }
    }

    /// `x`, `z` `(B, L, d_inner)` → `(B, L, d_inner)`.
    pub fn forward(&self, x: &Tensor, z: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        Ok(self.forward_from(x, z, pass, None)?.0)
    }

    /// [`SelectiveSsm::forward`] that also reads the hidden states of shallower layers, each through its transition, and
    /// hands out its own; without `sources` it does neither.
    pub(crate) fn forward_from(
        &self,
        x: &Tensor,
        z: &Tensor,
        pass: Pass<'_>,
        sources: Option<&[(&SelectiveTransition, &HiddenStates)]>,
    ) -> Result<(Tensor, Option<HiddenStates>)> {
        let Pass { segments, reverse, state } = pass;
        let mut conv = CausalConv1d::new(x, &self.conv_weight).silu(true).reverse(reverse);
        conv = self.conv_bias.iter().fold(conv, |conv, bias| conv.bias(bias));
        conv = segments.into_iter().fold(conv, |conv, segments| conv.segments(segments));
        let (x, conv_state) = match &state {
            Some(state) => {
                let conv = state.conv.iter().fold(conv, |conv, s| conv.initial_state(s));
                let (x, after) = conv.run_with_state()?;
                (x, Some(after))
            }
            None => (conv.run()?, None),
        };
        let rank = self.dt.weight().dim(1)?;
        let n = (self.x_proj.weight().dim(0)? - rank) / 2;
        let [dt_low, b, c] = self.x_proj.split(&x, [rank, n, n])?; // (B, L, ·)
        let delta = self.dt.forward(&dt_low)?; // (B, L, d_inner)
        if let Some(imag) = &self.a.imag {
            if sources.is_some() {
                bail!("dense connections are for real states");
            }
            let mut own = state.as_ref().and_then(|state| state.ssm.clone());
            let y = self.scan_complex(&x, &delta, imag, (&b, &c), (segments, reverse), &mut own)?;
            if let Some(state) = state {
                *state = Mamba1State { conv: conv_state, ssm: own };
            }
            return Ok((self.skip_and_gate(&y, &x, z)?, None));
        }
        let c = match self.suppress_below {
            None => c,
            Some(alpha) => suppress(&delta, &self.a.real()?, &c, alpha)?,
        };
        let own = match sources {
            None => None,
            Some(_) => Some(HiddenStates {
                u: x.clone(),
                delta: delta.clone(),
                delta_bias: self.dt_bias.clone(),
                a: self.a.real()?,
                b: b.clone(),
                initial: state.as_ref().and_then(|state| state.ssm.clone()),
                segments: segments.cloned(),
                reverse,
            }),
        };
        let mut from_others = None;
        for (transition, source) in sources.into_iter().flatten() {
            let added = transition.forward(&x, &c, source)?; // (B, L, d_inner)
            from_others = Some(match from_others {
                None => added,
                Some(sum) => (sum + added)?,
            });
        }
        // One token from a zero state: y = (B·C) δ x + D x, whatever A is. A single state does the work of all.
        let (a, b, c) = match x.dim(1)? == 1 && segments.is_none() && state.is_none() {
            true => (
                self.d.ones_like()?.neg()?.unsqueeze(1)?,
                b.narrow(2, 0, 1)?.ones_like()?,
                (b * c)?.sum_keepdim(2)?,
            ),
            false => (self.a.real()?, b, c),
        };
        let mut scan = SelectiveScan::new(&x, &delta, &a, &b, &c)
            .gate(z)
            .delta_bias(&self.dt_bias)
            .softplus(true)
            .reverse(reverse);
        if !self.forget_gate {
            scan = scan.skip(&self.d);
        }
        scan = segments.into_iter().fold(scan, |scan, segments| scan.segments(segments));
        let y = match state {
            None => scan.run()?,
            Some(state) => {
                let scan = state.ssm.iter().fold(scan, |scan, s| scan.initial_state(s));
                let (y, ssm) = scan.run_with_state()?;
                *state = Mamba1State { conv: conv_state, ssm: Some(ssm) };
                y
            }
        };
        let y = match self.forget_gate {
            false => y,
            true => (y + (x.broadcast_mul(&self.d)? * candle_nn::ops::sigmoid(&z.neg()?)?)?)?,
        };
        match from_others {
            None => Ok((y, own)),
            Some(added) => Ok(((y + (added * z.silu()?)?)?, own)),
        }
    }

    /// The scan with complex states, without skip and gate: `x`, `delta` `(B, L, d_inner)`, `B` and `C` `(B, L, d_state)` as
    /// pairs → `(B, L, d_inner)`. `state` is replaced by the state after.
    fn scan_complex(
        &self,
        x: &Tensor,
        delta: &Tensor,
        imag: &Tensor,
        (b, c): (&Tensor, &Tensor),
        (segments, reverse): (Option<&Segments>, bool),
        state: &mut Option<Tensor>,
    ) -> Result<Tensor> {
        let delta = softplus(&delta.broadcast_add(&self.dt_bias)?)?;
        let real = self.a.real()?;
        let before = state.take();
        let scan = ComplexScan::new(x, &delta, (&real, imag), b, c).reverse(reverse);
        let scan = segments.into_iter().fold(scan, |scan, segments| scan.segments(segments));
        let (y, after) = before.iter().fold(scan, |scan, s| scan.initial_state(s)).run_with_state()?;
        *state = Some(after);
        Ok(y)
    }

    /// `y · silu(z)` with the skip of `x`, before the gate or, with a forget gate, through what it keeps out.
    fn skip_and_gate(&self, y: &Tensor, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        let skip = x.broadcast_mul(&self.d)?;
        match self.forget_gate {
            false => (y + skip)? * z.silu()?,
            true => (y * z.silu()?)? + (skip * candle_nn::ops::sigmoid(&z.neg()?)?)?,
        }
    }
}

/// The state matrix of all channels, `(d_inner, states)`: `-exp(A_log)`, and of complex states beside it `i·A_imag`.
#[derive(Clone, Debug)]
pub(crate) struct StateMatrix {
    log: Tensor,
    imag: Option<Tensor>,
    /// `-exp(A_log)`, kept where it cannot change.
    fixed: Option<Tensor>,
}

impl StateMatrix {
    /// Parameters `A{suffix}_log` and, of complex states, `A{suffix}_imag` under `pb`.
    pub(crate) fn new(d_inner: usize, cfg: &Mamba1Config, pb: &ParamBuilder, suffix: &str) -> Result<Self> {
        let name = format!("A{suffix}_log");
        let (log, imag) = match cfg.state_init {
            // -(n + 1) stands on the diagonal of HiPPO-LegS, which is triangular.
            StateInit::S4dReal | StateInit::HippoLegS => {
                (pb.get_no_decay((d_inner, cfg.d_state), &name, Init::S4dReal)?, None)
            }
            StateInit::S4dLin => {
                let poles = StateInit::S4dLin.poles(cfg.d_state / 2);
                let shape = (d_inner, poles.len());
                let column = |f: fn(&(f64, f64)) -> f64| Init::Rows(poles.iter().map(f).collect());
                let imag = pb.get_no_decay(shape, &format!("A{suffix}_imag"), column(|p| p.1))?;
                (pb.get_no_decay(shape, &name, column(|p| (-p.0).ln()))?, Some(imag))
            }
        };
        let fixed = if log.is_variable() { None } else { Some(negative_exp(&log)?) };
        Ok(Self { log, imag, fixed })
    }

    /// The real part.
    fn real(&self) -> Result<Tensor> {
        self.fixed.clone().map_or_else(|| negative_exp(&self.log), Ok)
    }
}

impl Ssm for SelectiveSsm {
    type Config = Mamba1Config;
    type State = Mamba1State;

    fn projections(d_model: usize, cfg: &Mamba1Config) -> crate::Result<Projections> {
        cfg.validate_for(d_model)?;
        let d_inner = cfg.d_inner(d_model);
        Ok(Projections { d_in_proj: 2 * d_inner, d_inner, bias: cfg.bias })
    }

    fn create(d_model: usize, cfg: &Mamba1Config, pb: &ParamBuilder) -> Result<Self> {
        Self::new(d_model, cfg, pb)
    }

    fn project(&self, in_proj: &Linear, x: &Tensor) -> Result<Vec<Tensor>> {
        let d_inner = self.d.dim(0)?;
        Ok(in_proj.split(x, [d_inner; 2])?.into()) // x, z (B, L, d_inner)
    }

    fn mix(&self, projected: &[Tensor], pass: Pass<'_>) -> Result<Tensor> {
        let [x, z] = projected else { bail!("Mamba-1 mixes x and z, got {} tensors", projected.len()) };
        self.forward(x, z, pass)
    }
}

/// The Mamba-1 mixer.
pub type Mamba1 = MixerOf<SelectiveSsm>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Rng};
    use candle_core::{DType, Device};

    fn normal(shape: (usize, usize, usize), seed: u64) -> Tensor {
        Rng::new(seed).normal_tensor(shape, 0.0, 1.0, DType::F64, &Device::Cpu).unwrap()
    }

    fn farthest(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_token_alone_is_the_first_of_many() -> Result<()> {
        let params = Params::fresh(1, DType::F64, &Device::Cpu);
        let mixer = Mamba1::new(6, &Mamba1Config { d_state: 5, ..Default::default() }, 1, &params.builder())?;
        let x = normal((3, 4, 6), 2);
        for reverse in [false, true] {
            let first = if reverse { 3 } else { 0 };
            let pass = || Pass { reverse, ..Pass::default() };
            let of_many = mixer.forward_pass(&x, pass())?.narrow(1, first, 1)?;
            let alone = mixer.forward_pass(&x.narrow(1, first, 1)?.contiguous()?, pass())?;
            assert!(farthest(&of_many, &alone) < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn state_inits_are_named_in_the_config() -> Result<()> {
        for name in ["s4d_real", "hippo_legs"] {
            let json = format!(r#"{{"d_state": 5, "state_init": "{name}"}}"#);
            let cfg: Mamba1Config = serde_json::from_str(&json).unwrap();
            let params = Params::fresh(1, DType::F64, &Device::Cpu);
            let mixer = Mamba1::new(3, &cfg, 1, &params.builder())?;
            for row in mixer.ssm().a.real()?.to_vec2::<f64>()? {
                for (n, a) in row.iter().enumerate() {
                    assert!((a + (n as f64 + 1.0)).abs() < 1e-12, "{name}: {a}");
                }
            }
        }
        // -(n + 1) is the diagonal of the triangular HiPPO-LegS matrix: its eigenvalues
        let (legs, _) = crate::init::hippo_legs(5, &Device::Cpu)?;
        for (n, row) in legs.to_vec2::<f64>()?.iter().enumerate() {
            assert!(row[n] == -(n as f64 + 1.0) && row[n + 1..].iter().all(|a| *a == 0.0));
        }
        // complex states, as pairs: -1/2 + iπn
        let cfg: Mamba1Config = serde_json::from_str(r#"{"d_state": 6, "state_init": "s4d_lin"}"#).unwrap();
        let params = Params::fresh(1, DType::F64, &Device::Cpu);
        let mixer = Mamba1::new(3, &cfg, 1, &params.builder())?;
        let imag = mixer.ssm().a.imag.as_ref().unwrap().to_vec2::<f64>()?;
        for (real, imag) in mixer.ssm().a.real()?.to_vec2::<f64>()?.iter().zip(&imag) {
            assert!(real.len() == 3 && real.iter().all(|a| (a + 0.5).abs() < 1e-12));
            assert_eq!(imag[..], [0.0, 1.0, 2.0].map(|n| n * std::f64::consts::PI));
        }
        let refused = |cfg: Mamba1Config| cfg.validate().unwrap_err().to_string();
        assert!(
            refused(Mamba1Config { d_state: 5, ..cfg.clone() }).contains("d_state is 5, expected an even")
        );
        assert!(refused(Mamba1Config { suppress_below: Some(0.5), ..cfg }).contains("for real states"));
        let old = serde_json::to_value(Mamba1Config::default()).unwrap();
        assert!(old.get("state_init").is_none() && old.get("suppress_below").is_none());
        Ok(())
    }

    #[test]
    fn suppressing_scales_c_and_steps_follow() -> Result<()> {
        let params = Params::fresh(1, DType::F64, &Device::Cpu);
        let plain = Mamba1Config { d_state: 4, expand: 1, ..Default::default() };
        let with = |alpha: f64| Mamba1Config { suppress_below: Some(alpha), ..plain.clone() };
        let build = |cfg: &Mamba1Config| Mamba1::new(4, cfg, 1, &params.builder());
        let x = normal((2, 6, 4), 3);
        let mixer = build(&with(0.5))?;
        let y = mixer.forward(&x)?;
        assert!(farthest(&y, &build(&plain)?.forward(&x)?) > 1e-6);
        assert_eq!(farthest(&build(&with(-1e300))?.forward(&x)?, &build(&plain)?.forward(&x)?), 0.0);
        let mut state = Mamba1State::new();
        for t in 0..6 {
            let got = mixer.step(&x.narrow(1, t, 1)?.squeeze(1)?, &mut state)?;
            assert!(farthest(&got, &y.narrow(1, t, 1)?.squeeze(1)?) < 1e-12);
        }
        assert!(with(f64::NAN).validate().is_err());
        Ok(())
    }

    #[test]
    fn the_forget_gate_opens_for_the_scan_and_closes_for_the_skip() -> Result<()> {
        let params = Params::fresh(1, DType::F64, &Device::Cpu);
        let plain = Mamba1Config { d_state: 3, expand: 1, ..Default::default() };
        let gated = Mamba1Config { forget_gate: true, ..plain.clone() };
        let (plain, gated) = (
            SelectiveSsm::new(4, &plain, &params.builder())?,
            SelectiveSsm::new(4, &gated, &params.builder())?,
        );
        params.set("D", &Tensor::new(&[0.5, -1.0, 2.0, 0.25], &Device::Cpu)?)?;
        let (x, z) = (normal((2, 7, 4), 3), normal((2, 7, 4), 4));
        let conv = CausalConv1d::new(&x, &plain.conv_weight).silu(true);
        let u = plain.conv_bias.iter().fold(conv, |conv, bias| conv.bias(bias)).run()?;
        // plain: (C·h + D·u) silu(z); gated: (C·h) silu(z) + D·u (1 - σ(z))
        let skip = u.broadcast_mul(&plain.d)?;
        let sigmoid = candle_nn::ops::sigmoid(&z)?;
        let scan = (plain.forward(&x, &z, Pass::default())? - (&skip * z.silu()?)?)?;
        let expected = (scan + (skip * (1.0 - sigmoid)?)?)?;
        assert!(farthest(&gated.forward(&x, &z, Pass::default())?, &expected) < 1e-12);
        Ok(())
    }
}
