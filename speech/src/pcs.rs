//! Perceptual contrast stretching (Chao, Yu, Fu, Lu and Tsao 2022): louder where hearing is keen, as a last step after
//! enhancement.
//!
//! ```text
//! log(1 + |Y|) = w(f) · log(1 + |X|)      1 ≤ w ≤ 1.4, phases kept
//! ```

use crate::Result;
use crate::stft::{Stft, StftConfig};

/// First bin of 201 from which on a weight holds, by the band importances of ANSI S3.5.
const WEIGHTS: [(usize, f64); 9] = [
    (0, 1.0),
    (3, 1.070175439),
    (5, 1.18245614),
    (8, 1.287719298),
    (10, 1.4),
    (110, 1.322807018),
    (130, 1.238596491),
    (160, 1.161403509),
    (190, 1.077192982),
];

/// The weight of every bin of a spectrum of 400 samples at 16 kHz.
pub fn weights() -> Vec<f64> {
    let of_bin =
        |bin: usize| WEIGHTS.iter().rev().find(|(first, _)| *first <= bin).map_or(1.0, |(_, weight)| *weight);
    (0..201).map(of_bin).collect()
}

/// A signal at 16 kHz, stretched. Its level changes: see [`like_level`] and [`like_peak`].
///
/// # Errors
/// None for finite samples.
pub fn stretch(signal: &[f32]) -> Result<Vec<f32>> {
    let cfg = StftConfig::default();
    let (n_fft, hop) = (cfg.n_fft, cfg.hop_size);
    let hamming = |n: usize| 0.54 - 0.46 * (std::f64::consts::TAU * n as f64 / (n_fft - 1) as f64).cos();
    let stft = Stft::<f64>::with_window(&cfg, (0..n_fft).map(hamming).collect())?;
    let half = n_fft / 2;
    // Zeros on both sides, and half a frame more behind, as upstream has it.
    let frames = (signal.len() + half) / hop + 1;
    let mut padded = vec![0.0; half];
    padded.extend(signal.iter().map(|&x| f64::from(x)));
    padded.resize((frames - 1) * hop + n_fft, 0.0);
    let weights = weights();
    let (mut sum, mut envelope) = (vec![0.0; padded.len()], vec![0.0; padded.len()]);
    for t in 0..frames {
        let at = t * hop..t * hop + n_fft;
        let (mut re, mut im) = stft.frame_spectrum(&padded[at.clone()]);
        for ((re, im), weight) in re.iter_mut().zip(&mut im).zip(&weights) {
            let magnitude = re.hypot(*im);
            if magnitude > 0.0 {
                let gain = (weight * magnitude.ln_1p()).exp_m1() / magnitude;
                (*re, *im) = (*re * gain, *im * gain);
            }
        }
        sum[at.clone()].iter_mut().zip(stft.frame_samples(&re, &im)).for_each(|(sum, x)| *sum += x);
        envelope[at].iter_mut().zip(stft.window()).for_each(|(sum, w)| *sum += w * w);
    }
    let inner = half..half + signal.len();
    Ok(sum[inner.clone()].iter().zip(&envelope[inner]).map(|(x, e)| (x / e) as f32).collect())
}

/// A signal scaled to a largest magnitude of 1, as upstream leaves it.
pub fn like_peak(signal: &[f32]) -> Vec<f32> {
    let peak = signal.iter().fold(0f32, |m, x| m.max(x.abs()));
    if peak > 0.0 { signal.iter().map(|x| x / peak).collect() } else { signal.to_vec() }
}

/// A signal scaled to the root mean square of another.
pub fn like_level(signal: &[f32], other: &[f32]) -> Vec<f32> {
    let level = crate::mixture::rms(signal);
    let factor = if level > 0.0 { crate::mixture::rms(other) / level } else { 1.0 };
    signal.iter().map(|x| x * factor).collect()
}
