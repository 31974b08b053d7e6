//! How good enhanced speech is, against the clean signal.
//!
//! | score | range | measures | source |
//! |---|---|---|---|
//! | PESQ, wide- and narrow-band | 1.0 to 4.6 | quality as listeners rate it (MOS-LQO) | ITU-T P.862, P.862.1, P.862.2 |
//! | STOI, ESTOI | about 0 to 1 | intelligibility | Taal et al. 2011; Jensen and Taal 2016 |
//! | SI-SDR | dB | distortion, whatever the scale | Le Roux et al. 2019 |
//! | SNR, segmental SNR | dB | difference of the samples | Hansen and Pellom 1998 |
//! | CSIG, CBAK, COVL | 1 to 5 | predicted ratings of speech, background, whole | Hu and Loizou 2008 |
//!
//! Both signals must be aligned; the longer one is cut to the length of the other, as upstream evaluations do, where they
//! differ by no more than 25 ms. An enhanced signal of silence has no PESQ, and so no composite scores.

mod composite;
mod pesq;
mod ratios;
mod stoi;

pub use composite::{Composite, composite};
pub use pesq::{pesq_nb, pesq_wb};
pub use ratios::{seg_snr_db, si_sdr_db, snr_db};
pub use stoi::{estoi, stoi};

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// All scores of one clip, or their means over clips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Wide-band PESQ; none where there is no speech to align by, and for an enhanced signal of silence.
    pub pesq_wb: Option<f64>,
    /// Narrow-band PESQ.
    pub pesq_nb: Option<f64>,
    /// Short-time objective intelligibility.
    pub stoi: f64,
    /// Its extended form.
    pub estoi: f64,
    /// Scale-invariant ratio of signal to distortion in dB.
    pub si_sdr_db: f64,
    /// Ratio of signal to difference in dB.
    pub snr_db: f64,
    /// The same over short frames, each limited to -10 … 35 dB.
    pub seg_snr_db: f64,
    /// Predicted rating of the speech.
    pub csig: Option<f64>,
    /// Predicted rating of the background.
    pub cbak: Option<f64>,
    /// Predicted overall rating.
    pub covl: Option<f64>,
}

impl Scores {
    /// Names of the fields, in order.
    pub const NAMES: [&'static str; 10] =
        ["pesq_wb", "pesq_nb", "stoi", "estoi", "si_sdr_db", "snr_db", "seg_snr_db", "csig", "cbak", "covl"];

    /// The fields, in order.
    pub fn values(&self) -> [Option<f64>; 10] {
        [
            self.pesq_wb,
            self.pesq_nb,
            Some(self.stoi),
            Some(self.estoi),
            Some(self.si_sdr_db),
            Some(self.snr_db),
            Some(self.seg_snr_db),
            self.csig,
            self.cbak,
            self.covl,
        ]
    }

    /// The worst rating, 1, in the place of those that are missing: for speech of which enhancement left nothing to rate.
    pub fn or_worst(self) -> Self {
        let worst = |rating: Option<f64>| rating.or(Some(1.0));
        Self {
            pesq_wb: worst(self.pesq_wb),
            pesq_nb: worst(self.pesq_nb),
            csig: worst(self.csig),
            cbak: worst(self.cbak),
            covl: worst(self.covl),
            ..self
        }
    }

    /// The mean over clips of every score; where some clips lack one, over the others.
    pub fn mean(scores: &[Self]) -> Self {
        let mean = |of: &dyn Fn(&Self) -> Option<f64>| {
            let known: Vec<f64> = scores.iter().filter_map(of).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let sure = |of: &dyn Fn(&Self) -> f64| mean(&|s: &Self| Some(of(s))).unwrap_or(f64::NAN);
        Self {
            pesq_wb: mean(&|s| s.pesq_wb),
            pesq_nb: mean(&|s| s.pesq_nb),
            stoi: sure(&|s| s.stoi),
            estoi: sure(&|s| s.estoi),
            si_sdr_db: sure(&|s| s.si_sdr_db),
            snr_db: sure(&|s| s.snr_db),
            seg_snr_db: sure(&|s| s.seg_snr_db),
            csig: mean(&|s| s.csig),
            cbak: mean(&|s| s.cbak),
            covl: mean(&|s| s.covl),
        }
    }
}

/// The rate in Hz that wide-band PESQ and the composite measures are defined for.
pub const SAMPLE_RATE: u32 = 16_000;

/// Samples that a signal needs to be scored: a quarter of a second.
pub const LEAST_SAMPLES: usize = 4000;

/// Samples that the lengths of two signals may differ by: resamplers and codecs lose so many.
const MOST_DIFFERENCE: usize = 400;

/// What [`score`] compares: both signals at one length.
///
/// # Errors
/// As [`score`].
pub fn comparable<'a>(
    clean: &'a [f32],
    enhanced: &'a [f32],
    sample_rate: u32,
) -> Result<(&'a [f32], &'a [f32])> {
    if sample_rate != SAMPLE_RATE {
        return Err(Error::Signal(format!(
            "scores are defined at {SAMPLE_RATE} Hz, the signals have {sample_rate} Hz"
        )));
    }
    if clean.len().abs_diff(enhanced.len()) > MOST_DIFFERENCE {
        let (clean, enhanced) = (clean.len(), enhanced.len());
        return Err(Error::Signal(format!(
            "the clean signal has {clean} samples and this one {enhanced}, more than {MOST_DIFFERENCE} apart: are they \
             of one recording?"
        )));
    }
    let n = clean.len().min(enhanced.len());
    let (clean, enhanced) = (&clean[..n], &enhanced[..n]);
    if n < LEAST_SAMPLES {
        return Err(Error::Signal(format!(
            "{n} samples are too few to score: a quarter of a second is needed"
        )));
    }
    for (name, signal) in [("clean", clean), ("enhanced", enhanced)] {
        if let Some(i) = signal.iter().position(|x| !x.is_finite()) {
            return Err(Error::Signal(format!("sample {i} of the {name} signal is {}", signal[i])));
        }
    }
    if clean.iter().all(|&x| x == 0.0) {
        return Err(Error::Signal("the clean signal is silent: there is nothing to compare with".into()));
    }
    Ok((clean, enhanced))
}

/// Every score of one clip at 16 kHz.
///
/// # Errors
/// Another rate, lengths more than 25 ms apart, less than a quarter of a second, a silent clean signal, or values that are
/// not finite.
pub fn score(clean: &[f32], enhanced: &[f32], sample_rate: u32) -> Result<Scores> {
    let (clean, enhanced) = comparable(clean, enhanced, sample_rate)?;
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let (c, e) = (wide(clean), wide(enhanced));
    let pesq = pesq_wb(clean, enhanced)?;
    let seg_snr = seg_snr_db(&c, &e, sample_rate);
    let composite = pesq.map(|pesq| composite(&c, &e, sample_rate, pesq, seg_snr));
    Ok(Scores {
        pesq_wb: pesq,
        pesq_nb: pesq_nb(clean, enhanced)?,
        stoi: stoi(&c, &e, sample_rate),
        estoi: estoi(&c, &e, sample_rate),
        si_sdr_db: si_sdr_db(&c, &e),
        snr_db: snr_db(&c, &e),
        seg_snr_db: seg_snr,
        csig: composite.map(|c| c.csig),
        cbak: composite.map(|c| c.cbak),
        covl: composite.map(|c| c.covl),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice() -> Vec<f32> {
        crate::sample::voice(3, 2.0)
    }

    #[test]
    fn silence_has_no_pesq_and_counts_as_the_worst() -> Result<()> {
        let clean = voice();
        let scores = score(&clean, &vec![0.0; clean.len()], SAMPLE_RATE)?;
        assert_eq!([scores.pesq_wb, scores.pesq_nb, scores.csig, scores.cbak, scores.covl], [None; 5]);
        assert_eq!(scores.or_worst().pesq_wb, Some(1.0));
        assert_eq!(pesq_wb(&vec![0.0; clean.len()], &clean)?, None);
        Ok(())
    }

    #[test]
    fn ratings_do_not_depend_on_the_level_of_the_enhanced_signal() -> Result<()> {
        let clean = voice();
        let noisy: Vec<f32> =
            clean.iter().zip(crate::sample::noise(3, 2.0)).map(|(v, n)| v + 0.3 * n).collect();
        let want = score(&clean, &noisy, SAMPLE_RATE)?.pesq_wb.expect("there is speech");
        assert!(want < 3.5, "{want}");
        for gain in [1e-4, 1e-7] {
            let quiet: Vec<f32> = noisy.iter().map(|x| gain * x).collect();
            let got = score(&clean, &quiet, SAMPLE_RATE)?.pesq_wb.expect("there is speech");
            assert!((got - want).abs() < 0.01, "{got}, not {want}, at a gain of {gain}");
        }
        Ok(())
    }

    #[test]
    fn lengths_may_differ_by_a_little() {
        let clean = voice();
        assert!(score(&clean, &clean[400..], SAMPLE_RATE).is_ok());
        let error = score(&clean, &clean[..31_000], SAMPLE_RATE).expect_err("1000 samples are missing");
        assert!(error.to_string().contains("has 32000 samples and this one 31000"), "{error}");
    }
}
