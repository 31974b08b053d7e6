//! Training batches: a pure function of seed and step.
//!
//! A user's `n` training items are `n - 1` pairs of input and answer. With the loss at every position they are cut into
//! as few chunks as will hold them all. A chunk that does not begin with the user's first item reads the `context` items
//! before it, without a loss, so that its answers are asked for as they will be asked for later: late in a long history, not
//! at the beginning of a new one. No chunk has more than `max_length` items, context included. The cuts move from epoch
//! to epoch, so that the events after them are not always the same. With the loss at the last position every pair is a
//! sample, with the `max_length` items before the answer as its input. An epoch takes every chunk, or sample, once, in random
//! order.

use crate::config::{ObjectiveConfig, Positions};
use crate::data::{Dataset, Split};
use mamba_core::Rng;

/// Draws batches.
#[derive(Debug)]
pub struct Sampler {
    /// User and number of the chunk, or of the answer.
    samples: Vec<(u32, u32)>,
    positions: Positions,
    context: usize,
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
    pub fn new(
        data: &Dataset,
        split: &Split,
        objective: &ObjectiveConfig,
        max_length: usize,
        seed: u64,
    ) -> Self {
        let &ObjectiveConfig { positions, context, .. } = objective;
        let step = max_length.saturating_sub(context).max(1);
        let mut samples = Vec::new();
        debug_assert_eq!(data.sequences.len(), split.train.len());
        for (user, &len) in (0u32..).zip(&split.train) {
            let pairs = len.saturating_sub(1);
            let count = match positions {
                Positions::All => usize::from(pairs > 0) + pairs.saturating_sub(max_length).div_ceil(step),
                Positions::Last => pairs,
            };
            samples.extend((0..count as u32).map(|i| (user, i)));
        }
        Self { samples, positions, context, max_length, seed, order: (None, Vec::new()) }
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
        let mut rows = Vec::new();
        for &sample in chosen {
            let (user, i) = self.samples[sample];
            let items = &data.sequences[user as usize][..split.train[user as usize]];
            // The pairs start..end have a loss, the items read..end are read.
            let (read, start, end) = match self.positions {
                Positions::All => {
                    let (start, end) = self.chunk(epoch, user, i as usize, items.len() - 1);
                    (start.saturating_sub(self.context), start, end)
                }
                Positions::Last => {
                    ((i as usize + 1).saturating_sub(self.max_length), i as usize, i as usize + 1)
                }
            };
            batch.items.extend(&items[read..end]);
            batch.cu_seqlens.push(batch.items.len());
            batch.targets.extend(&items[start + 1..=end]);
            rows.extend((batch.items.len() - (end - start)) as u32..batch.items.len() as u32);
        }
        batch.rows = (rows.len() < batch.items.len()).then_some(rows);
        batch
    }

    /// The pairs `start..end` of a user's chunk.
    fn chunk(&self, epoch: u64, user: u32, i: usize, pairs: usize) -> (usize, usize) {
        if pairs <= self.max_length {
            return (0, pairs);
        }
        let step = self.max_length.saturating_sub(self.context).max(1);
        let room = (pairs - self.max_length).next_multiple_of(step) + self.max_length;
        // The same for all chunks of a user in an epoch.
        let key = epoch << 32 | u64::from(user);
        let shift = Rng::stream(self.seed, "cut", key).below(room - pairs + 1);
        let at = |i: usize| if i == 0 { 0 } else { (self.max_length + (i - 1) * step - shift).min(pairs) };
        (at(i), at(i + 1))
    }
}
