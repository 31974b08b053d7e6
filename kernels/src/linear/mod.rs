//! Linear maps `y = x Wᵀ + b` whose outputs are split into several tensors without being copied:
//!
//! ```text
//! y_i = x W[rows of part i]ᵀ + b[of part i]
//! ```
//!
//! Beside candle's own matrix product this saves, in a backward pass, one zero-filled buffer and one addition over
//! `(…, in)` for every part, the transposed copies, and a serial sum over the rows for the bias.

use crate::fused::{self, Fused, Output, elements, expect_shape, like_inputs, with_element_type};
use crate::gpu::Gpu;
use crate::simd::Real;
use candle_core::{D, Result, Tensor, bail};

pub mod compact;
mod cpu;
mod matvec;
pub mod reference;

/// The parts of `x Wᵀ + b`: `x` `(…, in)`, `weight` `(out, in)`, `bias` `(out)`; part i has `parts[i]` of the `out`
/// channels, `(…, parts[i])`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 1.]], &Device::Cpu)?;
/// let parts = mamba_kernels::linear(&x, &weight, None, &[1, 2])?;
/// assert_eq!(parts[1].to_vec2::<f32>()?, [[2., 3.]]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, parts: &[usize]) -> Result<Vec<Tensor>> {
    let d_in = check(x, weight, bias, parts)?;
    if Gpu::of(Some(x)).is_some() {
        return on_gpu(x, weight, bias, parts);
    }
    fused::apply(Op { parts: parts.to_vec(), d_in }, &[Some(x), Some(weight), bias])
}

/// On a GPU the vendor's library multiplies: once for each part, of which the weight is split and not the result.
fn on_gpu(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, parts: &[usize]) -> Result<Vec<Tensor>> {
    let mut dims = x.dims().to_vec();
    let d_in = dims.pop().unwrap_or(1);
    let rows = x.reshape(((), d_in))?;
    let mut start = 0;
    let mut outputs = Vec::with_capacity(parts.len());
    for &part in parts {
        let mut y = rows.matmul(&weight.narrow(0, start, part)?.t()?)?; // (rows, part)
        if let Some(bias) = bias {
            y = y.broadcast_add(&bias.narrow(0, start, part)?)?;
        }
        outputs.push(y.reshape([dims.as_slice(), &[part]].concat())?);
        start += part;
    }
    Ok(outputs)
}

/// Checks every argument and returns the number of input channels.
fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, parts: &[usize]) -> Result<usize> {
    const NAME: &str = "linear";
    let inputs = [("x", Some(x)), ("weight", Some(weight)), ("bias", bias)];
    fused::same_dtype_and_device_or_gpu(NAME, &inputs, &[])?;
    let d_in = x.dim(D::Minus1)?;
    let d_out = check_parts(NAME, d_in, parts)?;
    expect_shape(NAME, "weight", Some(weight), &[d_out, d_in])?;
    expect_shape(NAME, "bias", bias, &[d_out])?;
    Ok(d_in)
}

/// The number of output channels.
fn check_parts(name: &str, d_in: usize, parts: &[usize]) -> Result<usize> {
    if d_in == 0 || parts.is_empty() || parts.contains(&0) {
        bail!("{name}: parts are {parts:?} of {d_in} input channels, expected at least one of each");
    }
    Ok(parts.iter().sum())
}

struct Op {
    parts: Vec<usize>,
    d_in: usize,
}

impl Op {
    fn forward_cpu<T: Real>(&self, inputs: &[Option<Tensor>]) -> Result<Vec<Output>> {
        let x = elements(inputs);
        let slice = |i: usize| x[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let outputs = cpu::forward(
            slice(0)?.unwrap_or_default(),
            slice(1)?.unwrap_or_default(),
            slice(2)?,
            self.d_in,
            &self.parts,
        );
        let mut dims = inputs[0].as_ref().map(|x| x.dims().to_vec()).unwrap_or_default();
        dims.pop();
        let shaped = outputs.into_iter().zip(&self.parts).map(|(y, &part)| {
            let mut dims = dims.clone();
            dims.push(part);
            Output::cpu(y, dims)
        });
        Ok(shaped.collect())
    }

    fn backward_cpu<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (x, g) = (elements(inputs), elements(grads));
        let of = |i: usize| x[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let grads =
            g.iter().map(|e| e.as_ref().map(|e| e.slice::<T>()).transpose()).collect::<Result<Vec<_>>>()?;
        let (xs, weight, bias) = (of(0)?.unwrap_or_default(), of(1)?.unwrap_or_default(), of(2)?);
        let with = (true, bias.is_some());
        let out = cpu::backward(xs, weight, with, &grads, self.d_in, &self.parts);
        Ok(like_inputs([Some(out.x), out.weight, out.bias], inputs))
    }
}

impl Fused for Op {
    type Saved = ();
    const NAME: &'static str = "linear";

    fn forward(&self, inputs: &[Option<Tensor>], _: bool) -> Result<(Vec<Output>, ())> {
        with_element_type!(inputs, T => Ok((self.forward_cpu::<T>(inputs)?, ())))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        (): &(),
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        with_element_type!(inputs, T => self.backward_cpu::<T>(inputs, grads))
    }
}
