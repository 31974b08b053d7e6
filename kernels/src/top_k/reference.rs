//! The best rows by a full sort: the specification of the kernel.

use super::Hit;
use candle_core::{DType, Result, Tensor};

/// All products, sorted.
///
/// # Errors
/// As [`super::top_k`].
pub fn top_k(queries: &Tensor, table: &Tensor, k: usize, skip: &[Vec<u32>]) -> Result<Vec<Vec<Hit>>> {
    super::check(queries, table, skip)?;
    let products = queries.matmul(&table.t()?)?.to_dtype(DType::F64)?.to_vec2::<f64>()?; // (n, V)
    let best = products.into_iter().enumerate().map(|(i, products)| {
        let skipped = |row: u32| skip.get(i).is_some_and(|skip| skip.contains(&row));
        let rows = (0u32..).zip(products);
        let mut hits: Vec<Hit> = rows.filter(|&(row, x)| !skipped(row) && !x.is_nan()).collect();
        hits.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        hits.truncate(k);
        hits
    });
    Ok(best.collect())
}
