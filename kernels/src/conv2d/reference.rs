//! Convolutions in plain tensor ops, tap by tap: the specification of the kernel.

use super::{Conv2d, check};
use candle_core::{Result, Tensor};

/// [`super::conv2d`], differentiable through candle's own ops.
///
/// # Errors
/// As [`super::conv2d`].
pub fn conv2d(inputs: &[&Tensor], weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    let sizes = check("conv2d", inputs, weight, bias, conv, false)?;
    let x = Tensor::cat(inputs, 3)?; // (B, H, W, C)
    let at = |(out, tap): (usize, usize), stride: usize, dilation: usize, pad: usize| {
        (out * stride + tap * dilation).checked_sub(pad)
    };
    let mut y = None;
    for k in 0..sizes.kernel.0 {
        for l in 0..sizes.kernel.1 {
            let rows: Vec<_> = (0..sizes.small.0)
                .map(|i| at((i, k), conv.stride.0, conv.dilation.0, conv.pad_h.0))
                .collect();
            let columns: Vec<_> = (0..sizes.small.1)
                .map(|j| at((j, l), conv.stride.1, conv.dilation.1, conv.pad_w.0))
                .collect();
            let tap = weight.narrow(2, k, 1)?.narrow(3, l, 1)?.squeeze(3)?.squeeze(2)?; // (C_out, C)
            add_tap(&mut y, &select(&select(&x, 1, &rows)?, 2, &columns)?, &tap.t()?)?;
        }
    }
    with_bias(y.expect("a kernel has a tap"), bias)
}

/// [`super::conv_transpose2d`], differentiable through candle's own ops.
///
/// # Errors
/// As [`super::conv2d`].
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    let sizes = check("conv_transpose2d", &[x], weight, bias, conv, true)?;
    let at = |(out, tap): (usize, usize), stride: usize, dilation: usize, pad: usize| {
        (out + pad).checked_sub(tap * dilation).filter(|at| at % stride == 0).map(|at| at / stride)
    };
    let mut y = None;
    for k in 0..sizes.kernel.0 {
        for l in 0..sizes.kernel.1 {
            let rows: Vec<_> =
                (0..sizes.big.0).map(|i| at((i, k), conv.stride.0, conv.dilation.0, conv.pad_h.0)).collect();
            let columns: Vec<_> =
                (0..sizes.big.1).map(|j| at((j, l), conv.stride.1, conv.dilation.1, conv.pad_w.0)).collect();
            let tap = weight.narrow(2, k, 1)?.narrow(3, l, 1)?.squeeze(3)?.squeeze(2)?; // (C, C_out)
            add_tap(&mut y, &select(&select(x, 1, &rows)?, 2, &columns)?, &tap)?;
        }
    }
    with_bias(y.expect("a kernel has a tap"), bias)
}

/// Rows of `x` along `dim`; zeros where there is none.
fn select(x: &Tensor, dim: usize, at: &[Option<usize>]) -> Result<Tensor> {
    let n = x.dim(dim)?;
    let ids = at.iter().map(|at| at.filter(|&at| at < n).unwrap_or(n) as u32);
    let ids = Tensor::from_iter(ids, x.device())?;
    x.pad_with_zeros(dim, 0, 1)?.contiguous()?.index_select(&ids, dim)
}

fn add_tap(y: &mut Option<Tensor>, x: &Tensor, tap: &Tensor) -> Result<()> {
    let (b, h, w, c) = x.dims4()?;
    let product = x.reshape((b * h * w, c))?.matmul(&tap.contiguous()?)?.reshape((b, h, w, ()))?;
    *y = Some(match y.take() {
        None => product,
        Some(y) => (y + product)?,
    });
    Ok(())
}

fn with_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    bias.map_or_else(|| Ok(y.clone()), |bias| y.broadcast_add(bias))
}
