//! Motions per second in the shape of HumanML3D: one denoising step of Motion Mamba (eleven levels, a latent of 2 × 256
//! numbers, a text vector of 768) for 64 motions, and the VAE on 4 motions of 196 frames.

#[path = "../../core/benches/measure/mod.rs"]
mod measure;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_core::Rng;
use mamba_motion::features::N_FEATURES;
use mamba_motion::models::{
    Condition, ConditionConfig, Denoiser, DenoiserConfig, MotionMambaConfig, MotionVae, NetworkConfig,
    VaeConfig,
};

const TEXT: usize = 768;
const FRAMES: usize = 196;

fn random(dims: (usize, usize, usize), seed: u64) -> Tensor {
    Rng::new(seed).normal_tensor(dims, 0.0, 1.0, DType::F32, &Device::Cpu).expect("random values")
}

fn denoiser(c: &mut Criterion) {
    const BATCH: usize = 64;
    let cfg = DenoiserConfig {
        latent_tokens: 2,
        latent_dim: 256,
        condition: ConditionConfig::Text { dim: TEXT },
        network: NetworkConfig::MotionMamba(MotionMambaConfig::default()),
    };
    let shape = (BATCH, cfg.latent_tokens, cfg.latent_dim);
    let (noisy, noise) = (random(shape, 1), random(shape, 2));
    let text = Condition::Text(vec![Some(vec![0.1; TEXT]); BATCH]);
    let predict = |model: &Denoiser| model.forward(&noisy, &[500; BATCH], &text, &[FRAMES; BATCH]);
    measure::forward_and_train_step(
        c,
        "motion_mamba/humanml3d_b64",
        BATCH,
        |pb| Denoiser::new(&cfg, pb),
        |model| Ok(predict(model)?),
        |model| Ok((predict(model)? - &noise)?.sqr()?.mean_all()?),
    );
}

fn vae(c: &mut Criterion) {
    const BATCH: usize = 4;
    let cfg = VaeConfig::default();
    let motion = random((BATCH, FRAMES, N_FEATURES), 1);
    let noise = random((BATCH, cfg.latent_tokens, cfg.latent_dim), 2);
    let lengths = [FRAMES; BATCH];
    measure::forward_and_train_step(
        c,
        "motion_vae/humanml3d_196",
        BATCH,
        |pb| MotionVae::new(&cfg, pb),
        |model| Ok(model.decode(&model.encode(&motion, &lengths, None)?.mean, &lengths, None)?),
        |model| {
            let mut rng = Rng::stream(0, "dropout", 0);
            Ok(model.loss(&motion, &lengths, &noise, Some(&mut rng))?.total)
        },
    );
}

criterion_group!(benches, denoiser, vae);
criterion_main!(benches);
