//! Diagonal state space layers with complex states (Gu, Gupta, Goel and Ré 2022, "On the Parameterization and
//! Initialization of Diagonal State Space Models", arXiv 2206.11893): time-invariant, unlike Mamba.
//!
//! ```text
//! h_n' = A_n h_n + u,   y = 2 Re Σ_n C_n h_n + D u               n < N/2, for every channel
//! K_t  = 2 Re Σ_n C_n (exp(Δ A_n) - 1)/A_n · exp(Δ A_n)^t        (zero-order hold, their equation 3, B = 1)
//! y    = K * u + D u
//! ```
//!
//! States come in conjugate pairs, of which one is kept, real and imaginary part as a pair of real numbers. [`S4d`] is the layer;
//! [`S4dMixer`] stands it between the projections and the gate of a Mamba block, without a convolution, as the ablations of
//! Mamba (arXiv 2312.00752, section 4.6) do: a mixer like the others, with a state, that models choose by `"type": "s4d"`.

use crate::init::StateInit;
use crate::mamba1::expect_possible;
use crate::mixer::{MixerOf, Pass, Projections, Ssm};
use crate::nn::Linear;
use crate::{Error, Init, ParamBuilder};
use candle_core::{D, Result, Tensor, bail};
use mamba_kernels::ComplexScan;
use serde::{Deserialize, Serialize};

/// Hyper-parameters of the mixer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S4dConfig {
    /// Real numbers in the state of a channel, N: an even number, a pair for each complex state.
    pub d_state: usize,
    /// `d_inner = expand · d_model`.
    pub expand: usize,
    /// What the state matrix starts from.
    pub state_init: StateInit,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// Whether `in_proj` and `out_proj` have a bias.
    pub bias: bool,
}

impl Default for S4dConfig {
    fn default() -> Self {
        Self { d_state: 32, expand: 2, state_init: StateInit::S4dLin, dt_min: 1e-3, dt_max: 0.1, bias: false }
    }
}

impl S4dConfig {
    /// About how many parameters a mixer of width `d_model` has; in floating point, which cannot overflow.
    pub(crate) fn size(&self, d_model: usize) -> f64 {
        let [d, n, expand] = [d_model, self.d_state, self.expand].map(|x| x as f64);
        expand * d * (3.0 * d + 2.0 * n + 2.0)
    }

    /// Refuses sizes that make no mixer, whatever its width.
    pub fn validate(&self) -> crate::Result<()> {
        let Self { d_state, expand, dt_min, dt_max, .. } = self;
        let problem = if *d_state == 0 || !d_state.is_multiple_of(2) {
            format!("d_state is {d_state}, expected an even number, a pair for each complex state")
        } else if *expand == 0 {
            "expand is 0, must be at least 1".to_string()
        } else if !(*dt_min > 0.0 && dt_max >= dt_min && dt_max.is_finite()) {
            format!("dt_min {dt_min} and dt_max {dt_max}: expected 0 < dt_min <= dt_max")
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
        let Self { d_state, expand, .. } = self;
        expect_possible(self.size(d_model), || {
            format!("a mixer of d_model {d_model}, d_state {d_state} and expand {expand}")
        })
    }
}

/// What a layer remembers of the tokens before. A new state is that of the beginning of a sequence; gradients flow through it
/// from one chunk to the one before.
#[derive(Clone, Debug, Default)]
pub struct S4dState {
    /// The states as pairs, `(segments, channels, d_state)`.
    pub ssm: Option<Tensor>,
}

impl S4dState {
    /// The beginning of a sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same values without their history: gradients end here (truncated back-propagation through time).
    pub fn detach(&self) -> Self {
        Self { ssm: self.ssm.as_ref().map(Tensor::detach) }
    }
}

/// The layer; parameters `log_dt` `(D)`, `log_A_real`, `A_imag` `(D, N/2)`, `C` `(D, N/2, 2)` and `D` `(D)`.
#[derive(Clone, Debug)]
pub struct S4d {
    log_dt: Tensor,
    log_a_real: Tensor,
    a_imag: Tensor,
    c: Tensor,
    d: Tensor,
    /// What the scan takes, kept where it cannot change.
    fixed: Option<Discrete>,
}

/// The layer as its scan takes it.
#[derive(Clone, Debug)]
struct Discrete {
    /// `(D)`.
    dt: Tensor,
    /// `(D, N/2)`.
    a_real: Tensor,
    /// `(exp(ΔA) - 1) / (ΔA)` as pairs `(D, N)`: what a token adds to the state, apart from the `Δ u` of the scan.
    b: Tensor,
    /// Pairs `(D, N)`.
    c: Tensor,
}

impl S4d {
    /// A layer of `channels` channels; `cfg.expand` and `cfg.bias` are for mixers and have no meaning here.
    pub fn new(channels: usize, cfg: &S4dConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let pairs = cfg.d_state / 2;
        let poles = cfg.state_init.poles(pairs);
        let column = |f: fn(&(f64, f64)) -> f64| Init::Rows(poles.iter().map(f).collect());
        let (lo, hi) = (cfg.dt_min.ln(), cfg.dt_max.ln());
        let mut layer = Self {
            log_dt: pb.get_no_decay(channels, "log_dt", Init::Uniform { lo, hi })?,
            log_a_real: pb.get_no_decay((channels, pairs), "log_A_real", column(|p| (-p.0).ln()))?,
            a_imag: pb.get_no_decay((channels, pairs), "A_imag", column(|p| p.1))?,
            c: pb.get((channels, pairs, 2), "C", Init::Normal { std: 0.5f64.sqrt() })?,
            d: pb.get_no_decay(channels, "D", Init::Ones)?,
            fixed: None,
        };
        let trained = [&layer.log_dt, &layer.log_a_real, &layer.a_imag, &layer.c];
        if !trained.into_iter().any(Tensor::is_variable) {
            layer.fixed = Some(layer.discretise()?);
        }
        Ok(layer)
    }

    fn discretise(&self) -> Result<Discrete> {
        let (channels, pairs) = self.a_imag.dims2()?;
        let dt = self.log_dt.exp()?; // (D)
        let column = dt.unsqueeze(1)?;
        let a_real = self.log_a_real.exp()?.neg()?; // (D, N/2)
        let (x, y) = (a_real.broadcast_mul(&column)?, self.a_imag.broadcast_mul(&column)?); // ΔA
        let size = x.exp()?;
        let (e_re, e_im) = (((&size * y.cos()?)? - 1.0)?, (&size * y.sin()?)?);
        let norm = (x.sqr()? + y.sqr()?)?;
        let b_re = (((&e_re * &x)? + (&e_im * &y)?)? / &norm)?;
        let b_im = (((&e_im * &x)? - (&e_re * &y)?)? / &norm)?;
        let b = Tensor::stack(&[b_re, b_im], D::Minus1)?.reshape((channels, 2 * pairs))?;
        Ok(Discrete { dt, a_real, b, c: self.c.reshape((channels, 2 * pairs))? })
    }

    /// The first `len` taps `K_0 …` of the convolution that the layer is, `(D, len)`.
    pub fn kernel(&self, len: usize) -> Result<Tensor> {
        let pairs = self.a_imag.dim(1)?;
        let Discrete { dt, a_real, b, c } = self.discretise()?;
        let part = |x: &Tensor, i| x.reshape(((), pairs, 2))?.narrow(2, i, 1)?.squeeze(2);
        let column = dt.unsqueeze(1)?;
        let (b_re, b_im) = (part(&b, 0)?.broadcast_mul(&column)?, part(&b, 1)?.broadcast_mul(&column)?);
        let (c_re, c_im) = (part(&c, 0)?, part(&c, 1)?);
        let w_re = ((&c_re * &b_re)? - (&c_im * &b_im)?)?.unsqueeze(2)?; // (D, N/2, 1)
        let w_im = ((&c_re * &b_im)? + (&c_im * &b_re)?)?.unsqueeze(2)?;
        let t = Tensor::arange(0u32, len as u32, dt.device())?.to_dtype(dt.dtype())?.reshape((1, 1, len))?;
        let at = |a: &Tensor| a.broadcast_mul(&column)?.unsqueeze(2)?.broadcast_mul(&t); // (D, N/2, len)
        let (x, y) = (at(&a_real)?.exp()?, at(&self.a_imag)?);
        let wave = (y.cos()?.broadcast_mul(&w_re)? - y.sin()?.broadcast_mul(&w_im)?)?;
        (x * wave)?.sum(1)? * 2.0
    }

    /// `(B, L, D)` → `(B, L, D)`; every row is a sequence from its beginning.
    pub fn forward(&self, u: &Tensor) -> Result<Tensor> {
        self.forward_pass(u, Pass::default())
    }

    /// The same, any way.
    pub fn forward_pass(&self, u: &Tensor, pass: Pass<'_, S4dState>) -> Result<Tensor> {
        let discrete = self.fixed.clone().map_or_else(|| self.discretise(), Ok)?;
        let Discrete { dt, a_real, b, c } = &discrete;
        let scan = ComplexScan::new(u, dt, (a_real, &self.a_imag), b, c).reverse(pass.reverse);
        let scan = pass.segments.into_iter().fold(scan, |scan, segments| scan.segments(segments));
        let y = match pass.state {
            None => scan.run()?,
            Some(state) => {
                let scan = state.ssm.iter().fold(scan, |scan, s| scan.initial_state(s));
                let (y, ssm) = scan.run_with_state()?;
                state.ssm = Some(ssm);
                y
            }
        };
        let skip = u.broadcast_mul(&self.d)?;
        match pass.segments {
            // padding is never read, not even by the skip
            Some(segments) if segments.has_padding() => y + only_tokens(&skip, segments)?,
            _ => y + skip,
        }
    }
}

/// `x` `(B, L, D)` where there are tokens, 0 where there is padding.
fn only_tokens(x: &Tensor, segments: &mamba_kernels::Segments) -> Result<Tensor> {
    let (batch, len, _) = x.dims3()?;
    let mut inside = vec![0u8; batch * len];
    for s in segments.iter() {
        inside[s.row * len + s.start..s.row * len + s.end].fill(1);
    }
    let inside = Tensor::from_vec(inside, (batch, len, 1), x.device())?.broadcast_as(x.shape())?;
    inside.where_cond(x, &x.zeros_like()?)
}

/// What lies between the projections of the mixer: the layer and a gate, `s4d(x) · silu(z)`.
#[derive(Clone, Debug)]
pub struct GatedS4d {
    layer: S4d,
}

impl Ssm for GatedS4d {
    type Config = S4dConfig;
    type State = S4dState;

    fn projections(d_model: usize, cfg: &S4dConfig) -> crate::Result<Projections> {
        cfg.validate_for(d_model)?;
        let d_inner = cfg.expand * d_model;
        Ok(Projections { d_in_proj: 2 * d_inner, d_inner, bias: cfg.bias })
    }

    /// Parameters of [`S4d`] under `pb`.
    fn create(d_model: usize, cfg: &S4dConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate_for(d_model).map_err(candle_core::Error::wrap)?;
        Ok(Self { layer: S4d::new(cfg.expand * d_model, cfg, pb)? })
    }

    fn project(&self, in_proj: &Linear, x: &Tensor) -> Result<Vec<Tensor>> {
        let d_inner = self.layer.d.dim(0)?;
        Ok(in_proj.split(x, [d_inner; 2])?.into()) // x, z (B, L, d_inner)
    }

    fn mix(&self, projected: &[Tensor], pass: Pass<'_, S4dState>) -> Result<Tensor> {
        let [x, z] = projected else { bail!("S4D mixes x and z, got {} tensors", projected.len()) };
        self.layer.forward_pass(x, pass)? * z.silu()?
    }
}

/// The mixer.
pub type S4dMixer = MixerOf<GatedS4d>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Rng};
    use candle_core::{DType, Device};

    /// The recurrence in complex arithmetic, one channel and one state at a time.
    fn stepped(layer: &S4d, u: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let m = |t: &Tensor| t.to_vec2::<f64>().unwrap();
        let (re, im) = (m(&layer.log_a_real), m(&layer.a_imag));
        let c = layer.c.to_vec3::<f64>().unwrap();
        let (dt, d) =
            (layer.log_dt.exp().unwrap().to_vec1::<f64>().unwrap(), layer.d.to_vec1::<f64>().unwrap());
        let mul = |a: (f64, f64), b: (f64, f64)| (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0);
        let mut y: Vec<Vec<f64>> = u.iter().map(|u| u.iter().zip(&d).map(|(u, d)| u * d).collect()).collect();
        for ch in 0..dt.len() {
            for n in 0..re[ch].len() {
                let a = (-re[ch][n].exp(), im[ch][n]);
                let grow = (a.0 * dt[ch]).exp();
                let step = (grow * (a.1 * dt[ch]).cos(), grow * (a.1 * dt[ch]).sin());
                let norm = a.0 * a.0 + a.1 * a.1;
                let b = mul((step.0 - 1.0, step.1), (a.0 / norm, -a.1 / norm));
                let mut h = (0.0, 0.0);
                for (t, u) in u.iter().enumerate() {
                    let next = mul(step, h);
                    h = (next.0 + b.0 * u[ch], next.1 + b.1 * u[ch]);
                    y[t][ch] += 2.0 * mul((c[ch][n][0], c[ch][n][1]), h).0;
                }
            }
        }
        y
    }

    fn layer(state_init: StateInit, params: &Params) -> Result<S4d> {
        S4d::new(3, &S4dConfig { d_state: 8, state_init, ..Default::default() }, &params.builder())
    }

    fn input() -> Result<Tensor> {
        Rng::new(4).normal_tensor((1, 20, 3), 0.0, 1.0, DType::F64, &Device::Cpu)
    }

    #[test]
    fn the_layer_is_the_recurrence_of_complex_states_and_the_convolution_of_the_paper() -> Result<()> {
        for init in StateInit::ALL {
            let params = Params::fresh(3, DType::F64, &Device::Cpu);
            let layer = layer(init, &params)?;
            let u = input()?;
            let got = layer.forward(&u)?.squeeze(0)?.to_vec2::<f64>()?;
            let samples = u.squeeze(0)?.to_vec2::<f64>()?;
            let (kernel, d) = (layer.kernel(20)?.to_vec2::<f64>()?, layer.d.to_vec1::<f64>()?);
            for (t, want) in stepped(&layer, &samples).iter().enumerate() {
                for (ch, want) in want.iter().enumerate() {
                    let taps = (0..=t).map(|s| kernel[ch][t - s] * samples[s][ch]).sum::<f64>();
                    for got in [got[t][ch], taps + d[ch] * samples[t][ch]] {
                        assert!((got - want).abs() < 1e-10 * want.abs().max(1.0), "{init:?}: {got}, {want}");
                    }
                }
            }
            let grads = layer.forward(&u)?.sqr()?.sum_all()?.backward()?;
            for var in params.vars() {
                let size = grads.get(&var).unwrap().sqr()?.sum_all()?.to_scalar::<f64>()?;
                assert!(size > 0.0 && size.is_finite());
            }
            let frozen = Params::frozen(params.to_tensors(), DType::F64, &Device::Cpu);
            let frozen = self::layer(init, &frozen)?;
            assert!(frozen.fixed.is_some());
            assert_eq!(frozen.forward(&u)?.squeeze(0)?.to_vec2::<f64>()?, got);
        }
        Ok(())
    }

    #[test]
    fn states_are_named_in_the_config_and_start_where_they_say() -> Result<()> {
        for init in StateInit::ALL {
            let json = serde_json::json!({ "d_state": 8, "state_init": init });
            let cfg: S4dConfig = serde_json::from_value(json).unwrap();
            let params = Params::fresh(3, DType::F64, &Device::Cpu);
            let layer = S4d::new(2, &cfg, &params.builder())?;
            let (re, im) = (layer.log_a_real.to_vec2::<f64>()?, layer.a_imag.to_vec2::<f64>()?);
            for ch in 0..2 {
                for (n, (a, omega)) in init.poles(4).into_iter().enumerate() {
                    assert!((re[ch][n].exp() + a).abs() < 1e-12 && (im[ch][n] - omega).abs() < 1e-12);
                }
            }
        }
        let refused = |json: &str| {
            let cfg: S4dConfig = serde_json::from_str(json).unwrap();
            cfg.validate_for(4).unwrap_err().to_string()
        };
        assert!(refused(r#"{"d_state": 7}"#).contains("d_state is 7, expected an even number"));
        assert!(refused(r#"{"dt_min": 0.0}"#).contains("expected 0 < dt_min"));
        assert!(refused(r#"{"expand": 0}"#).contains("expand is 0"));
        Ok(())
    }
}
