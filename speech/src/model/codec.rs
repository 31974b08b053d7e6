//! The convolutional ends of SEMamba: dense encoder, mask decoder, phase decoder.

use super::History;
use crate::Config;
use crate::spectrum::atan2;
use candle_core::{D, Result, Tensor};
use mamba_core::nn::Linear;
use mamba_core::{Init, ParamBuilder};
use mamba_kernels::{Conv2d, conv_transpose2d, conv2d, instance_norm};

/// ε of upstream's instance norms.
const NORM_EPS: f64 = 1e-5;

/// Weight and bias of a convolution.
#[derive(Clone, Debug)]
struct ConvParams {
    weight: Tensor,
    bias: Tensor,
}

impl ConvParams {
    /// `weight` `shape` with torch's initialisation, where one output is fed by `fan_in` inputs.
    fn new(
        shape: (usize, usize, usize, usize),
        out: usize,
        fan_in: usize,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let init = || Init::linear(fan_in);
        Ok(Self { weight: pb.get(shape, "weight", init())?, bias: pb.get_no_decay(out, "bias", init())? })
    }

    /// `(out, in, k_h, k_w)`.
    fn conv(c_in: usize, c_out: usize, (kh, kw): (usize, usize), pb: &ParamBuilder) -> Result<Self> {
        Self::new((c_out, c_in, kh, kw), c_out, c_in * kh * kw, pb)
    }

    /// `(in, out, k_h, k_w)`.
    fn transposed(c_in: usize, c_out: usize, (kh, kw): (usize, usize), pb: &ParamBuilder) -> Result<Self> {
        Self::new((c_in, c_out, kh, kw), c_out, c_out * kh * kw, pb)
    }

    fn run(&self, inputs: &[&Tensor], conv: Conv2d) -> Result<Tensor> {
        conv2d(inputs, &self.weight, Some(&self.bias), conv)
    }

    fn run_transposed(&self, x: &Tensor, conv: Conv2d) -> Result<Tensor> {
        conv_transpose2d(x, &self.weight, Some(&self.bias), conv)
    }

    /// A 1 × 1 convolution, which is a linear map of the channels.
    fn pointwise(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.squeeze(3)?.squeeze(2)?; // (out, in)
        let [y] = Linear::from_tensors(weight, Some(self.bias.clone())).split(x, [self.bias.dim(0)?])?;
        Ok(y)
    }
}

/// Instance norm and PReLU. A causal one normalises every frame by itself.
#[derive(Clone, Debug)]
struct NormAct {
    weight: Tensor,
    bias: Tensor,
    slope: Tensor,
    causal: bool,
}

impl NormAct {
    /// `norm` and `act` are the names of the two in upstream's sequence.
    fn new(c: usize, causal: bool, (norm, act): (usize, usize), pb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            weight: pb.pp(norm).get_no_decay(c, "weight", Init::Ones)?,
            bias: pb.pp(norm).get_no_decay(c, "bias", Init::Zeros)?,
            slope: pb.pp(act).get_no_decay(c, "weight", Init::Const(0.25))?,
            causal,
        })
    }

    /// `(B, T, F, C)` → the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let norm = |x: &Tensor| instance_norm(x, &self.weight, &self.bias, Some(&self.slope), NORM_EPS);
        if !self.causal {
            return norm(x);
        }
        let (b, t, f, c) = x.dims4()?;
        norm(&x.reshape((b * t, f, c))?)?.reshape((b, t, f, c))
    }
}

/// Convolutions of growing dilation over time, each fed by the outputs of all before it.
#[derive(Clone, Debug)]
struct DenseBlock {
    layers: Vec<(ConvParams, NormAct)>,
    causal: bool,
}

impl DenseBlock {
    fn new(cfg: &Config, pb: &ParamBuilder) -> Result<Self> {
        let (c, causal) = (cfg.model_cfg.hid_feature, cfg.model_cfg.causal);
        let layer = |i: usize| {
            let pb = pb.pp("dense_block").pp(i);
            Ok((ConvParams::conv(c * (i + 1), c, (3, 3), &pb.pp(0))?, NormAct::new(c, causal, (1, 2), &pb)?))
        };
        Ok(Self { layers: (0..cfg.model_cfg.dense_depth).map(layer).collect::<Result<_>>()?, causal })
    }

    /// `(B, T, F, C)` → `(B, T, F, C)`.
    fn forward(&self, x: &Tensor, history: &mut History<'_>) -> Result<Tensor> {
        let mut skips = vec![x.clone()]; // newest first
        for (i, (conv, norm)) in self.layers.iter().enumerate() {
            let dilation = 1 << i;
            let past = 2 * dilation;
            let extended: Option<Vec<Tensor>> =
                skips.iter().map(|x| history.extend(x, past)).collect::<Result<_>>()?;
            let pad_h = match (&extended, self.causal) {
                (Some(_), _) => (0, 0),
                (None, true) => (past, 0),
                (None, false) => (dilation, dilation),
            };
            let cfg = Conv2d { dilation: (dilation, 1), pad_h, pad_w: (1, 1), ..Conv2d::default() };
            let inputs: Vec<&Tensor> = extended.as_ref().unwrap_or(&skips).iter().collect();
            let y = norm.forward(&conv.run(&inputs, cfg)?)?;
            skips.insert(0, y);
        }
        Ok(skips.swap_remove(0))
    }
}

/// Halves the bins, or by its transpose doubles them.
const HALVE: Conv2d = Conv2d { stride: (1, 2), dilation: (1, 1), pad_h: (0, 0), pad_w: (0, 0) };

/// From spectra to features of half as many bins.
#[derive(Clone, Debug)]
pub(super) struct DenseEncoder {
    input: (ConvParams, NormAct),
    dense: DenseBlock,
    output: (ConvParams, NormAct),
}

impl DenseEncoder {
    pub(super) fn new(cfg: &Config, pb: &ParamBuilder) -> Result<Self> {
        let (c, causal) = (cfg.model_cfg.hid_feature, cfg.model_cfg.causal);
        let (first, last) = (pb.pp("dense_conv_1"), pb.pp("dense_conv_2"));
        let inputs = cfg.model_cfg.input_channel;
        Ok(Self {
            input: (
                ConvParams::conv(inputs, c, (1, 1), &first.pp(0))?,
                NormAct::new(c, causal, (1, 2), &first)?,
            ),
            dense: DenseBlock::new(cfg, &pb.pp("dense_block"))?,
            output: (ConvParams::conv(c, c, (1, 3), &last.pp(0))?, NormAct::new(c, causal, (1, 2), &last)?),
        })
    }

    /// `(B, T, F, 2)` → `(B, T, (F - 1) / 2, C)`.
    pub(super) fn forward(&self, x: &Tensor, history: &mut History<'_>) -> Result<Tensor> {
        let x = self.input.1.forward(&self.input.0.pointwise(x)?)?; // (B, T, F, C)
        let x = self.dense.forward(&x, history)?;
        self.output.1.forward(&self.output.0.run(&[&x], HALVE)?)
    }
}

/// The mask on the compressed magnitudes.
#[derive(Clone, Debug)]
pub(super) struct MagDecoder {
    dense: DenseBlock,
    up: ConvParams,
    channels: ConvParams,
    norm: NormAct,
    last: ConvParams,
    /// Slope of the sigmoid of every bin.
    slope: Tensor,
    beta: f64,
}

impl MagDecoder {
    pub(super) fn new(cfg: &Config, pb: &ParamBuilder) -> Result<Self> {
        let c = cfg.model_cfg.hid_feature;
        let mask = pb.pp("mask_conv");
        let slope = pb.pp("lsigmoid").get_no_decay((cfg.stft_cfg.bins(), 1), "slope", Init::Ones)?;
        Ok(Self {
            dense: DenseBlock::new(cfg, &pb.pp("dense_block"))?,
            up: ConvParams::transposed(c, c, (1, 3), &mask.pp(0))?,
            channels: ConvParams::conv(c, 1, (1, 1), &mask.pp(1))?,
            norm: NormAct::new(1, cfg.model_cfg.causal, (2, 3), &mask)?,
            last: ConvParams::conv(1, 1, (1, 1), &mask.pp(4))?,
            slope: slope.squeeze(1)?,
            beta: cfg.model_cfg.beta,
        })
    }

    /// `(B, T, F', C)` → `(B, T, F)`.
    pub(super) fn forward(&self, x: &Tensor, history: &mut History<'_>) -> Result<Tensor> {
        let x = self.dense.forward(x, history)?;
        let x = self.channels.pointwise(&self.up.run_transposed(&x, HALVE)?)?; // (B, T, F, 1)
        let x = self.last.pointwise(&self.norm.forward(&x)?)?.squeeze(D::Minus1)?; // (B, T, F)
        candle_nn::ops::sigmoid(&x.broadcast_mul(&self.slope)?)? * self.beta
    }
}

/// The phase, as the angle of two outputs.
#[derive(Clone, Debug)]
pub(super) struct PhaseDecoder {
    dense: DenseBlock,
    up: ConvParams,
    norm: NormAct,
    real: ConvParams,
    imaginary: ConvParams,
    residual: bool,
}

impl PhaseDecoder {
    pub(super) fn new(cfg: &Config, pb: &ParamBuilder) -> Result<Self> {
        let c = cfg.model_cfg.hid_feature;
        let phase = pb.pp("phase_conv");
        Ok(Self {
            dense: DenseBlock::new(cfg, &pb.pp("dense_block"))?,
            up: ConvParams::transposed(c, c, (1, 3), &phase.pp(0))?,
            norm: NormAct::new(c, cfg.model_cfg.causal, (1, 2), &phase)?,
            real: ConvParams::conv(c, 1, (1, 1), &pb.pp("phase_conv_r"))?,
            imaginary: ConvParams::conv(c, 1, (1, 1), &pb.pp("phase_conv_i"))?,
            residual: cfg.model_cfg.phase_residual,
        })
    }

    /// `(B, T, F', C)` and the noisy phase `(B, T, F)` → `(B, T, F)`.
    pub(super) fn forward(&self, x: &Tensor, noisy: &Tensor, history: &mut History<'_>) -> Result<Tensor> {
        let x = self.dense.forward(x, history)?;
        let x = self.norm.forward(&self.up.run_transposed(&x, HALVE)?)?; // (B, T, F, C)
        let re = self.real.pointwise(&x)?.squeeze(D::Minus1)?; // (B, T, F)
        let im = self.imaginary.pointwise(&x)?.squeeze(D::Minus1)?;
        match self.residual {
            false => atan2(&im, &re),
            // Near (1, 0) at first: no change.
            true => noisy + atan2(&im, &(re + 1.0)?)?,
        }
    }
}
