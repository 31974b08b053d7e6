//! Matrix products on one core, for tasks that rayon runs side by side.
#![allow(unsafe_code)] // gemm takes pointers

use crate::simd::Real;
use gemm::{Parallelism, gemm};

/// A row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl<'a, T> Matrix<'a, T> {
    /// `rows × columns` from the front of `data`.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert!(data.len() >= rows * columns, "a matrix of {rows} × {columns}");
        Self { data, rows, columns, row_stride: columns as isize, column_stride: 1 }
    }

    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = a·b`, or `out += a·b`, row-major at the front of `out`.
pub(crate) fn multiply<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && out.len() >= m * n, "matrix shapes do not fit");
    let one = T::from_f64(1.0);
    // SAFETY: the slices hold all elements that the sizes and strides reach, and `out` overlaps neither input.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.column_stride,
            a.row_stride,
            b.data.as_ptr(),
            b.column_stride,
            b.row_stride,
            one,
            one,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
