//! Samples per second of SEMamba, as published and small, on segments of two seconds at 16 kHz, as VoiceBank-DEMAND is
//! trained on: STFT and spectrum are part of a training step, the discriminator is not.

#[path = "../../core/benches/measure/mod.rs"]
mod measure;

use candle_core::{DType, Device};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_core::Rng;
use mamba_speech::losses::{LossWeights, Losses};
use mamba_speech::spectrum::Spectrum;
use mamba_speech::{Config, SeMamba};

const SAMPLES: usize = 32_000;

fn semamba(c: &mut Criterion) {
    let random = |seed: u64| {
        let x = Rng::new(seed).normal_tensor((1, SAMPLES), 0.0, 0.1, DType::F32, &Device::Cpu);
        x.expect("a signal")
    };
    let (clean, noise) = (random(1), random(2));
    let noisy = (&clean + noise).expect("signals of one length");
    for preset in ["semamba-small", "semamba"] {
        let cfg = Config::preset(preset).expect("a preset of that name");
        let spectrum = |signal| Spectrum::of(signal, &cfg.stft_cfg, cfg.model_cfg.compress_factor);
        measure::forward_and_train_step(
            c,
            &format!("{preset}/voicebank_2s"),
            SAMPLES,
            |pb| SeMamba::new(&cfg, pb),
            |model| Ok(model.forward(&spectrum(&noisy)?)?.mag),
            |model| {
                let enhanced = model.forward(&spectrum(&noisy)?)?;
                let losses = Losses::new(&cfg, &enhanced, &spectrum(&clean)?, &clean)?;
                Ok(losses.total(&LossWeights::default())?)
            },
        );
    }
}

criterion_group!(benches, semamba);
criterion_main!(benches);
