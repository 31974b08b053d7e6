//! Split-conformal prediction intervals (Vovk et al. 2005; Lei et al. 2018, section 2.2).
//!
//! On held-out windows, the absolute errors of each step and variable, as multiples of how much the variable varies in the
//! look-back (spread), are ordered; the interval of a level is the forecast plus and minus the multiple of rank
//! `⌈(n + 1) · level⌉` (the locally weighted form, Lei et al. 2018, section 5.2: unsteady times get wider intervals). If a
//! new multiple is exchangeable with those n, the interval holds the true value with at least that probability.
//! Neighbouring windows overlap and time series drift, so on real data this is an aim, which `eval` holds against the
//! coverage on the test part.

use crate::checkpoint::CheckpointConfig;
use crate::dataset::{Dataset, Window};
use crate::error::{Error, Result};
use crate::models::ForecastModel;
use candle_core::{DType, Device, Tensor};
use mamba_core::checkpoint::{load_safetensors, save_safetensors};
use std::collections::BTreeMap;
use std::path::Path;

/// Errors are kept at these many levels: 1 %, 2 %, …, 99 %.
const LEVELS: usize = 99;
/// Windows that are looked at, spread evenly.
const MAX_WINDOWS: usize = 2000;
const FILE: &str = "calibration.safetensors";

/// How much each variable varies in its look-back: `(B, L, V)` → `(B, 1, V)`, the deviation plus a tenth of that of the
/// training part, so that a steady window does not promise a steady future.
pub(crate) fn spread(values: &Tensor) -> candle_core::Result<Tensor> {
    let centred = values.broadcast_sub(&values.mean_keepdim(1)?)?;
    centred.sqr()?.mean_keepdim(1)?.sqrt()? + 0.1
}

/// The ordered errors of a model on held-out windows, at whole levels, as multiples of the spread.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// `(99, H, V)`; infinite where there were too few windows for the level.
    quantiles: Vec<f32>,
    pred_len: usize,
    n_vars: usize,
    windows: usize,
}

impl Calibration {
    /// From errors as multiples of the spread: `errors[(w · H + h) · V + v]` of windows w.
    pub fn of_errors(errors: &[f32], pred_len: usize, n_vars: usize) -> Self {
        let cells = pred_len * n_vars;
        let windows = errors.len() / cells.max(1);
        let mut quantiles = vec![f32::INFINITY; LEVELS * cells];
        let mut of_cell = vec![0f32; windows];
        for cell in 0..cells {
            for (w, error) in of_cell.iter_mut().enumerate() {
                *error = errors[w * cells + cell];
            }
            of_cell.sort_by(f32::total_cmp);
            for level in 1..=LEVELS {
                let rank = ((windows + 1) * level).div_ceil(100);
                if let Some(error) = of_cell.get(rank - 1) {
                    quantiles[(level - 1) * cells + cell] = *error;
                }
            }
        }
        Self { quantiles, pred_len, n_vars, windows }
    }

    /// From the errors of a model on windows.
    pub fn fit(
        model: &ForecastModel,
        saved: &CheckpointConfig,
        data: &Dataset,
        windows: &[Window],
        device: &Device,
    ) -> Result<Self> {
        let step = windows.len().div_ceil(MAX_WINDOWS).max(1);
        let windows: Vec<Window> = windows.iter().copied().step_by(step).collect();
        let mut errors = Vec::with_capacity(windows.len() * saved.pred_len * saved.columns.len());
        for batch in windows.chunks(64) {
            errors.extend(multiples(model, saved, data, batch, device)?);
        }
        Ok(Self::of_errors(&errors, saved.pred_len, saved.columns.len()))
    }

    /// Half the width of the interval at a level in percent, for a step of the horizon and a variable, as a multiple of the
    /// spread.
    pub fn half_width(&self, level: u8, step: usize, variable: usize) -> f64 {
        let cells = self.pred_len * self.n_vars;
        f64::from(self.quantiles[(usize::from(level) - 1) * cells + step * self.n_vars + variable])
    }

    /// Refuses levels that are not 1 to 99, and those for which there were too few windows.
    pub fn check_level(&self, level: u8) -> Result<()> {
        if !(1..=LEVELS as u8).contains(&level) {
            return Err(Error::config(format!(
                "level {level} is not a whole number of percent from 1 to 99"
            )));
        }
        match ((self.windows + 1) * usize::from(level)).div_ceil(100) > self.windows {
            true => Err(Error::Mismatch(format!(
                "an interval of {level} % needs more than the {} validation windows there were; name a lower --level",
                self.windows
            ))),
            false => Ok(()),
        }
    }

    /// Share of values within the interval of a level, over windows and the columns that are forecast.
    pub fn coverage(
        &self,
        level: u8,
        model: &ForecastModel,
        saved: &CheckpointConfig,
        data: &Dataset,
        windows: &[Window],
        device: &Device,
    ) -> Result<f64> {
        self.check_level(level)?;
        let (mut inside, mut all) = (0usize, 0usize);
        let cells = self.pred_len * self.n_vars;
        let widths = &self.quantiles[(usize::from(level) - 1) * cells..][..cells];
        let places = saved.target_places();
        for batch in windows.chunks(64) {
            let errors = multiples(model, saved, data, batch, device)?;
            for (errors, widths) in errors.chunks(self.n_vars).zip(widths.chunks(self.n_vars).cycle()) {
                inside += places.iter().filter(|&&i| errors[i] <= widths[i]).count();
                all += places.len();
            }
        }
        Ok(inside as f64 / all.max(1) as f64)
    }

    /// Writes it into a run folder.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let shape = (LEVELS, self.pred_len, self.n_vars);
        let tensor = Tensor::from_vec(self.quantiles.clone(), shape, &Device::Cpu)?;
        let meta = BTreeMap::from([("windows".to_string(), self.windows.to_string())]);
        let tensors = BTreeMap::from([("quantiles".to_string(), tensor)]);
        Ok(save_safetensors(folder.join(FILE), &tensors, &meta)?)
    }

    /// Reads it from a run folder; `None` where there is none.
    pub fn load(folder: &Path, saved: &CheckpointConfig) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let (tensors, meta) = load_safetensors(&path)?;
        let broken = |what: &str| Error::table(&path, what);
        let windows = meta
            .get("windows")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| broken("has no count of windows"))?;
        let tensor = tensors.get("quantiles").ok_or_else(|| broken("has no tensor \"quantiles\""))?;
        let (pred_len, n_vars) = (saved.pred_len, saved.columns.len());
        if tensor.dims() != [LEVELS, pred_len, n_vars] {
            return Err(broken(&format!(
                "quantiles have shape {:?}, expected {:?}",
                tensor.dims(),
                [LEVELS, pred_len, n_vars]
            )));
        }
        let quantiles = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Some(Self { quantiles, pred_len, n_vars, windows }))
    }
}

/// The errors of a model on windows, `(B · H · V)`, as multiples of the spread.
fn multiples(
    model: &ForecastModel,
    saved: &CheckpointConfig,
    data: &Dataset,
    windows: &[Window],
    device: &Device,
) -> candle_core::Result<Vec<f32>> {
    let (input, target) = data.batch(windows, saved.model.uses_marks(), device)?;
    let errors = (model.forward(&input, &mut None)? - target)?.abs()?;
    errors.broadcast_div(&spread(&input.values)?)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mamba_core::Rng;

    #[test]
    fn ranks_are_those_of_the_definition() {
        // nine errors 1..=9: the level of 80 % has rank ⌈10 · 0.8⌉ = 8
        let errors: Vec<f32> = [5, 1, 9, 3, 7, 2, 8, 6, 4].map(|e| e as f32).to_vec();
        let calibration = Calibration::of_errors(&errors, 1, 1);
        assert_eq!(calibration.half_width(80, 0, 0), 8.0);
        assert_eq!(calibration.half_width(90, 0, 0), 9.0);
        assert!(calibration.check_level(90).is_ok() && calibration.check_level(91).is_err());
        assert!(calibration.check_level(0).is_err() && calibration.check_level(100).is_err());
    }

    #[test]
    fn intervals_cover_what_they_say_of_exchangeable_errors() {
        // 1000 calibrations of 99 errors each, and one new error: the share inside is the level, on average.
        let mut rng = Rng::new(5);
        for level in [50u8, 80, 95] {
            let runs = 4000;
            let inside = (0..runs).filter(|_| {
                let errors: Vec<f32> = (0..99).map(|_| rng.normal().abs() as f32).collect();
                rng.normal().abs() <= Calibration::of_errors(&errors, 1, 1).half_width(level, 0, 0)
            });
            let share = inside.count() as f64 / f64::from(runs);
            assert!((share - f64::from(level) / 100.0).abs() < 0.025, "{level} %: {share}");
        }
    }

    #[test]
    fn steps_and_variables_have_their_own_widths() {
        // two windows, two steps, two variables
        let errors = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        let calibration = Calibration::of_errors(&errors, 2, 2);
        let widths: Vec<f64> = (0..4).map(|i| calibration.half_width(33, i / 2, i % 2)).collect();
        assert_eq!(widths, [1.0, 10.0, 2.0, 20.0]);
    }
}
