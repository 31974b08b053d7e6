//! Two-dimensional convolutions of channel-last images, and their transposes:
//!
//! ```text
//! conv2d            y[b, i, j, o] = bias[o] + Σ_{k, l, c} W[o, c, k, l] · x[b, i·s_h + k·d_h - p_h, j·s_w + l·d_w - p_w, c]
//! conv_transpose2d  the adjoint map: y[b, i·s_h + k·d_h - p_h, j·s_w + l·d_w - p_w, c] += W[o, c, k, l] · x[b, i, j, o]
//! ```
//!
//! Images are `(B, H, W, C)`, so that all taps of a row that lie side by side are one matrix product whose left-hand rows
//! overlap: nothing is unfolded. The input of [`conv2d`] may be a list of images whose channels are thought of as
//! concatenated, as dense blocks need; nothing is copied for it. Weights have torch's layout.
//!
//! Beside candle's own `conv2d` this saves the change of layout, the unfolded copy, and most of the time. On a GPU they are
//! composed from tensor ops, one product for each tap.

use crate::fused::{self, Fused, Output, elements, expect_shape, like_inputs, with_element_type};
use crate::gpu::Gpu;
use crate::simd::Real;
use candle_core::{Result, Tensor, bail};

mod cpu;
mod plan;
pub mod reference;

use cpu::Image;
use plan::Plan;

/// Strides, dilations and zero padding of a convolution, along height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Steps of the input for one step of the output.
    pub stride: (usize, usize),
    /// Steps of the input from one tap to the next.
    pub dilation: (usize, usize),
    /// Rows of zeros above and below the input.
    pub pad_h: (usize, usize),
    /// Columns of zeros left and right of the input.
    pub pad_w: (usize, usize),
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: (1, 1), dilation: (1, 1), pad_h: (0, 0), pad_w: (0, 0) }
    }
}

impl Conv2d {
    /// Height and width of the output for an input and a kernel.
    fn small(&self, input: (usize, usize), kernel: (usize, usize)) -> Option<(usize, usize)> {
        let axis = |n: usize, (before, after): (usize, usize), k: usize, d: usize, s: usize| {
            let reach = (k - 1) * d;
            (n + before + after).checked_sub(reach + 1).map(|rest| rest / s + 1)
        };
        let h = axis(input.0, self.pad_h, kernel.0, self.dilation.0, self.stride.0)?;
        let w = axis(input.1, self.pad_w, kernel.1, self.dilation.1, self.stride.1)?;
        Some((h, w))
    }

    /// Height and width of the output of the transposed map.
    fn big(&self, input: (usize, usize), kernel: (usize, usize)) -> Option<(usize, usize)> {
        let axis = |n: usize, (before, after): (usize, usize), k: usize, d: usize, s: usize| {
            ((n - 1) * s + (k - 1) * d + 1).checked_sub(before + after).filter(|&n| n > 0)
        };
        let h = axis(input.0, self.pad_h, kernel.0, self.dilation.0, self.stride.0)?;
        let w = axis(input.1, self.pad_w, kernel.1, self.dilation.1, self.stride.1)?;
        Some((h, w))
    }
}

/// `inputs` `(B, H, W, C_i)` with Σ C_i = C, `weight` `(C_out, C, K_h, K_w)`, `bias` `(C_out)` → `(B, H', W', C_out)`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mamba_kernels::conv2d::{Conv2d, conv2d};
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::new(&[[[[1f32], [2.], [4.]]]], &Device::Cpu)?; // (1, 1, 3, 1)
/// let weight = Tensor::new(&[[[[1f32, 10.]]]], &Device::Cpu)?; // (1, 1, 1, 2)
/// let y = conv2d(&[&x], &weight, None, Conv2d::default())?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [21., 42.]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
pub fn conv2d(inputs: &[&Tensor], weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    if Gpu::of(Some(weight)).is_some() {
        return reference::conv2d(inputs, weight, bias, conv);
    }
    let sizes = check("conv2d", inputs, weight, bias, conv, false)?;
    run(Op { sizes, transposed: false }, inputs, weight, bias)
}

/// The transposed convolution: `x` `(B, H, W, C)`, `weight` `(C, C_out, K_h, K_w)`, `bias` `(C_out)` →
/// `(B, H', W', C_out)`; `conv` describes the convolution that it is the transpose of.
///
/// # Errors
/// As [`conv2d`].
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    if Gpu::of(Some(weight)).is_some() {
        return reference::conv_transpose2d(x, weight, bias, conv);
    }
    let sizes = check("conv_transpose2d", &[x], weight, bias, conv, true)?;
    run(Op { sizes, transposed: true }, &[x], weight, bias)
}

/// Everything about the shapes. `big` is the side that a convolution reads, `small` the side that it writes.
#[derive(Clone, Debug)]
struct Sizes {
    conv: Conv2d,
    kernel: (usize, usize),
    batch: usize,
    big: (usize, usize),
    small: (usize, usize),
    /// Channels of each image of the big side.
    big_channels: Vec<usize>,
    small_channels: usize,
}

fn run(op: Op, inputs: &[&Tensor], weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut all = vec![Some(weight), bias];
    all.extend(inputs.iter().map(|x| Some(*x)));
    let mut outputs = fused::apply(op, &all)?;
    Ok(outputs.swap_remove(0))
}

fn check(
    name: &str,
    inputs: &[&Tensor],
    weight: &Tensor,
    bias: Option<&Tensor>,
    conv: Conv2d,
    transposed: bool,
) -> Result<Sizes> {
    let mut named = vec![("weight", Some(weight)), ("bias", bias)];
    named.extend(inputs.iter().map(|x| ("input", Some(*x))));
    fused::same_dtype_and_device_or_gpu(name, &named, &[])?;
    let Some(first) = inputs.first() else { bail!("{name}: there is no input") };
    let (batch, h, w, _) = first.dims4()?;
    let mut channels = Vec::new();
    for x in inputs {
        let (.., c) = x.dims4()?;
        expect_shape(name, "input", Some(x), &[batch, h, w, c])?;
        channels.push(c);
    }
    let (small_channels, big_channels, kh, kw) = weight.dims4()?;
    let Conv2d { stride, dilation, .. } = conv;
    if [h, w, kh, kw, stride.0, stride.1, dilation.0, dilation.1, small_channels, big_channels].contains(&0) {
        bail!("{name}: input {:?}, weight {:?} and {conv:?} must have no zero", first.dims(), weight.dims());
    }
    let (of_input, expected, out) = match transposed {
        false => (channels.iter().sum::<usize>(), big_channels, small_channels),
        true => (channels[0], small_channels, big_channels),
    };
    if of_input != expected {
        bail!("{name}: the input has {of_input} channels, the weight {:?} expects {expected}", weight.dims());
    }
    expect_shape(name, "bias", bias, &[out])?;
    let kernel = (kh, kw);
    let other = if transposed { conv.big((h, w), kernel) } else { conv.small((h, w), kernel) };
    let Some(other) = other else {
        bail!("{name}: an input of {h} × {w} is too small for a kernel of {kh} × {kw} with {conv:?}");
    };
    let (big, small) = if transposed { (other, (h, w)) } else { ((h, w), other) };
    let big_channels = if transposed { vec![big_channels] } else { channels };
    Ok(Sizes { conv, kernel, batch, big, small, big_channels, small_channels })
}

struct Op {
    sizes: Sizes,
    transposed: bool,
}

impl Op {
    fn forward_cpu<T: Real>(&self, inputs: &[Option<Tensor>]) -> Result<Vec<Output>> {
        let e = elements(inputs);
        let of = |i: usize| e[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let (weight, bias) = (of(0)?.unwrap_or_default(), of(1)?);
        let s = &self.sizes;
        let images = (2..inputs.len()).map(|i| Ok(of(i)?.unwrap_or_default())).collect::<Result<Vec<_>>>()?;
        let (y, (h, w), c) = match self.transposed {
            false => {
                let plan = Plan::gather(s.conv, s.kernel, s.big, s.small);
                let images: Vec<_> = images
                    .iter()
                    .zip(&s.big_channels)
                    .map(|(x, &c)| Image::new(x, s.batch, s.big, c))
                    .collect();
                let packed = cpu::pack(&plan, weight, s, true);
                (
                    cpu::correlate(&plan, &images, &packed, bias, s.small, s.small_channels),
                    s.small,
                    s.small_channels,
                )
            }
            true => {
                let plan = Plan::scatter(s.conv, s.kernel, s.big, s.small);
                let image = Image::new(images[0], s.batch, s.small, s.small_channels);
                let packed = cpu::pack(&plan, weight, s, false);
                let c = s.big_channels[0];
                (cpu::correlate(&plan, &[image], &packed[..1], bias, s.big, c), s.big, c)
            }
        };
        Ok(vec![Output::cpu(y, (s.batch, h, w, c))])
    }

    fn backward_cpu<T: Real>(&self, inputs: &[Option<Tensor>], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let e = elements(inputs);
        let of = |i: usize| e[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let (weight, bias) = (of(0)?.unwrap_or_default(), of(1)?);
        let grad = [Some(grad.clone())];
        let grad = elements(&grad);
        let grad = grad[0].as_ref().map(|e| e.slice::<T>()).transpose()?.unwrap_or_default();
        let s = &self.sizes;
        let images = (2..inputs.len()).map(|i| Ok(of(i)?.unwrap_or_default())).collect::<Result<Vec<_>>>()?;
        let gather = Plan::gather(s.conv, s.kernel, s.big, s.small);
        let scatter = Plan::scatter(s.conv, s.kernel, s.big, s.small);
        let mut dweight = vec![T::default(); weight.len()];
        let mut grads = Vec::new();
        match self.transposed {
            false => {
                let dy = Image::new(grad, s.batch, s.small, s.small_channels);
                let packed = cpu::pack(&scatter, weight, s, false);
                let mut first = 0;
                for ((x, &c), packed) in images.iter().zip(&s.big_channels).zip(&packed) {
                    let x = Image::new(x, s.batch, s.big, c);
                    cpu::weight_gradient(&gather, &x, &dy, s, first, &mut dweight);
                    grads.push(Some(cpu::correlate(
                        &scatter,
                        std::slice::from_ref(&dy),
                        std::slice::from_ref(packed),
                        None,
                        s.big,
                        c,
                    )));
                    first += c;
                }
            }
            true => {
                let c = s.big_channels[0];
                let dy = Image::new(grad, s.batch, s.big, c);
                let x = Image::new(images[0], s.batch, s.small, s.small_channels);
                cpu::weight_gradient(&gather, &dy, &x, s, 0, &mut dweight);
                let packed = cpu::pack(&gather, weight, s, true);
                grads.push(Some(cpu::correlate(&gather, &[dy], &packed, None, s.small, s.small_channels)));
            }
        }
        let dbias = bias.map(|bias| cpu::sum_pixels(grad, bias.len()));
        let all = [Some(dweight), dbias].into_iter().chain(grads);
        Ok(like_inputs(all, inputs))
    }
}

impl Fused for Op {
    type Saved = ();
    const NAME: &'static str = "conv2d";

    fn forward(&self, inputs: &[Option<Tensor>], _: bool) -> Result<(Vec<Output>, ())> {
        with_element_type!(inputs, T => Ok((self.forward_cpu::<T>(inputs)?, ())))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        (): &(),
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &grads[0] else { return Ok(vec![None; inputs.len()]) };
        with_element_type!(inputs, T => self.backward_cpu::<T>(inputs, grad))
    }
}
