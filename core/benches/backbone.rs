//! Tokens per second of a whole Mamba-1 backbone on the CPU: inference over long rows, a step of a recurrent state, and a
//! training step.

mod measure;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mamba_core::nn::NormKind;
use mamba_core::{Backbone, BackboneConfig, BackboneState, Mamba1Config, Params, Rng};

const D_MODEL: usize = 256;

/// Four layers, d_model 256, d_state 16, expand 2, RMS norm.
fn config() -> BackboneConfig {
    BackboneConfig {
        d_model: D_MODEL,
        n_layer: 4,
        d_intermediate: 0,
        norm: NormKind::Rms,
        norm_epsilon: 1e-5,
        mixer: Mamba1Config::default().into(),
        dense_layers: 0,
    }
}

fn random(batch: usize, len: usize) -> Tensor {
    let x = Rng::new(1).normal_tensor((batch, len, D_MODEL), 0.0, 1.0, DType::F32, &Device::Cpu);
    x.expect("an input")
}

fn sequences(c: &mut Criterion) {
    for (batch, len) in [(1, 4096), (8, 1024), (4, 1024)] {
        let x = random(batch, len);
        measure::forward_and_train_step(
            c,
            &format!("backbone_4x256/b{batch}_l{len}"),
            batch * len,
            |pb| Backbone::new(&config(), pb),
            |backbone| Ok(backbone.forward(&x)?),
            |backbone| Ok(backbone.forward(&x)?.sqr()?.mean_all()?),
        );
    }
}

fn step(c: &mut Criterion) {
    measure::start();
    let fresh = Params::fresh(0, DType::F32, &Device::Cpu);
    Backbone::new(&config(), &fresh.builder()).expect("a backbone");
    let params = Params::frozen(fresh.to_tensors(), DType::F32, &Device::Cpu);
    let backbone = Backbone::new(&config(), &params.builder()).expect("the same backbone");
    let x = random(1, 1).squeeze(1).expect("one token");
    let mut state = BackboneState::new();
    let mut group = c.benchmark_group("backbone_4x256");
    group.throughput(Throughput::Elements(1));
    group.bench_function("step/b1", |b| b.iter(|| backbone.step(&x, &mut state).expect("a step")));
    group.finish();
}

criterion_group!(benches, sequences, step);
criterion_main!(benches);
