//! Held-out cross-entropy of the best count models on a genome:
//! `cargo run --release -p mamba-genomics --example count_models -- genome.fa.gz [block length] [seed]`
//!
//! Blocks are drawn as the trainer draws them: 5 % for validation, 5 % for test.

use std::time::Instant;

use anyhow::{Context, Result};
use mamba_datasets::Fractions;
use mamba_genomics::count_model::{CountModels, MAX_CONTEXT};
use mamba_genomics::fasta::FastaOptions;
use mamba_genomics::genome::{Genome, GenomePosition, Interval, Split};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("usage: count_models FASTA [block length] [seed]")?;
    let block_len = arguments.next().map_or(Ok(50_000), |text| text.parse()).context("block length")?;
    let seed = arguments.next().map_or(Ok(0), |text| text.parse()).context("seed")?;

    let start = Instant::now();
    let genome = Genome::load([path], FastaOptions::default())?;
    println!(
        "{} records; {} ({:.2} s)",
        genome.records().len(),
        genome.counts(),
        start.elapsed().as_secs_f64()
    );
    let split = Split::blocks(&genome, Some(block_len), Fractions { valid: 0.05, test: 0.05 }, seed)?;
    let (valid, test) = (positions(&split.valid), positions(&split.test));

    let start = Instant::now();
    let models = CountModels::choose(&genome, &split.train, &valid, MAX_CONTEXT)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("chosen on {} bases in {seconds:.1} s, tested on {}", valid.len(), test.len());
    for (name, model) in [("causal", &models.causal), ("two-sided", &models.two_sided)] {
        let score = model.bits_per_base(&genome, &test)?;
        println!(
            "{name:<9}  left {:>2}  right {:>2}  alpha {:>5}  valid {:.4}  test {:.4} bits per base",
            model.left(),
            model.right(),
            model.alpha(),
            model.valid_bits(),
            score.bits
        );
    }
    Ok(())
}

fn positions(intervals: &[Interval]) -> Vec<GenomePosition> {
    let bases = |interval: &Interval| {
        let record = interval.record;
        (interval.start0..interval.end0).map(move |position0| GenomePosition { record, position0 })
    };
    intervals.iter().flat_map(bases).collect()
}
