//! Fewer states for a trained model: what it costs, and what training it on gives back.

use super::*;
use mamba_core::memory::compress::reduce_mamba1;
use mamba_core::nn::cross_entropy;
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};

fn mixer(d_state: usize) -> Mamba1Config {
    Mamba1Config { d_state, ..Default::default() }
}

fn with_states(d_state: usize) -> LmConfig {
    LmConfig { d_intermediate: 0, ssm_cfg: mixer(d_state).into(), ..config(true) }
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
    let params = Params::fresh(3, DType::F32, &CPU);
    let lm = MambaLm::new(&with_states(8), &params.builder())?;
    let untrained = score(&lm)?;
    train(&params, &lm, 120, 1)?;
    let before = score(&lm)?;

    let mut tensors = params.to_tensors();
    let reductions = reduce_mamba1(&mut tensors, &mixer(8), 4)?;
    assert_eq!(reductions.len(), 2);
    for r in &reductions {
        let least = r.kept.iter().map(|&k| r.worth[k]).fold(f64::INFINITY, f64::min);
        let dropped = (0..8).filter(|k| !r.kept.contains(k)).map(|k| r.worth[k]);
        assert!(r.kept.len() == 4 && dropped.fold(0.0, f64::max) <= least, "{r:?}");
    }
    let small = Params::trainable(tensors, 0, DType::F32, &CPU);
    let reduced = MambaLm::new(&with_states(4), &small.builder())?;
    small.check()?;
    let after = score(&reduced)?;
    train(&small, &reduced, 40, 2)?;
    let again = score(&reduced)?;
    println!(
        "loss {untrained:.3} untrained, {before:.3} with 8 states, {after:.3} with 4, {again:.3} trained on"
    );
    assert!(before < 0.8 * untrained, "{before}, {untrained} untrained");
    assert!(after < untrained, "{after}, {untrained} untrained");
    assert!(again < before * 1.05, "{again} with 4 states, {before} with 8");

    let mut all = params.to_tensors();
    reduce_mamba1(&mut all, &mixer(8), 8)?;
    let same = Params::frozen(all, DType::F32, &CPU);
    assert_eq!(
        score(&MambaLm::new(&with_states(8), &same.builder())?)?,
        before,
        "keeping all changes nothing"
    );
    let error = reduce_mamba1(&mut params.to_tensors(), &mixer(8), 9).unwrap_err().to_string();
    assert_eq!(error, "cannot reduce 8 states to 9");
    Ok(())
}
