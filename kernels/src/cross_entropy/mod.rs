//! The mean cross-entropy of a linear classifier, without its logits ever existing whole:
//!
//! ```text
//! loss = 1/n · Σᵢ (ln Σⱼ exp(xᵢ·wⱼ) - xᵢ·w(targetᵢ))
//! ```
//!
//! A language model's head, or a recommender's scores of all items: n tokens times V classes would be the largest tensor
//! of the model by far, and its gradient another. Here tiles of tokens meet tiles of classes in cache. The gradients are
//! found in the forward pass, while the tile's logits are there; backward only multiplies them by the loss's own
//! gradient. Extra memory is O(n·d + V·d), besides tiles whose size depends on neither.

use crate::fused::{self, Fused, Output, elements, expect_shape, with_element_type};
use crate::gpu::Gpu;
use candle_core::{DType, Result, Tensor, bail};

mod cpu;
pub mod reference;

/// The mean cross-entropy in nats of the classifier `x Wᵀ`: `x` `(n, d)`, `weight` `(V, d)`, `targets` `(n)` u32 below V;
/// a scalar. Differentiable in `x` and `weight`. On a GPU it is composed from tensor ops: all logits exist at once, in f32,
/// as the loss then is.
///
/// ```
/// use candle_core::{Device, Tensor};
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::new(&[[1f32, 0.], [0., 2.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[0f32, 0.], [0., 0.], [0., 0.]], &Device::Cpu)?;
/// let targets = Tensor::new(&[0u32, 2], &Device::Cpu)?;
/// let loss = mamba_kernels::linear_cross_entropy(&x, &weight, &targets)?;
/// assert!((loss.to_scalar::<f32>()? - 3f32.ln()).abs() < 1e-6);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, no row at all, or a target that is no class.
pub fn linear_cross_entropy(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if Gpu::of(Some(x)).is_some() {
        return reference::linear_cross_entropy(x, weight, targets);
    }
    let targets = check(x, weight, targets)?;
    Ok(fused::apply(Op { targets }, &[Some(x), Some(weight)])?.swap_remove(0))
}

const NAME: &str = "linear_cross_entropy";

/// Checks every argument and returns the targets.
fn check(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Vec<u32>> {
    fused::same_dtype_and_device_or_gpu(NAME, &[("x", Some(x)), ("weight", Some(weight))], &[])?;
    let (rows, d) = x.dims2()?;
    let classes = weight.dim(0)?;
    expect_shape(NAME, "weight", Some(weight), &[classes, d])?;
    expect_shape(NAME, "targets", Some(targets), &[rows])?;
    if rows == 0 || d == 0 || classes == 0 {
        bail!("{NAME}: {rows} rows of {d} channels and {classes} classes, expected at least one of each");
    }
    if targets.dtype() != DType::U32 {
        bail!("{NAME}: targets have dtype {:?}, expected U32", targets.dtype());
    }
    let targets = targets.to_vec1::<u32>()?;
    match targets.iter().position(|&target| target as usize >= classes) {
        Some(row) => bail!("{NAME}: target {row} is {}, expected a class below {classes}", targets[row]),
        None => Ok(targets),
    }
}

struct Op {
    targets: Vec<u32>,
}

impl Fused for Op {
    /// The gradients of `x` and `weight` for a loss whose own gradient is 1, where backward may follow.
    type Saved = Option<[Tensor; 2]>;
    const NAME: &'static str = NAME;

    fn forward(&self, inputs: &[Option<Tensor>], track: bool) -> Result<(Vec<Output>, Self::Saved)> {
        let ([Some(x), Some(weight)], values) = (inputs, elements(inputs)) else {
            bail!("{NAME}: an input is missing")
        };
        let [Some(xs), Some(ws)] = &values[..] else { bail!("{NAME}: an input is missing") };
        with_element_type!(inputs, T => {
            let (loss, grads) = cpu::forward::<T>(xs.slice()?, ws.slice()?, &self.targets, x.dim(1)?, track);
            let saved = grads.map(|grads| {
                [Output::cpu(grads.x, x.shape()), Output::cpu(grads.weight, weight.shape())].map(Output::into_tensor)
            });
            Ok((vec![Output::cpu(vec![loss as T], ())], saved))
        })
    }

    fn backward(
        &self,
        _: &[Option<Tensor>],
        saved: &Self::Saved,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let ([Some(grad)], Some(saved)) = (grads, saved) else { bail!("{NAME}: a gradient is missing") };
        let factor = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        // As a rule the loss is what backward starts from.
        let scaled = |saved: &Tensor| if factor == 1.0 { Ok(saved.clone()) } else { saved * factor };
        saved.iter().map(|saved| scaled(saved).map(Some)).collect()
    }
}
