//! Generated sound, so that a first run needs no data: voices made of harmonics under moving formants, and coloured,
//! modulated noise.
//!
//! It has what enhancement feeds on (pitch, formants, pauses, plosives) and no words. A model trained on it is a
//! demonstration.

use mamba_core::Rng;
use std::f64::consts::TAU;

/// Samples in a second.
pub const SAMPLE_RATE: u32 = 16_000;

/// A voice of so many seconds.
pub fn voice(seed: u64, seconds: f64) -> Vec<f32> {
    let mut rng = Rng::stream(seed, "voice", 0);
    let pitch = rng.uniform_in(90.0, 230.0);
    speak(pitch, &mut rng, seconds)
}

/// A voice of about this pitch in Hz, for so many seconds: a talker who says something else for every seed.
pub fn voice_of(pitch: f64, seed: u64, seconds: f64) -> Vec<f32> {
    speak(pitch, &mut Rng::stream(seed, "voice of", 0), seconds)
}

fn speak(base: f64, rng: &mut Rng, seconds: f64) -> Vec<f32> {
    let rate = f64::from(SAMPLE_RATE);
    let n = (seconds * rate) as usize;
    let mut out = vec![0f32; n];
    let (mut start, mut phase) = (0, 0.0);
    while start < n {
        let len = (rng.uniform_in(0.08, 0.3) * rate) as usize;
        let formants =
            [rng.uniform_in(280.0, 850.0), rng.uniform_in(900.0, 2300.0), rng.uniform_in(2400.0, 3600.0)];
        let (pitch, glide) = (base * rng.uniform_in(0.85, 1.2), rng.uniform_in(-0.15, 0.15));
        let loudness = rng.uniform_in(0.3, 1.0);
        let kind = rng.uniform();
        for i in 0..len.min(n - start) {
            let at = i as f64 / len as f64;
            let envelope = (std::f64::consts::PI * at).sin().powf(0.6) * loudness;
            let f0 = pitch * (1.0 + glide * at);
            phase += f0 / rate;
            let x = match kind {
                k if k < 0.7 => voiced(f0, phase, &formants),
                k if k < 0.85 => 0.05 * rng.normal(), // fricative
                _ => 0.0,                             // pause
            };
            out[start + i] = (x * envelope) as f32;
        }
        start += len;
    }
    out
}

/// A moment of a voice: harmonics of `f0` Hz, louder near the formants.
fn voiced(f0: f64, phase: f64, formants: &[f64; 3]) -> f64 {
    let harmonic = |h: usize| {
        let f = h as f64 * f0;
        let gain: f64 = formants.iter().map(|c| 1.0 / (1.0 + ((f - c) / 110.0).powi(2))).sum();
        (0.02 + gain) / (1.0 + f / 1500.0) * (TAU * phase * h as f64).sin()
    };
    0.12 * (1..=(4000.0 / f0) as usize).map(harmonic).sum::<f64>()
}

/// The vowels that [`vowel`] speaks.
pub const VOWELS: [&str; 5] = ["a", "e", "i", "o", "u"];

/// One of [`VOWELS`], spoken for 0.3 to 0.7 s by a voice of random pitch and size.
///
/// # Panics
/// For a number that no vowel has.
pub fn vowel(which: usize, seed: u64) -> Vec<f32> {
    // Means of men's voices (Peterson and Barney 1952).
    const FORMANTS: [[f64; 3]; 5] = [
        [730.0, 1090.0, 2440.0],
        [530.0, 1840.0, 2480.0],
        [270.0, 2290.0, 3010.0],
        [570.0, 840.0, 2410.0],
        [300.0, 870.0, 2240.0],
    ];
    let mut rng = Rng::stream(seed, "vowel", which as u64);
    let (pitch, size) = (rng.uniform_in(90.0, 230.0), rng.uniform_in(0.95, 1.15));
    let formants = FORMANTS[which].map(|f| f * size * rng.uniform_in(0.97, 1.03));
    let n = (rng.uniform_in(0.3, 0.7) * f64::from(SAMPLE_RATE)) as usize;
    let mut phase = 0.0;
    (0..n)
        .map(|i| {
            let at = i as f64 / n as f64;
            let f0 = pitch * (1.05 - 0.1 * at);
            phase += f0 / f64::from(SAMPLE_RATE);
            let envelope = (std::f64::consts::PI * at).sin().sqrt();
            (envelope * voiced(f0, phase, &formants) + 0.002 * rng.normal()) as f32
        })
        .collect()
}

/// Noise of so many seconds: coloured by a recursive filter, its level wandering.
pub fn noise(seed: u64, seconds: f64) -> Vec<f32> {
    let mut rng = Rng::stream(seed, "noise", 0);
    let rate = f64::from(SAMPLE_RATE);
    let (colour, depth) = (rng.uniform_in(-0.5, 0.95), rng.uniform_in(0.0, 0.8));
    let (speed, hum) = (rng.uniform_in(0.3, 6.0), rng.uniform_in(50.0, 400.0));
    let hum_gain = rng.uniform_in(0.0, 0.5);
    let mut last = 0.0;
    (0..(seconds * rate) as usize)
        .map(|i| {
            let t = i as f64 / rate;
            last = colour * last + (1.0 - colour * colour).sqrt() * rng.normal();
            let level = 1.0 + depth * (TAU * speed * t).sin();
            (0.1 * (last * level + hum_gain * (TAU * hum * t).sin())) as f32
        })
        .collect()
}
