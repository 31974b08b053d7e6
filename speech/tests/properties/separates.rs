//! Talkers add up to the mixture, their order does not matter, chunks keep it, and training parts them.

use candle_core::{DType, Device, Result, Tensor};
use mamba_core::optim::{AdamW, Gradients};
use mamba_core::train::TrainConfig;
use mamba_core::{Mamba2Config, Params};
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, pseudo_random};
use mamba_speech::enhance::ChunkConfig;
use mamba_speech::metrics::si_sdr_db;
use mamba_speech::sample;
use mamba_speech::separation::loss::pit_loss;
use mamba_speech::separation::{
    DualPathMamba, Mixture, Part, Separated, Separation, SeparationConfig, Separator, SeparatorConfig,
    Stitch, Talk, TalkConfig,
};
use mamba_speech::stft::StftConfig;
use proptest::prelude::*;

fn small(n_src: usize) -> SeparatorConfig {
    SeparatorConfig { n_src, channels: 8, num_blocks: 1, d_state: 4, ..SeparatorConfig::default() }
}

fn separator(n_src: usize) -> Separator {
    let params = Params::fresh(3, DType::F32, &Device::Cpu);
    DualPathMamba::new(&small(n_src), &params.builder()).unwrap();
    Separator::new(&small(n_src), params.to_tensors(), DType::F32, &Device::Cpu).unwrap()
}

fn talk() -> Talk {
    let cfg = TalkConfig { segment_size: 8192, valid_mixtures: 2, ..TalkConfig::default() };
    Talk::generated(2, 8000, &cfg).unwrap()
}

#[test]
fn talkers_have_the_length_of_the_mixture_and_add_up_to_it() {
    for n_src in [2, 3] {
        let separator = separator(n_src);
        for len in [1, 255, 4000, 12_345] {
            let mixture: Vec<f32> = sample::voice(1, 1.0)[..len].iter().map(|x| 0.3 * x + 1e-3).collect();
            let talkers = separator.separate(&mixture).unwrap();
            assert_eq!(talkers.len(), n_src);
            for (i, x) in mixture.iter().enumerate() {
                let sum: f32 = talkers.iter().map(|t| t[i]).sum();
                assert!((sum - x).abs() < 1e-4, "{len} samples: {sum} for {x} at {i}");
            }
        }
        assert_eq!(separator.separate(&[0.0; 700]).unwrap(), vec![vec![0.0; 700]; n_src]);
    }
}

#[test]
fn a_louder_mixture_has_louder_talkers() {
    let separator = separator(2);
    let mixture = sample::voice(2, 0.6);
    let louder: Vec<f32> = mixture.iter().map(|x| 40.0 * x).collect();
    let (a, b) = (separator.separate(&mixture).unwrap(), separator.separate(&louder).unwrap());
    let largest = b.iter().flatten().fold(0f32, |m, x| m.max(x.abs()));
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!((40.0 * a - b).abs() < 1e-3 * largest);
    }
}

#[test]
fn the_loss_does_not_depend_on_the_order_and_its_gradients_are_right() -> Result<()> {
    let (truth, estimates) =
        (pseudo_random(&[2, 3, 40], 1, DType::F64)?, pseudo_random(&[2, 3, 40], 2, DType::F64)?);
    let loss = pit_loss(&estimates, &truth)?;
    for order in [[1u32, 0, 2], [2, 0, 1], [2, 1, 0]] {
        let order = Tensor::new(&order, &Device::Cpu)?;
        expect_close("loss", &pit_loss(&estimates.index_select(&order, 1)?, &truth)?, &loss, 1e-12)?;
        expect_close("loss", &pit_loss(&estimates, &truth.index_select(&order, 1)?)?, &loss, 1e-12)?;
    }
    // A mixture of right and wrong, so that no other order is near.
    let near = ((&truth * 0.7)? + (&estimates * 0.3)?)?;
    expect_gradients_match_differences(&[("estimates", near)], 1e-6, |x| pit_loss(&x[0], &truth))
}

#[test]
fn gradients_of_the_model_are_those_of_finite_differences() -> Result<()> {
    let stft_cfg = StftConfig { sampling_rate: 8000, n_fft: 16, hop_size: 8, win_size: 16 };
    let cfg = SeparatorConfig {
        stft_cfg,
        channels: 2,
        num_blocks: 1,
        band: 4,
        d_state: 2,
        ..SeparatorConfig::default()
    };
    let params = Params::fresh(1, DType::F64, &Device::Cpu);
    let model = DualPathMamba::new(&cfg, &params.builder())?;
    let weights = pseudo_random(&[2, 2, 24], 5, DType::F64)?;
    let mixture = pseudo_random(&[2, 24], 4, DType::F64)?;
    expect_gradients_match_differences(&[("mixture", mixture)], 1e-5, |x| {
        (model.forward(&x[0])? * &weights)?.sum_all()
    })
}

/// Parts a signal at the level 0: what is above goes to one talker, what is below to the other.
fn by_sign(signal: &[f32]) -> Vec<Vec<f32>> {
    vec![signal.iter().map(|x| x.max(0.0)).collect(), signal.iter().map(|x| x.min(0.0)).collect()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn chunks_are_the_whole_though_each_has_an_order_of_its_own(
        len in 0usize..3000, block in 1usize..700, length in 40usize..400, overlap in 1usize..200, seed: u64,
    ) {
        let signal: Vec<f32> = pseudo_random(&[len.max(1)], seed, DType::F32).unwrap().to_vec1().unwrap()[..len].to_vec();
        let mut flips = mamba_core::Rng::new(seed);
        let mut first = true;
        let separate = |chunk: &[f32]| {
            let mut talkers = by_sign(chunk);
            if !std::mem::take(&mut first) && flips.uniform() < 0.5 {
                talkers.reverse();
            }
            Ok(talkers)
        };
        let mut stitch = Stitch::new(separate, 2, ChunkConfig { length, overlap });
        let mut out = vec![Vec::new(); 2];
        let mut join = |talkers: Vec<Vec<f32>>| out.iter_mut().zip(talkers).for_each(|(all, more)| all.extend(more));
        let mut heard = 0;
        for samples in signal.chunks(block) {
            heard += samples.len();
            let talkers = stitch.push(samples).unwrap();
            join(talkers);
        }
        join(stitch.finish().unwrap());
        prop_assert_eq!(heard, len);
        for (got, want) in out.iter().zip(by_sign(&signal)) {
            prop_assert_eq!(got.len(), want.len());
            prop_assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn si_sdr_does_not_depend_on_the_scale(scale in 0.001f64..1000.0, seed: u64) {
        let signal = |seed| pseudo_random(&[300], seed, DType::F64).unwrap().to_vec1::<f64>().unwrap();
        let (clean, other) = (signal(seed), signal(seed ^ 1));
        let noisy: Vec<f64> = clean.iter().zip(&other).map(|(a, b)| a + 0.4 * b).collect();
        let scaled: Vec<f64> = noisy.iter().map(|x| -scale * x).collect();
        prop_assert!((si_sdr_db(&clean, &noisy) - si_sdr_db(&clean, &scaled)).abs() < 1e-6);
    }
}

#[test]
fn a_short_recording_is_one_chunk() {
    let separator = separator(2);
    let signal = sample::voice(3, 0.7);
    let mut stitch =
        Stitch::new(|x: &[f32]| separator.separate(x), 2, ChunkConfig { length: 8000, overlap: 2000 });
    let mut out = vec![Vec::new(); 2];
    for samples in signal.chunks(999) {
        assert!(stitch.push(samples).unwrap().iter().all(Vec::is_empty));
    }
    out.iter_mut().zip(stitch.finish().unwrap()).for_each(|(all, more): (&mut Vec<f32>, _)| all.extend(more));
    assert_eq!(out, separator.separate(&signal).unwrap());
}

#[test]
fn mixtures_depend_on_seed_and_number_and_parts_share_no_sentence() {
    let talk = talk();
    assert_eq!(talk.train_mixture(1, 2), talk.train_mixture(1, 2));
    assert_ne!(talk.train_mixture(1, 2), talk.train_mixture(1, 3));
    assert_ne!(talk.train_mixture(1, 2), talk.train_mixture(2, 2));
    for part in [Part::Valid, Part::Test] {
        let held_out = talk.held_out(part, 3).unwrap();
        assert_eq!(held_out, talk.held_out(part, 3).unwrap());
        for mixture in &held_out {
            assert_ne!(mixture.names[0], mixture.names[1]);
            for (i, x) in mixture.mixture.iter().enumerate() {
                assert!((mixture.talkers[0][i] + mixture.talkers[1][i] - x).abs() < 1e-6);
            }
        }
    }
    // Each sentence is a constant of its own, so that a mixture tells what is in it.
    let clip =
        |i: usize| (format!("talker {}", i % 2), (i / 2).to_string(), vec![1.0 + (i / 2) as f32; 4000]);
    let cfg =
        TalkConfig { level_db: 0.0, segment_size: 1600, valid: 0.2, test: 0.2, ..TalkConfig::default() };
    let talk = Talk::new((0..40).map(clip).collect(), 2, 8000, &cfg).unwrap();
    assert!(
        talk.describe().contains("2 talkers; 12 s of speech to train on, 4 s and 4 s"),
        "{}",
        talk.describe()
    );
    let alone = Talk::new((0..40).step_by(2).map(clip).collect(), 2, 8000, &cfg).unwrap_err().to_string();
    assert!(
        alone.starts_with("mixtures of 2 talkers need 2 of them with Train sentences, here are: talker 0"),
        "{alone}"
    );
}

#[test]
fn the_best_order_is_scored() {
    let talkers = vec![sample::voice_of(100.0, 1, 0.5), sample::voice_of(200.0, 2, 0.5)];
    let mixture: Vec<f32> = talkers[0].iter().zip(&talkers[1]).map(|(a, b)| a + b).collect();
    let names = vec!["a".to_string(), "b".to_string()];
    let whole = Mixture { mixture: mixture.clone(), talkers: talkers.clone(), names };
    let leaky: Vec<Vec<f32>> =
        talkers.iter().map(|t| t.iter().zip(&mixture).map(|(t, m)| 0.9 * t + 0.1 * m).collect()).collect();
    let given = Separated::score(&whole, &leaky);
    let swapped = Separated::score(&whole, &[leaky[1].clone(), leaky[0].clone()]);
    assert_eq!(given, swapped);
    assert!(given.improvement_db() > 15.0, "{given:?}");
    let nothing = Separated::score(&whole, &[mixture.clone(), mixture]);
    assert!(nothing.improvement_db().abs() < 1e-9);
}

#[test]
fn every_parameter_has_a_gradient_and_generated_voices_are_parted() {
    let cfg = SeparationConfig {
        model: SeparatorConfig { channels: 16, num_blocks: 2, ..SeparatorConfig::default() },
        train: TrainConfig { betas: (0.9, 0.99), weight_decay: 0.0, ..TrainConfig::default() },
        data: TalkConfig { segment_size: 4096, valid_mixtures: 1, ..TalkConfig::default() },
    };
    let talk = Talk::generated(2, 8000, &cfg.data).unwrap();
    let params = Params::fresh(0, DType::F32, &Device::Cpu);
    let task = Separation::new(&cfg, &talk, params.clone()).unwrap();
    let mixtures: Vec<Mixture> = (0..2).map(|i| talk.train_mixture(0, i)).collect();
    let mut optimizer = AdamW::new(&params, cfg.train.adamw()).unwrap();
    let mut losses = Vec::new();
    for step in 0..40 {
        let loss = task.loss(&mixtures).unwrap();
        losses.push(loss.to_scalar::<f32>().unwrap());
        let store = loss.backward().unwrap();
        if step == 1 {
            for param in params.named() {
                let grad =
                    store.get(param.tensor()).unwrap_or_else(|| panic!("{} has no gradient", param.name()));
                let largest = grad.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(largest.is_finite() && largest > 0.0, "{}: {largest}", param.name());
            }
        }
        let mut grads = Gradients::new(&params);
        grads.accumulate(store).unwrap();
        grads.clip_grad_norm(5.0, step + 1).unwrap();
        optimizer.step(&grads, 3e-3).unwrap();
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < first - 5.0, "from {first} to {last} dB");
}

#[test]
fn mamba_2_takes_the_place_of_mamba_1() {
    let mamba2 = Mamba2Config { d_state: 4, headdim: 8, ..Mamba2Config::default() };
    let cfg = SeparationConfig {
        model: SeparatorConfig { ssm_cfg: Some(mamba2.into()), ..small(2) },
        train: TrainConfig::default(),
        data: TalkConfig { segment_size: 4096, valid_mixtures: 1, ..TalkConfig::default() },
    };
    let talk = Talk::generated(2, 8000, &cfg.data).unwrap();
    let params = Params::fresh(0, DType::F32, &Device::Cpu);
    let task = Separation::new(&cfg, &talk, params.clone()).unwrap();
    let grads = Gradients::of(&task.loss(&[talk.train_mixture(0, 0)]).unwrap(), &params).unwrap();
    assert!(grads.missing().is_empty(), "{:?}", grads.missing());
    assert!(params.named().iter().any(|param| param.name().ends_with("mixer.norm.weight")), "of Mamba-2");
}

#[test]
fn impossible_models_are_refused() {
    let error = |cfg: SeparatorConfig| cfg.validate().unwrap_err().to_string();
    assert!(error(SeparatorConfig { band: 3, ..small(2) }).contains("band is 3, expected a divisor of 128"));
    assert!(error(small(5)).contains("n_src is 5, expected 2 to 4"));
    assert!(error(SeparatorConfig { model_type: "semamba".into(), ..small(2) }).contains("\"semamba\""));
}
