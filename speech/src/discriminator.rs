//! The metric discriminator of SEMamba (after MetricGAN, Fu et al. 2019): a network that learns to predict the PESQ of an
//! enhanced spectrum, so that its prediction can be raised by gradients.
//!
//! ```text
//! loss of the discriminator   (1 - D(c, c))² + (PESQ - D(c, g))²      PESQ as (MOS - 1) / 3.5
//! loss of the generator       (1 - D(c, g))²
//! ```
//!
//! Weights are divided by their largest singular value (Miyato et al. 2018). Upstream carries an estimate of the singular
//! vectors from step to step; here they are found anew by power iteration, so that a step depends on the weights alone.

use candle_core::{D, Result, Tensor};
use mamba_core::nn::Linear;
use mamba_core::{Init, ParamBuilder, Rng, dropout};
use mamba_kernels::{Conv2d, conv2d, instance_norm};

/// Power iterations for a largest singular value.
const ITERATIONS: usize = 8;
/// Channels after the first convolution.
const WIDTH: usize = 16;
/// Share of the features that training drops.
const DROPOUT: f64 = 0.3;
const HALVE: Conv2d = Conv2d { stride: (2, 2), dilation: (1, 1), pad_h: (1, 1), pad_w: (1, 1) };

/// The discriminator.
#[derive(Clone, Debug)]
pub struct MetricDiscriminator {
    convolutions: Vec<ConvLayer>,
    hidden: (Tensor, Tensor),
    hidden_slope: Tensor,
    output: (Tensor, Tensor),
    slope: Tensor,
}

/// Convolution, instance norm, PReLU.
#[derive(Clone, Debug)]
struct ConvLayer {
    weight: Tensor,
    norm: (Tensor, Tensor),
    slope: Tensor,
}

impl MetricDiscriminator {
    /// Parameters under upstream's names, `layers.0.weight_orig` and so on; its estimates `weight_u` and `weight_v` are
    /// passed over.
    pub fn new(pb: &ParamBuilder) -> Result<Self> {
        let pb = pb.pp("layers");
        let weight = |i: usize, shape: &[usize]| {
            let pb = pb.pp(i);
            for estimate in ["weight_u", "weight_v"] {
                pb.params().discard(&format!("{}.{estimate}", pb.prefix()));
            }
            pb.get(shape, "weight_orig", Init::linear(shape[1..].iter().product()))
        };
        let prelu = |i: usize, c: usize| pb.pp(i).get_no_decay(c, "weight", Init::Const(0.25));
        let mut convolutions = Vec::new();
        let mut c_in = 2;
        for i in 0..4 {
            let c = WIDTH << i;
            let norm = pb.pp(3 * i + 1);
            convolutions.push(ConvLayer {
                weight: weight(3 * i, &[c, c_in, 4, 4])?,
                norm: (
                    norm.get_no_decay(c, "weight", Init::Ones)?,
                    norm.get_no_decay(c, "bias", Init::Zeros)?,
                ),
                slope: prelu(3 * i + 2, c)?,
            });
            c_in = c;
        }
        let half = c_in / 2;
        let bias = |i: usize, n: usize, fan: usize| pb.pp(i).get_no_decay(n, "bias", Init::linear(fan));
        Ok(Self {
            convolutions,
            hidden: (weight(14, &[half, c_in])?, bias(14, half, c_in)?),
            hidden_slope: prelu(16, half)?,
            output: (weight(17, &[1, half])?, bias(17, 1, half)?),
            slope: pb.pp(18).get_no_decay(1, "slope", Init::Ones)?,
        })
    }

    /// The same function without a graph behind its weights: for the generator's loss.
    pub fn detach(&self) -> Self {
        let pair = |(a, b): &(Tensor, Tensor)| (a.detach(), b.detach());
        let layer = |l: &ConvLayer| ConvLayer {
            weight: l.weight.detach(),
            norm: pair(&l.norm),
            slope: l.slope.detach(),
        };
        Self {
            convolutions: self.convolutions.iter().map(layer).collect(),
            hidden: pair(&self.hidden),
            hidden_slope: self.hidden_slope.detach(),
            output: pair(&self.output),
            slope: self.slope.detach(),
        }
    }

    /// The predicted score, `(B)`, from 0 to 1, of compressed magnitudes `(B, T, F)` beside clean ones. `rng` drops
    /// features in training.
    pub fn forward(&self, clean: &Tensor, other: &Tensor, rng: Option<&mut Rng>) -> Result<Tensor> {
        let mut x = Tensor::stack(&[clean, other], 3)?.transpose(1, 2)?.contiguous()?; // (B, F, T, 2)
        for layer in &self.convolutions {
            let y = conv2d(&[&x], &normalised(&layer.weight)?, None, HALVE)?; // halves F and T
            x = instance_norm(&y, &layer.norm.0, &layer.norm.1, Some(&layer.slope), 1e-5)?;
        }
        let x = x.flatten(1, 2)?.max(1)?; // (B, C)
        let linear = |(weight, bias): &(Tensor, Tensor), x: &Tensor| {
            let [y] =
                Linear::from_tensors(normalised(weight)?, Some(bias.clone())).split(x, [bias.dim(0)?])?;
            Ok::<_, candle_core::Error>(y)
        };
        let mut x = linear(&self.hidden, &x)?;
        if let Some(rng) = rng {
            x = dropout(&x, DROPOUT, rng)?;
        }
        let x = (x.relu()? - x.neg()?.relu()?.broadcast_mul(&self.hidden_slope)?)?;
        let x = linear(&self.output, &x)?.squeeze(D::Minus1)?; // (B)
        candle_nn::ops::sigmoid(&x.broadcast_mul(&self.slope)?)
    }
}

/// A weight `(out, …)` divided by the largest singular value of the matrix `(out, rest)`. The singular vectors count as
/// constants, as in the paper.
fn normalised(weight: &Tensor) -> Result<Tensor> {
    let matrix = weight.flatten_from(1)?; // (out, rest)
    let fixed = matrix.detach();
    let unit = |x: Tensor| x.broadcast_div(&(x.sqr()?.sum_all()?.sqrt()? + 1e-12)?);
    let n = fixed.dim(1)?;
    let mut v = unit(Tensor::ones((n, 1), fixed.dtype(), fixed.device())?)?;
    let mut u = unit(fixed.matmul(&v)?)?; // (out, 1)
    for _ in 0..ITERATIONS {
        v = unit(fixed.t()?.matmul(&u)?)?;
        u = unit(fixed.matmul(&v)?)?;
    }
    let sigma = u.t()?.matmul(&matrix.matmul(&v)?)?.flatten_all()?; // (1)
    weight.broadcast_div(&sigma)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use mamba_core::Params;

    #[test]
    fn normalised_weights_have_a_largest_singular_value_of_one() -> Result<()> {
        let weight = Tensor::new(&[[3f64, 0.0, 0.0], [0.0, -0.5, 0.2]], &Device::Cpu)?;
        let normal = normalised(&weight)?.to_vec2::<f64>()?;
        assert!((normal[0][0] - 1.0).abs() < 1e-6, "{normal:?}");
        Ok(())
    }

    #[test]
    fn scores_lie_between_0_and_1_and_every_parameter_has_a_gradient() -> Result<()> {
        let params = Params::fresh(0, DType::F64, &Device::Cpu);
        let discriminator = MetricDiscriminator::new(&params.builder())?;
        let mut rng = Rng::new(1);
        let mut random = || rng.uniform_tensor((2, 34, 201), 0.0, 2.0, DType::F64, &Device::Cpu);
        let (clean, other) = (random()?, random()?);
        let score = discriminator.forward(&clean, &other, None)?;
        assert!(score.to_vec1::<f64>()?.iter().all(|s| (0.0..=1.0).contains(s)));
        let grads = score.sum_all()?.backward()?;
        for param in params.named() {
            assert!(grads.get(param.tensor()).is_some(), "{}", param.name());
        }
        let again = discriminator.detach().forward(&clean, &other, None)?;
        assert_eq!(again.to_vec1::<f64>()?, score.to_vec1::<f64>()?);
        assert!(!again.track_op(), "no graph behind a detached one");
        Ok(())
    }
}
