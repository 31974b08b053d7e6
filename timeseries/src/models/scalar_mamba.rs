//! A Mamba-1 mixer of width 1, as TimeMachine runs over the steps of a window.
//!
//! Of one channel, the kernels' lanes would lie empty but one. But with one channel the input-dependent matrices are
//! multiples of constant ones, `B_t = b · u_t` and `C_t = c · u_t`, so that
//!
//! ```text
//! h_t = exp(δ_t A) h_{t-1} + δ_t b u_t²        y_t = u_t (c · h_t) + D u_t
//! ```
//!
//! is a scan of `u²` with constant `b` and `c`: all sequences of a batch become channels of one scan. The parameters, and
//! the function, are those of [`mamba_core::Mamba1`].

use candle_core::{IndexOp, Result, Tensor};
use mamba_core::{Init, Mamba1Config, ParamBuilder};
use mamba_kernels::{CausalConv1d, SelectiveScan};

#[derive(Clone, Debug)]
pub(crate) struct ScalarMamba {
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Option<Tensor>,
    x_proj: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    out_proj: Tensor,
}

impl ScalarMamba {
    /// Whether a mixer of this width is one.
    pub(crate) fn fits(d_model: usize, cfg: &Mamba1Config) -> bool {
        let plain = cfg.expect_plain("a scalar Mamba").is_ok();
        d_model == 1 && cfg.expand == 1 && cfg.dt_rank.resolve(1) == 1 && !cfg.bias && plain
    }

    pub(crate) fn new(cfg: &Mamba1Config, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate_for(1)?;
        let (n, k) = (cfg.d_state, cfg.d_conv);
        let conv = pb.pp("conv1d");
        let dt_bias = Init::DtBias { min: cfg.dt_min, max: cfg.dt_max, floor: cfg.dt_init_floor };
        let conv_bias = match cfg.conv_bias {
            true => Some(conv.get_no_decay(1, "bias", Init::linear(k))?),
            false => None,
        };
        let dt_init = Init::Uniform { lo: -cfg.dt_scale, hi: cfg.dt_scale };
        Ok(Self {
            in_proj: pb.pp("in_proj").get((2, 1), "weight", Init::linear(1))?,
            conv_weight: conv.get((1, 1, k), "weight", Init::linear(k))?.squeeze(1)?,
            conv_bias,
            x_proj: pb.pp("x_proj").get((1 + 2 * n, 1), "weight", Init::linear(1))?,
            dt: pb.pp("dt_proj").get((1, 1), "weight", dt_init)?,
            dt_bias: pb.pp("dt_proj").get_no_decay(1, "bias", dt_bias)?,
            a_log: pb.get_no_decay((1, n), "A_log", Init::S4dReal)?,
            d: pb.get_no_decay(1, "D", Init::Ones)?,
            out_proj: pb.pp("out_proj").get((1, 1), "weight", Init::linear(1))?,
        })
    }

    /// `(sequences, L)` → `(sequences, L)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let s = x.dim(0)?;
        let n = self.a_log.dim(1)?;
        let scalar = |t: Tensor| t.reshape((1, 1, 1));
        let row = |t: &Tensor| t.reshape((1, n))?.broadcast_as((s, n))?.contiguous(); // the same for every sequence
        let x = x.t()?.contiguous()?.unsqueeze(0)?; // (1, L, S)
        let z = x.broadcast_mul(&scalar(self.in_proj.i(1)?)?)?;
        let x = x.broadcast_mul(&scalar(self.in_proj.i(0)?)?)?;
        let weight = self.conv_weight.broadcast_as((s, self.conv_weight.dim(1)?))?.contiguous()?;
        let bias = self.conv_bias.as_ref().map(|b| b.broadcast_as(s)?.contiguous()).transpose()?;
        let conv = CausalConv1d::new(&x, &weight).silu(true);
        let u = bias.iter().fold(conv, |conv, bias| conv.bias(bias)).run()?; // (1, L, S)
        let to_delta = (self.x_proj.i(0)? * self.dt.i(0)?)?;
        let delta = u.broadcast_mul(&scalar(to_delta)?)?;
        let a = row(&self.a_log.exp()?.neg()?)?; // (S, N)
        let (b, c) = (row(&self.x_proj.i(1..1 + n)?)?, row(&self.x_proj.i(1 + n..)?)?);
        let dt_bias = self.dt_bias.broadcast_as(s)?.contiguous()?;
        let y =
            SelectiveScan::new(&u.sqr()?, &delta, &a, &b, &c).delta_bias(&dt_bias).softplus(true).run()?;
        let y = (y.broadcast_add(&scalar(self.d.clone())?)? * u)?;
        let y = (y * z.silu()?)?.broadcast_mul(&scalar(self.out_proj.clone())?)?; // (1, L, S)
        y.squeeze(0)?.t()?.contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use mamba_core::{Mamba1, Params};

    #[test]
    fn it_is_the_mixer_of_width_one() -> Result<()> {
        let cfg = Mamba1Config { d_state: 5, d_conv: 2, expand: 1, ..Default::default() };
        let params = Params::fresh(3, DType::F64, &Device::Cpu);
        let (plain, lanes) =
            (Mamba1::new(1, &cfg, 1, &params.builder())?, ScalarMamba::new(&cfg, &params.builder())?);
        let x = mamba_core::Rng::new(1).normal_tensor((6, 9), 0.0, 1.0, DType::F64, &Device::Cpu)?;
        let plain = plain.forward(&x.unsqueeze(2)?)?.squeeze(2)?;
        let lanes = lanes.forward(&x)?;
        let off = (&plain - &lanes)?.abs()?.max_all()?.to_scalar::<f64>()?;
        assert!(off < 1e-12, "{off}");
        assert!(plain.abs()?.max_all()?.to_scalar::<f64>()? > 1e-3);
        Ok(())
    }
}
