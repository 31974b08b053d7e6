//! What predictions are worth.

use super::target::Target;
use crate::metrics::{self, Confusion, Figure};
use serde::Serialize;
use std::collections::BTreeMap;

/// Samples of the bootstrap.
const ROUNDS: usize = 1000;

/// Figures of predictions on labelled sequences, with 95 % bootstrap intervals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Sequences.
    pub sequences: usize,
    /// By name.
    pub figures: BTreeMap<String, Figure>,
    /// Names of the classes; none for values.
    pub classes: Vec<String>,
    /// Row is the label, column the prediction.
    pub confusion: Option<Confusion>,
    /// For each class (of two: the second) the points of its ROC curve.
    #[serde(skip)]
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
    /// Of values: label and prediction.
    #[serde(skip)]
    pub pairs: Vec<(f64, f64)>,
}

impl Report {
    /// Scores `predictions`, as [`super::Predictor::predict`] gives them, against `labels` as [`super::Examples`] has them.
    pub fn new(target: &Target, labels: &[f64], predictions: &[Vec<f64>]) -> Self {
        let n = labels.len();
        match target {
            Target::Classes { names } => {
                let labels: Vec<usize> = labels.iter().map(|&label| label as usize).collect();
                let figures = metrics::with_intervals(n, ROUNDS, 0, |rows| {
                    let labels: Vec<usize> = rows.iter().map(|&i| labels[i]).collect();
                    let predictions: Vec<Vec<f64>> = rows.iter().map(|&i| predictions[i].clone()).collect();
                    metrics::of_classes(names.len(), &labels, &predictions)
                });
                let predicted: Vec<usize> = predictions.iter().map(|row| metrics::likeliest(row)).collect();
                let first = if names.len() == 2 { 1 } else { 0 };
                let curve = |class: usize| {
                    let positive: Vec<bool> = labels.iter().map(|&label| label == class).collect();
                    let scores: Vec<f64> = predictions.iter().map(|row| row[class]).collect();
                    metrics::roc_curve(&positive, &scores).map(|points| (names[class].clone(), points))
                };
                Self {
                    sequences: n,
                    figures,
                    classes: names.clone(),
                    confusion: Some(Confusion::new(names.len(), &labels, &predicted)),
                    curves: (first..names.len()).filter_map(curve).collect(),
                    pairs: Vec::new(),
                }
            }
            Target::Value { mean, deviation } => {
                let labels: Vec<f64> = labels.iter().map(|label| label * deviation + mean).collect();
                let values: Vec<f64> = predictions.iter().map(|row| row[0]).collect();
                let figures = metrics::with_intervals(n, ROUNDS, 0, |rows| {
                    let labels: Vec<f64> = rows.iter().map(|&i| labels[i]).collect();
                    let values: Vec<f64> = rows.iter().map(|&i| values[i]).collect();
                    metrics::of_values(&labels, &values)
                });
                Self {
                    sequences: n,
                    figures,
                    classes: Vec::new(),
                    confusion: None,
                    curves: Vec::new(),
                    pairs: labels.into_iter().zip(values).collect(),
                }
            }
        }
    }
}
