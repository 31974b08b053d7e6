//! Every parameter takes part, and training lowers the loss.

use candle_core::{DType, Device};
use mamba_core::optim::{AdamW, Gradients};
use mamba_core::train::TrainConfig;
use mamba_core::{Params, Rng};
use mamba_kernels::testing::emulation;
use mamba_speech::Config;
use mamba_speech::losses::LossWeights;
use mamba_speech::metrics::{si_sdr_db, stoi};
use mamba_speech::mixture::{MixtureConfig, Mixtures, Pair};
use mamba_speech::task::{Enhancement, EnhancementConfig};
use std::path::Path;

fn config(preset: &str) -> EnhancementConfig {
    let mut model = Config::preset(preset).unwrap();
    (model.model_cfg.hid_feature, model.model_cfg.num_tfmamba, model.model_cfg.dense_depth) = (8, 1, 2);
    let data = MixtureConfig { segment_size: 8_000, valid_clips: 1, ..MixtureConfig::default() };
    EnhancementConfig { model, train: TrainConfig::default(), data, loss: LossWeights::default() }
}

#[test]
fn every_parameter_has_a_gradient_and_one_batch_is_learnt() {
    for (preset, metric) in [("semamba-small", 0.05), ("semamba-stream", 0.0)] {
        let mut cfg = config(preset);
        cfg.loss.metric = metric;
        let mixtures = Mixtures::generated(&cfg.data).unwrap();
        let params = Params::fresh(0, DType::F32, &Device::Cpu);
        let task = Enhancement::new(&cfg, &mixtures, params.clone()).unwrap();
        let pairs: Vec<Pair> = (0..2).map(|i| mixtures.train_pair(0, i)).collect();
        let mut optimizer = AdamW::new(&params, cfg.train.adamw()).unwrap();
        let (mut first, mut last) = (None, 0.0);
        for step in 0..16 {
            let loss = task.loss(&pairs, &mut Rng::new(step)).unwrap();
            last = loss.to_scalar::<f32>().unwrap();
            first.get_or_insert(last);
            let store = loss.backward().unwrap();
            if step == 1 {
                // Behind this PReLU stands a maximum over all pixels, which is never negative: its slope is not used.
                let idle = "discriminator.layers.11.weight";
                for param in params.named().iter().filter(|p| p.name() != idle) {
                    let grad = store
                        .get(param.tensor())
                        .unwrap_or_else(|| panic!("{} has no gradient", param.name()));
                    let largest = grad.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(largest.is_finite() && largest > 0.0, "{}: {largest}", param.name());
                }
            }
            let mut grads = Gradients::new(&params);
            grads.accumulate(store).unwrap();
            grads.clip_grad_norm(5.0, step + 1).unwrap();
            optimizer.step(&grads, 1e-2).unwrap();
        }
        assert!(last < 0.9 * first.unwrap(), "{preset}: {first:?} → {last}");
    }
}

/// What a GPU computes in bf16, here in f16, which the CPU multiplies.
#[test]
fn enhancement_trains_in_half_precision() {
    let Some(emulation) = emulation(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return };
    let mut cfg = config("semamba-small");
    (cfg.loss.metric, cfg.data.segment_size) = (0.0, 1600);
    let mixtures = Mixtures::generated(&cfg.data).unwrap();
    let pairs: Vec<Pair> = (0..2).map(|i| mixtures.train_pair(0, i)).collect();
    let loss = |params: &Params| {
        let task = Enhancement::new(&cfg, &mixtures, params.clone()).unwrap();
        task.loss(&pairs, &mut Rng::new(0)).unwrap()
    };
    let params = Params::fresh(0, DType::F32, &Device::Cpu);
    let want = loss(&params).to_scalar::<f32>().unwrap();
    let params = Params::trainable(params.to_tensors(), 0, DType::F16, &Device::Cpu);
    emulation.run(|| {
        let loss = loss(&params);
        let got = loss.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap();
        assert!((got - want).abs() < 0.05 * want, "{got}, in f32 {want}");
        assert!(Gradients::of(&loss, &params).unwrap().norm().unwrap() > 0.0);
    });
}

#[test]
fn mixtures_depend_on_seed_and_number_only_and_have_the_ratio_asked_for() {
    let cfg = MixtureConfig { snr_db: (5.0, 5.0), tilt: 0.0, valid_clips: 3, ..MixtureConfig::default() };
    let mixtures = Mixtures::generated(&cfg).unwrap();
    assert_eq!(mixtures.train_pair(1, 2), mixtures.train_pair(1, 2));
    assert_ne!(mixtures.train_pair(1, 2), mixtures.train_pair(1, 3));
    assert_ne!(mixtures.train_pair(1, 2), mixtures.train_pair(2, 2));
    let valid = mixtures.valid_pairs();
    assert_eq!(valid, mixtures.valid_pairs());
    for pair in valid.iter().chain([&mixtures.train_pair(0, 0)]) {
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (clean, noisy) = (wide(&pair.clean), wide(&pair.noisy));
        // 5 dB where there is speech, so less over the whole.
        let ratio = si_sdr_db(&clean, &noisy);
        assert!((-1.0..6.0).contains(&ratio), "{ratio} dB");
        assert!(stoi(&clean, &noisy, 16_000) < 0.999);
        assert!(pair.noisy.iter().all(|x| x.abs() <= 1.0), "nothing is clipped");
    }
}

#[test]
fn reverberation_keeps_the_early_sound() {
    let cfg = MixtureConfig {
        reverberation: 1.0,
        snr_db: (60.0, 60.0),
        tilt: 0.0,
        segment_size: 16_000,
        ..MixtureConfig::default()
    };
    let pair = Mixtures::generated(&cfg).unwrap().train_pair(0, 5);
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let ratio = si_sdr_db(&wide(&pair.clean), &wide(&pair.noisy));
    assert!((0.0..40.0).contains(&ratio), "late reverberation is all that differs: {ratio} dB");
}
