//! Short-time objective intelligibility (Taal, Hendriks, Heusdens and Jensen 2011) and its extended form (Jensen and Taal
//! 2016): correlations of third-octave envelopes over 384 ms, at 10 kHz, without the silent frames.

use realfft::RealFftPlanner;

const RATE: u32 = 10_000;
/// Samples in a frame; half of it to the next.
const FRAME: usize = 256;
const N_FFT: usize = 512;
const BANDS: usize = 15;
const LOWEST_HZ: f64 = 150.0;
/// Frames in a segment.
const SEGMENT: usize = 30;
/// Lowest ratio of signal to distortion of an envelope, in dB.
const BETA: f64 = -15.0;
/// Frames more than this below the loudest are silent, in dB.
const RANGE: f64 = 40.0;

/// STOI of signals of one length; 1e-5 where fewer than 30 frames are not silent.
pub fn stoi(clean: &[f64], enhanced: &[f64], sample_rate: u32) -> f64 {
    let Some((x, y)) = envelopes(clean, enhanced, sample_rate) else { return 1e-5 };
    let clip = 10f64.powf(-BETA / 20.0);
    let frames = x[0].len();
    let (mut sum, mut count) = (0.0, 0);
    for end in SEGMENT..=frames {
        for (x, y) in x.iter().zip(&y) {
            let (x, y) = (&x[end - SEGMENT..end], &y[end - SEGMENT..end]);
            let scale = norm(x) / (norm(y) + f64::EPSILON);
            let y: Vec<f64> = y.iter().zip(x).map(|(y, x)| (y * scale).min(x * (1.0 + clip))).collect();
            let (x, y) = (normalised(x), normalised(&y));
            sum += x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>();
            count += 1;
        }
    }
    sum / f64::from(count)
}

/// ESTOI of signals of one length; 1e-5 where fewer than 30 frames are not silent.
pub fn estoi(clean: &[f64], enhanced: &[f64], sample_rate: u32) -> f64 {
    let Some((x, y)) = envelopes(clean, enhanced, sample_rate) else { return 1e-5 };
    let frames = x[0].len();
    let columns = |bands: &[Vec<f64>], end: usize| -> Vec<Vec<f64>> {
        let rows: Vec<Vec<f64>> = bands.iter().map(|band| normalised(&band[end - SEGMENT..end])).collect();
        (0..SEGMENT).map(|t| normalised(&rows.iter().map(|row| row[t]).collect::<Vec<_>>())).collect()
    };
    let of_segment = |end: usize| {
        let (x, y) = (columns(&x, end), columns(&y, end));
        x.iter().flatten().zip(y.iter().flatten()).map(|(x, y)| x * y).sum::<f64>() / SEGMENT as f64
    };
    (SEGMENT..=frames).map(of_segment).sum::<f64>() / (frames - SEGMENT + 1) as f64
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Without its mean, of length 1.
fn normalised(x: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
    let norm = norm(&centred) + f64::EPSILON;
    centred.iter().map(|x| x / norm).collect()
}

/// Envelopes of third-octave bands, `(bands, frames)`.
type Bands = Vec<Vec<f64>>;

/// Third-octave envelopes of both signals, `(bands, frames)`, of the frames in which the clean one is not silent.
fn envelopes(clean: &[f64], enhanced: &[f64], sample_rate: u32) -> Option<(Bands, Bands)> {
    let (x, y) = (resampled(clean, sample_rate), resampled(enhanced, sample_rate));
    let (x, y) = without_silence(&x, &y);
    let (x, y) = (bands(&x), bands(&y));
    (x[0].len() >= SEGMENT).then_some((x, y))
}

/// A symmetric Hann window without its zeros.
fn window() -> Vec<f64> {
    let n = (FRAME + 1) as f64;
    (1..=FRAME).map(|k| 0.5 - 0.5 * (std::f64::consts::TAU * k as f64 / n).cos()).collect()
}

/// Starts of the frames of a signal; as in the authors' code, a frame that ends where the signal ends does not count.
fn starts(len: usize) -> impl Iterator<Item = usize> {
    (0..len.saturating_sub(FRAME)).step_by(FRAME / 2)
}

/// Both signals put together again from the windowed frames in which the first one is not silent.
fn without_silence(x: &[f64], y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let window = window();
    let frame = |signal: &[f64], start: usize| -> Vec<f64> {
        signal[start..start + FRAME].iter().zip(&window).map(|(x, w)| x * w).collect()
    };
    let level = |start: usize| 20.0 * (norm(&frame(x, start)) + f64::EPSILON).log10();
    let levels: Vec<f64> = starts(x.len()).map(level).collect();
    let loudest = levels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let kept: Vec<usize> = starts(x.len())
        .zip(&levels)
        .filter(|(_, level)| loudest - RANGE < **level)
        .map(|(start, _)| start)
        .collect();
    let join = |signal: &[f64]| {
        let mut out = vec![0.0; if kept.is_empty() { 0 } else { (kept.len() - 1) * FRAME / 2 + FRAME }];
        for (i, &start) in kept.iter().enumerate() {
            out[i * FRAME / 2..].iter_mut().zip(frame(signal, start)).for_each(|(out, x)| *out += x);
        }
        out
    };
    (join(x), join(y))
}

/// Root energies of third-octave bands, `(bands, frames)`.
fn bands(signal: &[f64]) -> Bands {
    let window = window();
    let fft = RealFftPlanner::<f64>::new().plan_fft_forward(N_FFT);
    let (mut frame, mut spectrum) = (fft.make_input_vec(), fft.make_output_vec());
    let edges: Vec<(usize, usize)> = (0..BANDS).map(band_edges).collect();
    let mut bands = vec![Vec::new(); BANDS];
    for start in starts(signal.len()) {
        frame.fill(0.0);
        for (i, x) in frame[..FRAME].iter_mut().enumerate() {
            *x = signal[start + i] * window[i];
        }
        fft.process(&mut frame, &mut spectrum).expect("buffers were made for this transform");
        for (band, &(low, high)) in bands.iter_mut().zip(&edges) {
            band.push(spectrum[low..high].iter().map(|x| x.norm_sqr()).sum::<f64>().sqrt());
        }
    }
    bands
}

/// First bin of a band and the one behind its last: the bins nearest to its edges.
fn band_edges(band: usize) -> (usize, usize) {
    let nearest = |hz: f64| {
        let bin = hz * N_FFT as f64 / f64::from(RATE);
        // The lower of two equally near ones.
        (bin - 0.5).ceil().max(0.0) as usize
    };
    let edge = |k: f64| LOWEST_HZ * 2f64.powf((2.0 * band as f64 + k) / 6.0);
    (nearest(edge(-1.0)), nearest(edge(1.0)))
}

/// At 10 kHz, by the polyphase filter of Octave's `resample`: a sinc under a Kaiser window with 60 dB of rejection.
fn resampled(x: &[f64], sample_rate: u32) -> Vec<f64> {
    if sample_rate == RATE {
        return x.to_vec();
    }
    let divisor = gcd(RATE, sample_rate);
    let (up, down) = ((RATE / divisor) as usize, (sample_rate / divisor) as usize);
    let rejection = 60.0;
    let cutoff = 1.0 / (2.0 * up.max(down) as f64);
    let half = ((rejection - 8.0) / (28.714 * cutoff / 10.0)).ceil() as isize;
    let beta = 0.1102 * (rejection - 8.7);
    let tap = |t: isize| {
        let arg = 2.0 * cutoff * t as f64;
        let sinc =
            if t == 0 { 1.0 } else { (std::f64::consts::PI * arg).sin() / (std::f64::consts::PI * arg) };
        let at = t as f64 / half as f64;
        2.0 * up as f64 * cutoff * sinc * bessel_i0(beta * (1.0 - at * at).max(0.0).sqrt()) / bessel_i0(beta)
    };
    let filter: Vec<f64> = (-half..=half).map(tap).collect();
    let scale = up as f64 / filter.iter().sum::<f64>();
    let out_len = (x.len() * up).div_ceil(down);
    (0..out_len)
        .map(|m| {
            // Input k stands at k·up, this output at m·down.
            let centre = (m * down) as isize;
            let first = (centre - half).max(0).div_euclid(up as isize)
                + isize::from((centre - half).max(0) % up as isize != 0);
            let last = ((centre + half).div_euclid(up as isize)).min(x.len() as isize - 1);
            let sum: f64 = (first..=last)
                .map(|k| filter[(half + centre - k * up as isize) as usize] * x[k as usize])
                .sum();
            sum * scale
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The modified Bessel function of the first kind and order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let (mut term, mut sum, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-17 {
        term *= (x / (2.0 * k)).powi(2);
        sum += term;
        k += 1.0;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_wholly_intelligible_as_itself() {
        let x: Vec<f64> = crate::sample::voice(3, 2.0).iter().map(|&x| f64::from(x)).collect();
        assert!((stoi(&x, &x, 16_000) - 1.0).abs() < 1e-9);
        assert!((estoi(&x, &x, 16_000) - 1.0).abs() < 1e-9);
        assert_eq!(stoi(&x[..3000], &x[..3000], 16_000), 1e-5, "too short to say");
    }

    #[test]
    fn resampling_keeps_a_tone() {
        let tone = |rate: f64| move |i: usize| (std::f64::consts::TAU * 1000.0 * i as f64 / rate).sin();
        let got = resampled(&(0..1600).map(tone(16_000.0)).collect::<Vec<_>>(), 16_000);
        assert_eq!(got.len(), 1000);
        for (i, want) in (0..1000).map(tone(10_000.0)).enumerate().skip(100).take(800) {
            assert!((got[i] - want).abs() < 2e-3, "{i}: {} {want}", got[i]);
        }
    }
}
