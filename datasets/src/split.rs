//! Seeded splits: blocks of a genome, fractions of a list, k folds.
//!
//! Neighbouring windows of a genome overlap and repeat each other, so a split of windows leaks. [`genome_split`] holds
//! out whole blocks instead; training windows are then taken *inside* the training intervals only (see [`Windows`](crate::Windows))
//! and cannot touch a held-out base.
//!
//! ```
//! use mamba_datasets::{Fractions, Windows, genome_split};
//!
//! let split = genome_split(&[48_502], None, Fractions { valid: 0.1, test: 0.1 }, 42)?;
//! let windows = Windows::new(&split.train, 1024)?;
//! let first = windows.get(0);
//! assert!(split.valid.iter().chain(&split.test).all(|held_out| !held_out.overlaps(&first)));
//! # Ok::<(), mamba_datasets::Error>(())
//! ```
//!
//! The same seed gives the same split on every machine and in every version of this crate.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bases in a block unless the genome is too small for it.
pub const DEFAULT_BLOCK: u64 = 50_000;

/// A stretch of one record: bases `start..end`, counted from 0, end excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// The record's place in the input, from 0.
    pub record: usize,
    /// First base.
    pub start: u64,
    /// One past the last base.
    pub end: u64,
}

impl Interval {
    /// Number of bases.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no base in it.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the two have a base in common.
    pub fn overlaps(&self, other: &Interval) -> bool {
        self.record == other.record && self.start < other.end && other.start < self.end
    }
}

/// The shares held out of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fractions {
    /// Share for validation; 0 for none.
    pub valid: f64,
    /// Share for testing; 0 for none.
    pub test: f64,
}

impl Fractions {
    fn check(self) -> Result<()> {
        let Fractions { valid, test } = self;
        if valid >= 0.0 && test >= 0.0 && valid + test < 1.0 {
            Ok(())
        } else {
            Err(Error::Fractions { valid, test })
        }
    }

    /// How many sets must not be empty.
    fn sets(self) -> usize {
        1 + usize::from(self.valid > 0.0) + usize::from(self.test > 0.0)
    }
}

/// Disjoint intervals that together cover every base; each list is sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenomeSplit {
    /// Where training windows may lie.
    pub train: Vec<Interval>,
    /// Held out for validation.
    pub valid: Vec<Interval>,
    /// Held out for testing.
    pub test: Vec<Interval>,
    /// Bases in a block.
    pub block: u64,
}

/// Splits records of the given lengths by blocks.
///
/// Without `block`, blocks have [`DEFAULT_BLOCK`] bases, or fewer where the genome is so small that the smallest
/// held-out set would not get two. A record's last piece joins the block before it if it is shorter than half a
/// block. Each set with a fraction above 0 gets at least one block; where there are too few, that is an error.
/// Neighbouring blocks of one set come out as one interval.
pub fn genome_split(
    lengths: &[u64],
    block: Option<u64>,
    fractions: Fractions,
    seed: u64,
) -> Result<GenomeSplit> {
    fractions.check()?;
    let total: u64 = lengths.iter().sum();
    let block = match block {
        Some(0) => return Err(Error::Zero { name: "the block size" }),
        Some(block) => block,
        None => automatic_block(total, fractions),
    };
    let blocks: Vec<Interval> =
        lengths.iter().enumerate().flat_map(|(record, &len)| blocks(record, len, block)).collect();
    if blocks.len() < fractions.sets() {
        let what = format!("blocks of {block} bases");
        return Err(Error::TooFew { found: blocks.len(), what, sets: fractions.sets() });
    }

    let order = shuffled(blocks.len(), seed);
    let mut order = order.into_iter().map(|i| blocks[i]).collect::<Vec<_>>().into_iter();
    let mut still_needed = fractions.sets();
    let mut hold_out = |fraction: f64| {
        let mut taken = Vec::new();
        if fraction > 0.0 {
            still_needed -= 1;
            let target = fraction * total as f64;
            let mut bases = 0;
            while order.len() > still_needed {
                let next = order.as_slice()[0].len();
                let closer = (bases + next) as f64 - target <= target - bases as f64;
                if !taken.is_empty() && !closer {
                    break;
                }
                bases += next;
                taken.extend(order.next());
            }
        }
        merged(taken)
    };
    let test = hold_out(fractions.test);
    let valid = hold_out(fractions.valid);
    Ok(GenomeSplit { train: merged(order.collect()), valid, test, block })
}

fn automatic_block(total: u64, fractions: Fractions) -> u64 {
    let held_out = [fractions.valid, fractions.test].into_iter().filter(|&f| f > 0.0);
    let smallest = held_out.fold(1.0, f64::min);
    let two_blocks = (smallest * total as f64 / 2.0) as u64;
    two_blocks.clamp(1, DEFAULT_BLOCK)
}

fn blocks(record: usize, len: u64, block: u64) -> impl Iterator<Item = Interval> {
    let whole = len / block;
    let rest = len % block;
    // A rest of half a block or more stands alone, a shorter one lengthens the last whole block.
    let alone = rest > 0 && (whole == 0 || rest >= block.div_ceil(2));
    let count = whole + u64::from(alone);
    (0..count).map(move |i| {
        let end = if i + 1 == count { len } else { (i + 1) * block };
        Interval { record, start: i * block, end }
    })
}

fn merged(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_unstable();
    let mut merged: Vec<Interval> = Vec::new();
    for next in intervals {
        match merged.last_mut() {
            Some(last) if last.record == next.record && last.end == next.start => last.end = next.end,
            _ => merged.push(next),
        }
    }
    merged
}

/// Disjoint, sorted places in a list that together cover it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSplit {
    /// For training.
    pub train: Vec<usize>,
    /// For validation.
    pub valid: Vec<usize>,
    /// For testing.
    pub test: Vec<usize>,
}

/// Splits a list of `n` items at random; each set with a fraction above 0 gets at least one item.
pub fn index_split(n: usize, fractions: Fractions, seed: u64) -> Result<IndexSplit> {
    fractions.check()?;
    let sets = fractions.sets();
    if n < sets {
        return Err(Error::TooFew { found: n, what: "items".to_owned(), sets });
    }
    let mut free = n - sets; // beyond the one item that every set gets
    let mut size = |fraction: f64| {
        if fraction == 0.0 {
            return 0;
        }
        let extra = ((fraction * n as f64).round() as usize).saturating_sub(1).min(free);
        free -= extra;
        1 + extra
    };
    let (test, valid) = (size(fractions.test), size(fractions.valid));
    let mut order = shuffled(n, seed);
    let mut take = |count| {
        let mut taken = order.split_off(order.len() - count);
        taken.sort_unstable();
        taken
    };
    let (test, valid) = (take(test), take(valid));
    Ok(IndexSplit { train: take(n - test.len() - valid.len()), valid, test })
}

/// One fold of a cross-validation; both lists are sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Everything that is not held out.
    pub train: Vec<usize>,
    /// Held out in this fold and in no other.
    pub valid: Vec<usize>,
}

/// Splits a list of `n` items at random into `k` folds whose sizes differ by at most one.
pub fn k_fold(n: usize, k: usize, seed: u64) -> Result<Vec<Fold>> {
    if k < 2 || n < k {
        return Err(Error::TooFew { found: n, what: "items".to_owned(), sets: k.max(2) });
    }
    let mut fold_of = vec![0; n];
    for (place, item) in shuffled(n, seed).into_iter().enumerate() {
        fold_of[item] = place % k;
    }
    let fold = |f| {
        let (valid, train) = (0..n).partition(|&i| fold_of[i] == f);
        Fold { train, valid }
    };
    Ok((0..k).map(fold).collect())
}

/// `0..n` in random order. Written out here so that no other crate's version can change a split.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // A uniform j in 0..=i: the bias is at most n / 2^64.
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TENTHS: Fractions = Fractions { valid: 0.1, test: 0.1 };

    fn bases(intervals: &[Interval]) -> u64 {
        intervals.iter().map(Interval::len).sum()
    }

    #[test]
    fn a_seed_means_the_same_split_for_ever() {
        assert_eq!(shuffled(8, 0), [7, 2, 1, 6, 0, 4, 3, 5]);
        assert_eq!(shuffled(8, 1), [5, 6, 2, 4, 1, 7, 0, 3]);
    }

    #[test]
    fn a_large_genome_gets_50_kb_blocks_and_a_phage_smaller_ones() {
        let coli = genome_split(&[4_938_920], None, TENTHS, 1).unwrap();
        assert_eq!(coli.block, 50_000);
        let lambda = genome_split(&[48_502], None, TENTHS, 1).unwrap();
        assert_eq!(lambda.block, 2_425);
        for (split, total) in [(coli, 4_938_920.0), (lambda, 48_502.0)] {
            for set in [&split.valid, &split.test] {
                let share = bases(set) as f64 / total;
                assert!((share - 0.1).abs() < 0.03, "{share}");
            }
        }
    }

    #[test]
    fn too_few_blocks_say_how_many_there_are() {
        let error = genome_split(&[48_502], Some(50_000), TENTHS, 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot split 1 blocks of 50000 bases into 3 non-empty sets");
        assert!(genome_split(&[], None, TENTHS, 1).is_err());
        assert!(genome_split(&[3], None, TENTHS, 1).is_ok());
        assert!(genome_split(&[2], None, TENTHS, 1).is_err());
    }

    #[test]
    fn a_short_rest_joins_the_block_before_it() {
        let ends = |len| blocks(0, len, 10).map(|i| i.end).collect::<Vec<_>>();
        assert_eq!(ends(24), [10, 24]);
        assert_eq!(ends(25), [10, 20, 25]);
        assert_eq!(ends(3), [3]);
        assert!(ends(0).is_empty());
    }

    #[test]
    fn fractions_that_are_none_are_refused() {
        for (valid, test) in [(-0.1, 0.1), (0.5, 0.5), (f64::NAN, 0.0), (0.0, f64::INFINITY)] {
            assert!(genome_split(&[1000], None, Fractions { valid, test }, 0).is_err());
            assert!(index_split(1000, Fractions { valid, test }, 0).is_err());
        }
    }

    #[test]
    fn folds_need_an_item_each() {
        assert!(k_fold(3, 4, 0).is_err());
        assert!(k_fold(3, 1, 0).is_err());
    }

    fn fractions() -> impl Strategy<Value = Fractions> {
        let part = prop_oneof![Just(0.0), 0.0..0.45];
        (part.clone(), part).prop_map(|(valid, test)| Fractions { valid, test })
    }

    proptest! {
        #[test]
        fn genome_sets_are_disjoint_cover_everything_and_are_not_empty(
            lengths in prop::collection::vec(0u64..3000, 0..12),
            block in prop::option::of(1u64..1000),
            fractions in fractions(),
            seed: u64,
        ) {
            let n_blocks = |b| lengths.iter().enumerate().flat_map(|(r, &len)| blocks(r, len, b)).count();
            match genome_split(&lengths, block, fractions, seed) {
                Err(_) => {
                    let block = block.unwrap_or(automatic_block(lengths.iter().sum(), fractions));
                    prop_assert!(n_blocks(block) < fractions.sets());
                }
                Ok(split) => {
                    prop_assert!(!split.train.is_empty());
                    prop_assert_eq!(split.valid.is_empty(), fractions.valid == 0.0);
                    prop_assert_eq!(split.test.is_empty(), fractions.test == 0.0);
                    let mut all: Vec<_> = [&split.train, &split.valid, &split.test].into_iter().flatten().copied().collect();
                    all.sort();
                    for (record, &len) in lengths.iter().enumerate() {
                        let mut at = 0;
                        for i in all.iter().filter(|i| i.record == record) {
                            prop_assert_eq!(i.start, at);
                            prop_assert!(!i.is_empty());
                            at = i.end;
                        }
                        prop_assert_eq!(at, len);
                    }
                    prop_assert_eq!(&split, &genome_split(&lengths, block, fractions, seed).unwrap());
                }
            }
        }

        #[test]
        fn index_sets_are_disjoint_and_cover_everything(n in 0usize..200, fractions in fractions(), seed: u64) {
            match index_split(n, fractions, seed) {
                Err(_) => prop_assert!(n < fractions.sets()),
                Ok(split) => {
                    let mut all = [split.train.clone(), split.valid.clone(), split.test.clone()].concat();
                    all.sort();
                    prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
                    prop_assert!(!split.train.is_empty());
                    prop_assert_eq!(split.valid.is_empty(), fractions.valid == 0.0);
                    prop_assert_eq!(split.test.is_empty(), fractions.test == 0.0);
                    prop_assert_eq!(&split, &index_split(n, fractions, seed).unwrap());
                }
            }
        }

        #[test]
        fn every_item_is_held_out_in_one_fold(n in 2usize..100, k in 2usize..10, seed: u64) {
            prop_assume!(k <= n);
            let folds = k_fold(n, k, seed).unwrap();
            let mut held_out: Vec<_> = folds.iter().flat_map(|f| f.valid.clone()).collect();
            held_out.sort();
            prop_assert_eq!(held_out, (0..n).collect::<Vec<_>>());
            for fold in &folds {
                prop_assert!(fold.valid.len() == n / k || fold.valid.len() == n / k + 1);
                let mut all = [fold.train.clone(), fold.valid.clone()].concat();
                all.sort();
                prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
            }
        }
    }
}
