//! Linear maps on the CPU: matrix products by the gemm crate, on all cores when they are worth it.

use super::matvec::{self, Map};
use crate::matrix::{self, Matrix, MatrixMut};
use crate::simd::Real;
use gemm::Parallelism;
use rayon::prelude::*;

/// Multiplications under which one core is faster than waking the others.
const PARALLEL_FROM: usize = 1 << 20;
/// Rows that one task adds up for the bias gradient.
const SUM_ROWS: usize = 256;

/// `out = a·b`, or `out += a·b`, on all cores when that is worth it; `out` is row-major.
fn multiply<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool) {
    let (m, k, n) = (a.rows(), a.columns(), b.columns());
    let parallelism = match m * k * n < PARALLEL_FROM {
        true => Parallelism::None,
        false => Parallelism::Rayon(0),
    };
    matrix::multiply(MatrixMut::new(out, m, n), a, b, add, parallelism);
}

/// The parts of the output, row-major.
pub(super) fn forward<T: Real>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    d_in: usize,
    parts: &[usize],
) -> Vec<Vec<T>> {
    let rows = x.len() / d_in;
    if rows <= matvec::FEW_ROWS {
        return matvec::forward(x, Map { weight, scales: None, bias, d_in }, parts);
    }
    let mut start = 0;
    parts
        .iter()
        .map(|&part| {
            let weight = &weight[start * d_in..(start + part) * d_in];
            let bias = bias.map(|bias| &bias[start..start + part]);
            start += part;
            let mut y = match bias {
                Some(bias) => bias.repeat(rows),
                None => vec![T::default(); rows * part],
            };
            let weight = Matrix::new(weight, part, d_in);
            multiply(&mut y, Matrix::new(x, rows, d_in), weight.t(), bias.is_some());
            y
        })
        .collect()
}

/// Gradients in the shapes of the inputs.
pub(super) struct Gradients<T> {
    pub(super) x: Vec<T>,
    pub(super) weight: Option<Vec<T>>,
    pub(super) bias: Option<Vec<T>>,
}

/// Gradients given those of the parts; `None` stands for zero. `with` says whether those of the weight and of the bias are
/// wanted.
pub(super) fn backward<T: Real>(
    x: &[T],
    weight: &[T],
    (with_weight, with_bias): (bool, bool),
    grads: &[Option<&[T]>],
    d_in: usize,
    parts: &[usize],
) -> Gradients<T> {
    let rows = x.len() / d_in;
    let mut dx = vec![T::default(); x.len()];
    let mut dweight = with_weight.then(|| vec![T::default(); weight.len()]);
    let mut dbias = with_bias.then(|| vec![T::default(); weight.len() / d_in]);
    let (mut start, mut first) = (0, true);
    for (&part, grad) in parts.iter().zip(grads) {
        let channels = start..start + part;
        let values = start * d_in..(start + part) * d_in;
        start += part;
        let Some(grad) = grad else { continue };
        let g = Matrix::new(grad, rows, part);
        multiply(&mut dx, g, Matrix::new(&weight[values.clone()], part, d_in), !first);
        if let Some(dweight) = &mut dweight {
            multiply(&mut dweight[values], g.t(), Matrix::new(x, rows, d_in), false);
        }
        if let Some(dbias) = &mut dbias {
            sum_rows(grad, &mut dbias[channels]);
        }
        first = false;
    }
    Gradients { x: dx, weight: dweight, bias: dbias }
}

/// Sums of the columns of a row-major matrix, in an order that does not depend on the number of threads.
fn sum_rows<T: Real>(matrix: &[T], out: &mut [T]) {
    let columns = out.len();
    let sums: Vec<Vec<T>> = matrix
        .par_chunks(SUM_ROWS * columns)
        .map(|rows| {
            let mut sum = vec![T::default(); columns];
            for row in rows.chunks_exact(columns) {
                sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
            }
            sum
        })
        .collect();
    for part in &sums {
        out.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
    }
}
