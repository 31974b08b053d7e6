//! Layers that keep their gradients: candle_nn's own norms drop them silently.

use crate::{Init, ParamBuilder};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, D, IndexOp, Layout, Module, Result, Shape, Tensor, bail};
use mamba_kernels::Norm as NormOp;
use serde::{Deserialize, Serialize};

/// A linear map `y = x Wᵀ + b`, weight `(out, in)`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A map from `d_in` to `d_out` channels with torch's initialisation.
    pub fn new(d_in: usize, d_out: usize, bias: bool, pb: &ParamBuilder) -> Result<Self> {
        let weight = pb.get((d_out, d_in), "weight", Init::linear(d_in))?;
        let bias = if bias { Some(pb.get_no_decay(d_out, "bias", Init::linear(d_in))?) } else { None };
        Ok(Self { weight, bias })
    }

    /// From tensors: `weight` `(out, in)`, `bias` `(out)`.
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight `(out, in)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Outputs `start .. start + len` as a map of their own. Splitting the weight is cheaper than splitting its output.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        let weight = self.weight.narrow(0, start, len)?;
        let bias = self.bias.as_ref().map(|b| b.narrow(0, start, len)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// The map of a reversed input: `y = flip(x) Wᵀ + b`.
    pub fn flip_input(&self) -> Result<Self> {
        Ok(Self { weight: flip(&self.weight, 1)?, bias: self.bias.clone() })
    }

    /// The map to a reversed output: `y = flip(x Wᵀ + b)`.
    pub fn flip_output(&self) -> Result<Self> {
        let bias = self.bias.as_ref().map(|b| flip(b, 0)).transpose()?;
        Ok(Self { weight: flip(&self.weight, 0)?, bias })
    }
}

impl Module for Linear {
    /// `(…, in)` → `(…, out)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match x.device().is_cpu() {
            true => x.contiguous()?.apply_op2(&self.weight, MatMulTransposed)?,
            false => {
                as_rows(x)?.matmul(&self.weight.t()?)?.reshape(output_dims(x.dims(), self.weight.dim(0)?))?
            }
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// `(…, in)` → `(rows, in)`.
fn as_rows(x: &Tensor) -> Result<Tensor> {
    x.reshape(((), x.dim(D::Minus1)?))
}

fn output_dims(input: &[usize], d_out: usize) -> Vec<usize> {
    let outer = input.split_last().map_or(&[][..], |(_, outer)| outer);
    [outer, &[d_out]].concat()
}

/// `x Wᵀ` as one node of the graph. Reshaping and transposing tensors around candle's product would give three nodes
/// more, each of which adds its gradient to a tensor of zeros as large as the activation.
struct MatMulTransposed;

impl CustomOp2 for MatMulTransposed {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (d_out, d_in) = wl.shape().dims2()?;
        let Some((start, end)) = xl.contiguous_offsets() else {
            bail!("linear: the input is not contiguous")
        };
        if xl.dims().last() != Some(&d_in) {
            bail!("linear: the input has shape {:?}, expected (…, {d_in})", xl.dims());
        }
        let rows = (end - start) / d_in.max(1);
        let x_rows = Layout::contiguous_with_offset((rows, d_in), start);
        let y = x.matmul(w, (1, rows, d_out, d_in), &x_rows, &wl.transpose(0, 1)?)?;
        Ok((y, Shape::from(output_dims(xl.dims(), d_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = as_rows(&grad.contiguous()?)?;
        let of_x = || grad.matmul(&w.detach())?.reshape(x.shape());
        let of_w = || grad.t()?.matmul(&as_rows(&x.detach())?);
        Ok((x.track_op().then(of_x).transpose()?, w.track_op().then(of_w).transpose()?))
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
    value: Linear,
    gate: Linear,
    fc2: Linear,
}

impl GatedMlp {
    /// The hidden width is rounded up to a multiple of 128, as upstream does. `n_residual` as for
    /// [`Mamba1::new`](crate::Mamba1::new), here for `fc2`.
    pub fn new(d_model: usize, hidden: usize, n_residual: usize, pb: &ParamBuilder) -> Result<Self> {
        let hidden = hidden.next_multiple_of(128);
        let fc1 = Linear::new(d_model, 2 * hidden, false, &pb.pp("fc1"))?;
        let init = Init::linear(hidden).scaled(1.0 / (n_residual.max(1) as f64).sqrt());
        let fc2 = Linear::from_tensors(pb.pp("fc2").get((d_model, hidden), "weight", init)?, None);
        Ok(Self { value: fc1.narrow(0, hidden)?, gate: fc1.narrow(hidden, hidden)?, fc2 })
    }
}

impl Module for GatedMlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = self.gate.forward(x)?.silu()?;
        self.fc2.forward(&(self.value.forward(x)? * gate)?)
    }
}

/// Mean cross-entropy in nats of `logits` `(…, classes)` against `targets` `(…)` u32, over the targets that are not
/// `ignore_index`. With none left the loss is 0.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, ignore_index: Option<u32>) -> Result<Tensor> {
    let classes = logits.dim(D::Minus1)?;
    let logits = logits.reshape(((), classes))?;
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
    fn a_linear_map_and_its_gradients_are_those_of_plain_products() -> Result<()> {
        let dev = Device::Cpu;
        let values = |n: usize| (0..n).map(|i| (i as f64 * 0.7).sin()).collect::<Vec<_>>();
        let x = Var::from_tensor(&Tensor::from_vec(values(24), (2, 3, 4), &dev)?)?;
        let w = Var::from_tensor(&Tensor::from_vec(values(40), (10, 4), &dev)?)?;
        // a slice of the weight, as the mixers use it, and an input that is not contiguous
        let part = Linear::from_tensors(w.as_tensor().clone(), None).narrow(3, 5)?;
        let x_t = x.transpose(0, 1)?; // (3, 2, 4)
        let got = part.forward(&x_t)?; // (3, 2, 5)
        let want = x_t.contiguous()?.reshape((6, 4))?.matmul(&w.narrow(0, 3, 5)?.t()?)?.reshape((3, 2, 5))?;
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f64>();
        assert_eq!(flat(&got)?, flat(&want)?);
        let weights = Tensor::from_vec(values(30), (3, 2, 5), &dev)?;
        let (got, want) =
            ((got * &weights)?.sum_all()?.backward()?, (want * &weights)?.sum_all()?.backward()?);
        for var in [&x, &w] {
            let pairs = flat(got.get(var).unwrap())?.into_iter().zip(flat(want.get(var).unwrap())?);
            assert!(pairs.clone().count() > 0 && pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-14));
        }
        let error =
            part.forward(&Tensor::zeros((2, 5), candle_core::DType::F64, &dev)?).unwrap_err().to_string();
        assert!(error.contains("linear: the input has shape [2, 5], expected (…, 4)"), "{error}");
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
