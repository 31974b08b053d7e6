//! Forecasts in the units of the table: a pure function from look-backs to values and intervals.

use crate::calendar::{N_MARKS, marks};
use crate::checkpoint::{CheckpointConfig, ForecastCheckpoint};
use crate::conformal::{Calibration, spread};
use crate::error::{Error, Result};
use crate::models::{ForecastModel, Input};
use crate::table::{Course, Frequency, Series};
use candle_core::{DType, Device, Tensor};

/// What a forecast is made from: the last rows of a series.
#[derive(Clone, Debug)]
pub struct LookBack<'a> {
    /// Times of the last `seq_len` rows.
    pub times: &'a [i64],
    /// Their values, row after row, in the order of the checkpoint's columns.
    pub values: &'a [f64],
    /// How the series' times go on.
    pub course: Course,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Times of the forecast rows.
    pub times: Vec<i64>,
    /// Forecast values, row after row.
    pub values: Vec<f64>,
    /// Intervals, in the order of the levels that were asked for.
    pub intervals: Vec<Interval>,
}

/// Lower and upper bounds of every forecast value.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// Percent of the values that it aims to hold.
    pub level: u8,
    /// Lower bounds, row after row.
    pub lower: Vec<f64>,
    /// Upper bounds.
    pub upper: Vec<f64>,
}

/// A loaded forecaster.
pub struct Forecaster {
    model: ForecastModel,
    config: CheckpointConfig,
    calibration: Option<Calibration>,
    levels: Vec<u8>,
    frequency: Frequency,
    zone: Option<chrono_tz::Tz>,
    device: Device,
}

impl Forecaster {
    /// A forecaster with intervals at these levels, in percent. `frequency` is that of the rows.
    pub fn new(
        checkpoint: &ForecastCheckpoint,
        frequency: Frequency,
        levels: &[u8],
        device: &Device,
    ) -> Result<Self> {
        let config = checkpoint.config().clone();
        config.check_frequency(frequency)?;
        let calibration = Calibration::load(checkpoint.path(), &config)?;
        match &calibration {
            None if !levels.is_empty() => {
                return Err(Error::Mismatch(format!(
                    "{} has no calibration.safetensors, so there can be no intervals; --level none leaves them out",
                    checkpoint.path().display()
                )));
            }
            Some(calibration) => levels.iter().try_for_each(|&level| calibration.check_level(level))?,
            None => {}
        }
        let (model, _) = checkpoint.model(DType::F32, device)?;
        let zone = config.table.zone()?;
        let (levels, device) = (levels.to_vec(), device.clone());
        Ok(Self { model, config, calibration, levels, frequency, zone, device })
    }

    /// Rows that a look-back needs.
    pub fn seq_len(&self) -> usize {
        self.config.seq_len
    }

    /// Time between rows.
    pub fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// Zone of the times, if one is given.
    pub fn zone(&self) -> Option<chrono_tz::Tz> {
        self.zone
    }

    /// The checkpoint's settings.
    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// The end of a series as a look-back; too short a series is an error.
    pub fn look_back<'a>(&self, series: &'a Series, end: usize) -> Result<LookBack<'a>> {
        let (l, n) = (self.config.seq_len, self.config.columns.len());
        match end.checked_sub(l) {
            Some(start) => Ok(LookBack {
                times: &series.times[start..end],
                values: &series.values[start * n..end * n],
                course: series.course,
            }),
            None => Err(Error::Mismatch(format!(
                "{}the model looks back {l} rows, but there are {end}",
                if series.id.is_empty() { String::new() } else { format!("series {:?}: ", series.id) }
            ))),
        }
    }

    /// The forecasts of a batch of look-backs.
    pub fn forecast(&self, look_backs: &[LookBack<'_>]) -> Result<Vec<Forecast>> {
        let (b, l, h, n) =
            (look_backs.len(), self.config.seq_len, self.config.pred_len, self.config.columns.len());
        let mut x = Vec::with_capacity(b * l * n);
        let mut features = Vec::new();
        for look_back in look_backs {
            if look_back.times.len() != l || look_back.values.len() != l * n {
                return Err(Error::Mismatch(format!(
                    "a look-back has {} rows and {} values, expected {l} and {}",
                    look_back.times.len(),
                    look_back.values.len(),
                    l * n
                )));
            }
            x.extend(self.config.scaler.standardise(look_back.values));
            if self.config.model.uses_marks() {
                let of_row = |&time: &i64| marks(time, self.frequency, self.zone);
                features.extend(look_back.times.iter().flat_map(of_row));
            }
        }
        let marks = match self.config.model.uses_marks() {
            true => Some(Tensor::from_vec(features, (b, l, N_MARKS), &self.device)?),
            false => None,
        };
        let input = Input { values: Tensor::from_vec(x, (b, l, n), &self.device)?, marks };
        let y = self.model.forward(&input, &mut None)?.to_dtype(DType::F32)?;
        let y = y.flatten_all()?.to_vec1::<f32>()?; // (B · H · V)
        let spreads = spread(&input.values)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?; // (B · V)
        let scaler = &self.config.scaler;
        Ok(look_backs
            .iter()
            .zip(y.chunks(h * n).zip(spreads.chunks(n)))
            .map(|(look_back, (y, spread))| {
                let last = look_back.times[l - 1];
                let restore = |shift: &dyn Fn(usize) -> f64| -> Vec<f64> {
                    y.iter()
                        .enumerate()
                        .map(|(i, &v)| scaler.restore(i % n, f64::from(v) + shift(i)))
                        .collect()
                };
                let interval = |&level: &u8| {
                    let calibration = self.calibration.as_ref().expect("levels were checked against it");
                    let half =
                        |i: usize| calibration.half_width(level, i / n, i % n) * f64::from(spread[i % n]);
                    Interval { level, lower: restore(&|i| -half(i)), upper: restore(&half) }
                };
                Forecast {
                    times: (1..=h).map(|step| look_back.course.after(last, step)).collect(),
                    values: restore(&|_| 0.0),
                    intervals: self.levels.iter().map(interval).collect(),
                }
            })
            .collect())
    }
}
