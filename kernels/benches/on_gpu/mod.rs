//! How the benches of a GPU measure.

use candle_core::{Device, Result};
use std::time::Instant;

/// Seconds of a run, about.
const RUN: f64 = 0.05;

/// Median seconds of a call: five runs of some calls, each with one wait for the GPU at its end.
pub(crate) fn seconds(device: &Device, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut timed = |calls: usize| -> Result<f64> {
        let started = Instant::now();
        (0..calls).try_for_each(|_| call())?;
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64() / calls as f64)
    };
    timed(1)?;
    let calls = (RUN / timed(2)?.max(1e-7)).clamp(1.0, 2000.0) as usize;
    let mut runs = (0..5).map(|_| timed(calls)).collect::<Result<Vec<_>>>()?;
    runs.sort_by(f64::total_cmp);
    Ok(runs[2])
}
