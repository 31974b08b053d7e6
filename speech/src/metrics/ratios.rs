//! Ratios of signal and error in dB.

fn energy(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum()
}

/// `10·log10(Σ c² / Σ (c - e)²)`; infinite for equal signals.
pub fn snr_db(clean: &[f64], enhanced: &[f64]) -> f64 {
    let error = energy(clean.iter().zip(enhanced).map(|(c, e)| c - e));
    10.0 * (energy(clean.iter().copied()) / error).log10()
}

/// Scale-invariant ratio of signal to distortion: both signals without their mean, the enhanced one projected on the
/// clean one.
pub fn si_sdr_db(clean: &[f64], enhanced: &[f64]) -> f64 {
    let centred = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len().max(1) as f64;
        x.iter().map(|x| x - mean).collect::<Vec<_>>()
    };
    let (c, e) = (centred(clean), centred(enhanced));
    let dot: f64 = c.iter().zip(&e).map(|(c, e)| c * e).sum();
    let scale = dot / energy(c.iter().copied());
    let target = energy(c.iter().map(|c| scale * c));
    let distortion = energy(c.iter().zip(&e).map(|(c, e)| e - scale * c));
    10.0 * (target / distortion).log10()
}

/// Frames of 30 ms, 7.5 ms apart, as the composite measures take them: their number, length and step in samples.
pub(super) fn frames(samples: usize, sample_rate: u32) -> (usize, usize, usize) {
    let len = (f64::from(sample_rate) * 0.03).round() as usize;
    let step = len / 4;
    ((samples as f64 / step as f64 - len as f64 / step as f64).max(0.0) as usize, len, step)
}

/// A Hann window without its zeros.
pub(super) fn hann(len: usize) -> Vec<f64> {
    (1..=len).map(|k| 0.5 - 0.5 * (std::f64::consts::TAU * k as f64 / (len + 1) as f64).cos()).collect()
}

/// Mean over 30 ms frames of the ratio of signal to difference, each limited to -10 … 35 dB.
pub fn seg_snr_db(clean: &[f64], enhanced: &[f64], sample_rate: u32) -> f64 {
    let (count, len, step) = frames(clean.len().min(enhanced.len()), sample_rate);
    let window = hann(len);
    let of_frame = |i: usize| {
        let at = i * step..i * step + len;
        let frames = clean[at.clone()].iter().zip(&enhanced[at]).zip(&window);
        let (mut signal, mut noise) = (0.0, 0.0);
        for ((c, e), w) in frames {
            signal += (c * w).powi(2);
            noise += ((c - e) * w).powi(2);
        }
        (10.0 * (signal / (noise + f64::EPSILON) + f64::EPSILON).log10()).clamp(-10.0, 35.0)
    };
    (0..count).map(of_frame).sum::<f64>() / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_worked_by_hand() {
        let clean = [1.0, -1.0, 1.0, -1.0];
        let noisy = [1.5, -0.5, 0.5, -1.5]; // error ±0.5, orthogonal to the signal
        assert!((snr_db(&clean, &noisy) - 10.0 * 4f64.log10()).abs() < 1e-12);
        assert!((si_sdr_db(&clean, &noisy) - 10.0 * 4f64.log10()).abs() < 1e-12);
        let louder = noisy.map(|x| 3.0 * x + 7.0);
        assert!(
            (si_sdr_db(&clean, &louder) - 10.0 * 4f64.log10()).abs() < 1e-9,
            "scale and offset do not count"
        );
        assert_eq!(snr_db(&clean, &clean), f64::INFINITY);
    }
}
