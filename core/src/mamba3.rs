//! The Mamba-3 mixer with one input and one output per head (SISO; arXiv 2603.15569): a trapezoidal rule, a state that
//! rotates, and no convolution.
//!
//! ```text
//! (z, x, B, C, dt, A, λ, θ̇) = in_proj(input)
//! B, C  = rms_norm(B) + B_bias, rms_norm(C) + C_bias                        a bias for each head
//! δ     = softplus(dt + dt_bias);   A = -max(tail(A), A_floor);   λ = σ(λ)  tail(x) = 1 + x, or 1/(1 - x) below 0
//! θ_t   = θ_{t-1} + π · tanh(θ̇_t) · δ_t                                     an angle for each pair of states
//! H_t   = α_t H_{t-1} + α_t (1 - λ_t) δ_t · x_{t-1} ⊗ RB_{t-1} + λ_t δ_t · x_t ⊗ RB_t,      α = exp(δA)
//! y_t   = H_t RC_t + D x_t                                                  R rotates by θ_t
//! output = out_proj(y · silu(z))
//! ```
//!
//! With `H'_t = H_t + (1 - λ_{t+1}) δ_{t+1} · x_t ⊗ RB_t` that is a state space dual scan whose tokens enter the state with
//! another weight than their own output, see [`Ssd::weights`](mamba_kernels::Ssd::weights). Angles are summed up over one
//! pass and kept modulo 2π between passes.

use crate::mamba1::expect_possible;
use crate::mixer::{MixerOf, Pass, Projections, Ssm};
use crate::nn::{Linear, softplus};
use crate::{Error, Init, ParamBuilder};
use candle_core::{D, Result, Tensor, bail};
use mamba_kernels::{Norm, Segment, Segments, SelectiveScan, Ssd};
use serde::{Deserialize, Serialize};
use std::f64::consts::{PI, TAU};

const NORM_EPSILON: f64 = 1e-5;

/// Hyper-parameters of the mixer, with upstream's names (`ssm_cfg`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba3Config {
    /// Values of a channel's state, N.
    pub d_state: usize,
    /// `d_inner = expand · d_model`.
    pub expand: usize,
    /// Channels of a head, P.
    pub headdim: usize,
    /// Groups of heads that share B and C.
    pub ngroups: usize,
    /// Which part of the state rotates: 0.5 or 1.
    pub rope_fraction: f64,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// Initial step sizes below this are raised to it.
    pub dt_init_floor: f64,
    /// The decay rate is at least this.
    #[serde(rename = "A_floor")]
    pub a_floor: f64,
    /// Whether each head's output is normalised before it is gated.
    pub is_outproj_norm: bool,
    /// Several inputs and outputs per head; not supported.
    pub is_mimo: bool,
    /// Their number; unused without `is_mimo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mimo_rank: Option<usize>,
    /// Upstream's tokens of a chunk, which change rounding and speed only; read and written, never used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<usize>,
}

impl Default for Mamba3Config {
    fn default() -> Self {
        Self {
            d_state: 128,
            expand: 2,
            headdim: 64,
            ngroups: 1,
            rope_fraction: 0.5,
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init_floor: 1e-4,
            a_floor: 1e-4,
            is_outproj_norm: false,
            is_mimo: false,
            mimo_rank: None,
            chunk_size: None,
        }
    }
}

impl Mamba3Config {
    /// Channels inside the mixer.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.expand.saturating_mul(d_model)
    }

    /// Number of heads.
    pub fn nheads(&self, d_model: usize) -> usize {
        self.d_inner(d_model) / self.headdim
    }

    /// Angles of a head: pairs of states that rotate.
    pub fn n_angles(&self) -> usize {
        (self.d_state as f64 * self.rope_fraction) as usize / 2
    }

    /// About how many parameters a mixer of width `d_model` has; in floating point, which cannot overflow.
    pub(crate) fn size(&self, d_model: usize) -> f64 {
        let [d, n, g, expand, p] =
            [d_model, self.d_state, self.ngroups, self.expand, self.headdim.max(1)].map(|x| x as f64);
        d * (3.0 * expand * d + 2.0 * g * n + n) + 2.0 * expand * d / p * n
    }

    /// Refuses sizes that make no mixer, whatever its width.
    pub fn validate(&self) -> crate::Result<()> {
        let Self { d_state, expand, headdim, ngroups, rope_fraction, .. } = self;
        let problem = if [*d_state, *expand, *headdim, *ngroups].contains(&0) {
            format!(
                "d_state {d_state}, expand {expand}, headdim {headdim} and ngroups {ngroups} must be at least 1"
            )
        } else if ![0.5, 1.0].contains(rope_fraction) {
            format!("rope_fraction is {rope_fraction}, expected 0.5 or 1")
        } else if self.n_angles() == 0 {
            format!("rope_fraction {rope_fraction} of d_state {d_state} is no pair of states")
        } else if self.a_floor.is_nan() || self.a_floor < 0.0 {
            format!("A_floor is {}, expected at least 0", self.a_floor)
        } else if self.is_mimo {
            "is_mimo: several inputs and outputs per head are not supported".to_string()
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
        let d_inner = self.d_inner(d_model);
        let problem = if !d_inner.is_multiple_of(*headdim) {
            format!("headdim {headdim} does not divide d_inner {d_inner}")
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
pub struct Mamba3State {
    /// The angles in [0, 2π), `(segments, nheads, n_angles)`.
    pub angle: Option<Tensor>,
    /// The states of the scan, `(segments, nheads, headdim, d_state)`.
    pub ssm: Option<Tensor>,
    /// The last token's rotated B, `(segments, nheads, d_state)`.
    pub k: Option<Tensor>,
    /// The last token's x, `(segments, nheads, headdim)`.
    pub v: Option<Tensor>,
}

impl Mamba3State {
    /// The beginning of a sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same values without their history: gradients end here (truncated back-propagation through time).
    pub fn detach(&self) -> Self {
        let cut = |x: &Option<Tensor>| x.as_ref().map(Tensor::detach);
        Self { angle: cut(&self.angle), ssm: cut(&self.ssm), k: cut(&self.k), v: cut(&self.v) }
    }
}

/// What lies between the projections: norms of B and C, rotation, scan, gate.
#[derive(Clone, Debug)]
pub struct RotarySsm {
    sizes: Sizes,
    dt_bias: Tensor,
    b: Coefficient,
    c: Coefficient,
    d: Tensor,
    norm: Option<Tensor>,
    a_floor: f64,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    nheads: usize,
    headdim: usize,
    ngroups: usize,
    d_state: usize,
    n_angles: usize,
}

/// B or C: the weight of its norm `(N)` and its bias `(nheads, N)`.
#[derive(Clone, Debug)]
struct Coefficient {
    norm: Tensor,
    bias: Tensor,
}

/// Cosines and sines of each head's angles, one for each value of the state: `(B, L, nheads, N)`.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

/// The first and the last token of each segment in the order of the scan, as rows of `(B·L, ·)`.
struct Ends {
    first: Tensor,
    last: Tensor,
    /// 1 where there is a token at all, `(segments)`.
    present: Tensor,
}

impl Ssm for RotarySsm {
    type Config = Mamba3Config;
    type State = Mamba3State;

    fn projections(d_model: usize, cfg: &Mamba3Config) -> crate::Result<Projections> {
        cfg.validate_for(d_model)?;
        let d_inner = cfg.d_inner(d_model);
        let coefficients = 2 * cfg.ngroups * cfg.d_state;
        let d_in_proj = 2 * d_inner + coefficients + 3 * cfg.nheads(d_model) + cfg.n_angles();
        Ok(Projections { d_in_proj, d_inner, bias: false })
    }

    /// Parameters `dt_bias`, `B_norm`, `C_norm`, `B_bias`, `C_bias`, `D` and `norm` under `pb`.
    fn create(d_model: usize, cfg: &Mamba3Config, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate_for(d_model).map_err(candle_core::Error::wrap)?;
        let (nheads, n) = (cfg.nheads(d_model), cfg.d_state);
        let dt_bias = Init::DtBias { min: cfg.dt_min, max: cfg.dt_max, floor: cfg.dt_init_floor };
        let coefficient = |name: &str| -> Result<Coefficient> {
            let norm = pb.pp(format!("{name}_norm")).get_no_decay(n, "weight", Init::Ones)?;
            let bias = pb.get_no_decay((nheads, 1, n), &format!("{name}_bias"), Init::Ones)?.squeeze(1)?;
            Ok(Coefficient { norm, bias })
        };
        let norm = match cfg.is_outproj_norm {
            true => Some(pb.pp("norm").get_no_decay(cfg.d_inner(d_model), "weight", Init::Ones)?),
            false => None,
        };
        let (headdim, ngroups, n_angles) = (cfg.headdim, cfg.ngroups, cfg.n_angles());
        Ok(Self {
            sizes: Sizes { nheads, headdim, ngroups, d_state: n, n_angles },
            dt_bias: pb.get_no_decay(nheads, "dt_bias", dt_bias)?,
            b: coefficient("B")?,
            c: coefficient("C")?,
            d: pb.get_no_decay(nheads, "D", Init::Ones)?,
            norm,
            a_floor: cfg.a_floor,
        })
    }

    fn project(&self, in_proj: &Linear, x: &Tensor) -> Result<Vec<Tensor>> {
        let Sizes { nheads, headdim, ngroups, d_state, n_angles } = self.sizes;
        let (d_inner, coefficient) = (nheads * headdim, ngroups * d_state);
        let parts = [d_inner, d_inner, coefficient, coefficient, nheads, nheads, nheads, n_angles];
        Ok(in_proj.split(x, parts)?.into())
    }

    fn mix(&self, projected: &[Tensor], pass: Pass<'_, Mamba3State>) -> Result<Tensor> {
        let [z, x, b, c, dt, a, trapezoid, turning] = projected else {
            bail!("Mamba-3 mixes z, x, B, C, dt, A, λ and angles, got {} tensors", projected.len())
        };
        let Sizes { nheads, headdim, .. } = self.sizes;
        let (batch, len, d_inner) = x.dims3()?;
        let Pass { segments, reverse, state } = pass;
        let whole = Segments::whole(batch, len);
        let segments = segments.unwrap_or(&whole);
        let ends = Ends::new(segments, reverse, x)?;
        let before = state.as_deref().cloned().unwrap_or_default();

        let delta = softplus(&dt.broadcast_add(&self.dt_bias)?)?; // (B, L, nheads)
        // 1 + x, or 1/(1 - x) below 0
        let tail = (a.relu()? + (a.neg()?.relu()? + 1.0)?.recip()?)?;
        let decay = (&delta * tail.maximum(self.a_floor)?)?; // -δA
        let own = (candle_nn::ops::sigmoid(trapezoid)? * &delta)?; // λδ
        let of_previous = (&delta - &own)?; // (1 - λ)δ
        let into_state = (&own + next_token(&of_previous, segments, reverse)?)?;

        let (rotation, angle) = self.rotation(turning, &delta, &before, segments, reverse)?;
        let k = self.rotated(b, &self.b, &rotation)?; // (B, L, nheads, N)
        let q = self.rotated(c, &self.c, &rotation)?;
        let v = x.reshape((batch, len, nheads, headdim))?;
        let heads_of_z = z.reshape(v.shape())?;
        let rate = self.d.ones_like()?.detach().neg()?; // (nheads)
        let initial = self.initial_state(&before, &of_previous, &ends)?;

        let mut scan = Ssd::new(&v, &decay, &rate, &k, &q)
            .weights(&into_state, &own)
            .skip(&self.d)
            .segments(segments)
            .reverse(reverse);
        scan = initial.iter().fold(scan, |scan, state| scan.initial_state(state));
        if self.norm.is_none() {
            scan = scan.gate(&heads_of_z);
        }
        let y = match state {
            None => scan.run()?,
            Some(state) => {
                let (y, ssm) = scan.run_with_state()?;
                *state = Mamba3State {
                    angle: Some(angle),
                    ssm: Some(ssm),
                    k: Some(ends.last_of(&k, before.k.as_ref())?),
                    v: Some(ends.last_of(&v, before.v.as_ref())?),
                };
                y
            }
        };
        let y = y.reshape((batch, len, d_inner))?;
        match &self.norm {
            Some(weight) => Norm::rms(&y, weight, NORM_EPSILON).group_size(headdim).gate(z, true).run(),
            None => Ok(y),
        }
    }
}

impl RotarySsm {
    /// The rotation at each token, and the angles after each segment in [0, 2π). The sum over the tokens is a scan that
    /// forgets nothing.
    fn rotation(
        &self,
        turning: &Tensor,
        delta: &Tensor,
        before: &Mamba3State,
        segments: &Segments,
        reverse: bool,
    ) -> Result<(Rotation, Tensor)> {
        let Sizes { nheads, d_state, n_angles, .. } = self.sizes;
        let (batch, len, _) = delta.dims3()?;
        let wide = nheads * n_angles;
        let speed = (turning.tanh()? * PI)?.unsqueeze(2)?; // (B, L, 1, R)
        let steps = delta.unsqueeze(3)?.broadcast_mul(&speed)?; // (B, L, nheads, R)
        let steps = steps.reshape((batch, len, wide))?;
        let one = Tensor::ones((wide, 1), steps.dtype(), steps.device())?;
        let (unit, zero) = (steps.ones_like()?.detach(), one.zeros_like()?);
        let initial = match &before.angle {
            Some(angle) => Some(angle.reshape(((), wide, 1))?),
            None => None,
        };
        let mut scan =
            SelectiveScan::new(&steps, &unit, &zero, &one, &one).segments(segments).reverse(reverse);
        scan = initial.iter().fold(scan, |scan, angle| scan.initial_state(angle));
        let (angles, last) = scan.run_with_state()?;
        let turns = ((last.detach() / TAU)?.floor()? * TAU)?;
        let last = (last - turns)?.reshape(((), nheads, n_angles))?;

        // Each angle for its pair of values; what does not rotate takes the last column.
        let angles = angles.reshape((batch, len, nheads, n_angles))?;
        let still = Tensor::zeros((batch, len, nheads, 1), angles.dtype(), angles.device())?;
        let angles = Tensor::cat(&[angles, still], D::Minus1)?; // (B, L, nheads, R + 1)
        let columns = (0..d_state).map(|i| (i / 2).min(n_angles) as u32);
        let columns = Tensor::from_iter(columns, angles.device())?;
        let spread = |x: Tensor| x.index_select(&columns, D::Minus1); // (B, L, nheads, N)
        Ok((Rotation { cos: spread(angles.cos()?)?, sin: spread(angles.sin()?)? }, last))
    }

    /// `(B, L, ngroups·N)`, normalised, with each head's bias, rotated: `(B, L, nheads, N)`.
    fn rotated(&self, x: &Tensor, coefficient: &Coefficient, rotation: &Rotation) -> Result<Tensor> {
        let Sizes { nheads, ngroups, d_state, .. } = self.sizes;
        let (batch, len, _) = x.dims3()?;
        let x =
            Norm::rms(&x.reshape((batch, len, ngroups, d_state))?, &coefficient.norm, NORM_EPSILON).run()?;
        // (x_0, x_1, …) → (-x_1, x_0, …): what the sine multiplies
        let partners = (0..d_state as u32).map(|i| (i ^ 1).min(d_state as u32 - 1));
        let partners = Tensor::from_iter(partners, x.device())?;
        let signs = (0..d_state).map(|i| if i % 2 == 0 { -1f64 } else { 1.0 });
        let signs = Tensor::from_iter(signs, x.device())?.to_dtype(x.dtype())?;
        let turned = |x: &Tensor| x.contiguous()?.index_select(&partners, D::Minus1)?.broadcast_mul(&signs);
        let heads = |x: &Tensor, bias: &Tensor| -> Result<Tensor> {
            let x = x.unsqueeze(3)?.broadcast_as((batch, len, ngroups, nheads / ngroups, d_state))?;
            x.reshape((batch, len, nheads, d_state))?.broadcast_add(bias)
        };
        let (straight, turned) =
            (heads(&x, &coefficient.bias)?, heads(&turned(&x)?, &turned(&coefficient.bias)?)?);
        (straight * &rotation.cos)? + (turned * &rotation.sin)?
    }

    /// The state that the scan starts from: the one before, and in it the token before as the first one reads it.
    fn initial_state(
        &self,
        before: &Mamba3State,
        of_previous: &Tensor,
        ends: &Ends,
    ) -> Result<Option<Tensor>> {
        let Mamba3State { ssm: Some(ssm), k: Some(k), v: Some(v), .. } = before else { return Ok(None) };
        let weight = ends.rows(of_previous, &ends.first)?; // (segments, nheads)
        let weight = ends
            .present
            .unsqueeze(1)?
            .broadcast_as(weight.shape())?
            .where_cond(&weight, &weight.zeros_like()?)?;
        let v = v.broadcast_mul(&weight.unsqueeze(2)?)?; // (segments, nheads, P)
        let token = v.unsqueeze(3)?.broadcast_mul(&k.unsqueeze(2)?)?; // (segments, nheads, P, N)
        Ok(Some((ssm + token)?))
    }
}

impl Ends {
    fn new(segments: &Segments, reverse: bool, like: &Tensor) -> Result<Self> {
        let row = |s: &Segment, token: usize| (s.row * segments.seq_len() + token) as u32;
        // An empty segment points anywhere, and is told apart by `present`.
        let left = segments.iter().map(|s| if s.is_empty() { 0 } else { row(s, s.start) });
        let right = segments.iter().map(|s| if s.is_empty() { 0 } else { row(s, s.end - 1) });
        let left = Tensor::from_iter(left, like.device())?;
        let right = Tensor::from_iter(right, like.device())?;
        let present = Tensor::from_iter(segments.iter().map(|s| u8::from(!s.is_empty())), like.device())?;
        let (first, last) = if reverse { (right, left) } else { (left, right) };
        Ok(Self { first, last, present })
    }

    /// The values `(segments, …)` of some tokens of `(B, L, …)`.
    fn rows(&self, x: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        x.flatten(0, 1)?.index_select(tokens, 0)
    }

    /// The values of each segment's last token, or those `before` where it has none.
    fn last_of(&self, x: &Tensor, before: Option<&Tensor>) -> Result<Tensor> {
        let last = self.rows(x, &self.last)?; // (segments, nheads, ·)
        let before = match before {
            Some(before) => before.clone(),
            None => last.zeros_like()?,
        };
        let present = self.present.reshape(((), 1, 1))?.broadcast_as(last.shape())?;
        present.where_cond(&last, &before)
    }
}

/// The values of the next token in the order of the scan, 0 at the end of a segment: `(B, L, nheads)`.
fn next_token(x: &Tensor, segments: &Segments, reverse: bool) -> Result<Tensor> {
    let (batch, len, heads) = x.dims3()?;
    let none = Tensor::zeros((batch, 1, heads), x.dtype(), x.device())?;
    let shifted = match (len, reverse) {
        (1, _) => return x.zeros_like(),
        (_, false) => Tensor::cat(&[x.narrow(1, 1, len - 1)?, none], 1)?,
        (_, true) => Tensor::cat(&[none, x.narrow(1, 0, len - 1)?], 1)?,
    };
    let mut inside = vec![0u8; batch * len];
    for s in segments.iter().filter(|s| !s.is_empty()) {
        let (first, end) = (s.row * len + s.start, s.row * len + s.end);
        inside[first..end].fill(1);
        inside[if reverse { first } else { end - 1 }] = 0;
    }
    let inside = Tensor::from_vec(inside, (batch, len, 1), x.device())?.broadcast_as(x.shape())?;
    inside.where_cond(&shifted, &x.zeros_like()?)
}

/// The Mamba-3 mixer.
pub type Mamba3 = MixerOf<RotarySsm>;
