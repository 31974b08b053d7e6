//! Bases per second of Caduceus-PS as it is trained on the Genomic Benchmarks: d_model 118, four layers, eight windows of
//! 1,024 bases of phage lambda, masked as in pre-training.

#[path = "../../core/benches/measure/mod.rs"]
mod measure;

use candle_core::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_genomics::mask::{MaskConfig, mask_row};
use mamba_genomics::tokenizer::{self, SequenceCounts};
use mamba_genomics::{CaduceusConfig, CaduceusForMaskedLm};

const BATCH: usize = 8;
const LEN: usize = 1024;

/// Masked windows and their labels, `(BATCH, LEN)` each.
fn lambda() -> (Tensor, Tensor) {
    let fasta = mamba_datasets::sample("lambda").expect("it is bundled").bytes();
    let bases: Vec<u8> = fasta.split(|&byte| byte == b'\n').skip(1).flatten().copied().collect();
    let ids = tokenizer::encode(&bases, &mut SequenceCounts::default()).expect("it is DNA");
    let (mut input_ids, mut labels) = (vec![0; BATCH * LEN], vec![0; BATCH * LEN]);
    let rows = input_ids.chunks_mut(LEN).zip(labels.chunks_mut(LEN)).zip(ids.chunks(LEN)).enumerate();
    for (row, ((input, label), ids)) in rows {
        mask_row(ids, &MaskConfig::TRAIN, (0, 0, row as u64), input, label);
    }
    let tensor =
        |values: Vec<u32>| Tensor::from_vec(values, (BATCH, LEN), &Device::Cpu).expect("they are as many");
    (tensor(input_ids), tensor(labels))
}

fn caduceus(c: &mut Criterion) {
    let (input_ids, labels) = lambda();
    let cfg = CaduceusConfig { d_model: 118, n_layer: 4, ..CaduceusConfig::default() };
    measure::forward_and_train_step(
        c,
        "caduceus_ps/gb_1k",
        BATCH * LEN,
        |pb| CaduceusForMaskedLm::new(&cfg, pb),
        |model| Ok(model.forward(&input_ids, None)?),
        |model| Ok(model.loss(&input_ids, &labels, None)?),
    );
}

criterion_group!(benches, caduceus);
criterion_main!(benches);
