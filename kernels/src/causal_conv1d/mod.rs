//! The causal depthwise convolution in front of the scan, with optional bias and SiLU:
//!
//! ```text
//! pre_t = bias + Σ_k weight[k] · x_{t - (K-1) + k}        y_t = silu(pre_t)  (if asked for)
//! ```
//!
//! where tokens before a segment's first come from its initial state, or are zero.

use crate::fused::{
    self, Elements, Fused, Output, elements, expect_shape, full_precision, like_inputs, with_element_type,
};
use crate::gpu::Gpu;
use crate::segments::Segments;
use crate::simd::Real;
use candle_core::{Result, Tensor, bail};

mod cpu;
mod cuda;
pub mod reference;

/// The widest kernel there is code for.
pub const MAX_WIDTH: usize = 8;

/// The arguments of a causal depthwise convolution.
///
/// | argument        | shape                    |
/// |-----------------|--------------------------|
/// | `x`             | `(B, L, D)`              |
/// | `weight`        | `(D, K)`, K in 1..=8     |
/// | `bias`          | `(D)`                    |
/// | `initial_state` | `(segments, K-1, D)`: the K-1 tokens before each segment, in scan order |
/// | output          | `(B, L, D)`              |
/// | last state      | `(segments, K-1, D)`     |
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mamba_kernels::CausalConv1d;
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::new(&[[[1f32], [2.], [3.]]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[10f32, 1.]], &Device::Cpu)?;
/// let y = CausalConv1d::new(&x, &weight).run()?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [1., 12., 23.]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct CausalConv1d<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    bias: Option<&'a Tensor>,
    initial_state: Option<&'a Tensor>,
    segments: Option<&'a Segments>,
    silu: bool,
    reverse: bool,
}

impl<'a> CausalConv1d<'a> {
    /// A convolution of `x` with `weight`.
    pub fn new(x: &'a Tensor, weight: &'a Tensor) -> Self {
        Self { x, weight, bias: None, initial_state: None, segments: None, silu: false, reverse: false }
    }

    /// Adds a bias for each channel.
    pub fn bias(mut self, bias: &'a Tensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Applies SiLU to the output.
    pub fn silu(mut self, silu: bool) -> Self {
        self.silu = silu;
        self
    }

    /// Puts given tokens before each segment instead of zeros.
    pub fn initial_state(mut self, state: &'a Tensor) -> Self {
        self.initial_state = Some(state);
        self
    }

    /// Convolves each segment as a sequence of its own.
    pub fn segments(mut self, segments: &'a Segments) -> Self {
        self.segments = Some(segments);
        self
    }

    /// Runs from the last token to the first: y_t then sees x_t and the K-1 tokens *after* it.
    pub fn reverse(mut self, reverse: bool) -> Self {
        self.reverse = reverse;
        self
    }

    /// The output `(B, L, D)`.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
    pub fn run(self) -> Result<Tensor> {
        Ok(self.apply(false)?.swap_remove(0))
    }

    /// The output `(B, L, D)` and the last K-1 tokens of each segment `(segments, K-1, D)`, both differentiable.
    ///
    /// # Errors
    /// As [`CausalConv1d::run`].
    pub fn run_with_state(self) -> Result<(Tensor, Tensor)> {
        let mut outputs = self.apply(true)?;
        let last = outputs.swap_remove(1);
        Ok((outputs.swap_remove(0), last))
    }

    fn apply(self, with_state: bool) -> Result<Vec<Tensor>> {
        let (d, width) = self.check()?;
        let segments = self.resolved_segments();
        let Self { silu, reverse, .. } = self;
        let op = Op { d, width, segments, silu, reverse, with_state };
        let (weight, bias) = (full_precision(Some(self.weight))?, full_precision(self.bias)?);
        fused::apply(op, &[Some(self.x), weight.as_ref(), bias.as_ref(), self.initial_state])
    }

    fn resolved_segments(&self) -> Segments {
        match self.segments {
            Some(s) => s.clone(),
            None => Segments::whole(self.x.dims()[0], self.x.dims()[1]),
        }
    }

    /// Checks every argument and returns the numbers of channels and taps.
    fn check(&self) -> Result<(usize, usize)> {
        const NAME: &str = "causal_conv1d";
        let inputs = [
            ("x", Some(self.x)),
            ("weight", Some(self.weight)),
            ("bias", self.bias),
            ("initial_state", self.initial_state),
        ];
        fused::same_dtype_and_device_or_gpu(NAME, &inputs, &["weight", "bias"])?;
        let &[batch, len, d] = self.x.dims() else {
            bail!("{NAME}: x has shape {:?}, expected (batch, len, channels)", self.x.dims())
        };
        let width = match *self.weight.dims() {
            [wd, k] if wd == d && (1..=MAX_WIDTH).contains(&k) => k,
            _ => bail!(
                "{NAME}: weight has shape {:?}, expected (channels {d}, width 1..={MAX_WIDTH})",
                self.weight.dims()
            ),
        };
        if d == 0 || len == 0 {
            bail!("{NAME}: x has shape {:?}, expected at least one token and one channel", self.x.dims());
        }
        expect_shape(NAME, "bias", self.bias, &[d])?;
        if let Some(s) = self.segments
            && (s.batch() != batch || s.seq_len() != len)
        {
            bail!(
                "{NAME}: segments are of batch {} × len {}, x of batch {batch} × len {len}",
                s.batch(),
                s.seq_len()
            );
        }
        let count = self.segments.map_or(batch, Segments::count);
        expect_shape(NAME, "initial_state", self.initial_state, &[count, width - 1, d])?;
        Ok((d, width))
    }
}

/// One decoding step: the convolution of one token, `x` of `conv` being `(B, 1, D)`, after `state` `(B, K-1, D)`.
/// Returns the output `(B, D)` and the new state.
///
/// # Errors
/// As [`CausalConv1d::run`]; also if there is more than one token.
pub fn causal_conv1d_update(conv: CausalConv1d<'_>, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, len, _) = conv.x.dims3()?;
    if len != 1 {
        bail!("causal_conv1d_update: x has {len} tokens, expected 1");
    }
    let (y, state) = CausalConv1d { initial_state: Some(state), ..conv }.run_with_state()?;
    Ok((y.squeeze(1)?, state))
}

struct Op {
    d: usize,
    width: usize,
    segments: Segments,
    silu: bool,
    reverse: bool,
    with_state: bool,
}

impl Op {
    fn view<'a, T: Real>(&'a self, x: &'a [Option<Elements<'a>>]) -> Result<cpu::Conv<'a, T>> {
        let optional = |i: usize| x[i].as_ref().map(|e| e.slice::<T>()).transpose();
        Ok(cpu::Conv {
            x: optional(0)?.unwrap_or_default(),
            weight: optional(1)?.unwrap_or_default(),
            bias: optional(2)?,
            initial_state: optional(3)?,
            segments: self.segments.as_slice(),
            len: self.segments.seq_len(),
            d: self.d,
            silu: self.silu,
            reverse: self.reverse,
        })
    }

    fn forward_cpu<T: Real>(&self, inputs: &[Option<Tensor>]) -> Result<Vec<Output>> {
        let x = elements(inputs);
        let conv = self.view::<T>(&x)?;
        let shape = (self.segments.batch(), self.segments.seq_len(), self.d);
        let mut outputs = vec![Output::cpu(cpu::forward(&conv, self.width), shape)];
        if self.with_state {
            let shape = (self.segments.count(), self.width - 1, self.d);
            outputs.push(Output::cpu(cpu::last_state(&conv, self.width), shape));
        }
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
        let dlast = g.get(1).and_then(|e| e.as_ref()).map(|e| e.slice::<T>()).transpose()?;
        let out = cpu::backward(&self.view::<T>(&x)?, self.width, dy, dlast);
        Ok(like_inputs([Some(out.x), Some(out.weight), out.bias, out.initial_state], inputs))
    }
}

impl Fused for Op {
    type Saved = ();
    const NAME: &'static str = "causal_conv1d";

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
