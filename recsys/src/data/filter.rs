//! From a log to sequences of numbered items.

use super::Log;
use crate::error::{Error, Result};
use crate::{Ids, ItemMap};
use mamba_datasets::job::sha256;
use serde::{Deserialize, Serialize};

/// Which users, items and events stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterConfig {
    /// Users and items with fewer events are removed, again and again until none is left; 0 keeps all.
    pub k_core: usize,
    /// Users with fewer events are removed after that.
    pub min_length: usize,
    /// What becomes of a user's second event with the same item.
    pub duplicates: Duplicates,
}

impl Default for FilterConfig {
    fn default() -> Self {
        Self { k_core: 5, min_length: 1, duplicates: Duplicates::Keep }
    }
}

/// What becomes of a user's second event with the same item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Duplicates {
    /// It stays.
    #[default]
    Keep,
    /// Only the first event counts.
    Collapse,
}

/// Each user's items in time order.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The users, in order of first appearance in the log.
    pub users: Ids,
    /// The items, numbered from 1 in the order of their ids.
    pub items: ItemMap,
    /// For each user the items in time order.
    pub sequences: Vec<Vec<u32>>,
    /// The times of these events, if the log has any.
    pub times: Option<Vec<Vec<f64>>>,
}

impl Dataset {
    /// Filters, orders and numbers the events of a log.
    ///
    /// # Errors
    /// [`Error::Empty`] when nothing is left.
    pub fn new(log: &Log, filter: &FilterConfig) -> Result<Self> {
        let (users, user) = log.user.encode();
        let (items, item) = log.item.encode();
        let mut histories: Vec<Vec<u32>> = vec![Vec::new(); users.len()]; // places in the log
        for (event, &user) in (0u32..).zip(&user) {
            histories[user as usize].push(event);
        }
        if let Some(time) = &log.time {
            histories
                .iter_mut()
                .for_each(|events| events.sort_by(|&a, &b| time[a as usize].total_cmp(&time[b as usize])));
        }
        if filter.duplicates == Duplicates::Collapse {
            let mut seen_by = vec![u32::MAX; items.len()];
            for (user, events) in (0u32..).zip(&mut histories) {
                events.retain(|&event| {
                    let seen = &mut seen_by[item[event as usize] as usize];
                    std::mem::replace(seen, user) != user
                });
            }
        }
        k_core(&mut histories, &item, items.len(), filter.k_core);
        let kept: Vec<usize> =
            (0..histories.len()).filter(|&user| histories[user].len() >= filter.min_length.max(1)).collect();
        if kept.is_empty() {
            return Err(Error::Empty(format!(
                "no events are left of {} from {} users with {} items: k_core is {}, min_length {}",
                log.len(),
                users.len(),
                items.len(),
                filter.k_core,
                filter.min_length
            )));
        }

        // Numbers follow the ids, so that they do not depend on the order of the file.
        let mut used = vec![false; items.len()];
        kept.iter()
            .flat_map(|&user| &histories[user])
            .for_each(|&event| used[item[event as usize] as usize] = true);
        let mut order: Vec<usize> = (0..items.len()).filter(|&item| used[item]).collect();
        order.sort_by_key(|&item| items.get(item));
        let mut number = vec![0u32; items.len()];
        order.iter().zip(1u32..).for_each(|(&item, n)| number[item] = n);

        let times = |time: &Vec<f64>| -> Vec<Vec<f64>> {
            kept.iter()
                .map(|&user| histories[user].iter().map(|&event| time[event as usize]).collect())
                .collect()
        };
        let sequences = kept
            .iter()
            .map(|&user| histories[user].iter().map(|&event| number[item[event as usize] as usize]).collect())
            .collect();
        Ok(Self {
            users: users.select(kept.iter().copied()),
            items: ItemMap::new(items.select(order.into_iter())),
            sequences,
            times: log.time.as_ref().map(times),
        })
    }

    /// Number of events.
    pub fn events(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    /// How often each item occurs; place 0 is padding.
    pub fn popularity(&self, events: impl Iterator<Item = u32>) -> Vec<u64> {
        let mut counts = vec![0; self.items.n_items()];
        events.for_each(|item| counts[item as usize] += 1);
        counts
    }

    /// SHA-256 over items and sequences.
    pub fn fingerprint(&self) -> String {
        let mut bytes = Vec::with_capacity(4 * (self.events() + self.sequences.len()));
        for sequence in &self.sequences {
            bytes.extend((sequence.len() as u32).to_le_bytes());
            sequence.iter().for_each(|item| bytes.extend(item.to_le_bytes()));
        }
        let ids: String =
            (0..self.items.ids().len()).map(|i| format!("{}\n", self.items.ids().get(i))).collect();
        format!("{} {}", sha256(&bytes), sha256(ids.as_bytes()))
    }
}

/// Empties the histories of users with fewer than `k` events and removes the events of items with fewer than `k`, until
/// all that is left has enough.
fn k_core(histories: &mut [Vec<u32>], item: &[u32], n_items: usize, k: usize) {
    if k < 2 {
        return;
    }
    let mut counts = vec![0usize; n_items];
    histories.iter().flatten().for_each(|&event| counts[item[event as usize] as usize] += 1);
    loop {
        let mut changed = false;
        for events in histories.iter_mut() {
            let before = events.len();
            if before < k {
                events.drain(..).for_each(|event| counts[item[event as usize] as usize] -= 1);
            } else {
                events.retain(|&event| {
                    let count = &mut counts[item[event as usize] as usize];
                    let keep = *count >= k;
                    *count -= usize::from(!keep);
                    keep
                });
            }
            changed |= events.len() != before;
        }
        if !changed {
            return;
        }
    }
}
