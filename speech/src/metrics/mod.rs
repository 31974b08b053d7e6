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
//! Both signals must be aligned; the longer one is cut to the length of the other, as upstream evaluations do.

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
    /// Wide-band PESQ; none where there is no speech to align by.
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

/// Every score of one clip at 16 kHz, the rate that wide-band PESQ and the composite measures are defined for.
///
/// # Errors
/// Another rate, less than a quarter of a second, a silent clean signal, or values that are not finite.
pub fn score(clean: &[f32], enhanced: &[f32], sample_rate: u32) -> Result<Scores> {
    if sample_rate != 16_000 {
        return Err(Error::Signal(format!(
            "scores are defined at 16000 Hz, the signals have {sample_rate} Hz"
        )));
    }
    let n = clean.len().min(enhanced.len());
    let (clean, enhanced) = (&clean[..n], &enhanced[..n]);
    if n < 4000 {
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
