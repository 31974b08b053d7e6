//! The transform inverts, and its gradients are those of finite differences.

use candle_core::{DType, Result, Tensor};
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, pseudo_random};
use mamba_speech::Config;
use mamba_speech::losses::Losses;
use mamba_speech::spectrum::{Spectrum, atan2, compressed_complex};
use mamba_speech::stft::{Stft, StftConfig, istft, stft};
use proptest::prelude::*;

const SMALL: StftConfig = StftConfig { sampling_rate: 16_000, n_fft: 16, hop_size: 4, win_size: 16 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_signal_comes_back_from_its_spectrum(hops in 3usize..40, step in 1usize..5, half in 2usize..40, seed: u64) {
        let n_fft = 4 * half.max(step);
        let hop_size = (n_fft / 4 / step).max(1);
        let cfg = StftConfig { sampling_rate: 16_000, n_fft, hop_size, win_size: n_fft };
        let samples = (hops * hop_size).max((n_fft / 2 + 1).next_multiple_of(hop_size));
        let signal = pseudo_random(&[samples], seed, DType::F64).unwrap().to_vec1::<f64>().unwrap();
        let stft = Stft::<f64>::new(&cfg).unwrap();
        let (re, im) = stft.spectrum(&signal);
        let back = stft.signal(&re, &im);
        prop_assert_eq!(back.len(), signal.len());
        for (a, b) in back.iter().zip(&signal) {
            prop_assert!((a - b).abs() < 1e-10);
        }
    }
}

#[test]
fn impossible_sizes_are_refused_by_name() {
    let error = |cfg: StftConfig| Stft::<f32>::new(&cfg).err().unwrap().to_string();
    assert!(error(StftConfig { n_fft: 401, ..SMALL }).starts_with("n_fft is 401: expected an even number"));
    assert!(error(StftConfig { hop_size: 0, ..SMALL }).starts_with("hop_size is 0"));
    assert!(error(StftConfig { win_size: 8, ..SMALL }).starts_with("win_size is 8"));
}

#[test]
fn gradients_of_the_transforms_are_those_of_finite_differences() -> Result<()> {
    let weighted = |y: Tensor| (&y * pseudo_random(y.dims(), 9, DType::F64)?)?.sum_all();
    let signal = pseudo_random(&[2, 24], 1, DType::F64)?;
    expect_gradients_match_differences(&[("signal", signal.clone())], 1e-7, |x| {
        weighted(stft(&x[0], &SMALL)?)
    })?;
    let spectrum = pseudo_random(&[2, 4, 9, 2], 2, DType::F64)?;
    expect_gradients_match_differences(&[("spectrum", spectrum)], 1e-7, |x| weighted(istft(&x[0], &SMALL)?))?;
    expect_gradients_match_differences(&[("signal", signal)], 1e-5, |x| {
        weighted(compressed_complex(&x[0], &SMALL, 0.3)?)
    })?;
    let points =
        [("y", pseudo_random(&[3, 5], 3, DType::F64)?), ("x", pseudo_random(&[3, 5], 4, DType::F64)?)];
    expect_gradients_match_differences(&points, 1e-6, |x| weighted(atan2(&x[0], &x[1])?))
}

#[test]
fn gradients_of_the_losses_are_those_of_finite_differences() -> Result<()> {
    let mut cfg = Config { stft_cfg: SMALL, ..Config::default() };
    cfg.model_cfg.hid_feature = 2;
    let clean = pseudo_random(&[1, 16], 1, DType::F64)?;
    let clean_spectrum = Spectrum::of(&clean, &SMALL, 0.3)?;
    let mag = (pseudo_random(&[1, 5, 9], 2, DType::F64)?.abs()? + 0.2)?;
    let inputs = [("mag", mag), ("pha", (pseudo_random(&[1, 5, 9], 3, DType::F64)? * 3.0)?)];
    type Part = fn(&Losses) -> &Tensor;
    let parts: [(&str, Part); 5] = [
        ("magnitude", |l| &l.magnitude),
        ("phase", |l| &l.phase),
        ("complex", |l| &l.complex),
        ("time", |l| &l.time),
        ("consistency", |l| &l.consistency),
    ];
    for (name, part) in parts {
        let loss = |x: &[Tensor]| {
            let enhanced = Spectrum { mag: x[0].clone(), pha: x[1].clone() };
            Ok(part(&Losses::new(&cfg, &enhanced, &clean_spectrum, &clean)?).clone())
        };
        expect_gradients_match_differences(&inputs, 1e-5, loss)
            .map_err(|e| candle_core::Error::msg(format!("{name}: {e}")))?;
    }
    Ok(())
}

#[test]
fn losses_of_the_clean_spectrum_are_zero() -> Result<()> {
    let cfg = Config::default();
    let clean = pseudo_random(&[2, 4000], 1, DType::F64)?;
    let spectrum = Spectrum::of(&clean, &cfg.stft_cfg, 0.3)?;
    let losses = Losses::new(&cfg, &spectrum, &spectrum, &clean)?;
    for loss in [losses.magnitude, losses.phase, losses.complex, losses.time, losses.consistency] {
        assert!(loss.to_scalar::<f64>()? < 1e-8, "{loss}");
    }
    expect_close("signal", &spectrum.signal(&cfg.stft_cfg, 0.3)?, &clean, 1e-9)
}
