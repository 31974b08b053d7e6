//! Full ranking: every query's right answer among all items.

use crate::config::EvalConfig;
use crate::data::{Dataset, Query};
use crate::metrics::{LIST, Metrics, rank, summarise};
use crate::recommender::Recommender;
use rayon::prelude::*;

/// Anything that scores all items.
pub trait Scorer {
    /// The scores of all items for each history, row-major; place 0 of a row is padding. No history is empty.
    fn scores(&self, histories: &[&[u32]]) -> candle_core::Result<Vec<f32>>;

    /// Most items of a history that count.
    fn max_length(&self) -> usize {
        usize::MAX
    }
}

impl Scorer for Recommender {
    fn scores(&self, histories: &[&[u32]]) -> candle_core::Result<Vec<f32>> {
        Self::scores(self, histories)
    }

    fn max_length(&self) -> usize {
        Self::max_length(self)
    }
}

/// Items in the histories that are scored at once.
const BATCH_ITEMS: usize = 1 << 14;
/// Scores that exist at once.
const BATCH_SCORES: usize = 1 << 22;

/// Ranks the answers of `queries` among all items; `popularity` are the training events of each item. `seen` is told
/// after each batch how many queries are done.
///
/// # Errors
/// Those of the scorer.
pub fn evaluate(
    scorer: &dyn Scorer,
    data: &Dataset,
    queries: &[Query],
    popularity: &[u64],
    cfg: &EvalConfig,
    mut seen: impl FnMut(usize),
) -> candle_core::Result<Metrics> {
    let n_items = data.items.n_items();
    let length = |query: &Query| query.history.min(scorer.max_length());
    let (mut ranks, mut lists) = (Vec::new(), Vec::new());
    let mut rest = queries;
    while !rest.is_empty() {
        let mut items = 0;
        let fits = rest.iter().take_while(|query| {
            items += length(query);
            items <= BATCH_ITEMS
        });
        let size = fits.count().min(BATCH_SCORES / n_items).max(1);
        let (batch, after) = rest.split_at(size);
        rest = after;
        let histories: Vec<&[u32]> =
            batch.iter().map(|query| &data.sequences[query.user][..query.history]).collect();
        let scores = scorer.scores(&histories)?;
        let results: Vec<(usize, Vec<u32>)> = scores
            .par_chunks_exact(n_items)
            .zip(batch)
            .zip(&histories)
            .map(|((scores, query), history)| {
                let answer = data.sequences[query.user][query.history] as usize;
                let passed_over = if cfg.exclude_seen { history } else { &[][..] };
                (rank(scores, answer, 1, passed_over), first_items(scores, passed_over))
            })
            .collect();
        for (rank, list) in results {
            ranks.push(rank);
            lists.push(list);
        }
        seen(ranks.len());
    }
    let answers: Vec<u32> = queries.iter().map(|query| data.sequences[query.user][query.history]).collect();
    Ok(summarise(&ranks, &lists, &answers, popularity))
}

/// The [`LIST`] items with the highest scores, best first; ties go to the lower number.
fn first_items(scores: &[f32], passed_over: &[u32]) -> Vec<u32> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(LIST + 1);
    for (item, &score) in (1u32..).zip(&scores[1..]) {
        let enters = best.len() < LIST || best.last().is_some_and(|&(last, _)| score > last);
        if enters && !score.is_nan() && !passed_over.contains(&item) {
            let place = best.partition_point(|&(other, _)| other >= score);
            best.insert(place, (score, item));
            best.truncate(LIST);
        }
    }
    best.into_iter().map(|(_, item)| item).collect()
}
