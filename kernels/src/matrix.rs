//! Products of matrices that lie in slices with any strides, by the gemm crate.
#![allow(unsafe_code)] // gemm takes pointers

use crate::simd::Real;
use gemm::{Parallelism, gemm};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A matrix inside a slice: element `(i, j)` lies at `first + i · row_stride + j · column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    shape: Shape,
}

/// A matrix to write to.
pub(crate) struct MatrixMut<'a, T> {
    data: *mut T,
    shape: Shape,
    /// Whether its elements hold numbers, to which a product may be added.
    written: bool,
    slice: PhantomData<&'a mut [T]>,
}

#[derive(Clone, Copy)]
struct Shape {
    first: usize,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl Shape {
    fn new(first: usize, rows: usize, columns: usize, row_stride: isize) -> Self {
        Self { first, rows, columns, row_stride, column_stride: 1 }
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Panics unless every element lies in a slice of `len`.
    fn check(&self, len: usize) {
        if self.rows == 0 || self.columns == 0 {
            return;
        }
        let first = self.first as isize;
        let down = (self.rows - 1) as isize * self.row_stride;
        let right = (self.columns - 1) as isize * self.column_stride;
        let (low, high) = (first + down.min(0) + right.min(0), first + down.max(0) + right.max(0));
        assert!(
            low >= 0 && high < len as isize,
            "a matrix of {} × {} reaches outside its slice",
            self.rows,
            self.columns
        );
    }
}

impl<'a, T> Matrix<'a, T> {
    /// `rows × columns`, row-major and without gaps.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, 0, (rows, columns as isize), columns)
    }

    /// Rows of adjacent elements, `row_stride` apart; the first begins at `first`.
    pub(crate) fn strided(
        data: &'a [T],
        first: usize,
        (rows, row_stride): (usize, isize),
        columns: usize,
    ) -> Self {
        let shape = Shape::new(first, rows, columns, row_stride);
        shape.check(data.len());
        Self { data, shape }
    }

    pub(crate) fn rows(&self) -> usize {
        self.shape.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.shape.columns
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { shape: self.shape.transposed(), ..self }
    }
}

impl<'a, T> MatrixMut<'a, T> {
    /// `rows × columns`, row-major and without gaps.
    pub(crate) fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, 0, (rows, columns as isize), columns)
    }

    /// Rows of adjacent elements, `row_stride` apart; the first begins at `first`.
    pub(crate) fn strided(
        data: &'a mut [T],
        first: usize,
        (rows, row_stride): (usize, isize),
        columns: usize,
    ) -> Self {
        let shape = Shape::new(first, rows, columns, row_stride);
        shape.check(data.len());
        assert!(rows < 2 || row_stride.unsigned_abs() >= columns, "rows of the output overlap");
        Self { data: data.as_mut_ptr(), shape, written: true, slice: PhantomData }
    }

    /// [`MatrixMut::new`] whose elements hold nothing yet; a product fills them all.
    pub(crate) fn unwritten(data: &'a mut [MaybeUninit<T>], rows: usize, columns: usize) -> Self {
        let shape = Shape::new(0, rows, columns, columns as isize);
        shape.check(data.len());
        Self { data: data.as_mut_ptr().cast(), shape, written: false, slice: PhantomData }
    }
}

/// `out = a·b`, or `out += a·b`, on this thread alone or on all.
pub(crate) fn multiply<T: Real>(
    out: MatrixMut<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: bool,
    parallelism: Parallelism,
) {
    let (to, a_shape, b_shape) = (out.shape, a.shape, b.shape);
    let (m, k, n) = (a_shape.rows, a_shape.columns, b_shape.columns);
    assert!(b_shape.rows == k && (to.rows, to.columns) == (m, n), "matrix shapes do not fit");
    assert!(out.written || (!add && k > 0), "nothing to add to");
    if m == 0 || n == 0 {
        return;
    }
    let one = T::from_f64(1.0);
    // SAFETY: every element of the three matrices lies in its slice (checked when they were made, and `first` is then
    // inside), elements of `out` are distinct, and `out` is borrowed alone; unless `add`, they are not read.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.data.add(to.first),
            to.column_stride,
            to.row_stride,
            add,
            a.data.as_ptr().wrapping_add(a_shape.first),
            a_shape.column_stride,
            a_shape.row_stride,
            b.data.as_ptr().wrapping_add(b_shape.first),
            b_shape.column_stride,
            b_shape.row_stride,
            one,
            one,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `out = a·b`, or `out += a·b`, row-major at the front of `out`, on this core: rayon runs such tasks side by side.
pub(crate) fn multiply_on_one_core<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool) {
    let out = MatrixMut::new(out, a.rows(), b.columns());
    multiply(out, a, b, add, Parallelism::None);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aᵀ·B for A and B read from their last rows to their first, into every second column block of a wider matrix.
    #[test]
    fn strides_may_be_negative_and_outputs_may_have_gaps() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (70, 33, 65), (16, 1, 16), (1, 40, 90)] {
            let a: Vec<f64> = (0..k * m).map(|i| (i % 13) as f64 - 6.0).collect();
            let b: Vec<f64> = (0..k * n).map(|i| (i % 7) as f64 - 3.0).collect();
            let mut out = vec![1.0; m * (n + 3)];
            let last = |columns: usize| (k - 1) * columns;
            multiply(
                MatrixMut::strided(&mut out, 2, (m, (n + 3) as isize), n),
                Matrix::strided(&a, last(m), (k, -(m as isize)), m).t(),
                Matrix::strided(&b, last(n), (k, -(n as isize)), n),
                true,
                Parallelism::None,
            );
            for i in 0..m {
                for j in 0..n + 3 {
                    let inside = (2..n + 2).contains(&j);
                    let sum: f64 =
                        (0..k).map(|l| if inside { a[l * m + i] * b[l * n + j - 2] } else { 0.0 }).sum();
                    assert_eq!(out[i * (n + 3) + j], 1.0 + sum, "{m} × {k} × {n}, at {i}, {j}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "reaches outside")]
    fn a_matrix_must_lie_in_its_slice() {
        Matrix::strided(&[0f32; 10], 2, (3, -4), 2);
    }
}
