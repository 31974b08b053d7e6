//! The exact GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415): `y = x·Φ(x)` with the normal distribution's
//! `Φ(x) = ½ erfc(-x/√2)`, in one pass over memory forward and one backward.

use crate::fused::{self, Fused, Output, elements, like_inputs, widened, with_element_type};
use crate::gpu::Gpu;
use candle_core::{Result, Tensor, bail};

mod cpu;
pub mod reference;

/// `x·Φ(x)`, shaped as `x`; for f32 the relative error is below 5e-7, in the left tail below 1e-5.
///
/// ```
/// use candle_core::{Device, Tensor};
/// # fn main() -> candle_core::Result<()> {
/// let y = mamba_kernels::gelu(&Tensor::new(&[0f32, 1., -20.], &Device::Cpu)?)?.to_vec1::<f32>()?;
/// assert!(y[0] == 0.0 && (y[1] - 0.841_344_7).abs() < 2e-7 && y[2].abs() < 1e-6);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Another dtype than f32 or f64 on the CPU, f32, bf16 or f16 on a GPU, where it is composed from tensor ops.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    fused::same_dtype_and_device_or_gpu("gelu", &[("x", Some(x))], &[])?;
    if Gpu::of(Some(x)).is_some() {
        return widened(x, reference::gelu);
    }
    Ok(fused::apply(Op, &[Some(x)])?.swap_remove(0))
}

struct Op;

impl Fused for Op {
    type Saved = ();
    const NAME: &'static str = "gelu";

    fn forward(&self, inputs: &[Option<Tensor>], _: bool) -> Result<(Vec<Output>, ())> {
        let x = elements(inputs);
        let ([Some(values)], [Some(x)]) = (&x[..], inputs) else { bail!("gelu: the input is missing") };
        with_element_type!(inputs, T => Ok((vec![Output::cpu(cpu::forward(values.slice::<T>()?), x.shape())], ())))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        (): &(),
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (x, g) = (elements(inputs), elements(grads));
        let ([Some(x)], [Some(g)]) = (&x[..], &g[..]) else { bail!("gelu: a gradient is missing") };
        with_element_type!(inputs, T => {
            Ok(like_inputs([Some(cpu::backward(x.slice::<T>()?, g.slice::<T>()?))], inputs))
        })
    }
}
