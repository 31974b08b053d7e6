//! Training and scoring in the shape of MovieLens-1M: histories of 200 items, d 64, d_state 32, one layer, 3,416 items.
//! Beside the whole there are its parts, so that a run shows where the time goes.

use candle_core::{DType, Device, Tensor, Var};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mamba_core::checkpoint::save_dir;
use mamba_core::{Params, Rng};
use mamba_kernels::{Segments, linear_cross_entropy, top_k};
use mamba_recsys::checkpoint::{CheckpointConfig, write_items};
use mamba_recsys::models::{Mamba4RecConfig, ModelConfig};
use mamba_recsys::score::{Cold, ScoreConfig, Scorer};
use mamba_recsys::{Ids, ItemMap, Model, RecCheckpoint};

const N_ITEMS: usize = 3417;
const LENGTH: usize = 200;
const D: usize = 64;

fn histories(n: usize) -> Vec<Vec<u32>> {
    let mut rng = Rng::stream(0, "bench", 0);
    (0..n).map(|_| (0..LENGTH).map(|_| 1 + rng.below(N_ITEMS - 1) as u32).collect()).collect()
}

fn model() -> (ModelConfig, Model, Params) {
    let cfg = ModelConfig::Mamba4Rec(Mamba4RecConfig::default());
    let params = Params::fresh(0, DType::F32, &Device::Cpu);
    let model = Model::new(&cfg, N_ITEMS, LENGTH, &params.builder()).expect("the configuration is valid");
    (cfg, model, params)
}

/// A step of 32 sequences without the optimizer, with the loss at every position.
fn train(c: &mut Criterion) {
    let (_, model, _) = model();
    let items: Vec<u32> = histories(32).concat();
    let n = items.len();
    let cu_seqlens: Vec<usize> = (0..=32).map(|i| i * LENGTH).collect();
    let segments = Segments::packed(&cu_seqlens).expect("the sequences are in order");
    let targets = Tensor::from_vec(items.clone(), n, &Device::Cpu).expect("one answer for each item");
    let items = targets.unsqueeze(0).expect("a vector becomes a row");
    let forward = || {
        let mut rng = Rng::stream(0, "dropout", 0);
        model.forward(&items, &segments, Some(&mut rng))?.squeeze(0)
    };
    let mut group = c.benchmark_group("train");
    group.throughput(Throughput::Elements(n as u64)).sample_size(10);
    group.bench_function("whole/ml1m_200", |b| {
        b.iter(|| linear_cross_entropy(&forward()?, model.item_table(), &targets)?.backward());
    });
    group.bench_function("network/ml1m_200", |b| b.iter(|| forward()?.sum_all()?.backward()));
    let hidden = Rng::new(1).normal_tensor((n, D), 0.0, 1.0, DType::F32, &Device::Cpu);
    let hidden = hidden.and_then(|x| Var::from_tensor(&x)).expect("the shape is small");
    group.bench_function("head/ml1m_200", |b| {
        b.iter(|| linear_cross_entropy(&hidden, model.item_table(), &targets)?.backward());
    });
    group.finish();
}

/// The 20 best of all items for users with full histories.
fn score(c: &mut Criterion) {
    let (cfg, _, params) = model();
    let dir = tempfile::tempdir().expect("there is a temporary folder");
    let config = CheckpointConfig { n_items: N_ITEMS, max_length: LENGTH, model: cfg };
    let config = serde_json::to_value(config).expect("the configuration is plain data");
    save_dir(dir.path(), &config, &params.to_tensors()).expect("the folder is new");
    let items = ItemMap::new(Ids::Int((1..N_ITEMS as i64).collect()));
    write_items(dir.path(), &items, &vec![1; N_ITEMS]).expect("the folder is new");
    let checkpoint = RecCheckpoint::open(dir.path()).expect("it was just written");
    let config = ScoreConfig { k: 20, exclude_seen: true, cold: Cold::Popular };
    let scorer = Scorer::new(&checkpoint, config, None, None, &Device::Cpu).expect("it fits itself");
    let recommender = checkpoint.recommender(None, DType::F32, &Device::Cpu).expect("it fits itself");
    let histories = histories(512);
    let histories: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
    let mut group = c.benchmark_group("score");
    group.throughput(Throughput::Elements(histories.len() as u64)).sample_size(10);
    group.bench_function("whole/ml1m_200", |b| b.iter(|| scorer.top_k(&histories)));
    group.bench_function("network/ml1m_200", |b| {
        b.iter(|| histories.chunks(80).map(|histories| recommender.encode(histories)).collect::<Vec<_>>());
    });
    let hidden = recommender.encode(&histories).expect("the histories are not empty");
    group.bench_function("head/ml1m_200", |b| {
        let seen = || histories.iter().map(|history| history.to_vec()).collect::<Vec<_>>();
        let table = recommender.item_table();
        b.iter_batched(seen, |seen| top_k(&hidden, table, 20, &seen), BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, train, score);
criterion_main!(benches);
