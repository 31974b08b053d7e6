//! Layers that keep their gradients: candle_nn's own norms drop them silently.

use crate::lora::Adapter;
use crate::params::LinearWeight;
use crate::{Init, ParamBuilder};
use candle_core::{D, DType, IndexOp, Module, Result, Tensor};
use mamba_kernels::Norm as NormOp;
use serde::{Deserialize, Serialize};

/// A linear map `y = x Wᵀ + b`, weight `(out, in)`. The weight may be compact ([`crate::quant`]) and may have an adapter
/// beside it ([`crate::lora`]), as the parameters' store says.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: LinearWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// A map from `d_in` to `d_out` channels with torch's initialisation.
    pub fn new(d_in: usize, d_out: usize, bias: bool, pb: &ParamBuilder) -> Result<Self> {
        Self::with_init((d_out, d_in), Init::linear(d_in), bias.then(|| Init::linear(d_in)), pb)
    }

    /// A map with a weight of `shape` `(out, in)`, and a bias if it has an initialisation.
    pub fn with_init(
        shape: (usize, usize),
        weight: Init,
        bias: Option<Init>,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let bias = bias.map(|init| pb.get_no_decay(shape.0, "bias", init)).transpose()?;
        Ok(Self { weight: pb.linear_weight(shape, weight)?, bias })
    }

    /// A map whose weight `(out, in)` is another parameter of the model too, like a head that shares the embedding.
    pub fn tied(weight: &Tensor, pb: &ParamBuilder) -> Result<Self> {
        Ok(Self { weight: pb.tied_weight(weight.clone())?, bias: None })
    }

    /// From tensors: `weight` `(out, in)`, `bias` `(out)`.
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: LinearWeight { values: weight, scales: None, adapter: None }, bias }
    }

    /// The weight `(out, in)` as it is stored, without its adapter.
    pub fn weight(&self) -> &Tensor {
        &self.weight.values
    }

    /// The bias `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The output in parts of `parts[i]` channels, without a copy: `(…, in)` → `(…, parts[i])` each.
    pub fn split<const N: usize>(&self, x: &Tensor, parts: [usize; N]) -> Result<[Tensor; N]> {
        let LinearWeight { values, scales, adapter } = &self.weight;
        let bias = self.bias.as_ref();
        let mut outputs = match values.dtype() == x.dtype() {
            true => mamba_kernels::linear(x, values, bias, &parts)?,
            false => mamba_kernels::linear_compact(x, values, scales.as_ref(), bias, &parts)?,
        };
        if let Some(adapter) = adapter {
            for (y, change) in outputs.iter_mut().zip(adapter.split(x, &parts)?) {
                *y = (&*y + change)?;
            }
        }
        outputs.try_into().map_err(|_| candle_core::Error::msg("linear: wrong number of parts"))
    }

    /// The map of a reversed input: `y = flip(x) Wᵀ + b`.
    pub fn flip_input(&self) -> Result<Self> {
        let LinearWeight { values, scales, adapter } = &self.weight;
        let adapter = adapter.as_ref().map(Adapter::flip_input).transpose()?;
        let weight = LinearWeight { values: flip(values, 1)?, scales: scales.clone(), adapter };
        Ok(Self { weight, bias: self.bias.clone() })
    }

    /// The map to a reversed output: `y = flip(x Wᵀ + b)`.
    pub fn flip_output(&self) -> Result<Self> {
        let LinearWeight { values, scales, adapter } = &self.weight;
        let flip_vector = |x: &Option<Tensor>| x.as_ref().map(|x| flip(x, 0)).transpose();
        let adapter = adapter.as_ref().map(Adapter::flip_output).transpose()?;
        let weight = LinearWeight { values: flip(values, 0)?, scales: flip_vector(scales)?, adapter };
        Ok(Self { weight, bias: flip_vector(&self.bias)? })
    }
}

impl Module for Linear {
    /// `(…, in)` → `(…, out)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [y] = self.split(x, [self.weight.values.dim(0)?])?;
        Ok(y)
    }
}

/// `x` with the order along one dimension reversed.
pub fn flip(x: &Tensor, dim: usize) -> Result<Tensor> {
    let n = x.dim(dim)? as u32;
    let ids = Tensor::from_iter((0..n).rev(), x.device())?;
    x.contiguous()?.index_select(&ids, dim)
}

/// Rows of a table by id: `(…)` u32 → `(…, d)`.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// From the table `(vocabulary, d)`.
    pub fn from_tensor(weight: Tensor) -> Self {
        Self { weight }
    }

    /// The table `(vocabulary, d)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut dims = ids.dims().to_vec();
        dims.push(self.weight.dim(1)?);
        self.weight.index_select(&ids.flatten_all()?, 0)?.reshape(dims)
    }
}

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// x / rms(x) · weight.
    Rms,
    /// (x - mean) / deviation · weight + bias.
    Layer,
}

/// RMS or layer normalisation over the last dimension, with the residual add in front fused in.
#[derive(Clone, Debug)]
pub struct Norm {
    kind: NormKind,
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// Over `d` channels; a layer norm has a bias, an RMS norm has none.
    pub fn new(kind: NormKind, d: usize, eps: f64, pb: &ParamBuilder) -> Result<Self> {
        let weight = pb.get_no_decay(d, "weight", Init::Ones)?;
        let bias = match kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(pb.get_no_decay(d, "bias", Init::Zeros)?),
        };
        Ok(Self { kind, weight, bias, eps })
    }

    fn op<'a>(&'a self, x: &'a Tensor) -> NormOp<'a> {
        let op = match self.kind {
            NormKind::Rms => NormOp::rms(x, &self.weight, self.eps),
            NormKind::Layer => NormOp::layer(x, &self.weight, self.eps),
        };
        self.bias.iter().fold(op, |op, bias| op.bias(bias))
    }

    /// The normalised sum of `x` and `residual`, and the sum.
    pub fn forward_residual(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        residual.into_iter().fold(self.op(x), |op, residual| op.residual(residual)).run_with_residual()
    }

    /// The norm of reversed channels: `flip(norm(flip(x)))`.
    pub fn flip(&self) -> Result<Self> {
        let bias = self.bias.as_ref().map(|b| flip(b, 0)).transpose()?;
        Ok(Self { weight: flip(&self.weight, 0)?, bias, ..*self })
    }
}

impl Module for Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.op(x).run()
    }
}

/// The gated feed-forward layer of mamba_ssm: `fc2(a · silu(g))` with `(a, g) = fc1(x)`.
#[derive(Clone, Debug)]
pub struct GatedMlp {
    fc1: Linear,
    fc2: Linear,
}

impl GatedMlp {
    /// The hidden width is rounded up to a multiple of 128, as upstream does. `n_residual` as for
    /// [`Mamba1::new`](crate::Mamba1::new), here for `fc2`.
    pub fn new(d_model: usize, hidden: usize, n_residual: usize, pb: &ParamBuilder) -> Result<Self> {
        let hidden = hidden.next_multiple_of(128);
        let fc1 = Linear::new(d_model, 2 * hidden, false, &pb.pp("fc1"))?;
        let init = Init::linear(hidden).scaled(1.0 / (n_residual.max(1) as f64).sqrt());
        let fc2 = Linear::with_init((d_model, hidden), init, None, &pb.pp("fc2"))?;
        Ok(Self { fc1, fc2 })
    }
}

impl Module for GatedMlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.fc2.weight().dim(1)?;
        let [value, gate] = self.fc1.split(x, [hidden, hidden])?;
        self.fc2.forward(&(value * gate.silu()?)?)
    }
}

/// Half precision as f32, in which losses are summed; other types as they are.
pub fn widen(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// `-exp(x)`, the decay rates that a parameter `A_log` stands for; of half precision in f32, as scans take them.
pub(crate) fn negative_exp(x: &Tensor) -> Result<Tensor> {
    widen(x)?.exp()?.neg()
}

/// ln(1 + exp(x)) without overflow: max(x, 0) + ln(1 + exp(-|x|)).
pub(crate) fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// Mean cross-entropy in nats of `logits` `(…, classes)` against `targets` `(…)` u32, over the targets that are not
/// `ignore_index`; that of half precision is computed in f32. With none left the loss is 0.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, ignore_index: Option<u32>) -> Result<Tensor> {
    let classes = logits.dim(D::Minus1)?;
    let logits = widen(&logits.reshape(((), classes))?)?;
    let targets = targets.flatten_all()?;
    let Some(ignore) = ignore_index else {
        let chosen = candle_nn::ops::log_softmax(&logits, 1)?.gather(&targets.unsqueeze(1)?, 1)?;
        return chosen.mean_all()?.neg();
    };
    let kept: Vec<u32> = targets
        .to_vec1::<u32>()?
        .iter()
        .enumerate()
        .filter(|&(_, &t)| t != ignore)
        .map(|(i, _)| i as u32)
        .collect();
    if kept.is_empty() {
        return logits.i((0, 0))? * 0.0;
    }
    let n = kept.len();
    let kept = Tensor::from_vec(kept, n, logits.device())?;
    cross_entropy(&logits.index_select(&kept, 0)?, &targets.index_select(&kept, 0)?, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn ignored_targets_do_not_count() -> Result<()> {
        let dev = Device::Cpu;
        let logits = Var::new(&[[1f32, 0.0], [5.0, -5.0], [0.0, 0.0]], &dev)?;
        let targets = Tensor::new(&[0u32, 9, 1], &dev)?;
        let loss = cross_entropy(&logits, &targets, Some(9))?;
        let want = ((1f64.exp() + 1.0).ln() - 1.0 + 2f64.ln()) / 2.0;
        assert!((f64::from(loss.to_scalar::<f32>()?) - want).abs() < 1e-6);
        let grads = loss.backward()?;
        let grad = grads.get(&logits).unwrap().to_vec2::<f32>()?;
        assert_eq!(grad[1], [0.0, 0.0]);
        assert!(grad[0][0] < 0.0 && grad[2][1] < 0.0);
        let none = cross_entropy(&logits, &Tensor::new(&[9u32, 9, 9], &dev)?, Some(9))?;
        assert_eq!(none.to_scalar::<f32>()?, 0.0);
        Ok(())
    }

    #[test]
    fn flipped_maps_equal_flipped_tensors() -> Result<()> {
        let dev = Device::Cpu;
        let linear = Linear::from_tensors(
            Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &dev)?,
            Some(Tensor::new(&[0.5f32, -0.5], &dev)?),
        );
        let x = Tensor::new(&[[1f32, -1., 2.], [0., 3., 1.]], &dev)?;
        let of_flipped = linear.forward(&flip(&x, 1)?)?;
        assert_eq!(linear.flip_input()?.forward(&x)?.to_vec2::<f32>()?, of_flipped.to_vec2::<f32>()?);
        let flipped = flip(&linear.forward(&x)?, 1)?;
        assert_eq!(linear.flip_output()?.forward(&x)?.to_vec2::<f32>()?, flipped.to_vec2::<f32>()?);
        Ok(())
    }
}
