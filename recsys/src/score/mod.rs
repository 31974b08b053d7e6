//! Recommendations for many users: a pure function from histories to ranked items.
//!
//! [`Scorer::top_k`] and [`Scorer::candidates`] take the items of some users and give items and scores; nothing is read or
//! written. [`Scorer::score_batch`] is the same over an Arrow batch with the caller's own ids, for engines that call it.
//! [`users`] turns event files of any size into users, a part at a time.

mod arrow;
pub mod state;
pub mod users;

pub use arrow::{schema, to_rows, top_k_rows};

use crate::checkpoint::RecCheckpoint;
use crate::recommender::Recommender;
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::top_k;
use serde::{Deserialize, Serialize};

/// What is asked of each user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreConfig {
    /// Items recommended.
    pub k: usize,
    /// Whether items of the history are left out.
    pub exclude_seen: bool,
    /// What becomes of users without a known item.
    pub cold: Cold,
}

/// What becomes of users without a known item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cold {
    /// They get the most popular items of the training events, without scores
    #[default]
    Popular,
    /// They get no row
    Skip,
    /// They end the job
    Error,
}

/// An item for a user; without a score where only popularity chose it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The item.
    pub item: u32,
    /// Its score.
    pub score: Option<f32>,
}

/// Items that are encoded at once.
const BATCH_ITEMS: usize = 1 << 14;
/// Histories that are encoded at once.
const BATCH_USERS: usize = 1 << 10;

/// A model, ready to recommend.
#[derive(Clone, Debug)]
pub struct Scorer {
    recommender: Recommender,
    config: ScoreConfig,
    /// The items that may be recommended, in order, and their rows of the item table.
    allowed: Vec<u32>,
    table: Tensor,
    /// The most popular of them, best first.
    popular: Vec<u32>,
}

impl Scorer {
    /// Recommends the items of `allowed` (all, where absent).
    ///
    /// # Errors
    /// A checkpoint whose weights do not fit it.
    pub fn new(
        checkpoint: &RecCheckpoint,
        config: ScoreConfig,
        allowed: Option<Vec<u32>>,
        max_length: Option<usize>,
        device: &Device,
    ) -> mamba_core::Result<Self> {
        let recommender = checkpoint.recommender(max_length, DType::F32, device)?;
        let mut allowed = allowed.unwrap_or_else(|| (1..recommender.n_items() as u32).collect());
        allowed.sort_unstable();
        allowed.dedup();
        let rows = Tensor::from_vec(allowed.clone(), allowed.len(), device)?;
        let table = recommender.item_table().index_select(&rows, 0)?; // (allowed, d)
        let mut popular = allowed.clone();
        popular.sort_by_key(|&item| std::cmp::Reverse(checkpoint.counts()[item as usize]));
        Ok(Self { recommender, config, allowed, table, popular })
    }

    /// What is asked of each user.
    pub fn config(&self) -> &ScoreConfig {
        &self.config
    }

    /// The best items for each history, best first; fewer than `k` where fewer may be recommended. Equal scores are in
    /// the order of the items. A history without items gets popular ones.
    ///
    /// # Errors
    /// Those of the model.
    pub fn top_k(&self, histories: &[&[u32]]) -> Result<Vec<Vec<Scored>>> {
        let mut results = Vec::with_capacity(histories.len());
        for batch in self.batches(histories) {
            let warm: Vec<&[u32]> = batch.iter().copied().filter(|history| !history.is_empty()).collect();
            let ranked = match warm.is_empty() {
                true => Vec::new(),
                false => self.rank(&self.recommender.encode(&warm)?, &warm)?,
            };
            let mut ranked = ranked.into_iter();
            results.extend(batch.iter().map(|history| match history.is_empty() {
                true => self.popular(),
                false => ranked.next().unwrap_or_default(),
            }));
        }
        Ok(results)
    }

    /// The best items for vectors `(n, d)` of users who have seen some items.
    fn rank(&self, hidden: &Tensor, seen: &[&[u32]]) -> Result<Vec<Vec<Scored>>> {
        let hits = top_k(hidden, &self.table, self.config.k, &self.seen_rows(seen))?;
        let scored =
            |(row, score): (u32, f64)| Scored { item: self.allowed[row as usize], score: Some(score as f32) };
        Ok(hits.into_iter().map(|hits| hits.into_iter().map(scored).collect()).collect())
    }

    /// For who has no known item.
    fn popular(&self) -> Vec<Scored> {
        self.popular.iter().take(self.config.k).map(|&item| Scored { item, score: None }).collect()
    }

    /// Refuses a model that keeps no state.
    ///
    /// # Errors
    /// [`mamba_core::Error::Config`], which says why it does not.
    pub fn keeps_state(&self) -> mamba_core::Result<()> {
        self.recommender.new_state().map(drop)
    }

    /// The model.
    fn recommender(&self) -> &Recommender {
        &self.recommender
    }

    /// Rows of the table that a history leaves out.
    fn seen_rows(&self, histories: &[&[u32]]) -> Vec<Vec<u32>> {
        if !self.config.exclude_seen {
            return Vec::new();
        }
        let row = |item: &u32| self.allowed.binary_search(item).ok().map(|row| row as u32);
        histories.iter().map(|history| history.iter().filter_map(row).collect()).collect()
    }

    /// The score of each candidate for each history, in the order of the candidates; none for a history without items
    /// and for a candidate that is no item of the model.
    ///
    /// # Errors
    /// Those of the model.
    pub fn candidates(
        &self,
        histories: &[&[u32]],
        candidates: &[&[Option<u32>]],
    ) -> Result<Vec<Vec<Option<f32>>>> {
        let table = self.recommender.item_table();
        let d = table.dim(1)?;
        let table = table.flatten_all()?.to_vec1::<f32>()?;
        let mut results = Vec::with_capacity(histories.len());
        for batch in self.batches(histories) {
            let warm: Vec<&[u32]> = batch.iter().copied().filter(|history| !history.is_empty()).collect();
            let hidden = match warm.is_empty() {
                true => Vec::new(),
                false => self.recommender.encode(&warm)?.flatten_all()?.to_vec1::<f32>()?,
            };
            let mut hidden = hidden.chunks_exact(d);
            for history in batch {
                let asked = candidates[results.len()];
                let hidden = if history.is_empty() { None } else { hidden.next() };
                let score = |item: u32| {
                    let row = &table[item as usize * d..(item as usize + 1) * d];
                    Some(row.iter().zip(hidden?).map(|(a, b)| a * b).sum())
                };
                results.push(asked.iter().map(|item| item.and_then(score)).collect());
            }
        }
        Ok(results)
    }

    /// Histories in batches of bounded size, in order.
    fn batches<'h, 'i>(
        &self,
        histories: &'h [&'i [u32]],
    ) -> impl Iterator<Item = &'h [&'i [u32]]> + use<'h, 'i> {
        self.batches_of(histories, self.recommender.max_length())
    }

    /// The same where at most `max_length` items of each count.
    fn batches_of<'h, 'i>(
        &self,
        histories: &'h [&'i [u32]],
        max_length: usize,
    ) -> impl Iterator<Item = &'h [&'i [u32]]> + use<'h, 'i> {
        let mut rest = histories;
        std::iter::from_fn(move || {
            let mut items = 0;
            let fits = rest.iter().take(BATCH_USERS).take_while(|history| {
                items += history.len().min(max_length);
                items <= BATCH_ITEMS
            });
            let (batch, after) = rest.split_at(fits.count().max(1).min(rest.len()));
            rest = after;
            (!batch.is_empty()).then_some(batch)
        })
    }
}
