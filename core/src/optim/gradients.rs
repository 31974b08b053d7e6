//! The gradients of one step, in the order of the parameters.

use super::{BLOCK, values};
use crate::params::Param;
use crate::{Error, Params};
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Storage, Tensor, WithDType};
use rayon::prelude::*;

/// Gradients of every trainable parameter, summed over micro-batches, with a common factor.
///
/// The factor holds `1/micro-batches` and the clipping, so neither costs a pass over memory.
#[derive(Debug)]
pub struct Gradients {
    params: Vec<Param>,
    grads: Vec<Option<Tensor>>,
    scale: f64,
}

impl Gradients {
    /// No gradients yet.
    pub fn new(params: &Params) -> Self {
        let params: Vec<Param> = params.named().into_iter().filter(|p| p.var().is_some()).collect();
        Self { grads: vec![None; params.len()], params, scale: 1.0 }
    }

    /// The gradients of one loss.
    pub fn of(loss: &Tensor, params: &Params) -> Result<Self> {
        let mut grads = Self::new(params);
        grads.accumulate(loss.backward()?)?;
        Ok(grads)
    }

    /// Adds the gradients of one micro-batch.
    pub fn accumulate(&mut self, mut store: GradStore) -> Result<()> {
        for (param, sum) in self.params.iter().zip(&mut self.grads) {
            *sum = match (sum.take(), store.remove(param.tensor())) {
                (None, None) => None,
                (Some(grad), None) | (None, Some(grad)) => Some(grad.contiguous()?),
                (Some(a), Some(b)) => Some((a + b)?),
            };
        }
        Ok(())
    }

    /// Multiplies all gradients, without touching them until they are used.
    pub fn scale(&mut self, factor: f64) {
        self.scale *= factor;
    }

    /// The factor that applies to all gradients.
    pub fn factor(&self) -> f64 {
        self.scale
    }

    /// The gradient of a parameter, without the factor; `None` if the loss does not depend on it.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let index = self.params.binary_search_by(|p| p.name().cmp(name)).ok()?;
        self.grads[index].as_ref()
    }

    /// Parameters that got no gradient: the loss does not depend on them, or an op has no backward.
    pub fn missing(&self) -> Vec<&str> {
        self.params.iter().zip(&self.grads).filter(|(_, g)| g.is_none()).map(|(p, _)| p.name()).collect()
    }

    /// The Euclidean norm over all gradients, summed in f64 in a fixed order.
    pub fn norm(&self) -> Result<f64> {
        let (host, device): (Vec<&Tensor>, Vec<&Tensor>) =
            self.grads.iter().flatten().partition(|grad| grad.device().is_cpu());
        let squares = host.into_iter().map(sum_of_squares).sum::<Result<f64>>()?;
        // Of a GPU, all sums at once: each transfer waits for it.
        let sums = device.into_iter().map(squares_on_device).collect::<Result<Vec<_>>>()?;
        let sums = if sums.is_empty() { Vec::new() } else { Tensor::stack(&sums, 0)?.to_vec1::<f64>()? };
        Ok((squares + sums.iter().sum::<f64>()).sqrt() * self.scale)
    }

    /// Scales the gradients so that their norm is at most `max`, and returns the norm before that.
    ///
    /// `step` goes into the error about a gradient that is not finite. An infinite `max` only measures and checks.
    pub fn clip_grad_norm(&mut self, max: f64, step: u64) -> crate::Result<f64> {
        let norm = self.norm()?;
        if !norm.is_finite() {
            return Err(self.blame(step, norm)?);
        }
        if norm > max {
            self.scale(max / norm);
        }
        Ok(norm)
    }

    fn blame(&self, step: u64, norm: f64) -> Result<Error> {
        let mut what = "the gradient norm".to_string();
        let mut value = norm;
        for (param, grad) in self.params.iter().zip(&self.grads) {
            let squares = grad.as_ref().map_or(Ok(0.0), sum_of_squares)?;
            if !squares.is_finite() {
                (what, value) = (format!("the gradient of {}", param.name()), squares);
                break;
            }
        }
        Ok(Error::NonFinite { step, what, value })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Param, Option<&Tensor>)> {
        self.params.iter().zip(self.grads.iter().map(Option::as_ref))
    }
}

fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, tensor.dtype()) {
        (Storage::Cpu(cpu), DType::F32) if layout.is_contiguous() => Ok(blocks(values::<f32>(cpu, layout)?)),
        (Storage::Cpu(cpu), DType::F64) if layout.is_contiguous() => Ok(blocks(values::<f64>(cpu, layout)?)),
        _ => squares_on_device(tensor)?.to_scalar(),
    }
}

/// A scalar in f64.
fn squares_on_device(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F64)?.sqr()?.sum_all()
}

fn blocks<T: WithDType>(x: &[T]) -> f64 {
    let block = |x: &[T]| x.iter().map(|v| v.to_f64() * v.to_f64()).sum::<f64>();
    let sums: Vec<f64> = x.par_chunks(BLOCK).map(block).collect();
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;
    use candle_core::Device;

    fn two_params() -> Result<(Params, Tensor, Tensor)> {
        let params = Params::fresh(0, DType::F32, &Device::Cpu);
        let a = params.builder().get(2, "a", Init::Const(3.0))?;
        let b = params.builder().get(1, "b", Init::Const(4.0))?;
        Ok((params, a, b))
    }

    #[test]
    fn the_norm_spans_all_parameters_and_clipping_scales_them() -> crate::Result<()> {
        let (params, a, b) = two_params()?;
        // d/da (a²/2) = a = (3, 3); d/db (b²/2 · 2) = 8
        let loss = ((a.sqr()?.sum_all()? * 0.5)? + b.sqr()?.sum_all()?)?;
        let mut grads = Gradients::of(&loss, &params)?;
        let norm = (9.0f64 + 9.0 + 64.0).sqrt();
        assert!((grads.norm()? - norm).abs() < 1e-12);
        assert_eq!(grads.clip_grad_norm(100.0, 1)?, grads.norm()?);
        assert_eq!(grads.factor(), 1.0);
        assert!((grads.clip_grad_norm(1.0, 1)? - norm).abs() < 1e-12);
        assert!((grads.norm()? - 1.0).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn micro_batches_add_up_and_missing_gradients_are_named() -> crate::Result<()> {
        let (params, a, _) = two_params()?;
        let mut grads = Gradients::new(&params);
        assert_eq!(grads.missing(), ["a", "b"]);
        for _ in 0..3 {
            grads.accumulate(a.sum_all()?.backward()?)?;
        }
        assert_eq!(grads.get("a").map(|g| g.to_vec1::<f32>()).transpose()?, Some(vec![3.0, 3.0]));
        assert_eq!(grads.missing(), ["b"]);
        assert!(grads.get("b").is_none() && grads.get("c").is_none());
        Ok(())
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named() -> crate::Result<()> {
        let (params, a, b) = two_params()?;
        let loss = (a.sum_all()? + (b - 4.0)?.sqrt()?.sum_all()?)?;
        let message = Gradients::of(&loss, &params)?.clip_grad_norm(1.0, 17).unwrap_err().to_string();
        assert!(message.starts_with("step 17: the gradient of b is inf"), "{message}");
        Ok(())
    }
}
