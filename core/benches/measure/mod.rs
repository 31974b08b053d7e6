//! What the benches of all models share: a forward pass without a graph, and a training step, on a named shape.

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput};
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{ParamBuilder, Params, Result, cli};

/// Measures a model as `NAME/fwd` and `NAME/train_step` (forward, backward, clip, AdamW), `items` of which the throughput is
/// counted at a time.
pub(crate) fn forward_and_train_step<M>(
    c: &mut Criterion,
    name: &str,
    items: usize,
    build: impl Fn(&ParamBuilder) -> candle_core::Result<M>,
    forward: impl Fn(&M) -> Result<Tensor>,
    loss: impl Fn(&M) -> Result<Tensor>,
) {
    start();
    let params = Params::fresh(0, DType::F32, &Device::Cpu);
    let model = build(&params.builder()).expect("a model to train");
    let frozen = Params::frozen(params.to_tensors(), DType::F32, &Device::Cpu);
    let fixed = build(&frozen.builder()).expect("a model for inference");
    let mut optimizer = AdamW::new(&params, AdamWConfig::default()).expect("an optimizer");
    let mut step = || -> Result<()> {
        let mut grads = Gradients::of(&loss(&model)?, &params)?;
        grads.clip_grad_norm(1.0, 1)?;
        Ok(optimizer.step(&grads, 1e-4)?)
    };
    let mut group = c.benchmark_group(name);
    group.sample_size(10).throughput(Throughput::Elements(items as u64));
    group.bench_function("fwd", |b| b.iter(|| forward(&fixed).expect("a forward pass")));
    group.bench_function("train_step", |b| b.iter(|| step().expect("a training step")));
    group.finish();
}

/// What the binaries do first thing in `main`; else the time is that of page faults and of threads that wait.
pub(crate) fn start() {
    cli::tune_allocator();
    cli::tune_candle();
}
