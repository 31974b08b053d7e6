//! The causal convolution in plain tensor ops, one tap at a time: the specification of the kernel.

use super::CausalConv1d;
use candle_core::{Result, Tensor};

/// Output `(B, L, D)` and last state `(segments, K-1, D)`, differentiable through candle's own ops.
///
/// # Errors
/// As [`CausalConv1d::run`].
pub fn causal_conv1d(conv: &CausalConv1d<'_>) -> Result<(Tensor, Tensor)> {
    let (d, width) = conv.check()?;
    let (batch, len, _) = conv.x.dims3()?;
    let segments = conv.resolved_segments();
    let zero_row = Tensor::zeros((1, 1, d), conv.x.dtype(), conv.x.device())?;
    let mut rows = vec![vec![zero_row; len]; batch];
    let mut last = Vec::with_capacity(segments.count());
    for (i, segment) in segments.iter().enumerate() {
        let before = match conv.initial_state {
            Some(state) => state.get(i)?,
            None => Tensor::zeros((width - 1, d), conv.x.dtype(), conv.x.device())?,
        }; // (K-1, D)
        let mut order: Vec<usize> = (segment.start..segment.end).collect();
        if conv.reverse {
            order.reverse();
        }
        let mut tokens = (0..width - 1).map(|k| before.get(k)).collect::<Result<Vec<_>>>()?;
        for &t in &order {
            tokens.push(conv.x.get(segment.row)?.get(t)?);
        }
        for (step, &t) in order.iter().enumerate() {
            let mut y = match conv.bias {
                Some(bias) => bias.clone(),
                None => Tensor::zeros(d, conv.x.dtype(), conv.x.device())?,
            };
            for k in 0..width {
                let weight = conv.weight.narrow(1, k, 1)?.squeeze(1)?;
                y = (y + (weight * &tokens[step + k])?)?;
            }
            let y = if conv.silu { y.silu()? } else { y };
            rows[segment.row][t] = y.reshape((1, 1, d))?;
        }
        if width > 1 {
            last.push(Tensor::stack(&tokens[tokens.len() - (width - 1)..], 0)?.unsqueeze(0)?);
        }
    }
    let rows = rows.iter().map(|row| Tensor::cat(row, 1)).collect::<Result<Vec<_>>>()?;
    let last = if last.is_empty() {
        Tensor::zeros((segments.count(), width - 1, d), conv.x.dtype(), conv.x.device())?
    } else {
        Tensor::cat(&last, 0)?
    };
    Ok((Tensor::cat(&rows, 0)?, last))
}
