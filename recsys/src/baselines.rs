//! What a model must beat: popularity, and what usually follows an item.

use crate::eval::Scorer;
use std::collections::HashMap;

/// Scores every item by how often it occurs in the training events.
#[derive(Clone, Debug)]
pub struct Popularity {
    scores: Vec<f32>,
}

impl Popularity {
    /// From the number of events of each item; place 0 is padding.
    pub fn new(counts: &[u64]) -> Self {
        Self { scores: counts.iter().map(|&n| n as f32).collect() }
    }
}

impl Scorer for Popularity {
    fn scores(&self, histories: &[&[u32]]) -> candle_core::Result<Vec<f32>> {
        Ok(histories.iter().flat_map(|_| &self.scores).copied().collect())
    }
}

/// A first-order Markov chain: how often an item followed the last one in the training events; popularity decides
/// between items that followed equally often.
#[derive(Clone, Debug)]
pub struct Markov {
    followed: HashMap<u32, Vec<(u32, f32)>>,
    popularity: Vec<f32>,
}

impl Markov {
    /// Counts the pairs in training sequences; `counts` are the events of each item.
    pub fn new<'a>(sequences: impl Iterator<Item = &'a [u32]>, counts: &[u64]) -> Self {
        let mut pairs: HashMap<u32, HashMap<u32, f32>> = HashMap::new();
        for pair in sequences.flat_map(|items| items.windows(2)) {
            *pairs.entry(pair[0]).or_default().entry(pair[1]).or_default() += 1.0;
        }
        let most = counts.iter().copied().max().unwrap_or(0) as f32 + 1.0;
        Self {
            followed: pairs.into_iter().map(|(item, next)| (item, next.into_iter().collect())).collect(),
            popularity: counts.iter().map(|&n| n as f32 / most).collect(),
        }
    }
}

impl Scorer for Markov {
    fn scores(&self, histories: &[&[u32]]) -> candle_core::Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(histories.len() * self.popularity.len());
        for history in histories {
            let row = scores.len();
            scores.extend(&self.popularity);
            for &(item, count) in
                history.last().and_then(|last| self.followed.get(last)).into_iter().flatten()
            {
                scores[row + item as usize] += count;
            }
        }
        Ok(scores)
    }
}
