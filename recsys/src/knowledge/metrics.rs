//! AUC and accuracy.

use serde::Serialize;

/// Figures over all answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KtMetrics {
    /// Number of answers.
    pub answers: usize,
    /// Chance that a right answer was given a higher probability than a wrong one; 0.5 where there are none to compare.
    pub auc: f64,
    /// Share of answers whose probability is on the right side of one half.
    pub accuracy: f64,
}

/// Of predicted scores (probabilities, or anything that rises with them and is 0.5 where they are) against the answers.
pub fn measure(scores: &[f32], right: &[bool]) -> KtMetrics {
    let correct = scores.iter().zip(right).filter(|&(&score, &right)| (score >= 0.5) == right).count();
    let answers = right.len();
    KtMetrics { answers, auc: auc(scores, right), accuracy: correct as f64 / answers.max(1) as f64 }
}

/// Area under the ROC curve: the share of pairs of a right and a wrong answer where the right one has the higher score;
/// equal scores count half.
pub fn auc(scores: &[f32], right: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut wrong_below, mut pairs) = (0u64, 0f64);
    for ties in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let n_right = ties.iter().filter(|&&i| right[i]).count() as u64;
        let n_wrong = ties.len() as u64 - n_right;
        pairs += n_right as f64 * (wrong_below as f64 + n_wrong as f64 / 2.0);
        wrong_below += n_wrong;
    }
    let n_right = scores.len() as u64 - wrong_below;
    match n_right * wrong_below {
        0 => 0.5,
        all => pairs / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hand_worked() {
        let figures = measure(&[0.9, 0.4, 0.6, 0.1], &[true, true, false, false]);
        assert_eq!((figures.auc, figures.accuracy, figures.answers), (0.75, 0.5, 4));
        assert_eq!(auc(&[0.5, 0.5], &[true, false]), 0.5);
        assert_eq!(auc(&[0.5, 0.5], &[true, true]), 0.5);
        assert_eq!(measure(&[], &[]).accuracy, 0.0);
    }

    proptest! {
        #[test]
        fn auc_counts_pairs(rows in prop::collection::vec((0u8..6, any::<bool>()), 0..60)) {
            let scores: Vec<f32> = rows.iter().map(|row| f32::from(row.0) / 6.0).collect();
            let right: Vec<bool> = rows.iter().map(|row| row.1).collect();
            let (mut won, mut all) = (0.0, 0.0);
            for (i, a) in scores.iter().enumerate().filter(|(i, _)| right[*i]) {
                for (j, b) in scores.iter().enumerate().filter(|(j, _)| !right[*j]) {
                    prop_assert!(i != j);
                    won += if a > b { 1.0 } else if a == b { 0.5 } else { 0.0 };
                    all += 1.0;
                }
            }
            let want = if all == 0.0 { 0.5 } else { won / all };
            prop_assert!((auc(&scores, &right) - want).abs() < 1e-12);
        }
    }
}
