//! Splits that keep copies and reverse complements together.

use super::LabelledSet;
use crate::error::{Error, Result};
use crate::tokenizer::reverse_complement;
use mamba_datasets::{Fractions, index_split};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The parts of a split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// For training.
    pub train: LabelledSet,
    /// For choosing.
    pub valid: LabelledSet,
    /// For the figures.
    pub test: LabelledSet,
}

/// What a sequence, its copies and its reverse complement have in common: the smaller of its two strands.
pub fn group_key(ids: &[u8]) -> Vec<u8> {
    let reverse = reverse_complement(ids);
    if reverse.as_slice() < ids { reverse } else { ids.to_vec() }
}

/// Rows of `held_out` whose sequence, or its reverse complement, is in `train` too.
pub fn leaks(train: &LabelledSet, held_out: &LabelledSet) -> usize {
    let known: HashSet<Vec<u8>> = train.rows.iter().map(|row| group_key(&row.ids)).collect();
    held_out.rows.iter().filter(|row| known.contains(&group_key(&row.ids))).count()
}

/// Groups of rows that must stay together, by the label of their first row, each in input order.
fn groups(set: &LabelledSet, stratify: bool) -> BTreeMap<String, Vec<Vec<usize>>> {
    let mut place_of: HashMap<Vec<u8>, (String, usize)> = HashMap::new();
    let mut groups: BTreeMap<String, Vec<Vec<usize>>> = BTreeMap::new();
    for (i, row) in set.rows.iter().enumerate() {
        let key = group_key(&row.ids);
        match place_of.get(&key) {
            Some((class, at)) => {
                if let Some(of_class) = groups.get_mut(class) {
                    of_class[*at].push(i);
                }
            }
            None => {
                let class = row.label.clone().filter(|_| stratify).unwrap_or_default();
                let of_class = groups.entry(class.clone()).or_default();
                place_of.insert(key, (class, of_class.len()));
                of_class.push(vec![i]);
            }
        }
    }
    groups
}

fn named(class: &str, error: mamba_datasets::Error) -> Error {
    match class {
        "" => error.into(),
        class => Error::Table { place: format!("class {class:?}"), reason: error.to_string() },
    }
}

/// Splits at random, `stratify`: class by class, so that all parts have the classes in like shares.
///
/// # Errors
/// Shares that leave nothing to train on; a class with fewer different sequences than there are parts.
pub fn split(set: &LabelledSet, held_out: Fractions, stratify: bool, seed: u64) -> Result<Parts> {
    let (mut train, mut valid, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for (class, groups) in groups(set, stratify) {
        let parts = index_split(groups.len(), held_out, seed).map_err(|e| named(&class, e))?;
        for (to, from) in [(&mut train, parts.train), (&mut valid, parts.valid), (&mut test, parts.test)] {
            to.extend(from.into_iter().flat_map(|group| groups[group].iter().copied()));
        }
    }
    let part = |mut places: Vec<usize>| {
        places.sort_unstable();
        set.select(&places)
    };
    Ok(Parts { train: part(train), valid: part(valid), test: part(test) })
}

/// `k` pairs of (places to train on, places held out), class by class; every row is held out once.
///
/// # Errors
/// A class with fewer different sequences than folds.
pub fn k_fold(
    set: &LabelledSet,
    k: usize,
    stratify: bool,
    seed: u64,
) -> Result<Vec<(Vec<usize>, Vec<usize>)>> {
    let mut folds = vec![(Vec::new(), Vec::new()); k];
    for (class, groups) in groups(set, stratify) {
        let of_class = mamba_datasets::k_fold(groups.len(), k, seed).map_err(|e| named(&class, e))?;
        for ((train, held_out), fold) in folds.iter_mut().zip(of_class) {
            train.extend(fold.train.into_iter().flat_map(|group| groups[group].iter().copied()));
            held_out.extend(fold.valid.into_iter().flat_map(|group| groups[group].iter().copied()));
        }
    }
    for (train, held_out) in &mut folds {
        train.sort_unstable();
        held_out.sort_unstable();
    }
    Ok(folds)
}
