//! The selective scan in plain tensor ops, one token at a time: the specification that every kernel is tested against.

use super::SelectiveScan;
use crate::segments::Segments;
use candle_core::{D, Result, Tensor};

/// Output `(B, L, D)` and last state `(segments, D, N)`, differentiable through candle's own ops. Slow and obvious.
///
/// # Errors
/// As [`SelectiveScan::run`].
pub fn selective_scan(scan: &SelectiveScan<'_>) -> Result<(Tensor, Tensor)> {
    let dims = scan.check()?;
    let (batch, len, d) = scan.u.dims3()?;
    let segments = scan.segments.cloned().unwrap_or_else(|| Segments::whole(batch, len));
    let mut delta = scan.delta.clone();
    if let Some(bias) = scan.delta_bias {
        delta = delta.broadcast_add(bias)?;
    }
    if scan.softplus {
        // max(x, 0) + ln(1 + exp(-|x|))
        delta = (delta.relu()? + ((delta.abs()?.neg()?.exp()? + 1.0)?).log()?)?;
    }
    let x = (&delta * scan.u)?; // (B, L, D)
    let b = per_channel(scan.b, dims.b_groups, batch, len, d)?; // (B, L, D, N)
    let c = per_channel(scan.c, dims.c_groups, batch, len, d)?; // (B, L, D, N)

    let zero_row = scan.u.narrow(0, 0, 1)?.narrow(1, 0, 1)?.zeros_like()?;
    let mut rows: Vec<Vec<Tensor>> = vec![vec![zero_row.clone(); len]; batch]; // (1, 1, D) each
    let mut last = Vec::with_capacity(segments.count());
    for (i, segment) in segments.iter().enumerate() {
        let mut h = match scan.initial_state {
            Some(h0) => h0.get(i)?,
            None => Tensor::zeros((d, dims.n), scan.u.dtype(), scan.u.device())?,
        }; // (D, N)
        let forward = segment.start..segment.end;
        let order: Vec<usize> = if scan.reverse { forward.rev().collect() } else { forward.collect() };
        for t in order {
            let at = |x: &Tensor| x.get(segment.row)?.get(t);
            let decay = at(&delta)?.unsqueeze(1)?.broadcast_mul(scan.a)?.exp()?; // (D, N)
            h = ((decay * &h)? + at(&x)?.unsqueeze(1)?.broadcast_mul(&at(&b)?)?)?;
            let mut y = (&h * at(&c)?)?.sum(D::Minus1)?; // (D)
            if let Some(skip) = scan.d {
                y = (y + (skip * at(scan.u)?)?)?;
            }
            if let Some(z) = scan.z {
                y = (y * at(z)?.silu()?)?;
            }
            rows[segment.row][t] = y.reshape((1, 1, d))?;
        }
        last.push(h.unsqueeze(0)?);
    }
    let rows = rows.iter().map(|row| Tensor::cat(row, 1)).collect::<Result<Vec<_>>>()?;
    let last = if last.is_empty() {
        Tensor::zeros((0, d, dims.n), scan.u.dtype(), scan.u.device())?
    } else {
        Tensor::cat(&last, 0)?
    };
    Ok((Tensor::cat(&rows, 0)?, last))
}

/// Repeats a coefficient over the channels of its group, and over batch and tokens if it is constant.
fn per_channel(x: &Tensor, groups: usize, batch: usize, len: usize, d: usize) -> Result<Tensor> {
    let n = x.dim(D::Minus1)?;
    if groups == 0 {
        return x.broadcast_as((batch, len, d, n));
    }
    let x = x.reshape((batch, len, groups, 1, n))?;
    x.broadcast_as((batch, len, groups, d / groups, n))?.reshape((batch, len, d, n))
}
