//! Training batches: a pure function of seed and step.
//!
//! A user's `n` training items are `n - 1` pairs of input and answer. With the loss at every position they are cut into
//! as few chunks of at most `max_length` pairs as will hold them all; the cut moves from epoch to epoch, so that the
//! events after it are not always the same. With the loss at the last position every pair is a sample, with the
//! `max_length` items before the answer as its input. An epoch takes every chunk, or sample, once, in random order.

use crate::config::Positions;
use crate::data::{Dataset, Split};
use mamba_core::Rng;

/// Draws batches.
#[derive(Debug)]
pub struct Sampler {
    /// User and number of the chunk, or of the answer.
    samples: Vec<(u32, u32)>,
    positions: Positions,
    max_length: usize,
    seed: u64,
    /// The order of one epoch.
    order: (Option<u64>, Vec<usize>),
}

/// Sequences back to back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// Inputs of all sequences.
    pub items: Vec<u32>,
    /// Where sequences begin, and the end of the last: `[0, …, items.len()]`.
    pub cu_seqlens: Vec<usize>,
    /// Answers.
    pub targets: Vec<u32>,
    /// Position of each answer's input among `items`; `None` where every input has one.
    pub rows: Option<Vec<u32>>,
}

impl Sampler {
    /// Of all training events.
    pub fn new(data: &Dataset, split: &Split, positions: Positions, max_length: usize, seed: u64) -> Self {
        let mut samples = Vec::new();
        debug_assert_eq!(data.sequences.len(), split.train.len());
        for (user, &len) in (0u32..).zip(&split.train) {
            let pairs = len.saturating_sub(1);
            let count = match positions {
                Positions::All => pairs.div_ceil(max_length),
                Positions::Last => pairs,
            };
            samples.extend((0..count as u32).map(|i| (user, i)));
        }
        Self { samples, positions, max_length, seed, order: (None, Vec::new()) }
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self, batch_size: usize) -> u64 {
        self.samples.len().div_ceil(batch_size) as u64
    }

    /// The batch of a step, counted from 0.
    pub fn batch(&mut self, data: &Dataset, split: &Split, step: u64, batch_size: usize) -> PackedBatch {
        let steps = self.steps_per_epoch(batch_size);
        let (epoch, within) = (step / steps, (step % steps) as usize);
        if self.order.0 != Some(epoch) {
            let order = Rng::stream(self.seed, "order", epoch).permutation(self.samples.len());
            self.order = (Some(epoch), order);
        }
        let chosen = &self.order.1[within * batch_size..((within + 1) * batch_size).min(self.samples.len())];
        let mut batch = PackedBatch { cu_seqlens: vec![0], ..PackedBatch::default() };
        for &sample in chosen {
            let (user, i) = self.samples[sample];
            let items = &data.sequences[user as usize][..split.train[user as usize]];
            let (start, end) = match self.positions {
                Positions::All => self.chunk(epoch, user, i as usize, items.len() - 1),
                Positions::Last => ((i as usize + 1).saturating_sub(self.max_length), i as usize + 1),
            };
            batch.items.extend(&items[start..end]);
            batch.cu_seqlens.push(batch.items.len());
            match self.positions {
                Positions::All => batch.targets.extend(&items[start + 1..=end]),
                Positions::Last => batch.targets.push(items[end]),
            }
        }
        if self.positions == Positions::Last {
            batch.rows = Some(batch.cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect());
        }
        batch
    }

    /// The pairs `start..end` of a user's chunk.
    fn chunk(&self, epoch: u64, user: u32, i: usize, pairs: usize) -> (usize, usize) {
        let slack = pairs.div_ceil(self.max_length) * self.max_length - pairs;
        // The same for all chunks of a user in an epoch.
        let key = epoch << 32 | u64::from(user);
        let shift =
            if pairs > self.max_length { Rng::stream(self.seed, "cut", key).below(slack + 1) } else { slack };
        let at = |i: usize| (i * self.max_length).saturating_sub(shift).min(pairs);
        match pairs > self.max_length {
            true => (at(i), at(i + 1)),
            false => (0, pairs),
        }
    }
}
