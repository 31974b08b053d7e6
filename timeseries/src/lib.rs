//! Forecasting of time series with Mamba models.
//!
//! - [`table`]: CSV and Parquet into clean, evenly spaced series;
//! - [`split`], [`scale`], [`dataset`], [`calendar`]: what is trained on, standardised values, windows, features;
//! - [`models`]: S-Mamba, Bi-Mamba+, TimeMachine, the plain Mambas of the Time-Series-Library, DLinear, naive forecasts;
//! - [`config`], [`task`], [`metrics`]: the papers' settings, training, errors;
//! - [`checkpoint`], [`forecast`], [`conformal`], [`picture`]: forecasts in the table's own units, intervals, pictures.

pub mod calendar;
pub mod checkpoint;
pub mod config;
pub mod conformal;
pub mod dataset;
pub mod error;
pub mod forecast;
pub mod metrics;
pub mod models;
pub mod picture;
pub mod scale;
pub mod split;
pub mod table;
pub mod task;

pub use checkpoint::ForecastCheckpoint;
pub use config::ForecastConfig;
pub use error::{Error, Result};
pub use forecast::{Forecast, Forecaster};
pub use models::ForecastModel;
