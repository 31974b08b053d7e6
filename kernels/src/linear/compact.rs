//! Linear maps with weights of two bytes or one, for inference:
//!
//! | values | scales | weight |
//! |---|---|---|
//! | BF16 or F16 `(out, in)` | none | the value |
//! | U8 `(out, in)`, the bits of an `i8` | F32 `(out)` | value · scale of its row |
//!
//! Activations and sums stay in f32. A few rows of activations read the small weights directly, which is what makes
//! decoding fast; more rows widen a part's weights first. Gradients flow to `x` and the bias, not to the weights.

use super::matvec::{Map, Weight};
use super::{check_parts, cpu, matvec};
use crate::fused::{self, Elements, Fused, Output, elements, expect_shape, like_inputs};
use candle_core::{D, DType, Result, Tensor, WithDType, bail};
use half::{bf16, f16};
use rayon::prelude::*;

const NAME: &str = "linear_compact";
/// Largest magnitude of a quantised weight.
const MOST: f32 = 127.0;

/// A weight `(out, in)` f32 as 8-bit integers: values U8 `(out, in)`, the bits of `i8`, and scales F32 `(out)`. Each row's
/// largest magnitude becomes ±127; no weight moves by more than half a scale.
///
/// # Errors
/// Another shape or dtype, or a weight that is not finite.
pub fn quantize_rows(weight: &Tensor) -> Result<(Tensor, Tensor)> {
    let (d_out, d_in) = weight.dims2()?;
    if weight.dtype() != DType::F32 {
        bail!("quantize_rows: weight has dtype {:?}, expected F32", weight.dtype());
    }
    let contiguous = weight.contiguous()?;
    let elements = Elements::new(&contiguous);
    let w = elements.slice::<f32>()?;
    let mut values = vec![0u8; w.len()];
    let mut scales = vec![0f32; d_out];
    let rows = values.par_chunks_mut(d_in.max(1)).zip(&mut scales).zip(w.par_chunks(d_in.max(1)));
    rows.for_each(|((values, scale), w)| {
        let largest = w.iter().fold(0f32, |most, w| if w.is_nan() { *w } else { most.max(w.abs()) });
        *scale = largest / MOST;
        let inverse = if largest > 0.0 { MOST / largest } else { 0.0 };
        for (value, w) in values.iter_mut().zip(w) {
            *value = (w * inverse).round_ties_even() as i8 as u8;
        }
    });
    if let Some(row) = w.chunks(d_in.max(1)).position(|row| row.iter().any(|w| !w.is_finite())) {
        bail!("quantize_rows: row {row} of the weight is not finite");
    }
    let device = weight.device();
    Ok((Tensor::from_vec(values, (d_out, d_in), device)?, Tensor::from_vec(scales, d_out, device)?))
}

/// The weight in f32 that `values` and `scales` stand for, `(out, in)`.
///
/// # Errors
/// Shapes or dtypes other than the module's table lists.
pub fn widen(values: &Tensor, scales: Option<&Tensor>) -> Result<Tensor> {
    let (d_out, d_in) = values.dims2()?;
    check_weight(values, scales, d_out, d_in)?;
    let (values, scales) = (values.contiguous()?, scales.map(Tensor::contiguous).transpose()?);
    let (v, s) = (Elements::new(&values), scales.as_ref().map(Elements::new));
    let s = s.as_ref().map(|s| s.slice::<f32>()).transpose()?;
    let out = with_weight_type!(values.dtype(), W => widen_rows(v.slice::<W>()?, s, d_in));
    Tensor::from_vec(out, (d_out, d_in), values.device())
}

fn widen_rows<W: Weight<f32>>(values: &[W], scales: Option<&[f32]>, d_in: usize) -> Vec<f32> {
    let mut out = vec![0f32; values.len()];
    out.par_chunks_mut(d_in).zip(values.par_chunks(d_in)).enumerate().for_each(|(row, (out, values))| {
        let scale = scales.map_or(1.0, |scales| scales[row]);
        out.iter_mut().zip(values).for_each(|(out, value)| *out = value.widen() * scale);
    });
    out
}

/// [`linear`](super::linear) with a compact weight: the parts of `x Wᵀ + b`, `x` `(…, in)` f32, `bias` `(out)` f32; part i
/// has `parts[i]` of the `out` channels, `(…, parts[i])`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mamba_kernels::linear::compact::{linear_compact, quantize_rows};
/// # fn main() -> candle_core::Result<()> {
/// let (values, scales) = quantize_rows(&Tensor::new(&[[1f32, -0.5], [0., 254.]], &Device::Cpu)?)?;
/// let x = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
/// let parts = linear_compact(&x, &values, Some(&scales), None, &[1, 1])?;
/// assert_eq!(parts[1].to_vec2::<f32>()?, [[508.]]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
pub fn linear_compact(
    x: &Tensor,
    values: &Tensor,
    scales: Option<&Tensor>,
    bias: Option<&Tensor>,
    parts: &[usize],
) -> Result<Vec<Tensor>> {
    fused::same_dtype_and_device(NAME, &[("x", Some(x)), ("scales", scales), ("bias", bias)])?;
    if x.dtype() != DType::F32 {
        bail!("{NAME}: x has dtype {:?}, expected F32", x.dtype());
    }
    let d_in = x.dim(D::Minus1)?;
    let d_out = check_parts(NAME, d_in, parts)?;
    check_weight(values, scales, d_out, d_in)?;
    expect_shape(NAME, "bias", bias, &[d_out])?;
    let scales = scales.map(|s| s.detach().contiguous()).transpose()?;
    let op = Op { values: values.detach().contiguous()?, scales, parts: parts.to_vec(), d_in };
    fused::apply(op, &[Some(x), bias])
}

fn check_weight(values: &Tensor, scales: Option<&Tensor>, d_out: usize, d_in: usize) -> Result<()> {
    match (values.dtype(), scales) {
        (DType::BF16 | DType::F16, None) | (DType::U8, Some(_)) => (),
        (DType::BF16 | DType::F16, Some(_)) => bail!("{NAME}: scales go with U8 values only"),
        (DType::U8, None) => bail!("{NAME}: U8 values need scales"),
        (other, _) => bail!("{NAME}: values have dtype {other:?}, expected BF16, F16 or U8"),
    }
    expect_shape(NAME, "values", Some(values), &[d_out, d_in])?;
    expect_shape(NAME, "scales", scales, &[d_out])
}

/// Runs `$body` with `$W` standing for the type of the stored weights.
macro_rules! with_weight_type {
    ($dtype:expr, $W:ident => $body:expr) => {
        match $dtype {
            DType::BF16 => {
                type $W = bf16;
                $body
            }
            DType::F16 => {
                type $W = f16;
                $body
            }
            _ => {
                type $W = u8;
                $body
            }
        }
    };
}
use with_weight_type;

struct Op {
    values: Tensor,
    scales: Option<Tensor>,
    parts: Vec<usize>,
    d_in: usize,
}

impl Op {
    fn forward_typed<W: Weight<f32> + WithDType>(&self, inputs: &[Option<Tensor>]) -> Result<Vec<Output>> {
        let (inputs_of, values) = (elements(inputs), Elements::new(&self.values));
        let scales = self.scales.as_ref().map(Elements::new);
        let scales = scales.as_ref().map(|e| e.slice::<f32>()).transpose()?;
        let bias = inputs_of[1].as_ref().map(|e| e.slice::<f32>()).transpose()?;
        let Some(x) = &inputs_of[0] else { bail!("{NAME}: x is missing") };
        let (x, values) = (x.slice::<f32>()?, values.slice::<W>()?);
        let map = Map { weight: values, scales, bias, d_in: self.d_in };
        let outputs = match x.len() / self.d_in <= matvec::FEW_ROWS {
            true => matvec::forward(x, map, &self.parts),
            false => widened(x, map, &self.parts),
        };
        let mut dims = inputs[0].as_ref().map(|x| x.dims().to_vec()).unwrap_or_default();
        dims.pop();
        let shaped = outputs.into_iter().zip(&self.parts).map(|(y, &part)| {
            let mut dims = dims.clone();
            dims.push(part);
            Output::cpu(y, dims)
        });
        Ok(shaped.collect())
    }
}

/// The parts of the output by matrix products, for each of which its weights are widened.
fn widened<W: Weight<f32>>(x: &[f32], map: Map<'_, f32, W>, parts: &[usize]) -> Vec<Vec<f32>> {
    let mut start = 0;
    parts
        .iter()
        .map(|&part| {
            let channels = start..start + part;
            start += part;
            let values = &map.weight[channels.start * map.d_in..channels.end * map.d_in];
            let weight = widen_rows(values, map.scales.map(|s| &s[channels.clone()]), map.d_in);
            cpu::forward(x, &weight, map.bias.map(|b| &b[channels]), map.d_in, &[part]).swap_remove(0)
        })
        .collect()
}

impl Fused for Op {
    type Saved = ();
    const NAME: &'static str = NAME;

    fn forward(&self, inputs: &[Option<Tensor>], _: bool) -> Result<(Vec<Output>, ())> {
        with_weight_type!(self.values.dtype(), W => Ok((self.forward_typed::<W>(inputs)?, ())))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        (): &(),
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let weight = widen(&self.values, self.scales.as_ref())?;
        let (x, g, weight) = (elements(inputs), elements(grads), Elements::new(&weight));
        let Some(x) = &x[0] else { bail!("{NAME}: x is missing") };
        let grads =
            g.iter().map(|e| e.as_ref().map(|e| e.slice::<f32>()).transpose()).collect::<Result<Vec<_>>>()?;
        let with_bias = inputs[1].is_some();
        let out = cpu::backward(
            x.slice::<f32>()?,
            weight.slice::<f32>()?,
            (false, with_bias),
            &grads,
            self.d_in,
            &self.parts,
        );
        Ok(like_inputs([Some(out.x), out.bias], inputs))
    }
}
