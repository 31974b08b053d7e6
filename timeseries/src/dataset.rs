//! Windows over standardised series, and batches of them.

use crate::calendar::{N_MARKS, marks};
use crate::error::{Error, Result};
use crate::models::Input;
use crate::scale::Scaler;
use crate::split::{Part, Parts, Split};
use crate::table::Table;
use candle_core::{Device, Tensor};

/// Series that are standardised by their training parts, pooled, and split.
#[derive(Debug)]
pub struct Dataset {
    columns: Vec<String>,
    series: Vec<Prepared>,
    scaler: Scaler,
    seq_len: usize,
    pred_len: usize,
}

#[derive(Debug)]
struct Prepared {
    values: Vec<f32>,
    marks: Vec<f32>,
    parts: Parts,
}

/// A window: a series, and the row where its target begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Place of the series.
    pub series: usize,
    /// First row of the target.
    pub target: usize,
}

impl Dataset {
    /// Splits and standardises a table. `scaler` is that of a checkpoint, or none to fit one on the training parts.
    pub fn new(
        table: &Table,
        split: Split,
        (seq_len, pred_len): (usize, usize),
        zone: Option<chrono_tz::Tz>,
        scaler: Option<&Scaler>,
    ) -> Result<Self> {
        let n = table.columns.len();
        let parts = table.parts(split, seq_len, pred_len)?;
        let scaler = match scaler {
            Some(scaler) => scaler.clone(),
            None => {
                let train = table.series.iter().zip(&parts).map(|(series, parts)| {
                    let rows = parts.rows(Part::Train);
                    &series.values[rows.start * n..rows.end * n]
                });
                let train: Vec<_> = train.collect();
                Scaler::fit(&train, &table.columns).map_err(|e| Error::table(&table.path, e))?
            }
        };
        let series = table.series.iter().zip(parts).map(|(series, parts)| Prepared {
            values: scaler.standardise(&series.values),
            marks: series.times.iter().flat_map(|&t| marks(t, table.frequency, zone)).collect(),
            parts,
        });
        Ok(Self { columns: table.columns.clone(), series: series.collect(), scaler, seq_len, pred_len })
    }

    /// The columns of values.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What the series were standardised by.
    pub fn scaler(&self) -> &Scaler {
        &self.scaler
    }

    /// Rows of look-back and of target.
    pub fn lengths(&self) -> (usize, usize) {
        (self.seq_len, self.pred_len)
    }

    /// Bytes that are different for different data.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        self.series
            .iter()
            .flat_map(|s| s.values.iter().chain(&s.marks))
            .flat_map(|v| v.to_le_bytes())
            .collect()
    }

    /// All windows of a part, series after series, in order of time.
    pub fn windows(&self, part: Part) -> Vec<Window> {
        let of = |(series, prepared): (usize, &Prepared)| {
            prepared.parts.windows(part).map(move |target| Window { series, target }).collect::<Vec<_>>()
        };
        self.series.iter().enumerate().flat_map(of).collect()
    }

    /// Windows as tensors: look-backs, with calendar features if wanted, and targets `(B, H, V)`.
    pub fn batch(
        &self,
        windows: &[Window],
        with_marks: bool,
        device: &Device,
    ) -> candle_core::Result<(Input, Tensor)> {
        let (l, h, n) = (self.seq_len, self.pred_len, self.columns.len());
        let (mut x, mut y) =
            (Vec::with_capacity(windows.len() * l * n), Vec::with_capacity(windows.len() * h * n));
        let mut marks = Vec::new();
        for &Window { series, target } in windows {
            let series = &self.series[series];
            x.extend_from_slice(&series.values[(target - l) * n..target * n]);
            y.extend_from_slice(&series.values[target * n..(target + h) * n]);
            if with_marks {
                marks.extend_from_slice(&series.marks[(target - l) * N_MARKS..target * N_MARKS]);
            }
        }
        let b = windows.len();
        let marks = match with_marks {
            true => Some(Tensor::from_vec(marks, (b, l, N_MARKS), device)?),
            false => None,
        };
        let values = Tensor::from_vec(x, (b, l, n), device)?;
        Ok((Input { values, marks }, Tensor::from_vec(y, (b, h, n), device)?))
    }

    /// Pearson correlations of the columns over the training parts, row-major; what never changes is correlated with
    /// nothing.
    pub fn training_correlations(&self) -> Vec<f64> {
        let n = self.columns.len();
        let mut products = vec![0.0; n * n];
        let mut sums = vec![0.0; n];
        let mut rows = 0.0;
        for series in &self.series {
            let train = series.parts.rows(Part::Train);
            for row in series.values[train.start * n..train.end * n].chunks(n) {
                rows += 1.0;
                for i in 0..n {
                    sums[i] += f64::from(row[i]);
                    (0..n).for_each(|j| products[i * n + j] += f64::from(row[i]) * f64::from(row[j]));
                }
            }
        }
        let covariance = |i: usize, j: usize| products[i * n + j] / rows - sums[i] * sums[j] / (rows * rows);
        let correlation = |at: usize| {
            let (i, j) = (at / n, at % n);
            let spread = (covariance(i, i) * covariance(j, j)).sqrt();
            if spread > 0.0 { covariance(i, j) / spread } else { 0.0 }
        };
        (0..n * n).map(correlation).collect()
    }
}
