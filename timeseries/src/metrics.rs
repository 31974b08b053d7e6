//! Errors of forecasts.

use candle_core::{DType, Result, Tensor};
use serde::Serialize;

/// Mean squared and mean absolute error, on standardised values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Windows that went into it.
    pub windows: usize,
}

/// Sums of errors over windows, from which scores are made.
#[derive(Clone, Debug)]
pub struct ErrorSums {
    /// Squared and absolute errors of each step of the horizon.
    squared: Vec<f64>,
    absolute: Vec<f64>,
    n_vars: usize,
    windows: usize,
}

impl ErrorSums {
    /// Nothing yet, for a horizon of `pred_len` steps of `n_vars` variables.
    pub fn new(pred_len: usize, n_vars: usize) -> Self {
        Self { squared: vec![0.0; pred_len], absolute: vec![0.0; pred_len], n_vars, windows: 0 }
    }

    /// Adds forecasts and targets, `(B, H, V)` each.
    pub fn add(&mut self, forecasts: &Tensor, targets: &Tensor) -> Result<()> {
        let (b, h, v) = forecasts.dims3()?;
        let flat = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (forecasts, targets) = (flat(forecasts)?, flat(targets)?);
        for (i, (y, want)) in forecasts.iter().zip(&targets).enumerate() {
            let error = f64::from(*y) - f64::from(*want);
            self.squared[i / v % h] += error * error;
            self.absolute[i / v % h] += error.abs();
        }
        self.windows += b;
        Ok(())
    }

    /// What is left without windows that were added before.
    pub fn without(&self, others: &Self) -> Self {
        let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect();
        Self {
            squared: minus(&self.squared, &others.squared),
            absolute: minus(&self.absolute, &others.absolute),
            n_vars: self.n_vars,
            windows: self.windows - others.windows,
        }
    }

    /// Over all steps.
    pub fn score(&self) -> Score {
        let n = (self.windows * self.n_vars * self.squared.len()) as f64;
        let sum = |errors: &[f64]| errors.iter().sum::<f64>() / n;
        Score { mse: sum(&self.squared), mae: sum(&self.absolute), windows: self.windows }
    }

    /// Of each step.
    pub fn by_step(&self) -> Vec<Score> {
        let n = (self.windows * self.n_vars) as f64;
        let steps = self.squared.iter().zip(&self.absolute);
        steps.map(|(s, a)| Score { mse: s / n, mae: a / n, windows: self.windows }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn scores_are_means_over_windows_steps_and_variables() -> Result<()> {
        let tensor = |values: &[f32], b: usize| Tensor::from_slice(values, (b, 2, 1), &Device::Cpu);
        let mut sums = ErrorSums::new(2, 1);
        sums.add(&tensor(&[1.0, 2.0], 1)?, &tensor(&[0.0, 0.0], 1)?)?;
        sums.add(&tensor(&[0.0, 0.0, 0.0, -2.0], 2)?, &tensor(&[0.0, 0.0, 1.0, 2.0], 2)?)?;
        assert_eq!(sums.score(), Score { mse: 22.0 / 6.0, mae: 8.0 / 6.0, windows: 3 });
        let steps: Vec<f64> = sums.by_step().iter().map(|s| s.mae).collect();
        assert_eq!(steps, [2.0 / 3.0, 2.0]);
        Ok(())
    }
}
