//! The order in which the tokens of a picture, or of any grid, enter a scan: permutations with exact inverses.
//!
//! | order | path | from |
//! |---|---|---|
//! | [`ScanOrder::sweep`] | row by row, each from left to right | Vim, arXiv 2401.09417; with its reverse: bidirectional |
//! | [`ScanOrder::columns`] | column by column, each from top to bottom | VMamba, arXiv 2401.10166 |
//! | [`ScanOrder::continuous`] | row by row, every second one from right to left: each token is beside the one before | PlainMamba, arXiv 2403.17695 |
//! | [`ScanOrder::local`] | window by window, each row by row | LocalMamba, arXiv 2403.09338 |
//! | [`ScanOrder::cross`] | rows and columns, both ways | VMamba's cross-scan |
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use mamba_core::scan_order::ScanOrder;
//! let order = ScanOrder::continuous(2, 3)?;
//! assert_eq!(order.indices(), [0, 1, 2, 5, 4, 3]);
//! let x = Tensor::arange(0f32, 6., &Device::Cpu)?.reshape((1, 6, 1))?;
//! let scanned = order.apply(&x)?;
//! assert_eq!(order.restore(&scanned)?.flatten_all()?.to_vec1::<f32>()?, [0., 1., 2., 3., 4., 5.]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Result, Tensor, bail};

/// An order of `len` tokens. Tokens of a grid are numbered row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanOrder {
    indices: Vec<u32>,
}

impl ScanOrder {
    /// An order of one's own: `indices[i]` is the token that comes `i`-th.
    ///
    /// # Errors
    /// Anything but each of `0..len` once.
    pub fn new(indices: Vec<u32>) -> Result<Self> {
        let mut seen = vec![false; indices.len()];
        for &i in &indices {
            match seen.get_mut(i as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => bail!("scan order: token {i} comes twice"),
                None => bail!("scan order: token {i} is outside 0..{}", indices.len()),
            }
        }
        Ok(Self { indices })
    }

    /// Tokens `height × width` in the order in which `path` lists their rows and columns.
    fn of_grid(height: usize, width: usize, path: impl IntoIterator<Item = (usize, usize)>) -> Result<Self> {
        match height.checked_mul(width) {
            Some(1..=0xffff_ffff) => {
                Self::new(path.into_iter().map(|(r, c)| (r * width + c) as u32).collect())
            }
            _ => bail!("scan order: a grid of {height} × {width} tokens, expected 1..=2^32-1 of them"),
        }
    }

    /// Row by row, each from left to right: as the tokens are numbered.
    pub fn sweep(height: usize, width: usize) -> Result<Self> {
        Self::of_grid(height, width, (0..height).flat_map(|r| (0..width).map(move |c| (r, c))))
    }

    /// Column by column, each from top to bottom.
    pub fn columns(height: usize, width: usize) -> Result<Self> {
        Self::of_grid(height, width, (0..width).flat_map(|c| (0..height).map(move |r| (r, c))))
    }

    /// Row by row, every second one from right to left.
    pub fn continuous(height: usize, width: usize) -> Result<Self> {
        let column = move |r: usize, c: usize| if r.is_multiple_of(2) { c } else { width - 1 - c };
        Self::of_grid(height, width, (0..height).flat_map(|r| (0..width).map(move |c| (r, column(r, c)))))
    }

    /// Windows of at most `window.0 × window.1` tokens one after the other, each row by row; those at the right and the
    /// lower edge hold what is left.
    pub fn local(height: usize, width: usize, window: (usize, usize)) -> Result<Self> {
        let (rows, columns) = window;
        if rows == 0 || columns == 0 {
            bail!("scan order: a window of {rows} × {columns} tokens, expected at least 1 × 1");
        }
        let starts =
            (0..height).step_by(rows).flat_map(move |r| (0..width).step_by(columns).map(move |c| (r, c)));
        let inside = move |(top, left): (usize, usize)| {
            let (bottom, right) = ((top + rows).min(height), (left + columns).min(width));
            (top..bottom).flat_map(move |r| (left..right).map(move |c| (r, c)))
        };
        Self::of_grid(height, width, starts.flat_map(inside))
    }

    /// The four directions of VMamba's cross-scan: rows, columns, rows backwards, columns backwards.
    pub fn cross(height: usize, width: usize) -> Result<[Self; 4]> {
        let (rows, columns) = (Self::sweep(height, width)?, Self::columns(height, width)?);
        let (rows_back, columns_back) = (rows.reversed(), columns.reversed());
        Ok([rows, columns, rows_back, columns_back])
    }

    /// The same path from its end.
    pub fn reversed(&self) -> Self {
        Self { indices: self.indices.iter().rev().copied().collect() }
    }

    /// The order that undoes this one.
    pub fn inverse(&self) -> Self {
        let mut indices = vec![0; self.indices.len()];
        for (at, &token) in self.indices.iter().enumerate() {
            indices[token as usize] = at as u32;
        }
        Self { indices }
    }

    /// The tokens as they come.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Tokens `(B, L, D)` in this order; differentiable.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (_, len, _) = x.dims3()?;
        if len != self.len() {
            bail!("scan order of {} tokens for {len}", self.len());
        }
        x.contiguous()?.index_select(&Tensor::from_slice(&self.indices, len, x.device())?, 1)
    }

    /// Undoes [`ScanOrder::apply`].
    pub fn restore(&self, x: &Tensor) -> Result<Tensor> {
        self.inverse().apply(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    #[test]
    fn paths_of_a_small_grid() {
        let order = |order: Result<ScanOrder>| order.unwrap().indices;
        assert_eq!(order(ScanOrder::columns(2, 3)), [0, 3, 1, 4, 2, 5]);
        assert_eq!(order(ScanOrder::continuous(3, 2)), [0, 1, 3, 2, 4, 5]);
        assert_eq!(order(ScanOrder::local(3, 3, (2, 2))), [0, 1, 3, 4, 2, 5, 6, 7, 8]);
        assert_eq!(order(ScanOrder::sweep(2, 2).map(|o| o.reversed())), [3, 2, 1, 0]);
    }

    #[test]
    fn what_is_no_order_is_refused() {
        let message = |order: Result<ScanOrder>| order.unwrap_err().to_string();
        assert!(message(ScanOrder::new(vec![0, 0])).contains("token 0 comes twice"));
        assert!(message(ScanOrder::new(vec![0, 2])).contains("token 2 is outside 0..2"));
        assert!(message(ScanOrder::sweep(0, 3)).contains("0 × 3"));
        assert!(message(ScanOrder::local(2, 2, (0, 1))).contains("0 × 1"));
        let x = Tensor::zeros((1, 3, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(
            ScanOrder::sweep(2, 2).unwrap().apply(&x).unwrap_err().to_string().contains("of 4 tokens for 3")
        );
    }

    #[test]
    fn the_gradient_takes_the_way_back() -> Result<()> {
        let order = ScanOrder::local(3, 4, (2, 3))?;
        let x = Var::from_tensor(&Tensor::arange(0f64, 24., &Device::Cpu)?.reshape((1, 12, 2))?)?;
        let weights = Tensor::arange(5f64, 29., &Device::Cpu)?.reshape((1, 12, 2))?;
        let grads = (order.apply(&x)? * &weights)?.sum_all()?.backward()?;
        let got = grads.get(&x).unwrap().flatten_all()?.to_vec1::<f64>()?;
        assert_eq!(got, order.restore(&weights)?.flatten_all()?.to_vec1::<f64>()?);
        Ok(())
    }

    proptest! {
        #[test]
        fn every_path_visits_each_token_once_and_comes_back(
            h in 1usize..9, w in 1usize..9, rows in 1usize..5, columns in 1usize..5
        ) {
            let mut orders = ScanOrder::cross(h, w).unwrap().to_vec();
            orders.push(ScanOrder::continuous(h, w).unwrap());
            orders.push(ScanOrder::local(h, w, (rows, columns)).unwrap());
            for order in orders {
                let mut sorted = order.indices.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..(h * w) as u32).collect::<Vec<_>>());
                prop_assert_eq!(order.inverse().inverse(), order.clone());
                let there: Vec<u32> = order.indices.iter().map(|&i| order.inverse().indices[i as usize]).collect();
                prop_assert_eq!(there, (0..(h * w) as u32).collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_continuous_path_steps_to_neighbours(h in 1usize..9, w in 1usize..9) {
            let order = ScanOrder::continuous(h, w).unwrap();
            for pair in order.indices.windows(2) {
                let [a, b] = [pair[0] as usize, pair[1] as usize];
                prop_assert_eq!((a / w).abs_diff(b / w) + (a % w).abs_diff(b % w), 1);
            }
        }
    }
}
