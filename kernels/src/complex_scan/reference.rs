//! The scan with complex states in plain tensor ops, one token at a time: the specification of the kernel.

use super::ComplexScan;
use crate::segments::Segments;
use candle_core::{D, Result, Tensor};

/// Output `(B, L, D)` and last state `(segments, D, 2·N)`, differentiable through candle's own ops. Slow and obvious.
///
/// # Errors
/// As [`ComplexScan::run`].
pub fn complex_scan(scan: &ComplexScan<'_>) -> Result<(Tensor, Tensor)> {
    let n = scan.check()?.n;
    let (batch, len, d) = scan.u.dims3()?;
    let segments = scan.segments.cloned().unwrap_or_else(|| Segments::whole(batch, len));
    let delta = scan.delta.broadcast_as((batch, len, d))?;
    let x = (&delta * scan.u)?; // (B, L, D)
    let per_channel = |pairs: &Tensor| match pairs.rank() {
        2 => pairs.broadcast_as((batch, len, d, 2 * n)),
        _ => pairs.unsqueeze(2)?.broadcast_as((batch, len, d, 2 * n)),
    };
    let (b, c) = (per_channel(scan.b)?, per_channel(scan.c)?);

    let zero_row = scan.u.narrow(0, 0, 1)?.narrow(1, 0, 1)?.zeros_like()?;
    let mut rows: Vec<Vec<Tensor>> = vec![vec![zero_row.clone(); len]; batch]; // (1, 1, D) each
    let mut last = Vec::with_capacity(segments.count());
    for (i, segment) in segments.iter().enumerate() {
        let start = match scan.initial_state {
            Some(h0) => h0.get(i)?,
            None => Tensor::zeros((d, 2 * n), scan.u.dtype(), scan.u.device())?,
        };
        let (mut re, mut im) = parts(&start, n)?; // (D, N)
        let forward = segment.start..segment.end;
        let order: Vec<usize> = if scan.reverse { forward.rev().collect() } else { forward.collect() };
        for t in order {
            let at = |x: &Tensor| x.get(segment.row)?.get(t);
            let (dt, x) = (at(&delta)?.unsqueeze(1)?, at(&x)?.unsqueeze(1)?); // (D, 1)
            let size = dt.broadcast_mul(scan.a_real)?.exp()?;
            let angle = dt.broadcast_mul(scan.a_imag)?;
            let (cos, sin) = ((&size * angle.cos()?)?, (&size * angle.sin()?)?);
            let ((b_re, b_im), (c_re, c_im)) = (parts(&at(&b)?, n)?, parts(&at(&c)?, n)?);
            let turned_re = ((&cos * &re)? - (&sin * &im)?)?;
            let turned_im = ((&sin * &re)? + (&cos * &im)?)?;
            re = (turned_re + x.broadcast_mul(&b_re)?)?;
            im = (turned_im + x.broadcast_mul(&b_im)?)?;
            let y = (((c_re * &re)? - (c_im * &im)?)?.sum(D::Minus1)? * 2.0)?; // (D)
            rows[segment.row][t] = y.reshape((1, 1, d))?;
        }
        last.push(Tensor::stack(&[re, im], 2)?.reshape((1, d, 2 * n))?);
    }
    let rows = rows.iter().map(|row| Tensor::cat(row, 1)).collect::<Result<Vec<_>>>()?;
    let last = if last.is_empty() {
        Tensor::zeros((0, d, 2 * n), scan.u.dtype(), scan.u.device())?
    } else {
        Tensor::cat(&last, 0)?
    };
    Ok((Tensor::cat(&rows, 0)?, last))
}

/// Real and imaginary parts `(D, N)` of pairs `(D, 2·N)`.
fn parts(pairs: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
    let pairs = pairs.reshape(((), n, 2))?;
    Ok((pairs.narrow(2, 0, 1)?.squeeze(2)?, pairs.narrow(2, 1, 1)?.squeeze(2)?))
}
