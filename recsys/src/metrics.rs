//! Ranking metrics, as pure functions.
//!
//! Each query has one right answer, at some rank (from 1) among the items that may be recommended. Averaged over the
//! queries, with a cut-off k:
//!
//! | metric | of one query |
//! |---|---|
//! | Hit@k | 1 if rank ≤ k |
//! | NDCG@k | 1/log₂(rank + 1) if rank ≤ k |
//! | MRR@k | 1/rank if rank ≤ k |

use serde::Serialize;
use std::collections::BTreeMap;

/// The cut-offs that are reported.
pub const CUTOFFS: [usize; 5] = [1, 5, 10, 20, 50];
/// The cut-off of coverage and popularity lift.
pub const LIST: usize = 10;

/// Figures of a set of queries.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Number of queries.
    pub queries: usize,
    /// Hit@k by k.
    pub hit: BTreeMap<usize, f64>,
    /// NDCG@k by k.
    pub ndcg: BTreeMap<usize, f64>,
    /// MRR@k by k.
    pub mrr: BTreeMap<usize, f64>,
    /// Share of all items that some query has among its first ten.
    pub coverage: f64,
    /// How many times as often the items among the first ten occur in the training events as the right answers do:
    /// above 1, popular items are recommended more than they are taken.
    pub popularity_lift: f64,
}

/// Rank of the item `answer`: one more than the number of others that score at least as high, so that ties count
/// against the model. Items below `first` are not ranked, nor are those of `passed_over`, except the answer. NaN ranks
/// above everything, and an answer that scores NaN ranks last.
pub fn rank(scores: &[f32], answer: usize, first: usize, passed_over: &[u32]) -> usize {
    let target = scores[answer];
    let beats = |score: f32| score >= target || score.is_nan() || target.is_nan();
    let all = scores[first..].iter().filter(|&&score| beats(score)).count();
    let mut passed: Vec<u32> = passed_over.iter().copied().filter(|&item| item as usize != answer).collect();
    passed.sort_unstable();
    passed.dedup();
    let passed =
        passed.iter().filter(|&&item| item as usize >= first && beats(scores[item as usize])).count();
    // The answer was counted among those that beat it.
    all - passed
}

/// Averages over ranks; `lists` are the items recommended for each query, `popularity` the training events of each
/// item (place 0 is padding), `answers` the right ones.
pub fn summarise(ranks: &[usize], lists: &[Vec<u32>], answers: &[u32], popularity: &[u64]) -> Metrics {
    let n = ranks.len().max(1) as f64;
    let mean = |gain: &dyn Fn(f64) -> f64| -> BTreeMap<usize, f64> {
        let at = |k: usize| {
            // The sum of nothing is -0, which would be printed.
            ranks.iter().filter(|&&rank| rank <= k).map(|&rank| gain(rank as f64)).fold(0.0, |a, b| a + b) / n
        };
        CUTOFFS.iter().map(|&k| (k, at(k))).collect()
    };
    let mut recommended = vec![false; popularity.len()];
    lists.iter().flatten().for_each(|&item| recommended[item as usize] = true);
    let covered = recommended.iter().filter(|&&yes| yes).count() as f64;
    let mean_popularity = |items: &mut dyn Iterator<Item = u32>| {
        let (sum, count) =
            items.fold((0u64, 0u64), |(sum, n), item| (sum + popularity[item as usize], n + 1));
        sum as f64 / count.max(1) as f64
    };
    let of_lists = mean_popularity(&mut lists.iter().flatten().copied());
    let of_answers = mean_popularity(&mut answers.iter().copied());
    Metrics {
        queries: ranks.len(),
        hit: mean(&|_| 1.0),
        ndcg: mean(&|rank| 1.0 / (rank + 1.0).log2()),
        mrr: mean(&|rank| 1.0 / rank),
        coverage: covered / (popularity.len().max(2) - 1) as f64,
        popularity_lift: of_lists / of_answers.max(f64::MIN_POSITIVE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_and_nan_count_against_the_model() {
        let scores = [9.0, 1.0, 3.0, 3.0, 2.0];
        assert_eq!(rank(&scores, 2, 1, &[]), 2); // tied with item 3; item 0 is padding
        assert_eq!(rank(&scores, 4, 1, &[]), 3);
        assert_eq!(rank(&scores, 4, 1, &[2, 2, 3, 0]), 1);
        assert_eq!(rank(&scores, 2, 1, &[2]), 2); // the answer itself is never passed over
        let nan = f32::NAN;
        assert_eq!(rank(&[0.0, nan, 1.0], 2, 1, &[]), 2);
        assert_eq!(rank(&[0.0, 0.5, nan, 1.0], 2, 1, &[]), 3);
    }

    #[test]
    fn hand_worked_means() {
        let lists = [vec![1, 2], vec![2, 3]];
        let metrics = summarise(&[1, 3], &lists, &[1, 2], &[0, 4, 2, 6, 0]);
        assert_eq!((metrics.queries, metrics.hit[&1], metrics.hit[&5]), (2, 0.5, 1.0));
        assert_eq!(metrics.ndcg[&10], (1.0 + 0.5) / 2.0);
        assert_eq!(metrics.mrr[&5], (1.0 + 1.0 / 3.0) / 2.0);
        assert_eq!(metrics.coverage, 0.75);
        assert_eq!(metrics.popularity_lift, ((4 + 2 + 2 + 6) as f64 / 4.0) / 3.0);
    }

    #[test]
    fn no_query_is_no_division_by_zero() {
        let metrics = summarise(&[], &[], &[], &[0, 1]);
        assert!(metrics.hit.values().all(|&x| x == 0.0) && metrics.popularity_lift == 0.0);
        let missed = summarise(&[60], &[vec![]], &[1], &[0, 1]);
        let figures = metrics.hit.values().chain(missed.ndcg.values()).chain(missed.mrr.values());
        assert!(figures.cloned().all(|x| format!("{x:.4}") == "0.0000"));
    }
}
