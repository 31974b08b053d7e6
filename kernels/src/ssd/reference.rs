//! State space duality in plain tensor ops, each sequence as one product with a lower triangular matrix and without any
//! chunks: the specification that every kernel is tested against.

use super::Ssd;
use crate::segments::Segments;
use candle_core::{DType, Result, Tensor};

/// Output `(B, L, H, P)` and last state `(segments, H, P, N)`, differentiable through candle's own ops. Needs memory for
/// H·L² values.
///
/// # Errors
/// As [`Ssd::run`].
pub fn ssd(scan: &Ssd<'_>) -> Result<(Tensor, Tensor)> {
    let dims = scan.check()?;
    let (batch, len, heads, p) = scan.x.dims4()?;
    let segments = scan.segments.cloned().unwrap_or_else(|| Segments::whole(batch, len));
    let delta = step_sizes(scan)?; // (B, L, H)
    let log_decay = delta.broadcast_mul(scan.a)?; // (B, L, H)
    let (into_state, into_output) = scan.weights.unwrap_or((&delta, &delta));
    let (b, c) = (per_head(scan.b, heads)?, per_head(scan.c, heads)?); // (B, L, H, N)
    let skip = scan.d.map(|d| d.reshape((heads, d.elem_count() / heads))).transpose()?; // (H, 1) or (H, P)

    let mut rows: Vec<Vec<Tensor>> = vec![Vec::new(); batch]; // (L', H, P) each, in order
    let mut done = vec![0; batch];
    let mut last = Vec::with_capacity(segments.count());
    for (i, segment) in segments.iter().enumerate() {
        let start_state = match scan.initial_state {
            Some(h0) => h0.get(i)?,
            None => Tensor::zeros((heads, p, dims.n), scan.x.dtype(), scan.x.device())?,
        }; // (H, P, N)
        if segment.is_empty() {
            last.push(start_state.unsqueeze(0)?);
            continue;
        }
        let of = |x: &Tensor| -> Result<Tensor> {
            let x = x.get(segment.row)?.narrow(0, segment.start, segment.len())?;
            let x = if scan.reverse { flip(&x)? } else { x };
            x.transpose(0, 1)?.contiguous()
        };
        let sums = segment_sums(&of(&log_decay)?)?; // (H, L', L'): from s (exclusive) to t
        let x = of(scan.x)?; // (H, L', P)
        let (b, c) = (of(&b)?, of(&c)?); // (H, L', N)
        let (into_state, into_output) = (of(into_state)?, of(into_output)?); // (H, L')
        let own = Tensor::eye(segment.len(), x.dtype(), x.device())?;
        let weights = into_state.unsqueeze(1)?.broadcast_mul(&own.affine(-1.0, 1.0)?)?;
        let weights = (weights + into_output.unsqueeze(1)?.broadcast_mul(&own)?)?; // (H, L', L')
        let mixing = ((c.matmul(&b.t()?)? * sums.exp()?)? * weights)?;
        let from_start = of(&log_decay)?.cumsum(1)?; // (H, L')
        let carried = c.matmul(&start_state.t()?)?; // (H, L', P)
        let mut y = (mixing.matmul(&x)? + carried.broadcast_mul(&from_start.exp()?.unsqueeze(2)?)?)?;
        if let Some(skip) = &skip {
            y = (y + x.broadcast_mul(&skip.unsqueeze(1)?)?)?;
        }
        if let Some(z) = scan.z {
            y = (y * of(z)?.silu()?)?;
        }
        let to_end = sums.narrow(1, segment.len() - 1, 1)?.transpose(1, 2)?; // (H, L', 1)
        let weighted = x.broadcast_mul(&to_end.exp()?)?.broadcast_mul(&into_state.unsqueeze(2)?)?;
        let whole = from_start.narrow(1, segment.len() - 1, 1)?.exp()?.unsqueeze(2)?; // (H, 1, 1)
        let state = (start_state.broadcast_mul(&whole)? + weighted.t()?.matmul(&b)?)?;
        last.push(state.unsqueeze(0)?);
        let y = y.transpose(0, 1)?; // (L', H, P)
        let y = if scan.reverse { flip(&y)? } else { y };
        let padding = segment.start - done[segment.row];
        if padding > 0 {
            rows[segment.row].push(Tensor::zeros((padding, heads, p), y.dtype(), y.device())?);
        }
        rows[segment.row].push(y);
        done[segment.row] = segment.end;
    }
    for (row, done) in rows.iter_mut().zip(done).filter(|(_, done)| *done < len) {
        row.push(Tensor::zeros((len - done, heads, p), scan.x.dtype(), scan.x.device())?);
    }
    let rows = rows.iter().map(|row| Tensor::cat(row, 0)).collect::<Result<Vec<_>>>()?;
    let last = match last.is_empty() {
        true => Tensor::zeros((0, heads, p, dims.n), scan.x.dtype(), scan.x.device())?,
        false => Tensor::cat(&last, 0)?,
    };
    Ok((Tensor::stack(&rows, 0)?, last))
}

/// δ `(B, L, H)`.
fn step_sizes(scan: &Ssd<'_>) -> Result<Tensor> {
    let mut delta = scan.dt.clone();
    if let Some(bias) = scan.dt_bias {
        delta = delta.broadcast_add(bias)?;
    }
    if scan.softplus {
        // max(x, 0) + ln(1 + exp(-|x|))
        delta = (delta.relu()? + ((delta.abs()?.neg()?.exp()? + 1.0)?).log()?)?;
    }
    if let Some((lo, hi)) = scan.dt_limit {
        // candle's own clamp splits the gradient where a limit is met exactly
        for (limit, beyond) in [(lo, delta.lt(lo)?), (hi, delta.gt(hi)?)] {
            if limit.is_finite() {
                let limit = (delta.ones_like()?.detach() * limit)?;
                delta = beyond.where_cond(&limit, &delta)?;
            }
        }
    }
    Ok(delta)
}

/// `Σ_{s<u≤t} x_u` at `[t, s]`, and minus infinity above the diagonal: `(H, L)` → `(H, L, L)`. Masked before it is
/// summed, so that nothing cancels, and before it is exponentiated, so that nothing overflows.
fn segment_sums(x: &Tensor) -> Result<Tensor> {
    let (heads, len) = x.dims2()?;
    let below = Tensor::tril2(len, DType::U8, x.device())?; // t ≥ s
    let strictly = (below.to_dtype(x.dtype())? - Tensor::eye(len, x.dtype(), x.device())?)?;
    let terms = x.unsqueeze(2)?.broadcast_mul(&strictly)?; // (H, u, s)
    let sums = below.to_dtype(x.dtype())?.broadcast_matmul(&terms)?; // Σ_{u≤t}
    let outside = Tensor::full(f64::NEG_INFINITY, sums.shape(), x.device())?.to_dtype(x.dtype())?;
    below.broadcast_as((heads, len, len))?.where_cond(&sums, &outside)
}

/// Repeats a group's coefficient for each of its heads: `(B, L, G, N)` → `(B, L, H, N)`.
fn per_head(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, len, groups, n) = x.dims4()?;
    let x = x.unsqueeze(3)?.broadcast_as((batch, len, groups, heads / groups, n))?;
    x.reshape((batch, len, heads, n))
}

/// The tokens `(L, …)` from the last to the first.
fn flip(x: &Tensor) -> Result<Tensor> {
    let ids = Tensor::from_iter((0..x.dim(0)? as u32).rev(), x.device())?;
    x.contiguous()?.index_select(&ids, 0)
}
