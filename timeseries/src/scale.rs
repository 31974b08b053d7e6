//! Standardisation by the training part.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Mean and deviation of each column, over the training rows only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaler {
    /// Means.
    pub mean: Vec<f64>,
    /// Population deviations.
    pub std: Vec<f64>,
}

impl Scaler {
    /// Of rows of values, one slice for each series. A column that never changes is an error, for nothing can be learnt
    /// of it.
    pub fn fit(parts: &[&[f64]], columns: &[String]) -> Result<Self> {
        let n = columns.len();
        let rows = parts.iter().map(|part| part.len() / n).sum::<usize>() as f64;
        let (mut mean, mut std) = (vec![0.0; n], vec![0.0; n]);
        let values = || parts.iter().flat_map(|part| part.iter().enumerate());
        values().for_each(|(i, v)| mean[i % n] += v / rows);
        values().for_each(|(i, v)| std[i % n] += (v - mean[i % n]).powi(2) / rows);
        std.iter_mut().for_each(|v| *v = v.sqrt());
        let constant = |i: &usize| std[*i] <= 1e-12 * mean[*i].abs().max(1e-300);
        let constant: Vec<&str> = (0..n).filter(constant).map(|i| columns[i].as_str()).collect();
        if !constant.is_empty() {
            return Err(Error::Mismatch(format!(
                "column {} never changes in the training part; leave it out of --columns",
                constant.join(", ")
            )));
        }
        Ok(Self { mean, std })
    }

    /// Row-major values in units of deviations.
    pub fn standardise(&self, values: &[f64]) -> Vec<f32> {
        let n = self.mean.len();
        values.iter().enumerate().map(|(i, v)| ((v - self.mean[i % n]) / self.std[i % n]) as f32).collect()
    }

    /// A standardised value of a column in its original unit.
    pub fn restore(&self, column: usize, value: f64) -> f64 {
        value * self.std[column] + self.mean[column]
    }
}
