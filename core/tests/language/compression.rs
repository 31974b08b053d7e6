//! Fewer states for a trained model: what it costs, and what training it on gives back.

use super::*;
use mamba_core::memory::compress::compress;
use mamba_core::nn::cross_entropy;
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{MixerConfig, S4dConfig};

fn model_of(mixer: &MixerConfig) -> LmConfig {
    LmConfig { d_intermediate: 0, ssm_cfg: mixer.into(), ..config(true) }
}

/// Sequences that repeat with a period of 3 to 5.
fn loss(lm: &MambaLm, rng: &mut Rng) -> Result<Tensor> {
    const LEN: usize = 24;
    let rows = (0..8).flat_map(|_| {
        let period: Vec<u32> = (0..3 + rng.below(3)).map(|_| rng.below(11) as u32).collect();
        (0..=LEN).map(move |t| period[t % period.len()])
    });
    let x = Tensor::from_vec(rows.collect::<Vec<_>>(), (8, LEN + 1), &CPU)?;
    cross_entropy(&lm.forward(&x.narrow(1, 0, LEN)?.contiguous()?)?, &x.narrow(1, 1, LEN)?, None)
}

fn train(params: &Params, lm: &MambaLm, steps: usize, seed: u64) -> mamba_core::Result<()> {
    let mut optimizer = AdamW::new(params, AdamWConfig::default())?;
    let mut rng = Rng::new(seed);
    for _ in 0..steps {
        optimizer.step(&Gradients::of(&loss(lm, &mut rng)?, params)?, 1e-2)?;
    }
    Ok(())
}

fn score(lm: &MambaLm) -> Result<f32> {
    loss(lm, &mut Rng::new(99))?.to_scalar()
}

#[test]
fn half_the_states_cost_little_after_training_on() -> mamba_core::Result<()> {
    for mixer in [
        Mamba1Config { d_state: 8, ..Default::default() }.into(),
        S4dConfig { d_state: 16, ..Default::default() }.into(),
    ] {
        comes_down_to_half(&mixer)?;
    }
    Ok(())
}

fn comes_down_to_half(mixer: &MixerConfig) -> mamba_core::Result<()> {
    let (kind, states) = (mixer.kind(), mixer.d_state());
    let params = Params::fresh(3, DType::F32, &CPU);
    let lm = MambaLm::new(&model_of(mixer), &params.builder())?;
    let untrained = score(&lm)?;
    train(&params, &lm, 120, 1)?;
    let before = score(&lm)?;

    let mut tensors = params.to_tensors();
    let (half, reductions) = compress(&mut tensors, mixer, states / 2)?;
    assert_eq!((half.d_state(), half.kind(), reductions.len()), (states / 2, kind, 2));
    for r in &reductions {
        assert!(
            r.hankel.len() == states && r.hankel.windows(2).all(|w| w[0] >= w[1] && w[1] >= 0.0),
            "{r:?}"
        );
        assert!(r.dropped(states / 2) < 0.5 && r.dropped(states) == 0.0 && r.dropped(0) == 1.0, "{r:?}");
        assert_eq!(r.kept.as_ref().map(Vec::len), (kind == "mamba1").then_some(states / 2));
    }
    let small = Params::trainable(tensors, 0, DType::F32, &CPU);
    let reduced = MambaLm::new(&model_of(&half), &small.builder())?;
    small.check()?;
    let after = score(&reduced)?;
    train(&small, &reduced, 40, 2)?;
    let again = score(&reduced)?;
    println!(
        "{kind}: loss {untrained:.3} untrained, {before:.3} with {states} states, {after:.3} with half, {again:.3} trained on"
    );
    assert!(before < 0.8 * untrained, "{before}, {untrained} untrained");
    assert!(after < untrained, "{after}, {untrained} untrained");
    assert!(again < before * 1.05, "{again} with half the states, {before} with all");

    let mut all = params.to_tensors();
    compress(&mut all, mixer, states)?;
    let same = Params::frozen(all, DType::F32, &CPU);
    let same = score(&MambaLm::new(&model_of(mixer), &same.builder())?)?;
    assert!((same - before).abs() < 1e-5, "{same}, {before}: keeping all changes nothing");
    let error = compress(&mut params.to_tensors(), mixer, states + 1).unwrap_err().to_string();
    assert_eq!(error, format!("cannot reduce {states} states to {}", states + 1));
    Ok(())
}
