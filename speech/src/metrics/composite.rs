//! The composite measures of Hu and Loizou (2008): predicted ratings of the speech, of the background and overall, from
//! PESQ, segmental SNR, the log likelihood ratio of linear predictors, and weighted differences of spectral slope.

use super::ratios::{frames, hann};
use realfft::RealFftPlanner;

/// The three predicted ratings, from 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Composite {
    /// Of the speech.
    pub csig: f64,
    /// Of the background.
    pub cbak: f64,
    /// Overall.
    pub covl: f64,
}

/// Share of the frames that count: the worst are left out.
const KEPT: f64 = 0.95;

/// From signals of one length, their wide-band PESQ and their segmental SNR in dB.
pub fn composite(clean: &[f64], enhanced: &[f64], sample_rate: u32, pesq: f64, seg_snr_db: f64) -> Composite {
    let llr = mean_of_best(log_likelihood_ratios(clean, enhanced, sample_rate));
    let wss = mean_of_best(slope_distances(clean, enhanced, sample_rate));
    let rating = |x: f64| x.clamp(1.0, 5.0);
    Composite {
        csig: rating(3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss),
        cbak: rating(1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * seg_snr_db),
        covl: rating(1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss),
    }
}

fn mean_of_best(mut distances: Vec<f64>) -> f64 {
    distances.sort_by(f64::total_cmp);
    let kept = (distances.len() as f64 * KEPT).round_ties_even() as usize;
    distances[..kept].iter().sum::<f64>() / kept as f64
}

/// Windowed frames of a signal.
fn windowed(signal: &[f64], sample_rate: u32) -> Vec<Vec<f64>> {
    let (count, len, step) = frames(signal.len(), sample_rate);
    let window = hann(len);
    let frame = |i: usize| signal[i * step..i * step + len].iter().zip(&window).map(|(x, w)| x * w).collect();
    (0..count).map(frame).collect()
}

/// For each frame, the log ratio of the clean signal's residual energies under both signals' predictors.
fn log_likelihood_ratios(clean: &[f64], enhanced: &[f64], sample_rate: u32) -> Vec<f64> {
    let order = if sample_rate < 10_000 { 10 } else { 16 };
    let frames = windowed(clean, sample_rate).into_iter().zip(windowed(enhanced, sample_rate));
    frames
        .map(|(clean, enhanced)| {
            let correlation = autocorrelation(&clean, order);
            let own = residual(&predictor(&correlation), &correlation);
            let other = residual(&predictor(&autocorrelation(&enhanced, order)), &correlation);
            (other / own).ln()
        })
        .collect()
}

fn autocorrelation(x: &[f64], order: usize) -> Vec<f64> {
    // A little is added, so that silence has a predictor.
    let x: Vec<f64> = x.iter().map(|x| x + f64::EPSILON).collect();
    (0..=order).map(|lag| x[lag..].iter().zip(&x).map(|(a, b)| a * b).sum()).collect()
}

/// Coefficients of the prediction error filter, 1 first, by Levinson and Durbin's recursion.
fn predictor(correlation: &[f64]) -> Vec<f64> {
    let order = correlation.len() - 1;
    let mut a = vec![0.0; order + 1];
    a[0] = 1.0;
    let mut error = correlation[0];
    for i in 1..=order {
        let sum: f64 = (0..i).map(|j| a[j] * correlation[i - j]).sum();
        let reflection = -sum / error;
        let before = a.clone();
        for j in 1..=i {
            a[j] = before[j] + reflection * before[i - j];
        }
        error *= 1.0 - reflection * reflection;
    }
    a
}

/// Energy that a prediction error filter leaves of a signal: `aᵀ R a`.
fn residual(a: &[f64], correlation: &[f64]) -> f64 {
    let row = |i: usize| a.iter().enumerate().map(|(j, a)| a * correlation[i.abs_diff(j)]).sum::<f64>();
    a.iter().enumerate().map(|(i, a)| a * row(i)).sum()
}

/// Centres and widths in Hz of the 25 critical bands (Klatt 1982).
const CENTRES: [f64; 25] = [
    50.0, 120.0, 190.0, 260.0, 330.0, 400.0, 470.0, 540.0, 617.372, 703.378, 798.717, 904.128, 1020.38,
    1148.30, 1288.72, 1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17,
    3597.63,
];
const WIDTHS: [f64; 25] = [
    70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423,
    153.823, 168.154, 183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136,
];

/// The measure was made for integers; its floor of 1e-10 lies where it does because upstream divides by this.
const FULL_SCALE: f64 = 32768.0;

/// For each frame, the weighted squared difference of the slopes of critical-band spectra.
fn slope_distances(clean: &[f64], enhanced: &[f64], sample_rate: u32) -> Vec<f64> {
    let (_, len, _) = frames(clean.len(), sample_rate);
    let n_fft = (2 * len).next_power_of_two();
    let half = n_fft / 2;
    let bins_per_hz = half as f64 / (f64::from(sample_rate) / 2.0);
    let least = (-30.0f64 / (2.0 * 2.303)).exp();
    let filters: Vec<Vec<f64>> = CENTRES
        .iter()
        .zip(&WIDTHS)
        .map(|(centre, width)| {
            let (at, spread) = ((centre * bins_per_hz).floor(), width * bins_per_hz);
            let value = |bin: usize| {
                let gain = (-11.0 * ((bin as f64 - at) / spread).powi(2) + WIDTHS[0].ln() - width.ln()).exp();
                if gain > least { gain } else { 0.0 }
            };
            (0..half).map(value).collect()
        })
        .collect();
    let fft = RealFftPlanner::<f64>::new().plan_fft_forward(n_fft);
    let energies = |frame: Vec<f64>| -> Vec<f64> {
        let mut input = fft.make_input_vec();
        let mut spectrum = fft.make_output_vec();
        input[..len].copy_from_slice(&frame);
        fft.process(&mut input, &mut spectrum).expect("buffers were made for this transform");
        let power: Vec<f64> = spectrum[..half].iter().map(|x| x.norm_sqr()).collect();
        let band = |filter: &Vec<f64>| filter.iter().zip(&power).map(|(f, p)| f * p).sum::<f64>();
        filters.iter().map(|filter| 10.0 * (band(filter) / FULL_SCALE.powi(2)).max(1e-10).log10()).collect()
    };
    windowed(clean, sample_rate)
        .into_iter()
        .zip(windowed(enhanced, sample_rate))
        .map(|(clean, enhanced)| slope_distance(&energies(clean), &energies(enhanced)))
        .collect()
}

/// Of critical-band levels in dB.
fn slope_distance(clean: &[f64], enhanced: &[f64]) -> f64 {
    let slopes = |levels: &[f64]| levels.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>();
    let (c, e) = (slopes(clean), slopes(enhanced));
    let weights = |levels: &[f64], slopes: &[f64]| -> Vec<f64> {
        let loudest = levels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (0..slopes.len())
            .map(|i| {
                let near = nearest_peak(levels, slopes, i);
                20.0 / (20.0 + loudest - levels[i]) * (1.0 / (1.0 + near - levels[i]))
            })
            .collect()
    };
    let (wc, we) = (weights(clean, &c), weights(enhanced, &e));
    let (mut sum, mut total) = (0.0, 0.0);
    for i in 0..c.len() {
        let weight = (wc[i] + we[i]) / 2.0;
        sum += weight * (c[i] - e[i]).powi(2);
        total += weight;
    }
    sum / total
}

/// Level of the peak that band `i` climbs to: upwards where the slope is positive, else downwards.
fn nearest_peak(levels: &[f64], slopes: &[f64], i: usize) -> f64 {
    if slopes[i] > 0.0 {
        let end = (i..slopes.len()).find(|&n| slopes[n] <= 0.0).unwrap_or(slopes.len());
        levels[end - 1]
    } else {
        let end = (0..=i).rev().find(|&n| slopes[n] > 0.0);
        levels[end.map_or(0, |n| n + 1)]
    }
}
