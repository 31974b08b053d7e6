//! The k rows of a table with the largest products with each query, without all products ever existing at once.
//!
//! Tiles of queries meet tiles of the table in a matrix product; of each tile only what beats the k-th best so far is
//! looked at again. Ties go to the lower index. The result of a query does not depend on the queries beside it, nor on
//! the number of threads.

use crate::fused::{Elements, expect_shape, same_dtype_and_device_or_gpu};
use crate::gpu::Gpu;
use crate::matrix::{Matrix, multiply_on_one_core as multiply};
use crate::simd::Real;
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

pub mod reference;

/// A row of the table and its product with the query.
pub type Hit = (u32, f64);

/// Queries of a tile.
const QUERIES: usize = 32;
/// Values of a tile of the table.
const VALUES: usize = 1 << 18;
/// Products that a GPU hands over at a time.
const PRODUCTS: usize = 1 << 24;
/// Products looked at together: most blocks hold none that counts, and are passed over by their maximum.
const BLOCK: usize = 32;

/// For each row of `queries` `(n, d)` the `k` rows of `table` `(V, d)` with the largest products, best first; fewer where
/// fewer are left. Rows named in `skip[i]` are passed over for query `i`; `skip` is empty or has one list for each query.
/// A product that is NaN is never chosen. No gradient.
///
/// ```
/// use candle_core::{Device, Tensor};
/// # fn main() -> candle_core::Result<()> {
/// let queries = Tensor::new(&[[1f32, 0.]], &Device::Cpu)?;
/// let table = Tensor::new(&[[5f32, 0.], [7., 1.], [6., 0.]], &Device::Cpu)?;
/// assert_eq!(mamba_kernels::top_k(&queries, &table, 2, &[])?, [[(1, 7.0), (2, 6.0)]]);
/// assert_eq!(mamba_kernels::top_k(&queries, &table, 2, &[vec![1]])?, [[(2, 6.0), (0, 5.0)]]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Shapes, dtypes or devices that do not fit.
pub fn top_k(queries: &Tensor, table: &Tensor, k: usize, skip: &[Vec<u32>]) -> Result<Vec<Vec<Hit>>> {
    check(queries, table, skip)?;
    let (queries, table) = (queries.detach().contiguous()?, table.detach().contiguous()?);
    if Gpu::of(Some(&queries)).is_some() {
        return search_products(&queries, &table, k, skip);
    }
    let d = queries.dim(1)?;
    let (q, t) = (Elements::new(&queries), Elements::new(&table));
    Ok(match queries.dtype() {
        DType::F64 => search::<f64>(q.slice()?, t.slice()?, d, k, skip),
        _ => search::<f32>(q.slice()?, t.slice()?, d, k, skip),
    })
}

fn check(queries: &Tensor, table: &Tensor, skip: &[Vec<u32>]) -> Result<()> {
    const NAME: &str = "top_k";
    same_dtype_and_device_or_gpu(NAME, &[("queries", Some(queries)), ("table", Some(table))], &[])?;
    let (n, d) = queries.dims2()?;
    expect_shape(NAME, "table", Some(table), &[table.dim(0)?, d])?;
    if d == 0 {
        bail!("{NAME}: queries have no channels, expected at least one");
    }
    if !skip.is_empty() && skip.len() != n {
        bail!("{NAME}: {} lists of rows to skip, expected one for each of {n} queries", skip.len());
    }
    Ok(())
}

/// The products from a GPU, in f32, a tile of queries at a time; the search among them on the CPU.
fn search_products(queries: &Tensor, table: &Tensor, k: usize, skip: &[Vec<u32>]) -> Result<Vec<Vec<Hit>>> {
    let (n, rows) = (queries.dim(0)?, table.dim(0)?);
    let tile = (PRODUCTS / rows.max(1)).clamp(1, n.max(1));
    let mut all = Vec::with_capacity(n);
    for first in (0..n).step_by(tile) {
        let part = queries.narrow(0, first, tile.min(n - first))?;
        let mut products = part.matmul(&table.t()?)?.to_dtype(DType::F32)?.to_vec2::<f32>()?; // (tile, V)
        let hits = products.par_iter_mut().enumerate().map(|(i, products)| {
            for &row in skip.get(first + i).into_iter().flatten() {
                if let Some(product) = products.get_mut(row as usize) {
                    *product = f32::NAN;
                }
            }
            let mut best = Best { k, hits: Vec::with_capacity(k + 1) };
            best.take(0, products);
            best.hits.into_iter().map(|(row, x)| (row, f64::from(x))).collect::<Vec<Hit>>()
        });
        all.extend(hits.collect::<Vec<_>>());
    }
    Ok(all)
}

fn search<T: Real>(queries: &[T], table: &[T], d: usize, k: usize, skip: &[Vec<u32>]) -> Vec<Vec<Hit>> {
    let n = queries.len() / d;
    let mut best: Vec<Best<T>> = (0..n).map(|_| Best { k, hits: Vec::with_capacity(k + 1) }).collect();
    best.par_chunks_mut(QUERIES).enumerate().for_each(|(i, best)| {
        let first = i * QUERIES;
        let skip = if skip.is_empty() { &[] } else { &skip[first..first + best.len()] };
        search_tile(&queries[first * d..(first + best.len()) * d], table, d, skip, best);
    });
    best.into_iter().map(|best| best.hits.into_iter().map(|(i, x)| (i, x.to_f64())).collect()).collect()
}

/// All of the table for one tile of queries.
fn search_tile<T: Real>(queries: &[T], table: &[T], d: usize, skip: &[Vec<u32>], best: &mut [Best<T>]) {
    let rows = table.len() / d;
    let tile = (VALUES / d).clamp(256, 1 << 13).min(rows.max(1));
    // Always whole tiles of queries, so that no product is computed by another code path.
    let mut padded = queries.to_vec();
    padded.resize(QUERIES * d, T::default());
    let mut products = vec![T::default(); QUERIES * tile];
    for start in (0..rows).step_by(tile) {
        let size = tile.min(rows - start);
        let part = Matrix::new(&table[start * d..(start + size) * d], size, d);
        multiply(&mut products[..QUERIES * size], Matrix::new(&padded, QUERIES, d), part.t(), false);
        for (i, (products, best)) in products.chunks_exact_mut(size).zip(best.iter_mut()).enumerate() {
            for &row in skip.get(i).into_iter().flatten() {
                if let Some(product) = (row as usize).checked_sub(start).and_then(|row| products.get_mut(row))
                {
                    *product = T::from_f64(f64::NAN);
                }
            }
            best.take(start as u32, products);
        }
    }
}

/// The best hits so far, best first.
struct Best<T> {
    k: usize,
    hits: Vec<(u32, T)>,
}

impl<T: Real> Best<T> {
    /// Takes in the products of the rows from `first` on, which must come after all before.
    fn take(&mut self, first: u32, products: &[T]) {
        if self.k == 0 {
            return;
        }
        for (i, block) in products.chunks(BLOCK).enumerate() {
            if let Some(limit) = self.limit()
                && !block.iter().fold(false, |any, &x| any | (x > limit))
            {
                continue;
            }
            for (j, &x) in block.iter().enumerate() {
                if x.partial_cmp(&x).is_some() && self.limit().is_none_or(|limit| x > limit) {
                    self.insert(first + (i * BLOCK + j) as u32, x);
                }
            }
        }
    }

    /// What a product must exceed, once there are k.
    fn limit(&self) -> Option<T> {
        (self.hits.len() >= self.k).then(|| self.hits[self.hits.len() - 1].1)
    }

    fn insert(&mut self, row: u32, x: T) {
        let place = self.hits.partition_point(|&(_, y)| y >= x);
        self.hits.insert(place, (row, x));
        self.hits.truncate(self.k);
    }
}
