//! Instance normalisation of channel-last images, with a PReLU behind it:
//!
//! ```text
//! x̂ = (x - mean) / √(variance + ε)          over all pixels of one channel of one image
//! z = weight · x̂ + bias
//! y = z if z ≥ 0, else slope · z             (y = z without a slope)
//! ```
//!
//! All parameters belong to channels. Forward keeps mean and deviation, `2·B·C` numbers; backward recomputes the rest.

use crate::fused::{
    self, Fused, Output, elements, expect_shape, full_precision, like_inputs, widen, widened,
    with_element_type,
};
use crate::gpu::Gpu;
use crate::simd::Real;
use candle_core::{D, Result, Tensor, bail};

mod cpu;
pub mod reference;

/// `x` `(B, …, C)`; `weight`, `bias` and `slope` `(C)` → the shape of `x`. On a GPU it is composed from tensor ops.
///
/// ```
/// use candle_core::{Device, Tensor};
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::new(&[[[1f32], [3.]]], &Device::Cpu)?; // one image of two pixels and one channel
/// let one = Tensor::new(&[1f32], &Device::Cpu)?;
/// let zero = Tensor::new(&[0f32], &Device::Cpu)?;
/// let slope = Tensor::new(&[0.5f32], &Device::Cpu)?;
/// let y = mamba_kernels::instance_norm(&x, &one, &zero, Some(&slope), 0.0)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [-0.5, 1.]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
pub fn instance_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    slope: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    check(x, weight, bias, slope)?;
    if Gpu::of(Some(x)).is_some() {
        let (weight, bias, slope) = (widen(weight)?, widen(bias)?, full_precision(slope)?);
        return widened(x, |x| reference::compose(x, &weight, &bias, slope.as_ref(), eps));
    }
    let mut outputs = fused::apply(Op { eps }, &[Some(x), Some(weight), Some(bias), slope])?;
    Ok(outputs.swap_remove(0))
}

fn check(x: &Tensor, weight: &Tensor, bias: &Tensor, slope: Option<&Tensor>) -> Result<()> {
    const NAME: &str = "instance_norm";
    let all = [("x", Some(x)), ("weight", Some(weight)), ("bias", Some(bias)), ("slope", slope)];
    fused::same_dtype_and_device_or_gpu(NAME, &all, &[])?;
    if x.rank() < 3 || x.elem_count() == 0 {
        bail!("{NAME}: x has shape {:?}, expected (batch, pixels …, channels), none of them 0", x.dims());
    }
    let channels = x.dim(D::Minus1)?;
    all[1..].iter().try_for_each(|(label, x)| expect_shape(NAME, label, *x, &[channels]))
}

struct Op {
    eps: f64,
}

/// Mean and reciprocal deviation of every channel of every image, `(B, C)` each, in f64 because all types share it.
struct Moments {
    mean: Vec<f64>,
    rstd: Vec<f64>,
}

impl Op {
    fn forward_cpu<T: Real>(&self, inputs: &[Option<Tensor>]) -> Result<(Vec<Output>, Moments)> {
        let e = elements(inputs);
        let of = |i: usize| e[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let affine = cpu::Affine {
            weight: of(1)?.unwrap_or_default(),
            bias: of(2)?.unwrap_or_default(),
            slope: of(3)?,
        };
        let dims = inputs[0].as_ref().map(|x| x.dims().to_vec()).unwrap_or_default();
        let (y, mean, rstd) = cpu::forward(of(0)?.unwrap_or_default(), dims[0], &affine, self.eps);
        Ok((vec![Output::cpu(y, dims)], Moments { mean, rstd }))
    }

    fn backward_cpu<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        moments: &Moments,
        grad: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (e, g) = (elements(inputs), elements(grad));
        let of = |i: usize| e[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let affine = cpu::Affine {
            weight: of(1)?.unwrap_or_default(),
            bias: of(2)?.unwrap_or_default(),
            slope: of(3)?,
        };
        let dy = g[0].as_ref().map(|e| e.slice::<T>()).transpose()?.unwrap_or_default();
        let x = of(0)?.unwrap_or_default();
        let [dx, dweight, dbias, dslope] = cpu::backward(x, dy, &affine, &moments.mean, &moments.rstd);
        let dslope = affine.slope.map(|_| dslope);
        Ok(like_inputs([Some(dx), Some(dweight), Some(dbias), dslope], inputs))
    }
}

impl Fused for Op {
    type Saved = Moments;
    const NAME: &'static str = "instance-norm";

    fn forward(&self, inputs: &[Option<Tensor>], _: bool) -> Result<(Vec<Output>, Moments)> {
        with_element_type!(inputs, T => self.forward_cpu::<T>(inputs))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        moments: &Moments,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        if grads[0].is_none() {
            return Ok(vec![None; inputs.len()]);
        }
        with_element_type!(inputs, T => self.backward_cpu::<T>(inputs, moments, grads))
    }
}
