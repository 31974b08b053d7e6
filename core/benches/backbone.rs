//! Tokens per second of a whole Mamba-1 backbone on the CPU: inference over one long row, a step of a recurrent state,
//! and a training step (forward, backward, clip, AdamW).

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mamba_core::nn::NormKind;
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{Backbone, BackboneConfig, BackboneState, Mamba1Config, Params, Result, Rng, cli};

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

fn random(batch: usize, len: usize) -> Result<Tensor> {
    Ok(Rng::new(1).normal_tensor((batch, len, D_MODEL), 0.0, 1.0, DType::F32, &Device::Cpu)?)
}

/// The backbone as a checkpoint gives it for inference: no graph.
fn frozen() -> Result<Backbone> {
    let fresh = Params::fresh(0, DType::F32, &Device::Cpu);
    Backbone::new(&config(), &fresh.builder())?;
    let params = Params::frozen(fresh.to_tensors(), DType::F32, &Device::Cpu);
    Ok(Backbone::new(&config(), &params.builder())?)
}

fn inference(c: &mut Criterion) {
    cli::tune_allocator();
    cli::tune_candle();
    let backbone = frozen().expect("a backbone");
    let mut group = c.benchmark_group("backbone_4x256");
    group.sample_size(10);
    for (batch, len) in [(1, 4096), (8, 1024)] {
        let x = random(batch, len).expect("an input");
        group.throughput(Throughput::Elements((batch * len) as u64));
        group.bench_function(format!("fwd/b{batch}_l{len}"), |b| {
            b.iter(|| backbone.forward(&x).expect("a pass"))
        });
    }
    let x = random(1, 1).and_then(|x| Ok(x.squeeze(1)?)).expect("an input");
    let mut state = BackboneState::new();
    group.throughput(Throughput::Elements(1));
    group.bench_function("step/b1", |b| b.iter(|| backbone.step(&x, &mut state).expect("a step")));
    group.finish();
}

fn training(c: &mut Criterion) {
    cli::tune_allocator();
    cli::tune_candle();
    let (batch, len) = (4, 1024);
    let params = Params::fresh(0, DType::F32, &Device::Cpu);
    let backbone = Backbone::new(&config(), &params.builder()).expect("a backbone");
    let mut optimizer = AdamW::new(&params, AdamWConfig::default()).expect("an optimizer");
    let x = random(batch, len).expect("an input");
    let mut step = || -> Result<()> {
        let loss = backbone.forward(&x)?.sqr()?.mean_all()?;
        let mut grads = Gradients::of(&loss, &params)?;
        grads.clip_grad_norm(1.0, 1)?;
        Ok(optimizer.step(&grads, 1e-4)?)
    };
    let mut group = c.benchmark_group("backbone_4x256");
    group.sample_size(10);
    group.throughput(Throughput::Elements((batch * len) as u64));
    group.bench_function(format!("train_step/b{batch}_l{len}"), |b| b.iter(|| step().expect("a step")));
    group.finish();
}

criterion_group!(benches, inference, training);
criterion_main!(benches);
