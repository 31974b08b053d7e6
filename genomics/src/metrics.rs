//! Metrics of classification and regression, as pure functions over slices.
//!
//! Labels and predictions are classes from 0; a score is any number that grows with the belief in class 1. Where a metric
//! is not defined (one class only, nothing predicted) the conventions of scikit-learn hold, and each function says which.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How often each class was predicted for each class: row is the label, column the prediction.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    /// Counts pairs of label and prediction.
    ///
    /// # Panics
    /// If the two differ in length, or hold a class that is not below `classes`.
    pub fn new(classes: usize, labels: &[usize], predictions: &[usize]) -> Self {
        assert_eq!(labels.len(), predictions.len(), "a prediction for each label");
        let mut counts = vec![0; classes * classes];
        for (&label, &prediction) in labels.iter().zip(predictions) {
            assert!(label < classes && prediction < classes, "classes are below {classes}");
            counts[label * classes + prediction] += 1;
        }
        Self { classes, counts }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How often `prediction` was predicted for `label`.
    pub fn count(&self, label: usize, prediction: usize) -> u64 {
        self.counts[label * self.classes + prediction]
    }

    fn total(&self) -> f64 {
        self.counts.iter().sum::<u64>() as f64
    }

    fn right(&self) -> f64 {
        (0..self.classes).map(|class| self.count(class, class)).sum::<u64>() as f64
    }

    fn labelled(&self, class: usize) -> f64 {
        (0..self.classes).map(|other| self.count(class, other)).sum::<u64>() as f64
    }

    fn predicted(&self, class: usize) -> f64 {
        (0..self.classes).map(|other| self.count(other, class)).sum::<u64>() as f64
    }

    /// Share of right predictions; NaN of nothing.
    pub fn accuracy(&self) -> f64 {
        self.right() / self.total()
    }

    /// Matthews correlation coefficient, for any number of classes (Gorodkin 2004, eq. 8); 0 if all labels, or all
    /// predictions, are of one class.
    pub fn mcc(&self) -> f64 {
        let all = self.total();
        let sum = |f: &dyn Fn(usize) -> f64| (0..self.classes).map(f).sum::<f64>();
        let both = sum(&|class| self.labelled(class) * self.predicted(class));
        let labelled = sum(&|class| self.labelled(class).powi(2));
        let predicted = sum(&|class| self.predicted(class).powi(2));
        let scale = ((all * all - labelled) * (all * all - predicted)).sqrt();
        if scale == 0.0 { 0.0 } else { (self.right() * all - both) / scale }
    }

    /// Harmonic mean of precision and recall of one class; 0 if it is neither labelled nor predicted.
    pub fn f1_of(&self, class: usize) -> f64 {
        let either = self.labelled(class) + self.predicted(class);
        if either == 0.0 { 0.0 } else { 2.0 * self.count(class, class) as f64 / either }
    }

    /// F1 of class 1 where there are two classes, else the mean over all classes (macro F1).
    pub fn f1(&self) -> f64 {
        match self.classes {
            2 => self.f1_of(1),
            classes => (0..classes).map(|class| self.f1_of(class)).sum::<f64>() / classes as f64,
        }
    }
}

/// Area under the ROC curve: the share of pairs of a positive and a negative that the scores order rightly, ties counted
/// half. `None` without a positive or without a negative.
pub fn auroc(positive: &[bool], scores: &[f64]) -> Option<f64> {
    let (mut area, mut above, mut negatives) = (0.0, 0.0, 0.0);
    for (positives_here, negatives_here) in descending(positive, scores) {
        area += negatives_here * (above + positives_here / 2.0);
        above += positives_here;
        negatives += negatives_here;
    }
    (above > 0.0 && negatives > 0.0).then(|| area / (above * negatives))
}

/// Area under the precision-recall curve as average precision: precision at each threshold, weighted by the recall
/// gained there. `None` without a positive.
pub fn auprc(positive: &[bool], scores: &[f64]) -> Option<f64> {
    let (mut area, mut hits, mut taken) = (0.0, 0.0, 0.0);
    for (positives_here, negatives_here) in descending(positive, scores) {
        hits += positives_here;
        taken += positives_here + negatives_here;
        area += positives_here * hits / taken;
    }
    (hits > 0.0).then(|| area / hits)
}

/// Points (false positive rate, true positive rate) of the ROC curve, from (0, 0) to (1, 1), one for each distinct score.
/// `None` without a positive or without a negative.
pub fn roc_curve(positive: &[bool], scores: &[f64]) -> Option<Vec<(f64, f64)>> {
    let positives = positive.iter().filter(|&&yes| yes).count() as f64;
    let negatives = positive.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let mut points = vec![(0.0, 0.0)];
    let (mut yes, mut no) = (0.0, 0.0);
    for (positives_here, negatives_here) in descending(positive, scores) {
        yes += positives_here;
        no += negatives_here;
        points.push((no / negatives, yes / positives));
    }
    Some(points)
}

/// Positives and negatives at each distinct score, from the highest down.
fn descending(positive: &[bool], scores: &[f64]) -> Vec<(f64, f64)> {
    assert_eq!(positive.len(), scores.len(), "a score for each label");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let groups = order.chunk_by(|&a, &b| scores[a] == scores[b]);
    let count = |group: &[usize]| {
        let positives = group.iter().filter(|&&i| positive[i]).count();
        (positives as f64, (group.len() - positives) as f64)
    };
    groups.map(count).collect()
}

/// Interval that holds the middle `level` (say 0.95) of a metric over `rounds` samples drawn with replacement from `n`
/// rows: the percentile bootstrap. `metric` gets the rows of a sample; samples for which it has no value are left out.
/// `None` if none has one.
pub fn bootstrap(
    n: usize,
    rounds: usize,
    level: f64,
    seed: u64,
    mut metric: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<(f64, f64)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = vec![0; n];
    let mut values = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        // The product's upper half is uniform up to a bias of n / 2^64.
        rows.fill_with(|| ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize);
        values.extend(metric(&rows).filter(|value| value.is_finite()));
    }
    middle(values, level)
}

/// The interval that holds the middle `level` of some values; `None` of nothing.
fn middle(mut values: Vec<f64>, level: f64) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)? as f64;
    let at = |share: f64| values[(share * last).round() as usize];
    Some((at((1.0 - level) / 2.0), at((1.0 + level) / 2.0)))
}

/// A figure, with the interval that holds the middle 95 % of its bootstrap samples.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Figure {
    /// Over all rows.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// Figures by name.
pub type Figures = std::collections::BTreeMap<&'static str, f64>;

/// `accuracy`, `mcc`, `f1`, and `auroc` and `auprc` where they are defined: of class 1 for two classes, else the mean over
/// the classes, each against the rest. `probabilities` has a row of `classes` values for each label; the likeliest class
/// is the prediction.
///
/// # Panics
/// If the lengths do not fit.
pub fn of_classes(classes: usize, labels: &[usize], probabilities: &[Vec<f64>]) -> Figures {
    let predictions: Vec<usize> = probabilities.iter().map(|row| likeliest(row)).collect();
    let confusion = Confusion::new(classes, labels, &predictions);
    let mut figures =
        Figures::from([("accuracy", confusion.accuracy()), ("mcc", confusion.mcc()), ("f1", confusion.f1())]);
    type Area = fn(&[bool], &[f64]) -> Option<f64>;
    let areas: [(&str, Area); 2] = [("auroc", auroc), ("auprc", auprc)];
    for (name, area) in areas {
        let of_class = |class: usize| {
            let positive: Vec<bool> = labels.iter().map(|&label| label == class).collect();
            let scores: Vec<f64> = probabilities.iter().map(|row| row[class]).collect();
            area(&positive, &scores)
        };
        let first = if classes == 2 { 1 } else { 0 };
        let values: Option<Vec<f64>> = (first..classes).map(of_class).collect();
        if let Some(values) = values.filter(|values| !values.is_empty()) {
            figures.insert(name, values.iter().sum::<f64>() / values.len() as f64);
        }
    }
    figures
}

/// The first of the largest values.
pub fn likeliest(row: &[f64]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// `mse`, `mae`, and where the targets vary `r2`, and where both vary `pearson` and `spearman`.
///
/// # Panics
/// If the two differ in length.
pub fn of_values(targets: &[f64], predictions: &[f64]) -> Figures {
    assert_eq!(targets.len(), predictions.len(), "a prediction for each target");
    let n = targets.len() as f64;
    let mean =
        |f: &dyn Fn(f64) -> f64| targets.iter().zip(predictions).map(|(t, p)| f(t - p)).sum::<f64>() / n;
    let mse = mean(&|x| x * x);
    let mut figures = Figures::from([("mse", mse), ("mae", mean(&f64::abs))]);
    let centre = targets.iter().sum::<f64>() / n;
    let variance = targets.iter().map(|t| (t - centre).powi(2)).sum::<f64>() / n;
    if variance > 0.0 {
        figures.insert("r2", 1.0 - mse / variance);
    }
    figures.extend(correlation(targets, predictions).map(|r| ("pearson", r)));
    figures.extend(correlation(&ranks(targets), &ranks(predictions)).map(|r| ("spearman", r)));
    figures
}

/// Pearson's correlation; `None` where one of the two does not vary.
fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let centred = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|v| v - mean).collect::<Vec<_>>()
    };
    let (a, b) = (centred(a), centred(b));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (product(&a, &a) * product(&b, &b)).sqrt();
    (scale > 0.0).then(|| product(&a, &b) / scale)
}

/// Ranks from 0; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + (group.len() - 1) as f64 / 2.0;
        group.iter().for_each(|&i| ranks[i] = rank);
        first += group.len();
    }
    ranks
}

/// Figures over all `n` rows, each with its 95 % interval by [`bootstrap`] of `rounds` samples. `figures` gets the rows
/// of a sample, of which there may be several of one.
pub fn with_intervals(
    n: usize,
    rounds: usize,
    seed: u64,
    figures: impl Fn(&[usize]) -> Figures,
) -> std::collections::BTreeMap<String, Figure> {
    let mut samples: std::collections::BTreeMap<&'static str, Vec<f64>> = Default::default();
    bootstrap(n, rounds, 0.95, seed, |rows| {
        for (name, value) in figures(rows) {
            samples.entry(name).or_default().push(value);
        }
        None
    });
    let all: Vec<usize> = (0..n).collect();
    let with_interval = |(name, value): (&'static str, f64)| {
        let of_name = samples.get(name).map_or(&[][..], Vec::as_slice);
        let (low, high) = middle(of_name.to_vec(), 0.95).unwrap_or((f64::NAN, f64::NAN));
        (name.to_string(), Figure { value, low, high })
    };
    figures(&all).into_iter().map(with_interval).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} and {b}");
    }

    #[test]
    fn a_worked_example_of_two_classes() {
        // 3 true positives, 1 false negative, 2 false positives, 4 true negatives
        let labels = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
        let predictions = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];
        let confusion = Confusion::new(2, &labels, &predictions);
        near(confusion.accuracy(), 0.7);
        near(confusion.mcc(), (3.0 * 4.0 - 2.0 * 1.0) / (5.0_f64 * 4.0 * 6.0 * 5.0).sqrt());
        near(confusion.f1(), 6.0 / 9.0);
        assert_eq!((confusion.count(1, 0), confusion.count(0, 1)), (1, 2));
    }

    #[test]
    fn a_worked_example_of_three_classes() {
        let confusion = Confusion::new(3, &[0, 0, 1, 1, 2, 2], &[0, 1, 1, 1, 2, 0]);
        near(confusion.accuracy(), 4.0 / 6.0);
        near(confusion.mcc(), (4.0 * 6.0 - 12.0) / ((36.0_f64 - 12.0) * (36.0 - 14.0)).sqrt());
        near(confusion.f1(), (0.5 + 0.8 + 2.0 / 3.0) / 3.0);
    }

    #[test]
    fn one_class_only_has_no_correlation() {
        near(Confusion::new(2, &[1, 1], &[1, 1]).mcc(), 0.0);
        near(Confusion::new(2, &[0, 1], &[1, 1]).mcc(), 0.0);
        near(Confusion::new(2, &[0, 0], &[0, 0]).f1(), 0.0);
    }

    #[test]
    fn areas_with_ties_and_without() {
        let positive = [true, false, true, false];
        near(auroc(&positive, &[0.9, 0.8, 0.7, 0.1]).unwrap(), 0.75);
        near(auroc(&positive, &[0.5, 0.5, 0.5, 0.5]).unwrap(), 0.5);
        near(auroc(&positive, &[0.9, 0.7, 0.7, 0.1]).unwrap(), 0.875);
        near(auprc(&positive, &[0.9, 0.8, 0.7, 0.1]).unwrap(), (1.0 + 2.0 / 3.0) / 2.0);
        near(auprc(&positive, &[0.5; 4]).unwrap(), 0.5);
        assert_eq!(auroc(&[true, true], &[0.1, 0.2]), None);
        assert_eq!(auprc(&[false], &[0.1]), None);
        assert_eq!(auroc(&[], &[]), None);
    }

    #[test]
    fn an_interval_holds_the_mean_and_is_the_same_for_a_seed() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 2)).collect();
        let mean = |rows: &[usize]| Some(rows.iter().map(|&i| values[i]).sum::<f64>() / rows.len() as f64);
        let (low, high) = bootstrap(200, 1000, 0.95, 7, mean).unwrap();
        assert!(low < 0.5 && 0.5 < high, "{low} {high}");
        // 1.96 standard errors of 0.035 on each side
        assert!((0.11..0.17).contains(&(high - low)), "{low} {high}");
        assert_eq!(bootstrap(200, 1000, 0.95, 7, mean), Some((low, high)));
        assert_eq!(bootstrap(3, 10, 0.95, 7, |_| None), None);
    }

    #[test]
    fn worked_examples_of_regression() {
        let figures = of_values(&[1.0, 2.0, 3.0, 4.0], &[2.0, 2.0, 3.0, 5.0]);
        near(figures["mse"], 0.5);
        near(figures["mae"], 0.5);
        near(figures["r2"], 1.0 - 0.5 / 1.25);
        near(figures["pearson"], 5.0 / 30.0_f64.sqrt());
        // ranks 0 1 2 3 and 0.5 0.5 2 3
        near(figures["spearman"], 4.5 / (5.0_f64 * 4.5).sqrt());
        assert!(!of_values(&[1.0, 1.0], &[1.0, 2.0]).contains_key("r2"));
    }

    #[test]
    fn three_classes_have_the_mean_of_their_areas() {
        let likely = |class: usize| (0..3).map(|i| if i == class { 0.8 } else { 0.1 }).collect::<Vec<_>>();
        let figures = of_classes(3, &[0, 1, 2, 2], &[likely(0), likely(1), likely(2), likely(0)]);
        near(figures["accuracy"], 0.75);
        // class 0: its one row ties with a row of class 2; class 2: one of two above all others, one ties below
        near(figures["auroc"], (5.0 / 6.0 + 1.0 + 0.75) / 3.0);
        assert!(!of_classes(3, &[0, 1], &[likely(0), likely(1)]).contains_key("auroc"));
    }

    #[test]
    fn figures_come_with_their_intervals() {
        let labels: Vec<usize> = (0..100).map(|i| i % 2).collect();
        let right = |i: usize| if i % 10 < 8 { 0.9 } else { 0.1 };
        let rows: Vec<Vec<f64>> = labels
            .iter()
            .enumerate()
            .map(
                |(i, &label)| {
                    if label == 1 { vec![1.0 - right(i), right(i)] } else { vec![right(i), 1.0 - right(i)] }
                },
            )
            .collect();
        let figures = with_intervals(100, 200, 1, |sample| {
            let labels: Vec<usize> = sample.iter().map(|&i| labels[i]).collect();
            let rows: Vec<Vec<f64>> = sample.iter().map(|&i| rows[i].clone()).collect();
            of_classes(2, &labels, &rows)
        });
        let accuracy = figures["accuracy"];
        near(accuracy.value, 0.8);
        assert!(
            accuracy.low < 0.8 && 0.8 < accuracy.high && accuracy.high - accuracy.low < 0.2,
            "{accuracy:?}"
        );
    }

    proptest! {
        #[test]
        fn the_curve_has_the_area(rows in proptest::collection::vec((any::<bool>(), 0..6u8), 2..40)) {
            let positive: Vec<bool> = rows.iter().map(|row| row.0).collect();
            let scores: Vec<f64> = rows.iter().map(|row| f64::from(row.1)).collect();
            let Some(points) = roc_curve(&positive, &scores) else { return Ok(()) };
            prop_assert_eq!(*points.last().unwrap(), (1.0, 1.0));
            let area: f64 = points.windows(2).map(|p| (p[1].0 - p[0].0) * (p[1].1 + p[0].1) / 2.0).sum();
            prop_assert!((area - auroc(&positive, &scores).unwrap()).abs() < 1e-9);
            // Turning the scores round turns the curve round.
            let turned: Vec<f64> = scores.iter().map(|x| -x).collect();
            prop_assert!((area + auroc(&positive, &turned).unwrap() - 1.0).abs() < 1e-9);
        }
    }
}
