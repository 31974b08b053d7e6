//! Windows per second of the forecasters in the shape of ETTh1: batches of 32 windows of 96 hours of seven variables, the
//! next 96 hours to be forecast, and the papers' sizes.

#[path = "../../core/benches/measure/mod.rs"]
mod measure;

use candle_core::{DType, Device};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_core::Rng;
use mamba_timeseries::models::{ForecastModel, Input, ModelConfig, Sizes};

const BATCH: usize = 32;
const ETTH1: Sizes = Sizes { seq_len: 96, pred_len: 96, n_vars: 7, n_marks: 4 };

fn forecasters(c: &mut Criterion) {
    let random = |len: usize, channels: usize, seed: u64| {
        let x = Rng::new(seed).normal_tensor((BATCH, len, channels), 0.0, 1.0, DType::F32, &Device::Cpu);
        x.expect("a window of random values")
    };
    let values = random(ETTH1.seq_len, ETTH1.n_vars, 1);
    let marks = random(ETTH1.seq_len, ETTH1.n_marks, 2);
    let target = random(ETTH1.pred_len, ETTH1.n_vars, 3);
    for name in ["s-mamba", "time-machine", "bi-mamba-plus"] {
        let cfg = ModelConfig::named(name).expect("a model of that name");
        let input = Input { values: values.clone(), marks: cfg.uses_marks().then(|| marks.clone()) };
        measure::forward_and_train_step(
            c,
            &format!("{name}/etth1_96"),
            BATCH,
            |pb| ForecastModel::new(&cfg, ETTH1, pb),
            |model| Ok(model.forward(&input, &mut None)?),
            |model| {
                let forecast = model.forward(&input, &mut Some(Rng::stream(0, "dropout", 0)))?;
                Ok((forecast - &target)?.sqr()?.mean_all()?)
            },
        );
    }
}

criterion_group!(benches, forecasters);
criterion_main!(benches);
