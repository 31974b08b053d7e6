//! RMS and layer normalisation over the last dimension, with the residual add before it and the gate around it:
//!
//! ```text
//! s = x + residual                                    (if there is a residual)
//! v = s · silu(z)                                     (if there is a gate, applied before the norm)
//! n = v / sqrt(mean(v²) + eps)                        (RMS), or
//! n = (v - mean(v)) / sqrt(var(v) + eps)              (layer), over each group of `group_size` channels
//! y = (n · weight + bias) · silu(z)                   (if there is a gate, applied after the norm)
//! ```

use crate::fused::{
    self, Elements, Fused, Output, elements, expect_shape, full_precision, like_inputs, with_element_type,
};
use crate::gpu::Gpu;
use crate::simd::Real;
use candle_core::{D, Result, Tensor, bail};

mod cpu;
mod cuda;
pub mod reference;

/// What is divided out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rms,
    Layer,
}

/// The arguments of a normalisation. `x`, `residual` and `z` are `(…, D)` of one shape; `weight` and `bias` are `(D)`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mamba_kernels::Norm;
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::new(&[[3f32, 4.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[1f32, 1.], &Device::Cpu)?;
/// let y = Norm::rms(&x, &weight, 0.0).run()?.to_vec2::<f32>()?;
/// assert!((y[0][0] - 3. / 12.5f32.sqrt()).abs() < 1e-6);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Norm<'a> {
    kind: Kind,
    x: &'a Tensor,
    weight: &'a Tensor,
    eps: f64,
    bias: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
    z: Option<&'a Tensor>,
    norm_before_gate: bool,
    group_size: Option<usize>,
}

impl<'a> Norm<'a> {
    /// RMS normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).
    pub fn rms(x: &'a Tensor, weight: &'a Tensor, eps: f64) -> Self {
        Self {
            kind: Kind::Rms,
            x,
            weight,
            eps,
            bias: None,
            residual: None,
            z: None,
            norm_before_gate: false,
            group_size: None,
        }
    }

    /// Layer normalisation (Ba, Kiros and Hinton 2016, arXiv 1607.06450).
    pub fn layer(x: &'a Tensor, weight: &'a Tensor, eps: f64) -> Self {
        Self { kind: Kind::Layer, ..Self::rms(x, weight, eps) }
    }

    /// Adds a bias after the weight.
    pub fn bias(mut self, bias: &'a Tensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Adds `residual` to `x` first; [`Norm::run_with_residual`] returns the sum.
    pub fn residual(mut self, residual: &'a Tensor) -> Self {
        self.residual = Some(residual);
        self
    }

    /// Multiplies by `silu(z)`: the output if `norm_before_gate`, else the input.
    pub fn gate(mut self, z: &'a Tensor, norm_before_gate: bool) -> Self {
        self.z = Some(z);
        self.norm_before_gate = norm_before_gate;
        self
    }

    /// Normalises each run of `group_size` channels on its own.
    pub fn group_size(mut self, group_size: usize) -> Self {
        self.group_size = Some(group_size);
        self
    }

    /// The output, shaped as `x`.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
    pub fn run(self) -> Result<Tensor> {
        Ok(self.apply(false)?.swap_remove(0))
    }

    /// The output and `x + residual`, both differentiable.
    ///
    /// # Errors
    /// As [`Norm::run`].
    pub fn run_with_residual(self) -> Result<(Tensor, Tensor)> {
        if self.residual.is_none() {
            let x = self.x.clone();
            return Ok((self.run()?, x));
        }
        let mut outputs = self.apply(true)?;
        let sum = outputs.swap_remove(1);
        Ok((outputs.swap_remove(0), sum))
    }

    fn apply(self, with_residual: bool) -> Result<Vec<Tensor>> {
        let group = self.check()?;
        let Self { kind, eps, norm_before_gate, .. } = self;
        let op = Op { kind, eps, norm_before_gate, group, with_residual };
        let (weight, bias) = (full_precision(Some(self.weight))?, full_precision(self.bias)?);
        fused::apply(op, &[Some(self.x), weight.as_ref(), bias.as_ref(), self.residual, self.z])
    }

    /// Checks every argument and returns the group size.
    fn check(&self) -> Result<usize> {
        const NAME: &str = "norm";
        let inputs = [
            ("x", Some(self.x)),
            ("weight", Some(self.weight)),
            ("bias", self.bias),
            ("residual", self.residual),
            ("z", self.z),
        ];
        fused::same_dtype_and_device_or_gpu(NAME, &inputs, &["weight", "bias"])?;
        let d = self.x.dim(D::Minus1)?;
        expect_shape(NAME, "weight", Some(self.weight), &[d])?;
        expect_shape(NAME, "bias", self.bias, &[d])?;
        expect_shape(NAME, "residual", self.residual, self.x.dims())?;
        expect_shape(NAME, "z", self.z, self.x.dims())?;
        let group = self.group_size.unwrap_or(d);
        if d == 0 || group == 0 || d % group != 0 {
            bail!("{NAME}: group_size is {group}, expected a divisor of the {d} channels");
        }
        Ok(group)
    }
}

struct Op {
    kind: Kind,
    eps: f64,
    norm_before_gate: bool,
    group: usize,
    with_residual: bool,
}

impl Op {
    fn view<'a, T: Real>(&self, x: &'a [Option<Elements<'a>>]) -> Result<cpu::Norm<'a, T>> {
        let optional = |i: usize| x[i].as_ref().map(|e| e.slice::<T>()).transpose();
        Ok(cpu::Norm {
            layer: self.kind == Kind::Layer,
            x: optional(0)?.unwrap_or_default(),
            weight: optional(1)?.unwrap_or_default(),
            bias: optional(2)?,
            residual: optional(3)?,
            z: optional(4)?,
            norm_before_gate: self.norm_before_gate,
            group: self.group,
            eps: T::from_f64(self.eps),
        })
    }

    fn forward_cpu<T: Real>(&self, inputs: &[Option<Tensor>]) -> Result<Vec<Output>> {
        let x = elements(inputs);
        let (y, sum) = cpu::forward(&self.view::<T>(&x)?, self.with_residual);
        let shape = inputs[0].as_ref().map(|x| x.shape().clone()).unwrap_or(0.into());
        let mut outputs = vec![Output::cpu(y, shape.clone())];
        outputs.extend(sum.map(|sum| Output::cpu(sum, shape)));
        Ok(outputs)
    }

    fn backward_cpu<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let x = elements(inputs);
        let g = elements(grads);
        let dy = g[0].as_ref().map(|e| e.slice::<T>()).transpose()?;
        let dsum = g.get(1).and_then(|e| e.as_ref()).map(|e| e.slice::<T>()).transpose()?;
        let out = cpu::backward(&self.view::<T>(&x)?, dy, dsum);
        let mut tensors = like_inputs([Some(out.x), Some(out.weight), out.bias, None, out.z], inputs);
        // The sum passes its gradient on to both terms.
        tensors[3] = inputs[3].as_ref().and(tensors[0].clone());
        Ok(tensors)
    }
}

impl Fused for Op {
    type Saved = ();
    const NAME: &'static str = "norm";

    fn forward(&self, inputs: &[Option<Tensor>], _: bool) -> Result<(Vec<Output>, ())> {
        if let Some(gpu) = Gpu::of(inputs[0].as_ref()) {
            return Ok((cuda::forward(&gpu, self, inputs)?, ()));
        }
        with_element_type!(inputs, T => Ok((self.forward_cpu::<T>(inputs)?, ())))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        (): &(),
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = Gpu::of(inputs[0].as_ref()) {
            return cuda::backward(&gpu, self, inputs, grads);
        }
        with_element_type!(inputs, T => self.backward_cpu::<T>(inputs, grads))
    }
}
