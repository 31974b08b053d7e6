//! Linear maps on the CPU: matrix products by the gemm crate, on all cores when they are worth it.
#![allow(unsafe_code)] // a product is not cleared before it is computed

use super::matvec::{self, Map};
use crate::matrix::{self, Matrix, MatrixMut};
use crate::shared::{unwritten, written};
use crate::simd::Real;
use gemm::Parallelism;
use rayon::prelude::*;

/// Multiplications under which one core is faster than waking the others.
const PARALLEL_FROM: usize = 1 << 20;
/// Rows that one task adds up for the bias gradient.
const SUM_ROWS: usize = 256;

/// `out = a·b`, or `out += a·b`, on all cores when that is worth it.
fn multiply<T: Real>(out: MatrixMut<'_, T>, a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool) {
    let (m, k, n) = (a.rows(), a.columns(), b.columns());
    let parallelism = match m * k * n < PARALLEL_FROM {
        true => Parallelism::None,
        false => Parallelism::Rayon(0),
    };
    matrix::multiply(out, a, b, add, parallelism);
}

/// `a·b`, row-major.
fn product<T: Real>(a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    let mut out = unwritten(a.rows() * b.columns());
    multiply(MatrixMut::unwritten(&mut out, a.rows(), b.columns()), a, b, false);
    // SAFETY: the product has filled it.
    unsafe { written(out) }
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
            let (x, weight) = (Matrix::new(x, rows, d_in), Matrix::new(weight, part, d_in).t());
            match bias {
                Some(bias) => {
                    let mut y = bias.repeat(rows);
                    multiply(MatrixMut::new(&mut y, rows, part), x, weight, true);
                    y
                }
                None => product(x, weight),
            }
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
    let mut dx: Option<Vec<T>> = None;
    let mut dweight = with_weight.then(|| vec![T::default(); weight.len()]);
    let mut dbias = with_bias.then(|| vec![T::default(); weight.len() / d_in]);
    let mut start = 0;
    for (&part, grad) in parts.iter().zip(grads) {
        let channels = start..start + part;
        let values = start * d_in..(start + part) * d_in;
        start += part;
        let Some(grad) = grad else { continue };
        let (g, weight) = (Matrix::new(grad, rows, part), Matrix::new(&weight[values.clone()], part, d_in));
        match &mut dx {
            Some(dx) => multiply(MatrixMut::new(dx, rows, d_in), g, weight, true),
            None => dx = Some(product(g, weight)),
        }
        if let Some(dweight) = &mut dweight {
            let to = MatrixMut::new(&mut dweight[values], part, d_in);
            multiply(to, g.t(), Matrix::new(x, rows, d_in), false);
        }
        if let Some(dbias) = &mut dbias {
            sum_rows(grad, &mut dbias[channels]);
        }
    }
    let dx = dx.unwrap_or_else(|| vec![T::default(); x.len()]);
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
