//! Perceptual evaluation of speech quality, by the crate [`pesq`].

use crate::{Error, Result};

/// 16 bit integers, as the standard takes them.
fn integers(x: &[f32]) -> Vec<i16> {
    x.iter().map(|x| (x * 32768.0).round().clamp(-32768.0, 32767.0) as i16).collect()
}

fn known(result: std::result::Result<f32, ::pesq::PesqError>) -> Result<Option<f64>> {
    match result {
        Ok(score) => Ok(Some(f64::from(score))),
        Err(::pesq::PesqError::NoUtterancesFound) => Ok(None),
        Err(e) => Err(Error::Signal(format!("PESQ: {e}"))),
    }
}

/// Wide-band PESQ (P.862.2) of signals at 16 kHz; none where no speech is found to align by.
///
/// # Errors
/// Less than a quarter of a second.
pub fn pesq_wb(clean: &[f32], enhanced: &[f32]) -> Result<Option<f64>> {
    known(::pesq::pesq_wb(&integers(clean), &integers(enhanced)))
}

/// Narrow-band PESQ (P.862, mapped by P.862.1) of signals at 16 kHz; none where no speech is found to align by.
///
/// # Errors
/// Less than a quarter of a second.
pub fn pesq_nb(clean: &[f32], enhanced: &[f32]) -> Result<Option<f64>> {
    let raw = known(::pesq::pesq(&integers(clean), &integers(enhanced)))?;
    Ok(raw.map(|raw| f64::from(::pesq::score::mos_lqo(raw))))
}
