//! One forward pass of Caduceus-PS over a long sequence: time, peak memory, and how far the logits of the reverse
//! complement are from those of the sequence.
//!
//! `cargo run --release -p mamba-genomics --example long_range -- [BASES] [FASTA]`
//!
//! The model is preset `base` (4 layers, d_model 256) with fresh weights of seed 0; the default is 131,072 bases of a
//! generated sequence.

use anyhow::{Context, Result};
use candle_core::{DType, Device, IndexOp, Tensor};
use mamba_core::nn::flip;
use mamba_core::{Params, cli};
use mamba_genomics::fasta::FastaOptions;
use mamba_genomics::genome::Genome;
use mamba_genomics::{CaduceusConfig, CaduceusForMaskedLm};
use std::time::Instant;

fn main() -> Result<()> {
    mamba_core::cli::tune_allocator();
    mamba_core::cli::tune_candle();
    let mut arguments = std::env::args().skip(1);
    let bases = arguments.next().map_or(Ok(131_072), |text| text.parse::<usize>()).context("BASES")?;
    let ids: Vec<u32> = match arguments.next() {
        Some(path) => {
            let genome = Genome::load([path], FastaOptions::default())?;
            let ids = genome.records().iter().flat_map(|record| &record.ids).take(bases);
            ids.map(|&id| u32::from(id)).collect()
        }
        None => {
            let mut rng = mamba_core::Rng::new(0);
            (0..bases).map(|_| 7 + rng.below(4) as u32).collect()
        }
    };
    let len = ids.len();
    let device = Device::Cpu;
    let cfg = CaduceusConfig::preset("base").context("the preset exists")?;
    let fresh = Params::fresh(0, DType::F32, &device);
    CaduceusForMaskedLm::new(&cfg, &fresh.builder())?;
    let params = Params::frozen(fresh.to_tensors(), DType::F32, &device);
    let model = CaduceusForMaskedLm::new(&cfg, &params.builder())?;
    params.check()?;

    let input_ids = Tensor::from_vec(ids, (1, len), &device)?;
    let start = Instant::now();
    let logits = model.forward(&input_ids, None)?;
    let seconds = start.elapsed().as_secs_f64();
    let peak = cli::peak_memory()
        .map_or("unknown".to_string(), |bytes| format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64));
    println!(
        "{len} bases, both strands: {seconds:.2} s, {:.0} bases/s, peak memory {peak}",
        len as f64 / seconds
    );

    let of_rc = model.forward(&model.body().reverse_complement(&input_ids, None)?, None)?;
    let complements = Tensor::new(cfg.complements(), &device)?;
    let back = flip(&of_rc, 1)?.index_select(&complements, 2)?;
    let error = (back - &logits)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    let scale = logits.i((0, .., 7..11))?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    println!(
        "largest difference between logits(rc(x)), reversed and complemented, and logits(x): {error:.1e} of {scale:.2}"
    );
    Ok(())
}
