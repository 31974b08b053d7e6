//! Training batches.

use crate::support::{small_data, small_sample};
use mamba_recsys::config::{DataConfig, ObjectiveConfig, Positions};
use mamba_recsys::sampler::{PackedBatch, Sampler};
use mamba_recsys::task::TrainingData;
use std::collections::BTreeMap;

/// Every pair of input and answer of an epoch, and how often.
fn pairs(batches: &[PackedBatch]) -> BTreeMap<(u32, u32), usize> {
    let mut counts = BTreeMap::new();
    for batch in batches {
        let rows: Vec<u32> = batch.rows.clone().unwrap_or_else(|| (0..batch.items.len() as u32).collect());
        assert_eq!(rows.len(), batch.targets.len());
        for (row, &target) in rows.iter().zip(&batch.targets) {
            *counts.entry((batch.items[*row as usize], target)).or_default() += 1;
        }
    }
    counts
}

#[test]
fn an_epoch_has_every_pair_once_whatever_the_positions_and_lengths() {
    let TrainingData { dataset, split, .. } = small_data();
    let mut want: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for (items, &len) in dataset.sequences.iter().zip(&split.train) {
        items[..len].windows(2).for_each(|pair| *want.entry((pair[0], pair[1])).or_default() += 1);
    }
    for (positions, context) in
        [(Positions::All, 0), (Positions::All, 1), (Positions::All, 3), (Positions::Last, 0)]
    {
        for max_length in [1, 4, 9, 200].into_iter().filter(|&length| length > context) {
            let objective = ObjectiveConfig { positions, context, ..ObjectiveConfig::default() };
            let mut sampler = Sampler::new(&dataset, &split, &objective, max_length, 5);
            let steps = sampler.steps_per_epoch(7);
            for epoch in 0..3 {
                let batches: Vec<_> =
                    (0..steps).map(|i| sampler.batch(&dataset, &split, epoch * steps + i, 7)).collect();
                assert_eq!(pairs(&batches), want, "{positions:?}, context {context}, at most {max_length}");
                let lengths = batches.iter().flat_map(|b| b.cu_seqlens.windows(2).map(|w| w[1] - w[0]));
                assert!(lengths.clone().all(|len| (1..=max_length).contains(&len)));
            }
        }
    }
}

#[test]
fn a_batch_depends_on_seed_and_step_only_and_cuts_move() {
    let TrainingData { dataset, split, .. } = small_data();
    let new = |seed| Sampler::new(&dataset, &split, &ObjectiveConfig::default(), 10, seed);
    let (mut one, mut other) = (new(1), new(1));
    let late = one.batch(&dataset, &split, 40, 8);
    (0..40).for_each(|step| drop(other.batch(&dataset, &split, step, 8)));
    assert_eq!(late, other.batch(&dataset, &split, 40, 8));
    assert_ne!(late, new(2).batch(&dataset, &split, 40, 8));
    let steps = one.steps_per_epoch(8);
    let lengths = |epoch: u64, sampler: &mut Sampler| {
        let batches = (0..steps).map(|i| sampler.batch(&dataset, &split, epoch * steps + i, 8));
        let mut lengths: Vec<usize> =
            batches.flat_map(|b| b.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>()).collect();
        lengths.sort_unstable();
        lengths
    };
    assert_ne!(lengths(0, &mut one), lengths(1, &mut one));
}

#[test]
fn an_answer_late_in_a_long_history_is_asked_for_after_its_context() {
    let TrainingData { dataset, split, .. } = small_data();
    let objective = ObjectiveConfig { context: 6, ..ObjectiveConfig::default() };
    let mut sampler = Sampler::new(&dataset, &split, &objective, 10, 5);
    let (mut first, mut late) = (0, 0);
    for step in 0..3 * sampler.steps_per_epoch(1) {
        let batch = sampler.batch(&dataset, &split, step, 1);
        let asked = batch.rows.map_or(0, |rows| rows[0] as usize);
        let begins = dataset.sequences.iter().any(|items| items.starts_with(&batch.items));
        assert!(asked == 6 || begins, "{asked} items before the first answer");
        (first, late) = (first + usize::from(asked == 0), late + usize::from(asked == 6));
    }
    assert!(first > 0 && late > first, "{first} chunks begin a history, {late} do not");
}

#[test]
fn the_fingerprint_follows_the_events() {
    let data = small_data();
    assert_eq!(data.dataset.fingerprint(), small_data().dataset.fingerprint());
    let mut log = small_sample();
    if let Some(times) = &mut log.time {
        times.swap(0, 5);
    }
    let changed = TrainingData::new(&log, &DataConfig::default()).unwrap();
    assert_ne!(data.dataset.fingerprint(), changed.dataset.fingerprint());
}
