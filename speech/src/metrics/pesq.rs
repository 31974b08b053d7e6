//! Perceptual evaluation of speech quality, by the crate [`pesq`].

use crate::{Error, Result};
use ::pesq::types::{PesqError, RATE_16K, SignalBuffer};
use ::pesq::{disturbance, input, psychoacoustic};

/// 16 bit integers, as the standard takes them: each signal brought to full scale, which changes nothing but its rounding,
/// as the standard aligns levels. None for silence, which has no level.
fn integers(signal: &[f32]) -> Option<Vec<i16>> {
    let peak = signal.iter().fold(0f32, |m, x| m.max(x.abs()));
    let scale = 32767.0 / f64::from(peak);
    (peak > 0.0).then(|| signal.iter().map(|x| (f64::from(*x) * scale).round() as i16).collect())
}

fn scored(
    clean: &[f32],
    enhanced: &[f32],
    pesq: fn(&[i16], &[i16]) -> std::result::Result<f32, PesqError>,
) -> Result<Option<f64>> {
    match (integers(clean), integers(enhanced)) {
        (Some(clean), Some(enhanced)) => known(pesq(&clean, &enhanced)),
        _ => Ok(None),
    }
}

fn known(result: std::result::Result<f32, PesqError>) -> Result<Option<f64>> {
    match result {
        Ok(score) => Ok(Some(f64::from(score))),
        Err(PesqError::NoUtterancesFound) => Ok(None),
        Err(e) => Err(Error::Signal(format!("PESQ: {e}"))),
    }
}

/// Wide-band PESQ (P.862.2) of signals at 16 kHz; none where one of them is silent or no speech is found to align by.
///
/// # Errors
/// Less than a quarter of a second.
pub fn pesq_wb(clean: &[f32], enhanced: &[f32]) -> Result<Option<f64>> {
    scored(clean, enhanced, ::pesq::pesq_wb)
}

/// Narrow-band PESQ (P.862, mapped by P.862.1) of signals at 16 kHz, which the standard's model takes without another
/// rate; none where one of them is silent or no speech is found to align by.
///
/// # Errors
/// Less than a quarter of a second.
pub fn pesq_nb(clean: &[f32], enhanced: &[f32]) -> Result<Option<f64>> {
    scored(clean, enhanced, narrow_band)
}

fn narrow_band(clean: &[i16], enhanced: &[i16]) -> std::result::Result<f32, PesqError> {
    let buffer = |pcm: &[i16]| SignalBuffer::from_pcm_at(pcm, RATE_16K);
    let pair = input::process_pair(buffer(clean)?, buffer(enhanced)?)?;
    let model = psychoacoustic::run_frame_loop(&pair.reference, &pair.degraded, &pair.utterances);
    let frames = disturbance::frame_disturbances(&pair.reference, &pair.degraded, &pair.utterances);
    let indicators = disturbance::aggregate(&frames, model.frame_range.start);
    let raw = ::pesq::score::raw_score(indicators.symmetric, indicators.asymmetric);
    Ok(::pesq::score::mos_lqo(f64::from(raw)))
}
